"""Posts a sealed batch to a peer's node, and tells the ways apart in which that may fail."""

from typing import Any, Final

import msgspec
from msgspec import Struct

from meshproto.core.reach import Reach
from meshproto.errors import PeerRefused, Unreachable, quoted
from meshproto.net.guarded import GuardedReactor
from meshproto.net.http_answer import Answer
from meshproto.net.http_client import HTTPClient
from meshproto.net.tls import Endpoints, Trust

CONNECT_TIMEOUT_S: Final = 5.0
REASON_CHARS_MAX: Final = 500
"""What is kept of the words about an error, a peer's own or those of what lies between."""
RETRY_AFTER_DIGITS_MAX: Final = 9
"""Thirty years; Python does not read a number of thousands of digits."""


class _Problem(Struct, frozen=True):
    title: str = ""
    detail: str = ""


def peers(reactor: Any, trust: Trust) -> HTTPClient:
    """The client for other users' nodes: it connects to what the reach of a delivery lets it."""
    return HTTPClient(reactor, lambda reach: Endpoints(GuardedReactor(reactor, reach), trust).http(CONNECT_TIMEOUT_S))


class Courier:
    def __init__(self, client: HTTPClient) -> None:
        self._client = client

    async def deliver(self, uri: str, body: bytes, reach: Reach) -> bytes:
        """The peer's answer to `POST uri/deliver`. Raises :class:`Unreachable` when nothing was sent: there is no
        connection, or the URI leads out of `reach`; :class:`NoAnswer` when no answer came; :class:`PeerRefused` with
        the peer's own words when it is an error; :class:`PeerError` when it is one that is not taken."""
        try:
            answer = await self._client.post(uri.rstrip("/") + "/deliver", body, reach)
        except Unreachable as reason:
            raise type(reason)(f"{uri}: {quoted(reason.detail, REASON_CHARS_MAX)}") from None
        if answer.status != 200:
            words = f"{answer.status} {_problem(answer.body)}".strip()
            raise PeerRefused(answer.status, words, retry_after_s=_retry_after_s(answer))
        return answer.body


def _retry_after_s(answer: Answer) -> float | None:
    """RFC 9110, section 10.2.3; a date is not read."""
    given = answer.header(b"retry-after") or b""
    return float(given) if given.isdigit() and len(given) <= RETRY_AFTER_DIGITS_MAX else None


def _problem(answer: bytes) -> str:
    try:
        problem = msgspec.json.decode(answer, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return quoted(f"{problem.title}: {problem.detail}", REASON_CHARS_MAX)
