"""The HTTP client under deliveries: POSTs over connections that are kept.

A lone message is a POST of its own, and Twisted's agent takes several times as much work for one as all the rest of its
delivery. So here a request is one write, straight to the socket; an answer is read by
:mod:`meshproto.net.http_answer`; whoever waits has one Deferred, and hears of the answer in the call that brought its
last byte; and one timer serves all that is under way.

What a client may do and this one does not: follow redirects, keep cookies, unpack bodies, ask proxies, send a request
before the last one is answered. Where a connection may lead is not decided here but by the endpoints it is made with.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred, DeferredList, fail, maybeDeferred
from twisted.internet.error import ConnectionDone, TCPTimedOutError, TimeoutError
from twisted.internet.interfaces import IAddress, INegotiated, IReactorTime, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import URI
from twisted.web.iweb import IAgentEndpointFactory

from meshproto.core.reach import Reach
from meshproto.errors import NoAnswer, NotInTime, PeerError, Unreachable
from meshproto.net import direct
from meshproto.net.clocks import Deadlines
from meshproto.net.http_answer import Answer, Reader
from meshproto.net.listening import idle_max

EXCHANGE_S: Final = 30.0
"""From the call to the whole answer: a batch of a megabyte over a slow line, and the commit at the other end."""
ANSWER_BYTES_MAX: Final = 512 * 1024
"""A sealed receipt: 1000 ids of 128 characters, and base64's third."""
KEEP_ALIVE_S: Final = 50.0
"""Below the minute after which a node closes an idle connection, so that it is we who close."""
IDLE_MAX: Final = 1024
"""Connections kept in all: one for each of a thousand recipients, at a few kilobytes. The one not used longest goes."""
IDLE_PER_HOST_MAX: Final = 4
"""Connections kept for one host and port. A user has one batch under way at a time, but several users may live behind
one proxy."""
LARGE_BODY_BYTES: Final = 64 * 1024
"""A body of this size is written after its head, not with it: to copy it would cost more than another system call."""
TARGETS_MAX: Final = 2048
"""URIs whose parts are remembered, at a kilobyte: of all who are served, and twice those who have a connection."""

_PRINTABLE: Final = re.compile(r"[!-~]+")
_DEFAULT_PORTS: Final = {b"http": 80, b"https": 443}
_HEADERS: Final = b"Content-Type: application/json\r\nAccept-Encoding: identity\r\nContent-Length: "

Endpoints = Callable[[Reach], IAgentEndpointFactory]
"""Where connections lead that may go so far."""


class _Place(NamedTuple):
    """What a connection is good for. One that was made where a neighbour's record may lead is not lent to a stranger's,
    so it is kept by its reach, too."""

    reach: Reach
    scheme: bytes
    host: bytes
    port: int


class _Target(NamedTuple):
    """`head`: that of a request, up to the length of its body."""

    place: _Place
    uri: URI
    head: bytes


@lru_cache(TARGETS_MAX)
def _target(text: str, reach: Reach) -> _Target:
    """Raises ValueError with what is wrong with the URI."""
    if not _PRINTABLE.fullmatch(text):
        raise ValueError("it has characters that no URI has")
    uri = URI.fromBytes(text.encode("ascii"))
    if uri.scheme not in _DEFAULT_PORTS or not uri.host:
        raise ValueError("it does not begin with http:// or https:// and a host")
    host = b"[%b]" % uri.host if b":" in uri.host else uri.host
    authority = host if uri.port == _DEFAULT_PORTS[uri.scheme] else b"%b:%d" % (host, uri.port)
    head = b"POST %b HTTP/1.1\r\nHost: %b\r\n%b" % (uri.originForm, authority, _HEADERS)
    return _Target(_Place(reach, uri.scheme, uri.host, uri.port), uri, head)


class _Exchange:
    """A request, and who waits for its answer. Until it is over one of `connecting` and `connection` is there.
    `may_have_arrived`: it was sent over a connection that turned out to be closed."""

    __slots__ = ("body", "connecting", "connection", "done", "head", "may_have_arrived", "target")

    def __init__(self, target: _Target, body: bytes, cancelled: "Callable[[_Exchange], None]") -> None:
        self.target = target
        self.head = b"%b%d\r\n\r\n" % (target.head, len(body))
        self.body = body
        self.done: Deferred[Answer] = Deferred(lambda _: cancelled(self))
        self.may_have_arrived = False
        self.connecting: Deferred[Any] | None = None
        self.connection: _Connection | None = None


