"""A list of names in a file that its owner edits while the node runs."""

from pathlib import Path
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from meshproto.core.policy import Names
from meshproto.errors import BadParams, BadState

LOOK_S: Final = 1.0
"""How long a change may go unnoticed: a look at the file for each request would be a system call for each."""
FILE_BYTES_MAX: Final = 16 * 1024 * 1024
"""As many names as a list may have, with fingerprints and a remark each. A larger file is not the list."""

_Version = tuple[int, int, int]


class NamesFile:
    """Raises :class:`BadState` when the file does not read at first. A later version that does not is logged once, and
    the one before stays."""

    log = Logger()

    def __init__(self, path: Path, clock: IReactorTime) -> None:
        self._path = path
        self._clock = clock
        self._looked_at = clock.seconds()
        self._said = ""  # what was wrong with it at the last look
        try:
            self._version = self._version_now()
            self._names = _read(self._path)
        except BadParams as wrong:
            raise BadState(wrong.detail) from None

    def allow(self, name: str, key: bytes) -> bool:
        """:meth:`Names.allow` of the list as it stands in the file now."""
        now = self._clock.seconds()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._look()
        return self._names.allow(name, key)

    def _look(self) -> None:
        try:
            version = self._version_now()
            if version == self._version:
                return
            self._version = version
            self._names = _read(self._path)
        except BadParams as wrong:
            if self._said != wrong.detail:
                self._said = wrong.detail
                self.log.error("{reason}; the list as it was before still counts", reason=wrong.detail)
        else:
            self._said = ""
            self.log.info("{file} has changed, and was read again", file=str(self._path))

    def _version_now(self) -> _Version:
        try:
            found = self._path.stat()
        except OSError as reason:
            raise _unreadable(self._path, reason) from None
        return found.st_mtime_ns, found.st_size, found.st_ino


def read_names(path: Path) -> Names:
    """The list in a file as it is now. Raises :class:`BadState`."""
    try:
        return _read(path)
    except BadParams as wrong:
        raise BadState(wrong.detail) from None


def _read(path: Path) -> Names:
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as reason:
        raise _unreadable(path, reason) from None
    if len(text) > FILE_BYTES_MAX:
        raise BadParams(f"{path} is too large for a list of names: at most {FILE_BYTES_MAX} bytes")
    try:
        return Names.parse(text.decode("utf-8"))
    except UnicodeDecodeError as reason:
        raise BadParams(f"{path} is not UTF-8: {reason}") from None
    except BadParams as wrong:
        raise BadParams(f"{path}: {wrong.detail}") from None


def _unreadable(path: Path, reason: OSError) -> BadParams:
    return BadParams(f"{path} cannot be read: {reason.strerror}")
