"""What a user node may be asked, and how its answers read: the middle of every client, without a socket.

A :class:`Request` says what goes out; whoever has a connection sends it, and gives what came to :func:`read_answer` or,
piece by piece, to :class:`Lines`. :class:`Questions` are all the requests by their names, written once: a client gives
them its way to ask.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from meshproto.client.errors import Document, Problem, Unreachable, problem

NODE_PORT = 3000  # where a node is that was not told where to be
ANSWER_TIMEOUT_S = 10.0  # beyond what the node was asked to wait: a busy disk, not a dead node
SEND_WAIT_S = 5.0  # how long the node waits for the recipient when it is not told
CANCEL_WAIT_S = 5.0  # how long the node waits for a message that is under way
DOCTOR_WAIT_S = 8.0  # how long the node looks at seeds
EVENTS_SILENCE_S = 40.0  # a node that streams events says every 15 s that it is there: two of these may be lost
SILENCE_S = 90.0  # in a stream: half as long again as a line may ask the node to wait, the longest of its silences
ANSWER_BYTES_MAX = 64 * 1024 * 1024  # a page of the inbox at its largest; more is no answer of a node
RESULT_BYTES_MAX = 1024 * 1024  # one line of a stream: a message of full size, or an id, a name and a reason
PROBLEM_TYPE = "application/problem+json"
JSON_TYPE = "application/json"
STREAM_TYPE = "application/x-ndjson"
INTEGER_DIGITS_MAX = 4300  # Python refuses to turn more digits than this into an integer
MEDIA_TYPE_CHARS_MAX = 100

R = TypeVar("R")


@dataclass(frozen=True)
class Request:
    """`wait_s`: how long the node was asked to wait. `sends`: it hands a message over. `streams`: its answer is lines
    of JSON without an end, or as many as were asked for."""

    method: str
    path: str
    body: Document | None = None
    wait_s: float = 0.0
    sends: bool = False
    streams: bool = False

    def content(self) -> bytes | None:
        """The body as it goes out. Raises ValueError for what JSON cannot say, such as NaN."""
        if self.body is None:
            return None
        return json.dumps(self.body, ensure_ascii=False, allow_nan=False).encode()

    def headers(self, token: str | None) -> dict[str, str]:
        """What goes with it, whatever the way."""
        headers = {"Accept": f"{STREAM_TYPE if self.streams else JSON_TYPE}, {PROBLEM_TYPE}", "Connection": "close"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if self.body is not None:
            headers["Content-Type"] = JSON_TYPE
        return headers


@dataclass(frozen=True)
class Answer:
    """What a node answered: its own text for programs, the same as a document for people."""

    status: int
    text: str
    document: Document


class Head(NamedTuple):
    """What comes before the body of an answer."""

    status: int
    reason: str
    media_type: str
    retry_after: str


class Place:
    """Where a node is: `http://127.0.0.1:3000`, shorter `localhost:3000` or, at a node's usual port, `localhost`; or
    the path of its socket: `unix:/run/user/1000/mesh.sock`. In a socket it goes by the name `localhost`, as with
    `curl --unix-socket`.

    Raises ValueError for what is no address.
    """

    def __init__(self, url: str) -> None:
        scheme, _, path = url.partition(":")
        self.socket_path = path if scheme == "unix" else None
        http_url = url if "://" in url else f"http://{url}"
        parts = urlsplit(http_url if self.socket_path is None else "http://localhost" if path else "")
        not_a_place = ValueError(f"{url!r} is not the address of a node, such as http://127.0.0.1:3000")
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise not_a_place
        try:
            port = parts.port
        except ValueError:  # it is no number, or none of a port
            raise not_a_place from None
        if port is None and "://" not in url:
            port = NODE_PORT
        self.is_https = parts.scheme == "https"
        self.host, self.port, self.prefix = parts.hostname, port, parts.path.rstrip("/")
        netloc = f"[{self.host}]" if ":" in self.host else self.host
        where = netloc if port is None else f"{netloc}:{port}"
        self.url = url if self.socket_path else f"{parts.scheme}://{where}{self.prefix}"


# -- what comes back ----------------------------------------------------------------------------------------------


def read_answer(url: str, head: Head, content: bytes) -> Answer:
    """Raises :class:`Problem` if that is what it is, and :class:`Unreachable` if it is no node's."""
    is_problem = head.media_type == PROBLEM_TYPE and head.status >= 400
    if not is_problem and not (head.media_type == JSON_TYPE and 200 <= head.status < 300):
        kind = head.media_type[:MEDIA_TYPE_CHARS_MAX]
        raise Unreachable(url, f"what answers is not a user node: HTTP {head.status}, {kind}")
    text, document = read_document(url, content)
    if not is_problem:
        return Answer(head.status, text, document)
    digits = head.retry_after
    raise problem(
        head.status,
        str(document.get("title") or head.reason),
        str(document.get("detail") or ""),
        text=text,
        retry_after_s=int(digits) if digits.isdecimal() and len(digits) < 10 else None,
    )


