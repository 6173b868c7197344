"""An HTTP connection that cannot be used to wear the node down.

Twisted reads HTTP/1.1 and is strict about it. What it leaves to the application is here: how long a head and a body may
take, how large a head may be, which connection goes when there are too many, and an answer with a reason in all these
cases. Its timeout begins anew with each byte, so that a byte a minute keeps a connection for ever; this one's does not.
"""

from enum import Enum, auto
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from meshproto.core.limits import network_of
from meshproto.errors import (
    BadParams,
    HeadTooLarge,
    MeshError,
    TargetTooLong,
    TooLarge,
    TooSlow,
    Unavailable,
)
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
LINE_BYTES_MAX: Final = 8192
"""The request line, and each header field (RFC 9110, section 4.1, wants at least 8000)."""
HEAD_BYTES_MAX: Final = 16384
"""All of a head."""
HEADERS_MAX: Final = 100
"""Header fields; a browser sends about twenty."""
LENGTH_DIGITS_MAX: Final = 15
"""Of a Content-Length: Python refuses to read thousands of digits, by an exception that nobody expects."""
CLOSE_S: Final = 15
"""A peer that does not take our last words in this time is cut off."""
TLS_LOG_S: Final = 60.0
"""At most one line in the log in this time about clients that speak TLS."""


class Phase(Enum):
    IDLE = auto()
    """Nothing of a request is there."""
    HEAD = auto()
    BODY = auto()
    STREAM = auto()
    """A body that may take its time, and is answered while it comes."""
    ANSWERING = auto()


