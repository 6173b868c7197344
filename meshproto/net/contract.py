"""The HTTP face as an OpenAPI 3.1 document, made of the very shapes that bodies and queries are read with. What is
answered is told here, in shapes that nothing but this document uses; tests hold them against a running node.
"""

from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from meshproto import __version__
from meshproto.core.envelope import Sealed, SealedReceipt
from meshproto.core.identity import ADDRESS_PATTERN
from meshproto.core.queue import Status as State
from meshproto.net.asked import (
    IDEMPOTENCY_KEY_PATTERN,
    ConversationQuery,
    HistoryQuery,
    InboxQuery,
    OutboxQuery,
    ReadBody,
    SearchQuery,
    SendBody,
    SendQuery,
    StreamQuery,
    ToQuery,
    TrustBody,
)
from meshproto.net.doctor import Report
from meshproto.wire import SignedRecord

OPENAPI: Final = "3.1.0"
_REF: Final = "#/components/schemas/{name}"

Ms = Annotated[int, Meta(description="ms since 1970 UTC")]
Groups = Annotated[str, Meta(description="the fingerprint, to be compared by eye")]
Address = Annotated[str, Meta(pattern=ADDRESS_PATTERN, description="a name, or `NAME~FINGERPRINT`")]

# -- what is answered ---------------------------------------------------------------------------------------------


class Problem(Struct):
    """An error (RFC 9457): `detail` says what was wrong and what to do."""

    type: str
    title: str
    status: int
    detail: str


class Outcome(Struct):
    """How far a message has come, and why it is not further."""

    id: str
    to: str
    status: State
    reason: str | UnsetType = UNSET


class Result(Struct):
    """What became of one of several messages; of one that `failed`, what it would have been answered alone."""

    to: str
    status: Literal["queued", "locating", "delivering", "delivered", "expired", "refused", "cancelled", "failed"]
    id: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    code: int | UnsetType = UNSET
    title: str | UnsetType = UNSET
    retry_after: int | UnsetType = UNSET


class Results(Struct):
    """One for each recipient, in order."""

    results: list[Result]


class Correspondent(Struct):
    """`key` is proven; `name` is what that key calls itself."""

    name: str
    key: str


class Received(Struct):
    """One message of the inbox."""

    cursor: int
    id: str
    sender: Correspondent = msgspec.field(name="from")
    type: str
    message: Any
    sent_at: Ms
    received_at: Ms


class Inbox(Struct):
    """A page, oldest first; `next` goes into `after`."""

    messages: list[Received]
    next: int


class Stream(Struct):
    """Events without an end: Server-Sent Events, or lines of JSON if that is accepted."""


class Metrics(Struct):
    """Prometheus's text format 0.0.4."""


class Kept(Struct):
    """One message of the outbox."""

    cursor: int
    id: str
    to: str
    status: State
    sent_at: Ms
    expires_at: Ms
    changed_at: Ms
    reason: str | None


class Several(Struct):
    """An id that was used for several recipients."""

    results: list[Kept]


class Recipient(Struct):
    """For whom messages wait; `reason`: the last error, verbatim."""

    to: str
    waiting: int
    oldest_at: Ms
    attempts: int
    next_try_at: Ms | None
    reason: str | None


class Outbox(Struct):
    """A page; `next` goes into `after`, and is null on the last one."""

    messages: list[Kept]
    next: int | None
    recipients: list[Recipient]


class Retried(Struct):
    """Whose messages are tried again now, and how many those are."""

    retried: list[str]
    waiting: int


class Found(Struct):
    """A user as the mesh knows them. What a seed says is null when none was reached and this is the last known."""

    name: str
    key: str
    fingerprint: str
    groups: Groups
    address: Address
    uris: list[str]
    seq: int
    since: Ms | None
    home: str | None
    online: bool | None
    seen: Ms | None
    record: str
    sig: str


