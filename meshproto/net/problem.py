"""An error as HTTP tells it, also where no HTTP server is: to those who have mistaken a port."""

from http import HTTPStatus
from typing import Any

from meshproto.errors import MeshError
from meshproto.wire import encode_value


def problem(status: int, title: str, detail: str) -> dict[str, Any]:
    """An RFC 9457 problem document."""
    return {"type": "about:blank", "title": title, "status": status, "detail": detail}


def last_answer(error: MeshError) -> bytes:
    """A whole answer, after which the connection is closed. `error`: one whose code is a status of HTTP."""
    body = encode_value(problem(error.code, error.title, error.detail)) + b"\n"
    head = [
        f"HTTP/1.1 {error.code} {HTTPStatus(error.code).phrase}",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if error.retry_after_s is not None:
        head.append(f"Retry-After: {max(1, round(error.retry_after_s))}")
    return "\r\n".join([*head, "", ""]).encode("ascii") + body
