"""One suite for both databases: the thread with a real file, and the one on a fake clock in memory."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import Clock

from meshproto.errors import BadState, NotFound, Unavailable
from meshproto.net.store import (
    GROUP_JOBS_MAX,
    QUEUE_JOBS_MAX,
    RETRY_S,
    ClockedDatabase,
    Database,
    Job,
    ThreadedDatabase,
    connect,
)

SCHEMA = "CREATE TABLE words (word TEXT PRIMARY KEY)"

T = TypeVar("T")


class Rig:
    """A database, its connection to look at, and what is needed to have its work done."""

    database: Database
    connection: sqlite3.Connection

    def hold(self) -> Callable[[], object]:
        """Whatever is submitted until the returned function is called gathers."""
        raise NotImplementedError

    def work(self) -> None:
        """Do what does not do itself."""

    async def submit(self, *jobs: Job[Any]) -> list[Any]:
        """Each job's result or the exception it failed with; they are submitted together."""
        go_on = self.hold()
        outcomes = DeferredList([self.database.submit(job) for job in jobs], consumeErrors=True)
        go_on()
        self.work()
        return [result if fine else result.value for fine, result in await outcomes]


class Threaded(Rig):
    def __init__(self, path: Path) -> None:
        from twisted.internet import reactor

        self.connection = connect(path, SCHEMA, 1)
        self.database = ThreadedDatabase(self.connection, reactor)  # type: ignore[arg-type]

    def hold(self) -> Callable[[], object]:
        held, go_on = threading.Event(), threading.Event()

        def wait(_: sqlite3.Connection) -> None:
            held.set()
            go_on.wait(10)

        self.database.submit(wait)
        assert held.wait(10)
        return go_on.set


class Clocked(Rig):
    def __init__(self) -> None:
        self.clock = Clock()
        self.connection = connect(":memory:", SCHEMA, 1)
        self.database = ClockedDatabase(self.connection, self.clock)

    def hold(self) -> Callable[[], object]:
        return self.work

    def work(self) -> None:
        while self.clock.getDelayedCalls():
            self.clock.advance(0)


