"""A database in memory, on a fake clock, whose work is done when its result is wanted."""

import sqlite3
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from meshproto.net.database_file import connect
from meshproto.net.store import SQLiteDatabase

T = TypeVar("T")


class Moody:
    """A connection whose next commits may fail after they have been done."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.commits_lost = 0

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        done = self._connection.execute(statement, *values)
        if statement == "COMMIT" and self.commits_lost:
            self.commits_lost -= 1
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class OnClock:
    def __init__(self, schema: str, schema_version: int) -> None:
        self.clock = Clock()
        self.connection = connect(":memory:", schema, schema_version)
        self._moody = Moody(self.connection)
        self.database = SQLiteDatabase(cast(sqlite3.Connection, self._moody), self.clock)

    def take_and_fail(self) -> None:
        """The next commit is done, and said to have failed."""
        self._moody.commits_lost = 1

    def run(self, work: "Deferred[T]") -> T:
        """The result; raises the exception that the work failed with."""
        self.clock.advance(0)
        results: list[T] = []
        errors: list[BaseException] = []
        work.addCallbacks(results.append, lambda failure: errors.append(failure.value))
        if errors:
            raise errors[0]
        return results[0]

    def close(self) -> None:
        self.database.close()
