"""A disk that is slow, refuses, cannot be read, or does not know what it has written: for the fake world.

:class:`TroubledConnection` stands between the jobs and SQLite, :class:`SlowDatabase` between a node and its database.
What they do to whom, and when, is in the node's :class:`Trouble`.
"""

import random
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from meshproto.net.store import Database, Job
from meshproto.net.syncing import Done

T = TypeVar("T")


@dataclass
class Trouble:
    """What is wrong with one node's disk; it outlives the node's process. `slow_s`: how long a commit takes at most.
    The others are how likely it is, each time: `refuses` a COMMIT, and has written nothing; `doubts` one, and has
    written it; `haunts`: the same, but what was written comes to light only when the process has died and nothing was
    written over it (so it is with a WAL that could not be synced); `unsynced`: a sync fails; `blind`: a read fails.
    `doubted` counts the commits that were written and reported as failed; `ghost` is what the last one would have
    changed."""

    rng: random.Random
    slow_s: float = 0.0
    refuses: float = 0.0
    doubts: float = 0.0
    haunts: float = 0.0
    unsynced: float = 0.0
    blind: float = 0.0
    doubted: int = 0
    ghost: list[tuple[str, Any]] = field(default_factory=list)

    def mend(self) -> None:
        self.slow_s = self.refuses = self.doubts = self.haunts = self.unsynced = self.blind = 0.0

    def strikes(self, chance: float) -> bool:
        return chance > 0 and self.rng.random() < chance


class TroubledConnection:
    """As much of a :class:`sqlite3.Connection` as jobs and commits use."""

    def __init__(self, connection: sqlite3.Connection, trouble: Trouble) -> None:
        self._connection = connection
        self._trouble = trouble
        self._written: list[tuple[str, Any]] = []  # in the transaction
        self._savepoint = 0

    def execute(self, sql: str, values: Any = ()) -> sqlite3.Cursor:
        trouble = self._trouble
        match sql.split(maxsplit=1)[0]:
            case "BEGIN":
                self._written = []
            case "COMMIT":
                return self._commit()
            case "SAVEPOINT":
                self._savepoint = len(self._written)
            case "ROLLBACK":
                del self._written[self._savepoint if " TO " in sql else 0 :]
            case "SELECT" if trouble.strikes(trouble.blind):
                raise _error("disk I/O error", sqlite3.SQLITE_IOERR)
            case "INSERT" | "UPDATE" | "DELETE":
                self._written.append((sql, values))
            case "PRAGMA" if sql.startswith("PRAGMA user_version="):
                self._written.append((sql, values))
            case "PRAGMA" if sql.startswith("PRAGMA wal_checkpoint"):
                if trouble.strikes(max(trouble.refuses, trouble.doubts, trouble.haunts)):
                    raise _error("disk I/O error", sqlite3.SQLITE_IOERR)
                trouble.ghost = []
        return self._connection.execute(sql, values)

    def executemany(self, sql: str, rows: Iterable[Any]) -> sqlite3.Cursor:
        rows = list(rows)
        self._written += [(sql, values) for values in rows]
        return self._connection.executemany(sql, rows)

    def _commit(self) -> sqlite3.Cursor:
        trouble = self._trouble
        if not self._written:  # nothing goes to the disk
            return self._connection.execute("COMMIT")
        if trouble.strikes(trouble.refuses):
            raise _error("database or disk is full", sqlite3.SQLITE_FULL)
        if trouble.strikes(trouble.haunts):
            trouble.doubted += 1
            trouble.ghost = list(self._written)
            raise _error("disk I/O error", sqlite3.SQLITE_IOERR)
        done = self._connection.execute("COMMIT")
        trouble.ghost = []
        if trouble.strikes(trouble.doubts):
            trouble.doubted += 1
            raise _error("disk I/O error", sqlite3.SQLITE_IOERR)
        return done

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    @property
    def total_changes(self) -> int:
        return self._connection.total_changes

    def close(self) -> None:
        self._connection.close()


class TroubledSync:
    """A :class:`meshproto.net.syncing.Syncing` without a disk."""

    frames = 0

    def __init__(self, connection: TroubledConnection, trouble: Trouble) -> None:
        self._connection = connection
        self._trouble = trouble

    def sync(self, done: Done, *, small: bool) -> None:
        failed = self._trouble.strikes(self._trouble.unsynced)
        self._trouble.doubted += failed
        done(_error("disk I/O error", sqlite3.SQLITE_IOERR_FSYNC) if failed else None)

    def checkpoint(self, done: Done) -> None:
        done(None)

    def close(self, done: Done) -> None:
        self._connection.close()
        done(None)


def _error(text: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


def bring_to_light(trouble: Trouble, connection: sqlite3.Connection) -> None:
    """The process has died: what was written without anybody knowing is there."""
    ghost, trouble.ghost = trouble.ghost, []
    for sql, values in ghost:
        connection.execute(sql, values)
    connection.commit()


class SlowDatabase:
    """Submits to another database late, and tells of it late: a part of the time goes by before the commit and the
    rest after it, so that a process may die on either side. Jobs keep their order; those that come while one waits
    are submitted with it."""

    def __init__(self, inner: Database, clock: IReactorTime, trouble: Trouble) -> None:
        self._inner = inner
        self._clock = clock
        self._trouble = trouble
        self._submitted_at = self._told_at = 0.0
        self._late: list[tuple[Job[Any], Deferred[Any], bool]] = []

    @property
    def problem(self) -> str | None:
        return self._inner.problem

    def submit(self, job: Job[T], *, durable: bool = True) -> "Deferred[T]":
        now = self._clock.seconds()
        if not self._trouble.slow_s and self._submitted_at <= now and self._told_at <= now and not self._late:
            return self._inner.submit(job, durable=durable)
        if self._submitted_at <= now:
            took_s = self._trouble.slow_s * self._trouble.rng.random() ** 2
            self._submitted_at = now + took_s * self._trouble.rng.random()
            self._told_at = max(self._told_at, now + took_s)
            self._clock.callLater(self._submitted_at - now, self._submit_late)
        done: Deferred[T] = Deferred()
        self._late.append((job, done, durable))
        return done

    def close(self) -> "Deferred[None]":
        self._submit_late()
        return self._inner.close()

    def _submit_late(self) -> None:
        late, self._late = self._late, []
        for job, done, durable in late:
            self._inner.submit(job, durable=durable).addBoth(self._tell, done)

    def _tell(self, result: Any | Failure, done: "Deferred[Any]") -> None:
        left_s = self._told_at - self._clock.seconds()
        if left_s > 0:
            self._clock.callLater(left_s, done.callback, result)
        else:
            done.callback(result)
