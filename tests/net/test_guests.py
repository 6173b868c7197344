"""Who wears a seed down: connections without end, silence, half a line, nonsense, and other protocols."""

from collections.abc import Iterator

import msgspec
import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from meshproto import wire
from meshproto.core.limits import NEWCOMERS
from meshproto.core.notes import NOTE_S
from meshproto.core.seed import Seed
from meshproto.net import seed_store
from meshproto.net.guests import (
    FIRST_LINE_S,
    IDLE_S,
    LINE_S,
    LINKS_MAX,
    LINKS_PER_NETWORK_MAX,
    STRANGERS_BYTES,
    SWEEP_S,
)
from meshproto.net.lines import UNANSWERED_MAX, LinesFactory
from meshproto.net.seeding import Ended, SeedService
from meshproto.net.turns import Turns
from tests.core.users import signed
from tests.net.on_clock import OnClock
from tests.net.pipe import Pipe

PING = wire.encode_request("ping", wire.Nothing(), 1)
WATCH = wire.encode_request("watch", wire.WatchParams(["UserX"]), 1)
HELLO = wire.encode_request("hello", wire.HelloParams(1, "seed", "seedB"), 1)
REGISTER = wire.encode_request("register", signed("UserX", 1), 1)


class Visitor:
    """A connection to the seed."""

    def __init__(self, rig: "Rig", host: str) -> None:
        self.pipe = Pipe()
        self.pipe.peerAddr = IPv4Address("TCP", host, 1)
        lines = rig.factory.buildProtocol(self.pipe.peerAddr)
        assert lines is not None
        self.lines = lines
        self.lines.makeConnection(self.pipe)

    def say(self, data: bytes) -> None:
        self.lines.dataReceived(data)

    def hears(self) -> bytes:
        return self.pipe.take()

    def leave(self) -> None:
        self.lines.connectionLost(Failure(ConnectionDone()))

    @property
    def sent_away(self) -> int | None:
        """With which code; None while the connection lives."""
        if not (self.pipe.disconnecting or self.pipe.half_closed or self.pipe.aborted):
            return None
        return int(msgspec.json.decode(self.hears().splitlines()[-1])["error"]["code"])