class Channel(HTTPChannel):
    """`limits`: those of the listener that the connection came in by."""

    log = Logger()
    transport: Any
    MAX_LENGTH = LINE_BYTES_MAX
    abortTimeout = CLOSE_S
    number = -1
    network = ""
    over = False  # the last word is said; nothing is read any more

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits
        self._phase = Phase.IDLE
        self._head_bytes = 0
        self._has_request_line = False
        self._body_bytes = 0  # when it was looked last
        self._turn: IDelayedCall | None = None

    def connectionMade(self) -> None:
        super().connectionMade()
        self.network = network_of(getattr(self.transport.getPeer(), "host", ""))
        self.number = self.limits.enter(self, self.network)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.limits.leave(self.number)
        if self._turn is not None:
            self._turn.cancel()  # nobody is there to hear the answers
            self._turn = None
        super().connectionLost(reason)

    # -- the request, as it comes --------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        if self.over:
            return
        if self._phase is Phase.IDLE and self._turn is None:
            if data.startswith(TLS_HANDSHAKE):
                self._refuse_tls()
                return
            self._begin()
        super().dataReceived(data)
        if self._phase is Phase.IDLE and self._buffer and self._turn is None:  # the next request came along with this
            self._begin()

    def _begin(self) -> None:
        self._phase = Phase.HEAD
        self._head_bytes = 0
        self._has_request_line = False
        self.setTimeout(HEAD_S)

    def resetTimeout(self) -> None:
        if self._phase not in (Phase.HEAD, Phase.BODY):
            super().resetTimeout()

    def lineReceived(self, line: bytes) -> None:
        if self.over:
            return
        if self._phase is Phase.IDLE:
            self._begin()
        self._head_bytes += len(line) + 2
        if self._head_bytes > HEAD_BYTES_MAX:
            self.refuse(HeadTooLarge(f"the head of a request has at most {HEAD_BYTES_MAX} bytes"))
            return
        self._has_request_line = self._has_request_line or bool(line)
        super().lineReceived(line)

    def lineLengthExceeded(self, line: bytes) -> None:
        if self._has_request_line:
            self.refuse(HeadTooLarge(f"a header field has at most {LINE_BYTES_MAX} bytes"))
        else:
            self.refuse(TargetTooLong(f"the first line of a request has at most {LINE_BYTES_MAX} bytes"))

    def headerReceived(self, line: bytes) -> bool:
        """Whether the head may go on."""
        if self.over:
            return False
        if self._receivedHeaderCount >= HEADERS_MAX:
            self.refuse(HeadTooLarge(f"a request has at most {HEADERS_MAX} header fields"))
            return False
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name == b"content-length" and value.isdigit() and len(value) > LENGTH_DIGITS_MAX:
            self.refuse(TooLarge("a body of that length is not taken"))
            return False
        if name == b"transfer-encoding" and value.lower() != b"chunked":
            self.refuse(BadParams("of transfer encodings only 'chunked' is taken"))
            return False
        return bool(super().headerReceived(line))

    def allHeadersReceived(self) -> None:
        if self.over:
            return
        super().allHeadersReceived()
        if self.over:
            return
        if self.requests[-1].unhurried:
            self._phase = Phase.STREAM
            self.limits.busy(self.number)
            self.setTimeout(IDLE_TIMEOUT_S)
        else:
            self._phase = Phase.BODY
            self._body_bytes = 0
            self.setTimeout(BODY_LOOK_S)

    def rawDataReceived(self, data: bytes) -> None:
        if not self.over:
            super().rawDataReceived(data)

    def allContentReceived(self) -> None:
        if self.over:
            return
        self._phase = Phase.ANSWERING
        self.limits.busy(self.number)
        self.limits.body_complete(self.number)
        super().allContentReceived()

    def requestDone(self, request: Any) -> None:
        self.limits.body_over(self.number)
        self.limits.idle(self.number)
        if request.code < 400:
            self.limits.proven(self.network, request.received_bytes, request.pieces)
        self._phase = Phase.IDLE
        self._savedTimeOut = IDLE_TIMEOUT_S  # not what was left for the body
        super().requestDone(request)
        if not self.persistent:
            self.setTimeout(IDLE_TIMEOUT_S)  # to take the answer
        elif self._buffer and self._turn is None:
            # More have come with it. Twisted would answer all of them before anybody else is listened to.
            self.paused = True
            self._turn = self.callLater(0, self._go_on)

    def _go_on(self) -> None:
        """The next of several requests that came at once."""
        self._turn = None
        self.paused = False
        self.dataReceived(b"")

    # -- the end of it -------------------------------------------------------------------------------------------

    def refuse(self, error: MeshError) -> None:
        """Say why, and close."""
        if self.over:
            return
        self.transport.write(last_answer(error))
        self._close()

    def _close(self) -> None:
        self.over = True
        self.setTimeout(None)
        if self._abortingCall is None:
            self._abortingCall = self.callLater(self.abortTimeout, self.forceAbortClient)
        self.loseConnection()

    def timeoutConnection(self) -> None:
        if self._phase is Phase.HEAD:
            self.refuse(TooSlow(f"the head of a request has to come within {HEAD_S:g} s"))
        elif self._phase is Phase.BODY:
            self._look_at_body()
        else:
            self._close()

    def _look_at_body(self) -> None:
        """A window at a time, so that nobody who was quick at first may take for ever over the end."""
        received = self.requests[-1].received_bytes
        if received - self._body_bytes < BODY_BYTES_PER_S * BODY_LOOK_S:
            self.refuse(TooSlow(f"the body of a request has to bring {BODY_BYTES_PER_S} bytes a second"))
            return
        self._body_bytes = received
        self.setTimeout(BODY_LOOK_S)

    def forceAbortClient(self) -> None:
        self._abortingCall = None
        self.transport.abortConnection()

    def evict(self) -> None:
        """Somebody else needs the place."""
        self.over = True
        self.transport.abortConnection()

    def push_out(self) -> None:
        """Others need the room that the body takes."""
        self.requests[-1].let_go()
        self.refuse(Unavailable("too many large requests are under way", retry_after_s=BODIES_FULL_S))

    def _respondToBadRequestAndDisconnect(self) -> None:
        # What Twisted does not read it answers by this; there is no other way to give it words.
        self.refuse(BadParams("the request does not read as HTTP/1.1: its head, or the lengths of its chunks"))

    def _refuse_tls(self) -> None:
        if self.limits.tells_of_tls(TLS_LOG_S):
            self.log.warn("{network} speaks TLS to a port of plain HTTP: it was hung up on", network=self.network)
        self.refuse(BadParams("this port speaks plain HTTP, not TLS: use http://"))
