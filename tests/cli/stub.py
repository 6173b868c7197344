"""A node that answers what the test told it, over real HTTP on a free port of loopback."""

import json
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


class Stub:
    """Answers the replies in the order they were given; as a context manager it listens."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Request] = []
        self._replies: deque[Reply] = deque()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

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

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                parts = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                query = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
                stub.requests.append(Request(self.command, parts.path, query, dict(self.headers), body))
                reply = stub._replies.popleft() if stub._replies else Reply(500, b"the test said nothing more")
                self.send_response(reply.status)
                for name, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)

            do_GET = do_POST = _serve

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
