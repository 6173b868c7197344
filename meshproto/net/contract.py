"""The HTTP face as an OpenAPI 3.1 document, made of the very shapes that bodies and queries are read with. What is
answered is told here, in shapes that nothing but this document uses; tests hold them against a running node.
"""

from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from meshproto import __version__
from meshproto.core.envelope import Sealed, SealedReceipt
from meshproto.core.identity import ADDRESS_PATTERN
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
from meshproto.net.contract_examples import EVENTS, EXAMPLES, LINES, METRICS, PICTURE, PROBLEM, PROBLEMS, curl
from meshproto.net.contract_shapes import (
    Contact,
    Contacts,
    Conversations,
    Found,
    Health,
    Hits,
    Inbox,
    Kept,
    Metrics,
    Outbox,
    Outcome,
    Problem,
    Results,
    Retried,
    Said,
    Seeds,
    Several,
    Stream,
    Summary,
    Unread,
    WellKnown,
)
from meshproto.net.doctor import Report

OPENAPI: Final = "3.1.0"
_REF: Final = "#/components/schemas/{name}"

# -- what may be asked --------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """`path`: parameters in braces. `query` and `body`: the shapes of what is asked, a body of `str` is text.
    `answers`: what the good answers hold, by code, one shape or one of several; `errors`: the codes of problem
    documents besides those that anything may be answered. `streams`: it takes lines, and answers with lines."""

    method: str
    path: str
    tag: str
    summary: str
    answers: dict[int, Any]
    errors: tuple[int, ...] = ()
    query: type[Struct] | None = None
    body: Any = None
    owner: bool = True
    idempotent: bool = False
    streams: bool = False
    description: str = ""

    @property
    def id(self) -> str:
        return f"{self.method} {self.path}"


SENT: Final = {200: Outcome, 202: Outcome}
SEND_ERRORS: Final = (404, 409)

TAGS: Final = {
    "Sending": "What goes out, and what became of it.",
    "Receiving": "What came in.",
    "History": "What was said with whom, in both directions.",
    "Contacts": "Whose keys are known, and who is trusted.",
    "The mesh": "The node and its seeds, as they are now.",
    "For anyone": "What other nodes ask, and whoever watches whether the node lives. No token is asked for.",
}

OPERATIONS: Final = [
    Operation(
        "post",
        "/send",
        "Sending",
        "Send a message, to one name or several",
        {**SENT, 207: Results},
        SEND_ERRORS,
        body=SendBody,
        idempotent=True,
        streams=True,
        description="200 when it is on the recipient's disk, 202 when it waits on this node's, 207 with a result "
        "for each of a list. The same `id` for the same recipient is the same message, so it is safe to ask "
        "again. As `application/x-ndjson` the body is a stream: each line is such an object with one name in "
        "`to`, and is answered with a line, in order, while the stream goes on.",
    ),
    Operation(
        "post",
        "/send/{name}",
        "Sending",
        "Send the body as text",
        SENT,
        SEND_ERRORS,
        query=SendQuery,
        body=str,
        idempotent=True,
        description="For a shell: the body is the message, in UTF-8.",
    ),
    Operation(
        "get",
        "/outbox",
        "Sending",
        "What was sent, and for whom it waits",
        {200: Outbox},
        query=OutboxQuery,
        description="What waits comes oldest first, anything else newest first. `recipients` says for whom "
        "messages wait, and the last error in the words of whoever failed.",
    ),
    Operation(
        "get",
        "/outbox/{id}",
        "Sending",
        "How far a message has come",
        {200: (Kept, Several)},
        (404,),
        query=ToQuery,
        description="An id that was used for several recipients answers with `results`; `to` chooses one.",
    ),
    Operation(
        "delete",
        "/outbox/{id}",
        "Sending",
        "Cancel a message",
        {200: Outcome, 202: Outcome, 207: Results},
        (404, 409),
        query=ToQuery,
        description="200: it is not sent any more. 202: it is under way at this moment, and cancelled if that "
        "fails. 207: of several recipients all for whom it waited are given up. 409: too late.",
    ),
    Operation(
        "post",
        "/outbox/retry",
        "Sending",
        "Try again now",
        {200: Retried},
        (404,),
        query=ToQuery,
        description="For everybody, or for one name. Hardly ever needed: whoever comes back is tried by itself.",
    ),
    Operation(
        "get",
        "/inbox",
        "Receiving",
        "What came, oldest first",
        {200: Inbox},
        query=InboxQuery,
        description="`next` is always there and goes into `after`. With `wait` an empty page is held back for a "
        "message.",
    ),
    Operation(
        "get",
        "/inbox/stream",
        "Receiving",
        "What comes, as it comes",
        {200: Stream},
        query=StreamQuery,
        description="An answer that does not end: Server-Sent Events, or with `Accept: application/x-ndjson` a "
        "line of JSON for each, whose `event` says its kind: `open`, `message`, `outbox`, `recipient`, "
        "`presence`, `end`. A sign of life comes every 15 seconds. A client that comes again says in the header "
        "`Last-Event-ID` what it has.",
    ),
    Operation(
        "get",
        "/history",
        "History",
        "Conversations, the latest first",
        {200: Conversations},
        query=HistoryQuery,
        description="One for each name that was written to or has written.",
    ),
    Operation(
        "get",
        "/history/{name}",
        "History",
        "What was said with one",
        {200: Said},
        query=ConversationQuery,
        description="Oldest first; without a place the latest page.",
    ),
    Operation(
        "put",
        "/history/{name}",
        "History",
        "Say how far it was read",
        {200: Unread},
        body=ReadBody,
        description="All up to this place has been read; the answer is how much is left.",
    ),
    Operation(
        "get",
        "/search",
        "History",
        "Messages with some words",
        {200: Hits},
        query=SearchQuery,
        description="The newest first; in the `snippet` the words stand between U+0002 and U+0003.",
    ),
    Operation(
        "get",
        "/contacts",
        "Contacts",
        "Whose keys are known",
        {200: Contacts},
        description="Everyone whom this node has looked up to send to, or got a message from.",
    ),
    Operation(
        "get", "/contacts/{name}", "Contacts", "One of them", {200: Contact}, (404,), description="By their name."
    ),
    Operation(
        "put",
        "/contacts/{name}",
        "Contacts",
        "Trust a key",
        {200: Contact},
        (404, 409),
        body=TrustBody,
        description="The key with this fingerprint is theirs: you have compared it by other means. What waits "
        "for them is tried at once. 409: it is neither the key that is known, nor one that was offered.",
    ),
    Operation(
        "delete",
        "/contacts/{name}",
        "Contacts",
        "Forget a key",
        {200: Contact},
        (404,),
        description="The next key that is seen for the name counts.",
    ),
    Operation(
        "get",
        "/contacts/{name}/qr",
        "Contacts",
        "A contact's address as a QR code",
        {200: str},
        (404,),
        description="The full address, NAME~FINGERPRINT, as a picture.",
    ),
    Operation(
        "get",
        "/qr",
        "Contacts",
        "This node's address as a QR code",
        {200: str},
        description="For others to take with a camera.",
    ),
    Operation(
        "get",
        "/lookup/{name}",
        "The mesh",
        "Where a user is",
        {200: Found},
        (404,),
        description="The seeds are asked anew. 404: every seed was asked, and none that answered knows the name.",
    ),
    Operation(
        "get",
        "/seeds",
        "The mesh",
        "The seeds of the mesh",
        {200: Seeds},
        description="As the home seed has told of them, up to half a minute ago.",
    ),
    Operation("get", "/status", "The mesh", "A summary", {200: Summary}, description="The node at a glance."),
    Operation(
        "get",
        "/doctor",
        "The mesh",
        "What this node finds at its seeds and its own addresses",
        {200: Report},
        description="It takes up to eight seconds.",
    ),
    Operation(
        "get",
        "/metrics",
        "The mesh",
        "What this node has done, for Prometheus",
        {200: Metrics},
        description="In Prometheus's text format.",
    ),
    Operation(
        "get",
        "/openapi.json",
        "The mesh",
        "This document",
        {200: dict[str, Any]},
        description="OpenAPI 3.1, for tools; `/page/reference.html` shows it to people.",
    ),
    Operation(
        "post",
        "/deliver",
        "For anyone",
        "Hand over a sealed batch",
        {200: SealedReceipt},
        (403, 409, 421),
        body=Sealed,
        owner=False,
        description="What one node sends to another, sealed between their mail keys; the answer is a sealed "
        "receipt. The protocol reference describes both.",
    ),
    Operation(
        "get",
        "/.well-known/meshproto",
        "For anyone",
        "The node's own record and limits",
        {200: WellKnown},
        owner=False,
        description="The record is signed by the node's identity key.",
    ),
    Operation(
        "get",
        "/healthz",
        "For anyone",
        "Whether the node can work",
        {200: Health},
        owner=False,
        description="503 when its disk refuses.",
    ),
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
    "example": "disk-1",
}
PARAMETERS: Final = {
    "name": "a name, or the full address NAME~FINGERPRINT",
    "id": "of the message: yours, or the one that was made up for it",
    "to": "only this recipient",
    "from": "only from this sender; of a full address, only what was written with that key",
    "with": "only what was said with this one",
    "after": "go on after this place: a cursor of an answer before, or a `pos` of the history",
    "before": "the messages just before this `pos`",
    "around": "this `pos`, and the messages on both sides",
    "limit": "at most so many",
    "wait": "seconds to wait: for a message, or for the delivery",
    "ttl": "seconds for which delivery is tried",
    "type": "a word for the recipient's programs",
    "status": "only what is so",
    "events": "what to tell: some of message, outbox, presence, with commas between",
    "names": "whose presence to tell, with commas between",
    "q": "words that all stand in a message; the last may be unfinished, those between quotes stand together",
}
_SERVER: Final = "http://127.0.0.1:3000"
_LINES_IN: Final = {
    "description": "lines of JSON, each a SendBody with one name in `to`; what is wrong is said of its line"
}
_LINES_OUT: Final = {"type": "string", "description": "lines of JSON, each a Result, with the `line` if it failed"}


def document(*, public: bool) -> dict[str, Any]:
    """Of a listener that serves the public routes beside the owner's, or of one that is the owner's alone."""
    paths: dict[str, dict[str, Any]] = {}
    operations = [operation for operation in OPERATIONS if public or operation.owner]
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    tags = dict.fromkeys(operation.tag for operation in operations)
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "meshproto user node",
            "version": __version__,
            "summary": "Messages by name, directly, on machines you run yourselves",
            "description": "What the owner of a node, and other nodes, may ask it. Bodies and answers are JSON "
            "in UTF-8, times are milliseconds since 1970 UTC, errors are problem documents (RFC 9457).",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "the node that serves this document"}],
        "tags": [{"name": tag, "description": TAGS[tag]} for tag in tags],
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
    examples = EXAMPLES[operation.id]
    lines = [curl(operation.method, operation.path, one, _SERVER) for one in examples]
    told: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "operationId": operation.id,
        "parameters": list(_parameters(operation)),
        "responses": {str(code): _answer(operation, code, codes[code]) for code in sorted(codes)},
        "x-codeSamples": [
            {"lang": "Shell", "label": one.name, "source": line} for one, line in zip(examples, lines, strict=True)
        ],
    }
    if operation.owner:
        told["security"] = [{}, {"token": []}]
    if operation.body is not None:
        kind, schema = ("text/plain", _TEXT) if operation.body is str else (_JSON, _schema(operation.body))
        content = {kind: schema, **({LINES: _LINES_IN} if operation.streams else {})}
        told["requestBody"] = {
            "required": True,
            "content": {
                kind: {
                    "schema": schema,
                    "examples": {one.name: {"value": one.body} for one in examples if one.sends == kind},
                }
                for kind, schema in content.items()
            },
        }
    return told


_JSON: Final = "application/json"
_TEXT: Final = {"type": "string"}
_ALWAYS: Final = (400, 408, 413, 414, 429, 431, 500, 503)
"""Said by the listener before a route has its say (:mod:`meshproto.net.http_channel`, `http_limits`), or for one that
fails."""
_OWNERS: Final = (401, 403)
"""Said by the door."""


def _parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    for name, schema in _PATH_PARAMETERS.items():
        if f"{{{name}}}" in operation.path:
            yield _parameter(operation, name, "path", required=True, schema=schema)
    if operation.query is not None:
        _, shapes = msgspec.json.schema_components([operation.query], ref_template=_REF)
        shape = shapes[operation.query.__name__]
        for name, schema in shape["properties"].items():
            yield _parameter(
                operation, name, "query", required=name in shape.get("required", ()), schema=_fitted(name, schema)
            )
    if operation.idempotent:
        yield _IDEMPOTENCY_KEY


def _parameter(operation: Operation, name: str, place: str, *, required: bool, schema: Any) -> dict[str, Any]:
    values = {
        one.name: {"value": given[name]}
        for one in EXAMPLES[operation.id]
        if name in (given := {**one.path, **one.query})
    }
    told = {"name": name, "in": place, "description": PARAMETERS[name], "required": required, "schema": schema}
    return {**told, "examples": values} if values else told


_KINDS: Final[dict[Any, tuple[str, ...]]] = {
    Problem: (PROBLEM,),
    Stream: (EVENTS, LINES),
    Metrics: (METRICS,),
    str: (PICTURE,),
}

_TEXTS: Final = (Stream, Metrics)
"""What is no JSON."""


def _answer(operation: Operation, code: int, shape: Any) -> dict[str, Any]:
    schema = _schema(str if shape in _TEXTS else shape)
    content = dict.fromkeys(_KINDS.get(shape, (_JSON,)), schema)
    if operation.streams and code == 200:
        content[LINES] = _LINES_OUT
    answer: dict[str, Any] = {
        "description": HTTPStatus(code).phrase,
        "content": {
            kind: {"schema": schema, "examples": _told(operation, code, kind)} for kind, schema in content.items()
        },
    }
    if code in (429, 503):
        seconds = {"type": "integer", "minimum": 1}
        answer["headers"] = {"Retry-After": {"description": "in seconds", "schema": seconds}}
    return answer


def _told(operation: Operation, code: int, kind: str) -> dict[str, Any]:
    """The examples of an answer."""
    own = {
        one.name: {"value": one.answer} for one in EXAMPLES[operation.id] if (one.code, one.media_type) == (code, kind)
    }
    return own or {"problem": {"value": PROBLEMS[code]}}


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
    fitted: dict[str, Any] = _in_ecmascript(schemas)
    return fitted


def _in_ecmascript(value: Any) -> Any:
    """Patterns as JSON Schema has them, where `$` is the end and nothing else."""
    if isinstance(value, dict):
        pattern = value.get("pattern")
        told = {**value, "pattern": pattern.replace("\\Z", "$")} if isinstance(pattern, str) else value
        return {name: _in_ecmascript(inner) for name, inner in told.items()}
    return [_in_ecmascript(inner) for inner in value] if isinstance(value, list) else value


def _fitted(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """What the shapes leave to be looked at later: that names are names."""
    if name not in ("to", "from", "with"):
        return schema
    if "anyOf" not in schema:
        return {**schema, "pattern": ADDRESS_PATTERN}
    one, several = schema["anyOf"]
    return {**schema, "anyOf": [{**one, "pattern": ADDRESS_PATTERN}, several]}
