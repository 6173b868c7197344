"""The state directory: one process's, its owner's alone."""

import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from platformdirs import user_state_path

from meshproto.core.identity import Entropy, Identity
from meshproto.errors import BadState

KEY_FILE: Final = "keys.json"
TOKEN_FILE: Final = "token"  # noqa: S105
ADDRESS_FILE: Final = "address"
REGISTER_TOKEN_FILE: Final = "register-token"  # noqa: S105
TOKEN_BYTES: Final = 24


def default_path(kind: str, name: str) -> Path:
    """Where the node of this name keeps its state if nobody says otherwise; names differ by more than case nowhere."""
    return user_state_path("meshproto") / f"{kind}-{name.lower()}"


def read_secret(path: Path) -> bytes:
    """A file that nobody but its owner can read. Raises :class:`BadState`."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise BadState(f"others can read {path}: chmod 600 {path}")
            return file.read()
    except OSError as reason:
        raise BadState(f"{path} cannot be used: {reason.strerror}") from None


class StateDir:
    """Made with mode 0700 and locked against a second process. Raises :class:`BadState`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._close_to_others()
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as reason:
            raise BadState(f"the state directory {path} cannot be used: {reason.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise BadState(
                f"the state directory {path} is in use by another process: stop it, or give --state"
            ) from None

    def _close_to_others(self) -> None:
        """An empty directory was made for us, by mkdir or a supervisor. Any other may be somebody's home or /tmp, which
        must not be closed unasked."""
        if stat.S_IMODE(self.path.stat().st_mode) & 0o077 == 0:
            return
        if any(self.path.iterdir()):
            raise BadState(f"others can enter the state directory {self.path}: chmod 700 {self.path}")
        self.path.chmod(0o700)

    def close(self) -> None:
        """Let another process have it."""
        (self.path / ADDRESS_FILE).unlink(missing_ok=True)
        os.close(self._lock)

    def identity(self, entropy: Entropy, now_ms: int) -> Identity:
        """The keys, made when there are none. Raises :class:`BadState` when others can read them, or they are
        damaged."""
        text = self._secret(KEY_FILE, lambda: Identity.create(entropy, now_ms).dump())
        return Identity.load(text)

    def save(self, identity: Identity) -> None:
        """The keys in place of those before. Raises :class:`BadState` when the disk does not take them."""
        try:
            self._write(KEY_FILE, identity.dump(), 0o600)
        except OSError as reason:
            raise BadState(f"{self.path / KEY_FILE} cannot be written: {reason.strerror}") from None

    def token(self, entropy: Entropy) -> str:
        """The owner's token, made when there is none. Raises :class:`BadState` as :meth:`identity` does."""
        text = self._secret(TOKEN_FILE, lambda: entropy(TOKEN_BYTES).hex().encode() + b"\n").strip()
        if not text or not text.isascii():
            path = self.path / TOKEN_FILE
            raise BadState(f"there is no token in {path}: delete the file, and another is made")
        return text.decode("ascii")

    def register_token(self, entropy: Entropy) -> bytes:
        """What users have to prove to a seed, made when there is nothing. Raises :class:`BadState` as
        :meth:`identity` does."""
        return self._secret(REGISTER_TOKEN_FILE, lambda: entropy(TOKEN_BYTES).hex().encode() + b"\n")

    def announce(self, address: str) -> None:
        """Tell scripts where the node listens: the file is there while it does."""
        self._write(ADDRESS_FILE, os.fsencode(address) + b"\n", 0o644)

    def database(self, name: str) -> Path:
        """The database's path. Only its owner can read the file, also one that was restored under a lax umask; SQLite
        gives its journal the same mode. Raises :class:`BadState`."""
        path = self.path / name
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.fchmod(handle, 0o600)
            os.close(handle)
        except OSError as reason:
            raise BadState(f"{path} cannot be used: {reason.strerror}") from None
        return path

    def _secret(self, name: str, make: Callable[[], bytes]) -> bytes:
        path = self.path / name
        try:
            if not path.exists():
                self._write(name, make(), 0o600)
        except OSError as reason:
            raise BadState(f"{path} cannot be used: {reason.strerror}") from None
        return read_secret(path)

    def _write(self, name: str, text: bytes, mode: int) -> None:
        """Whole or not at all, also when the power fails."""
        path = self.path / name
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
        fresh.replace(path)
        directory = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
