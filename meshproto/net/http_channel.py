"""An HTTP connection of a node: quick, and nothing to wear the node down with.

It reads one request at a time (:mod:`meshproto.core.http1`), hands it what it reads, and takes its answer. Here is how
long a head and a body may take, what is said when they take longer, and whose turn it is when several requests have
come at once. What a request is, and the two ways of serving it, is in :mod:`meshproto.net.http_request`.
"""

from collections.abc import Callable, Iterable
from enum import Enum, IntFlag, auto
from typing import Any, Final
from typing import Protocol as Shape

from twisted.internet.interfaces import IDelayedCall, IProducer, IPushProducer, ISSLTransport, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from zope.interface import implementer

from meshproto.core.http1 import Head, Reader
from meshproto.core.limits import called, network_of
from meshproto.errors import BadParams, MeshError, TooLarge, TooSlow, Unavailable
from meshproto.net import direct
from meshproto.net.clocks import Timeout
from meshproto.net.http_limits import BODIES_FULL_S, Limits
from meshproto.net.listening import TLS_HANDSHAKE
from meshproto.net.problem import last_answer

IDLE_TIMEOUT_S: Final = 60
"""An HTTP connection that says nothing is closed."""
HEAD_S: Final = 15.0
"""From the first byte of a request to the end of its head."""
BODY_LOOK_S: Final = 20.0
"""How often it is looked whether a body comes along; it has this long to begin."""
BODY_BYTES_PER_S: Final = 4096
"""Slower is on purpose: half of what an ISDN line carries."""
CLOSE_S: Final = 15
"""A peer that does not take our last words in this time is cut off."""
DRAIN_S: Final = 2.0
"""How long a body is read on that was answered before it came, so that its sender reads the answer."""
DISCARD_BYTES_MAX: Final = 16 * 1024 * 1024
"""A body that nobody wants is read and thrown away up to here, so that its sender reads our answer; then we hang up."""
AHEAD_BYTES_MAX: Final = 16384
"""What is read of further requests while one is worked on: whoever hangs up is noticed as long as there is room."""


class Incoming(Shape):
    """What a channel knows of a request."""

    unhurried: bool
    """The body may take its time, and is answered while it comes."""
    answers_early: bool
    """It is answered before the body comes, which nobody wants."""
    counted: bool
    """Its network may have so many a second, and so many bytes that come to nothing."""
    received_bytes: int
    """Of the body."""
    pieces: int
    code: int
    """Of the answer."""
    startedWriting: int
    tally: list[int] | None
    """Where it is counted by the first digit of its code."""

    def received(self, piece: bytes) -> None:
        """So much more of the body has come. Raises the :class:`MeshError` that the client is to be told before the
        connection is closed."""

    def complete(self) -> None:
        """All of it has come: answer it. :meth:`Channel.requestDone` is called when that is done."""

    def let_go(self) -> None:
        """Nobody will read the body."""

    def connectionLost(self, reason: Failure) -> None:
        """Nobody will read the answer."""


class Site(Shape):
    """What a listener serves. `body_bytes_max`: the largest body that any of its routes takes. `make_request` raises
    the :class:`MeshError` that the client is to be told before the connection is closed."""

    reactor: Any
    limits: Limits
    body_bytes_max: int
    make_request: Callable[["Channel", Head], Incoming]


class Phase(Enum):
    IDLE = auto()
    """Nothing of a request is there."""
    HEAD = auto()
    BODY = auto()
    STREAM = auto()
    """A body that may take its time, and is answered while it comes."""
    ANSWERING = auto()
    DRAINING = auto()
    """The request is answered; its body is read on for a while, and nobody looks at it."""


class Hold(IntFlag):
    """Why nothing is read."""

    AHEAD = auto()
    """Enough has come of further requests."""
    OUTPUT = auto()
    """The client does not take the answers it has."""
    STREAM = auto()
    """Enough has come of a stream."""


class _Unwanted:
    """The body of a request that was answered before it came."""

    def __init__(self) -> None:
        self._bytes = 0

    def received(self, piece: bytes) -> None:
        self._bytes += len(piece)
        if self._bytes > DISCARD_BYTES_MAX:
            raise TooLarge


