"""Lines over real sockets: what the kernel's buffers, resets and half closes make of them, whether the reactor reads
each or all are read together."""

import socket
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import (
    SSL4ClientEndpoint,
    SSL4ServerEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    connectProtocol,
)
from twisted.internet.interfaces import IListeningPort, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure

from meshproto.net.lines import STALL_S, Lines, LinesFactory
from meshproto.net.together import read_together
from tests.net.certificates import self_signed

MIB = 1024 * 1024


class Server:
    """Serves one connection; `gone` fires when it is lost."""

    def __init__(self, answer: Callable[[Lines, bytes], None]) -> None:
        self.answer = answer
        self.lines: Lines | None = None
        self.served = 0
        self.gone: Deferred[None] = Deferred()

    def opened(self, lines: Lines) -> None:
        self.lines = lines

    def line(self, lines: Lines, line: bytes) -> None:
        self.served += 1
        self.answer(lines, line)

    def closed(self, lines: Lines, reason: str) -> None:
        self.gone.callback(None)


class Client(Protocol):
    """Says something, and perhaps that this is all; `heard` fires with all that came until the connection ended."""

    def __init__(self, says: bytes, *, all_said: bool = False) -> None:
        self.says = says
        self.all_said = all_said
        self.got = b""
        self.heard: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(self.says)
        if self.all_said:
            transport.loseWriteConnection()

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.heard.callback(self.got)


Reading = Callable[[IListeningPort], None]


@pytest.fixture(params=[lambda port: None, read_together], ids=["by the reactor", "together"])
def reading(request: pytest.FixtureRequest) -> Reading:
    """How the connections of a port are read from."""
    return request.param  # type: ignore[no-any-return]


async def listen(reactor: Any, server: Server, clock: IReactorTime, reading: Reading) -> tuple[IListeningPort, int]:
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(LinesFactory(lambda _: server, clock))
    reading(port)
    return port, port.getHost().port


async def hear(server: Server, client: Client, clock: IReactorTime, reading: Reading) -> bytes:
    """All that the client hears from the server."""
    from twisted.internet import reactor

    port, number = await listen(reactor, server, clock, reading)
    return await converse(server, client, port, TCP4ClientEndpoint(reactor, "127.0.0.1", number))


async def hear_tls(server: Server, client: Client, clock: IReactorTime, reading: Reading) -> bytes:
    """The same, encrypted."""
    from twisted.internet import reactor
    from twisted.internet.ssl import CertificateOptions, PrivateCertificate

    certificate = PrivateCertificate.loadPEM(self_signed("localhost"))
    listening = SSL4ServerEndpoint(reactor, 0, certificate.options(), interface="127.0.0.1")
    port = await listening.listen(LinesFactory(lambda _: server, clock))
    reading(port)
    number = port.getHost().port
    return await converse(server, client, port, SSL4ClientEndpoint(reactor, "127.0.0.1", number, CertificateOptions()))


async def converse(server: Server, client: Client, port: IListeningPort, endpoint: IStreamClientEndpoint) -> bytes:
    await connectProtocol(endpoint, client)
    heard = await client.heard
    await server.gone
    await maybeDeferred(port.stopListening)
    return heard


async def test_the_413_reaches_a_client_that_is_still_sending(reading: Reading) -> None:
    """A client that pushes a megabyte without a newline reads the whole error line, not a reset."""
    server = Server(lambda lines, line: None)
    assert_is_413(await hear(server, Client(b"x" * MIB), Clock(), reading))
    assert server.served == 0


# Twisted hands pyOpenSSL its own kind of certificate.
@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
async def test_the_413_reaches_a_client_over_tls(reading: Reading) -> None:
    """Encrypted too, where the socket must not be half closed under TLS's own goodbye."""
    server = Server(lambda lines, line: None)
    assert_is_413(await hear_tls(server, Client(b"x" * MIB), Clock(), reading))


def assert_is_413(heard: bytes) -> None:
    assert heard.count(b"\n") == 1
    assert msgspec.json.decode(heard)["error"]["code"] == 413


@pytest.mark.parametrize("requests", [1, 500])
async def test_a_client_that_closes_its_side_hears_the_answers(reading: Reading, requests: int) -> None:
    """`printf '...' | nc -N` gets an answer to each request, though the end of its words came with them."""
    server = Server(lambda lines, line: lines.send(line + b"\n"))
    said = b"".join(b"request %d\n" % number for number in range(requests))
    assert await hear(server, Client(said, all_said=True), Clock(), reading) == said


async def test_a_client_that_closes_its_side_hears_what_is_answered_later(reading: Reading) -> None:
    """A half-closed connection waits for a request that is held for the disk."""
    from twisted.internet import reactor

    def later(lines: Lines, line: bytes) -> None:
        def answer() -> None:
            lines.send(line + b"\n")
            lines.release()

        lines.hold()
        reactor.callLater(0, reactor.callLater, 0, answer)

    assert await hear(Server(later), Client(b"a\n", all_said=True), Clock(), reading) == b"a\n"


async def test_a_client_that_never_reads_costs_little(reading: Reading) -> None:
    """A client that asks for 100 MiB of answers without reading them is not read from when the kernel's buffers are
    full: the server keeps less than a mebibyte for it, never takes four, and cuts it off after STALL_S."""
    from twisted.internet import reactor

    answer = b"y" * 8191 + b"\n"
    server = Server(lambda lines, line: lines.send(answer))
    clock = Clock()
    port, number = await listen(reactor, server, clock, reading)
    with socket.create_connection(("127.0.0.1", number)) as client:
        client.setblocking(False)
        tracemalloc.start()
        try:
            asked = await pour(reactor, client)
            kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert server.lines is not None
        assert server.lines.blocked
        assert asked * len(answer) > 100 * MIB
        assert kept_bytes < MIB
        assert peak_bytes < 4 * MIB
        clock.advance(STALL_S)
        await server.gone
    await maybeDeferred(port.stopListening)


async def pour(reactor: Any, client: socket.socket) -> int:
    """Send requests until the kernel has taken no more for a hundred turns of the reactor. Returns how many it took."""
    requests = b"r\n" * 8192
    sent_bytes = refused = 0
    while refused < 100:
        try:
            sent_bytes += client.send(requests[sent_bytes % 2 :])
            refused = 0
        except BlockingIOError:
            refused += 1
        await deferLater(reactor, 0, lambda: None)
    return sent_bytes // 2
