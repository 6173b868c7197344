"""The state directory: who may read it, who may use it, and what it says when it cannot be used."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshproto.core.identity import Identity
from meshproto.errors import BadState
from meshproto.net import seed_store
from meshproto.net.database_file import connect
from meshproto.net.state import ADDRESS_FILE, KEY_FILE, TOKEN_BYTES, TOKEN_FILE, StateDir, default_path

NOW_MS = 1_000_000


def counted(length: int) -> bytes:
    return bytes(range(length))


def never(length: int) -> bytes:
    raise AssertionError("it was made anew")


def next_handle() -> int:
    """The lowest file descriptor that is free."""
    handle = os.open(os.devnull, os.O_RDONLY)
    os.close(handle)
    return handle


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def open_umask() -> Iterator[None]:
    """The most careless umask there is."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    state = StateDir(tmp_path / "state")
    yield state
    state.close()


class TestModes:
    @pytest.mark.usefixtures("open_umask")
    def test_owner_alone(self, tmp_path: Path) -> None:
        """Whatever the umask, the directory is 0700 and everything secret in it 0600, the database's journal too."""
        state = StateDir(tmp_path / "state")
        state.identity(counted, NOW_MS)
        state.token(counted)
        connection = connect(state.database("seed.db"), seed_store.SCHEMA, 1)
        state.announce("localhost:1")
        modes = {path.name: mode(path) for path in state.path.iterdir()}
        assert mode(state.path) == 0o700
        assert modes.pop(ADDRESS_FILE) == 0o644
        assert {KEY_FILE, TOKEN_FILE, "seed.db", "seed.db-wal", "lock"} <= set(modes)
        assert set(modes.values()) == {0o600}
        connection.close()
        state.close()

    @pytest.mark.parametrize("loose", [0o640, 0o604, 0o644, 0o660, 0o601])
    def test_key_file_that_others_can_read(self, state: StateDir, loose: int) -> None:
        """It is not used, and the command that mends it is told."""
        state.identity(counted, NOW_MS)
        path = state.path / KEY_FILE
        path.chmod(loose)
        with pytest.raises(BadState) as refused:
            state.identity(counted, NOW_MS)
        assert refused.value.detail == f"others can read {path}: chmod 600 {path}"
        path.chmod(0o600)
        state.identity(never, NOW_MS)

    def test_token_that_others_can_read(self, state: StateDir) -> None:
        """The token is as secret as the keys."""
        state.token(counted)
        (state.path / TOKEN_FILE).chmod(0o644)
        with pytest.raises(BadState, match=r"chmod 600 .*token"):
            state.token(counted)


class TestLock:
    def test_second_process(self, state: StateDir) -> None:
        """Another process is told that the directory is in use, and what to do."""
        use = (
            "import sys; from pathlib import Path; from meshproto.errors import BadState\n"
            "from meshproto.net.state import StateDir\n"
            "try: StateDir(Path(sys.argv[1]))\n"
            "except BadState as reason: sys.exit(reason.detail)"
        )
        command = [sys.executable, "-c", use, str(state.path)]
        refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert refused.returncode == 1
        assert (
            refused.stderr
            == f"the state directory {state.path} is in use by another process: stop it, or give --state\n"
        )

    def test_after_the_end(self, tmp_path: Path) -> None:
        """Once it is closed another may have it."""
        StateDir(tmp_path).close()
        StateDir(tmp_path).close()

    def test_refused_twice(self, state: StateDir) -> None:
        """A refusal leaves no file open: the first one's lock holds, and ends with it."""
        before = next_handle()
        for _ in range(3):
            with pytest.raises(BadState):
                StateDir(state.path)
        assert next_handle() == before


class TestDirectory:
    def test_is_a_file(self, tmp_path: Path) -> None:
        """Where a file stands in the way the path and the reason are told."""
        path = tmp_path / "file"
        path.touch()
        with pytest.raises(BadState, match=r"state directory .*file cannot be used: "):
            StateDir(path)

    def test_parents(self, tmp_path: Path) -> None:
        """Directories on the way are made."""
        state = StateDir(tmp_path / "a" / "b")
        assert state.path.is_dir()
        state.close()

    @pytest.mark.parametrize("lax", [0o755, 0o777, 0o750, 0o701, 0o770])
    def test_lax_and_empty(self, tmp_path: Path, lax: int) -> None:
        """A directory that was made for the node is closed to others."""
        tmp_path.chmod(lax)
        StateDir(tmp_path).close()
        assert mode(tmp_path) == 0o700

    @pytest.mark.parametrize("lax", [0o755, 0o777, 0o750, 0o701, 0o1777])
    def test_lax_with_something_in_it(self, tmp_path: Path, lax: int) -> None:
        """One that may be somebody else's too is left as it is, and the command that mends it is told."""
        (tmp_path / "something").touch()
        tmp_path.chmod(lax)
        with pytest.raises(BadState) as refused:
            StateDir(tmp_path)
        assert refused.value.detail == f"others can enter the state directory {tmp_path}: chmod 700 {tmp_path}"
        assert mode(tmp_path) == lax

    def test_database_that_others_can_read(self, state: StateDir) -> None:
        """One that was restored under a lax umask is closed to others."""
        (state.path / "user.db").touch()
        (state.path / "user.db").chmod(0o644)
        assert mode(state.database("user.db")) == 0o600

    def test_default(self) -> None:
        """Names that differ by case alone share a directory, a seed and a user of one name do not."""
        assert default_path("user", "Bob") == default_path("user", "bOB")
        assert default_path("user", "Bob") != default_path("seed", "Bob")

    def test_database_in_the_way(self, state: StateDir) -> None:
        """Where a directory stands in place of the database the path and the reason are told."""
        (state.path / "user.db").mkdir()
        with pytest.raises(BadState, match=r"user\.db cannot be used: Is a directory"):
            state.database("user.db")

    def test_address(self, tmp_path: Path) -> None:
        """The address is there while the node listens, and gone when it does not."""
        state = StateDir(tmp_path)
        state.announce("http://127.0.0.1:3000")
        assert (tmp_path / ADDRESS_FILE).read_text() == "http://127.0.0.1:3000\n"
        state.announce("http://127.0.0.1:3001")
        assert (tmp_path / ADDRESS_FILE).read_text() == "http://127.0.0.1:3001\n"
        state.close()
        assert not (tmp_path / ADDRESS_FILE).exists()


