"""A peer's HTTP server that says exactly what a test wants, over real sockets, plain or TLS."""

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure


class Line(Protocol):
    """One connection, as the peer's script sees it. `over` fires when it is closed, whoever closed it."""

    transport: Any

    def __init__(self, peer: "Peer") -> None:
        self._peer = peer
        self._heard = b""
        self._news: Deferred[None] = Deferred()
        self.over: Deferred[None] = Deferred()

    async def begun(self) -> None:
        """Something of a request is there."""
        await self._until(lambda: self._heard)

    async def request(self) -> bytes:
        """The body of the next request. Raises :class:`ConnectionLost` when there is none."""
        head = await self._until(lambda: self._heard.partition(b"\r\n\r\n")[1] and self._heard.index(b"\r\n\r\n") + 4)
        length = int(self._heard[:head].lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        end = await self._until(lambda: len(self._heard) >= head + length and head + length)
        request, self._heard = self._heard[:end], self._heard[end:]
        self._peer.requests.append(request)
        return request[head:]

    async def _until(self, there: Callable[[], Any]) -> Any:
        while not (found := there()):
            if self.over.called:
                raise ConnectionLost
            self._news = Deferred()
            await self._news
        return found

    def say(self, data: bytes) -> None:
        self.transport.write(data)

    async def turn(self) -> None:
        """Let what was said be sent."""
        from twisted.internet import reactor

        await deferLater(reactor, 0)

    def close(self) -> None:
        self.transport.loseConnection()

    def abort(self) -> None:
        self.transport.abortConnection()

    # what the transport tells

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self._peer.begin(self)

    def dataReceived(self, data: bytes) -> None:
        self._heard += data
        self._tell()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.over.callback(None)
        self._tell()

    def _tell(self) -> None:
        if not self._news.called:
            self._news.callback(None)


Script = Callable[[Line], Awaitable[None]]


class Peer(Factory):
    """Follows one script on each connection, in their order, the last one on all that come after it. `lines`: the
    connections made, `requests`: those that were read to the end."""

    noisy = False

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts
        self.lines: list[Line] = []
        self.requests: list[bytes] = []
        self._under_way: list[Deferred[None]] = []
        self._port: IListeningPort | None = None

    def buildProtocol(self, addr: object) -> Line:
        return Line(self)

    def begin(self, line: Line) -> None:
        script = self._scripts[min(len(self.lines), len(self._scripts) - 1)]
        self.lines.append(line)
        self._under_way.append(ensureDeferred(self._follow(script, line)))

    async def _follow(self, script: Script, line: Line) -> None:
        try:
            await script(line)
        except ConnectionLost:
            return

    async def listen(self, endpoint: Any = None) -> int:
        """The port's number; without an endpoint on plain TCP."""
        from twisted.internet import reactor

        port = await (endpoint or TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")).listen(self)
        self._port = port
        return int(port.getHost().port)

    async def stop(self) -> None:
        """Takes no more connections."""
        assert self._port is not None
        await maybeDeferred(self._port.stopListening)

    async def close(self) -> None:
        """When all connections are closed, which is up to the client, and no script has failed."""
        await self.stop()
        for outcome in (*self._under_way, *(line.over for line in self.lines)):
            await outcome


def answers(*texts: bytes) -> Script:
    """One of these to each request, the last one to all that come after it."""

    async def script(line: Line) -> None:
        for number in range(1000):
            await line.request()
            line.say(texts[min(number, len(texts) - 1)])

    return script
