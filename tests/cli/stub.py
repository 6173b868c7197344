"""A node that answers what the test told it, over real HTTP on a free port of loopback."""

import json
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

JSON = "application/json"
PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Request:
    """What the node was asked."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What the node answers."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Stream:
    """A request whose body is a stream of lines; results may be written while it is read."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler
        self._buffer = b""
        handler.send_response(200)
        handler.send_header("Content-Type", "application/x-ndjson")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()

    def lines(self) -> Iterator[bytes]:
        """Each line as soon as it is there; ends with the body, or with the connection."""
        while size := int(self._handler.rfile.readline() or b"0", 16):
            self._buffer += self._handler.rfile.read(size)
            self._handler.rfile.readline()
            *lines, self._buffer = self._buffer.split(b"\n")
            yield from lines

    def hang(self) -> None:
        """Wait until the client hangs up."""
        while self._handler.rfile.read(65536):
            pass

    def result(self, *documents: Any) -> None:
        """Results, a line each, in one chunk."""
        text = b"".join(json.dumps(document).encode() + b"\n" for document in documents)
        self._handler.wfile.write(b"%x\r\n%b\r\n" % (len(text), text))

    def end(self) -> None:
        """There are no more results."""
        self._handler.wfile.write(b"0\r\n\r\n")


class Mailbox:
    """A node's rule: an id is taken once. The message says what becomes of it: `{"fail": CODE}` fails so."""

    def __init__(self) -> None:
        self.taken: dict[tuple[str, str], Any] = {}
        self.seen: list[bytes] = []
        self.open = False  # takes what failed before

    def take(self, line: bytes) -> dict[str, Any]:
        """The result of a line."""
        self.seen.append(line)
        try:
            given = json.loads(line)
            to, message, message_id = given["to"], given["message"], given.get("id") or f"own-{len(self.seen)}"
        except (ValueError, KeyError, TypeError):
            return {"line": len(self.seen), "status": "failed", "code": 400, "title": "bad params", "reason": "no\x1b"}
        known = {"id": message_id, "to": to}
        code = message.get("fail") if isinstance(message, dict) and not self.open else None
        if code is not None:
            title = {404: "User Not Found", 429: "slow down"}.get(code, "unavailable")
            return {
                **known,
                "line": 1,
                "status": "failed",
                "code": code,
                "title": title,
                "reason": "",
                "retry_after": 9,
            }
        if self.taken.setdefault((to, message_id), message) != message:
            return {**known, "line": 1, "status": "failed", "code": 409, "title": "id reused", "reason": ""}
        return {**known, "status": "queued" if message == "away" else "delivered"}

    def serve(self, stream: Stream) -> None:
        """Take a whole stream."""
        for line in stream.lines():
            stream.result(self.take(line))
        stream.end()

    def cut_after(self, results: int, ahead: int = 0) -> Callable[[Stream], None]:
        """Take a stream until it breaks: after so many results, with `ahead` more lines taken."""

        def serve(stream: Stream) -> None:
            lines = stream.lines()
            for _ in range(results):
                stream.result(self.take(next(lines)))
            for _ in range(ahead):
                self.take(next(lines))

        return serve


Route = Callable[[Request], "Reply | Callable[[Stream], None]"]


def json_reply(document: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(document).encode(), {"Content-Type": JSON})


def problem_reply(status: int, title: str, detail: str = "") -> Reply:
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return Reply(status, json.dumps(document).encode(), {"Content-Type": PROBLEM})


class Stub:
    """Answers the replies in the order they were given; as a context manager it listens.

    `tls`: a file with a certificate and its key. `default`: what is answered when no reply is left.
    """

    def __init__(self, port: int = 0, tls: Path | None = None) -> None:
        self.requests: list[Request] = []
        self.default: Reply | Callable[[Stream], None] = Reply(500, b"the test said nothing more")
        self.status: Any = None  # what `GET /status` is answered, besides the replies
        self.routes: dict[str, Route] = {}  # `METHOD PATH` -> what is answered there, whatever was asked before
        self._replies: deque[Reply | Callable[[Stream], None]] = deque()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True)
        self.port: int = self._server.server_address[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"

    def answers(self, document: Any, status: int = 200) -> None:
        """The next answer, as JSON."""
        self.replies(Reply(status, json.dumps(document).encode(), {"Content-Type": JSON}))

    def refuses(self, status: int, title: str, detail: str, **headers: str) -> str:
        """The next answer, as a problem; returns its text."""
        text = json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail})
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.replies(Reply(status, text.encode(), {"Content-Type": PROBLEM, **named}))
        return text

    def replies(self, reply: Reply) -> None:
        """The next answer, byte for byte."""
        self._replies.append(reply)

    def streams(self, serve: Callable[[Stream], None]) -> None:
        """The next answer, to a stream of lines; the connection ends when `serve` does."""
        self._replies.append(serve)

    def close(self) -> None:
        """Stop listening; asking again is refused."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.close()

    def _next(self, request: Request) -> Reply | Callable[[Stream], None]:
        if request.path == "/status" and self.status is not None:
            return json_reply(self.status)
        route = self.routes.get(f"{request.method} {request.path}")
        if route is not None:
            return route(request)
        return self._replies.popleft() if self._replies else self.default

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                parts = urlsplit(self.path)
                streamed = self.headers.get("Transfer-Encoding") == "chunked"
                body = b"" if streamed else self.rfile.read(int(self.headers.get("Content-Length", 0)))
                query = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
                request = Request(self.command, parts.path, query, dict(self.headers), body)
                stub.requests.append(request)
                reply = stub._next(request)
                self.close_connection = True
                # The client may be gone: that is its right, and a test's business if it is not.
                with suppress(ConnectionError, StopIteration):
                    if isinstance(reply, Reply):
                        self._reply(reply)
                    else:
                        reply(Stream(self))

            def _reply(self, reply: Reply) -> None:
                self.send_response(reply.status)
                for name, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)

            do_GET = do_POST = do_PUT = do_DELETE = _serve

            def log_message(self, format: str, *args: object) -> None:
                """Tests are quiet."""

        return Handler


def message(cursor: int, text: Any, sender: str = "Bobby") -> dict[str, Any]:
    """A message as the inbox tells it."""
    return {
        "cursor": cursor,
        "id": f"m{cursor}",
        "from": {"name": sender, "key": "k"},
        "type": None,
        "message": text,
        "sent_at": 1_795_343_300_000,
        "received_at": 1_795_343_300_123,
    }
