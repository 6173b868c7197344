"""What the owner may ask: the shapes of bodies and queries, and how they are read. A wrong one raises
:class:`BadParams` that says where it is wrong."""

import re
from collections.abc import Sequence
from typing import Annotated, Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from twisted.web.iweb import IRequest

from meshproto.core.envelope import MESSAGE_BYTES_MAX, TYPE_CHARS_MAX
from meshproto.core.identity import FINGERPRINT_PATTERN, parse_address
from meshproto.core.inbox import PAGE_MESSAGES, PAGE_MESSAGES_MAX, WAIT_S_MAX
from meshproto.core.outbox import TTL_S
from meshproto.errors import BadParams, TooLarge
from meshproto.net.history_file import QUERY_CHARS_MAX
from meshproto.wire import ID_CHARS_MAX

HISTORY_PAGE: Final = 100
HISTORY_PAGE_MAX: Final = 500
"""Messages, or conversations: as many as a page lets one scroll through before the next are asked for."""
SEND_WAIT_S: Final = 5.0
"""How long `/send` waits for the acknowledgement unless told otherwise."""
TTL_S_MAX: Final = 30 * 86400.0
TO_NAMES_MAX: Final = 100
"""Recipients of one `/send`: each is a lookup and a delivery of its own."""
SEND_BYTES_MAX: Final = MESSAGE_BYTES_MAX + 64 * 1024
"""A message of full size, a hundred names, and the rest of the request."""
OUTBOX_PAGE: Final = 100
OUTBOX_PAGE_MAX: Final = 1000
RECIPIENTS_SHOWN_MAX: Final = 1000
"""Of those that messages wait for, in one answer: those who have waited longest."""
CANCEL_WAIT_S: Final = 5.0
"""How long `DELETE /outbox/ID` waits for a delivery that is under way."""


class SendBody(Struct, frozen=True):
    """The body of `POST /send`; `ttl` and `wait` in seconds."""

    to: str | Annotated[list[str], Meta(min_length=1, max_length=TO_NAMES_MAX)]
    message: Raw
    id: Annotated[str, Meta(min_length=1, max_length=ID_CHARS_MAX)] | None = None
    type: Annotated[str, Meta(max_length=TYPE_CHARS_MAX)] = ""
    ttl: Annotated[float, Meta(gt=0, le=TTL_S_MAX)] = TTL_S
    wait: Annotated[float, Meta(ge=0, le=WAIT_S_MAX)] = SEND_WAIT_S


class TrustBody(Struct, frozen=True):
    """The body of `PUT /contacts/NAME`."""

    fingerprint: Annotated[str, Meta(extra_json_schema={"pattern": FINGERPRINT_PATTERN})]


class InboxQuery(Struct, frozen=True):
    """The query of `GET /inbox`."""

    after: Annotated[int, Meta(ge=0, le=2**53)] = 0
    sender: str | UnsetType = msgspec.field(default=UNSET, name="from")
    limit: Annotated[int, Meta(ge=1, le=PAGE_MESSAGES_MAX)] = PAGE_MESSAGES
    wait: Annotated[float, Meta(ge=0, le=WAIT_S_MAX)] = 0.0


class StreamQuery(Struct, frozen=True):
    """The query of `GET /inbox/stream`. `events`: some of :data:`EVENTS`, `names`: whose presence; both separated by
    commas."""

    events: str = "message"
    after: Annotated[int, Meta(ge=0, le=2**53)] | UnsetType = UNSET
    sender: str | UnsetType = msgspec.field(default=UNSET, name="from")
    names: str = ""


class Wanted(NamedTuple):
    """Of a stream. `after`: the cursor of the last message that the reader has; None: they want what comes from now on.
    `sender`, `print_`: only what comes from them. `presence`: of whom they want to know whether they are there."""

    messages: bool
    outbox: bool
    presence: Sequence[str]
    after: int | None
    sender: str | None
    print_: str | None


def parse_stream(request: IRequest) -> Wanted:
    """Raises :class:`BadParams`."""
    asked = parse_query(request, StreamQuery)
    events = frozenset(asked.events.split(","))
    if not events <= EVENTS:
        raise BadParams(f"events are some of {', '.join(sorted(EVENTS))}, separated by commas")
    names = [parse_address(name)[0] for name in asked.names.split(",") if name]
    if len(names) > PRESENCE_NAMES_MAX:
        raise BadParams(f"the presence of {PRESENCE_NAMES_MAX} names at most can be told")
    sender, print_ = (None, None) if asked.sender is UNSET else parse_address(asked.sender)
    return Wanted("message" in events, "outbox" in events, names, _stream_after(request, asked), sender, print_)


