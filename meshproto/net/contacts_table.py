"""Whom this node knows, on disk: the key of everyone it has exchanged a message with, and their last good record. Every
method is one job of the database's writer."""

import sqlite3
from typing import Final

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
    first_seen INTEGER NOT NULL,
    changed_at INTEGER NOT NULL
) WITHOUT ROWID
"""


class Contact(Struct, frozen=True):
    name: str
    key: str
    signed: SignedRecord
    first_seen: int
    changed_at: int


class ContactsTable:
    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, name: str) -> "Deferred[Contact | None]":
        return self._database.submit(lambda connection: next(iter(_contacts(connection, name)), None), durable=False)

    def all(self) -> "Deferred[list[Contact]]":
        return self._database.submit(_contacts, durable=False)

    def pin(self, record: Record, signed: SignedRecord, now_ms: int) -> "Deferred[str]":
        """See :func:`pin`."""
        return self._database.submit(lambda connection: pin(connection, record, signed, now_ms))

    def trust(self, record: Record, signed: SignedRecord, now_ms: int) -> "Deferred[None]":
        """Pin another key for the name from now on."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO contacts VALUES (?,?,?,?,?,?,?,?)",
                (fold(record.name), record.name, record.key, signed.record, signed.sig, record.seq, now_ms, now_ms),
            )

        return self._database.submit(job)


def pin(connection: sqlite3.Connection, record: Record, signed: SignedRecord, now_ms: int) -> str:
    """Pin the key of a new contact; take the newer record of a known one, if its key is the pinned one. The key that
    is pinned now."""
    found = connection.execute("SELECT key, seq FROM contacts WHERE name=?", (fold(record.name),)).fetchone()
    if found is not None and (found[0] != record.key or found[1] >= record.seq):
        return str(found[0])
    connection.execute(
        "INSERT INTO contacts VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (name) DO UPDATE SET shown=excluded.shown, "
        "record=excluded.record, sig=excluded.sig, seq=excluded.seq, changed_at=excluded.changed_at",
        (fold(record.name), record.name, record.key, signed.record, signed.sig, record.seq, now_ms, now_ms),
    )
    return record.key


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
