"""Real nodes that say they are on this machine, and a sender who says it is not: where its messages go."""

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from meshproto.cli.processes import Children, until
from meshproto.client.node import Node

TIMEOUT_S = 20.0
ELSEWHERE = "http://192.0.2.7:3000"
"""An address that nobody has (RFC 5737)."""


class Street:
    """Two seeds; Far, who is at seedX, and says to be elsewhere; Near, at seedX, and Stranger, at seedY, both of whom
    say to be on this machine, where all of them are."""

    def __init__(self, children: Children) -> None:
        self.children = children
        self.seed_x = children.start("meshseed", "seedX")
        self.seed_y = children.start("meshseed", "seedY", "--peer", self.seed_x)
        self.far = self.node("Far", self.seed_x, "--advertise", ELSEWHERE)
        self.near = self.node("Near", self.seed_x)
        self.stranger = self.node("Stranger", self.seed_y)
        for name in ("Near", "Stranger"):
            until(lambda name=name: self.found(name) or None, f"Far finds {name}")  # type: ignore[misc]

    def node(self, name: str, seed: str, *options: str) -> Node:
        node = Node(self.children.start("meshuser", name, "--seed", seed, *options), timeout_s=TIMEOUT_S)
        until(lambda: node.status().document["registered"] or None, f"{name} is registered")
        return node

    def found(self, name: str) -> bool:
        return name in self.told("lookup", {"name": name})

    def told(self, method: str, params: Any) -> str:
        host, port = self.seed_x.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
            line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
            connection.sendall(line.encode() + b"\n")
            return connection.makefile().readline()


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Street]:
    with Children(tmp_path) as children:
        yield Street(children)
        for child in children.all.values():
            assert "Traceback" not in child.log.read_text(), child.name


def test_a_neighbour_and_a_stranger_at_the_same_address(street: Street) -> None:
    """Near's record leads to this machine, and its home seed, which is on this machine, has seen it come from here: it
    is believed. Stranger's says the same, and nobody Far trusts has seen that: nothing is sent there, and the reason is
    shown."""
    assert street.far.send("Near", "hello").document["status"] == "delivered"
    waits = street.far.send("Stranger", "hello", wait_s=2).document
    assert waits["status"] == "queued"
    (recipient,) = street.far.outbox().document["recipients"]
    assert recipient["reason"] == (
        f"{street.stranger.url}: it leads to 127.0.0.1, a loopback address: every machine's own; nothing was sent there"
    )
    assert street.stranger.inbox().document["messages"] == []
    assert street.stranger.send("Near", "hello").document["status"] == "delivered"


def test_an_address_that_is_nobodys_is_not_registered(street: Street) -> None:
    """The seed says no, the node says why, to its owner and in its log, and goes on trying."""
    thief = Node(
        street.children.start("meshuser", "Thief", "--seed", street.seed_x, "--advertise", "http://169.254.169.254"),
        timeout_s=TIMEOUT_S,
    )
    problem = until(lambda: thief.status().document["problem"], "the seed refuses")
    assert "http://169.254.169.254 is an address to which messages are never sent" in problem
    assert '"code":404' in street.told("lookup", {"name": "Thief"})


def test_words_of_a_peer_in_the_log_and_the_queue(street: Street) -> None:
    """What a hostile node says of an error is spelled out wherever it is kept."""

    class Hostile(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps({"title": "\x1b]0;owned\x07", "detail": "\r\nforged line \u202e"}).encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Hostile) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        street.node("Mallory", street.seed_x, "--advertise", f"http://127.0.0.1:{server.server_address[1]}")
        assert street.far.send("Mallory", "hello", wait_s=2).document["status"] == "queued"
        (recipient,) = street.far.outbox().document["recipients"]
        assert recipient["reason"] == r"403 \x1b]0;owned\x07: \r\nforged line \u202e"
        server.shutdown()
    log = street.children.all["Far"].log.read_text()
    assert r"Mallory: 403 \x1b]0;owned\x07: \r\nforged line" in log and "\x1b" not in log
