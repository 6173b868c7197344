"""When the disk refuses: at the start, and at run time, over both databases on a real file."""

import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import DeferredList
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from zope.interface import implementer

from meshproto.errors import BadState, NotFound, Unavailable
from meshproto.net import database_file
from meshproto.net.database_file import connect
from meshproto.net.store import GROUP_JOBS_MAX, LOCK_WAIT_MS, RETRY_S
from tests.net.store_rig import SCHEMA, VERSION, Clocked, Rig, Threaded, fail, insert, refusal, statements, words

LARGE = "x" * 100_000
FULL = "the disk does not take it: database or disk is full (words.db); free space on its file system"
BROKEN = "the disk does not take it: disk I/O error (words.db); look at its disk, and at the space and quota left"
LOCKED = (
    "the disk does not take it: database is locked (words.db); end the program that has locked it (fuser shows which)"
)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(database_file, "BUSY_TIMEOUT_S", 0.01)
    return tmp_path / "words.db"


@pytest.fixture(params=[Threaded, Clocked])
def rig(request: pytest.FixtureRequest, path: Path) -> Iterator[Rig]:
    rig: Rig = request.param(path)
    yield rig
    pytest_twisted.blockon(rig.database.close())


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    """What the databases log."""
    events: list[LogEvent] = []

    @implementer(ILogObserver)
    def keep(event: LogEvent) -> None:
        if event.get("log_namespace", "").startswith("meshproto.net.store"):
            events.append(event)

    globalLogPublisher.addObserver(keep)
    yield events
    globalLogPublisher.removeObserver(keep)


@contextmanager
def full(connection: sqlite3.Connection) -> Iterator[None]:
    """The disk has no room for another page, and those that are there are in use. (What SQLite says is what it says of
    a full disk; a disk that is really full is in tests/test_full_disk.py.)"""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages}")
    yield
    connection.execute("PRAGMA max_page_count=1000000")


@contextmanager
def broken(path: Path) -> Iterator[None]:
    """The system refuses what would make a file longer than the WAL is: a real I/O error, with no need to be root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Another program writes, and does not end."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other
        other.execute("ROLLBACK")


class Refusal:
    """Equal to a refusal with this sentence, and a time to come back."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unavailable) and (other.detail, other.retry_after_s) == (self.sentence, RETRY_S)

    def __hash__(self) -> int:
        return hash(self.sentence)

    def __repr__(self) -> str:
        return f"Refusal({self.sentence!r})"


async def test_a_disk_that_takes_it(rig: Rig, logged: list[LogEvent]) -> None:
    """While all goes well there is no problem, and nothing is logged."""
    assert await rig.submit(insert("a"), insert("b")) == ["a", "b"]
    assert rig.database.problem is None
    assert logged == []


async def test_full(rig: Rig) -> None:
    """What does not fit is refused with what to do; what fits is written, in the same group and after it, so there is
    no problem with the disk itself; when there is room again it fits."""
    with full(rig.connection):
        assert await rig.submit(insert("a"), insert(LARGE), insert("b")) == ["a", Refusal(FULL), "b"]
        assert rig.database.problem is None
        assert await rig.submit(insert("c")) == ["c"]
    assert await rig.submit(insert(LARGE), words) == [LARGE, ["a", "b", "c", LARGE]]


async def test_broken(rig: Rig, path: Path) -> None:
    """While nothing can be written, writing is refused with what the disk said, and reading goes on; afterwards the
    same connection writes again, without a restart, and nothing that was refused is there."""
    await rig.submit(insert("a"))
    with broken(path):
        assert await rig.submit(insert("b"), words, insert("c")) == [Refusal(BROKEN), ["a"], Refusal(BROKEN)]
        assert rig.database.problem == BROKEN
        assert await rig.submit(insert("d"), words) == [Refusal(BROKEN), ["a"]]
    assert await rig.submit(insert("e")) == ["e"]
    assert rig.database.problem is None
    assert rig.connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with closing(sqlite3.connect(path)) as other:
        assert words(other) == ["a", "e"]


async def test_one_line_each(rig: Rig, path: Path, logged: list[LogEvent]) -> None:
    """The log has one error line when the disk begins to refuse and one line when it takes again, whatever happens in
    between; both name the file."""
    with broken(path):
        for _ in range(3):
            await rig.submit(*(insert(str(number)) for number in range(10)))
    for number in range(3):
        await rig.submit(insert(str(number)))
    assert [event["log_level"] for event in logged] == [LogLevel.error, LogLevel.info]
    assert all(event["path"] == str(path) for event in logged)


