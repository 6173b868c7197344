"""A request, from its head to its answer, and the two ways of serving it.

Klein's way is Twisted's: a :class:`KleinRequest` is what every route is made for. Klein, werkzeug and Twisted's Request
take ten times as long as all the rest. So for a few routes there is a short way: a :class:`ShortRequest` has just what
their handlers use, and calls the handler. Which these are is said in one place (:mod:`meshproto.net.face`).

What is kept of a body, and what is counted, is the same both ways: :class:`Bounded`.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from io import BytesIO
from time import time
from typing import TYPE_CHECKING, Any, Final, cast

from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request as HTTPRequest
from twisted.web.http import datetimeToString
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from meshproto.core.http1 import Head
from meshproto.core.limits import network_of
from meshproto.errors import BadParams, MeshError, TooLarge
from meshproto.net.deferred import Task
from meshproto.net.http import answer_error, answer_exception
from meshproto.net.http_channel import DISCARD_BYTES_MAX, IDLE_TIMEOUT_S, Channel, Incoming
from meshproto.net.http_limits import Limits

if TYPE_CHECKING:
    from meshproto.net.bulk import LineStream

SMALL_PIECE_BYTES: Final = 64
SMALL_PIECES_MAX: Final = 1000
"""Chunks of a body that may be smaller than that on average: each is as much work as kilobytes are."""

Handler = Callable[[Any], Coroutine[Any, Any, bytes]]
"""A route: a request -> the body of its answer."""


class Bounded:
    """A request, whichever way it is served. Its body is kept only as far as any route takes it: `body_bytes_max`; in
    memory, where the listener's :class:`Limits` count it.

    `owners`: whether it is for the owner's part; then there is `stranger`: why it is not the owner who asks, or None.
    `stream`: the body as it comes, when it is one. `beside_public`: whether the listener that it came through serves
    the public routes too. `tally`: where it is counted by the class of its answer, if anywhere."""

    channel: Channel | None
    """None when the client has gone."""
    head: Head
    code: int
    body_bytes_max = 0
    owners = False
    stranger: MeshError | None
    stream: "LineStream | None" = None
    beside_public = False
    unhurried = False
    answers_early = False
    counted = False
    tally: list[int] | None = None
    too_large = False
    received_bytes = 0
    pieces = 0
    refusal: MeshError | None = None
    _kept: list[bytes]

    def count(self, channel: Channel) -> None:
        """It is one of those of which a network has so many a second: all but the owner's."""
        self.counted = True
        self.refusal = channel.limits.request(channel.network)

    def expect_body(self, channel: Channel) -> None:
        """Only the head is there."""
        length = self.head.length
        self.body_bytes_max = channel.site.body_bytes_max
        if length is not None and length > DISCARD_BYTES_MAX:
            raise self._too_large()
        self.too_large = length is not None and length > self.body_bytes_max
        if length != 0 and self.refusal is None:
            self.refusal = channel.limits.new_body(channel.network)

    def received(self, piece: bytes) -> None:
        size, channel = len(piece), self.channel
        self.received_bytes += size
        self.pieces += 1
        if self.pieces > SMALL_PIECES_MAX and self.received_bytes < self.pieces * SMALL_PIECE_BYTES:
            raise BadParams(f"a body in pieces of less than {SMALL_PIECE_BYTES} bytes is not taken")
        if self.received_bytes > self.body_bytes_max:
            self.too_large = True
            if self.received_bytes > DISCARD_BYTES_MAX:
                raise self._too_large()
        if self.too_large or self.refusal is not None or channel is None:
            return
        if self.counted:
            self.refusal = channel.limits.piece(channel.network, size)
            if self.refusal is not None:
                return
        channel.limits.body(channel.number, channel.network, size, whole=self.pieces == 1 and size == self.head.length)
        if not channel.over:
            self._kept.append(piece)

    def _too_large(self) -> MeshError:
        return TooLarge(f"a body has at most {self.body_bytes_max} bytes")

    @property
    def body(self) -> bytes:
        return self._kept[0] if len(self._kept) == 1 else b"".join(self._kept)

    def let_go(self) -> None:
        self._kept = []

    def too_many_tries(self) -> MeshError | None:
        """What to say of a wrong token, when there were too many of this network."""
        return None if self.channel is None else self.channel.limits.wrong_token(self.channel.network)


# -- Klein's way --------------------------------------------------------------------------------------------------


class KleinRequest(Bounded, Request):
    """Twisted's, for Klein."""

    channel: Any

    def __init__(self, channel: Channel, head: Head) -> None:
        super().__init__(channel, parsePOSTFormSubmission=False)  # curl -d says "form", whatever the body is
        self.head = head
        self._kept = []
        for name, values in head.fields.items():
            self.requestHeaders.setRawHeaders(name, values)
        self.parseCookies()
        if head.version == b"HTTP/1.1" and not head.keeps_open:
            self.setHeader(b"connection", b"close")

    def set_headers(self, fields: Mapping[bytes, bytes]) -> None:
        for name, value in fields.items():
            self.setHeader(name, value)

    def complete(self) -> None:
        self.content = BytesIO(self.body)
        self.requestReceived(self.head.method, self.head.target, self.head.version)

    def process(self) -> None:
        # A refusal is said when the body has come and was thrown away, so that its sender reads it.
        if self.refusal is None:
            super().process()
            return
        self.write(answer_error(self, self.refusal))
        self.finish()


