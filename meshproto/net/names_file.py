"""A list of names in a file, read again when it has changed."""

from pathlib import Path
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from meshproto.core.policy import Names
from meshproto.errors import BadParams, BadState

LOOK_S: Final = 1.0
"""How often the file is looked at, at most: a person who has changed it waits no longer."""

Stamp = tuple[int, int, int]


class NamesFile:
    """See :class:`meshproto.core.policy.Names`. Raises :class:`BadState` when the file does not read at first; a later
    one that does not read is told once, and changes nothing."""

    log = Logger()

    def __init__(self, path: Path, clock: IReactorTime) -> None:
        self._path = path
        self._clock = clock
        self._stamp: Stamp | None
        self._stamp, self._names = self._read()
        self._looked_at = clock.seconds()

    def allow(self, name: str, key: bytes) -> bool:
        """Whether the name, with this identity key, is on the list as it is now."""
        if not 0 <= self._clock.seconds() - self._looked_at < LOOK_S:
            self._looked_at = self._clock.seconds()
            self._look()
        return self._names.allow(name, key)

    def _look(self) -> None:
        try:
            stamp = _stamp(self._path)
        except OSError:
            stamp = None
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._stamp, self._names = self._read()
        except BadState as wrong:
            self.log.error("{what}; the list as it was before still counts", what=wrong.detail)
        else:
            self.log.info("{path} was read again", path=str(self._path))

    def _read(self) -> tuple[Stamp, Names]:
        try:
            stamp = _stamp(self._path)
            return stamp, Names.parse(self._path.read_text(encoding="utf-8-sig"))
        except BadParams as wrong:
            raise BadState(f"{self._path}: {wrong.detail}") from None
        except UnicodeDecodeError:
            raise BadState(f"{self._path} is no text in UTF-8") from None
        except OSError as reason:
            raise BadState(f"{self._path} cannot be used: {reason.strerror}") from None


def _stamp(path: Path) -> Stamp:
    now = path.stat()
    return now.st_mtime_ns, now.st_size, now.st_ino
