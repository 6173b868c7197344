"""Who is asking: the owner's routes are closed to all but the owner."""

import hmac
from collections.abc import Callable, Coroutine, Iterable
from functools import wraps
from typing import Any, Final, TypeVar, cast

from twisted.web.iweb import IRequest

from meshproto.core.http1 import Head
from meshproto.errors import Forbidden, MeshError, Unauthorized
from meshproto.net.http import check_host, header
from meshproto.net.http_request import Asking, Bounded


class Door:
    """Lets the owner in. `token`: None where only this machine, or whoever may open a socket's file, gets that far.
    `hosts`: the names this node goes by, in lower case without a port; besides them any IP address is taken, since a
    page can be given a name that leads here (DNS rebinding) but not an address."""

    def __init__(self, token: str | None, hosts: Iterable[str]) -> None:
        self._token = token
        self._hosts = frozenset(hosts)

    def check(self, request: IRequest) -> None:
        """Raises :class:`Forbidden` for what a web page or a proxy may have sent, :class:`Unauthorized` without the
        token."""
        _check_single(request)
        check_host(request, self._hosts)
        _check_page(request)
        if self._token is None:
            _check_direct(request)
            return
        scheme, _, given = (header(request, b"authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            raise Unauthorized("the owner's part needs the header 'Authorization: Bearer TOKEN', from the file 'token'")


_SINGLE: Final = (b"host", b"origin", b"sec-fetch-site", b"authorization")
_OWN_SITE: Final = (None, "same-origin", "none")  # "none": the owner typed the address, or took a bookmark
_PROXYS: Final = (
    b"forwarded",
    b"x-forwarded-",
    b"x-real-ip",
    b"via",
    b"x-client-ip",
    b"true-client-ip",
    b"cf-connecting-ip",
)


def _check_single(request: IRequest) -> None:
    """Of two that differ we would believe the one, and whoever stands in between the other."""
    for name in _SINGLE:
        if len(request.requestHeaders.getRawHeaders(name, ())) > 1:
            raise Forbidden(f"a request has one header {name.decode()} at most")


def _check_page(request: IRequest) -> None:
    host = (header(request, b"host") or "").lower()
    origin = header(request, b"origin")
    if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
        raise Forbidden("a page from another origin may not talk to this node")
    if header(request, b"sec-fetch-site") not in _OWN_SITE:
        raise Forbidden("a page from another site may not talk to this node")


def _check_direct(request: IRequest) -> None:
    if any(name.lower().startswith(_PROXYS) for name, _ in request.requestHeaders.getAllRawHeaders()):
        raise Forbidden("this node has no token, so it takes no requests from a proxy: listen with a token")


def stranger(door: Door | None, head: Head) -> MeshError | None:
    """Why it is not the owner who asks by this head; where no door was opened nobody is."""
    if door is None:
        return Forbidden("the owner's part is not here")
    try:
        door.check(cast(IRequest, Asking(head)))
    except MeshError as error:
        return error.with_traceback(None)
    return None


def refusal(request: Bounded) -> MeshError | None:
    """What to say to a stranger who asks for what is the owner's. A request that no listener has looked at is one."""
    error = request.stranger if hasattr(request, "stranger") else Forbidden("the owner's part is not here")
    return (request.too_many_tries() or error) if isinstance(error, Unauthorized) else error


async def _refused(error: MeshError) -> bytes:
    raise error


F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, bytes]])


def owner(route: F) -> F:
    """A route for the owner alone."""

    @wraps(route)
    def guarded(self: object, request: Bounded, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, bytes]:
        error = refusal(request)
        return _refused(error) if error is not None else route(self, request, *args, **kwargs)

    return cast(F, guarded)
