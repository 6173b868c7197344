"""SQLite under Twisted: one connection in the reactor's thread, one thread that syncs, group commit.

A job is a function of the connection. Jobs run between two turns of the reactor, those of one turn in one transaction,
and their results are told when the disk has synced it; what gathers meanwhile goes into the next transaction. So a disk
that syncs two thousand times a second takes tens of thousands of rows. *Acknowledged means on disk* begins here.

Statements take microseconds, and a sync takes as long as the disk likes: so the statements are run here, and the sync
elsewhere (:class:`meshproto.net.syncing.Syncing`), unless it is a small one and the disk is quick. With the
statements in a thread too, each of them had to wait for the interpreter, half a millisecond when the reactor was busy:
64 messages took 60 ms to be written.

**When the disk refuses** (it is full, broken, locked by another program, the file is gone), who wanted to write is told
:class:`Unavailable`, who wanted to read is still answered, and the next group tries again: nothing has to be restarted
when there is room again. The connection stays the same one, on purpose: SQLite undoes what failed, and its next
transaction overwrites in the WAL what the failed one left there. A fresh connection would read the WAL anew, and could
take up a transaction whose sync had failed as if it were on disk.

**Told 503, and there all the same.** A transaction whose sync failed, or that failed in its COMMIT, may be in the WAL
as a whole. So `Unavailable` means *not known to be kept*, never *not kept*, and every job must bear to be sent again: a
message has an id that is unique for its sender and recipient, in the outbox and in the inbox; a registration has a
sequence; what was marked delivered was delivered. Only who sends again without an id of their own may be heard twice.
After a sync that failed nobody is shown anything until all of it is known to be on disk: a cursor that somebody has
seen must not come to stand for another message when the power fails.

The rules are in :mod:`meshproto.core`; the SQL is in :mod:`meshproto.net.seed_store` and
:mod:`meshproto.net.user_store`; here is only how it gets to the disk.
"""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from meshproto.errors import MeshError, ShuttingDown, Unavailable
from meshproto.net.database_file import ADVICE, DAMAGED, END_LOCK, code
from meshproto.net.process_metrics import Commits
from meshproto.net.syncing import Syncing

GROUP_JOBS_MAX: Final = 2000
"""Jobs in one commit: a burst must not make the first of them wait for the last."""
SMALL_PAGES_MAX: Final = 64
"""Pages that are synced together, a quarter of a megabyte: a quick disk does not take much longer for them than for
one."""
QUEUE_JOBS_MAX: Final = 100_000
"""Jobs that wait for the disk; past that new ones are refused."""
RETRY_S: Final = 5.0
LOCK_WAIT_MS: Final = 100
"""How long a program that has locked the database is waited for: nothing else is done meanwhile."""
CHECKPOINT_FRAMES: Final = 1000
"""Pages in the WAL, four megabytes, that begin a checkpoint. Nothing is written while it lasts, some milliseconds, so
that the WAL begins anew and never outgrows this by more than one transaction."""

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]
Results = list[tuple[Deferred[Any], Any]]


class Database(Protocol):
    """Runs jobs in the order they were submitted. A job may be run more than once before it is written."""

    @property
    def problem(self) -> str | None:
        """Why the disk refused the last that was to be written, and what to do; None once it takes it again."""

    def submit(self, job: Job[T], *, durable: bool = True) -> Deferred[T]:
        """Fires with the job's result when it is on disk; fails with what the job raised, or with
        :class:`Unavailable` when the disk does not take it. What is not `durable` is written too, so that it outlives
        this process, but nobody waits for the disk to sync it: the power failing may undo it."""

    def close(self) -> Deferred[None]:
        """What was submitted is written first."""


class _Submitted(NamedTuple):
    job: Job[Any]
    done: Deferred[Any]
    durable: bool


class _Refused(Exception):
    """What SQLite would take, and we do not. The text says why, and what to do."""


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 -- a Path would cost each commit more than the system call
    except OSError:
        return None
    return found.st_dev, found.st_ino


