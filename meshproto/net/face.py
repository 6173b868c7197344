"""What one listener of a user node serves: the public routes, the owner's behind a door and the page that shows them,
or both; and which of them go the short way."""

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, cast
from urllib.parse import unquote_to_bytes

from twisted.web.iweb import IRequest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from werkzeug.exceptions import HTTPException

from meshproto.core.envelope import SEALED_BYTES_MAX
from meshproto.core.http1 import Head
from meshproto.errors import BadParams, MeshError
from meshproto.net.door import Door, stranger
from meshproto.net.front import Front
from meshproto.net.front_request import FrontRequest, is_stream
from meshproto.net.history_front import HISTORY_PATHS
from meshproto.net.http import answer_error
from meshproto.net.http_channel import Channel
from meshproto.net.http_request import Handler, QuietSite, ShortRequest
from meshproto.net.page_front import PageFront, is_page
from meshproto.net.public_front import PUBLIC_PATHS, PublicFront
from meshproto.net.tallies import HTTPTally, Part

SHORT_WAY: Final[dict[type, dict[tuple[bytes, bytes], Callable[..., Any]]]] = {
    PublicFront: {(b"POST", b"/deliver"): PublicFront.deliver},
    Front: {(b"POST", b"/send"): Front.send},
}
"""Routes whose handlers are called without Klein between (:mod:`meshproto.net.http_request`). They are Klein's routes,
and served the same both ways: whatever is not plain about a request for them goes Klein's, which is another spelling of
the target, a query, a stream, HTTP/1.0, or an odd Host."""

_PLAIN_HOST: Final = re.compile(rb"(?:(?:[0-9A-Za-z-]{1,63}\.)*[0-9A-Za-z-]{1,63}|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

_OWNERS_HEADERS: Final = {
    b"cache-control": b"no-store",  # messages have no place in a browser's cache
    b"cross-origin-resource-policy": b"same-origin",
    b"x-content-type-options": b"nosniff",
}
"""A browser that sends neither Origin nor Sec-Fetch-Site gives no other page what came, as a script or a picture."""

WAYS_KNOWN_MAX: Final = 128
"""What there is to know of a request by its head is remembered with the head: 4 MB when all are of full size."""

_PUBLIC: Final = frozenset(path.encode("ascii") for path in PUBLIC_PATHS)


class Face(Resource):
    """`public`: None on a listener that is the owner's alone. `door`: None as long as nobody is the owner here; then
    the owner's routes are as unknown as any other. `tally`: what it counts in."""

    isLeaf = True

    def __init__(
        self, public: PublicFront | None, front: Front, door: Door | None = None, tally: HTTPTally | None = None
    ) -> None:
        super().__init__()
        self._tally = tally or HTTPTally()
        self.door = door
        self._public = public
        self._front = front
        self._public_routes = None if public is None else public.app.resource()
        self._owners_routes = front.app.resource()
        self._page_routes = PageFront().app.resource()
        self._history_routes = front.history.app.resource()
        self._way = lru_cache(maxsize=WAYS_KNOWN_MAX)(self._find_way)

    def make_request(self, channel: Channel, head: Head) -> FrontRequest | ShortRequest:
        """A request of which the head is there, as it will be served. Whoever is not the owner is counted."""
        way = self._way(self.door, head)
        request: FrontRequest | ShortRequest
        request = FrontRequest(channel, head) if way.handler is None else ShortRequest(channel, head, way.handler)
        request.tally = way.tally
        if way.owners:
            request.owners, request.stranger = True, None if way.is_open else stranger(self.door, head)
            request.set_headers(_OWNERS_HEADERS)
        if not way.is_open:
            request.count(channel)
        request.beside_public = self._public is not None
        if way.owners and isinstance(request, FrontRequest) and is_stream(head):
            request.begin_stream(channel)
        else:
            request.expect_body(channel)
        return request

    def render(self, request: IRequest) -> Any:
        """Klein's way."""
        try:
            _check_text(request)
            return cast(Resource, self._routes(cast(FrontRequest, request))).render(request)
        except (MeshError, HTTPException) as error:  # of the request as such, before any route is looked for
            request.write(answer_error(request, error if isinstance(error, MeshError) else _bad_host(request)))
            request.finish()
            return NOT_DONE_YET

    def _routes(self, request: FrontRequest) -> Any:
        if request.owners:
            return self._history_routes if _path(request.head).startswith(HISTORY_PATHS) else self._owners_routes
        return self._page_routes if self._has_page(request.head) else self._public_routes

    def _has_page(self, head: Head) -> bool:
        """Whether a request is for the page, where there is one: beside the owner's routes."""
        return (self._public is None or self.door is not None) and is_page(_path(head))

    def _find_way(self, door: Door | None, head: Head) -> "_Way":
        owners = not self._has_page(head) and (
            self._public is None or (door is not None and _path(head) not in _PUBLIC)
        )
        routes = SHORT_WAY[Front if owners else PublicFront]
        route = routes.get((head.method, head.target)) if _is_plain(head) else None
        handler = None if route is None else partial(route, self._front if owners else self._public)
        tally = self._tally.parts[self._part(owners, head)]
        return _Way(owners, owners and stranger(door, head) is None, handler, tally)

    def _part(self, owners: bool, head: Head) -> Part:
        path = _path(head)
        if owners:
            return Part.SEND if path.startswith(b"/send") else Part.OWNER
        if self._has_page(head):
            return Part.PAGE
        return Part.DELIVER if path == b"/deliver" else Part.PUBLIC


class _Way(NamedTuple):
    """What there is to know of a request by its head. `owners`: whether it is for the owner's part; that is all but the
    public routes, where there is one. `is_open`: the door is, to whoever asks. `handler`: if it goes the short way.
    `tally`: where it is counted."""

    owners: bool
    is_open: bool
    handler: Handler | None
    tally: list[int]


def site(face: Face, reactor: Any) -> QuietSite:
    """The HTTP server's factory."""
    return QuietSite(face, reactor, face.make_request, SEALED_BYTES_MAX)


def _path(head: Head) -> bytes:
    """Unquoted as Klein does it: who writes a letter as %xx means the same."""
    return unquote_to_bytes(head.target.partition(b"?")[0])


def _is_plain(head: Head) -> bool:
    hosts = head.fields.get(b"host", ())
    plain = len(hosts) == 1 and _PLAIN_HOST.fullmatch(hosts[0]) is not None
    return plain and head.version == b"HTTP/1.1" and not is_stream(head)


def _check_text(request: IRequest) -> None:
    """Raises :class:`BadParams` for what Klein would log as an error of ours."""
    try:
        request.method.decode("ascii")
        (request.getHeader(b"host") or b"").decode("ascii")
        b"/".join(request.postpath).decode("utf-8")
    except UnicodeDecodeError:
        raise BadParams("the method and the header Host are ASCII, the path is UTF-8") from None


def _bad_host(request: IRequest) -> BadParams:
    host = (request.getHeader(b"host") or b"").decode("ascii")
    return BadParams(f"the header Host is no host and port: {host[:100]!r}")
