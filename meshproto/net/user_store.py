"""What a user node keeps on disk: what it sends, what it received, whom it knows, where seeds are."""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from msgspec import Raw, Struct
from twisted.internet.defer import Deferred

from meshproto.core.envelope import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, Letter
from meshproto.core.identity import Record
from meshproto.core.inbox import PAGE_BYTES_MAX, Correspondent, Received
from meshproto.core.outbox import Message, Status
from meshproto.errors import IdReused, NotFound
from meshproto.net.store import Database
from meshproto.wire import SignedRecord, fold

SCHEMA_VERSION: Final = 1
SCHEMA: Final = """
CREATE TABLE outbox (
    row INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of acceptance
    recipient TEXT NOT NULL,                -- folded
    id TEXT NOT NULL,
    name TEXT NOT NULL,                     -- the recipient as the sender wrote it
    type TEXT NOT NULL,
    message BLOB NOT NULL,                  -- JSON
    sent_at INTEGER NOT NULL,               -- ms since 1970 UTC
    expires_at INTEGER NOT NULL,
    status TEXT NOT NULL,
    changed_at INTEGER NOT NULL,
    reason TEXT,
    UNIQUE (id, recipient)                  -- the id first: `GET /outbox/ID` names no recipient
);
CREATE INDEX outbox_waiting ON outbox (recipient, row) WHERE status = 'queued';
CREATE TABLE inbox (
    cursor INTEGER PRIMARY KEY AUTOINCREMENT,
    sender TEXT NOT NULL,                   -- folded
    name TEXT NOT NULL,
    key TEXT NOT NULL,
    id TEXT NOT NULL,
    type TEXT NOT NULL,
    message BLOB NOT NULL,
    sent_at INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    UNIQUE (key, id)                        -- what makes a delivery that is repeated harmless
);
CREATE INDEX inbox_from ON inbox (sender, cursor);
CREATE TABLE contacts (
    name TEXT PRIMARY KEY,                  -- folded
    shown TEXT NOT NULL,
    key TEXT NOT NULL,                      -- the pinned identity key
    record TEXT NOT NULL,                   -- the last good record
    sig TEXT NOT NULL,
    seq INTEGER NOT NULL,                   -- the record's
    first_seen INTEGER NOT NULL,
    changed_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE seeds (address TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID
"""

_MESSAGE: Final = "row, id, name, type, message, sent_at, expires_at"


class Draft(Struct, frozen=True):
    """A message to be accepted; see :class:`meshproto.core.outbox.Message`."""

    recipient: str
    id: str
    to: str
    type: str
    message: bytes
    sent_at: int
    expires_at: int


class Accepted(NamedTuple):
    """`fresh`: it was not there before. A message sent again is what it was, with the status it has now."""

    message: Message
    fresh: bool
    status: Status
    reason: str | None


class Kept(Struct, frozen=True):
    """One message of the outbox, as it stands on disk."""

    row: int
    recipient: str
    id: str
    to: str
    status: Status
    sent_at: int
    expires_at: int
    changed_at: int
    reason: str | None


class Contact(Struct, frozen=True):
    name: str
    key: str
    signed: SignedRecord
    first_seen: int
    changed_at: int


class Waiting(NamedTuple):
    recipient: str
    to: str
    messages: int
    oldest_at: int