class TestSave:
    @pytest.mark.usefixtures("open_umask")
    def test_new_keys_take_the_place_of_the_old(self, state: StateDir) -> None:
        """Readable by the owner alone, whatever the umask."""
        rotated = state.identity(counted, NOW_MS).rotated(os.urandom, NOW_MS)
        state.save(rotated)
        assert state.identity(never, NOW_MS) == rotated
        assert mode(state.path / KEY_FILE) == 0o600

    def test_a_disk_that_refuses_leaves_the_old(self, state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was there is there, and nothing is in the way of the next try."""
        identity = state.identity(counted, NOW_MS)
        rotated = identity.rotated(os.urandom, NOW_MS)

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(BadState, match=r"keys\.json cannot be written: No space left on device"):
                state.save(rotated)
        assert state.identity(never, NOW_MS) == identity
        state.save(rotated)
        assert state.identity(never, NOW_MS) == rotated


class TestIdentity:
    def test_made_once(self, state: StateDir) -> None:
        """The keys are made at the first start and read at the next."""
        made = state.identity(counted, NOW_MS)
        read = state.identity(never, NOW_MS + 1)
        assert (read.key, bytes(read.mail), read.made_at_ms) == (made.key, bytes(made.mail), (NOW_MS,))

    @pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"{}", b'{"identity": "AAAA", "mail": []}'])
    def test_damaged(self, state: StateDir, text: bytes) -> None:
        """A damaged key file is refused, and stays as it is for whoever mends it."""
        path = state.path / KEY_FILE
        path.touch(mode=0o600)
        path.write_bytes(text)
        with pytest.raises(BadState, match=r"the key file is damaged .*: restore it from a backup"):
            state.identity(never, NOW_MS)
        assert path.read_bytes() == text

    def test_cut_off(self, state: StateDir) -> None:
        """A key file of which a part is missing is refused, whichever part."""
        path = state.path / KEY_FILE
        state.identity(counted, NOW_MS)
        text = path.read_bytes()
        for length in range(len(text)):
            path.write_bytes(text[:length])
            with pytest.raises(BadState):
                state.identity(never, NOW_MS)


class TestToken:
    def test_made_once(self, state: StateDir) -> None:
        """The token is as many random bytes as it says, in a line that a shell can read, and the same at the next
        start."""
        token = state.token(counted)
        assert bytes.fromhex(token) == counted(TOKEN_BYTES)
        assert (state.path / TOKEN_FILE).read_text() == token + "\n"
        assert state.token(never) == token

    @pytest.mark.parametrize("text", [b"", b" \n", "tökén".encode()])
    def test_none(self, state: StateDir, text: bytes) -> None:
        """A file without a token does not make the node one that anybody can enter."""
        path = state.path / TOKEN_FILE
        path.touch(mode=0o600)
        path.write_bytes(text)
        with pytest.raises(BadState, match=r"no token in .*token: delete the file"):
            state.token(never)


class TestWhole:
    def test_power_fails(self, state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was written is synced before it takes its place, and until then the old text stands there whole."""
        state.announce("old")
        stood: list[str] = []

        def sync(handle: int) -> None:
            stood.append((state.path / ADDRESS_FILE).read_text())

        monkeypatch.setattr(os, "fsync", sync)
        state.announce("new")
        assert stood == ["old\n", "new\n"]  # the file, then the directory that names it

    def test_disk_full(self, state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keys that cannot be written are not there, the reason is told, and the next start makes them."""

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(BadState, match=r"keys\.json cannot be used: No space left on device"):
                state.identity(counted, NOW_MS)
        assert not (state.path / KEY_FILE).exists()
        assert isinstance(state.identity(counted, NOW_MS), Identity)
