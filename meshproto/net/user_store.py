"""What a user node keeps on disk: what it sends, what it received, whom it knows, where seeds are."""

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from twisted.internet.defer import Deferred

from meshproto.net import contacts_table, inbox_table, outbox_table
from meshproto.net.contacts_table import ContactsTable
from meshproto.net.database_file import shrink
from meshproto.net.history_file import Ends
from meshproto.net.inbox_table import InboxTable
from meshproto.net.outbox_table import OutboxTable, Waiting, read_waiting
from meshproto.net.store import Database

SCHEMA_VERSION: Final = 3
SCHEMA: Final = ";".join(
    (
        outbox_table.SCHEMA,
        inbox_table.SCHEMA,
        inbox_table.SEEN_SCHEMA,
        contacts_table.SCHEMA,
        contacts_table.OFFERED_SCHEMA,
        "CREATE TABLE seeds (address TEXT PRIMARY KEY) WITHOUT ROWID",
        "CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    )
)
UPGRADES: Final[Mapping[int, str]] = {
    1: f"{outbox_table.FROM_1};{inbox_table.SEEN_SCHEMA}",
    2: f"{contacts_table.FROM_2};{contacts_table.OFFERED_SCHEMA}",
}
_CURSOR: Final = "cursor "
"""In `numbers`: how far a program that the inbox is handed over to has come. The rest of the key is its kind."""
VACUUM_PAGES: Final = 256
"""Free pages given back to the disk in one job: a megabyte, some milliseconds."""


class UserStore:
    """Every method, here and of the tables, is one job of the database's writer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.outbox = OutboxTable(database)
        self.inbox = InboxTable(database)
        self.contacts = ContactsTable(database)

    def close(self) -> "Deferred[None]":
        return self._database.close()

    @property
    def problem(self) -> str | None:
        """Why the disk does not take anything, while it does not."""
        return self._database.problem

    def ends(self) -> "Deferred[Ends]":
        """What is on disk by now."""

        def job(connection: sqlite3.Connection) -> Ends:
            (row,) = connection.execute("SELECT coalesce(max(row), 0) FROM outbox").fetchone()
            return Ends(inbox_table.last_cursor(connection), row)

        return self._database.submit(job, durable=False)

    def probe(self) -> "Deferred[None]":
        """Write a little. Fails with :class:`meshproto.errors.Unavailable` while the disk does not take it."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO numbers VALUES ('probe', 0)")

        return self._database.submit(job, durable=False)

    def save_seeds(self, addresses: Iterable[str]) -> "Deferred[None]":
        """The seeds to try at the next start, in place of those kept before. Not synced: a home may tell of others each
        time."""
        rows = [(address,) for address in addresses]

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM seeds")
            connection.executemany("INSERT OR IGNORE INTO seeds VALUES (?)", rows)

        return self._database.submit(job, durable=False)

    def save_seq(self, seq: int) -> "Deferred[None]":
        """The sequence of the latest record, so that the next is higher whatever the clock says."""
        statement = "INSERT OR REPLACE INTO numbers VALUES ('seq', ?)"

        def job(connection: sqlite3.Connection) -> None:
            connection.execute(statement, (seq,))

        return self._database.submit(job)

    def save_cursor(self, program: str, cursor: int) -> "Deferred[None]":
        """How far a program has come. What the power failing undoes is handed over again."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO numbers VALUES (?,?)", (_CURSOR + program, cursor))

        return self._database.submit(job, durable=False)

    def vacuum(self) -> "Deferred[bool]":
        """Give free pages back to the disk. Whether there are more."""

        def job(connection: sqlite3.Connection) -> bool:
            return shrink(connection, VACUUM_PAGES) == VACUUM_PAGES

        return self._database.submit(job, durable=False)


class Start(NamedTuple):
    """What is read once, before the node is up."""

    seq: int
    seeds: list[str]
    waiting: list[Waiting]


def read_start(connection: sqlite3.Connection) -> Start:
    seq = connection.execute("SELECT value FROM numbers WHERE name='seq'").fetchone()
    seeds = [address for (address,) in connection.execute("SELECT address FROM seeds ORDER BY address")]
    return Start(seq[0] if seq else 0, seeds, read_waiting(connection))


def begin_cursors(connection: sqlite3.Connection, programs: Iterable[str]) -> dict[str, int]:
    """How far each program has come, read before the node is up. One that was never there before begins with what
    comes from now on, and that is written down."""
    cursors: dict[str, int] = {}
    for program in programs:
        now = (_CURSOR + program, inbox_table.last_cursor(connection))
        connection.execute("INSERT OR IGNORE INTO numbers VALUES (?,?)", now)
        found = connection.execute("SELECT value FROM numbers WHERE name=?", (_CURSOR + program,))
        (cursors[program],) = found.fetchone()
    return cursors
