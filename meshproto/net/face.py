"""What one listener of a user node serves: the public routes, the owner's behind a door, or both."""

from typing import Any, Final, cast

from twisted.python.components import Componentized
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from werkzeug.exceptions import HTTPException

from meshproto.errors import BadParams, MeshError
from meshproto.net.door import Door, IDoor
from meshproto.net.front import Front
from meshproto.net.front_request import FrontRequest
from meshproto.net.http import answer_error, quiet_site
from meshproto.net.public_front import PUBLIC_PATHS, PublicFront

_OWNERS_HEADERS: Final = {
    b"cache-control": b"no-store",  # messages have no place in a browser's cache
    b"cross-origin-resource-policy": b"same-origin",
    b"x-content-type-options": b"nosniff",
}
"""A browser that sends neither Origin nor Sec-Fetch-Site gives no other page what came, as a script or a picture."""


class Face(Resource):
    """`public`: None on a listener that is the owner's alone. `door`: None as long as nobody is the owner here; then
    the owner's routes are as unknown as any other."""

    isLeaf = True

    def __init__(self, public: PublicFront | None, front: Front, door: Door | None = None) -> None:
        super().__init__()
        self.door = door
        self._public = None if public is None else public.app.resource()
        self._owners = front.app.resource()

    def render(self, request: IRequest) -> Any:
        try:
            return self._routes(request).render(request)
        except (MeshError, HTTPException) as error:  # of the request as such, before any route is looked for
            request.write(answer_error(request, error if isinstance(error, MeshError) else _bad_host(request)))
            request.finish()
            return NOT_DONE_YET

    def _routes(self, request: IRequest) -> Resource:
        path = _path(request)
        if self.door is None and self._public is not None:
            return self._public
        if self._public is not None and path in PUBLIC_PATHS:
            return self._public
        for name, value in _OWNERS_HEADERS.items():
            request.setHeader(name, value)
        if isinstance(request, FrontRequest):
            request.beside_public = self._public is not None
        if self.door is not None:
            cast(Componentized, request).setComponent(IDoor, self.door)
        return self._owners


def site(face: Face, reactor: Any) -> Site:
    """The HTTP server's factory."""
    return quiet_site(face, reactor, FrontRequest)


def _path(request: IRequest) -> str:
    """The path, decoded. Raises :class:`BadParams` for what Klein would log as an error of ours."""
    try:
        request.method.decode("ascii")
        (request.getHeader(b"host") or b"").decode("ascii")
        return "/" + b"/".join(request.postpath).decode("utf-8")
    except UnicodeDecodeError:
        raise BadParams("the method and the header Host are ASCII, the path is UTF-8") from None


def _bad_host(request: IRequest) -> BadParams:
    host = (request.getHeader(b"host") or b"").decode("ascii")
    return BadParams(f"the header Host is no host and port: {host[:100]!r}")