class Seed(Struct):
    """A seed as this node's home tells of it; `alive` is null when there is no home."""

    name: str
    address: str
    alive: bool | None
    users: int
    since: Ms
    phi: float
    lag: int
    home: bool


class Seeds(Struct):
    """Every seed known."""

    seeds: list[Seed]


class Offered(Struct):
    """Another key that has used a contact's name."""

    key: str
    fingerprint: str
    groups: Groups
    address: Address
    seen_at: Ms


class Item(Struct):
    """A message of the history: one of the inbox (`direction` is `in`), or of the outbox with what was sent (`out`)."""

    pos: int
    direction: Literal["in", "out"]
    at: Ms
    cursor: int
    id: str
    type: str
    message: Any
    sent_at: Ms
    sender: Correspondent | UnsetType = msgspec.field(default=UNSET, name="from")
    received_at: Ms | UnsetType = UNSET
    to: str | UnsetType = UNSET
    status: State | UnsetType = UNSET
    expires_at: Ms | UnsetType = UNSET
    changed_at: Ms | UnsetType = UNSET
    reason: str | UnsetType | None = UNSET


class Conversation(Struct):
    """With one name; `last` is null when the message is no longer kept."""

    name: str
    pos: int
    unread: int
    waiting: int
    last: Item | None


class Conversations(Struct):
    """A page, the latest first; `next` goes into `before`. `behind`: messages that are not in it yet."""

    conversations: list[Conversation]
    next: int | None
    behind: int


class Said(Struct):
    """A page of one conversation, oldest first."""

    messages: list[Item]
    before: int | None
    after: int | None
    total: int
    behind: int


class Unread(Struct):
    """What is left."""

    unread: int


class Hit(Item):
    """A message that was found; in the `snippet` the words are between U+0002 and U+0003."""

    with_: str = msgspec.field(default="", name="with")
    snippet: str = ""


class Hits(Struct):
    """A page, newest first; `next` goes into `before`."""

    hits: list[Hit]
    next: int | None
    behind: int


class Contact(Struct):
    """Whose key is pinned; `verified_at`: null until the owner has compared the fingerprint."""

    name: str
    key: str
    fingerprint: str
    groups: Groups
    address: Address
    first_seen: Ms
    verified_at: Ms | None
    offered: Offered | None


class Contacts(Struct):
    """In the order of their names."""

    contacts: list[Contact]


class Home(Struct):
    """The seed where this node is registered."""

    name: str
    address: str
    since: Ms


class Waiting(Struct):
    """What waits in the outbox."""

    waiting: int
    recipients: int
    oldest_at: Ms | None


class Came(Struct):
    """What came; `next`: the latest cursor."""

    messages: int
    next: int


class Keys(Struct):
    """Of how many contacts another key has used the name."""

    key_changed: int


class Program(Struct):
    """A program that the inbox is handed over to."""

    kind: str
    target: str
    next: int
    behind: int
    attempts: int
    next_try_at: Ms | None
    reason: str | None


class Summary(Struct):
    """The node at a glance; `problem`: why the node is registered nowhere, or who else has its key, `seed_answers`:
    whether a seed has said so, `disk`: what is wrong with it."""

    name: str
    fingerprint: str
    groups: Groups
    address: Address
    version: str
    uptime_s: float
    uris: list[str]
    home: Home | None
    registered: bool
    problem: str | None
    seed_answers: bool
    seeds: int
    outbox: Waiting
    inbox: Came
    contacts: Keys
    disk: str | None
    programs: list[Program]


class WellKnown(SignedRecord, frozen=True):
    """The node's own record, its version and its limits."""

    version: str
    protocol: int
    limits: dict[str, int]


class Health(Struct):
    """The node lives and can write to its disk."""

    status: Literal["ok"]