@implementer(IPushProducer)
class Channel(Protocol):
    """`site`: of the listener that the connection came in by."""

    log = Logger()
    transport: Any
    number = -1
    network = ""
    over = False  # the last word is said; nothing is read any more

    def __init__(self, site: Site) -> None:
        self.site = site
        self.limits = site.limits
        self._reader = Reader()
        self._phase = Phase.IDLE
        self._request: Incoming | None = None  # until it is answered
        self._coming: Incoming | _Unwanted | None = None  # until its body is there
        self._keeps_open = True
        self._body_bytes: int | None = None  # when it was looked last; None: that is not timed yet
        self._held = Hold(0)
        self._turn: IDelayedCall | None = None
        self._timeout = Timeout(site.reactor, self._too_late)

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)
        self._timeout.set(IDLE_TIMEOUT_S)
        self.network = network_of(getattr(self.transport.getPeer(), "host", ""))
        self.number = self.limits.enter(self, self.network)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.over, self._coming = True, None
        self.limits.leave(self.number)
        self._timeout.stop()
        if self._turn is not None:
            self._turn.cancel()  # nobody is there to hear the answers
            self._turn = None
        request, self._request = self._request, None
        if request is not None:
            request.connectionLost(reason)

    # -- the request, as it comes --------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        if self.over:
            return
        if self._phase is Phase.IDLE and not self._reader.unread and data.startswith(TLS_HANDSHAKE):
            self._refuse_tls()
            return
        self._reader.feed(data)
        if self._phase is Phase.ANSWERING or self._turn is not None or (self._held and self._phase is Phase.IDLE):
            if self._reader.unread > AHEAD_BYTES_MAX:
                self.hold(Hold.AHEAD)
            return
        self.resetTimeout()
        self._read()

    def resetTimeout(self) -> None:
        """A stream is not idle."""
        if self._phase is Phase.STREAM:
            self._timeout.set(IDLE_TIMEOUT_S)

    def _read(self) -> None:
        """As far as what has come goes, to the end of one request at most."""
        try:
            if self._coming is None:
                self._read_head()
            while (coming := self._coming) is not None and (piece := self._reader.piece()) is not None:
                if piece:
                    coming.received(piece)
                else:
                    self._complete(coming)
        except MeshError as error:
            self.refuse(error)
        if self._phase is Phase.BODY and self._body_bytes is None:
            self._body_bytes = 0
            self._timeout.set(BODY_LOOK_S)

    def _read_head(self) -> None:
        head = self._reader.head()
        if head is not None:
            self._begin(head)
        elif self._phase is Phase.IDLE and self._reader.unread:
            self._phase = Phase.HEAD
            self._timeout.set(HEAD_S)

    def _begin(self, head: Head) -> None:
        self._keeps_open = head.keeps_open
        request = self.site.make_request(self, head)
        self._request = self._coming = request
        self._body_bytes = None
        if request.answers_early:
            self._phase = Phase.DRAINING
            self._coming = _Unwanted()
            self._timeout.set(DRAIN_S)
            request.complete()
            return
        if head.expects_continue:
            direct.write(self.transport, b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.unhurried:
            self._phase = Phase.STREAM
            self.limits.busy(self.number)
            self._timeout.set(IDLE_TIMEOUT_S)
        else:
            self._phase = Phase.BODY

    def _complete(self, request: "Incoming | _Unwanted") -> None:
        self._coming = None
        if isinstance(request, _Unwanted):
            self._next()
            return
        self._phase = Phase.ANSWERING
        self._timeout.clear()
        self.limits.body_complete(self.number)
        request.complete()
        if self._request is request:  # not answered at once
            self.limits.busy(self.number)

    def requestDone(self, request: Incoming) -> None:
        """It was answered."""
        self._request = None
        if request.tally is not None:
            request.tally[request.code // 100] += 1
        self.limits.body_over(self.number)
        self.limits.idle(self.number)
        if request.counted and request.code < 400:
            self.limits.proven(self.network, request.received_bytes, request.pieces)
        if self._phase is not Phase.DRAINING:
            self._next()

    def close_when_done(self) -> None:
        """What comes yet is no request."""
        self._keeps_open = False

    def _next(self) -> None:
        """Another request, if there is one."""
        if self.over:
            return
        if not self._keeps_open:
            self._close(IDLE_TIMEOUT_S + CLOSE_S)
            return
        self._phase = Phase.IDLE
        self._timeout.set(IDLE_TIMEOUT_S)
        if self._reader.unread:
            self._wait_for_turn()
        elif self._held:
            self.release(Hold.AHEAD | Hold.STREAM)

    def _wait_for_turn(self) -> None:
        """More requests have come at once. Answered at once, all of them would be before anybody else is listened to;
        and nothing more is answered to whoever does not take the answers."""
        if self._turn is None and not self._held & Hold.OUTPUT:
            self._turn = self.site.reactor.callLater(0, self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        self.release(Hold.AHEAD | Hold.STREAM)
        self._read()

    # -- the end of it -------------------------------------------------------------------------------------------

    def refuse(self, error: MeshError) -> None:
        """Say why, unless the answer has begun, and close."""
        if self.over:
            return
        begun = self._phase is Phase.DRAINING or (self._request is not None and self._request.startedWriting)
        if not begun:
            direct.write(self.transport, last_answer(error))
        self._close(CLOSE_S)

    def _close(self, take_s: float) -> None:
        """When what was said is taken, which may last so long."""
        self.over, self._coming = True, None
        self._timeout.set(take_s)
        self.loseConnection()

    def _too_late(self) -> None:
        if self.over:
            self.transport.abortConnection()
        elif self._phase is Phase.HEAD:
            self.refuse(TooSlow(f"the head of a request has to come within {HEAD_S:g} s"))
        elif self._phase is Phase.BODY:
            self._look_at_body()
        else:
            self._close(CLOSE_S)

    def _look_at_body(self) -> None:
        """A window at a time, so that nobody who was quick at first may take for ever over the end."""
        received = 0 if self._request is None else self._request.received_bytes
        if received - (self._body_bytes or 0) < BODY_BYTES_PER_S * BODY_LOOK_S:
            self.refuse(TooSlow(f"the body of a request has to bring {BODY_BYTES_PER_S} bytes a second"))
            return
        self._body_bytes = received
        self._timeout.set(BODY_LOOK_S)

    def evict(self) -> None:
        """Somebody else needs the place."""
        self.over, self._coming = True, None
        self.transport.abortConnection()

    def push_out(self) -> None:
        """Others need the room that the body takes."""
        if self._request is not None:
            self._request.let_go()
        self.refuse(Unavailable("too many large requests are under way", retry_after_s=BODIES_FULL_S))

    def _refuse_tls(self) -> None:
        text = f"{called(self.network)} speaks TLS to a port of plain HTTP: it was hung up on"
        line = self.limits.notes.line("", text, self.limits.seconds())
        if line is not None:
            self.log.warn("{line}", line=line)
        self.refuse(BadParams("this port speaks plain HTTP, not TLS: use http://"))

    # -- reading pauses ------------------------------------------------------------------------------------------

    def hold(self, why: Hold) -> None:
        if not self._held:
            self.transport.pauseProducing()
        self._held |= why

    def release(self, why: Hold) -> None:
        held, self._held = self._held, self._held & ~why
        if held and not self._held and not self.over:
            self.transport.resumeProducing()

    def pauseProducing(self) -> None:
        """Of answers, the transport has enough."""
        self.hold(Hold.OUTPUT)

    def resumeProducing(self) -> None:
        self.release(Hold.OUTPUT)
        if self._phase is Phase.IDLE and self._reader.unread and not self.over:
            self._wait_for_turn()

    def stopProducing(self) -> None:
        """The connection is gone."""

    # -- what an answer is written with --------------------------------------------------------------------------

    def answer(self, text: bytes) -> None:
        """All of one, head and body."""
        if not self.over:
            direct.write(self.transport, text)

    # What Twisted's Request asks of its channel, as HTTPChannel and HTTP/2's streams offer it.

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        lines = [b"%s %s %s\r\n" % (version, code, reason)]
        lines += [b"%s: %s\r\n" % (name, value) for name, values in headers.getAllRawHeaders() for value in values]
        self.writeSequence([*lines, b"\r\n"])

    def write(self, data: bytes) -> None:
        if not self.over:
            direct.write(self.transport, data)

    def writeSequence(self, pieces: Iterable[bytes]) -> None:
        self.write(b"".join(pieces))

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """In our stead: what it is told is for the answer that it produces."""
        self.transport.unregisterProducer()
        self.transport.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        self.transport.unregisterProducer()
        if not self.over:
            self.transport.registerProducer(self, True)

    def loseConnection(self) -> None:
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def getPeer(self) -> Any:
        return self.transport.getPeer()

    def getHost(self) -> Any:
        return self.transport.getHost()

    def isSecure(self) -> bool:
        return ISSLTransport(self.transport, None) is not None