def is_stream(head: Head) -> bool:
    """Whether lines follow. If not, :func:`read_no_stream` says what did."""
    return head.status == 200 and head.media_type == STREAM_TYPE


def read_no_stream(url: str, head: Head, content: bytes, lacking: str) -> Problem | Unreachable:
    """What stands in place of a stream. `lacking`: what to say of a node that has none."""
    try:
        read_answer(url, head, content)
    except (Problem, Unreachable) as error:
        return error
    return Problem(415, "Unsupported Media Type", lacking)


def read_document(url: str, content: bytes) -> tuple[str, Document]:
    """Raises :class:`Unreachable`."""
    try:
        text = content.decode()
        document = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise Unreachable(url, f"its answer is not readable JSON: {error}") from error
    if not isinstance(document, dict):
        raise Unreachable(url, "its answer is not a JSON object")
    return text, document


def _integer(digits: str) -> int | str:
    """One absurdly long number in somebody's message must not make the whole inbox unreadable: it stays text."""
    return int(digits) if len(digits) < INTEGER_DIGITS_MAX else digits


class Lines:
    """The documents of an answer that is a stream of lines, out of whatever pieces it comes in."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._unread = b""

    def feed(self, piece: bytes) -> Iterator[Document]:
        """Those that are whole now. Raises :class:`Unreachable`."""
        *lines, self._unread = (self._unread + piece).split(b"\n")
        for line in lines:
            yield read_document(self._url, line)[1]
        if len(self._unread) > RESULT_BYTES_MAX:
            raise Unreachable(self._url, f"a result is longer than {RESULT_BYTES_MAX} bytes")


# -- what is asked ------------------------------------------------------------------------------------------------


class Questions(Generic[R]):
    """Every method asks the node once. What it returns is up to the client: an :class:`Answer`, or one that will be
    there; :class:`Problem` and :class:`Unreachable` are raised."""

    def ask(self, request: Request) -> R:
        """Overridden by whoever has a connection."""
        raise NotImplementedError

    def send(
        self,
        to: str | list[str],
        message: object,
        *,
        message_id: str | None = None,
        message_type: str | None = None,
        ttl_s: float | None = None,
        wait_s: float | None = None,
    ) -> R:
        """Send any JSON value to a name, or several. The same `message_id` sent again is the same message."""
        optional = {"id": message_id, "type": message_type, "ttl": ttl_s, "wait": wait_s}
        given = {field: value for field, value in optional.items() if value is not None}
        wait_s = SEND_WAIT_S if wait_s is None else wait_s
        return self.ask(Request("POST", "/send", {"to": to, "message": message, **given}, wait_s=wait_s, sends=True))

    def inbox(
        self,
        *,
        after: int | None = None,
        sender: str | None = None,
        limit: int | None = None,
        wait_s: float | None = None,
    ) -> R:
        """A page of the inbox, oldest first; with `wait_s` an empty page is held back so long for a message."""
        query = {"after": after, "from": sender, "limit": limit, "wait": wait_s}
        return self.ask(Request("GET", _with_query("/inbox", query), wait_s=wait_s or 0))

    def history(self, name: str, limit: int) -> R:
        """The latest messages exchanged with a name, oldest first."""
        return self.ask(Request("GET", _with_query(f"/history/{_quoted(name)}", {"limit": limit})))

    def read(self, name: str, pos: int) -> R:
        """All that was exchanged with a name has been read, up to this place in the history."""
        return self.ask(Request("PUT", f"/history/{_quoted(name)}", {"read": pos}))

    def sent(self, message_id: str, to: str | None = None) -> R:
        """How far a message has come."""
        return self.ask(Request("GET", _with_query(f"/outbox/{_quoted(message_id)}", {"to": to})))

    def doctor(self) -> R:
        """What the node finds at its seeds and its own addresses."""
        return self.ask(Request("GET", "/doctor", wait_s=DOCTOR_WAIT_S))

    def lookup(self, name: str) -> R:
        """Where a name is, as the seeds tell it now."""
        return self.ask(Request("GET", f"/lookup/{_quoted(name)}"))

    def seeds(self) -> R:
        """The seeds this node knows."""
        return self.ask(Request("GET", "/seeds"))

    def status(self) -> R:
        """The node's own summary."""
        return self.ask(Request("GET", "/status"))

    def contacts(self) -> R:
        """Whose keys this node knows."""
        return self.ask(Request("GET", "/contacts"))

    def contact(self, name: str) -> R:
        """One of them."""
        return self.ask(Request("GET", f"/contacts/{_quoted(name)}"))

    def trust(self, name: str, fingerprint: str) -> R:
        """This is the name's key: its owner has said so."""
        return self.ask(Request("PUT", f"/contacts/{_quoted(name)}", {"fingerprint": fingerprint}))

    def forget(self, name: str) -> R:
        """Whatever is known of the name's key."""
        return self.ask(Request("DELETE", f"/contacts/{_quoted(name)}"))

    def outbox(
        self,
        *,
        status: str | None = None,
        to: str | None = None,
        limit: int | None = None,
        after: object = None,
    ) -> R:
        """A page of what was sent, and who is waited for: what waits oldest first, anything else newest first.

        `status`: `waiting`, or an end that messages came to. `after`: the `next` of the page before.
        """
        query = {"status": status, "to": to, "limit": limit, "after": after}
        return self.ask(Request("GET", _with_query("/outbox", query)))

    def cancel(self, message_id: str, to: str | None = None) -> R:
        """Give a message up. The answer is late if the message is under way."""
        path = _with_query(f"/outbox/{_quoted(message_id)}", {"to": to})
        return self.ask(Request("DELETE", path, wait_s=CANCEL_WAIT_S))

    def retry(self, to: str | None = None) -> R:
        """Try again at once, for one recipient or for all."""
        return self.ask(Request("POST", _with_query("/outbox/retry", {"to": to})))


def events_request(kinds: str, *, after: int, sender: str | None, names: str | None) -> Request:
    """What happens, as it happens: `kinds` of message, outbox, presence, with commas between. Messages from the cursor
    `after` on, those that are there first; presence of `names`."""
    query = {"events": kinds, "after": after, "from": sender, "names": names}
    return Request("GET", _with_query("/inbox/stream", query), streams=True)


SEND_LINES = Request("POST", "/send", streams=True)
"""A stream of messages, whose answer is a stream of results."""


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _with_query(path: str, query: dict[str, Any]) -> str:
    given = urlencode({field: value for field, value in query.items() if value is not None})
    return f"{path}?{given}" if given else path