class _Writer:
    """Writes groups of jobs, and knows whether the disk takes them. `problem`: as :attr:`Database.problem`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.problem: str | None = None
        self._connection = connection
        (self.path,) = [path for _, name, path in connection.execute("PRAGMA database_list") if name == "main"]
        self._name = Path(self.path).name or "the database"
        files = (self.path, f"{self.path}-wal") if self.path else ()
        self._inodes = {path: inode for path in files if (inode := _inode(path)) is not None}
        connection.execute(f"PRAGMA busy_timeout={LOCK_WAIT_MS}")
        connection.execute("PRAGMA synchronous=NORMAL")  # what is to be synced is, but not by COMMIT
        self._damaged = False
        self._sync_failed = False
        self._doubtful = False  # what is written may not be on disk, and nobody has to know of it

    def commit(self, group: list[_Submitted]) -> Results:
        """Each Deferred with its result or Failure.

        All jobs go into one transaction. If that fails by a job, then once more with a savepoint before each, so that
        only that one fails. If it fails by the disk, the smallest write there is says whether anything at all can be
        written: if so each job has a transaction of its own; if not, nobody's can be, and those that want to write are
        told so without being tried, one slow refusal after the other, while those that only read have their result."""
        if self.problem is not None:
            self._probe()
        if len(group) > 1:
            for run in (_run, _run_in_savepoint):
                if self.problem is None:
                    try:
                        return self._together(group, run)
                    except Exception as reason:  # a bug must not end the thread that everybody waits for
                        self._judge(reason)
        return [(submitted.done, self._alone(submitted)) for submitted in group]

    def _together(self, group: list[_Submitted], run: Callable[[Job[Any], sqlite3.Connection], Any]) -> Results:
        connection = self._connection
        try:
            connection.execute("BEGIN")
            results = [(submitted.done, run(submitted.job, connection)) for submitted in group]
            self._look_for_files()
            connection.execute("COMMIT")
        except Exception:
            self._undo()
            raise
        return results

    def _alone(self, submitted: _Submitted) -> Any:
        if self.problem is None:
            try:
                ((_, result),) = self._together([submitted], _run)
                return result
            except Exception as reason:
                self._judge(reason)
                if self.problem is None:  # it is this job that the disk does not take, as one that is too large
                    refusal = self._disk_says(reason)
                    return Failure(reason if refusal is None else Unavailable(refusal, retry_after_s=RETRY_S))
        return self._read_only(submitted.job)

    def _read_only(self, job: Job[Any]) -> Any:
        """The job's result if it writes nothing."""
        if self._doubtful:
            return self._unavailable()
        connection = self._connection
        connection.execute("PRAGMA query_only=ON")
        try:
            connection.execute("BEGIN")
            return _run(job, connection)
        except Exception as reason:
            refusal = self.problem if code(reason) == sqlite3.SQLITE_READONLY else self._disk_says(reason)
            return Failure(reason if refusal is None else Unavailable(refusal, retry_after_s=RETRY_S))
        finally:
            self._undo()
            connection.execute("PRAGMA query_only=OFF")

    def not_synced(self, reason: Exception, results: Results) -> Results:
        """What to tell those whose transaction could not be synced."""
        self._refused(reason)
        self._sync_failed = self._doubtful = True
        return [(done, result if isinstance(result, Failure) else self._unavailable()) for done, result in results]

    def not_carried_over(self, reason: Exception) -> None:
        """A checkpoint has failed."""
        self._refused(reason)

    def _unavailable(self) -> Failure:
        return Failure(Unavailable(self.problem or "", retry_after_s=RETRY_S))

    def _undo(self) -> None:
        if self._connection.in_transaction:
            with suppress(sqlite3.Error):  # the transaction is over in any case
                self._connection.execute("ROLLBACK")

    def _disk_says(self, reason: Exception) -> str | None:
        """What the disk said, and what to do; None if it was not the disk."""
        if isinstance(reason, _Refused):
            return f"the disk does not take it: {reason}"
        advice = ADVICE.get(code(reason))
        return advice and f"the disk does not take it: {reason} ({self._name}); {advice}"

    def _judge(self, reason: Exception) -> None:
        """What failed has been undone. Was it by the disk, and does it refuse everything?"""
        if self._disk_says(reason) is not None:
            self._refused(reason)
            self._probe()

    def _refused(self, reason: Exception) -> None:
        self.problem = self._disk_says(reason) or f"the disk does not take it: {reason}"
        self._connection.execute("PRAGMA busy_timeout=0")  # one has waited for the lock; the others need not in turn
        self._damaged = self._damaged or code(reason) in DAMAGED
        self._sync_failed = self._sync_failed or code(reason) == sqlite3.SQLITE_IOERR

    def _probe(self) -> None:
        """Whether the disk takes the smallest thing there is: one page, as it was. If not, it takes nothing at all.
        A damaged file is written to no more: that would only damage it further."""
        if self._damaged:
            return
        connection = self._connection
        try:
            self._look_for_files()
            self._empty_wal()
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute(f"PRAGMA user_version={version}")
            connection.execute("COMMIT")
        except (sqlite3.Error, _Refused) as reason:
            self._undo()
            self._refused(reason)
        else:
            self.problem = None
            connection.execute(f"PRAGMA busy_timeout={LOCK_WAIT_MS}")
        finally:
            connection.execute("PRAGMA synchronous=NORMAL")

    def _empty_wal(self) -> None:
        """On a full disk this may be all the room there is. After an I/O error it has to be: when a sync fails, Linux
        holds the pages for written, and no later sync tries them again. What is written behind them in the WAL would be
        lost with them; so before anything else goes there, all of it is carried into the database and synced there."""
        try:
            ((busy, _, _),) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error:
            if self._sync_failed:
                raise
            return
        if busy and self._sync_failed:
            raise _Refused(f"{self._name} is being read by another program after an I/O error; {END_LOCK}")
        self._sync_failed = self._doubtful = False

    def _look_for_files(self) -> None:
        """SQLite goes on writing to a file that was deleted, and says that all is well; nobody will ever find it."""
        for path, inode in self._inodes.items():
            if _inode(path) == inode:
                continue
            lost = f"{Path(path).name} was deleted or replaced while in use"
            if path == self.path:
                raise _Refused(f"{lost}; stop the node, then put the file back or restore a backup, and start again")
            with suppress(sqlite3.Error):  # the database itself is there: save what was acknowledged
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            raise _Refused(f"{lost}; restart the node")


