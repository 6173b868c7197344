"""Who is asking: the owner's routes are closed to all but the owner."""

import hmac
from collections.abc import Callable, Coroutine, Iterable
from functools import wraps
from typing import Any, Final, Protocol, TypeVar, cast

from twisted.web.iweb import IRequest

from meshproto.errors import Forbidden, MeshError, Unauthorized
from meshproto.net.front_request import FrontRequest
from meshproto.net.http import check_host, header


class Door:
    """Lets the owner in. `token`: None on a node that listens on loopback only. `hosts`: the names this node goes by,
    in lower case without a port; besides them any IP address is taken, since a page can be given a name that leads
    here (DNS rebinding) but not an address."""

    def __init__(self, token: str | None, hosts: Iterable[str]) -> None:
        self._token = token
        self._hosts = frozenset(hosts)

    def check(self, request: IRequest) -> None:
        """Raises :class:`Forbidden` for what a web page or a proxy may have sent, :class:`Unauthorized` without the
        token."""
        check_host(request, self._hosts)
        host = header(request, b"host")
        origin = header(request, b"origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            raise Forbidden("a page from another origin may not talk to this node")
        if header(request, b"sec-fetch-site") in ("cross-site", "same-site"):
            raise Forbidden("a page from another site may not talk to this node")
        if self._token is None:
            if any(request.requestHeaders.hasHeader(name) for name in _FORWARDED):
                raise Forbidden("this node has no token, so it takes no requests from a proxy: listen with a token")
            return
        scheme, _, given = (header(request, b"authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            raise Unauthorized("the owner's part needs the header 'Authorization: Bearer TOKEN', from the file 'token'")


_FORWARDED: Final = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto")


class _Guarded(Protocol):
    door: Door


F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, bytes]])


def owner(route: F) -> F:
    """A route for the owner alone."""

    @wraps(route)
    async def guarded(self: "_Guarded", request: IRequest, *args: Any, **kwargs: Any) -> bytes:
        try:
            self.door.check(request)
        except MeshError:
            if isinstance(request, FrontRequest) and request.stream is not None:
                await request.stream.discard()
            raise
        return await route(self, request, *args, **kwargs)

    return cast(F, guarded)
