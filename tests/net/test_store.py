"""One suite for both: a real file with the thread that syncs, and a database in memory on a fake clock. What happens
when the disk refuses is in test_store_faults.py."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import Deferred, DeferredList

from meshproto.errors import NotFound, ShuttingDown, Unavailable
from meshproto.net.store import (
    CHECKPOINT_FRAMES,
    GROUP_JOBS_MAX,
    QUEUE_JOBS_MAX,
    RETRY_S,
    SMALL_PAGES_MAX,
    Job,
    SQLiteDatabase,
)
from meshproto.net.syncing import Done
from tests.net.store_rig import Clocked, Rig, Threaded, fail, insert, refusal, statements, words


@pytest.fixture(params=["threaded", "clocked"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    rig: Rig = Threaded(tmp_path / "words.db") if request.param == "threaded" else Clocked()
    yield rig
    pytest_twisted.blockon(rig.database.close())


async def test_result(rig: Rig) -> None:
    """A job's result is what it returned."""
    assert await rig.submit(lambda connection: 42) == [42]


async def test_group_commit(rig: Rig) -> None:
    """Jobs that gather while the disk is busy travel in one transaction."""
    go_on = rig.hold()
    many = DeferredList([rig.database.submit(insert(str(number))) for number in range(100)])
    seen = statements(rig.connection, "COMMIT")
    go_on()
    rig.work()
    await many
    assert len(seen) == 1
    assert await rig.submit(words) == [[str(number) for number in range(100)]]


async def test_group_jobs_max(rig: Rig) -> None:
    """One transaction takes GROUP_JOBS_MAX jobs; one more begins another."""
    go_on = rig.hold()
    many = DeferredList([rig.database.submit(insert(str(number))) for number in range(GROUP_JOBS_MAX + 1)])
    seen = statements(rig.connection, "COMMIT")
    go_on()
    rig.work()
    await many
    assert len(seen) == 2


async def test_order(rig: Rig) -> None:
    """Jobs run, and results are told, in the order of submission, also across transactions."""
    ran: list[int] = []
    told: list[int] = []

    def job(number: int) -> Job[int]:
        def run(connection: sqlite3.Connection) -> int:
            ran.append(number)
            return number

        return run

    many = range(GROUP_JOBS_MAX + 10)
    done = DeferredList([rig.database.submit(job(number)).addCallback(told.append) for number in many])
    rig.work()
    await done
    assert ran == told == list(many)


async def test_own_verdict(rig: Rig) -> None:
    """A job's MeshError is its own failure, and does not cost the others their transaction."""
    error = NotFound("no such word")
    seen = statements(rig.connection, "COMMIT")
    assert await rig.submit(insert("a"), fail(error), insert("b")) == ["a", error, "b"]
    assert len(seen) <= 2
    assert await rig.submit(words) == [["a", "b"]]


@pytest.mark.parametrize(
    "error", [KeyError("a bug"), OverflowError("too large"), UnicodeEncodeError("a", "", 0, 0, "")]
)
async def test_bug(rig: Rig, error: Exception) -> None:
    """A job with a bug fails as it failed; the others are written and the writer goes on."""
    assert await rig.submit(insert("a"), fail(error), insert("b")) == ["a", error, "b"]
    assert await rig.submit(words) == [["a", "b"]]


async def test_half_done(rig: Rig) -> None:
    """What a job with a bug wrote before it failed is not kept."""

    def job(connection: sqlite3.Connection) -> None:
        insert("half")(connection)
        raise KeyError("a bug")

    (failure,) = await rig.submit(job)
    assert isinstance(failure, KeyError)
    assert await rig.submit(words) == [[]]


async def test_constraint(rig: Rig) -> None:
    """What breaks a constraint is the job's own failure, and says nothing about the disk."""
    first, second, third = await rig.submit(insert("a"), insert("a"), insert("b"))
    assert (first, third) == ("a", "b")
    assert isinstance(second, sqlite3.IntegrityError)
    assert rig.database.problem is None


async def test_bugs_cost_one_more_commit(rig: Rig) -> None:
    """However many of a group have bugs, the others are written together."""
    seen = statements(rig.connection, "COMMIT")
    jobs = [insert(str(number)) if number % 2 else fail(KeyError(number)) for number in range(100)]
    outcomes = await rig.submit(*jobs)
    assert [outcome for outcome in outcomes if isinstance(outcome, str)] == [str(number) for number in range(1, 100, 2)]
    assert len(seen) <= 2