class UserStore:
    """Every method is one job of the database's writer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def close(self) -> "Deferred[None]":
        return self._database.close()

    # -- outbox --------------------------------------------------------------------------------------------------

    def accept(self, draft: Draft) -> "Deferred[Accepted]":
        """Keep a message. The same id for the same recipient is the same message; fails with :class:`IdReused` when
        it has another text."""

        def job(connection: sqlite3.Connection) -> Accepted:
            known = connection.execute(
                f"SELECT {_MESSAGE}, status, reason FROM outbox WHERE recipient=? AND id=?",  # noqa: S608
                (draft.recipient, draft.id),
            ).fetchone()
            if known is not None:
                message, status, reason = Message(*known[:7]), Status(known[7]), known[8]
                if (message.message, message.type) != (draft.message, draft.type):
                    raise IdReused(f"the id {draft.id!r} was used for another message to {message.to}")
                return Accepted(message, False, status, reason)
            cursor = connection.execute(
                "INSERT INTO outbox (recipient, id, name, type, message, sent_at, expires_at, status, changed_at) "
                "VALUES (?,?,?,?,?,?,?,'queued',?)",
                (
                    draft.recipient,
                    draft.id,
                    draft.to,
                    draft.type,
                    draft.message,
                    draft.sent_at,
                    draft.expires_at,
                    draft.sent_at,
                ),
            )
            row = cursor.lastrowid or 0
            message = Message(row, draft.id, draft.to, draft.type, draft.message, draft.sent_at, draft.expires_at)
            return Accepted(message, True, Status.QUEUED, None)

        return self._database.submit(job)

    def finish(self, rows: Sequence[int], status: Status, reason: str | None, now_ms: int) -> "Deferred[None]":
        """Messages have come to an end; one that had already stays as it is."""

        def job(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "UPDATE outbox SET status=?, reason=?, changed_at=? WHERE row=? AND status='queued'",
                [(status.value, reason, now_ms, row) for row in rows],
            )

        return self._database.submit(job)

    def waiting_after(self, recipient: str, row: int) -> "Deferred[list[Message]]":
        """The next waiting messages for the recipient: at most a batch."""

        def job(connection: sqlite3.Connection) -> list[Message]:
            found: list[Message] = []
            size = 0
            for values in connection.execute(
                f"SELECT {_MESSAGE} FROM outbox WHERE recipient=? AND row>? AND status='queued' ORDER BY row LIMIT ?",  # noqa: S608
                (recipient, row, BATCH_MESSAGES_MAX),
            ):
                message = Message(*values)
                size += len(message.message)
                if found and size > BATCH_BYTES_MAX:
                    break
                found.append(message)
            return found

        return self._database.submit(job)

    def outbox(self, limit: int, *, waiting: bool) -> "Deferred[list[Kept]]":
        """The latest messages, or the oldest that wait."""
        which = "WHERE status='queued' ORDER BY row" if waiting else "ORDER BY row DESC"
        return self._database.submit(lambda connection: _kept(connection, f"{which} LIMIT ?", (limit,)))

    def outbox_by_id(self, message_id: str) -> "Deferred[list[Kept]]":
        """One for each recipient. Fails with :class:`NotFound`."""

        def job(connection: sqlite3.Connection) -> list[Kept]:
            found = _kept(connection, "WHERE id=? ORDER BY row", (message_id,))
            if not found:
                raise NotFound(f"no message {message_id!r} in the outbox")
            return found

        return self._database.submit(job)

    # -- inbox ---------------------------------------------------------------------------------------------------

    def receive(
        self, sender: Record, signed: SignedRecord | None, letters: Iterable[Letter], now_ms: int
    ) -> "Deferred[int]":
        """Keep the letters that are not there yet, in order, and the sender's record if it is given; how many letters
        were new."""
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

        def job(connection: sqlite3.Connection) -> int:
            if signed is not None:
                _save_contact(connection, sender, signed, now_ms)
            before = connection.total_changes
            connection.executemany(
                "INSERT OR IGNORE INTO inbox (sender, name, key, id, type, message, sent_at, received_at) "
                "VALUES (?,?,?,?,?,?,?,?)",
                rows,
            )
            return connection.total_changes - before

        return self._database.submit(job)

    def inbox(self, after: int, sender: str | None, limit: int) -> "Deferred[list[Received]]":
        """A page in the order of arrival, at most `limit` messages and :data:`PAGE_BYTES_MAX` of text."""

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

        return self._database.submit(job)

    # -- contacts and seeds --------------------------------------------------------------------------------------

    def contact(self, name: str) -> "Deferred[Contact | None]":
        return self._database.submit(lambda connection: next(iter(_contacts(connection, name)), None))

    def contacts(self) -> "Deferred[list[Contact]]":
        return self._database.submit(_contacts)

    def save_contact(self, record: Record, signed: SignedRecord, now_ms: int) -> "Deferred[None]":
        """Pin the key of a new contact; take the newer record of a known one, if its key is the pinned one."""

        return self._database.submit(lambda connection: _save_contact(connection, record, signed, now_ms))

    def trust(self, record: Record, signed: SignedRecord, now_ms: int) -> "Deferred[None]":
        """Pin another key for the name from now on."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO contacts VALUES (?,?,?,?,?,?,?,?)",
                (fold(record.name), record.name, record.key, signed.record, signed.sig, record.seq, now_ms, now_ms),
            )

        return self._database.submit(job)

    def save_seeds(self, addresses: Iterable[str]) -> "Deferred[None]":
        """The seeds to try at the next start, in place of those kept before."""
        rows = [(address,) for address in addresses]

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM seeds")
            connection.executemany("INSERT OR IGNORE INTO seeds VALUES (?)", rows)

        return self._database.submit(job)

    def save_seq(self, seq: int) -> "Deferred[None]":
        """The sequence of the latest record, so that the next is higher whatever the clock says."""
        statement = "INSERT OR REPLACE INTO numbers VALUES ('seq', ?)"

        def job(connection: sqlite3.Connection) -> None:
            connection.execute(statement, (seq,))

        return self._database.submit(job)

    def totals(self) -> "Deferred[tuple[int, int]]":
        """How many messages are in the inbox, and the cursor of the latest."""

        def job(connection: sqlite3.Connection) -> tuple[int, int]:
            count, last = connection.execute("SELECT count(*), coalesce(max(cursor), 0) FROM inbox").fetchone()
            return count, last

        return self._database.submit(job)


