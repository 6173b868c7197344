"""The examples in /openapi.json: what a node of UserX is asked and answers, with the keys of docs/protocol.md's test
vectors. A test sends each to a running node, which has to answer with the code that stands here, in the same shape."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode

from meshproto import __version__

SENT_AT: Final = 1_795_343_301_000
PROBLEM: Final = "application/problem+json"
LINES: Final = "application/x-ndjson"
EVENTS: Final = "text/event-stream"
PICTURE: Final = "image/svg+xml"
METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"

_USERX_KEY: Final = "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"
_BOBBY_KEY: Final = "JUO5L_EJVRFHatyDadtt3JM2ZaEZeN2hQE7hBmypVZ0"
_USERX: Final = {
    "record": '{"name":"UserX","uris":["http://127.0.0.1:3000"],"key":"A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg",'
    '"mail":"NYBy1jZYgNGu6jKa35EhODhR7SGijjt16WXQ0s0WYlQ","seq":1795343300123}',
    "sig": "4HIfKDxB2Vbs4YiGPqWBRZrBISisxs9VriZhFnPNMe2HeSEr6QfP5IRLSVKsRBHiGtfieHxE9AoN8YQeJ7VMBg",
}
_BOBBY: Final = {
    "record": '{"name":"Bobby","uris":["http://127.0.0.1:5012"],"key":"JUO5L_EJVRFHatyDadtt3JM2ZaEZeN2hQE7hBmypVZ0",'
    '"mail":"Z13VdO13iTELPS52gfN5C0ZsdzsVIf7PNld5WDcepS8","seq":1795343300456}',
    "sig": "NYvR7T2FyudpHjRKGH9ffHRgzg0Q0Z0CG69Fq7-jwNVbM-4lJFU0TMa2U0WA13irNfd4B7MPBD3LtirYkRk-BQ",
}
_BATCH: Final = {
    "sender": _BOBBY,
    "to": "NYBy1jZYgNGu6jKa35EhODhR7SGijjt16WXQ0s0WYlQ",
    "box": "sLGys7S1tre4ubq7vL2-v8DBwsPExcbHcJO1nsAYI91uQh6KC7mmAyO_bMM3-YJGICg9d8KrqvXmK3SbzdY0m7Wzhs80BkkfmHV3n"
    "PG3t-HotW8nV0z-Nu99P5nJT08WKKwgFusTQJf54slPXZ4q73R9Nx60Fsji9NCOTpPdgbviQkO3pzZvT7E-zs7zcDitOXjanue8zZd2l_Oa3"
    "drcRCbqI60wqnarPfSpMtfGjUNYjTWnbiWZdpp5XQ2LpVMQS_LaaizpcIqoM42CsdFurrPEZ-3N0qJ5WZP9n6pjElsBbv6z6kor4tioTD_38"
    "S6tnn28oeZrafswSLX4DU1l_VA1abXvK6gUeFjThWI",
}
_RECEIPT: Final = {
    "box": "0NHS09TV1tfY2drb3N3e3-Dh4uPk5ebn8u37RfHVbfswXlCW2STfgN8EmSarBPXewap6gO_VkxxSZV_l3VO_b0Cf2lwIrUW7VoYPA"
    "5ojqT9IYljK495BM1OgHrmYGxtYPXuG-w"
}
_BOBBYS: Final = {
    "key": _BOBBY_KEY,
    "fingerprint": "am4wegjdp522mtys",
    "groups": "am4w-egjd-p522-mtys",
    "address": "Bobby~am4wegjdp522mtys",
}
_FROM_BOBBY: Final = {"name": "Bobby", "key": _BOBBY_KEY}
_CAME: Final = {
    "cursor": 1,
    "id": "m1",
    "from": _FROM_BOBBY,
    "type": "",
    "message": "lunch?",
    "sent_at": SENT_AT,
    "received_at": SENT_AT + 12,
}
_KEPT: Final = {
    "cursor": 1,
    "id": "note-7",
    "to": "Carl",
    "status": "queued",
    "sent_at": SENT_AT,
    "expires_at": SENT_AT + 604_800_000,
    "changed_at": SENT_AT,
    "reason": "connection refused",
}
_LUNCH: Final = {**_KEPT, "cursor": 2, "id": "lunch-1", "to": "Bobby", "status": "delivered", "reason": None}
_ITEM: Final = {"pos": 1, "direction": "in", "at": SENT_AT + 12, **_CAME}
_CONTACT: Final = {"name": "Bobby", **_BOBBYS, "first_seen": SENT_AT, "verified_at": None, "offered": None}
_PICTURE_TEXT: Final = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 33 33">...</svg>\n'


class Example(NamedTuple):
    """One question and its answer. `path`, `query`: the parameters' values; `body`: a text as it is, anything else as
    JSON; `sends`, `brings`: the media types, where it is not JSON or a problem document. `asked`: whether it can be
    asked of a node at will."""

    name: str
    code: int
    answer: Any
    path: Mapping[str, str] = MappingProxyType({})
    query: Mapping[str, Any] = MappingProxyType({})
    body: Any = None
    sends: str = "application/json"
    brings: str = ""
    asked: bool = True

    @property
    def media_type(self) -> str:
        return self.brings or (PROBLEM if self.code >= 400 else "application/json")

    def content(self) -> str | None:
        return self.body if self.body is None or isinstance(self.body, str) else json.dumps(self.body)

    def target(self, path: str) -> str:
        """The path and the query that are asked for."""
        for name, value in self.path.items():
            path = path.replace(f"{{{name}}}", quote(value, safe="~"))
        return f"{path}?{urlencode(self.query)}" if self.query else path


def problem(code: int, title: str, detail: str, **more: Any) -> dict[str, Any]:
    return {"type": "about:blank", "title": title, "status": code, "detail": detail, **more}


def curl(method: str, path: str, example: Example, server: str) -> str:
    """The line that asks it from a shell."""
    words = ["curl"]
    if method not in ("get", "post") or (method == "post" and example.body is None):
        words.append(f"-X {method.upper()}")
    if example.brings in (EVENTS, LINES):
        words.append("-N")
    if example.brings == LINES and example.body is None:
        words.append(f"-H 'Accept: {LINES}'")
    if example.sends == LINES:
        words.append(f"-H 'Content-Type: {LINES}'")
    words.append(_shell(server + example.target(path)))
    content = example.content()
    if content is not None:
        words.append(f"--data-binary {_shell(content)}")
    return " ".join(words)


def _shell(word: str) -> str:
    plain = all(letter.isalnum() or letter in "/:._-~" for letter in word)
    return word if plain else "'" + word.replace("'", "'\\''") + "'"


_NOBODY: Final = problem(404, "User Not Found", "no seed knows Nobody")
_NO_MESSAGE: Final = problem(404, "Not Found", "no message with the id 'none' is known")
_NO_CONTACT: Final = problem(404, "Not Found", "Nobody is no contact")
_REUSED: Final = problem(409, "id reused", "the id 'lunch-1' was used for another message to Bobby")

EXAMPLES: Final[dict[str, tuple[Example, ...]]] = {
    "post /send": (
        Example(
            "delivered",
            200,
            {"id": "disk-1", "to": "Bobby", "status": "delivered"},
            body={"to": "Bobby", "message": {"disk": "/", "full": 0.97}, "type": "alert", "id": "disk-1"},
        ),
        Example(
            "queued",
            202,
            {"id": "call-1", "to": "Carl", "status": "queued", "reason": "connection refused"},
            body={"to": "Carl", "message": "Call me when you are back", "id": "call-1", "ttl": 86400, "wait": 0},
        ),
        Example(
            "several",
            207,
            {
                "results": [
                    {"id": "lunch-2", "to": "Bobby", "status": "delivered"},
                    {
                        "id": "lunch-2",
                        "to": "Nobody",
                        "status": "failed",
                        "code": 404,
                        "title": "User Not Found",
                        "reason": "no seed knows Nobody",
                        "retry_after": 5,
                    },
                ]
            },
            body={"to": ["Bobby", "Nobody"], "message": "lunch?", "id": "lunch-2"},
        ),
        Example(
            "streamed",
            200,
            '{"id":"s-1","to":"Bobby","status":"delivered"}\n{"line":2,"id":"s-2","to":"Nobody","status":"failed",'
            '"code":404,"title":"User Not Found","reason":"no seed knows Nobody","retry_after":5}\n',
            body='{"to":"Bobby","message":1,"id":"s-1"}\n{"to":"Nobody","message":2,"id":"s-2"}\n',
            sends=LINES,
            brings=LINES,
        ),
        Example("unknown", 404, _NOBODY, body={"to": "Nobody", "message": "Hello"}),
        Example("reused", 409, _REUSED, body={"to": "Bobby", "message": "another text", "id": "lunch-1"}),
    ),
    "post /send/{name}": (
        Example(
            "delivered",
            200,
            {"id": "6f1c2d3e4a5b60718293a4b5", "to": "Bobby", "status": "delivered"},
            path={"name": "Bobby"},
            query={"type": "alert"},
            body="disk full",
            sends="text/plain",
        ),
        Example(
            "queued",
            202,
            {"id": "call-2", "to": "Carl", "status": "queued", "reason": "connection refused"},
            path={"name": "Carl"},
            query={"id": "call-2", "wait": 0},
            body="Call me when you are back",
            sends="text/plain",
        ),
        Example("unknown", 404, _NOBODY, path={"name": "Nobody"}, body="Hello", sends="text/plain"),
        Example(
            "reused",
            409,
            _REUSED,
            path={"name": "Bobby"},
            query={"id": "lunch-1"},
            body="another text",
            sends="text/plain",
        ),
    ),
    "get /inbox": (
        Example("page", 200, {"messages": [_CAME], "next": 1}, query={"after": 0, "limit": 100}),
        Example("waiting", 200, {"messages": [], "next": 1}, query={"after": 1, "from": "Bobby", "wait": 1}),
    ),
    "get /inbox/stream": (
        Example(
            "events",
            200,
            f'id: 0\nevent: open\ndata: {{"cursor":0,"now":{SENT_AT}}}\n\n'
            f"id: 1\nevent: message\ndata: {json.dumps(_CAME, separators=(',', ':'))}\n\n",
            query={"after": 0},
            brings=EVENTS,
        ),
        Example(
            "lines",
            200,
            f'{{"event":"open","cursor":0,"now":{SENT_AT}}}\n'
            f"{json.dumps({'event': 'message', **_CAME}, separators=(',', ':'))}\n",
            query={"after": 0, "events": "message,outbox"},
            brings=LINES,
        ),
    ),
    "get /outbox": (
        Example(
            "waiting",
            200,
            {
                "messages": [_KEPT],
                "next": None,
                "recipients": [
                    {
                        "to": "Carl",
                        "waiting": 1,
                        "oldest_at": SENT_AT,
                        "attempts": 3,
                        "next_try_at": SENT_AT + 9000,
                        "reason": "connection refused",
                    }
                ],
            },
            query={"status": "waiting", "to": "Carl"},
        ),
    ),
    "get /outbox/{id}": (
        Example("one", 200, _KEPT, path={"id": "note-7"}),
        Example("several", 200, {"results": [_LUNCH, {**_KEPT, "id": "lunch-1"}]}, path={"id": "lunch-1"}),
        Example("unknown", 404, _NO_MESSAGE, path={"id": "none"}),
    ),
    "delete /outbox/{id}": (
        Example("cancelled", 200, {"id": "note-7", "to": "Carl", "status": "cancelled"}, path={"id": "note-7"}),
        Example(
            "under way",
            202,
            {"id": "note-7", "to": "Carl", "status": "delivering"},
            path={"id": "note-7"},
            asked=False,
        ),
        Example(
            "several",
            207,
            {"results": [{"id": "lunch-1", "to": "Carl", "status": "cancelled"}]},
            path={"id": "lunch-1"},
        ),
        Example("unknown", 404, _NO_MESSAGE, path={"id": "none"}),
        Example(
            "too late",
            409,
            problem(409, "message delivered", "the message is delivered", id="lunch-1", to="Bobby"),
            path={"id": "lunch-1"},
            query={"to": "Bobby"},
        ),
    ),
    "post /outbox/retry": (
        Example("everybody", 200, {"retried": ["Carl"], "waiting": 1}),
        Example(
            "nothing waits",
            404,
            problem(404, "Not Found", "nothing waits for Nobody"),
            query={"to": "Nobody"},
        ),
    ),
    "get /history": (
        Example(
            "page",
            200,
            {
                "conversations": [{"name": "Bobby", "pos": 1, "unread": 1, "waiting": 0, "last": _ITEM}],
                "next": None,
                "behind": 0,
            },
        ),
    ),
    "get /history/{name}": (
        Example(
            "latest",
            200,
            {"messages": [_ITEM], "before": None, "after": None, "total": 1, "behind": 0},
            path={"name": "Bobby"},
            query={"limit": 50},
        ),
    ),
    "put /history/{name}": (Example("read", 200, {"unread": 0}, path={"name": "Bobby"}, body={"read": 1}),),
    "get /search": (
        Example(
            "words",
            200,
            {"hits": [{"with": "Bobby", **_ITEM, "snippet": "\x02lunch\x03?"}], "next": None, "behind": 0},
            query={"q": "lunch", "with": "Bobby"},
        ),
    ),
    "get /lookup/{name}": (
        Example(
            "found",
            200,
            {
                "name": "Bobby",
                **_BOBBYS,
                "uris": ["http://127.0.0.1:5012"],
                "seq": 1_795_343_300_456,
                "since": SENT_AT,
                "home": "seedX",
                "online": True,
                "seen": SENT_AT,
                **_BOBBY,
            },
            path={"name": "Bobby"},
        ),
        Example("unknown", 404, _NOBODY, path={"name": "Nobody"}),
    ),
    "get /seeds": (
        Example(
            "one",
            200,
            {
                "seeds": [
                    {
                        "name": "seedX",
                        "address": "127.0.0.1:5001",
                        "alive": True,
                        "users": 3,
                        "since": SENT_AT,
                        "phi": 0.0,
                        "lag": 0,
                        "home": True,
                    }
                ]
            },
        ),
    ),
    "get /contacts": (Example("all", 200, {"contacts": [_CONTACT]}),),
    "get /contacts/{name}": (
        Example("one", 200, _CONTACT, path={"name": "Bobby"}),
        Example("unknown", 404, _NO_CONTACT, path={"name": "Nobody"}),
    ),
    "put /contacts/{name}": (
        Example(
            "trusted",
            200,
            {**_CONTACT, "verified_at": SENT_AT + 60_000},
            path={"name": "Bobby"},
            body={"fingerprint": "am4w-egjd-p522-mtys"},
        ),
        Example("unknown", 404, _NOBODY, path={"name": "Nobody"}, body={"fingerprint": "am4w-egjd-p522-mtys"}),
        Example(
            "another key",
            409,
            problem(
                409,
                "key changed",
                "Bobby is known with the key am4wegjdp522mtys: not aaaaaaaaaaaaaaaa, so nothing was trusted",
            ),
            path={"name": "Bobby"},
            body={"fingerprint": "aaaaaaaaaaaaaaaa"},
        ),
    ),
    "delete /contacts/{name}": (
        Example("forgotten", 200, _CONTACT, path={"name": "Bobby"}),
        Example("unknown", 404, _NO_CONTACT, path={"name": "Nobody"}),
    ),
    "get /contacts/{name}/qr": (
        Example("picture", 200, _PICTURE_TEXT, path={"name": "Bobby"}, brings=PICTURE),
        Example("unknown", 404, _NO_CONTACT, path={"name": "Nobody"}),
    ),
    "get /qr": (Example("picture", 200, _PICTURE_TEXT, brings=PICTURE),),
    "get /status": (
        Example(
            "registered",
            200,
            {
                "name": "UserX",
                "fingerprint": "kzdvvj2umnduyauf",
                "groups": "kzdv-vj2u-mndu-yauf",
                "address": "UserX~kzdvvj2umnduyauf",
                "version": __version__,
                "uptime_s": 3600.5,
                "uris": ["http://127.0.0.1:3000"],
                "home": {"name": "seedX", "address": "localhost:5001", "since": SENT_AT},
                "registered": True,
                "problem": None,
                "seed_answers": True,
                "seeds": 1,
                "outbox": {"waiting": 1, "recipients": 1, "oldest_at": SENT_AT},
                "inbox": {"messages": 1, "next": 1},
                "contacts": {"key_changed": 0},
                "disk": None,
                "programs": [],
            },
        ),
    ),
    "get /doctor": (
        Example(
            "well",
            200,
            {
                "now": SENT_AT,
                "seeds": [
                    {
                        "address": "localhost:5001",
                        "home": True,
                        "reason": None,
                        "name": "seedX",
                        "version": __version__,
                        "took_ms": 1.5,
                        "sees": "127.0.0.1",
                        "knows": "current",
                        "clock_ms": 0,
                    }
                ],
                "unasked": 0,
                "uris": [{"uri": "http://127.0.0.1:3000", "leads_here": True, "took_ms": 2.5, "reason": None}],
            },
        ),
    ),
    "get /metrics": (
        Example(
            "text",
            200,
            "# HELP meshproto_user_uptime_seconds Since the node has started.\n"
            "# TYPE meshproto_user_uptime_seconds gauge\n"
            "meshproto_user_uptime_seconds 3600.5\n",
            brings=METRICS,
        ),
    ),
    "get /openapi.json": (
        Example("this", 200, {"openapi": "3.1.0", "info": {"title": "meshproto user node", "version": __version__}}),
    ),
    "post /deliver": (Example("batch", 200, _RECEIPT, body=_BATCH),),
    "get /.well-known/meshproto": (
        Example(
            "record",
            200,
            {
                "version": __version__,
                "protocol": 1,
                "limits": {"message_bytes": 262144, "batch_bytes": 1048576, "batch_messages": 1000},
                **_USERX,
            },
        ),
    ),
    "get /healthz": (Example("well", 200, {"status": "ok"}),),
}

PROBLEMS: Final[dict[int, dict[str, Any]]] = {
    one["status"]: one
    for one in (
        problem(400, "bad params", "the query does not read: Expected `int` >= 1 - at `$.limit`"),
        problem(401, "Unauthorized", "the owner's token is needed: Authorization: Bearer TOKEN"),
        problem(403, "Forbidden", "a page from another origin may not talk to this node"),
        problem(404, "Not Found", "there is no such route here"),
        problem(408, "too slow", "the request did not come in time"),
        problem(409, "key changed", "Bobby answers with another key than before"),
        problem(413, "too large", "the body is larger than 4194304 bytes"),
        problem(414, "URI too long", "the first line of the request is longer than 8192 bytes"),
        problem(421, "not for this node", "the batch is sealed for a mail key that this node does not hold"),
        problem(429, "slow down", "the outbox is full"),
        problem(431, "header fields too large", "the head of the request is larger than 16384 bytes"),
        problem(500, "Internal Error", "the node's log says more"),
        problem(503, "unavailable", "no seed answers, and no address of Bobby is known"),
    )
}
"""What stands for each error where an operation has no example of its own."""
