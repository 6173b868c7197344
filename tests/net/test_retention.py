"""What is no longer kept, when, and what becomes of the space."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec import Raw
from twisted.internet.defer import succeed

from meshproto.core.envelope import Letter
from meshproto.core.identity import Record
from meshproto.core.queue import Status
from meshproto.errors import Unavailable
from meshproto.net.database_file import connect
from meshproto.net.outbox_table import Accepted, Draft
from meshproto.net.retention import DAY_S, ENDS_KEPT_S, IDS_KEPT_S, LOOK_S, PAUSE_S, Keep, Retention
from meshproto.net.store import SQLiteDatabase
from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION, UserStore
from meshproto.wire import SignedRecord
from tests.net.on_clock import OnClock

DAY_MS = int(DAY_S * 1000)
NOW_MS = 1000 * DAY_MS


class Rig:
    def __init__(self, disk: OnClock) -> None:
        self.disk = disk
        self.store = UserStore(disk.database)
        self.programs = SimpleNamespace(cursor=None)
        self.history = SimpleNamespace(purge=lambda: succeed(None))
        self.ahead_ms = 0
        self.mail_keys_made_ms = [NOW_MS]

    def now_ms(self) -> int:
        return NOW_MS + self.ahead_ms + int(self.disk.clock.seconds() * 1000)

    def keep(self, days: float | None = None, messages: int | None = None) -> Retention:
        retention = Retention(
            Keep(days, messages),
            self.store,
            cast(Any, self.programs),
            cast(Any, self.history),
            self.disk.clock,
            self.now_ms,
            lambda: self.mail_keys_made_ms,
        )
        retention.startService()
        return retention

    def arrive(self, *ids: str, text: str = "hi", days_ago: float = 0) -> None:
        letters = [Letter(id_, Raw(f'"{text}"'.encode()), 1) for id_ in ids]
        record = Record("Bob", [], "key", "mail", 1)
        at = self.now_ms() - int(days_ago * DAY_MS)
        self.disk.run(self.store.inbox.receive(record, SignedRecord("r", "s"), letters, at))

    def sent(self, *ids: str, ended_days_ago: float | None = None) -> None:
        at = self.now_ms() - int((ended_days_ago or 0) * DAY_MS)
        accepted = self.disk.run(
            self.store.outbox.accept([Draft("bob", id_, "Bob", "", b"1", at, at + 1) for id_ in ids])
        )
        rows = [one.message.row for one in accepted if isinstance(one, Accepted)]
        if ended_days_ago is not None:
            self.disk.run(self.store.outbox.finish(rows, Status.DELIVERED, None, at))

    def run(self, seconds: float) -> None:
        """Let time go by, and what is due then work, a portion at each step."""
        self.disk.clock.advance(seconds)
        for _ in range(200):
            self.disk.clock.advance(PAUSE_S)

    @property
    def inbox(self) -> list[str]:
        return [one.id for one in self.disk.run(self.store.inbox.page(0, None, 1000))]

    @property
    def outbox(self) -> list[str]:
        return [one.id for one in self.disk.run(self.store.outbox.page(None, None, None, 1000)).messages]


@pytest.fixture
def rig() -> Iterator[Rig]:
    disk = OnClock(SCHEMA, SCHEMA_VERSION)
    yield Rig(disk)
    disk.close()


def test_all_is_kept(rig: Rig) -> None:
    """Without options the inbox keeps everything, however old."""
    rig.keep()
    rig.arrive("old", days_ago=900)
    rig.run(2 * LOOK_S)
    assert rig.inbox == ["old"]


def test_days(rig: Rig) -> None:
    """What is older goes when it is looked for, and then the next when it has become so."""
    rig.keep(days=2)
    rig.arrive("older", days_ago=2.1)
    rig.arrive("old", days_ago=1.5)
    rig.arrive("new")
    rig.run(LOOK_S + 5)
    assert rig.inbox == ["old", "new"]
    rig.ahead_ms = DAY_MS
    rig.run(LOOK_S + 5)
    assert rig.inbox == ["new"]


def test_messages(rig: Rig) -> None:
    """The last so many stay, of more than one portion."""
    rig.keep(messages=3)
    for number in range(3):
        rig.arrive(*(f"{number}-{one}" for one in range(700)))
    rig.run(LOOK_S + 5)
    assert rig.inbox == ["2-697", "2-698", "2-699"]


def test_what_a_program_has_not_got(rig: Rig) -> None:
    """It stays until the program has it."""
    rig.programs.cursor = 1
    rig.keep(messages=0)
    rig.arrive("a", "b", "c")
    rig.run(LOOK_S + 5)
    assert rig.inbox == ["b", "c"]


def test_ids_are_known_longer(rig: Rig) -> None:
    """A message that comes again after its text is gone is not taken again, for IDS_KEPT_S."""
    rig.keep(days=1)
    rig.arrive("a", days_ago=2)
    rig.run(LOOK_S + 5)
    rig.arrive("a")
    assert rig.inbox == []
    rig.ahead_ms = int(IDS_KEPT_S * 1000) - DAY_MS
    rig.run(2 * LOOK_S)
    rig.arrive("a")
    assert rig.inbox == ["a"]


@pytest.mark.parametrize(
    ("made_days_ago", "known"),
    [
        ([0, 35], False),  # the oldest key is younger than the message: that was for one before it
        ([0, 41], True),
        ([-1, 35], True),  # the clock was wrong when the latest was made, or is now
    ],
)
def test_ids_are_known_as_long_as_a_key_opens_what_they_came_in(
    rig: Rig, made_days_ago: list[int], known: bool
) -> None:
    """However long ago that was: who has recorded the batch can send it again."""
    rig.mail_keys_made_ms = [NOW_MS - days * DAY_MS for days in made_days_ago]
    rig.keep(messages=0)
    rig.arrive("a", days_ago=40)
    rig.run(2 * LOOK_S)
    rig.arrive("a")
    assert rig.inbox == ([] if known else ["a"])


@pytest.mark.parametrize(("days", "kept"), [(None, ENDS_KEPT_S), (3.0, 3 * DAY_S), (0.1, DAY_S)])
def test_ends(rig: Rig, days: float | None, kept: float) -> None:
    """What was sent and has ended is known for as long, a day at least; what waits stays, however old."""
    rig.keep(days=days)
    rig.sent("waits")
    rig.sent("older", ended_days_ago=kept / DAY_S + 0.1)
    rig.sent("newer", ended_days_ago=kept / DAY_S - 0.1)
    rig.run(LOOK_S + 5)
    assert rig.outbox == ["newer", "waits"]


def test_a_disk_that_refuses(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for again later."""
    rig.keep(messages=0)
    rig.arrive("a")

    async def refuse(*_: object) -> None:
        raise Unavailable("the disk does not take it: full")

    with monkeypatch.context() as patch:
        patch.setattr(rig.store.inbox, "prune", refuse)
        rig.run(LOOK_S + 5)
        assert rig.inbox == ["a"]
    rig.run(LOOK_S + 5)
    assert rig.inbox == []


def test_it_stops(rig: Rig) -> None:
    """With the service nothing is left to do."""
    retention = rig.keep(messages=0)
    retention.stopService()
    assert rig.disk.clock.getDelayedCalls() == []


def test_the_space_is_given_back(tmp_path: Path) -> None:
    """A file of some megabytes is small again when its messages are no longer kept."""
    path = tmp_path / "user.db"
    disk = OnClock(SCHEMA, SCHEMA_VERSION)
    disk.close()
    disk.connection = connect(path, SCHEMA, SCHEMA_VERSION)
    disk.database = SQLiteDatabase(disk.connection, disk.clock)
    rig = Rig(disk)
    for number in range(20):
        rig.arrive(*(f"{number}-{one}" for one in range(100)), text="x" * 2000)

    def size() -> int:
        disk.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.stat().st_size

    before = size()
    rig.keep(messages=10)
    rig.run(LOOK_S + 10)
    assert len(rig.inbox) == 10
    assert before > 4_000_000
    assert size() < before / 5
    disk.database.close()
