"""What else a user node keeps: its sequence, its seeds, how far its programs have come; and its file."""

from pathlib import Path

import pytest

from meshproto.core.queue import Status
from meshproto.net import user_store
from meshproto.net.database_file import connect
from meshproto.net.outbox_table import Waiting
from meshproto.net.store import SQLiteDatabase
from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION, UPGRADES, Start, UserStore, begin_cursors, read_start
from tests.net.on_clock import OnClock
from tests.net.user_rows import NOW_MS, accept, draft, letter, user


class TestStart:
    def test_fresh(self, disk: OnClock) -> None:
        """A new node has no sequence, no seeds, and nothing waits."""
        assert read_start(disk.connection) == Start(0, [], [])

    def test_seq(self, disk: OnClock, store: UserStore) -> None:
        """The sequence saved last is the one read."""
        disk.run(store.save_seq(10))
        disk.run(store.save_seq(11))
        assert read_start(disk.connection).seq == 11

    def test_seeds(self, disk: OnClock, store: UserStore) -> None:
        """The seeds saved last take the place of those before, each once."""
        disk.run(store.save_seeds(["b:1", "a:1"]))
        disk.run(store.save_seeds(["c:1", "b:1", "c:1"]))
        assert read_start(disk.connection).seeds == ["b:1", "c:1"]

    def test_seeds_when_the_group_is_run_again(self, disk: OnClock, store: UserStore) -> None:
        """Seeds given by an iterator are saved also when the job has to run twice."""
        disk.database.submit(lambda connection: 1 / 0).addErrback(lambda failure: failure.trap(ZeroDivisionError))
        disk.run(store.save_seeds(iter(["a:1"])))
        assert read_start(disk.connection).seeds == ["a:1"]

    def test_waiting(self, disk: OnClock, store: UserStore) -> None:
        """What waits is counted for each recipient, with the age of the oldest; what has ended is not."""
        rows = [
            accept(disk, store, draft(id_, to, sent_at=at)).message.row
            for id_, to, at in [("a", "Bob", 3), ("b", "Bob", 5), ("c", "bOB", 7), ("d", "Eve", 4), ("e", "Ann", 1)]
        ]
        disk.run(store.outbox.finish([rows[0], rows[4]], Status.EXPIRED, None, NOW_MS))
        assert sorted(read_start(disk.connection).waiting) == [
            Waiting("bob", "Bob", 2, 5, rows[2]),
            Waiting("eve", "Eve", 1, 4, rows[3]),
        ]


class TestCursors:
    """How far the programs have come that the inbox is handed over to."""

    def test_begin(self, disk: OnClock, store: UserStore) -> None:
        """A program that was never there begins with what comes from now on; one that was goes on."""
        assert begin_cursors(disk.connection, ["a"]) == {"a": 0}
        disk.run(store.inbox.receive(*user(), [letter("x"), letter("y")], NOW_MS))
        assert begin_cursors(disk.connection, ["a", "b"]) == {"a": 0, "b": 2}

    def test_saved(self, disk: OnClock, store: UserStore) -> None:
        """The cursor saved last is where it goes on, each program for itself."""
        begin_cursors(disk.connection, ["a", "b"])
        for cursor in (3, 7):
            disk.run(store.save_cursor("a", cursor))
        assert begin_cursors(disk.connection, ["a", "b"]) == {"a": 7, "b": 0}


def test_free_pages_go_by_portions(disk: OnClock, store: UserStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job gives VACUUM_PAGES back, and says whether there are more."""
    monkeypatch.setattr(user_store, "VACUUM_PAGES", 3)
    letters = [letter(str(number), b'"' + b"x" * 20_000 + b'"') for number in range(2)]
    disk.run(store.inbox.receive(*user(), letters, 1))
    disk.run(store.inbox.prune(0, None, None))
    (free,) = disk.connection.execute("PRAGMA freelist_count").fetchone()
    rounds = 0
    while disk.run(store.vacuum()):
        rounds += 1
    assert rounds == free // 3
    assert disk.connection.execute("PRAGMA freelist_count").fetchone() == (0,)


FIRST_SCHEMA = """
CREATE TABLE outbox (row INTEGER PRIMARY KEY AUTOINCREMENT, recipient TEXT NOT NULL, id TEXT NOT NULL,
    name TEXT NOT NULL, type TEXT NOT NULL, message BLOB NOT NULL, sent_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL, status TEXT NOT NULL, changed_at INTEGER NOT NULL, reason TEXT,
    UNIQUE (id, recipient));
CREATE INDEX outbox_waiting ON outbox (recipient, row) WHERE status = 'queued';
CREATE TABLE inbox (cursor INTEGER PRIMARY KEY AUTOINCREMENT, sender TEXT NOT NULL, name TEXT NOT NULL,
    key TEXT NOT NULL, id TEXT NOT NULL, type TEXT NOT NULL, message BLOB NOT NULL, sent_at INTEGER NOT NULL,
    received_at INTEGER NOT NULL, UNIQUE (key, id));
CREATE INDEX inbox_from ON inbox (sender, cursor);
CREATE TABLE contacts (name TEXT PRIMARY KEY, shown TEXT NOT NULL, key TEXT NOT NULL, record TEXT NOT NULL,
    sig TEXT NOT NULL, seq INTEGER NOT NULL, first_seen INTEGER NOT NULL, changed_at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE seeds (address TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID
"""


def test_the_first_schema_is_brought_forward(tmp_path: Path) -> None:
    """What was sent and received before an upgrade is there after it, in tables like those of a new database."""
    path = tmp_path / "user.db"
    old = connect(path, FIRST_SCHEMA, 1)
    old.execute("INSERT INTO outbox VALUES (7, 'bob', 'a', 'Bob', '', x'31', 5, 9, 'queued', 5, NULL)")
    old.execute("INSERT INTO inbox VALUES (3, 'eve', 'Eve', 'key', 'b', '', x'32', 5, 6)")
    old.close()
    disk = OnClock(SCHEMA, SCHEMA_VERSION)
    shapes = "SELECT type, name, tbl_name FROM sqlite_master ORDER BY name"
    columns = "SELECT name, type FROM pragma_table_info('outbox') ORDER BY name"
    fresh = [disk.connection.execute(query).fetchall() for query in (shapes, columns)]
    disk.close()
    disk.connection = connect(path, SCHEMA, SCHEMA_VERSION, UPGRADES)
    disk.database = SQLiteDatabase(disk.connection, disk.clock)
    assert [disk.connection.execute(query).fetchall() for query in (shapes, columns)] == fresh
    store = UserStore(disk.database)
    assert [message.row for message in disk.run(store.outbox.waiting_after("bob", 0))] == [7]
    assert not accept(disk, store, draft("a", text=b"1")).fresh
    assert [one.id for one in disk.run(store.inbox.page(0, None, 9))] == ["b"]
    assert path.with_name("user.db.schema1").exists()
    disk.database.close()
