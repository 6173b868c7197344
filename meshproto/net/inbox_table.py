"""What this node has received, on disk. Every method is one job of the database's writer.

A cursor is never used twice, and cursors have no gaps. When messages are no longer kept it is those up to a cursor;
their ids are known for as long as a sender may still repeat them.
"""

import sqlite3
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from msgspec import Raw
from twisted.internet.defer import Deferred

from meshproto.core.envelope import Letter
from meshproto.core.identity import Record, fingerprint, unb64
from meshproto.core.inbox import PAGE_BYTES_MAX, Correspondent, Received
from meshproto.errors import KeyChanged, MeshError, StaleRecord
from meshproto.net.contacts_table import offer, pin
from meshproto.net.outbox_table import PRUNE_BYTES, PRUNE_ROWS, within_bytes
from meshproto.net.store import Database
from meshproto.wire import SignedRecord, fold

SCHEMA: Final = """
CREATE TABLE inbox (
    cursor INTEGER PRIMARY KEY AUTOINCREMENT,
    sender TEXT NOT NULL,                   -- folded
    name TEXT NOT NULL,
    key TEXT NOT NULL,
    id TEXT NOT NULL,
    type TEXT NOT NULL,
    message BLOB NOT NULL,                  -- JSON
    sent_at INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    UNIQUE (key, id)                        -- what makes a delivery that is repeated harmless
);
CREATE INDEX inbox_from ON inbox (sender, cursor)
"""
SEEN_SCHEMA: Final = """
CREATE TABLE seen (                         -- messages that are no longer kept, in the order of arrival
    row INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    id TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    UNIQUE (key, id)
)
"""
_NONE: Final[frozenset[str]] = frozenset()
_KNOWN: Final = "SELECT 1 FROM inbox WHERE key=? AND id=?"
_INSERT: Final = "INSERT INTO inbox (sender, name, key, id, type, message, sent_at, received_at)"
_VALUES: Final = "VALUES (?,?,?,?,?,?,?,?)"


class Totals(NamedTuple):
    """How many messages are kept, and the cursor of the latest that came."""

    messages: int
    last: int


