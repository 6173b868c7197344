"""What a seed keeps on disk: the entries of the users registered with it, and where other seeds were."""

import sqlite3
from collections.abc import Iterator
from typing import Final

import msgspec
from twisted.internet.defer import Deferred

from meshproto.core.effects import Row
from meshproto.errors import BadState
from meshproto.net.store import Database
from meshproto.wire import EntryValue, encode_value

SCHEMA_VERSION: Final = 2
SCHEMA: Final = """
CREATE TABLE entries (
    name TEXT PRIMARY KEY,              -- folded
    record TEXT NOT NULL,
    sig TEXT NOT NULL,
    since INTEGER NOT NULL,             -- ms since 1970 UTC
    online INTEGER NOT NULL,
    seen INTEGER NOT NULL,              -- ms since 1970 UTC
    farewells TEXT NOT NULL             -- JSON of those before
) WITHOUT ROWID;
CREATE TABLE peers (address TEXT PRIMARY KEY, met_at INTEGER NOT NULL) WITHOUT ROWID
"""
UPGRADES: Final = {1: "ALTER TABLE entries ADD COLUMN farewells TEXT NOT NULL DEFAULT '[]'"}
PEERS_MAX: Final = 1000
"""Addresses kept, the latest met; a start needs one that answers."""


class SeedStore:
    """All methods but the constructor's reads go through the database's writer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, rows: tuple[Row, ...]) -> "Deferred[None]":
        """Write the entries; None deletes."""

        def job(connection: sqlite3.Connection) -> None:
            for name, value in rows:
                if value is None:
                    connection.execute("DELETE FROM entries WHERE name=?", (name,))
                else:
                    farewells = encode_value(value.farewells).decode()
                    row = (name, value.record, value.sig, value.since, value.online, value.seen, farewells)
                    connection.execute("INSERT OR REPLACE INTO entries VALUES (?,?,?,?,?,?,?)", row)

        return self._database.submit(job)

    def save_peer(self, address: str, now_ms: int) -> "Deferred[None]":
        def job(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO peers VALUES (?,?)", (address, now_ms))
            connection.execute(
                "DELETE FROM peers WHERE address IN (SELECT address FROM peers ORDER BY met_at DESC LIMIT -1 OFFSET ?)",
                (PEERS_MAX,),
            )

        return self._database.submit(job)

    @property
    def problem(self) -> str | None:
        """Why the disk does not take anything, while it does not."""
        return self._database.problem

    def close(self) -> "Deferred[None]":
        return self._database.close()


def read_entries(connection: sqlite3.Connection) -> Iterator[tuple[str, EntryValue]]:
    """One after the other, by name: there may be millions. Raises :class:`BadState` at one that does not read."""
    rows = connection.execute("SELECT name, record, sig, since, online, seen, farewells FROM entries ORDER BY name")
    for name, record, sig, since, online, seen, text in rows:
        row = {"record": record, "sig": sig, "since": since, "online": bool(online), "seen": seen}
        try:
            yield name, msgspec.convert({**row, "farewells": msgspec.json.decode(text)}, EntryValue)
        except (msgspec.DecodeError, UnicodeError) as reason:
            raise BadState(f"the entry of {name} is damaged ({reason}): restore a backup") from None


def read_peers(connection: sqlite3.Connection) -> list[str]:
    return [address for (address,) in connection.execute("SELECT address FROM peers ORDER BY met_at DESC")]