class HTTPClient:
    """`endpoints`: where connections lead."""

    def __init__(self, clock: IReactorTime, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._under_way: Deadlines[_Exchange] = Deadlines(clock, EXCHANGE_S, self._overdue)
        self._kept = _Kept(clock)
        self._connections: set[_Connection] = set()
        self._closed = False

    def post(self, uri: str, body: bytes, reach: Reach) -> "Deferred[Answer]":
        """The answer, of whatever status, to a POST of JSON. It is one that may be repeated: when a connection that was
        kept turns out to be closed the request is sent once more, over a new one. Fails with :class:`Unreachable` when
        nothing was sent, :class:`NoAnswer` when something was, :class:`PeerError` when the answer is not taken.
        Cancelling closes the connection."""
        if self._closed:
            return fail(Unreachable("this node is shutting down"))
        try:
            target = _target(uri, reach)
        except ValueError as reason:
            return fail(Unreachable(f"it cannot be posted to: {reason}"))
        exchange = _Exchange(target, body, self._let_go)
        self._under_way.begin(exchange)
        connection = self._kept.take(target.place)
        if connection is not None:
            connection.send(exchange)
        else:
            self._connect(exchange)
        return exchange.done

    def close(self) -> "Deferred[Any]":
        """Fires when all connections are gone. Nothing is posted after this."""
        self._closed = True
        for exchange in self._under_way.stop():
            exchange.done.cancel()
        self._kept.stop()
        return DeferredList([connection.end() for connection in list(self._connections)])

    # -- its connections -----------------------------------------------------------------------------------------

    def opened(self, connection: "_Connection") -> None:
        self._connections.add(connection)

    def keep(self, connection: "_Connection") -> bool:
        """For the next request; False: it is to be closed."""
        if not self._closed:
            self._kept.add(connection)
        return not self._closed

    def retire(self, connection: "_Connection") -> None:
        """It is not to be used any more."""
        self._kept.drop(connection)

    def gone(self, connection: "_Connection") -> None:
        self.retire(connection)
        self._connections.discard(connection)

    # -- an exchange ---------------------------------------------------------------------------------------------

    def _connect(self, exchange: _Exchange) -> None:
        exchange.connecting = maybeDeferred(self._dial, exchange.target)
        exchange.connecting.addCallbacks(
            self._connected, self._not_connected, callbackArgs=(exchange,), errbackArgs=(exchange,)
        )

    def _dial(self, target: _Target) -> "Deferred[Any]":
        endpoint = self._endpoints(target.place.reach).endpointForURI(target.uri)
        connecting: Deferred[Any] = endpoint.connect(_Connections(self, target.place))
        return connecting

    def _connected(self, connection: "_Connection", exchange: _Exchange) -> None:
        if exchange.connecting is None:
            connection.close()
            return
        exchange.connecting = None
        connection.send(exchange)

    def _not_connected(self, failure: Failure, exchange: _Exchange) -> None:
        if exchange.connecting is None:
            return
        exchange.connecting = None
        # Connecting fails in as many ways as it has layers.
        kind = NoAnswer if exchange.may_have_arrived else _kind_of(failure.value)
        self._fail(exchange, kind(_words_of(failure)))

    def answered(self, exchange: _Exchange, answer: Answer) -> None:
        self._under_way.end(exchange)
        exchange.done.callback(answer)

    def lost(self, exchange: _Exchange, reason: Failure, *, again: bool) -> None:
        """The connection was closed before the answer was there. `again`: it had been kept, and nothing came over it,
        so that most likely it was closed before the request was sent."""
        if again:
            exchange.may_have_arrived = True
            self._connect(exchange)
        else:
            self._fail(exchange, NoAnswer(_words_of(reason)))

    def refused(self, exchange: _Exchange, error: PeerError) -> None:
        """What came is no answer, or none that is taken."""
        self._fail(exchange, error)

    def _fail(self, exchange: _Exchange, error: PeerError) -> None:
        self._under_way.end(exchange)
        exchange.done.errback(error)

    def _overdue(self, exchange: _Exchange) -> None:
        if exchange.connecting is None or exchange.may_have_arrived:
            error: PeerError = NoAnswer(f"no answer in {EXCHANGE_S:g} s")
        else:
            error = NotInTime(f"no connection in {EXCHANGE_S:g} s")
        self._let_go(exchange)
        self._fail(exchange, error)

    def _let_go(self, exchange: _Exchange) -> None:
        """Nobody waits any more."""
        self._under_way.end(exchange)
        connecting, exchange.connecting = exchange.connecting, None
        if connecting is not None:
            connecting.cancel()
        if exchange.connection is not None:
            exchange.connection.abort()


class _Kept:
    """The connections over which nothing is under way."""

    def __init__(self, clock: IReactorTime) -> None:
        self._at: dict[_Place, list[_Connection]] = {}  # the one used last is the last
        self._idle: Deadlines[_Connection] = Deadlines(clock, KEEP_ALIVE_S, self._close)
        self._idle_max = idle_max(IDLE_MAX)

    def take(self, place: _Place) -> "_Connection | None":
        """One to use."""
        connections = self._at.get(place)
        if connections is None:
            return None
        connection = connections[-1]
        self.drop(connection)
        return connection

    def add(self, connection: "_Connection") -> None:
        """It was used, and may be again. Another may go for it."""
        connections = self._at.setdefault(connection.place, [])
        connections.append(connection)
        self._idle.begin(connection)
        if len(connections) > IDLE_PER_HOST_MAX:
            self._close(connections[0])
        elif len(self._idle) > self._idle_max:
            self._close(self._idle.first)

    def drop(self, connection: "_Connection") -> None:
        """It is no longer one of these, if it was."""
        self._idle.end(connection)
        connections = self._at.get(connection.place, [])
        if connection in connections:
            connections.remove(connection)
            if not connections:
                del self._at[connection.place]

    def stop(self) -> None:
        self._idle.stop()

    def _close(self, connection: "_Connection") -> None:
        self.drop(connection)
        connection.close()


class _Connections(Factory):
    noisy = False

    def __init__(self, client: HTTPClient, place: _Place) -> None:
        self._client = client
        self._place = place

    def buildProtocol(self, addr: IAddress | None) -> "_Connection":
        return _Connection(self._client, self._place)


class _Connection(Protocol):
    """One exchange after the other."""

    transport: Any

    def __init__(self, client: HTTPClient, place: _Place) -> None:
        self.place = place
        self._client = client
        self._exchange: _Exchange | None = None
        self._reader: Reader | None = None  # while there is an exchange
        self._was_kept = False
        self._ended: Deferred[None] = Deferred()

    def send(self, exchange: _Exchange) -> None:
        exchange.connection = self
        self._exchange, self._reader = exchange, Reader(ANSWER_BYTES_MAX)
        head, body = exchange.head, exchange.body
        if len(body) < LARGE_BODY_BYTES:
            direct.write(self.transport, head + body)
        else:
            direct.write(self.transport, head)
            self.transport.write(body)

    def close(self) -> None:
        """In good order, where that is up to us: a peer that takes nothing more, or speaks TLS, would have to help."""
        self._client.retire(self)
        if INegotiated.providedBy(self.transport) or direct.is_waiting(self.transport):
            self.transport.abortConnection()
        else:
            self.transport.loseConnection()

    def abort(self) -> None:
        """At once. Whoever waits for an answer is not told."""
        self._over()
        self.transport.abortConnection()

    def end(self) -> "Deferred[None]":
        """Close; fires when it is closed."""
        self.close()
        return self._ended

    def _over(self) -> None:
        """Nobody waits for an answer any more."""
        if self._exchange is not None:
            self._exchange.connection = None
        self._exchange = self._reader = None

    # -- what the transport tells --------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self._client.opened(self)
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        exchange, reader = self._exchange, self._reader
        if exchange is None or reader is None:
            self.close()  # it is the answer to nothing
            return
        try:
            answer = reader.feed(data)
        except PeerError as error:
            self.abort()
            self._client.refused(exchange, error)
            return
        if answer is None:
            return
        self._over()
        self._was_kept = True
        # An answer to a request that has not been sent to its end is the last of this connection, too.
        if not reader.reusable or direct.is_waiting(self.transport) or not self._client.keep(self):
            self.close()
        self._client.answered(exchange, answer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        exchange, reader = self._exchange, self._reader
        self._over()
        self._client.gone(self)
        self._ended.callback(None)
        if exchange is None or reader is None:
            return
        answer = reader.end() if reason.check(ConnectionDone) else None
        if answer is not None:
            self._client.answered(exchange, answer)
        else:
            self._client.lost(exchange, reason, again=self._was_kept and not reader.begun)


def _kind_of(reason: BaseException | None) -> type[Unreachable]:
    """Why a connection did not come about."""
    if isinstance(reason, (TimeoutError, TCPTimedOutError)):
        return NotInTime
    return type(reason) if isinstance(reason, Unreachable) else Unreachable


def _words_of(failure: Failure) -> str:
    """Why a connection broke or did not come about."""
    return failure.getErrorMessage() or type(failure.value).__name__
