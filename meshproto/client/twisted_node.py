"""The way to ask a node on Twisted: :class:`Node`."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.web.client import URI

from meshproto.client import asking
from meshproto.client.asking import (
    ANSWER_TIMEOUT_S,
    EVENTS_SILENCE_S,
    SEND_LINES,
    SILENCE_S,
    STREAM_TYPE,
    Answer,
    Lines,
    Questions,
    Request,
)
from meshproto.client.errors import Document, Unreachable
from meshproto.client.exchange import Exchange, Exchanges, chunk, request_head
from meshproto.client.node import NO_EVENTS, NO_LINES
from meshproto.client.settings import BadSetting, Settings
from meshproto.client.under_way import UnderWay
from meshproto.errors import BadState
from meshproto.net.listening import join_address
from meshproto.net.tls import Endpoints, Trust


class Node(Questions["Deferred[Answer]"]):
    """A user node; every method asks once. `reactor`: Twisted's, unless a test has another."""

    def __init__(self, reactor: Any, given: Settings, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._reactor, self._place, self._token, self._timeout_s = reactor, given.place, given.token, timeout_s
        self.url = given.place.url
        try:
            self._endpoints = Endpoints(reactor, Trust.read(given.ca))
        except BadState as error:
            raise BadSetting(str(error)) from error

    def ask(self, request: Request) -> "Deferred[Answer]":
        """Fails with :class:`Problem`, :class:`Unreachable`."""
        return Deferred.fromCoroutine(self._ask(request))

    async def _ask(self, request: Request) -> Answer:
        handed_over = False
        exchange = await self._connect()
        try:
            content = (request.content() or b"") if request.method != "GET" else None
            head_bytes = self._head_of(request, request.headers(self._token), content)
            exchange.begin(head_bytes, self._timeout_s + request.wait_s)
            handed_over = request.sends
            head = await exchange.head()
            # These refuse, whoever it is that answers.
            handed_over = handed_over and not 300 <= head.status < 500
            return asking.read_answer(self.url, head, await self._read(exchange))
        except Unreachable as error:
            error.uncertain = handed_over
            raise
        finally:
            exchange.abort()

    async def events(self, request: Request) -> AsyncGenerator[Document, None]:
        """The lines that a request is answered with, until they end."""
        exchange = await self._connect()
        try:
            exchange.begin(self._head_of(request, request.headers(self._token), None), self._timeout_s)
            await self._check_stream(exchange, NO_EVENTS)
            exchange.expect(EVENTS_SILENCE_S)
            async for document in self._documents(exchange):
                yield document
        finally:
            exchange.abort()

    async def send_lines(self, lines: UnderWay, more: Callable[[], "Deferred[None]"]) -> AsyncGenerator[Document, None]:
        """Send those under way while their results come. `more`: fires when there may be more of them, or fewer; it is
        cancelled when this ends."""
        exchange = await self._connect()
        writing: Deferred[None] | None = None
        try:
            headers = {"Content-Type": STREAM_TYPE, "Transfer-Encoding": "chunked", **SEND_LINES.headers(self._token)}
            exchange.begin(self._head_of(SEND_LINES, headers, None), self._timeout_s)
            writing = Deferred.fromCoroutine(_write(exchange, lines, more))
            writing.addErrback(lambda failure: failure.trap(CancelledError))
            await self._check_stream(exchange, NO_LINES)
            async for document in self._documents(exchange):
                yield document
        finally:
            exchange.abort()
            if writing is not None:
                writing.cancel()

    async def _connect(self) -> Exchange:
        try:
            connecting = self._endpoint().connect(Exchanges(self._reactor, self.url))
            return cast(Exchange, await connecting)
        except CancelledError:
            raise
        except Exception as error:  # connecting fails in as many ways as it has layers
            raise Unreachable(self.url, str(error).lower().rstrip(".")) from error

    def _endpoint(self) -> IStreamClientEndpoint:
        place = self._place
        if place.socket_path:
            return UNIXClientEndpoint(self._reactor, place.socket_path, self._timeout_s)
        uri = URI.fromBytes(self.url.encode("ascii"))
        endpoint: IStreamClientEndpoint = self._endpoints.http(self._timeout_s).endpointForURI(uri)
        return endpoint

    def _head_of(self, request: Request, headers: dict[str, str], content: bytes | None) -> bytes:
        place = self._place
        host = "localhost" if place.socket_path else place.host
        if place.port is not None:
            host = join_address(host, place.port)
        return request_head(request, place.prefix + request.path, host, headers, content)

    async def _read(self, exchange: Exchange) -> bytes:
        content = bytearray()
        while piece := await exchange.read():
            content += piece
            if len(content) > asking.ANSWER_BYTES_MAX:
                raise Unreachable(self.url, f"its answer is longer than {asking.ANSWER_BYTES_MAX} bytes")
        return bytes(content)

    async def _check_stream(self, exchange: Exchange, lacking: str) -> None:
        head = await exchange.head()
        if not asking.is_stream(head):
            raise asking.read_no_stream(self.url, head, await self._read(exchange), lacking)

    async def _documents(self, exchange: Exchange) -> AsyncIterator[Document]:
        lines = Lines(self.url)
        while piece := await exchange.read():
            for document in lines.feed(piece):
                yield document


async def _write(exchange: Exchange, lines: UnderWay, more: Callable[[], "Deferred[None]"]) -> None:
    """Write until everything is: no faster than the node reads."""
    while not lines.ended:
        data = lines.next_bytes()
        if not data:
            exchange.expect(SILENCE_S if lines.waiting else None)
            await more()
            continue
        exchange.expect(SILENCE_S)
        await exchange.write(chunk(data))
    exchange.expect(SILENCE_S)
    await exchange.write(chunk(b""))
