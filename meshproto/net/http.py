"""What every HTTP face has in common: JSON, RFC 9457 problem documents, a body with a bound, and who may be asking."""

import ipaddress
from collections.abc import Collection
from functools import partial
from io import BytesIO
from typing import Any, ClassVar, Final, cast
from urllib.parse import unquote_to_bytes

from klein import Klein
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request as HTTPRequest
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from twisted.web.server import Request, Site
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from meshproto.errors import BadParams, Forbidden, MeshError, TooLarge, Unauthorized
from meshproto.net.http_channel import IDLE_TIMEOUT_S, Channel
from meshproto.net.http_limits import Limits
from meshproto.net.problem import problem
from meshproto.wire import encode_value

LOOPBACK_HOSTS: Final = ("localhost",)
DISCARD_BYTES_MAX: Final = 16 * 1024 * 1024
"""A body that is too large is read and thrown away up to here, so that its sender reads our answer; then we hang up."""

# -- who is asking ------------------------------------------------------------------------------------------------


def header(request: IRequest, name: bytes) -> str | None:
    value = request.getHeader(name)
    return None if value is None else value.decode("latin-1")


def check_host(request: IRequest, hosts: Collection[str]) -> None:
    """Raises :class:`Forbidden` when the node is called by a name that is not its own. `hosts`: its names in lower
    case, without a port; besides them any IP address is taken, since a page can be given a name that leads here (DNS
    rebinding) but not an address."""
    host = header(request, b"host") or ""
    name = _without_port(host)
    if name not in hosts and not _is_address(name):
        raise Forbidden(f"this node is not called {host[:100]!r}: use the address it listens on")


def _is_address(host: str) -> bool:
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        return (ipaddress.ip_address(host.strip("[]")).version == 6) == bracketed
    except ValueError:
        return False


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower().removesuffix(".")


# -- what goes out ------------------------------------------------------------------------------------------------


def answer_json(request: IRequest, value: Any, code: int = 200) -> bytes:
    request.setResponseCode(code)
    request.setHeader(b"content-type", b"application/json")
    return encode_value(value) + b"\n"


def answer_problem(request: IRequest, status: int, title: str, detail: str, **more: Any) -> bytes:
    body = answer_json(request, problem(status, title, detail) | more, status)
    request.setHeader(b"content-type", b"application/problem+json")
    return body


def answer_error(request: IRequest, error: MeshError) -> bytes:
    if error.retry_after_s is not None:
        request.setHeader(b"retry-after", b"%d" % max(1, round(error.retry_after_s)))
    if isinstance(error, Unauthorized):
        request.setHeader(b"www-authenticate", b"Bearer")
    return answer_problem(request, error.code if error.code > 0 else 400, error.title, error.detail)


def _asked(request: IRequest) -> str:
    return f"{request.method.decode('latin-1')} {request.path.decode('latin-1')}"[:200]


def answer_errors(app: Klein, log: Logger) -> None:
    """Whatever a route of the app raises is answered as a problem document."""

    @app.handle_errors(MeshError)
    def refused(self: Any, request: IRequest, failure: Failure) -> bytes:
        error = cast(MeshError, failure.value)
        if isinstance(error, Unauthorized) and isinstance(request, BoundedRequest):
            error = request.too_many_tries() or error
        return answer_error(request, error)

    @app.handle_errors(MethodNotAllowed)
    def no_method(self: Any, request: IRequest, failure: Failure) -> bytes:
        methods = ", ".join(sorted({*(cast(MethodNotAllowed, failure.value).valid_methods or ()), "OPTIONS"}))
        request.setHeader(b"allow", methods.encode("ascii"))
        if request.method == b"OPTIONS":  # RFC 9110, section 9.3.7; without a word on CORS a page is refused by that
            request.setResponseCode(204)
            return b""
        return answer_problem(request, 405, "Method Not Allowed", f"{_asked(request)}: this route takes {methods}")

    @app.handle_errors(HTTPException)
    def no_route(self: Any, request: IRequest, failure: Failure) -> bytes:
        return answer_problem(request, 404, "Not Found", f"{_asked(request)}: there is no such route here")

    @app.handle_errors(Exception)
    def bug(self: Any, request: IRequest, failure: Failure) -> bytes:
        log.failure("a bug in a request", failure=failure)
        return answer_problem(request, 500, "Internal Error", "the node's log says more")


