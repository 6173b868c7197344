"""Whose lines are handled next: a single question is not kept waiting by those who pipeline."""

from collections.abc import Callable
from functools import partial
from math import ceil

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from meshproto.net.lines import QUICK_LINES, Lines
from meshproto.net.turns import AT_ONCE_LINES, SLICE_LINES, SLICE_S, TURN_LINES, TURN_S, Turns
from tests.net.pipe import Pipe

TICK_S = 0.001


class Stepping(Clock):
    """A clock of which "at once" is its next step, as a reactor's is."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> IDelayedCall:
        return super().callLater(max(delay, TICK_S), callable, *args, **kw)


class Street:
    """Links of one listener; `handled` has (link, line) in order."""

    def __init__(self) -> None:
        self.clock = Stepping()
        self.now = 0.0
        self.line_s = 0.0
        self.turns = Turns(self.clock, lambda: self.now)
        self.handled: list[tuple[str, bytes]] = []

    def opened(self, lines: Lines) -> None:
        """Nothing to greet with."""

    def line(self, lines: Lines, line: bytes) -> None:
        peer = lines.transport.getPeer()
        self.handled.append((str(peer.port), line))
        self.now += self.line_s
        lines.send(line + b"\n")

    def quick(self, name: str, lines: list[bytes]) -> list[bytes]:
        self.handled += [(name, line) for line in lines]
        return lines

    def closed(self, lines: Lines, reason: str) -> None:
        """Nothing to do."""

    def link(self, name: int, host: str = "10.0.0.1") -> Lines:
        pipe = Pipe(buffer_bytes_max=1 << 20)
        pipe.peerAddr = IPv4Address("TCP", host, name)
        lines = Lines(self, self.clock, self.turns)
        lines.makeConnection(pipe)
        return lines

    def turn(self) -> None:
        """One of the reactor's, which does not do at once what is put off until the next."""
        self.clock.advance(TICK_S)

    def took(self) -> dict[str, int]:
        """How many lines of each link were handled since the last time."""
        names = [name for name, _ in self.handled]
        self.handled = []
        return {name: names.count(name) for name in names}


def flood(lines: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(lines))


FLOOD_LINES = 12 * TURN_LINES
FLOOD = flood(FLOOD_LINES)


@pytest.fixture
def street() -> Street:
    return Street()


def test_who_is_alone_has_the_turn(street: Street) -> None:
    """TURN_LINES are handled at once, the rest in the next turns, in order; meanwhile nothing is read."""
    link = street.link(1)
    link.dataReceived(flood(2 * TURN_LINES + 5) + b"rest")
    assert street.took() == {"1": TURN_LINES}
    assert not link.transport.reading  # type: ignore[attr-defined]
    street.turn()
    street.turn()
    assert [line for _, line in street.handled] == [b"%d" % n for n in range(TURN_LINES, 2 * TURN_LINES + 5)]
    assert link.transport.reading  # type: ignore[attr-defined]
    link.dataReceived(b"!\n")
    assert street.handled[-1] == ("1", b"rest!")


def test_lines_that_take_long_are_fewer(street: Street) -> None:
    """Of such as take longer than SLICE_S each link has one handled, then it is the next one's turn, and a turn has no
    more of them than TURN_S allows; all are handled in the end, in order."""
    links = [street.link(number) for number in range(1, 11)]
    street.line_s = 1.5 * SLICE_S
    for link in links:
        link.dataReceived(flood(20))
    assert street.took() == {str(number): 1 for number in range(1, 11)}
    street.turn()
    assert sum(street.took().values()) == ceil(TURN_S / street.line_s)
    quiet = street.link(99)
    quiet.dataReceived(b"?\n")
    assert street.took() == {"99": 1}
    for _ in range(200):
        street.turn()
    last = [line for name, line in street.handled if name == "10"]
    assert last == flood(20).split()[-len(last) :]
    assert last[-1] == b"19"