# -- what may be asked --------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """`path`: parameters in braces. `query` and `body`: the shapes of what is asked, a body of `str` is text.
    `answers`: what the good answers hold, by code, one shape or one of several; `errors`: the codes of problem
    documents besides those that anything may be answered."""

    method: str
    path: str
    summary: str
    answers: dict[int, Any]
    errors: tuple[int, ...] = ()
    query: type[Struct] | None = None
    body: Any = None
    owner: bool = True
    idempotent: bool = False


SENT: Final = {200: Outcome, 202: Outcome}
SEND_ERRORS: Final = (404, 409)

OPERATIONS: Final = [
    Operation(
        "post",
        "/send",
        "Send a message, to one name or several",
        {**SENT, 207: Results},
        SEND_ERRORS,
        body=SendBody,
        idempotent=True,
    ),
    Operation(
        "post",
        "/send/{name}",
        "Send the body as text",
        SENT,
        SEND_ERRORS,
        query=SendQuery,
        body=str,
        idempotent=True,
    ),
    Operation("get", "/inbox", "What came, oldest first", {200: Inbox}, query=InboxQuery),
    Operation("get", "/inbox/stream", "What comes, as it comes", {200: Stream}, query=StreamQuery),
    Operation("get", "/outbox", "What was sent, and for whom it waits", {200: Outbox}, query=OutboxQuery),
    Operation("get", "/outbox/{id}", "How far a message has come", {200: (Kept, Several)}, (404,), query=ToQuery),
    Operation(
        "delete",
        "/outbox/{id}",
        "Cancel a message",
        {200: Outcome, 202: Outcome, 207: Results},
        (404, 409),
        query=ToQuery,
    ),
    Operation("post", "/outbox/retry", "Try again now", {200: Retried}, (404,), query=ToQuery),
    Operation("get", "/history", "Conversations, the latest first", {200: Conversations}, query=HistoryQuery),
    Operation("get", "/history/{name}", "What was said with one", {200: Said}, query=ConversationQuery),
    Operation("put", "/history/{name}", "Say how far it was read", {200: Unread}, body=ReadBody),
    Operation("get", "/search", "Messages with some words", {200: Hits}, query=SearchQuery),
    Operation("get", "/lookup/{name}", "Where a user is", {200: Found}, (404,)),
    Operation("get", "/seeds", "The seeds of the mesh", {200: Seeds}),
    Operation("get", "/contacts", "Whose keys are known", {200: Contacts}),
    Operation("get", "/contacts/{name}", "One of them", {200: Contact}, (404,)),
    Operation("put", "/contacts/{name}", "Trust a key", {200: Contact}, (404, 409), body=TrustBody),
    Operation("delete", "/contacts/{name}", "Forget a key", {200: Contact}, (404,)),
    Operation("get", "/contacts/{name}/qr", "A contact's address as a QR code", {200: str}, (404,)),
    Operation("get", "/qr", "This node's address as a QR code", {200: str}),
    Operation("get", "/status", "A summary", {200: Summary}),
    Operation("get", "/doctor", "What this node finds at its seeds and its own addresses", {200: Report}),
    Operation("get", "/metrics", "What this node has done, for Prometheus", {200: Metrics}),
    Operation("get", "/openapi.json", "This document", {200: dict[str, Any]}),
    Operation(
        "post",
        "/deliver",
        "Hand over a sealed batch",
        {200: SealedReceipt},
        (403, 409, 421),
        body=Sealed,
        owner=False,
    ),
    Operation("get", "/.well-known/meshproto", "The node's own record and limits", {200: WellKnown}, owner=False),
    Operation("get", "/healthz", "Whether the node can work", {200: Health}, owner=False),
]

_PATH_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "name": {"type": "string", "pattern": ADDRESS_PATTERN},
    "id": {"type": "string", "minLength": 1},
}
_IDEMPOTENCY_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "the same as `id`",
    "schema": {"type": "string", "pattern": IDEMPOTENCY_KEY_PATTERN},
}


def document(*, public: bool) -> dict[str, Any]:
    """Of a listener that serves the public routes beside the owner's, or of one that is the owner's alone."""
    paths: dict[str, dict[str, Any]] = {}
    operations = [operation for operation in OPERATIONS if public or operation.owner]
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "meshproto user node",
            "version": __version__,
            "summary": "Messages by name, directly, on machines you run yourselves",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(operations),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "the owner's token; a node that only its own machine can reach asks for none",
                }
            },
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    codes = {**operation.answers, **dict.fromkeys((*operation.errors, *_ALWAYS, *(_OWNERS * operation.owner)), Problem)}
    told: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method} {operation.path}",
        "parameters": list(_parameters(operation)),
        "responses": {str(code): _answer(code, codes[code]) for code in sorted(codes)},
    }
    if operation.owner:
        told["security"] = [{}, {"token": []}]
    if operation.body is str:
        told["requestBody"] = {"required": True, "content": {"text/plain": {"schema": {"type": "string"}}}}
    elif operation.body is not None:
        told["requestBody"] = {"required": True, "content": {"application/json": {"schema": _schema(operation.body)}}}
    return told


_ALWAYS: Final = (400, 408, 413, 414, 429, 431, 500, 503)
"""Said by the listener before a route has its say (:mod:`meshproto.net.http_channel`, `http_limits`), or for one that
fails."""
_OWNERS: Final = (401, 403)
"""Said by the door."""


def _parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    for name, schema in _PATH_PARAMETERS.items():
        if f"{{{name}}}" in operation.path:
            yield {"name": name, "in": "path", "required": True, "schema": schema}
    if operation.query is not None:
        _, shapes = msgspec.json.schema_components([operation.query], ref_template=_REF)
        shape = shapes[operation.query.__name__]
        for name, schema in shape["properties"].items():
            yield {
                "name": name,
                "in": "query",
                "required": name in shape.get("required", ()),
                "schema": _fitted(name, schema),
            }
    if operation.idempotent:
        yield _IDEMPOTENCY_KEY


_KINDS: Final[dict[Any, tuple[str, ...]]] = {
    Problem: ("application/problem+json",),
    Stream: ("text/event-stream", "application/x-ndjson"),
    Metrics: ("text/plain; version=0.0.4; charset=utf-8",),
    str: ("image/svg+xml",),
}
_TEXTS: Final = (Stream, Metrics)
"""What is no JSON."""


def _answer(code: int, shape: Any) -> dict[str, Any]:
    kinds, schema = _KINDS.get(shape, ("application/json",)), _schema(str if shape in _TEXTS else shape)
    answer: dict[str, Any] = {
        "description": HTTPStatus(code).phrase,
        "content": {kind: {"schema": schema} for kind in kinds},
    }
    if code in (429, 503):
        seconds = {"type": "integer", "minimum": 1}
        answer["headers"] = {"Retry-After": {"description": "in seconds", "schema": seconds}}
    return answer


def _schema(shape: Any) -> dict[str, Any]:
    if isinstance(shape, tuple):
        return {"anyOf": [_schema(one) for one in shape]}
    (schema,), _ = msgspec.json.schema_components([shape], ref_template=_REF)
    return schema


def _schemas(operations: Iterable[Operation]) -> dict[str, Any]:
    shapes: list[Any] = [Problem]
    for operation in operations:
        for shape in (operation.body, *operation.answers.values()):
            shapes += shape if isinstance(shape, tuple) else [shape]
    _, schemas = msgspec.json.schema_components([one for one in shapes if one not in _TEXTS], ref_template=_REF)
    send = schemas[SendBody.__name__]["properties"]
    schemas[SendBody.__name__]["properties"] = {name: _fitted(name, schema) for name, schema in send.items()}
    return schemas


def _fitted(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """What the shapes leave to be looked at later: that names are names."""
    if name not in ("to", "from", "with"):
        return schema
    if "anyOf" not in schema:
        return {**schema, "pattern": ADDRESS_PATTERN}
    one, several = schema["anyOf"]
    return {**schema, "anyOf": [{**one, "pattern": ADDRESS_PATTERN}, several]}