async def test_refused_at_the_commit(rig: Rig) -> None:
    """A transaction refused at its very end is undone, and each job has another chance of its own."""
    rig.connection.execute("PRAGMA foreign_keys=ON")
    rig.connection.execute(
        "CREATE TABLE letters (letter TEXT, word TEXT REFERENCES words DEFERRABLE INITIALLY DEFERRED)"
    )

    def orphan(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO letters VALUES ('x', 'no such word')")

    first, second = await rig.submit(insert("a"), orphan)
    assert first == "a"
    assert isinstance(second, sqlite3.IntegrityError)
    assert await rig.submit(words) == [["a"]]


class Disk:
    """A :class:`meshproto.net.syncing.Syncing` that does what it is asked for when it is told to."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.frames = 0
        self.asked: list[str] = []
        self.small: list[bool] = []
        self._connection = connection
        self._done: Done | None = None

    def sync(self, done: Done, *, small: bool) -> None:
        self.small.append(small)
        self._ask("sync", done)

    def checkpoint(self, done: Done) -> None:
        self._ask("checkpoint", done)

    def close(self, done: Done) -> None:
        self._connection.close()
        done(None)

    def _ask(self, what: str, done: Done) -> None:
        assert self._done is None, "one thing at a time"
        self.asked.append(what)
        self._done = done

    def does_it(self, wrong: Exception | None = None) -> None:
        assert self._done is not None
        done, self._done = self._done, None
        done(wrong)


class OnDisk(Clocked):
    """On a fake clock, with a :class:`Disk`."""

    def __init__(self, path: Path | str = ":memory:") -> None:
        super().__init__(path)
        self.disk = Disk(self.connection)
        self.database = SQLiteDatabase(self.connection, self.clock, self.disk)

    def begin(self, *jobs: Job[Any], durable: bool = True) -> list[Any]:
        """What the jobs come to, as far as that is told; they are submitted together."""
        told: list[Any] = []
        for job in jobs:
            self.database.submit(job, durable=durable).addCallbacks(
                told.append, lambda failure: told.append(failure.value)
            )
        self.work()
        return told


def test_told_when_synced() -> None:
    """A group is told when the disk has synced it, if one job in it asks for that; what comes meanwhile waits and goes
    together, so that nobody sees what may not be on disk."""
    rig = OnDisk()
    first = rig.begin(insert("a"), insert("b"))
    second = rig.begin(insert("c")), rig.begin(words, durable=False)
    assert (first, second, rig.disk.asked) == ([], ([], []), ["sync"])
    rig.disk.does_it()
    rig.work()
    assert (first, second, rig.disk.asked) == (["a", "b"], ([], []), ["sync", "sync"])
    rig.disk.does_it()
    assert second == (["c"], [["a", "b", "c"]])


def test_told_at_once() -> None:
    """Where nobody asks for that, and what only reads, does not wait for the disk."""
    rig = OnDisk()
    assert rig.begin(insert("a"), words, durable=False) == ["a", ["a"]]
    assert rig.disk.asked == []


def test_what_is_small() -> None:
    """SMALL_PAGES_MAX that have not been synced yet, whoever wrote them; when the WAL begins anew all of it."""
    rig = OnDisk()

    def is_small(pages: int) -> bool:
        """Whether the sync is, when there are so many in the WAL."""
        rig.disk.frames = pages
        rig.begin(insert(f"{len(rig.disk.small)}"))
        rig.disk.does_it()
        rig.work()
        return rig.disk.small[-1]

    most = SMALL_PAGES_MAX
    assert is_small(most)
    assert not is_small(most + most + 1)
    rig.disk.frames += most
    rig.begin(insert("unsynced"), durable=False)
    assert not is_small(rig.disk.frames + 1)
    assert is_small(most)
    rig.disk.frames = CHECKPOINT_FRAMES
    rig.begin(insert("the last one"), durable=False)
    rig.disk.does_it()
    assert not is_small(most + 1)
    assert rig.disk.asked[-2:] == ["checkpoint", "sync"]


def test_what_has_written_nothing() -> None:
    """Need not be synced, if all that was written before is: whether or not its writer waited for that."""
    rig = OnDisk()
    assert rig.begin(words) == []  # what a process before this one has written may not be on disk
    rig.disk.does_it()
    assert rig.begin(words) == [[]]
    rig.begin(insert("a"), durable=False)
    told = rig.begin(words)
    assert (told, len(rig.disk.asked)) == ([], 2)
    rig.disk.does_it(refusal(sqlite3.SQLITE_IOERR_FSYNC, "disk I/O error"))
    told = rig.begin(words)
    assert (told, len(rig.disk.asked)) == ([], 3)
    rig.disk.does_it()
    assert told == [["a"]]
    assert rig.begin(words) == [["a"]]


def test_not_synced() -> None:
    """Of a group that could not be synced everybody hears that it is not known to be kept, but for those who have a
    verdict of their own; and nobody sees it before all that was written is on disk."""
    rig = OnDisk()
    verdict = NotFound("no such word")
    told = rig.begin(insert("a"), fail(verdict))
    rig.disk.does_it(refusal(sqlite3.SQLITE_IOERR_FSYNC, "disk I/O error"))
    assert isinstance(told[0], Unavailable)
    assert told[1] is verdict
    assert rig.database.problem is not None
    seen = statements(rig.connection, "PRAGMA wal_checkpoint", "PRAGMA synchronous", "COMMIT")
    assert rig.begin(words) == []
    assert seen[:3] == ["PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA synchronous=FULL", "COMMIT"]
    rig.disk.does_it()
    assert rig.database.problem is None


def test_nothing_is_shown_in_doubt(tmp_path: Path) -> None:
    """As long as what was written cannot be carried over to where it is safe, who reads is refused too."""
    rig = OnDisk(tmp_path / "words.db")
    rig.begin(insert("a"), durable=False)
    other = sqlite3.connect(tmp_path / "words.db", isolation_level=None)
    other.execute("BEGIN")
    words(other)
    rig.begin(insert("b"))
    rig.disk.does_it(refusal(sqlite3.SQLITE_IOERR_FSYNC, "disk I/O error"))
    (told,) = rig.begin(words, durable=False)
    assert isinstance(told, Unavailable)
    other.close()
    assert rig.begin(words, durable=False) == [["a", "b"]]
    rig.connection.close()


@pytest.mark.parametrize("wrong", [None, refusal(sqlite3.SQLITE_FULL, "database or disk is full")], ids=repr)
def test_checkpoint(wrong: Exception | None) -> None:
    """When the WAL has grown to CHECKPOINT_FRAMES nothing is written until it has been carried over; a checkpoint that
    fails is a problem with the disk like any other."""
    rig = OnDisk()
    rig.disk.frames = CHECKPOINT_FRAMES - 1
    rig.begin(insert("a"), durable=False)
    assert rig.disk.asked == []
    rig.disk.frames = CHECKPOINT_FRAMES
    rig.begin(insert("b"), durable=False)
    later = rig.begin(insert("c"), durable=False)
    assert (rig.disk.asked, later) == (["checkpoint"], [])
    rig.disk.frames = 0
    rig.disk.does_it(wrong)
    assert (rig.database.problem is None) is (wrong is None)
    rig.work()
    assert later == ["c"]


async def test_not_durable_is_written(rig: Rig) -> None:
    """What nobody waits for is written like the rest."""
    assert await rig.submit(insert("a"), durable=False) == ["a"]
    assert await rig.submit(words) == [["a"]]


async def test_cancelled(rig: Rig) -> None:
    """Cancelling the wait does not undo the job."""
    go_on = rig.hold()
    waiting = rig.database.submit(insert("a"))
    waiting.addErrback(lambda _: None)
    waiting.cancel()
    go_on()
    assert await rig.submit(words) == [["a"]]


async def test_close_writes(rig: Rig) -> None:
    """What was submitted before the end is written before it."""
    results: list[str] = []
    for number in range(GROUP_JOBS_MAX + 1):
        rig.database.submit(insert(str(number))).addCallback(results.append)
    await rig.database.close()
    assert len(results) == GROUP_JOBS_MAX + 1


async def test_after_close(rig: Rig) -> None:
    """After the end nothing is taken, and another close ends well."""
    closed = rig.database.close()
    refusals: list[Any] = []
    rig.database.submit(words).addErrback(lambda failure: refusals.append(failure.value))
    await closed
    rig.database.submit(words).addErrback(lambda failure: refusals.append(failure.value))
    await rig.database.close()
    assert [type(refusal) for refusal in refusals] == [ShuttingDown, ShuttingDown]
    assert refusals[0].detail == "this node is shutting down"


async def test_queue_jobs_max(rig: Rig) -> None:
    """QUEUE_JOBS_MAX jobs may wait for the disk; one more is refused at once, and taken when there is room again."""

    def job(connection: sqlite3.Connection) -> None:
        pass

    go_on = rig.hold()
    for _ in range(QUEUE_JOBS_MAX - 1):
        rig.database.submit(job)
    last: Deferred[None] = rig.database.submit(job)
    refusals: list[Any] = []
    rig.database.submit(job).addErrback(lambda failure: refusals.append(failure.value))
    assert [(refusal.detail, refusal.retry_after_s) for refusal in refusals] == [("the disk does not keep up", RETRY_S)]
    go_on()
    rig.work()
    await last
    assert await rig.submit(insert("a")) == ["a"]


async def test_on_disk_when_told(tmp_path: Path) -> None:
    """When a result is told, another process's connection sees what was written."""
    rig = Threaded(tmp_path / "words.db")
    await rig.submit(insert("a"))
    other = sqlite3.connect(tmp_path / "words.db")
    assert words(other) == ["a"]
    other.close()
    await rig.database.close()