@pytest.fixture(params=["threaded", "clocked"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    rig: Rig = Threaded(tmp_path / "words.db") if request.param == "threaded" else Clocked()
    yield rig
    pytest_twisted.blockon(rig.database.close())


def insert(word: str) -> Job[str]:
    def job(connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO words VALUES (?)", (word,))
        return word

    return job


def fail(error: Exception) -> Job[None]:
    def job(connection: sqlite3.Connection) -> None:
        raise error

    return job


def words(connection: sqlite3.Connection) -> list[str]:
    return [word for (word,) in connection.execute("SELECT word FROM words ORDER BY rowid")]


def commits(connection: sqlite3.Connection) -> list[str]:
    """A list that grows by one with every COMMIT."""
    seen: list[str] = []
    connection.set_trace_callback(lambda statement: seen.append(statement) if statement == "COMMIT" else None)
    return seen


async def test_result(rig: Rig) -> None:
    """A job's result is what it returned."""
    assert await rig.submit(lambda connection: 42) == [42]


async def test_group_commit(rig: Rig) -> None:
    """Jobs that gather while the disk is busy travel in one transaction."""
    go_on = rig.hold()
    many = DeferredList([rig.database.submit(insert(str(number))) for number in range(100)])
    seen = commits(rig.connection)
    go_on()
    rig.work()
    await many
    assert len(seen) == (2 if isinstance(rig, Threaded) else 1)  # the thread's first one is the job that held it
    assert await rig.submit(words) == [[str(number) for number in range(100)]]


async def test_group_jobs_max(rig: Rig) -> None:
    """One transaction takes GROUP_JOBS_MAX jobs; one more begins another."""
    go_on = rig.hold()
    many = DeferredList([rig.database.submit(insert(str(number))) for number in range(GROUP_JOBS_MAX + 1)])
    seen = commits(rig.connection)
    go_on()
    rig.work()
    await many
    assert len(seen) == (3 if isinstance(rig, Threaded) else 2)


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
    seen = commits(rig.connection)
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


async def test_refused_by_the_database(rig: Rig) -> None:
    """A job that the database does not take is Unavailable for now, with a time to come back; only that one."""
    first, second, third = await rig.submit(insert("a"), fail(sqlite3.OperationalError("disk I/O error")), insert("b"))
    assert (first, third) == ("a", "b")
    assert isinstance(second, Unavailable)
    assert second.detail == "the disk does not take it: disk I/O error"
    assert second.retry_after_s == RETRY_S


async def test_read_only(rig: Rig) -> None:
    """While nothing can be written reading goes on, and writing when it can again."""
    rig.connection.execute("PRAGMA query_only=ON")
    (refused, found) = await rig.submit(insert("a"), words)
    assert isinstance(refused, Unavailable)
    assert "readonly" in refused.detail
    assert found == []
    rig.connection.execute("PRAGMA query_only=OFF")
    assert await rig.submit(insert("a")) == ["a"]


async def test_full_disk(rig: Rig) -> None:
    """On a full disk the job that does not fit is Unavailable, smaller ones of its group are kept, and when there is
    room again it fits."""
    (pages,) = rig.connection.execute("PRAGMA page_count").fetchone()
    rig.connection.execute(f"PRAGMA max_page_count={pages + 2}")
    large = "x" * 100_000
    first, second, third = await rig.submit(insert("a"), insert(large), insert("b"))
    assert (first, third) == ("a", "b")
    assert isinstance(second, Unavailable)
    assert "full" in second.detail
    rig.connection.execute("PRAGMA max_page_count=1000000")
    assert await rig.submit(insert(large)) == [large]


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
    assert isinstance(second, Unavailable)
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
    assert [type(refusal) for refusal in refusals] == [Unavailable, Unavailable]
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


class TestConnect:
    def test_durable(self, tmp_path: Path) -> None:
        """The journal is a WAL, and every commit waits for the disk (FULL = 2)."""
        connection = connect(tmp_path / "words.db", SCHEMA, 1)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        connection.close()

    def test_again(self, tmp_path: Path) -> None:
        """A database opened again has what it had; its schema is made once."""
        connection = connect(tmp_path / "words.db", SCHEMA, 7)
        insert("a")(connection)
        connection.close()
        connection = connect(tmp_path / "words.db", SCHEMA, 7)
        assert words(connection) == ["a"]
        assert connection.execute("PRAGMA user_version").fetchone() == (7,)
        connection.close()

    def test_damaged(self, tmp_path: Path) -> None:
        """A file that is no database is refused with the file's name and what to do."""
        path = tmp_path / "words.db"
        path.write_bytes(b"this is no database" * 1000)
        with pytest.raises(BadState, match=r"words.db cannot be opened.*not a database.*restore it from a backup"):
            connect(path, SCHEMA, 1)

    def test_other_version(self, tmp_path: Path) -> None:
        """A database of another schema is left alone, and the refusal says which version to use."""
        connect(tmp_path / "words.db", SCHEMA, 2).close()
        with pytest.raises(BadState, match=r"another version of meshproto \(schema 2\): use that version"):
            connect(tmp_path / "words.db", SCHEMA, 1)
        connect(tmp_path / "words.db", SCHEMA, 2).close()

    def test_upgrade(self, tmp_path: Path) -> None:
        """A database of a former schema is brought forward step by step, and a copy of it stands beside it."""
        first = connect(tmp_path / "words.db", SCHEMA, 1)
        insert("a")(first)
        first.close()
        steps = {1: "ALTER TABLE words ADD COLUMN a", 2: "ALTER TABLE words ADD COLUMN b"}
        connection = connect(tmp_path / "words.db", "not used", 3, steps)
        assert connection.execute("SELECT * FROM words").fetchall() == [("a", None, None)]
        connection.close()
        copy = connect(tmp_path / "words.db.schema1", SCHEMA, 1)
        assert words(copy) == ["a"]
        copy.close()
        assert (tmp_path / "words.db.schema1").stat().st_mode & 0o777 == 0o600

    def test_upgrade_whole_or_not_at_all(self, tmp_path: Path) -> None:
        """A step that fails leaves the database as it was, for the next attempt."""
        connect(tmp_path / "words.db", SCHEMA, 1).close()
        for _ in range(2):
            with pytest.raises(BadState):
                connect(tmp_path / "words.db", SCHEMA, 3, {1: "ALTER TABLE words ADD COLUMN a", 2: "nonsense"})
        connect(tmp_path / "words.db", SCHEMA, 1).close()

    def test_a_step_is_missing(self, tmp_path: Path) -> None:
        """Without a way from its schema to this one a database is left alone."""
        connect(tmp_path / "words.db", SCHEMA, 1).close()
        with pytest.raises(BadState, match=r"\(schema 1\): use that version"):
            connect(tmp_path / "words.db", SCHEMA, 3, {2: "ALTER TABLE words ADD COLUMN b"})

    def test_no_directory(self, tmp_path: Path) -> None:
        """Where no file can be made the reason is told, and no backup is asked for."""
        with pytest.raises(BadState, match=r"unable to open database file$"):
            connect(tmp_path / "missing" / "words.db", SCHEMA, 1)

    def test_schema_whole_or_not_at_all(self, tmp_path: Path) -> None:
        """A schema that cannot be made leaves nothing behind, so that the next start can make it."""
        with pytest.raises(BadState):
            connect(tmp_path / "words.db", f"{SCHEMA}; CREATE TABLE words (a)", 1)
        connect(tmp_path / "words.db", SCHEMA, 1).close()