def _run(job: Job[Any], connection: sqlite3.Connection) -> Any:
    try:
        return job(connection)
    except MeshError:
        # The job's own verdict, reached before it wrote anything: the others of the group are not concerned.
        return Failure()


def _run_in_savepoint(job: Job[Any], connection: sqlite3.Connection) -> Any:
    connection.execute("SAVEPOINT job")
    try:
        result = _run(job, connection)
    except Exception as reason:
        if code(reason) in ADVICE:
            raise
        result = Failure()
        connection.execute("ROLLBACK TO job")
    connection.execute("RELEASE job")
    return result


def _next_group(waiting: deque[_Submitted]) -> list[_Submitted]:
    if len(waiting) > GROUP_JOBS_MAX:
        return [waiting.popleft() for _ in range(GROUP_JOBS_MAX)]
    group = list(waiting)
    waiting.clear()
    return group


def _refusal(waiting: int, *, closing: bool) -> Unavailable | None:
    """Why one more job is not taken."""
    if closing:
        return ShuttingDown()
    if waiting >= QUEUE_JOBS_MAX:
        return Unavailable("the disk does not keep up", retry_after_s=RETRY_S)
    return None


class SQLiteDatabase:
    """One group of jobs at a time: it is committed, synced if somebody waits for that, and told. `syncing`: None where
    there is no disk. `commits`: what it counts in."""

    log = Logger()

    def __init__(
        self,
        connection: sqlite3.Connection,
        clock: IReactorTime,
        syncing: Syncing | None = None,
        commits: Commits | None = None,
    ) -> None:
        self._connection = connection
        self._commits = commits or Commits()
        self._writer = _Writer(connection)
        self._clock = clock
        self._syncing = syncing
        self._waiting: deque[_Submitted] = deque()
        self._turn: IDelayedCall | None = None
        self._busy = False
        self._synced_changes = -1  # the connection's count of changes when all were synced
        self._synced_pages = 0  # of those in the WAL
        self._problem: str | None = None
        self._closing: Deferred[None] | None = None
        if syncing is not None:
            connection.execute("PRAGMA wal_autocheckpoint=0")

    @property
    def problem(self) -> str | None:
        return self._problem

    def submit(self, job: Job[T], *, durable: bool = True) -> Deferred[T]:
        done: Deferred[T] = Deferred()
        refusal = _refusal(len(self._waiting), closing=self._closing is not None)
        if refusal is not None:
            done.errback(refusal)
            return done
        self._waiting.append(_Submitted(job, done, durable))
        if self._turn is None and not self._busy:
            self._turn = self._clock.callLater(0, self._commit)
        return done

    def close(self) -> Deferred[None]:
        if self._closing is None:
            self._closing = Deferred()
            if self._turn is not None:
                self._turn.cancel()
            if not self._busy:
                self._go_on()
        return self._closing

    def _commit(self) -> None:
        self._turn, self._busy = None, True
        group = _next_group(self._waiting)
        began = self._commits.seconds()
        results = self._writer.commit(group)
        changes = self._connection.total_changes
        wanted = changes != self._synced_changes and any(one.durable for one in group)
        if self._syncing is None or self._writer.problem is not None or not wanted:
            self._over(results)
            return
        pages = self._syncing.frames
        small = pages - (self._synced_pages if self._synced_pages <= pages else 0) <= SMALL_PAGES_MAX
        self._syncing.sync(lambda wrong: self._synced(results, changes, pages, began, wrong), small=small)

    def _synced(self, results: Results, changes: int, pages: int, began: float, wrong: Exception | None) -> None:
        if wrong is None:
            self._synced_changes, self._synced_pages = changes, pages
            self._commits.took.observe(self._commits.seconds() - began)
        else:
            results = self._writer.not_synced(wrong, results)
        self._over(results)

    def _checkpointed(self, wrong: Exception | None) -> None:
        if wrong is not None:
            self._writer.not_carried_over(wrong)
        self._synced_pages = 0
        self._over([])

    def _over(self, results: Results) -> None:
        self._tell(results)
        syncing = self._syncing
        if syncing is not None and self._writer.problem is None and syncing.frames >= CHECKPOINT_FRAMES:
            syncing.checkpoint(self._checkpointed)
        else:
            self._busy = False
            self._go_on()

    def _go_on(self) -> None:
        if self._closing is None:
            if self._waiting:
                self._turn = self._clock.callLater(0, self._commit)
        elif self._waiting:
            self._commit()
        else:
            self._close(self._closing)

    def _close(self, closing: Deferred[None]) -> None:
        self._busy = True
        if self._syncing is None:
            self._connection.close()
            closing.callback(None)
        else:
            self._syncing.close(lambda _: closing.callback(None))

    def _tell(self, results: Results) -> None:
        """One line in the log when the disk begins to refuse and one line when it is over."""
        problem = self._writer.problem
        if problem is not None:
            self._commits.failures += bool(results)
        if problem is not None and self._problem is None:
            self.log.error("{path}: {problem}", path=self._writer.path, problem=problem)
        elif problem is None and self._problem is not None:
            self.log.info("{path}: the disk takes it again", path=self._writer.path)
        self._problem = problem
        for done, result in results:
            done.callback(result)
