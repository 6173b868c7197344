"""What every HTTP face has in common: JSON, RFC 9457 problem documents, and who may be asking."""

import ipaddress
from collections.abc import Collection
from functools import lru_cache
from typing import Any, Final

from klein import Klein
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from meshproto.errors import Forbidden, MeshError, Unauthorized
from meshproto.net.problem import problem
from meshproto.wire import encode_value

LOOPBACK_HOSTS: Final = ("localhost",)
_log: Final = Logger()

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


@lru_cache(maxsize=128)
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


def answer_exception(request: IRequest, error: BaseException | None) -> bytes:
    """Whatever a route has raised, as a problem document."""
    if isinstance(error, MeshError):
        return answer_error(request, error)
    if isinstance(error, MethodNotAllowed):
        methods = ", ".join(sorted({*(error.valid_methods or ()), "OPTIONS"}))
        request.setHeader(b"allow", methods.encode("ascii"))
        if request.method == b"OPTIONS":  # RFC 9110, section 9.3.7; without a word on CORS a page is refused by that
            request.setResponseCode(204)
            return b""
        return answer_problem(request, 405, "Method Not Allowed", f"{_asked(request)}: this route takes {methods}")
    if isinstance(error, HTTPException):
        return answer_problem(request, 404, "Not Found", f"{_asked(request)}: there is no such route here")
    _log.failure("a bug in a request", failure=Failure(error))
    return answer_problem(request, 500, "Internal Error", "the node's log says more")


def answer_errors(app: Klein) -> None:
    """Whatever a route of the app raises is answered so."""

    @app.handle_errors(Exception)
    def answered(self: Any, request: IRequest, failure: Failure) -> bytes:
        return answer_exception(request, failure.value)