# -- the short way ------------------------------------------------------------------------------------------------


class Fields:
    """As Twisted's `Headers`, but their names are bytes and nothing else."""

    def __init__(self, fields: Mapping[bytes, Sequence[bytes]]) -> None:
        self._fields = fields

    def getRawHeaders(self, name: bytes, default: Any = None) -> Any:
        if not isinstance(name, bytes):
            raise TypeError("the names of header fields are bytes")
        return self._fields.get(name.lower(), default)

    def getAllRawHeaders(self) -> Any:
        return self._fields.items()


class Asking:
    """A head as a Request shows it."""

    def __init__(self, head: Head) -> None:
        self.head = head

    @property
    def requestHeaders(self) -> Fields:
        return Fields(self.head.fields)

    def getHeader(self, name: bytes) -> bytes | None:
        return self.head.get(name)


class ShortRequest(Asking, Bounded):
    """For `handler`, which may use of Twisted's Request what is here."""

    log = Logger()
    code = 200
    startedWriting = 0

    def __init__(self, channel: Channel, head: Head, handler: Handler) -> None:
        self.channel = channel
        self.head = head
        self._handler = handler
        self._kept = []
        self._answer_fields: dict[bytes, bytes] = {}
        self._working: Task[bytes] | None = None  # as long as it waits

    # what a handler uses

    @property
    def method(self) -> bytes:
        return self.head.method

    @property
    def path(self) -> bytes:
        return self.head.target

    @property
    def content(self) -> BytesIO:
        return BytesIO(self.body)

    def setHeader(self, name: bytes, value: bytes) -> None:
        self._answer_fields[name] = value

    def set_headers(self, fields: Mapping[bytes, bytes]) -> None:
        self._answer_fields |= fields

    def setResponseCode(self, code: int) -> None:
        self.code = code

    # what a channel uses

    def complete(self) -> None:
        if self.refusal is not None:
            self._answer(answer_error(cast(Any, self), self.refusal))
            return
        working = Task(self._handler(self), self._answered, self._failed)
        if not working.over:
            self._working = working

    def connectionLost(self, reason: Failure) -> None:
        """What is under way for it is cancelled, as Klein does it."""
        self.channel = None
        if self._working is not None:
            self._working.cancel()

    def _failed(self, error: BaseException) -> None:
        if self.channel is not None:
            self._answered(answer_exception(cast(Any, self), error))
        elif not isinstance(error, CancelledError):
            self.log.failure("a request failed whose client had gone", failure=Failure(error))

    def _answered(self, body: bytes) -> None:
        try:
            self._answer(body)
        except Exception:  # what the handler has returned is no answer
            self.log.failure("a bug in an answer")
            if self.channel is not None:
                self.channel.evict()

    def _answer(self, body: bytes) -> None:
        if self.channel is None:
            return
        if not self.head.keeps_open:
            self._answer_fields[b"connection"] = b"close"
        start = _start(self.code, tuple(self._answer_fields.items()))
        self.channel.answer(
            b"%bDate: %b\r\nContent-Length: %d\r\n\r\n%b" % (start, _date(int(time())), len(body), body)
        )
        self.channel.requestDone(self)


@lru_cache(maxsize=256)
def _start(code: int, fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Of an answer: what is the same in most of them."""
    lines = [b"HTTP/1.1 %d %b" % (code, HTTPStatus(code).phrase.encode("ascii"))]
    lines += [b"%b: %b" % (name.title(), value) for name, value in fields]
    if any(b"\r" in line or b"\n" in line for line in lines):
        raise ValueError("a field of an answer is one line")
    return b"\r\n".join([*lines, b""])


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    written: bytes = datetimeToString(second)
    return written


# -- the server ---------------------------------------------------------------------------------------------------


class QuietSite(Site):
    """The factory of an HTTP server, with :class:`Limits` of its own; without a line in the log for each request:
    /status tells what goes on. `make_request`, `body_bytes_max`: see :class:`meshproto.net.http_channel.Site`."""

    noisy = False
    displayTracebacks = False

    def __init__(
        self,
        resource: IResource,
        reactor: Any,
        make_request: Callable[[Channel, Head], Incoming],
        body_bytes_max: int = 0,
    ) -> None:
        super().__init__(resource, timeout=IDLE_TIMEOUT_S, reactor=reactor)
        self.limits = Limits(reactor.seconds)
        self.make_request = make_request
        self.body_bytes_max = body_bytes_max

    def buildProtocol(self, addr: object) -> Channel | None:  # type: ignore[override]  # Twisted means its own channel
        """None: the connection is closed, before it costs anything."""
        if not self.limits.admits(network_of(getattr(addr, "host", ""))):
            return None
        channel = Channel(self)
        channel.factory = self
        return channel

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 alone, also where TLS offers more."""
        return [b"http/1.1"]

    def startFactory(self) -> None:
        """Nothing: Twisted's tells the time every second, for the log."""

    def log(self, request: HTTPRequest) -> None:
        """Nothing: an access log at thousands of requests a second costs more than the requests."""