async def test_reading_ends_a_problem(rig: Rig, path: Path) -> None:
    """Whoever only reads finds out as well that the disk takes it again: a status that is asked for is not stale."""
    with broken(path):
        await rig.submit(insert("a"))
        assert rig.database.problem == BROKEN
        await rig.submit(words)
        assert rig.database.problem == BROKEN
    await rig.submit(words)
    assert rig.database.problem is None


async def test_a_large_group_is_not_tried_one_by_one(rig: Rig, path: Path) -> None:
    """Where nothing can be written the jobs of a full group do not each meet the disk: there are a few attempts."""
    ran = 0

    def job(connection: sqlite3.Connection) -> None:
        nonlocal ran
        insert(str(ran))(connection)
        ran += 1  # counts the jobs that came through their statement; only then would a commit follow

    with broken(path):
        seen = statements(rig.connection, "COMMIT")
        outcomes = await rig.submit(*[job] * GROUP_JOBS_MAX)
        assert outcomes == [Refusal(BROKEN)] * GROUP_JOBS_MAX
    assert len(seen) <= 4
    assert ran <= 2 * GROUP_JOBS_MAX


async def test_own_failures_stay_own(rig: Rig, path: Path) -> None:
    """Also while the disk refuses everything a job's own verdict, and its bug, are what they are."""
    verdict, bug = NotFound("no such word"), KeyError("a bug")
    with broken(path):
        assert await rig.submit(fail(verdict), insert("a"), fail(bug)) == [verdict, Refusal(BROKEN), bug]


@pytest.mark.parametrize(
    "code",
    [
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR_FSYNC,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_BUSY_SNAPSHOT,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_CANTOPEN,
    ],
)
async def test_one_job_that_the_disk_refuses(rig: Rig, code: int) -> None:
    """Whatever the disk has against one job, the others of its group are written, and so is the next."""
    first, second, third = await rig.submit(insert("a"), fail(refusal(code, "no")), insert("b"))
    assert (first, third) == ("a", "b")
    assert second.detail.startswith("the disk does not take it: no (words.db); ")
    assert second == Refusal(second.detail)
    assert rig.database.problem is None
    assert await rig.submit(insert("c"), words) == ["c", ["a", "b", "c"]]


async def test_an_unsynced_wal_is_emptied_first(rig: Rig) -> None:
    """After an I/O error nothing is written before the WAL has been carried into the database: what failed to be synced
    there is not behind what is acknowledged later."""
    await rig.submit(insert("a"))
    seen = statements(rig.connection, "PRAGMA wal_checkpoint", "BEGIN", "COMMIT")
    await rig.submit(fail(refusal(sqlite3.SQLITE_IOERR_FSYNC, "disk I/O error")))
    failed = len(seen) - 1 - seen[::-1].index("BEGIN IMMEDIATE")
    assert seen[failed - 1] == "PRAGMA wal_checkpoint(TRUNCATE)"


async def test_a_reader_keeps_the_wal_after_an_error(rig: Rig, path: Path) -> None:
    """As long as another program reads, so that the WAL cannot be emptied, an I/O error is not over."""
    await rig.submit(insert("a"))
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        words(reader)
        await rig.submit(fail(refusal(sqlite3.SQLITE_IOERR_FSYNC, "disk I/O error")))
        problem = rig.database.problem or ""
        assert "words.db is being read by another program after an I/O error; end the program" in problem
        assert await rig.submit(insert("b")) == [Refusal(problem)]
        reader.execute("COMMIT")
    assert await rig.submit(insert("b")) == ["b"]


async def test_locked(rig: Rig, path: Path) -> None:
    """While another program holds its lock writing is refused, and reading goes on; when the lock is gone it is
    taken."""
    with locked(path):
        assert await rig.submit(insert("a"), words) == [Refusal(LOCKED), []]
        assert rig.database.problem == LOCKED
        assert await rig.submit(insert("a"), words) == [Refusal(LOCKED), []]
    assert await rig.submit(insert("a")) == ["a"]
    assert rig.database.problem is None


