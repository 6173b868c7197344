"""SQLite under Twisted: one connection, one writer, group commit.

A job is a function of the connection. Whatever jobs gather while the last commit is syncing go into the next one
together, so a disk that syncs two thousand times a second takes tens of thousands of rows. A job's result is told only
when its commit is on disk (WAL, synchronous=FULL): *acknowledged means on disk* begins here.

The rules are in :mod:`meshproto.core`; the SQL is in :mod:`meshproto.net.seed_store` and
:mod:`meshproto.net.user_store`; here is only how it gets to the disk.
"""

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.python.failure import Failure

from meshproto.errors import BadState, MeshError, Unavailable

GROUP_JOBS_MAX: Final = 2000
"""Jobs in one commit: a burst must not make the first of them wait for the last."""
QUEUE_JOBS_MAX: Final = 100_000
"""Jobs that wait for the disk; past that new ones are refused."""
RETRY_S: Final = 5.0
NO_UPGRADES: Final[Mapping[int, str]] = MappingProxyType({})

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]


class Database(Protocol):
    """Runs jobs in the order they were submitted."""

    def submit(self, job: Job[T], *, durable: bool = True) -> "Deferred[T]":
        """Fires with the job's result when it is on disk; fails with the :class:`MeshError` that the job raised, or
        with :class:`Unavailable` when it could not be written. What is not `durable` is written too, so that it
        outlives this process, but nobody waits for the disk to sync it: the power failing may undo it."""

    @property
    def problem(self) -> str | None:
        """What the disk says, while it refuses what is written."""

    def close(self) -> "Deferred[None]":
        """What was submitted is written first."""


class _Submitted(NamedTuple):
    job: Job[Any]
    done: "Deferred[Any]"
    durable: bool


def connect(
    path: str | Path, schema: str, schema_version: int, upgrades: Mapping[int, str] = NO_UPGRADES
) -> sqlite3.Connection:
    """Open or create a database; `upgrades`: the SQL that leads from each former version of the schema to the next.
    Before an upgrade a copy is put beside the file. Raises :class:`BadState` with what to do when it cannot be used."""
    try:
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, uri=str(path).startswith("file:")
        )
        try:
            _prepare(connection, path, schema, schema_version, upgrades)
        except BaseException:
            connection.close()
            raise
    except sqlite3.OperationalError as reason:
        raise BadState(f"{path} cannot be opened as a database: {reason}") from None
    except sqlite3.Error as reason:
        raise BadState(f"{path} cannot be opened as a database ({reason}): restore it from a backup") from None
    return connection


def _prepare(
    connection: sqlite3.Connection, path: str | Path, schema: str, schema_version: int, upgrades: Mapping[int, str]
) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found == schema_version:
        return
    steps = (
        [schema] if found == 0 else [upgrades[number] for number in range(found, schema_version) if number in upgrades]
    )
    if found and len(steps) != schema_version - found:
        raise BadState(f"{path} was written by another version of meshproto (schema {found}): use that version")
    if found:
        _copy(connection, f"{path}.schema{found}")
    connection.executescript(f"BEGIN; {'; '.join(steps)}; PRAGMA user_version={schema_version}; COMMIT;")