class Start(NamedTuple):
    """What is read once, before the node is up."""

    seq: int
    seeds: list[str]
    waiting: list[Waiting]


def read_start(connection: sqlite3.Connection) -> Start:
    seq = connection.execute("SELECT value FROM numbers WHERE name='seq'").fetchone()
    seeds = [address for (address,) in connection.execute("SELECT address FROM seeds ORDER BY address")]
    waiting = connection.execute(
        "SELECT recipient, name, count(*), min(sent_at) FROM outbox WHERE status='queued' GROUP BY recipient"
    )
    return Start(seq[0] if seq else 0, seeds, [Waiting(*row) for row in waiting])


def _kept(connection: sqlite3.Connection, which: str, values: tuple[object, ...]) -> list[Kept]:
    columns = "SELECT row, recipient, id, name, status, sent_at, expires_at, changed_at, reason FROM outbox"
    rows = connection.execute(f"{columns} {which}", values)
    return [
        Kept(row, recipient, id_, name, Status(status), sent_at, expires_at, changed_at, reason)
        for row, recipient, id_, name, status, sent_at, expires_at, changed_at, reason in rows
    ]


def _save_contact(connection: sqlite3.Connection, record: Record, signed: SignedRecord, now_ms: int) -> None:
    connection.execute(
        "INSERT INTO contacts VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (name) DO UPDATE SET shown=excluded.shown, "
        "record=excluded.record, sig=excluded.sig, seq=excluded.seq, changed_at=excluded.changed_at "
        "WHERE contacts.key = excluded.key AND contacts.seq < excluded.seq",
        (fold(record.name), record.name, record.key, signed.record, signed.sig, record.seq, now_ms, now_ms),
    )


def _contacts(connection: sqlite3.Connection, name: str | None = None) -> list[Contact]:
    columns = "SELECT shown, key, record, sig, first_seen, changed_at FROM contacts"
    rows = (
        connection.execute(f"{columns} ORDER BY name")
        if name is None
        else connection.execute(f"{columns} WHERE name=?", (fold(name),))
    )
    return [
        Contact(shown, key, SignedRecord(record, sig), first_seen, changed_at)
        for shown, key, record, sig, first_seen, changed_at in rows
    ]