# -- HTTP itself --------------------------------------------------------------------------------------------------


SMALL_PIECE_BYTES: Final = 64
SMALL_PIECES_MAX: Final = 1000
"""Chunks of a body that may be smaller than that on average: each is as much work as kilobytes are."""


class BoundedRequest(Request):
    """A request whose body is kept only as far as any route takes it: `body_bytes_max`; in memory, where the listener's
    :class:`Limits` count it. `public_paths`: those whose requests are counted by network; None: all."""

    channel: Any  # Channel; None when the client has gone
    body_bytes_max: ClassVar[int] = 0
    public_paths: ClassVar[Collection[bytes] | None] = None
    unhurried = False
    too_large = False
    received_bytes = 0
    pieces = 0
    refusal: MeshError | None = None

    def gotLength(self, length: int | None) -> None:
        channel: Channel = self.channel
        self.content = BytesIO()
        if not channel._path.startswith((b"/", b"http:", b"https:")) and channel._path != b"*":
            # Twisted cuts the first character off, whatever it is.
            channel.refuse(BadParams("the target of a request begins with /"))
        if length is not None and length > DISCARD_BYTES_MAX:
            self._hang_up()
        self.too_large = length is not None and length > self.body_bytes_max
        if self._is_public(channel._path):  # the channel keeps the request line to itself until the body is there
            self.refusal = channel.limits.request(channel.network)
        if length != 0 and self.refusal is None:
            self.refusal = channel.limits.new_body(channel.network)

    def _is_public(self, target: bytes) -> bool:
        # Unquoted as Klein does it: who writes a letter as %xx is counted too.
        return self.public_paths is None or unquote_to_bytes(target.partition(b"?")[0]) in self.public_paths

    def handleContentChunk(self, data: bytes) -> None:
        if self.channel.over:
            return
        self.received_bytes += len(data)
        self.pieces += 1
        if self.pieces > SMALL_PIECES_MAX and self.received_bytes < self.pieces * SMALL_PIECE_BYTES:
            self.channel.refuse(BadParams(f"a body in pieces of less than {SMALL_PIECE_BYTES} bytes is not taken"))
            return
        self.too_large = self.too_large or self.received_bytes > self.body_bytes_max
        if self.received_bytes > DISCARD_BYTES_MAX:
            self._hang_up()
        elif not self.too_large and self.refusal is None:
            channel: Channel = self.channel
            self.refusal = channel.limits.body(channel.number, channel.network, len(data))
            if self.refusal is None and not channel.over:
                super().handleContentChunk(data)

    def let_go(self) -> None:
        """Nobody will read the body."""
        self.content = BytesIO()

    def process(self) -> None:
        # A refusal is said when the body has come and was thrown away, so that its sender reads it.
        if self.refusal is None:
            super().process()
            return
        self.write(answer_error(self, self.refusal))
        self.finish()

    def too_many_tries(self) -> MeshError | None:
        """What to say of a wrong token, when there were too many of this network."""
        return None if self.channel is None else self.channel.limits.wrong_token(self.channel.network)

    def _hang_up(self) -> None:
        self.channel.refuse(TooLarge(f"a body has at most {self.body_bytes_max} bytes"))


class _QuietSite(Site):
    """Without a line in the log for each request; /status tells what goes on."""

    noisy = False
    displayTracebacks = False

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 alone, also where TLS offers more."""
        return [b"http/1.1"]

    def log(self, request: HTTPRequest) -> None:
        """Nothing: an access log at thousands of requests a second costs more than the requests."""


def quiet_site(resource: IResource, reactor: Any, request: type[BoundedRequest] = BoundedRequest) -> Site:
    """The factory of an HTTP server. It has :class:`Limits` of its own."""
    site = _QuietSite(
        resource,
        requestFactory=request,
        parsePOSTFormSubmission=False,  # curl -d says "form", whatever the body is
        timeout=IDLE_TIMEOUT_S,
        reactor=reactor,
    )
    cast(Any, site).protocol = partial(Channel, Limits(reactor.seconds))
    return site