def _copy(connection: sqlite3.Connection, path: str) -> None:
    """A copy of the whole database; one that an earlier attempt has left there is replaced."""
    Path(path).unlink(missing_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    connection.execute("VACUUM INTO ?", (path,))


def commit_group(connection: sqlite3.Connection, group: list[_Submitted]) -> list[tuple["Deferred[Any]", Any]]:
    """Run the jobs in one transaction. When the database refuses, each runs again in a transaction of its own, so
    that only those fail that have to. Returns each Deferred with its result or Failure."""
    try:
        synced = any(submitted.durable for submitted in group)
        connection.execute("PRAGMA synchronous=FULL" if synced else "PRAGMA synchronous=NORMAL")
        connection.execute("BEGIN")
        results = [(submitted.done, _run(submitted.job, connection)) for submitted in group]
        connection.execute("COMMIT")
    except Exception as reason:  # also a job with a bug: it must not end the thread that everybody waits for
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if len(group) > 1:
            return [result for submitted in group for result in commit_group(connection, [submitted])]
        if isinstance(reason, sqlite3.Error):
            reason = Unavailable(f"the disk does not take it: {reason}", retry_after_s=RETRY_S)
        return [(group[0].done, Failure(reason))]
    return results


def _run(job: Job[Any], connection: sqlite3.Connection) -> Any:
    try:
        return job(connection)
    except MeshError:
        # The job's own verdict, reached before it wrote anything: the others of the group are not concerned.
        return Failure()


def _next_group(waiting: deque[_Submitted]) -> list[_Submitted]:
    return [waiting.popleft() for _ in range(min(GROUP_JOBS_MAX, len(waiting)))]


def _refusal(waiting: int, *, closing: bool) -> Unavailable | None:
    """Why one more job is not taken."""
    if closing:
        return Unavailable("this node is shutting down")
    if waiting >= QUEUE_JOBS_MAX:
        return Unavailable("the disk does not keep up", retry_after_s=RETRY_S)
    return None


def _tell(results: list[tuple["Deferred[Any]", Any]]) -> None:
    for done, result in results:
        done.callback(result)


class ThreadedDatabase:
    """The real one: a thread that does nothing but write."""

    problem: str | None = None

    def __init__(self, connection: sqlite3.Connection, reactor: IReactorFromThreads) -> None:
        self._connection = connection
        self._reactor = reactor
        self._waiting: deque[_Submitted] = deque()
        self._some = threading.Condition()
        self._closing: Deferred[None] | None = None
        self._thread = threading.Thread(target=self._write, name="store", daemon=True)
        self._thread.start()

    def submit(self, job: Job[T], *, durable: bool = True) -> "Deferred[T]":
        done: Deferred[T] = Deferred()
        with self._some:
            refusal = _refusal(len(self._waiting), closing=self._closing is not None)
            if refusal is None:
                self._waiting.append(_Submitted(job, done, durable))
                self._some.notify()
        if refusal is not None:
            done.errback(refusal)
        return done

    def close(self) -> "Deferred[None]":
        with self._some:
            if self._closing is None:
                self._closing = Deferred()
                self._some.notify()
        return self._closing

    def _write(self) -> None:
        while True:
            with self._some:
                while not self._waiting and self._closing is None:
                    self._some.wait()
                group = _next_group(self._waiting)
            if not group:
                break
            self._reactor.callFromThread(_tell, commit_group(self._connection, group))
        self._connection.close()
        assert self._closing is not None  # noqa: S101
        self._reactor.callFromThread(self._closing.callback, None)


class ClockedDatabase:
    """The same in one thread, for the fake world: what gathers until the next turn of the clock is one commit."""

    problem: str | None = None

    def __init__(self, connection: sqlite3.Connection, clock: IReactorTime) -> None:
        self._connection = connection
        self._clock = clock
        self._waiting: deque[_Submitted] = deque()
        self._turn: IDelayedCall | None = None
        self._closing = False

    def submit(self, job: Job[T], *, durable: bool = True) -> "Deferred[T]":
        done: Deferred[T] = Deferred()
        refusal = _refusal(len(self._waiting), closing=self._closing)
        if refusal is not None:
            done.errback(refusal)
            return done
        self._waiting.append(_Submitted(job, done, durable))
        if self._turn is None:
            self._turn = self._clock.callLater(0, self._commit)
        return done

    def close(self) -> "Deferred[None]":
        self._closing = True
        if self._turn is not None and self._turn.active():
            self._turn.cancel()
        while self._waiting:
            self._commit()
        self._connection.close()
        return succeed(None)

    def _commit(self) -> None:
        self._turn = None
        group = _next_group(self._waiting)
        if self._waiting and not self._closing:
            self._turn = self._clock.callLater(0, self._commit)
        _tell(commit_group(self._connection, group))