class InboxTable:
    def __init__(self, database: Database) -> None:
        self._database = database

    def receive(
        self, sender: Record, signed: SignedRecord, letters: Iterable[Letter], now_ms: int
    ) -> "Deferred[frozenset[str]]":
        """Keep the letters that are not there yet, in order, and the sender's record; the ids of the letters that were
        there. Fails with :class:`KeyChanged` when the name is known with another key, then nothing of it is kept but
        that key; and with :class:`StaleRecord` for an older record than the one known: whoever has stolen a mail key
        does not go on using the record it was in."""
        rows = [
            (
                fold(sender.name),
                sender.name,
                sender.key,
                letter.id,
                letter.type,
                bytes(letter.message),
                letter.sent_at,
                now_ms,
            )
            for letter in letters
        ]

        def job(connection: sqlite3.Connection) -> MeshError | frozenset[str]:
            pinned, seq = pin(connection, sender, signed, now_ms)
            if pinned != sender.key:
                known, found = fingerprint(unb64(pinned)), fingerprint(sender.key_bytes)
                news = offer(connection, sender, signed, now_ms, said_by_seed=False) is not None
                return KeyChanged(f"{sender.name} is known here with the key {known}, not {found}", news=news)
            if sender.seq < seq:
                return StaleRecord(f"{sender.name} has a newer record than the one of this batch: seal it anew")
            new = _unseen(connection, rows)
            repeated = (_insert_one if len(new) == 1 else _insert)(connection, new)
            if len(new) < len(rows):
                repeated |= {row[3] for row in rows} - {row[3] for row in new}
            return repeated

        def judge(taken: MeshError | frozenset[str]) -> frozenset[str]:
            if isinstance(taken, MeshError):
                raise taken
            return taken

        return self._database.submit(job).addCallback(judge)

    def page(self, after: int, sender: str | None, limit: int) -> "Deferred[list[Received]]":
        """In the order of arrival, at most `limit` messages and :data:`PAGE_BYTES_MAX` of text."""

        def job(connection: sqlite3.Connection) -> list[Received]:
            where, values = (
                ("cursor>?", [after]) if sender is None else ("cursor>? AND sender=?", [after, fold(sender)])
            )
            page: list[Received] = []
            size = 0
            for cursor, name, key, id_, type_, message, sent_at, received_at in connection.execute(
                "SELECT cursor, name, key, id, type, message, sent_at, received_at FROM inbox "  # noqa: S608
                f"WHERE {where} ORDER BY cursor LIMIT ?",
                (*values, limit),
            ):
                size += len(message)
                if page and size > PAGE_BYTES_MAX:
                    break
                who = Correspondent(name, key)
                page.append(Received(cursor, id_, who, type_, Raw(message), sent_at, received_at))
            return page

        return self._database.submit(job, durable=False)

    def totals(self) -> "Deferred[Totals]":
        def job(connection: sqlite3.Connection) -> Totals:
            return Totals(_after(connection, 0), last_cursor(connection))

        return self._database.submit(job, durable=False)

    def behind(self, after: int) -> "Deferred[int]":
        """How many messages came after the cursor."""
        return self._database.submit(lambda connection: _after(connection, after), durable=False)

    def prune(self, keep_messages: int | None, came_before_ms: int | None, not_after: int | None) -> "Deferred[int]":
        """No longer keep what is not among the last `keep_messages`, and what came before; nothing after the cursor
        `not_after`. How many went; as long as some do there may be more."""

        def job(connection: sqlite3.Connection) -> int:
            last = last_cursor(connection)
            by_number = last - keep_messages if keep_messages is not None else 0
            highest = last if not_after is None else not_after
            end = 0
            some = connection.execute(
                "SELECT cursor, length(message), received_at FROM inbox WHERE cursor<=? ORDER BY cursor LIMIT ?",
                (highest, PRUNE_ROWS),
            ).fetchall()
            for cursor, _, received_at in within_bytes(some, PRUNE_BYTES):
                if cursor > by_number and (came_before_ms is None or received_at >= came_before_ms):
                    break
                end = cursor
            connection.execute(
                "INSERT OR IGNORE INTO seen (key, id, received_at) "
                "SELECT key, id, received_at FROM inbox WHERE cursor<=? ORDER BY cursor",
                (end,),
            )
            return connection.execute("DELETE FROM inbox WHERE cursor<=?", (end,)).rowcount

        return self._database.submit(job, durable=False)

    def forget(self, came_before_ms: int) -> "Deferred[bool]":
        """Forget the ids of messages no longer kept that came before. Whether there is more to do."""

        def job(connection: sqlite3.Connection) -> bool:
            oldest = connection.execute("SELECT row, received_at FROM seen ORDER BY row LIMIT ?", (PRUNE_ROWS,))
            over = [(row,) for row, received_at in oldest if received_at < came_before_ms]
            connection.executemany("DELETE FROM seen WHERE row=?", over)
            return len(over) == PRUNE_ROWS

        return self._database.submit(job, durable=False)


def _insert_one(connection: sqlite3.Connection, new: list[tuple[Any, ...]]) -> frozenset[str]:
    """What :func:`_insert` does: a statement alone needs no savepoint to be undone."""
    try:
        connection.execute(f"{_INSERT} {_VALUES}", new[0])
    except sqlite3.IntegrityError:
        return frozenset(new[0][3:4])
    return _NONE


def _insert(connection: sqlite3.Connection, new: list[tuple[Any, ...]]) -> frozenset[str]:
    """The ids of those that are there already. OR IGNORE would use up a cursor for each of them."""
    repeated = _NONE
    connection.execute("SAVEPOINT batch")
    try:
        connection.executemany(f"{_INSERT} {_VALUES}", new)
    except sqlite3.IntegrityError:
        connection.execute("ROLLBACK TO batch")
        repeated = frozenset(row[3] for row in new if connection.execute(_KNOWN, (row[2], row[3])).fetchone())
        others = f"SELECT ?,?,?,?,?,?,?,? WHERE NOT EXISTS ({_KNOWN})"
        connection.executemany(f"{_INSERT} {others}", [(*row, row[2], row[3]) for row in new])
    connection.execute("RELEASE batch")
    return repeated


def _unseen(connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Those that are not among the messages no longer kept."""
    if connection.execute("SELECT 1 FROM seen LIMIT 1").fetchone() is None:
        return rows
    known = "SELECT 1 FROM seen WHERE key=? AND id=?"
    return [row for row in rows if connection.execute(known, (row[2], row[3])).fetchone() is None]


def _after(connection: sqlite3.Connection, after: int) -> int:
    """How many messages are kept after the cursor."""
    (first,) = connection.execute("SELECT min(cursor) FROM inbox").fetchone()
    return 0 if first is None else max(0, last_cursor(connection) - max(after, first - 1))


def last_cursor(connection: sqlite3.Connection) -> int:
    """Of the latest message that ever came; 0: none has."""
    found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name='inbox'").fetchone()
    return int(found[0]) if found else 0
