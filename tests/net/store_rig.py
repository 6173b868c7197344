"""A database with what a suite needs to run over it: on a disk, with its thread, or on a fake clock."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import DeferredList
from twisted.internet.task import Clock

from meshproto.net.database_file import connect
from meshproto.net.store import Database, Job, SQLiteDatabase
from meshproto.net.syncing import SyncThread

SCHEMA = "CREATE TABLE words (word TEXT PRIMARY KEY)"
VERSION = 1


class Rig:
    """A database, its connection to look at, and what is needed to have its work done."""

    database: Database
    connection: sqlite3.Connection

    def hold(self) -> Callable[[], object]:
        """Whatever is submitted until the returned function is called gathers."""
        raise NotImplementedError

    def work(self) -> None:
        """Do what does not do itself."""

    async def submit(self, *jobs: Job[Any], durable: bool = True) -> list[Any]:
        """Each job's result or the exception it failed with; they are submitted together."""
        go_on = self.hold()
        outcomes = DeferredList([self.database.submit(job, durable=durable) for job in jobs], consumeErrors=True)
        go_on()
        self.work()
        return [result if fine else result.value for fine, result in await outcomes]


class Threaded(Rig):
    def __init__(self, path: Path) -> None:
        from twisted.internet import reactor

        self.connection = connect(path, SCHEMA, VERSION)
        loop: Any = reactor
        self.syncing = SyncThread(self.connection, loop)
        self.database = SQLiteDatabase(self.connection, loop, self.syncing)

    def hold(self) -> Callable[[], object]:
        return self.work


class Clocked(Rig):
    def __init__(self, path: Path | str = ":memory:") -> None:
        self.clock = Clock()
        self.connection = connect(path, SCHEMA, VERSION)
        self.database = SQLiteDatabase(self.connection, self.clock)

    def hold(self) -> Callable[[], object]:
        return self.work

    def work(self) -> None:
        while self.clock.getDelayedCalls():
            self.clock.advance(0)


def insert(word: str) -> Job[str]:
    def job(connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO words VALUES (?)", (word,))
        return word

    return job


def fail(error: Exception) -> Job[None]:
    def job(connection: sqlite3.Connection) -> None:
        raise error

    return job


def refusal(code: int, said: str) -> sqlite3.OperationalError:
    """An error as SQLite raises it: the reason, and its (extended) code."""
    error = sqlite3.OperationalError(said)
    error.sqlite_errorcode = code
    return error


def words(connection: sqlite3.Connection) -> list[str]:
    return [word for (word,) in connection.execute("SELECT word FROM words ORDER BY rowid")]


def statements(connection: sqlite3.Connection, *beginnings: str) -> list[str]:
    """A list that grows by each statement that begins like one of these."""
    seen: list[str] = []
    connection.set_trace_callback(
        lambda statement: seen.append(statement) if statement.startswith(beginnings) else None
    )
    return seen
