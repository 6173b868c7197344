"""What many watchers are told: all of them, in the end, and never so many at a time that others wait for it."""

import random
from collections.abc import Iterator

import msgspec
import pytest
from twisted.internet.address import IPv4Address
from twisted.logger import LogEvent

from meshproto import wire
from meshproto.core.seed import Seed
from meshproto.net import seed_store
from meshproto.net.lines import Lines, LinesFactory
from meshproto.net.news import News
from meshproto.net.seeding import SeedService
from meshproto.net.turns import AT_ONCE_LINES, SLICE_LINES, SLICE_S, TURN_LINES, TURN_S, Turns
from tests.core.users import signed
from tests.net.on_clock import OnClock
from tests.net.pipe import Pipe
from tests.net.test_turns import TICK_S, Stepping, Street

MANY = 10 * TURN_LINES


class Told:
    """`told` has (link, name, line) in order."""

    def __init__(self) -> None:
        self.street = Street()
        self.told: list[tuple[int, str, bytes]] = []
        self.news = News(self.street.turns, self.tell)

    def tell(self, link: int, name: str, line: bytes) -> None:
        self.told.append((link, name, line))
        self.street.now += self.street.line_s

    def turn(self) -> list[tuple[int, str, bytes]]:
        """What is told in the next turn of the reactor."""
        before = len(self.told)
        self.street.turn()
        return self.told[before:]


@pytest.fixture
def told() -> Told:
    return Told()


def test_a_few_are_told_at_once(told: Told) -> None:
    told.news.spread("userx", b"new", [3, 1, 2])
    assert told.told == [(3, "userx", b"new"), (1, "userx", b"new"), (2, "userx", b"new")]


def test_many_are_told_in_turns(told: Told) -> None:
    """A turn has no more than TURN_LINES, and all are told in the end, each once."""
    told.news.spread("userx", b"new", range(MANY))
    assert len(told.told) == SLICE_LINES
    while turn := told.turn():
        assert len(turn) <= TURN_LINES
    assert [link for link, _, _ in told.told] == list(range(MANY))


def test_slow_ones_are_fewer(told: Told) -> None:
    """A slice ends after SLICE_S, and a turn after TURN_S."""
    told.street.line_s = SLICE_S / 2
    told.news.spread("userx", b"new", range(MANY))
    assert len(told.told) == 2
    assert len(told.turn()) == TURN_S / told.street.line_s


def test_others_are_answered_in_between(told: Told) -> None:
    """A single question when it comes, and those who pipeline get as much of a turn as all news."""
    told.news.spread("userx", b"new", range(MANY))
    told.street.link(1, "10.0.0.1").dataReceived(b"?\n" * MANY)
    told.street.took()
    told.turn()
    for _ in range(5):
        told.street.took()
        assert len(told.turn()) == pytest.approx(TURN_LINES / 2, rel=0.3)
        assert told.street.took()["1"] == pytest.approx(TURN_LINES / 2, rel=0.3)
        quiet = told.street.link(2, "10.0.0.2")
        quiet.dataReceived(b"?\n")
        assert told.street.took() == {"2": 1}


def test_many_changes_in_one_turn(told: Told) -> None:
    """When the turn is used up each change has AT_ONCE_LINES told, at most, and the rest later."""
    for number in range(1000):
        told.news.spread(f"user{number}", b"new", range(100))
    assert len(told.told) <= TURN_LINES + SLICE_LINES + 1000 * AT_ONCE_LINES
    while told.turn():
        pass
    assert len(set(told.told)) == len(told.told) == 100_000


def test_a_name_that_changes_again_is_told_of_once(told: Told) -> None:
    """Whoever was not told of it as it was is told of it as it is; so what waits does not grow."""
    told.news.spread("userx", b"old", range(MANY))
    told.turn()
    knew = {link for link, _, _ in told.told}
    for number in range(100):
        told.news.spread("userx", b"%d" % number, range(MANY))
    late = told.turn()
    assert not knew.intersection(link for link, _, _ in late)  # whoever waited longer comes first
    while told.turn():
        pass
    lines = [(link, line) for link, _, line in told.told]
    assert lines == [*((link, b"old") for link in sorted(knew)), *lines[len(knew) :]]
    assert sorted(lines[len(knew) :]) == sorted((link, b"99") for link in range(MANY))


