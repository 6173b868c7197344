"""How far a program has come in an inbox, in a file of its own.

A cursor is a place in the inbox of one node, so the file names that node: with another one's the program would miss
messages, or see old ones again. It is written anew and put in the place of the old one: whatever happens, there is one
of the two.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

FILE_BYTES_MAX = 1024  # a cursor has some dozens; a longer file is some other file


class BadCursor(Exception):
    """The file is there and does not read: what is wrong with it, and what to do."""


@dataclass(frozen=True)
class Cursor:
    """`node`: the fingerprint of the node; `after`: everything up to this has been done."""

    node: str
    after: int


class CursorFile:
    """Of one program; two need two files."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def read(self) -> Cursor | None:
        """None: nothing was written yet. Raises :class:`BadCursor`, OSError."""
        try:
            with self._path.open("rb") as file:
                text = file.read(FILE_BYTES_MAX + 1)
            document = json.loads(text if len(text) <= FILE_BYTES_MAX else b"")
            node, after = document["node"], document["after"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError):
            node = after = None
        if not isinstance(node, str) or type(after) is not int or after < 0:
            raise BadCursor(f"{self._path} is no cursor: remove it to begin anew, or give another file")
        return Cursor(node, after)

    def write(self, cursor: Cursor) -> None:
        """It is on the disk when this returns. Raises OSError."""
        made = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            made.unlink(missing_ok=True)  # of one that was killed; and nobody's link is followed from here
            with made.open("x", encoding="utf-8") as file:
                file.write(json.dumps(asdict(cursor)) + "\n")
                file.flush()
                os.fsync(file.fileno())
            made.replace(self._path)
        finally:
            with suppress(FileNotFoundError):
                made.unlink()
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
