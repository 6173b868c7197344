"""A copy of a state directory, whole or not at all."""

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from meshproto.core.identity import Identity
from meshproto.errors import BadState
from meshproto.net import backup, user_store
from meshproto.net.backup import back_up, findings, read_database
from meshproto.net.database_file import connect
from meshproto.net.state import StateDir

ROWS = 5000


def quiet(_done: int, _total: int) -> None:
    """Nobody looks."""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A node's, in use: its rows are in the WAL in part."""
    directory = StateDir(tmp_path / "state")
    directory.identity(os.urandom, 1)
    directory.token(os.urandom)
    fill(directory.database("user.db"), ROWS)
    directory.close()
    return directory.path


def fill(path: Path, rows: int) -> sqlite3.Connection:
    connection = connect(path, user_store.SCHEMA, user_store.SCHEMA_VERSION)
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO inbox (sender, name, key, id, type, message, sent_at, received_at) "
        "VALUES ('b','B','k',?,'',?,1,1)",
        [(str(number), b'"%b"' % (b"x" * 200)) for number in range(rows)],
    )
    connection.execute("COMMIT")
    return connection


def count(path: Path) -> int:
    with closing(read_database(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM inbox").fetchone()[0])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_backup_has_all_that_a_node_needs(state: Path, tmp_path: Path) -> None:
    """Database, keys and token, closed to others, whatever the umask; and it is a state directory."""
    seen: list[tuple[int, int]] = []
    old = os.umask(0)
    try:
        names = back_up(state, tmp_path / "copy", lambda done, total: seen.append((done, total)))
    finally:
        os.umask(old)
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == sorted(names)
    assert sorted(names) == ["keys.json", "token", "user.db"]
    assert mode(tmp_path / "copy") == 0o700
    assert {mode(path) for path in (tmp_path / "copy").iterdir()} == {0o600}
    assert count(tmp_path / "copy" / "user.db") == ROWS
    assert seen[-1][0] == seen[-1][1] > backup.PAGES
    restored = StateDir(tmp_path / "copy")
    before = Identity.load((state / "keys.json").read_bytes())
    assert restored.identity(os.urandom, 2).fingerprint == before.fingerprint
    restored.close()
    with closing(connect(tmp_path / "copy" / "user.db", user_store.SCHEMA, user_store.SCHEMA_VERSION)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_what_is_written_meanwhile_is_not_in_it(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of one moment, and is not begun anew for every write, as SQLite would without the transaction."""
    monkeypatch.setattr(backup, "PAGES", 16)
    steps = 0
    with closing(sqlite3.connect(state / "user.db", isolation_level=None)) as writer:

        def write(_done: int, _total: int) -> None:
            nonlocal steps
            steps += 1
            writer.execute("DELETE FROM inbox WHERE cursor IN (SELECT cursor FROM inbox LIMIT 10)")

        pages = writer.execute("PRAGMA page_count").fetchone()[0]
        back_up(state, tmp_path / "copy", write)
    assert count(tmp_path / "copy" / "user.db") == ROWS
    assert count(state / "user.db") == ROWS - 10 * steps
    assert steps <= pages // 16 + 2


def test_what_is_there_is_not_overwritten(state: Path, tmp_path: Path) -> None:
    """But an empty directory was made for it."""
    target = tmp_path / "copy"
    target.mkdir(mode=0o755)
    back_up(state, target, quiet)
    assert mode(target) == 0o700
    with pytest.raises(BadState, match="is there already"):
        back_up(state, target, quiet)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(BadState, match="is there already"):
            back_up(state, tmp_path / name, quiet)


def test_what_is_no_state_directory(tmp_path: Path) -> None:
    """Says so."""
    with pytest.raises(BadState, match="no node's state directory"):
        back_up(tmp_path, tmp_path / "copy", quiet)
    with pytest.raises(BadState, match="there is no"):
        read_database(tmp_path / "user.db")
    (tmp_path / "user.db").write_bytes(b"SQLite? " * 1000)
    with pytest.raises(BadState, match="cannot be read"):
        read_database(tmp_path / "user.db")


def test_a_damaged_database_gives_no_backup(state: Path, tmp_path: Path) -> None:
    """It is found in the copy, of which nothing stays."""
    damage(state / "user.db")
    assert findings(state / "user.db") != []
    with pytest.raises(BadState, match="damaged"):
        back_up(state, tmp_path / "copy", quiet)
    assert not (tmp_path / "copy").exists()
    assert list(tmp_path.glob(".*")) == []


def damage(path: Path) -> None:
    """Every second page of the table is overwritten."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with path.open("r+b") as file:
        for page in range(20, 60, 2):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)


def test_keys_that_others_can_read_are_not_copied(state: Path, tmp_path: Path) -> None:
    """They are told of, as the node would."""
    (state / "keys.json").chmod(0o644)
    with pytest.raises(BadState, match="chmod 600"):
        back_up(state, tmp_path / "copy", quiet)
    assert not (tmp_path / "copy").exists()


def test_where_nothing_can_be_written(state: Path, tmp_path: Path) -> None:
    """The system's word."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BadState, match="cannot be written"):
        back_up(state, tmp_path / "file" / "copy", quiet)


def test_what_an_interrupted_backup_left_is_cleared_away(state: Path, tmp_path: Path) -> None:
    """It was no backup."""
    leftover = tmp_path / ".copy.part"
    leftover.mkdir()
    (leftover / "user.db").write_text("half")
    back_up(state, tmp_path / "copy", quiet)
    assert not leftover.exists()


def test_into_the_directory_where_one_is(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is `.`, and has another name too; the root has none."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "user.db" in back_up(state, Path(), quiet)
    assert (tmp_path / "here" / "user.db").exists()
    with pytest.raises(BadState, match="is there already"):
        back_up(state, Path("/"), quiet)
