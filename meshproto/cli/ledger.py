"""What `mesh send --bulk FILE` remembers: which lines still have to be sent, and the file beside FILE that says so.

The state file is what makes a run resumable. It holds the run's id, from which the ids of the lines are made, and is on
disk before the first byte goes out; so whatever happens later, a line that goes out again has the id it had before, and
the node takes it once. How far the run has come is written down now and then only: it spares work, nothing hangs on it.
"""

import fcntl
import hashlib
import json
import os
import secrets
import stat
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

AGAIN_PIECES_MAX = 1000  # a state file of some 20 KB: it is written anew every few seconds
STATE_BYTES_MAX = 1024 * 1024  # far above what is ever written; more is some other file
READ_BYTES = 1024 * 1024
RUN_ID_BYTES = 8  # two runs of one user never meet, and the id, which travels with every line, stays short

Piece = tuple[int, int]
"""Lines from the first to the last, both included; the first line is 1."""


class BulkRefused(Exception):
    """The run cannot begin or go on: because of FILE, of what lies beside it, or of which node answers."""


class Ledger:
    """Which lines have to be sent, and which of them have to be sent once more.

    Of the lines up to `done` only those in `again` are wanted, and every line after it is. Lines are wanted and
    answered in rising order, each of them once. `again` has a bound: past it `done` stands still. So too much may be
    wanted, which the ids make harmless, but never too little.
    """

    def __init__(self, done: int = 0, again: Iterable[Piece] = ()) -> None:
        self._wanted_after = done
        self._wanted = deque(again)
        self._unanswered = deque(self._wanted)
        self._repeated: list[Piece] = []
        self._done = done
        self._full = False

    @property
    def done(self) -> int:
        """Every line up to this one is settled, but for those in `again`."""
        return self._done

    @property
    def again(self) -> tuple[Piece, ...]:
        """The lines up to `done` that have to be sent again."""
        return (*self._repeated, *self._unanswered)

    def wants(self, number: int) -> bool:
        """Whether this line has to be sent."""
        while self._wanted and self._wanted[0][1] < number:
            self._wanted.popleft()
        return number > self._wanted_after or bool(self._wanted and self._wanted[0][0] <= number)

    def answered(self, number: int, *, again: bool) -> None:
        """This line needs nothing more, or has to be sent `again` by a later run."""
        if self._full:
            return
        while self._unanswered and self._unanswered[0][1] <= number:
            self._unanswered.popleft()
        if self._unanswered and self._unanswered[0][0] <= number:
            self._unanswered[0] = (number + 1, self._unanswered[0][1])
        if again and not self._repeat(number):
            self._full, self._done = True, number - 1
            self._unanswered.clear()
        else:
            self._done = max(self._done, number)

    def _repeat(self, number: int) -> bool:
        if self._repeated and self._repeated[-1][1] == number - 1:
            self._repeated[-1] = (self._repeated[-1][0], number)
        elif len(self._repeated) + len(self._unanswered) < AGAIN_PIECES_MAX:
            self._repeated.append((number, number))
        else:
            return False
        return True


@dataclass(frozen=True)
class Run:
    """What the state file says. `node`: the fingerprint of the node that takes the lines; `to`: see `--to`."""

    run: str
    sha256: str
    size: int
    node: str
    to: str | None
    done: int = 0
    again: tuple[Piece, ...] = ()


class BulkFile:
    """FILE, open and locked against a second run, and the state beside it. Raises `BulkRefused`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state_path = path.with_name(f"{path.name}.sending")
        self.lines = 0
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe without a writer: no waiting
        except OSError as error:
            raise BulkRefused(f"{path} cannot be read: {error.strerror}") from None
        try:
            self._open()
        except BulkRefused:
            os.close(self.fd)
            raise

    def begin(self, node: str, to: str | None) -> tuple[Run, bool]:
        """The run to go on with, and whether it is a new one: on disk when this returns.

        `node`: the fingerprint of the node that is to take the lines.
        """
        known = self._known
        if known is None:
            known = Run(secrets.token_hex(RUN_ID_BYTES), self._sha256, self._size, node, to)
            self.save(known)
            return known, True
        anew = f"delete {self.state_path} to begin anew, which sends what was taken already once more"
        if (known.size, known.sha256) != (self._size, self._sha256):
            raise BulkRefused(f"{self.path} has changed since a part of it was sent: put back what it was, or {anew}")
        if known.node != node:
            raise BulkRefused(
                f"a part of {self.path} was sent through another node, {known.node}: use that one, or {anew}"
            )
        if known.to != to:
            option = "without --to" if known.to is None else f"with --to {known.to}"
            raise BulkRefused(f"a part of {self.path} was sent {option}: do it likewise, or {anew}")
        return known, False

    def save(self, run: Run) -> None:
        """The old state or this one is on disk, whatever happens meanwhile. Raises `BulkRefused`."""
        draft = self.state_path.with_name(f"{self.state_path.name}.new")
        try:
            draft.unlink(missing_ok=True)
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123
                json.dump(asdict(run), file)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.state_path)
            directory = os.open(self.state_path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise BulkRefused(
                f"{self.state_path} cannot be written ({error.strerror}), and without it sending could not be resumed: "
                f"put {self.path.name} where you may write, or hand it in as standard input with --bulk -"
            ) from None

    def finish(self) -> None:
        """The run is over: the next one begins anew."""
        self.state_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another run have FILE."""
        os.close(self.fd)

    def _open(self) -> None:
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            raise BulkRefused(f"{self.path} is not a file: hand it in as standard input with --bulk -")
        try:
            # FILE itself, as the state is replaced with every writing and deleted at the end.
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BulkRefused(f"{self.path} is being sent already, by another mesh") from None
        except OSError as error:
            raise BulkRefused(f"{self.path} cannot be locked against a second run: {error.strerror}") from None
        self._known = self._load()
        try:
            self._measure()
        except OSError as error:
            raise BulkRefused(f"{self.path} cannot be read: {error.strerror}") from None

    def _load(self) -> Run | None:
        try:
            with self.state_path.open("rb") as file:
                return _run(json.loads(file.read(STATE_BYTES_MAX)))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BulkRefused(f"{self.state_path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise BulkRefused(
                f"{self.state_path} is damaged: delete it to begin anew, which sends what was taken already once more"
            ) from None

    def _measure(self) -> None:
        sha256, size, last = hashlib.sha256(), 0, b"\n"
        while content := os.read(self.fd, READ_BYTES):
            sha256.update(content)
            size += len(content)
            self.lines += content.count(b"\n")
            last = content[-1:]
        self.lines += last != b"\n"
        self._sha256, self._size = sha256.hexdigest(), size
        os.lseek(self.fd, 0, os.SEEK_SET)


def progressed(run: Run, ledger: Ledger) -> Run:
    """The run, as far as it has come by now."""
    return replace(run, done=ledger.done, again=ledger.again)


def _run(document: dict[str, Any]) -> Run:
    """Raises `ValueError`, `TypeError` or `KeyError` for what no run has written."""
    run = Run(**{**document, "again": tuple((first, last) for first, last in document["again"])})
    bounds = [number for piece in run.again for number in piece]
    rises = all(a <= b for a, b in zip(bounds, [*bounds[1:], run.done], strict=True)) if bounds else True
    texts = all(isinstance(text, str) and text for text in (run.run, run.sha256, run.node, run.to or "-"))
    whole = all(type(number) is int and number >= 0 for number in (run.size, run.done, *bounds))
    if not (rises and texts and whole):
        raise ValueError("not the state of a run")
    return run
