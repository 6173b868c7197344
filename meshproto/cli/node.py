"""A small blocking client of a user node's HTTP.

Only the standard library, so that `mesh` starts at once. One connection a request: the node is almost always on this
machine, and a connection that is never reused can never be stale after the node restarts.
"""

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import Any, cast
from urllib.parse import quote, urlencode, urlsplit

from meshproto.cli.duplex import Duplex, Outgoing

Document = dict[str, Any]

ANSWER_TIMEOUT_S = 10.0  # beyond what the node was asked to wait: a busy disk, not a dead node
SEND_WAIT_S = 5.0  # how long the node waits for the recipient when it is not told
CANCEL_WAIT_S = 5.0  # how long the node waits for a message that is under way
DOCTOR_WAIT_S = 8.0  # how long the node looks at seeds
EVENTS_SILENCE_S = 40.0  # a node that streams events says every 15 s that it is there: two of these may be lost
SILENCE_S = 90.0  # in a stream: half as long again as a line may ask the node to wait, the longest of its silences
ANSWER_BYTES_MAX = 64 * 1024 * 1024  # a page of the inbox at its largest; more is no answer of a node
RESULT_BYTES_MAX = 1024 * 1024  # one result of a stream: an id, a name and a reason
READ_BYTES = 64 * 1024
PROBLEM_TYPE = "application/problem+json"
STREAM_TYPE = "application/x-ndjson"
INTEGER_DIGITS_MAX = 4300  # Python refuses to turn more digits than this into an integer


@dataclass(frozen=True)
class Answer:
    """What a node answered: its own text for programs, the same as a document for people."""

    status: int
    text: str
    document: Document


class Problem(Exception):
    """The node answered, and the answer is an error (RFC 9457)."""

    def __init__(
        self, status: int, title: str, detail: str, *, text: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(f"{status} {title}: {detail}")
        self.status = status
        self.title = title
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.text = text or json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail})


class Unreachable(Exception):
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