def _stream_after(request: IRequest, asked: StreamQuery) -> int | None:
    """A client that connects again says by a header what it has, and asks by the same query as at first."""
    last: Sequence[bytes] = request.requestHeaders.getRawHeaders(b"last-event-id", ())
    if not last:
        return None if asked.after is UNSET else asked.after
    if not last[0].isdigit() or len(last[0]) > CURSOR_DIGITS_MAX:
        raise BadParams("Last-Event-ID is the id of an event: a cursor of the inbox")
    return int(last[0])


Pos = Annotated[int, Meta(ge=0, le=2**53)]
"""A message's place in the history."""


class HistoryQuery(Struct, frozen=True):
    """The query of `GET /history`."""

    before: Pos | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=HISTORY_PAGE_MAX)] = HISTORY_PAGE


class ConversationQuery(Struct, frozen=True):
    """The query of `GET /history/NAME`; `around` counts more than `after`, and that more than `before`."""

    before: Pos | UnsetType = UNSET
    after: Pos | UnsetType = UNSET
    around: Pos | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=HISTORY_PAGE_MAX)] = HISTORY_PAGE


class SearchQuery(Struct, frozen=True):
    """The query of `GET /search`."""

    q: Annotated[str, Meta(min_length=1, max_length=QUERY_CHARS_MAX)]
    name: str | UnsetType = msgspec.field(default=UNSET, name="with")
    before: Pos | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=HISTORY_PAGE_MAX)] = HISTORY_PAGE


class ReadBody(Struct, frozen=True):
    """The body of `PUT /history/NAME`. In JSON 17.0 is a whole number too."""

    read: Annotated[float, Meta(ge=0, le=2**52, multiple_of=1)]


class OutboxQuery(Struct, frozen=True):
    """The query of `GET /outbox`."""

    status: Literal["waiting", "delivered", "expired", "refused", "cancelled"] | UnsetType = UNSET
    to: str | UnsetType = UNSET
    after: Annotated[int, Meta(ge=0, le=2**53)] | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=OUTBOX_PAGE_MAX)] = OUTBOX_PAGE


class ToQuery(Struct, frozen=True):
    """The query of what may be asked of one recipient: `GET /outbox/ID`, `DELETE /outbox/ID`, `POST /outbox/retry`."""

    to: str | UnsetType = UNSET


class SendQuery(Struct, frozen=True):
    """The query of `POST /send/NAME`."""

    id: Annotated[str, Meta(min_length=1, max_length=ID_CHARS_MAX)] | None = None
    type: Annotated[str, Meta(max_length=TYPE_CHARS_MAX)] = ""
    ttl: Annotated[float, Meta(gt=0, le=TTL_S_MAX)] = TTL_S
    wait: Annotated[float, Meta(ge=0, le=WAIT_S_MAX)] = SEND_WAIT_S


IDEMPOTENCY_KEY_PATTERN: Final = f"^[!-~]{{1,{ID_CHARS_MAX}}}$"
_IDEMPOTENCY_KEY: Final = re.compile(IDEMPOTENCY_KEY_PATTERN.replace("$", r"\Z"))

EVENTS: Final = frozenset({"message", "outbox", "presence"})
PRESENCE_NAMES_MAX: Final = 100
"""Names whose presence one stream tells: a screenful or two of contacts. Each is watched at the home seed."""
CURSOR_DIGITS_MAX: Final = 16

S = TypeVar("S", bound=Struct)


def read_body(request: IRequest, bytes_max: int) -> bytes:
    """Raises :class:`TooLarge`."""
    body = getattr(request, "body", None)  # of a request of ours
    if body is None:
        request.content.seek(0)
        body = request.content.read(bytes_max + 1)
    if getattr(request, "too_large", False) or len(body) > bytes_max:
        raise TooLarge(f"the body is larger than {bytes_max} bytes")
    return bytes(body)


def idempotency_key(request: IRequest) -> str | None:
    """The header that stands for an `id` where none is given; None when there is none. Raises :class:`BadParams`."""
    given: Sequence[bytes] = request.requestHeaders.getRawHeaders(b"idempotency-key", ())
    if not given:
        return None
    key = given[0].decode("latin-1")
    if len(given) > 1 or not _IDEMPOTENCY_KEY.match(key):
        raise BadParams(f"an Idempotency-Key is one, of 1 to {ID_CHARS_MAX} printable ASCII characters without spaces")
    return key


def parse_body(body: bytes, kind: type[S], called: str = "the body") -> S:
    try:
        body.decode("utf-8")
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as reason:
        raise BadParams(f"{called} does not read: {reason}") from None


def parse_query(request: IRequest, kind: type[S]) -> S:
    given = request.args or {}
    try:
        values = {name.decode("ascii"): texts[-1].decode("utf-8") for name, texts in given.items()}
        return msgspec.convert(values, kind, strict=False)
    except (msgspec.ValidationError, UnicodeDecodeError) as reason:
        raise BadParams(f"the query does not read: {reason}") from None
