"""Connections that are read from together, over real sockets: as if the reactor read from each."""

import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet import tcp
from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import LogEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from meshproto.net import together
from meshproto.net.listening import listen
from meshproto.net.together import AT_ONCE_MAX, AtOnce, Came, Together, read_together


@implementer(IHalfCloseableProtocol)
class Side(Protocol):
    """The server's side of a connection: what was said over it, and how it ended."""

    transport: Any

    def __init__(self, rig: "Rig") -> None:
        self.rig = rig
        self.got = b""
        self.all_said = False
        self.over: Deferred[None] = Deferred()
        self.reason = connectionDone

    def dataReceived(self, data: bytes) -> None:
        self.got += data
        self.rig.on_data(self, data)

    def readConnectionLost(self) -> None:
        self.all_said = True
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Our side is closed."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.reason = reason
        self.over.callback(None)


class Rig:
    """A port as a seed has it, whose connections are read from together, and sockets that are connected to it."""

    def __init__(self, reactor: Any, at_once: AtOnce | None = None) -> None:
        self.reactor = reactor
        self.on_data: Callable[[Side, bytes], None] = lambda side, data: None
        self.sides: list[Side] = []
        self.clients: list[socket.socket] = []
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        factory: Any = Factory.forProtocol(self._side)
        if at_once is not None:
            factory.at_once = at_once
        self.port: Any = listen(endpoint, factory, "tcp:0")
        read_together(self.port)

    def _side(self) -> Side:
        self.sides.append(Side(self))
        return self.sides[-1]

    async def turn(self) -> None:
        await deferLater(self.reactor, 0)

    async def until(self, what: Callable[[], bool]) -> None:
        while not what():
            await self.turn()

    async def connect(self) -> tuple[socket.socket, Side]:
        self.clients.append(socket.create_connection(("127.0.0.1", self.port.getHost().port)))
        await self.until(lambda: len(self.sides) == len(self.clients))
        return self.clients[-1], self.sides[-1]

    def read_from(self) -> list[Together]:
        """The sets that the reactor reads from."""
        return [reader for reader in self.reactor.getReaders() if isinstance(reader, Together)]

    async def close(self) -> None:
        for client in self.clients:
            client.close()
        for side in self.sides:
            if not side.over.called:
                side.transport.abortConnection()
            await side.over
        await maybeDeferred(self.port.stopListening)
        assert self.read_from() == []


@pytest.fixture
def rig() -> Iterator[Rig]:
    from twisted.internet import reactor

    rig = Rig(reactor)
    yield rig
    pytest_twisted.blockon(ensureDeferred(rig.close()))


async def test_all_that_has_come_is_read_in_one_turn(rig: Rig) -> None:
    """Of however many connections, which are a single one to the reactor."""
    for _ in range(100):
        await rig.connect()
    assert len(rig.read_from()) == 1
    assert not any(isinstance(reader, tcp.Server) for reader in rig.reactor.getReaders())
    for number, client in enumerate(rig.clients):
        client.sendall(b"%d" % number)
    await rig.turn()
    await rig.turn()
    assert [side.got for side in rig.sides] == [b"%d" % number for number in range(100)]


async def test_who_has_said_all_is_heard(rig: Rig) -> None:
    client, side = await rig.connect()
    client.sendall(b"all")
    client.shutdown(socket.SHUT_WR)
    await side.over
    assert side.reason.check(ConnectionDone)
    assert (side.got, side.all_said) == (b"all", True)


async def test_who_breaks_off_is_noticed(rig: Rig) -> None:
    client, side = await rig.connect()
    reset(client)
    await side.over
    assert side.reason.check(ConnectionLost)