async def test_a_lock_is_waited_for_once(rig: Rig, path: Path) -> None:
    """Of those that find a lock the first wait for LOCK_WAIT_MS; until it is gone nobody else does, and then the
    patience is as before."""

    def patience_ms(connection: sqlite3.Connection) -> int:
        (timeout_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
        return int(timeout_ms)

    assert await rig.submit(patience_ms) == [LOCK_WAIT_MS]
    with locked(path):
        assert await rig.submit(insert("a"), patience_ms) == [Refusal(LOCKED), 0]
    assert await rig.submit(insert("a"), patience_ms) == ["a", LOCK_WAIT_MS]


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB])
async def test_damaged_at_run_time(rig: Rig, code: int) -> None:
    """Once a damage has shown nothing is written any more, though it could be; reading goes on; a restart, which looks
    at the whole file, decides."""
    await rig.submit(insert("a"))
    damage = "the disk does not take it: malformed (words.db); stop the node and restore a backup"
    assert await rig.submit(fail(refusal(code, "malformed"))) == [Refusal(damage)]
    assert await rig.submit(insert("b"), words) == [Refusal(damage), ["a"]]
    assert rig.database.problem == damage


async def test_a_page_is_damaged(rig: Rig, path: Path) -> None:
    """A damage that is really there, in the middle of the file, is met as such."""
    await rig.submit(*(insert(f"{number:05}" * 100) for number in range(200)))
    rig.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage_pages(path)
    rig.connection.execute("PRAGMA cache_size=0")
    rig.connection.execute("PRAGMA shrink_memory")
    (outcome,) = await rig.submit(words)
    assert "malformed (words.db); stop the node and restore a backup" in outcome.detail
    assert outcome == Refusal(rig.database.problem or "")


def damage_pages(path: Path) -> None:
    """All but the first few pages are overwritten."""
    with path.open("r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xff" * (path.stat().st_size - 5 * 4096))


LOST = (
    "the disk does not take it: words.db was deleted or replaced while in use; stop the node, then put the file back "
    "or restore a backup, and start again"
)


async def test_deleted(rig: Rig, path: Path) -> None:
    """When the file is gone nothing is acknowledged any more; what was written can still be read. When the very file is
    put back it goes on."""
    await rig.submit(insert("a"))
    path.rename(path.with_suffix(".away"))
    assert await rig.submit(insert("b"), words) == [Refusal(LOST), ["a"]]
    assert rig.database.problem == LOST
    path.with_suffix(".away").rename(path)
    assert await rig.submit(insert("c"), words) == ["c", ["a", "c"]]
    assert rig.database.problem is None


async def test_the_directory_is_removed(rig: Rig, path: Path) -> None:
    """The same when the whole directory is removed."""
    await rig.submit(insert("a"))
    shutil.rmtree(path.parent)
    assert await rig.submit(insert("b"), words) == [Refusal(LOST), ["a"]]


async def test_replaced(rig: Rig, path: Path) -> None:
    """A file that was put in the place of the one in use is not taken for it, and not written to."""
    await rig.submit(insert("a"))
    backup = path.with_suffix(".backup")
    with closing(connect(backup, SCHEMA, VERSION)):
        pass
    backup.rename(path)
    before = path.read_bytes()
    assert await rig.submit(insert("b"), words) == [Refusal(LOST), ["a"]]
    assert path.read_bytes() == before


async def test_the_wal_is_deleted(rig: Rig, path: Path) -> None:
    """Without the WAL nothing is acknowledged any more; what was acknowledged before is saved into the database."""
    await rig.submit(insert("a"))
    Path(f"{path}-wal").unlink()
    lost = "the disk does not take it: words.db-wal was deleted or replaced while in use; restart the node"
    assert await rig.submit(insert("b")) == [Refusal(lost)]
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)  # as a kill would leave it
    with closing(connect(copy, SCHEMA, VERSION)) as connection:
        assert words(connection) == ["a"]


async def test_close_while_it_refuses(rig: Rig, path: Path) -> None:
    """The end comes also when what waits cannot be written; everyone is told."""
    with broken(path):
        told = DeferredList([rig.database.submit(insert(str(number))) for number in range(10)], consumeErrors=True)
        await rig.database.close()
        outcomes: list[Any] = await told
        assert [failure.value for _, failure in outcomes] == [Refusal(BROKEN)] * 10