class _UnixConnection(HTTPConnection):
    """HTTP over a unix socket. In it the node goes by the name `localhost`, as with `curl --unix-socket`."""

    def __init__(self, path: str, _host: str, _port: int | None, *, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Node:
    """A user node, by the URL of its HTTP: `http://127.0.0.1:3000`, or shorter `localhost:3000`; or by the path of its
    socket: `unix:/run/user/1000/mesh.sock`. `tls`: who is trusted with https, if not whom the
    system trusts.

    Every method asks once and returns the node's `Answer`, or raises `Problem` or `Unreachable`.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        scheme, _, path = url.partition(":")
        socket_path = path if scheme == "unix" else None
        http_url = url if "://" in url else f"http://{url}"
        parts = urlsplit(http_url if socket_path is None else "http://localhost" if path else "")
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise ValueError(f"{url!r} is not the address of a node, such as http://127.0.0.1:3000")
        self.url = url if socket_path else f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._connect: Callable[..., HTTPConnection] = (
            partial(HTTPSConnection, context=tls) if parts.scheme == "https" else HTTPConnection
        )
        if socket_path:
            self._connect = partial(_UnixConnection, socket_path)
        self._host, self._port, self._prefix = parts.hostname, parts.port, parts.path.rstrip("/")
        self._headers = {"Accept": f"application/json, {PROBLEM_TYPE}", "Connection": "close"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._timeout_s = timeout_s

    def send(
        self,
        to: str,
        message: object,
        *,
        message_id: str | None = None,
        ttl_s: float | None = None,
        wait_s: float | None = None,
    ) -> Answer:
        """Send any JSON value to a name. The same `message_id` sent again is the same message."""
        request = {"to": to, "message": message, "id": message_id, "ttl": ttl_s, "wait": wait_s}
        given = {field: value for field, value in request.items() if field == "message" or value is not None}
        wait_s = SEND_WAIT_S if wait_s is None else wait_s
        return self._ask("POST", "/send", given, wait_s=wait_s, sends=True)

    def send_lines(self, feed: Outgoing) -> Iterator[Document]:
        """Send a stream of lines, a message each, while the results of the first of them come: in order, one a line.

        Ends when the node ends its answer, if every line was answered or not.
        """
        patience_s = self._timeout_s
        connection = self._connect(self._host, self._port, timeout=patience_s)
        try:
            connection.putrequest("POST", f"{self._prefix}/send")
            for name, value in self._headers.items():
                connection.putheader(name, value if name != "Accept" else f"{STREAM_TYPE}, {PROBLEM_TYPE}")
            connection.putheader("Content-Type", STREAM_TYPE)
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders()
            patience_s = SILENCE_S
            # A response asks its connection for a file to read from, and for nothing else.
            response = HTTPResponse(cast(socket.socket, Duplex(connection.sock, feed, patience_s)), method="POST")
            response.begin()
            if response.status != 200 or response.headers.get_content_type() != STREAM_TYPE:
                self._judge(response, self._read(response))
                raise Problem(415, "Unsupported Media Type", "the node takes no stream of messages")
            yield from self._results(response)
        except (OSError, HTTPException, UnicodeError) as error:
            raise Unreachable(self.url, self._reason(error, patience_s)) from error
        finally:
            connection.close()

    def inbox(
        self,
        *,
        after: int | None = None,
        sender: str | None = None,
        limit: int | None = None,
        wait_s: float | None = None,
    ) -> Answer:
        """A page of the inbox, oldest first; with `wait_s` an empty page is held back so long for a message."""
        query = {"after": after, "from": sender, "limit": limit, "wait": wait_s}
        return self._ask("GET", _with_query("/inbox", query), wait_s=wait_s or 0)

    def events(self, kinds: str, *, after: int, sender: str | None = None, names: str | None = None) -> "EventStream":
        """What happens, as it happens: `kinds` of message, outbox, presence, with commas between. Messages from the
        cursor `after` on, those that are there first; presence of `names`."""
        query = {"events": kinds, "after": after, "from": sender, "names": names}
        connection = self._connect(self._host, self._port, timeout=self._timeout_s)
        try:
            headers = self._headers | {"Accept": f"{STREAM_TYPE}, {PROBLEM_TYPE}"}
            connection.request("GET", self._prefix + _with_query("/inbox/stream", query), headers=headers)
            # A connection lets go of its socket when the answer says that it is the last.
            channel = connection.sock
            response = connection.getresponse()
            if response.status != 200 or response.headers.get_content_type() != STREAM_TYPE:
                self._judge(response, self._read(response))
                raise Problem(415, "Unsupported Media Type", "the node streams no events")
            channel.settimeout(EVENTS_SILENCE_S)
            return EventStream(self, connection, response, channel)
        except (OSError, HTTPException, UnicodeError) as error:
            connection.close()
            raise Unreachable(self.url, self._reason(error, self._timeout_s)) from error
        except BaseException:
            connection.close()
            raise

    def history(self, name: str, limit: int) -> Answer:
        """The latest messages exchanged with a name, oldest first."""
        return self._ask("GET", _with_query(f"/history/{quote(name, safe='')}", {"limit": limit}))

    def read(self, name: str, pos: int) -> Answer:
        """All that was exchanged with a name has been read, up to this place in the history."""
        return self._ask("PUT", f"/history/{quote(name, safe='')}", {"read": pos})

    def sent(self, message_id: str, to: str) -> Answer:
        """How far a message has come."""
        return self._ask("GET", _with_query(f"/outbox/{quote(message_id, safe='')}", {"to": to}))

    def doctor(self) -> Answer:
        """What the node finds at its seeds and its own addresses."""
        return self._ask("GET", "/doctor", wait_s=DOCTOR_WAIT_S)

    def lookup(self, name: str) -> Answer:
        """Where a name is, as the seeds tell it now."""
        return self._ask("GET", f"/lookup/{quote(name, safe='')}")

    def seeds(self) -> Answer:
        """The seeds this node knows."""
        return self._ask("GET", "/seeds")

    def status(self) -> Answer:
        """The node's own summary."""
        return self._ask("GET", "/status")

    def contacts(self) -> Answer:
        """Whose keys this node knows."""
        return self._ask("GET", "/contacts")

    def contact(self, name: str) -> Answer:
        """One of them."""
        return self._ask("GET", f"/contacts/{quote(name, safe='')}")

    def trust(self, name: str, fingerprint: str) -> Answer:
        """This is the name's key: its owner has said so."""
        return self._ask("PUT", f"/contacts/{quote(name, safe='')}", {"fingerprint": fingerprint})

    def forget(self, name: str) -> Answer:
        """Whatever is known of the name's key."""
        return self._ask("DELETE", f"/contacts/{quote(name, safe='')}")

    def outbox(
        self,
        *,
        status: str | None = None,
        to: str | None = None,
        limit: int | None = None,
        after: object = None,
    ) -> Answer:
        """A page of what was sent, and who is waited for: what waits oldest first, anything else newest first.

        `status`: `waiting`, or an end that messages came to. `after`: the `next` of the page before.
        """
        query = {"status": status, "to": to, "limit": limit, "after": after}
        return self._ask("GET", _with_query("/outbox", query))

    def cancel(self, message_id: str, to: str | None = None) -> Answer:
        """Give a message up. The answer is late if the message is under way."""
        path = _with_query(f"/outbox/{quote(message_id, safe='')}", {"to": to})
        return self._ask("DELETE", path, wait_s=CANCEL_WAIT_S)

    def retry(self, to: str | None = None) -> Answer:
        """Try again at once, for one recipient or for all."""
        return self._ask("POST", _with_query("/outbox/retry", {"to": to}))

    def _ask(
        self, method: str, path: str, body: Document | None = None, *, wait_s: float = 0, sends: bool = False
    ) -> Answer:
        connection = self._connect(self._host, self._port, timeout=self._timeout_s + wait_s)
        headers, content = self._headers, None
        if body is not None:
            headers = headers | {"Content-Type": "application/json"}
            content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        handed_over = False
        try:
            # A node that refuses a large body says so before it has read all of it: read what it said.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, self._prefix + path, content, headers)
            handed_over = sends
            response = connection.getresponse()
            handed_over = handed_over and not 300 <= response.status < 500  # these refuse, whoever it is that answers
            return self._judge(response, self._read(response))
        except Unreachable as error:
            error.uncertain = handed_over
            raise
        except (OSError, HTTPException, UnicodeError) as error:
            unreachable = Unreachable(self.url, self._reason(error, self._timeout_s + wait_s))
            unreachable.uncertain = handed_over
            raise unreachable from error
        finally:
            connection.close()

    @staticmethod
    def _reason(error: Exception, timeout_s: float) -> str:
        if isinstance(error, TimeoutError):
            return f"no answer within {timeout_s:g} s"
        if isinstance(error, IncompleteRead):
            return "its answer ended half-way"
        if isinstance(error, OSError):
            return (error.strerror or str(error)).lower()
        return f"{type(error).__name__} {error}".strip()

    def _read(self, response: HTTPResponse) -> bytes:
        content = response.read(ANSWER_BYTES_MAX + 1)
        if len(content) > ANSWER_BYTES_MAX:
            raise Unreachable(self.url, f"its answer is longer than {ANSWER_BYTES_MAX} bytes")
        if response.length:  # http.client does not tell of a body that ended early when it is read with a bound
            raise Unreachable(self.url, "its answer ended half-way")
        return content

    def lines(self, response: HTTPResponse, patience_s: float) -> Iterator[Document]:
        """The documents of an answer that is a stream of lines. Raises `Unreachable`."""
        try:
            yield from self._results(response)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: it was closed by another thread
            raise Unreachable(self.url, self._reason(error, patience_s)) from error

    def _results(self, response: HTTPResponse) -> Iterator[Document]:
        unread = b""
        while piece := response.read1(READ_BYTES):
            *lines, unread = (unread + piece).split(b"\n")
            for line in lines:
                yield self._document(line)[1]
            if len(unread) > RESULT_BYTES_MAX:
                raise Unreachable(self.url, f"a result is longer than {RESULT_BYTES_MAX} bytes")

    def _judge(self, response: HTTPResponse, content: bytes) -> Answer:
        media_type = response.headers.get_content_type()
        problem = media_type == PROBLEM_TYPE and response.status >= 400
        if not problem and not (media_type == "application/json" and 200 <= response.status < 300):
            raise Unreachable(self.url, f"what answers is not a user node: HTTP {response.status}, {media_type}")
        text, document = self._document(content)
        if not problem:
            return Answer(response.status, text, document)
        retry_after = response.headers.get("Retry-After", "")
        raise Problem(
            response.status,
            str(document.get("title") or response.reason),
            str(document.get("detail") or ""),
            text=text,
            retry_after_s=int(retry_after) if retry_after.isdecimal() and len(retry_after) < 10 else None,
        )

    def _document(self, content: bytes) -> tuple[str, Document]:
        try:
            text = content.decode()
            document = json.loads(text, parse_int=_integer)
        except (ValueError, RecursionError) as error:
            raise Unreachable(self.url, f"its answer is not readable JSON: {error}") from error
        if not isinstance(document, dict):
            raise Unreachable(self.url, "its answer is not a JSON object")
        return text, document


class EventStream:
    """Events as a node tells them, each a document with an `event`; ends or raises `Unreachable` when the connection
    does, or when `close` was called by whichever thread."""

    def __init__(self, node: Node, connection: HTTPConnection, response: HTTPResponse, channel: socket.socket) -> None:
        self._node, self._connection, self._response, self._channel = node, connection, response, channel

    def __iter__(self) -> Iterator[Document]:
        try:
            yield from self._node.lines(self._response, EVENTS_SILENCE_S)
        finally:
            self._response.close()
            self._connection.close()

    def close(self) -> None:
        with suppress(OSError):  # it is closed already
            self._channel.shutdown(socket.SHUT_RDWR)


def _with_query(path: str, query: dict[str, Any]) -> str:
    given = urlencode({field: value for field, value in query.items() if value is not None})
    return f"{path}?{given}" if given else path


def _integer(digits: str) -> int | str:
    """One absurdly long number in somebody's message must not make the whole inbox unreadable: it stays text."""
    return int(digits) if len(digits) < INTEGER_DIGITS_MAX else digits