def reset(client: socket.socket) -> None:
    """Break off."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


async def test_who_breaks_off_in_the_same_turn_is_no_other(rig: Rig) -> None:
    """After the kernel has said that there is something to read, and before it is read: then what is read is that the
    connection was lost, which the kernel tells once."""
    first, second = [await rig.connect() for _ in range(2)]

    def break_off(side: Side, _: bytes) -> None:
        client, other = first if side is second[1] else second
        other.transport.socket.recv(1)
        reset(client)

    rig.on_data = break_off
    for client in rig.clients:
        client.sendall(b"x")
    sides = (first[1], second[1])
    await rig.until(lambda: any(side.over.called for side in sides))
    (broken,) = [side for side in sides if side.over.called]
    assert broken.reason.check(ConnectionLost)
    assert not broken.all_said


async def test_when_the_reactor_stops_all_are_told(rig: Rig) -> None:
    """It tells those that it reads from."""
    sides = [(await rig.connect())[1] for _ in range(3)]
    (reader,) = rig.read_from()
    reader.connectionLost(Failure(ConnectionLost()))
    assert [side.over.called for side in sides] == [True] * 3


async def test_who_is_not_to_be_read_from_is_not(rig: Rig) -> None:
    """Until they are again, whatever the others say; and of nobody to be read from the reactor knows nothing."""
    (client, side), (other, other_side) = await rig.connect(), await rig.connect()
    side.transport.pauseProducing()
    client.sendall(b"wait")
    other.sendall(b"now")
    await rig.until(lambda: other_side.got == b"now")
    assert side.got == b""
    other_side.transport.pauseProducing()
    assert rig.read_from() == []
    side.transport.resumeProducing()
    await rig.until(lambda: side.got == b"wait")


async def test_who_is_read_from_no_more_in_the_same_turn(rig: Rig) -> None:
    """One connection may have another one closed, or not read from, whose words have come already."""
    first, second, third = [(await rig.connect())[1] for _ in range(3)]

    def end_the_others(side: Side, _: bytes) -> None:
        others = [other for other in (first, second, third) if other is not side]
        others[0].transport.connectionLost(Failure(ConnectionDone()))
        others[1].transport.pauseProducing()

    rig.on_data = end_the_others
    for client in rig.clients:
        client.sendall(b"x")
    await rig.until(lambda: any(side.got for side in rig.sides))
    await rig.turn()
    assert sorted(side.got for side in rig.sides) == [b"", b"", b"x"]


async def test_a_bug_costs_the_connection_that_met_it(rig: Rig, nothing_logged_as_failure: list[LogEvent]) -> None:
    """And no other its turn."""
    (client, side), (other, other_side) = await rig.connect(), await rig.connect()

    def fail(met: Side, _: bytes) -> None:
        if met is side:
            raise ZeroDivisionError

    rig.on_data = fail
    for one in (client, other):
        one.sendall(b"x")
    await side.over
    await rig.until(lambda: other_side.got == b"x")
    assert len(nothing_logged_as_failure) == 1
    nothing_logged_as_failure.clear()


async def test_what_has_come_over_all_of_them(nothing_logged_as_failure: list[LogEvent]) -> None:
    """The factory has it first, of AT_ONCE_MAX at a time, and each protocol what is left; also when the factory has a
    bug; of a connection alone it has its own at once."""
    from twisted.internet import reactor

    some: list[list[Came]] = []

    def at_once(came: list[Came]) -> list[Came]:
        some.append(came)
        if came[0][1] == b"fails":
            raise ZeroDivisionError
        return came[1:]

    rig = Rig(reactor, at_once)
    for _ in range(AT_ONCE_MAX + 2):
        await rig.connect()
    for client in rig.clients:
        client.sendall(b"x")
    await rig.until(lambda: len(some) == 2)
    assert [len(came) for came in some] == [AT_ONCE_MAX, 2]
    assert {data for came in some for _, data in came} == {b"x"}
    assert sum(side.got == b"" for side in rig.sides) == 2
    first, second = [(client, side) for client, side in zip(rig.clients, rig.sides, strict=True) if side.got == b""]
    first[0].sendall(b"alone")
    await rig.until(lambda: first[1].got == b"alone")
    for client, _ in (first, second):
        client.sendall(b"fails")
    await rig.until(lambda: second[1].got == b"fails")
    assert first[1].got == b"alonefails"
    assert len(nothing_logged_as_failure) == 1
    nothing_logged_as_failure.clear()
    await rig.close()


async def test_where_there_is_no_epoll(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reactor reads from each, as ever."""
    from twisted.internet import reactor

    monkeypatch.setattr(together, "EPOLL", False)
    rig = Rig(reactor)
    client, side = await rig.connect()
    client.sendall(b"x")
    await rig.until(lambda: side.got == b"x")
    assert rig.read_from() == []
    await rig.close()
