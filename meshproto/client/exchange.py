"""One HTTP request on Twisted, whose answer is read while the request is still written.

Twisted's own agent hands an answer out when the request has been written to its end; a stream of messages is answered
line by line while it goes on. So this speaks HTTP itself: one request a connection, as :mod:`meshproto.client.node`.
"""

from collections import deque
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from meshproto.client.asking import Head, Request
from meshproto.client.errors import Unreachable
from meshproto.client.http1 import BadAnswer, ResponseReader

HELD_BYTES_MAX = 1024 * 1024  # read and not asked for: then the connection is not read on


class Exchange(Protocol):
    """`url`: for what is told of errors. A coroutine waits for :meth:`head`, then for :meth:`read` again and again;
    both raise :class:`Unreachable`. It is one that reads, and at most one that writes."""

    transport: Any

    def __init__(self, reactor: IReactorTime, url: str) -> None:
        self._reactor, self._url = reactor, url
        self._reader = ResponseReader()
        self._pieces: deque[bytes] = deque()
        self._held_bytes = 0
        self._error: Unreachable | None = None
        self._over = False
        self._wakes: Deferred[None] | None = None
        self._drains: Deferred[None] | None = None
        self._blocked = False
        self._is_paused = False
        self._silence_s: float | None = None
        self._patience: IDelayedCall | None = None

    # -- for a coroutine -----------------------------------------------------------------------------------------

    def begin(self, head: bytes, silence_s: float) -> None:
        """Send the request, or the beginning of one. From now on the node may be silent for so long."""
        self.expect(silence_s)
        self.transport.write(head)

    def expect(self, silence_s: float | None) -> None:
        """From now on the node may be silent for so long; None: for ever."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._silence_s = silence_s
        if silence_s is not None and not self._over and not self._is_paused:
            self._patience = self._reactor.callLater(silence_s, self._silent)

    async def head(self) -> Head:
        while self._reader.head is None:
            await self._more()
        return self._reader.head

    async def read(self) -> bytes:
        """The next piece of the body; empty at its end."""
        while not self._pieces:
            if self._reader.is_complete or (self._over and self._error is None):
                return b""
            await self._more()
        piece = self._pieces.popleft()
        self._held_bytes -= len(piece)
        if self._is_paused and not self._over:
            self._is_paused = False
            self.expect(self._silence_s)
            self.transport.resumeProducing()
        return piece

    async def write(self, data: bytes) -> None:
        """Ends when the connection takes more. What a node that has refused does not take is not its error."""
        if not self._over:
            self.transport.write(data)
        if self._blocked and not self._over:
            self._drains = Deferred()
            await self._drains

    def abort(self) -> None:
        self._over = True
        self.expect(None)
        if self.transport is not None:
            self.transport.abortConnection()

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        self._wakes = Deferred()
        try:
            await self._wakes
        finally:
            self._wakes = None

    def _wake(self) -> None:
        for waiting in (self._wakes, self._drains if self._over or not self._blocked else None):
            if waiting is not None and not waiting.called:
                waiting.callback(None)

    def _fail(self, reason: str) -> None:
        if self._error is None and not self._reader.is_complete:
            self._error = Unreachable(self._url, reason)
        self.abort()
        self._wake()

    def _silent(self) -> None:
        self._patience = None
        self._fail(f"no answer within {self._silence_s:g} s")

    # -- what the transport tells --------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)

    def pauseProducing(self) -> None:
        """As Twisted calls it: the connection takes no more for now."""
        self._blocked = True

    def resumeProducing(self) -> None:
        """It takes more."""
        self._blocked = False
        self._wake()

    def stopProducing(self) -> None:
        """It takes nothing any more; :meth:`connectionLost` follows."""

    def dataReceived(self, data: bytes) -> None:
        try:
            body = self._reader.feed(data)
        except BadAnswer as error:
            self._fail(str(error))
            return
        if body:
            self._pieces.append(body)
            self._held_bytes += len(body)
        if self._held_bytes > HELD_BYTES_MAX:
            self._is_paused = True
            self.transport.pauseProducing()
        self.expect(None if self._reader.is_complete else self._silence_s)
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._over = True
        self.expect(None)
        try:
            self._reader.end()
        except BadAnswer as error:
            if self._error is None:
                self._error = Unreachable(self._url, str(error))
        self._wake()


class Exchanges(Factory):
    """Makes one."""

    noisy = False

    def __init__(self, reactor: IReactorTime, url: str) -> None:
        self._reactor, self._url = reactor, url

    def buildProtocol(self, addr: object) -> Exchange:
        return Exchange(self._reactor, self._url)


def request_head(request: Request, path: str, host: str, headers: dict[str, str], content: bytes | None) -> bytes:
    """`content`: None where the body comes in chunks, or there is none."""
    fields = {"Host": host, **headers}
    if content is not None:
        fields["Content-Length"] = str(len(content))
    lines = [f"{request.method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + (content or b"")


def chunk(data: bytes) -> bytes:
    """A piece of a body that goes on; an empty one is its end."""
    return b"%x\r\n%b\r\n" % (len(data), data)