class TestConnect:
    def test_damaged(self, path: Path) -> None:
        """A damaged file is refused with one finding and what to do, and left as it is, with its WAL."""
        writer = connect(path, SCHEMA, VERSION)
        for number in range(200):
            insert(f"{number:05}" * 100)(writer)
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        insert("in the WAL")(writer)
        copy = path.with_name("copy.db")
        shutil.copy(path, copy)
        shutil.copy(f"{path}-wal", f"{copy}-wal")
        writer.close()
        damage_pages(copy)
        before = copy.read_bytes(), Path(f"{copy}-wal").read_bytes()
        with pytest.raises(BadState) as raised:
            connect(copy, SCHEMA, VERSION)
        assert raised.value.detail.startswith(f"{copy} is damaged (")
        assert raised.value.detail.endswith(
            "): restore a backup (docs/operating.md says how); the file is left as it is"
        )
        assert "\n" not in raised.value.detail
        assert (copy.read_bytes(), Path(f"{copy}-wal").read_bytes()) == before

    def test_what_was_killed_is_not_damaged(self, path: Path) -> None:
        """A database with a WAL of a process that was killed, torn at its end, has what was committed."""
        writer = connect(path, SCHEMA, VERSION)
        insert("a")(writer)
        copy = path.with_name("copy #1?.db")
        shutil.copy(path, copy)
        shutil.copy(f"{path}-wal", f"{copy}-wal")
        writer.close()
        with Path(f"{copy}-wal").open("ab") as file:
            file.write(b"torn")
        with closing(connect(copy, SCHEMA, VERSION)) as connection:
            assert words(connection) == ["a"]

    def test_locked(self, path: Path) -> None:
        """A database that another program has locked is refused with that, and who it is can be found out."""
        connect(path, SCHEMA, VERSION).close()
        with locked(path), pytest.raises(BadState, match=r"words.db is locked by another program: end it \(fuser "):
            connect(path, SCHEMA, VERSION)
        connect(path, SCHEMA, VERSION).close()

    def test_exclusively_locked(self, path: Path) -> None:
        """Also when the other does not even let it be read."""
        connect(path, SCHEMA, VERSION).close()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("PRAGMA locking_mode=EXCLUSIVE")
            other.execute("INSERT INTO words VALUES ('a')")
            with pytest.raises(BadState, match=r"words.db is locked by another program"):
                connect(path, SCHEMA, VERSION)

    def test_only_to_be_read(self, path: Path) -> None:
        """A database that SQLite opens but could not write is refused at once, not at the first message."""
        connect(path, SCHEMA, VERSION).close()
        with pytest.raises(BadState, match=r"is read-only: make the file and its file system writable$"):
            connect(f"{path.as_uri()}?mode=ro", SCHEMA, VERSION)

    def test_read_only_file_system(self, path: Path, tmp_path: Path) -> None:
        """On a file system that is read-only it is refused with that."""
        place = tmp_path / "mounted"
        place.mkdir()
        with mounted(place) as remount:
            connect(place / "words.db", SCHEMA, VERSION).close()
            remount("ro")
            with pytest.raises(BadState, match=r"is in a read-only directory: make the file and its file system"):
                connect(place / "words.db", SCHEMA, VERSION)
            remount("rw")
            connect(place / "words.db", SCHEMA, VERSION).close()

    def test_no_room(self, path: Path, tmp_path: Path) -> None:
        """Where there is no room for a new database that is said, and nothing else."""
        place = tmp_path / "mounted"
        place.mkdir()
        with mounted(place):
            fill(place / "ballast")
            with pytest.raises(BadState, match=r"there is no room for .*words.db: free space"):
                connect(place / "words.db", SCHEMA, VERSION)
            (place / "ballast").unlink()
            connect(place / "words.db", SCHEMA, VERSION).close()


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            return


@contextmanager
def mounted(place: Path) -> Iterator[Any]:
    """A file system of its own, and a function that mounts it again with other options."""

    def mount(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["mount", *arguments, str(place)], capture_output=True, check=False)

    if shutil.which("mount") is None or mount("-t", "tmpfs", "-o", "size=256k", "tmpfs").returncode:
        pytest.skip("this needs a file system of its own, and we may not mount one")
    try:
        yield lambda options: mount("-o", f"remount,{options}").check_returncode()
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
