"""What is sent at once, over real sockets."""

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, UNIXClientEndpoint, UNIXServerEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent
from twisted.python.failure import Failure

from meshproto.net.direct import GATHERED_BYTES_MAX, gathered, is_waiting, write

MIB = 1024 * 1024


class Side(Protocol):
    """One end of a connection: what it got until the other closed."""

    transport: Any

    def __init__(self) -> None:
        self.made: Deferred[Side] = Deferred()
        self.got: list[bytes] = []
        self.over: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        self.made.callback(self)

    def dataReceived(self, data: bytes) -> None:
        self.got.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.over.callback(b"".join(self.got))


class Pair:
    """A real connection on this machine."""

    async def open(self, server: Any, client: Any) -> None:
        self.server, self.client = Side(), Side()
        self._port = await server.listen(Factory.forProtocol(lambda: self.server))
        await client(self._port).connect(Factory.forProtocol(lambda: self.client))
        await self.server.made

    async def close(self) -> None:
        self.client.transport.abortConnection()
        if not self.server.over.called:
            self.server.transport.abortConnection()
        await self.server.over
        await self._port.stopListening()


async def tcp() -> Pair:
    from twisted.internet import reactor

    pair = Pair()
    await pair.open(
        TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"),
        lambda port: TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port),
    )
    return pair


async def test_it_is_on_its_way_before_the_reactor_turns() -> None:
    pair = await tcp()
    write(pair.server.transport, b"now")
    pair.client.transport.socket.setblocking(True)
    assert pair.client.transport.socket.recv(10) == b"now"
    pair.client.transport.socket.setblocking(False)
    await pair.close()


@pytest.mark.parametrize("sizes", [[10 * MIB], [1, 3 * MIB, 2, MIB, 3]], ids=str)
async def test_what_the_socket_does_not_take_follows_in_order(sizes: list[int]) -> None:
    pair = await tcp()
    pieces = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    for piece in pieces:
        write(pair.server.transport, piece)
    pair.server.transport.loseConnection()
    assert await pair.client.over == b"".join(pieces)
    await pair.close()


async def test_it_waits_behind_what_waits() -> None:
    pair = await tcp()
    pair.server.transport.write(b"first ")
    write(pair.server.transport, b"second")
    pair.server.transport.loseConnection()
    assert await pair.client.over == b"first second"
    await pair.close()


async def test_whether_something_waits() -> None:
    """What the socket has taken does not, however little of it the peer has read."""
    pair = await tcp()
    write(pair.server.transport, b"now")
    assert not is_waiting(pair.server.transport)
    write(pair.server.transport, bytes(10 * MIB))
    assert is_waiting(pair.server.transport)
    pair.server.transport.loseConnection()
    assert len(await pair.client.over) == 3 + 10 * MIB
    assert not is_waiting(pair.server.transport)
    await pair.close()
    assert not is_waiting(StringTransport())


async def test_what_goes_round_the_reactor_waits() -> None:
    pair = await tcp()
    pair.server.transport.write(b"soon")
    assert is_waiting(pair.server.transport)
    await pair.close()


async def test_after_the_end_nothing_is_sent() -> None:
    """As with `write`, whoever has closed their side of the connection says no more."""
    pair = await tcp()
    pair.server.transport.loseWriteConnection()
    assert await pair.client.over == b""
    write(pair.server.transport, b"too late")
    await pair.close()


async def test_a_broken_connection_is_told_as_ever() -> None:
    pair = await tcp()
    pair.client.transport.abortConnection()
    while not pair.server.over.called:
        write(pair.server.transport, b"x" * MIB)
        from twisted.internet import reactor
        from twisted.internet.task import deferLater

        await deferLater(reactor, 0)
    await pair.close()


async def test_a_unix_socket_is_no_other(tmp_path: Any) -> None:
    from twisted.internet import reactor

    pair, path = Pair(), str(tmp_path / "socket")
    await pair.open(UNIXServerEndpoint(reactor, path), lambda _: UNIXClientEndpoint(reactor, path))
    write(pair.server.transport, b"x" * MIB)
    pair.server.transport.loseConnection()
    assert await pair.client.over == b"x" * MIB
    await pair.close()


def test_what_is_no_socket_is_written_to() -> None:
    transport = StringTransport()
    write(transport, b"there")
    assert transport.value() == b"there"


def heard_at_once(pair: Pair) -> bytes:
    """What has reached the client without a turn of the reactor."""
    try:
        return bytes(pair.client.transport.socket.recv(MIB))
    except BlockingIOError:
        return b""


async def test_what_is_gathered_goes_out_at_the_end_in_order() -> None:
    """Also when the reading has failed, and when the connection is to be closed."""
    pair = await tcp()
    with pytest.raises(ZeroDivisionError), gathered():
        write(pair.server.transport, b"first ")
        pair.server.transport.loseConnection()
        write(pair.server.transport, b"second")
        assert heard_at_once(pair) == b""
        raise ZeroDivisionError
    assert heard_at_once(pair) == b"first second"
    write(pair.server.transport, b" third")
    assert heard_at_once(pair) == b" third"
    await pair.close()


async def test_no_more_is_gathered_than_that() -> None:
    pair = await tcp()
    with gathered():
        write(pair.server.transport, b"x" * GATHERED_BYTES_MAX)
        assert heard_at_once(pair) == b""
        write(pair.server.transport, b"y")
        heard = b""
        while len(heard) <= GATHERED_BYTES_MAX:
            heard += heard_at_once(pair)
        write(pair.server.transport, b"z")
        assert heard_at_once(pair) == b""
    assert heard == b"x" * GATHERED_BYTES_MAX + b"y"
    assert heard_at_once(pair) == b"z"
    await pair.close()


async def test_to_gather_within_gathering_makes_no_difference() -> None:
    """All goes out at the end, in its order."""
    pair = await tcp()
    with gathered():
        write(pair.server.transport, b"first ")
        with gathered():
            write(pair.server.transport, b"second ")
        write(pair.server.transport, b"third")
        assert heard_at_once(pair) == b""
    assert heard_at_once(pair) == b"first second third"
    await pair.close()


class Failing:
    """A producer with a bug."""

    def pauseProducing(self) -> None:
        raise ZeroDivisionError

    def stopProducing(self) -> None:
        """The connection is going down."""


async def test_a_bug_costs_the_connection_that_met_it(nothing_logged_as_failure: list[LogEvent]) -> None:
    """The others' answers go out."""
    bad, good = await tcp(), await tcp()
    write(bad.server.transport, bytes(10 * MIB))
    bad.server.transport.registerProducer(Failing(), True)
    with gathered():
        write(bad.server.transport, b"x")
        write(good.server.transport, b"there")
    assert heard_at_once(good) == b"there"
    await bad.server.over
    assert len(nothing_logged_as_failure) == 1
    nothing_logged_as_failure.clear()
    await bad.close()
    await good.close()


def test_nothing_is_gathered_for_what_is_no_socket() -> None:
    """TLS says its goodbye when it is told to close, not when the reactor turns."""
    transport = StringTransport()
    with gathered():
        write(transport, b"there")
        assert transport.value() == b"there"
