"""What a node, or the way to it, may say instead of doing what was asked.

A :class:`Problem` is the node's own word (RFC 9457), one class for each that a program may want to tell apart; its
titles are those of :mod:`meshproto.errors`. :class:`Unreachable` is that nothing came, or nothing that a node says.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from meshproto import errors

Document = dict[str, Any]


class NodeError(Exception):
    """The base of all."""


class Unreachable(NodeError):
    """Nothing answers there, or what answers there is not a user node.

    `uncertain`: a message was handed over before the answer failed, so the node may have taken it.
    """

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url}: {reason}")
        self.url = url
        self.reason = reason
        self.uncertain = False
        title, detail = "Node Not Reachable", f"no user node answers at {url} ({reason})"
        self.text = json.dumps({"type": "about:blank", "title": title, "detail": detail})


class OtherNode(NodeError):
    """Another node answers by now: messages would be somebody else's, and a cursor is of somebody else's inbox."""

    def __init__(self, url: str, fingerprint: str, known: str) -> None:
        super().__init__(f"another node, {fingerprint}, answers at {url} by now, and not {known}")
        self.fingerprint = fingerprint


class Problem(NodeError):
    """The node answered, and the answer is an error. `text`: as it came; `retry_after_s`: when it may be worth trying
    again."""

    def __init__(
        self, status: int, title: str, detail: str, *, text: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(f"{status} {title}: {detail}")
        self.status = status
        self.title = title
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.text = text or json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail})


class BadRequest(Problem):
    """400: what was asked does not read; the detail says where."""


class Unauthorized(Problem):
    """401: the token is missing or wrong."""


class Forbidden(Problem):
    """403: this is not the way to the node, or not for you."""


class NotFound(Problem):
    """404: no such message, contact or route."""


class UserNotFound(NotFound):
    """404: no seed that answers knows the name."""


class Conflict(Problem):
    """409: it clashes with what there is."""


class KeyChanged(Conflict):
    """The name answers with another key than before, and its owner has to be asked."""


class IdReused(Conflict):
    """The id was used before, with another message."""


class MessageEnded(Conflict):
    """The message with this id has come to an end already: it was refused, has expired, or was cancelled."""


class TooLarge(Problem):
    """413: smaller messages."""


class QueueFull(Problem):
    """429: the node's outbox is full, or it is asked for more than it can do. See `retry_after_s`."""


class Unavailable(Problem):
    """503: no seed answers and no address is known, the disk refuses, or the node is just stopping."""


_BY_STATUS: Final[dict[int, type[Problem]]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    429: QueueFull,
    503: Unavailable,
}
_BY_TITLE: Final[dict[tuple[int, str], type[Problem]]] = {
    (errors.UserNotFound.code, errors.UserNotFound.title): UserNotFound,
    (errors.KeyChanged.code, errors.KeyChanged.title): KeyChanged,
    (errors.IdReused.code, errors.IdReused.title): IdReused,
}
REASON_CHARS_MAX: Final = 200
_ENDED: Final = "message "
"""How the titles begin that tell how a message ended."""


def problem(
    status: int, title: str, detail: str, *, text: str | None = None, retry_after_s: int | None = None
) -> Problem:
    """The one that it is."""
    kind = _BY_TITLE.get((status, title)) or _BY_STATUS.get(status, Problem)
    if kind is Conflict and title.startswith(_ENDED):
        kind = MessageEnded
    return kind(status, title, detail, text=text, retry_after_s=retry_after_s)


def failure(result: Document) -> Problem | None:
    """What one of several messages failed of, as if it had been asked for alone; None if it did not fail."""
    if result.get("status") != "failed":
        return None
    code, retry_after_s = result.get("code"), result.get("retry_after")
    return problem(
        code if isinstance(code, int) else 500,
        str(result.get("title") or "failed"),
        str(result.get("reason") or ""),
        retry_after_s=retry_after_s if isinstance(retry_after_s, int) else None,
    )


@contextmanager
def understood(url: str, *, uncertain: bool = False) -> Iterator[None]:
    """What is read below has all that a node says, or :class:`Unreachable` is raised: JSON that is something else is no
    node's. `uncertain`: of that error."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as reason:
        what = f"{type(reason).__name__} {reason}"[:REASON_CHARS_MAX]
        error = Unreachable(url, f"its answer is not a user node's: {what}")
        error.uncertain = uncertain
        raise error from reason


def passes(error: Unreachable | Problem) -> bool:
    """Whether waiting helps: a node that starts, stops or is too busy, but not one that refuses."""
    return isinstance(error, Unreachable) or error.status == 429 or error.status >= 500
