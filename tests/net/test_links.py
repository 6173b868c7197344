"""Connections to seeds, made when they are needed and kept while they are used."""

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from meshproto import wire
from meshproto.errors import SlowDown, Unreachable
from meshproto.net.calls import CALL_TIMEOUT_S, DIAL_TIMEOUT_S, LINKS_MAX, Calls, Links
from tests.net.far import Far, failure_of, no_result_of, result_of, start

HELLO = wire.HelloParams(wire.PROTOCOL_VERSION, "user", "UserX")


async def greet(address: str, calls: Calls) -> None:
    await calls.call("hello", HELLO, wire.HelloResult)


WELCOME = wire.HelloResult(1, "seedX", "", {})


@implementer(IStreamClientEndpoint)
class Endpoint:
    """Connects when :meth:`Town.connect` says so."""

    def __init__(self, town: "Town", address: str) -> None:
        self.town = town
        self.address = address

    def connect(self, factory: IProtocolFactory) -> "Deferred[IProtocol]":
        connected: Deferred[IProtocol] = Deferred()
        self.town.dialled.append((self.address, factory, connected))
        return connected


class Town:
    """All seeds there are, and one node's links to them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.dialled: list[tuple[str, IProtocolFactory, Deferred[IProtocol]]] = []
        self.ended: list[str] = []
        self.links = Links(self.clock, lambda address: Endpoint(self, address), greet, self.ended.append)

    def get(self, address: str) -> "Deferred[Calls]":
        return start(self.links.get(address))

    def connect(self) -> Far:
        """The oldest dialling succeeds."""
        _, factory, connected = self.dialled.pop(0)
        protocol = factory.buildProtocol(None)  # type: ignore[arg-type]
        assert protocol is not None
        far = Far(protocol)
        connected.callback(protocol)
        return far

    def linked(self, address: str) -> Far:
        """A connection on which hello was answered."""
        got = self.get(address)
        far = self.connect()
        far.answer(WELCOME)
        result_of(got)
        return far


def test_hello_is_said_first_and_once() -> None:
    """A link is there when hello is answered, and is used again without another."""
    town = Town()
    got = town.get("a:1")
    far = town.connect()
    assert [request["method"] for request in far.asked] == ["hello"]
    assert far.asked[0]["params"] == {"version": 1, "role": "user", "name": "UserX"}
    no_result_of(got)
    assert town.links.ready("a:1") is None
    far.answer(WELCOME)
    calls = result_of(got)
    assert calls is town.links.ready("a:1")
    assert calls is result_of(town.get("a:1"))
    assert len(far.asked) == 1
    assert town.dialled == []


def test_two_who_want_the_same_link_share_one_connection() -> None:
    """While a link is being made, others wait for it."""
    town = Town()
    first, second = town.get("a:1"), town.get("a:1")
    far = town.connect()
    assert town.dialled == []
    far.answer(WELCOME)
    assert result_of(first) is result_of(second)


def test_a_seed_that_refuses_hello_is_hung_up_on() -> None:
    """The refusal is raised, the connection closed, which is no loss; whoever waited for it tries with a new one."""
    town = Town()
    first, second = town.get("a:1"), town.get("a:1")
    far = town.connect()
    far.refuse(SlowDown("full"))
    failure_of(first, SlowDown)
    assert far.pipe.aborted
    no_result_of(second)
    town.connect().answer(WELCOME)
    far.lose()
    assert result_of(second).connected
    assert town.ended == []


def test_a_caller_that_gives_up_leaves_no_link_without_hello() -> None:
    """A connection whose hello was not waited for is closed."""
    town = Town()
    got = town.get("a:1")
    far = town.connect()
    got.cancel()
    failure_of(got)
    assert far.pipe.aborted
    assert town.links.ready("a:1") is None


def test_nobody_at_the_address() -> None:
    """A failed connection raises Unreachable with its reason, and the next try dials again."""
    town = Town()
    for _ in range(2):
        got = town.get("a:1")
        _, _, connected = town.dialled.pop()
        connected.errback(Failure(ConnectionRefusedError()))
        assert "refused" in failure_of(got, Unreachable).getErrorMessage()


def test_a_lost_link_is_made_anew() -> None:
    """After a connection is lost, `ready` has none and `get` dials."""
    town = Town()
    town.linked("a:1").lose()
    assert town.links.ready("a:1") is None
    town.linked("a:1")
    assert town.links.ready("a:1") is not None


def test_a_link_that_does_not_answer_is_made_anew() -> None:
    """After a call was in vain the next `get` dials: the network may be back long before the old connection is."""
    town = Town()
    far = town.linked("a:1")
    said = start(result_of(town.get("a:1")).call("ping", wire.Nothing(), wire.Nothing))
    town.clock.advance(CALL_TIMEOUT_S)
    failure_of(said, Unreachable)
    assert far.pipe.aborted
    assert town.links.ready("a:1") is None
    town.linked("a:1")
    far.lose()
    assert town.ended == ["a:1"]
    assert town.links.ready("a:1") is not None


def test_a_dial_that_hangs_makes_room_for_the_next() -> None:
    """Who waited for a dial that took DIAL_TIMEOUT_S dials anew."""
    town = Town()
    first, second = town.get("a:1"), town.get("a:1")
    town.clock.advance(DIAL_TIMEOUT_S)
    failure_of(first, Unreachable)
    town.dialled.pop(0)
    town.connect().answer(WELCOME)
    assert result_of(second).connected


def test_links_max() -> None:
    """One link more than LINKS_MAX closes the one that was not used longest."""
    town = Town()
    fars = []
    for number in range(LINKS_MAX):
        fars.append(town.linked(f"seed:{number + 1}"))
        town.clock.advance(1.0)
    result_of(town.get("seed:1"))
    town.linked("one:1")
    assert [far.pipe.aborted for far in fars[:3]] == [False, True, False]
    assert sum(far.pipe.aborted for far in fars) == 1
    fars[1].lose()
    assert town.ended == []  # what was let go was not lost: nobody needs to look after it


def test_a_link_that_was_let_go_while_it_was_made_is_closed() -> None:
    """A connection that comes up after `close` is closed at once, and whoever waits for it hears of it."""
    town = Town()
    got = town.get("a:1")
    town.links.close()
    far = town.connect()
    failure_of(got, Unreachable)
    assert far.pipe.aborted


def test_close_closes_every_link() -> None:
    """After `close` no connection is left."""
    town = Town()
    fars = [town.linked("a:1"), town.linked("b:1")]
    town.links.close()
    assert all(far.pipe.aborted for far in fars)
    assert town.links.ready("a:1") is None
