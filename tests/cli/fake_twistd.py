"""In place of twistd: nodes of the demo without a mesh. `python fake_twistd.py -n --pidfile= meshuser --name ...`.

A fake user finds the other by its address file, keeps its inbox in a file of its state, and retries what waits.
FAKE_FAULT makes one thing go wrong.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

FAULT = os.environ.get("FAKE_FAULT", "")
RETRY_S = 0.01


def deliver(mesh: Path, to: str, document: dict[str, Any]) -> int:
    """Post a message to the other user; 404 for an unknown one, 0 for one who is away."""
    address = mesh / to / "address"
    if not (mesh / to).exists():
        return 404
    try:
        connection = HTTPConnection(urlsplit(address.read_text().strip()).netloc, timeout=5)
        connection.request("POST", "/deliver", json.dumps(document))
        status = connection.getresponse().status
        connection.close()
    except OSError:
        return 0
    return status


def keep_trying(mesh: Path, to: str, document: dict[str, Any]) -> None:
    """The outbox."""
    while deliver(mesh, to, document) != 200:
        time.sleep(RETRY_S)


class User(BaseHTTPRequestHandler):
    """The HTTP of a user node, as far as the demo asks."""

    state: Path
    name: str

    def do_GET(self) -> None:
        """Status, seeds, inbox."""
        route, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if route == "/status":
            self._answer(200, {"registered": True, "home": {"name": "seed"}})
        elif route == "/seeds":
            self._answer(200, {"seeds": [{"alive": True}, {"alive": True}]})
        else:
            after = int(query.get("after", ["0"])[0])
            messages = [json.loads(line) for line in self._inbox_file().read_text().splitlines()]
            self._answer(200, {"messages": messages[after:], "next": len(messages)})

    def do_POST(self) -> None:
        """Send and deliver."""
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/deliver":
            with self._inbox_file().open("a") as file:
                file.write(json.dumps(document) + "\n")
            self._answer(200, {})
            return
        to, message = document["to"], {"from": {"name": self.name}, "message": document["message"]}
        status = 0 if FAULT == "never delivers" else deliver(self.state.parent, to, message)
        if status == 404:
            self._answer(404, {"title": "User Not Found", "status": 404, "detail": to}, "application/problem+json")
        elif status == 200:
            self._answer(200, {"id": "1", "to": to, "status": "delivered"})
        else:
            threading.Thread(target=keep_trying, args=(self.state.parent, to, message), daemon=True).start()
            self._answer(202, {"id": "1", "to": to, "status": "queued"})

    def _inbox_file(self) -> Path:
        file = self.state / "inbox"
        file.touch()
        return file

    def _answer(self, status: int, document: dict[str, Any], media_type: str = "application/json") -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def main() -> None:
    """Listen, say where, and serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    for option in ("-n", "--pidfile="):
        parser.add_argument(option, action="store_true", dest="_" + option)
    parser.add_argument("service")
    for option in ("--name", "--port", "--state", "--peer", "--seed"):
        parser.add_argument(option)
    given = parser.parse_args([argument for argument in sys.argv[1:] if argument != "--pidfile="])
    if FAULT == "dies":
        sys.exit("the fake cannot listen\x1b")
    if FAULT == "ignores SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    state = Path(given.state)
    User.state, User.name = state, given.name
    server = ThreadingHTTPServer(("127.0.0.1", int(given.port)), User)
    scheme = "http://" if given.service == "meshuser" else ""
    draft = state / "address.draft"
    draft.write_text(f"{scheme}127.0.0.1:{server.server_address[1]}\n")
    draft.rename(state / "address")
    server.serve_forever()


if __name__ == "__main__":
    main()