def test_a_name_that_changes_all_the_time_leaves_nobody_out(told: Told) -> None:
    """Between two lines for one link each other one has its own."""
    for number in range(100):
        told.news.spread("userx", b"%d" % number, range(MANY))
        told.turn()
    times = [sum(link == one for link, _, _ in told.told) for one in (0, MANY // 2, MANY - 1)]
    assert max(times) - min(times) <= 1
    assert min(times) >= 5


def test_who_watches_no_more_is_not_told(told: Told) -> None:
    """A change tells those alone who watch by then."""
    told.news.spread("userx", b"old", range(MANY))
    before = len(told.told)
    told.news.spread("userx", b"new", [7, MANY - 1])
    while told.turn():
        pass
    assert sorted(told.told[before:]) == [(7, "userx", b"new"), (MANY - 1, "userx", b"new")]


def test_names_take_turns(told: Told) -> None:
    """One with a single watcher is told of soon, beside one with many."""
    told.news.spread("crowded", b"new", range(MANY))
    told.news.spread("quiet", b"new", [5])
    assert (5, "quiet", b"new") in told.turn()[:2]


def test_one_who_cannot_be_told(told: Told, nothing_logged_as_failure: list[LogEvent]) -> None:
    """Costs no other the news."""
    tell, failing = told.tell, SLICE_LINES + 10

    def fail(link: int, name: str, line: bytes) -> None:
        if link == failing:
            raise ZeroDivisionError
        tell(link, name, line)

    told.news = News(told.street.turns, fail)
    told.news.spread("userx", b"new", range(MANY))
    while told.turn():
        pass
    assert [link for link, _, _ in told.told] == [link for link in range(MANY) if link != failing]
    assert len(nothing_logged_as_failure) == 1
    nothing_logged_as_failure.clear()


class Crowd:
    """A seed, a name that everybody watches, and somebody who asks for something else."""

    def __init__(self, watchers: int) -> None:
        self.clock = Stepping()
        self.clock.advance(1_700_000_000)
        self.disk = OnClock(seed_store.SCHEMA, seed_store.SCHEMA_VERSION)
        turns, rng = Turns(self.clock, self.clock.seconds), random.Random(1)
        core = Seed("seedA", "seedA:1", now=self.clock.seconds(), rng=rng, entropy=rng.randbytes)
        store = seed_store.SeedStore(self.disk.database)
        self.service = SeedService(
            core, store, self.clock, lambda at: pytest.fail(f"dialled {at}"), self.clock.seconds, turns
        )
        self.factory = LinesFactory(self.service.link, self.clock, turns)
        self.service.startService()
        self.owner, self.asker, *self.watchers = [self.link(number) for number in range(watchers + 2)]
        for watcher in self.watchers:
            self.say(watcher, "watch", wire.WatchParams(["UserX"]))

    def link(self, number: int) -> Lines:
        pipe = Pipe()
        pipe.peerAddr = IPv4Address("TCP", f"10.0.{number // 250}.{number % 250}", 1)
        lines = self.factory.buildProtocol(None)
        assert lines is not None
        lines.makeConnection(pipe)
        return lines

    def say(self, link: Lines, method: str, params: msgspec.Struct) -> bytes:
        link.dataReceived(wire.encode_request(method, params, 1))
        return self.hear(link)

    def hear(self, link: Lines) -> bytes:
        pipe = link.transport
        assert isinstance(pipe, Pipe)
        return pipe.take()

    def told(self) -> int:
        """How many have something that they did not read."""
        return sum(bool(link.transport.writes) for link in self.watchers)  # type: ignore[attr-defined]

    def close(self) -> None:
        self.service.stopService()
        self.clock.advance(TICK_S)
        self.disk.close()


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    crowd = Crowd(3 * TURN_LINES)
    yield crowd
    crowd.close()


def test_a_name_that_all_watch(crowd: Crowd) -> None:
    """When it changes a seed tells some at a time, all in the end, and a look-up in between is answered in between.
    Whoever watches no more by then is not told."""
    crowd.say(crowd.owner, "register", signed("UserX", 1))
    assert crowd.told() == SLICE_LINES
    leaving, gone = crowd.watchers[-2:]
    crowd.say(leaving, "unwatch", wire.WatchParams(["UserX"]))
    gone.abort()
    while (told := crowd.told()) < len(crowd.watchers) - 2:
        assert b'"id":1,"result"' in crowd.say(crowd.asker, "lookup", wire.NameParams("UserX"))
        crowd.clock.advance(TICK_S)
        assert 0 < crowd.told() - told <= TURN_LINES
    heard = {crowd.hear(link) for link in crowd.watchers[:-2]}
    assert len(heard) == 1
    assert wire.decode_answer(heard.pop()).method == "changed"
    assert (crowd.hear(leaving), crowd.hear(gone)) == (b"", b"")
