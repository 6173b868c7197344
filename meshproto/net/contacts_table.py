"""Whom this node knows, on disk: the key of everyone it has exchanged a message with, their last good record, and
another key that has used their name since. Every method is one job of the database's writer."""

import sqlite3
from typing import Any, Final

from msgspec import Struct
from twisted.internet.defer import Deferred

from meshproto.core.identity import Record
from meshproto.net.store import Database
from meshproto.wire import SignedRecord, fold

SCHEMA: Final = """
CREATE TABLE contacts (
    name TEXT PRIMARY KEY,                  -- folded
    shown TEXT NOT NULL,
    key TEXT NOT NULL,                      -- the pinned identity key
    record TEXT NOT NULL,                   -- the last good record
    sig TEXT NOT NULL,
    seq INTEGER NOT NULL,                   -- the record's
    first_seen INTEGER NOT NULL,            -- the key
    changed_at INTEGER NOT NULL,
    verified_at INTEGER                     -- when the owner has compared the fingerprint
) WITHOUT ROWID
"""
OFFERED_SCHEMA: Final = """
CREATE TABLE offered (                      -- another key that uses a contact's name; one for each, so it is bounded
    name TEXT PRIMARY KEY,                  -- folded
    key TEXT NOT NULL,
    record TEXT NOT NULL,
    sig TEXT NOT NULL,
    seq INTEGER NOT NULL,
    seen_at INTEGER NOT NULL                -- ms since 1970 UTC
) WITHOUT ROWID
"""
FROM_2: Final = "ALTER TABLE contacts ADD COLUMN verified_at INTEGER"


class Offer(Struct, frozen=True):
    """Another key that has used a contact's name, and when it was first seen to."""

    key: str
    signed: SignedRecord
    seen_at: int


class Contact(Struct, frozen=True):
    """Times are ms since 1970 UTC; `verified_at`: None until the owner has compared the fingerprint."""

    name: str
    key: str
    signed: SignedRecord
    first_seen: int
    changed_at: int
    verified_at: int | None = None
    offered: Offer | None = None


class ContactsTable:
    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, name: str) -> "Deferred[Contact | None]":
        return self._database.submit(lambda connection: _contact(connection, name), durable=False)

    def all(self) -> "Deferred[list[Contact]]":
        return self._database.submit(_contacts, durable=False)

    def changed(self) -> "Deferred[int]":
        """How many names another key has used."""

        def job(connection: sqlite3.Connection) -> int:
            (count,) = connection.execute("SELECT count(*) FROM offered").fetchone()
            return int(count)

        return self._database.submit(job, durable=False)

    def pin(self, record: Record, signed: SignedRecord, now_ms: int) -> "Deferred[str]":
        """See :func:`pin`; the key alone. Nobody waits for the disk to sync it: what is acknowledged after it is
        synced, and it with that."""
        return self._database.submit(lambda connection: pin(connection, record, signed, now_ms)[0], durable=False)

    def offer(self, record: Record, signed: SignedRecord, now_ms: int) -> "Deferred[str | None]":
        """A seed says that the name has this key. See :func:`offer`. Not synced: the seed will say it again."""
        return self._database.submit(
            lambda connection: offer(connection, record, signed, now_ms, said_by_seed=True), durable=False
        )

    def trust(self, record: Record, signed: SignedRecord, now_ms: int) -> "Deferred[Contact]":
        """The owner has compared the fingerprint: this is the name's key from now on. The contact as it is then."""

        def job(connection: sqlite3.Connection) -> Contact:
            name = fold(record.name)
            connection.execute("DELETE FROM offered WHERE name=?", (name,))
            connection.execute("DELETE FROM contacts WHERE name=? AND key!=?", (name, record.key))
            pin(connection, record, signed, now_ms)
            connection.execute("UPDATE contacts SET verified_at=?, changed_at=? WHERE name=?", (now_ms, now_ms, name))
            (contact,) = _contacts(connection, name)
            return contact

        return self._database.submit(job)

    def forget(self, name: str) -> "Deferred[None]":
        def job(connection: sqlite3.Connection) -> None:
            for table in ("contacts", "offered"):
                connection.execute(f"DELETE FROM {table} WHERE name=?", (fold(name),))  # noqa: S608

        return self._database.submit(job)


def pin(connection: sqlite3.Connection, record: Record, signed: SignedRecord, now_ms: int) -> tuple[str, int]:
    """Pin the key of a new contact; take the newer record of a known one, if its key is the pinned one. The key that
    is pinned now, and the sequence of its record."""
    found = connection.execute("SELECT key, seq FROM contacts WHERE name=?", (fold(record.name),)).fetchone()
    if found is not None and (found[0] != record.key or found[1] >= record.seq):
        return str(found[0]), int(found[1])
    connection.execute(
        "INSERT INTO contacts (name, shown, key, record, sig, seq, first_seen, changed_at) VALUES (?,?,?,?,?,?,?,?) "
        "ON CONFLICT (name) DO UPDATE SET shown=excluded.shown, "
        "record=excluded.record, sig=excluded.sig, seq=excluded.seq, changed_at=excluded.changed_at",
        (fold(record.name), record.name, record.key, signed.record, signed.sig, record.seq, now_ms, now_ms),
    )
    return record.key, record.seq


def offer(
    connection: sqlite3.Connection, record: Record, signed: SignedRecord, now_ms: int, *, said_by_seed: bool
) -> str | None:
    """Remember that another key than the pinned one uses a contact's name. The pinned one if that is news, else None.

    Anyone can write a batch under any name. So what came with one never takes the place of what is there, which a flood
    of keys would write and log again and again; and a record older than the pinned one is no news, but something said
    before the key changed that somebody repeats."""
    name = fold(record.name)
    pinned = connection.execute("SELECT key, seq FROM contacts WHERE name=?", (name,)).fetchone()
    if pinned is None or pinned[0] == record.key:
        return None
    known = connection.execute("SELECT key FROM offered WHERE name=?", (name,)).fetchone()
    if not said_by_seed and (known is not None or record.seq <= pinned[1]):
        return None
    if known is not None and known[0] == record.key:
        return None
    connection.execute(
        "INSERT OR REPLACE INTO offered VALUES (?,?,?,?,?,?)",
        (name, record.key, signed.record, signed.sig, record.seq, now_ms),
    )
    return str(pinned[0])


def _contact(connection: sqlite3.Connection, name: str) -> Contact | None:
    return next(iter(_contacts(connection, name)), None)


def _contacts(connection: sqlite3.Connection, name: str | None = None) -> list[Contact]:
    columns = (
        "SELECT shown, c.key, c.record, c.sig, first_seen, changed_at, verified_at, o.key, o.record, o.sig, o.seen_at "
        "FROM contacts c LEFT JOIN offered o USING (name)"
    )
    rows = (
        connection.execute(f"{columns} ORDER BY name")
        if name is None
        else connection.execute(f"{columns} WHERE name=?", (fold(name),))
    )
    return [_read(row) for row in rows]


def _read(row: tuple[Any, ...]) -> Contact:
    shown, key, record, sig, first_seen, changed_at, verified_at, other, other_record, other_sig, seen_at = row
    offered = None if other is None else Offer(other, SignedRecord(other_record, other_sig), seen_at)
    return Contact(shown, key, SignedRecord(record, sig), first_seen, changed_at, verified_at, offered)