class Rig:
    """A seed on a fake clock."""

    def __init__(self) -> None:
        import random

        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.disk = OnClock(seed_store.SCHEMA, seed_store.SCHEMA_VERSION)
        self.ahead_s = 0.0  # of the wall clock
        rng = random.Random(1)
        core = Seed("seedA", "seedA:1", now=self.now(), rng=rng, entropy=rng.randbytes)
        store = seed_store.SeedStore(self.disk.database)
        self.service = SeedService(core, store, self.clock, lambda at: pytest.fail(f"dialled {at}"), self.now)
        self.factory = LinesFactory(self.service.link, self.clock, Turns(self.clock))
        self.service.startService()

    def now(self) -> float:
        return float(self.clock.seconds()) + self.ahead_s

    def visitor(self, host: str = "10.0.0.1", *says: bytes) -> Visitor:
        visitor = Visitor(self, host)
        for data in says:
            visitor.say(data)
            visitor.hears()
        return visitor

    def wait(self, seconds: float) -> None:
        self.clock.pump([SWEEP_S] * int(seconds / SWEEP_S))


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.service.stopService()
    rig.clock.advance(0)
    rig.disk.close()


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []

    @implementer(ILogObserver)
    def note(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(note)
    yield lines
    globalLogPublisher.removeObserver(note)


class TestPlaces:
    def test_the_idlest_guest_of_a_network_goes(self, rig: Rig) -> None:
        """One address more than LINKS_PER_NETWORK_MAX times connected: the one silent for longest is told and sent
        away; whoever asked something lately, is registered, watches or gossips stays, and other networks do not notice.
        """
        other = rig.visitor("10.0.0.2")
        staying = [rig.visitor("10.0.0.1", line) for line in (REGISTER, WATCH, HELLO)]
        asking, *idle = (rig.visitor("10.0.0.1", PING) for _ in range(LINKS_PER_NETWORK_MAX - len(staying)))
        asking.say(PING)
        asking.hears()
        rig.visitor("10.0.0.1")
        assert idle[0].sent_away == 503
        rig.visitor("10.0.0.1")
        assert [visitor.sent_away for visitor in (idle[1], idle[2], asking, other, *staying)] == [503, *[None] * 6]

    def test_when_nobody_can_go_the_newcomer_does(self, rig: Rig) -> None:
        """A network whose places are all taken by those who stay gets no further one."""
        staying = [rig.visitor("10.0.0.1", WATCH) for _ in range(LINKS_PER_NETWORK_MAX)]
        assert rig.visitor("10.0.0.1").sent_away == 503
        assert rig.service.ended == {Ended.NO_PLACE: 1}
        assert not any(visitor.sent_away for visitor in staying)
        staying[0].leave()
        assert rig.visitor("10.0.0.1").sent_away is None

    def test_whoever_comes_again_and_again(self, rig: Rig) -> None:
        """A network that has its share gets NEWCOMERS for which its own have to go, and then no more for a while: they
        are closed before anything is done for them. Others come in as ever."""
        guests = [rig.visitor("10.0.0.1", PING) for _ in range(LINKS_PER_NETWORK_MAX + int(NEWCOMERS.burst))]
        more = IPv4Address("TCP", "10.0.0.1", 2)
        assert not any(rig.factory.buildProtocol(more) for _ in range(20))
        assert sum(guest.sent_away is not None for guest in guests) == NEWCOMERS.burst
        assert rig.service.ended == {Ended.NO_PLACE: NEWCOMERS.burst, Ended.NOT_ADMITTED: 20}
        assert rig.visitor("10.0.0.2", PING).sent_away is None
        rig.clock.advance(1 / NEWCOMERS.per_s)
        assert rig.factory.buildProtocol(more) is not None
        assert rig.factory.buildProtocol(more) is None
        guests[-1].leave()
        assert rig.factory.buildProtocol(more) is not None  # there is room, so nobody is counted

    def test_all_places(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With LINKS_MAX connections a newcomer takes the place of the idlest of the network with most guests."""
        monkeypatch.setattr("resource.getrlimit", lambda _: (100_000, 100_000))
        rig = Rig()
        rig.visitor("10.0.1.1")
        networks = LINKS_MAX // LINKS_PER_NETWORK_MAX + 1
        first = rig.visitor("10.0.0.0")
        for number in range(LINKS_MAX - 2):
            rig.visitor(f"10.0.0.{number % networks}")
        assert first.sent_away is None
        assert rig.visitor("10.0.2.1").sent_away is None
        assert first.sent_away == 503


class TestSilence:
    def test_nothing_said(self, rig: Rig) -> None:
        """Without a line in FIRST_LINE_S the connection ends with 408, also when bytes drop in one by one."""
        silent, slow = rig.visitor(), rig.visitor()
        for _ in range(int(FIRST_LINE_S / SWEEP_S)):
            assert (silent.sent_away, slow.sent_away) == (None, None)
            slow.say(b"{")
            rig.wait(SWEEP_S)
        assert (silent.sent_away, slow.sent_away) == (408, 408)
        assert rig.service.ended == {Ended.SILENT: 2}

    def test_half_a_line(self, rig: Rig) -> None:
        """A line that is not finished LINE_S after it was begun ends the connection, whoever it is and however the rest
        drops in; whoever finishes it in time stays."""
        slow, honest = rig.visitor("10.0.0.1", HELLO), rig.visitor("10.0.0.2", WATCH)
        for _ in range(int(LINE_S / SWEEP_S)):
            slow.say(b"{")
            honest.say(PING[:-1])
            rig.wait(SWEEP_S)
            honest.say(PING[-1:])
            honest.hears()
        rig.wait(2 * SWEEP_S)
        assert (slow.sent_away, honest.sent_away) == (408, None)

    def test_no_question(self, rig: Rig) -> None:
        """A guest who asks nothing for IDLE_S goes; one who watches, or pings, does not."""
        idle, watching, asking = rig.visitor("10.0.0.1", PING), rig.visitor("10.0.0.2", WATCH), rig.visitor()
        asking.say(PING)
        for _ in range(int(IDLE_S / SWEEP_S)):
            assert idle.sent_away is None
            asking.say(PING)
            asking.hears()
            rig.wait(SWEEP_S)
        rig.wait(SWEEP_S)
        assert (idle.sent_away, watching.sent_away, asking.sent_away) == (408, None, None)

    def test_who_waits_for_the_disk_is_not_silent(self, rig: Rig) -> None:
        """Not being read from is no silence."""
        visitor = rig.visitor("10.0.0.1", PING)
        for _ in range(UNANSWERED_MAX):
            visitor.lines.hold()
        visitor.say(PING[:5])
        rig.wait(2 * LINE_S)
        assert visitor.sent_away is None

    @pytest.mark.parametrize("step_s", [IDLE_S, -86400.0])
    def test_the_time_of_day_is_set(self, rig: Rig, step_s: float) -> None:
        """Silence is as long as it is, whatever the wall clock says: nobody is sent away for a step of it, and whoever
        is silent goes none the later."""
        nothing, half, idle = rig.visitor(), rig.visitor("10.0.0.1", b"{"), rig.visitor("10.0.0.1", PING)
        rig.wait(SWEEP_S)
        rig.ahead_s += step_s
        rig.wait(SWEEP_S)
        assert (nothing.sent_away, half.sent_away, idle.sent_away) == (None, None, None)
        rig.wait(LINE_S)
        assert (nothing.sent_away, half.sent_away, idle.sent_away) == (408, 408, None)
        rig.wait(IDLE_S)
        assert idle.sent_away == 408


class TestForeignProtocols:
    def test_http(self, rig: Rig) -> None:
        """A browser or curl is answered in HTTP, and nothing after that is read."""
        visitor = rig.visitor()
        visitor.say(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + PING)
        assert visitor.hears().startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert rig.service.ended == {Ended.PROTOCOL: 1}
        assert visitor.pipe.half_closed
        assert visitor.hears() == b""

    def test_tls(self, rig: Rig) -> None:
        """The first byte of a TLS hello is answered with a line, and the connection closed."""
        visitor = rig.visitor()
        visitor.say(b"\x16")
        assert visitor.sent_away == 400

    def test_later_bytes_are_a_broken_line(self, rig: Rig) -> None:
        """What would be TLS or HTTP at the beginning is a parse error later, which ends nothing."""
        visitor = rig.visitor("10.0.0.1", PING)
        visitor.say(b"GET / HTTP/1.1\r\n")
        assert msgspec.json.decode(visitor.hears())["error"]["code"] == -32700
        visitor.say(b"\x16\x03\n")
        assert msgspec.json.decode(visitor.hears())["error"]["code"] == -32700
        assert visitor.sent_away is None


class TestStrangers:
    def test_bytes_before_anything_was_right(self, rig: Rig) -> None:
        """Over all connections of a network STRANGERS_BYTES of nonsense are taken; more ends them with 429. Whoever has
        asked something right may go on."""
        welcome, line = rig.visitor("10.0.0.1", PING), b"x" * (wire.LINE_BYTES_MAX - 1) + b"\n"
        for _ in range(int(STRANGERS_BYTES.burst) // len(line) - 1):
            assert rig.visitor("10.0.0.1", line).sent_away is None
        assert rig.visitor("10.0.0.2", line).sent_away is None
        stranger = rig.visitor("10.0.0.1")
        stranger.say(line[1:])
        assert stranger.sent_away == 429
        assert rig.service.ended == {Ended.TOO_MUCH: 1}
        welcome.say(PING)
        assert b"result" in welcome.hears()

    def test_a_step_of_the_wall_clock_brings_no_new_burst(self, rig: Rig) -> None:
        """What strangers may say comes back with time, not with what NTP does."""
        line = b"x" * (wire.LINE_BYTES_MAX - 1) + b"\n"
        for _ in range(int(STRANGERS_BYTES.burst) // len(line)):
            rig.visitor("10.0.0.1", line)
        rig.ahead_s += 86400
        stranger = rig.visitor()
        stranger.say(line)
        assert stranger.sent_away == 429

    def test_the_log_is_not_flooded(self, rig: Rig, said: list[str]) -> None:
        """A line for each network and NOTE_S, with the number of those left out."""
        for _ in range(100):
            rig.visitor("10.0.0.1").say(b"\x16")
        rig.visitor("10.0.0.2").say(b"\x16")
        rig.clock.advance(NOTE_S)
        rig.visitor("10.0.0.1").say(b"\x16")
        told = [line for line in said if "was ended" in line]
        assert [line.split()[3] for line in told] == ["10.0.0.1", "10.0.0.2", "10.0.0.1"]
        assert "(and 99 more" in told[2]
