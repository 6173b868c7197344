"""One family of errors, split by whose fault it is.

Every error has a `code` that reads like an HTTP status (JSON-RPC's own codes are negative), a stable `title`, and a
`detail` that says what was wrong, where, and what to do. The line protocol sends them as JSON-RPC errors
(:func:`meshproto.wire.encode_error`), HTTP as RFC 9457 problem documents (:mod:`meshproto.net.http`).
"""

import re
from typing import ClassVar, Final

# Controls (C0, DEL, C1), separators of lines, changes of the reading direction, half characters.
_UNSAFE: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)


def quoted(words: str, chars_max: int) -> str:
    """Somebody else's words about an error, on one line that is safe in a log and on a terminal: whatever would move
    the cursor, turn the reading direction or begin a line is spelled out (ESC becomes `\\x1b`), and they are cut."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), words[:chars_max])[:chars_max]


class MeshError(Exception):
    """The base of all. `retry_after_s`: when it may be worth trying again, in seconds."""

    code: ClassVar[int] = 500
    title: ClassVar[str] = "Internal Error"

    def __init__(self, detail: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.retry_after_s = retry_after_s


# -- what the caller did wrong ------------------------------------------------------------------------------------


class CallerError(MeshError):
    """The request was wrong; the same request will be wrong again."""

    code = 400
    title = "Bad Request"


class ParseError(CallerError):
    """The line is not JSON in UTF-8."""

    code = -32700
    title = "parse error"


class InvalidRequest(CallerError):
    """JSON, but not a JSON-RPC 2.0 request."""

    code = -32600
    title = "invalid request"


class MethodNotFound(CallerError):
    code = -32601
    title = "method not found"


class BadParams(CallerError):
    title = "bad params"


class Unauthorized(CallerError):
    code = 401
    title = "Unauthorized"


class Forbidden(CallerError):
    code = 403
    title = "Forbidden"


class BadSignature(CallerError):
    """A record whose signature does not fit its text and key."""

    code = 403
    title = "bad signature"


class NotOwner(CallerError):
    """A batch under a name that, as the seeds say, belongs to another key."""

    code = 403
    title = "not the owner of the name"


class UserNotFound(CallerError):
    """No seed has ever heard of the name, or its claim ran out."""

    code = 404
    title = "User Not Found"


class NotFound(CallerError):
    code = 404
    title = "Not Found"


class TooSlow(CallerError):
    """What was begun did not come in time."""

    code = 408
    title = "too slow"


class NameTaken(CallerError):
    """The name belongs to another key."""

    code = 409
    title = "name taken"


class StaleRecord(CallerError):
    """A record with a lower sequence than the one known."""

    code = 409
    title = "stale record"


class KeyChanged(CallerError):
    """The name answers with another key than the one that was pinned. `news`: that was not known before."""

    code = 409
    title = "key changed"

    def __init__(self, detail: str = "", *, retry_after_s: float | None = None, news: bool = False) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.news = news


class IdReused(CallerError):
    """The id was used before, with another message."""

    code = 409
    title = "id reused"


class TLSNeeded(CallerError):
    """Plain text at a port that speaks TLS."""

    title = "TLS needed"


class TooLarge(CallerError):
    code = 413
    title = "too large"


class TargetTooLong(CallerError):
    """The path and query of an HTTP request."""

    code = 414
    title = "URI too long"


class Misdirected(CallerError):
    """A sealed batch that was sealed for somebody else, or for a key that is no longer held."""

    code = 421
    title = "not for this node"


class SlowDown(CallerError):
    """A limit was reached; `retry_after_s` says when to come back."""

    code = 429
    title = "slow down"


class HeadTooLarge(CallerError):
    """The header fields of an HTTP request (RFC 6585)."""

    code = 431
    title = "header fields too large"


# -- what the peer did wrong --------------------------------------------------------------------------------------


class PeerError(MeshError):
    """A seed or another user's node answered nonsense, refused, or did not answer."""

    code = 502
    title = "Bad Gateway"


class Unreachable(PeerError):
    """Nothing answered at the address, or not in time."""

    title = "unreachable"


class NobodyListens(Unreachable):
    """The connection was refused: there is no process at the address."""


class NotInTime(Unreachable):
    """No connection came about in the time that there is for it."""


class TLSFailed(Unreachable):
    """Somebody is there, and no TLS connection came about."""


class NoAnswer(Unreachable):
    """What was asked went out, and no answer came: whether it was done nobody knows."""


class PeerRefused(PeerError):
    """The peer answered with an error of its own; `status` is the code it gave."""

    title = "refused by peer"

    def __init__(self, status: int, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.status = status


# -- what we did wrong, or cannot do now --------------------------------------------------------------------------


class OwnError(MeshError):
    """Ours to mend."""


class Unavailable(OwnError):
    """Nothing is wrong with the request, but it cannot be served now."""

    code = 503
    title = "unavailable"


class ShuttingDown(Unavailable):
    """This node ends."""

    def __init__(self, detail: str = "this node is shutting down", *, retry_after_s: float | None = None) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)


class NoSeedAnswers(Unavailable):
    """Nobody says where a user is, and it is not known from before."""


class BadState(OwnError):
    """The state directory cannot be used: what is wrong with it, and what to do."""

    title = "state directory not usable"
