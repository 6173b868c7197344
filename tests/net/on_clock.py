"""A database in memory, on a fake clock, whose work is done when its result is wanted."""

from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from meshproto.net.store import ClockedDatabase, connect

T = TypeVar("T")


class OnClock:
    def __init__(self, schema: str, schema_version: int) -> None:
        self.clock = Clock()
        self.connection = connect(":memory:", schema, schema_version)
        self.database = ClockedDatabase(self.connection, self.clock)

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