def test_a_single_question_does_not_wait(street: Street) -> None:
    """Beside a hundred links that pipeline without end it is handled when it comes, and no turn has more lines than
    TURN_LINES, a slice, and AT_ONCE_LINES for each link that has just come."""
    for name in range(100):
        street.link(name).dataReceived(FLOOD)
    assert len(street.handled) <= TURN_LINES + SLICE_LINES + 100 * AT_ONCE_LINES
    street.took()
    quiet = street.link(200)
    for _ in range(10):
        quiet.dataReceived(b"?\n")
        assert street.took() == {"200": 1}
        street.turn()
        assert len(street.handled) <= TURN_LINES + SLICE_LINES
        street.took()


def test_quick_lines_take_turns(street: Street) -> None:
    """They count like all others: those of one link, and those of many of which none has a turn full."""
    many = 20
    links = [street.link(number) for number in range(1 + many)]
    for number, link in enumerate(links):
        link.quick = partial(street.quick, str(number))
    links[0].dataReceived(FLOOD)
    assert street.took() == {"0": TURN_LINES}
    street.turn()
    assert street.took() == {"0": TURN_LINES}
    links[0].abort()
    street.turn()
    for link in links[1:]:
        link.dataReceived(flood(TURN_LINES // 2))
    assert TURN_LINES <= sum(street.took().values()) <= TURN_LINES + many * AT_ONCE_LINES
    for link in links:
        link.abort()


def test_quick_lines_in_small_chunks_take_turns(street: Street) -> None:
    """Also those that are answered without more ado: when a turn is used up by them the next wait."""
    link = street.link(1)
    link.quick = partial(street.quick, "1")
    for _ in range(TURN_LINES // QUICK_LINES):
        link.dataReceived(flood(QUICK_LINES))
    assert street.took() == {"1": TURN_LINES}
    link.dataReceived(flood(QUICK_LINES))
    assert street.took() == {"1": AT_ONCE_LINES}
    assert not link.transport.reading  # type: ignore[attr-defined]
    street.turn()
    assert street.took() == {"1": QUICK_LINES - AT_ONCE_LINES}
    link.abort()


def test_networks_take_turns(street: Street) -> None:
    """A network with a hundred links gets no more than one with a single link."""
    for name in range(100):
        street.link(name).dataReceived(FLOOD)
    street.link(200, "10.0.0.2").dataReceived(FLOOD)
    street.took()
    for _ in range(10):
        street.turn()
    took = street.took()
    assert took["200"] == pytest.approx(sum(took.values()) / 2, rel=0.1)
    assert len(took) > 30  # and the links of a network among themselves


@pytest.mark.parametrize("finish", [Lines.end, Lines.abort, Lines.hang_up])
def test_who_has_gone_has_no_turn(street: Street, finish: Callable[[Lines], None]) -> None:
    """What was waiting is not handled after the connection has ended."""
    link = street.link(1)
    link.dataReceived(flood(TURN_LINES + 1))
    street.took()
    finish(link)
    street.turn()
    assert street.took() == {}
    link.abort()


def test_who_has_said_all_gets_all_answers(street: Street) -> None:
    """`printf ... | nc -N` with more lines than a turn has: the connection ends after the last answer."""
    link = street.link(1)
    link.dataReceived(flood(TURN_LINES + 1))
    link.readConnectionLost()
    assert not link.transport.disconnecting
    street.turn()
    assert len(street.handled) == TURN_LINES + 1
    assert link.transport.disconnecting
    link.abort()


def test_a_bug_on_a_turn(street: Street, nothing_logged_as_failure: list[LogEvent]) -> None:
    """Costs the link that met it, and no other its turn."""
    met = street.link(1)
    met.dataReceived(FLOOD)
    other = street.link(2)
    other.dataReceived(FLOOD)
    street.took()
    handle = street.line

    def fail(lines: Lines, line: bytes) -> None:
        if lines is met:
            raise ZeroDivisionError
        handle(lines, line)

    street.line = fail  # type: ignore[method-assign]
    for _ in range(100):
        street.turn()
    assert street.took() == {"2": FLOOD_LINES - AT_ONCE_LINES}
    assert met.transport.aborted  # type: ignore[attr-defined]
    assert len(nothing_logged_as_failure) == 1
    nothing_logged_as_failure.clear()
