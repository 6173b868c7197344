"""The client of a node's HTTP: what it asks, and what it makes of every answer."""

import json

import pytest

from meshproto.client import asking
from meshproto.client.errors import Problem, Unreachable
from meshproto.client.node import Node
from tests.cli.stub import JSON, Reply, Stub


def test_only_what_is_given_is_asked(stub: Stub) -> None:
    """Options that are left out are left to the node; a message of null is a message."""
    stub.answers({})
    stub.answers({})
    Node(stub.url).send("UserX", None)
    Node(stub.url).send("UserX", "ü", message_id="1", ttl_s=60, wait_s=0)
    bodies = [json.loads(request.body) for request in stub.requests]
    assert bodies == [
        {"to": "UserX", "message": None},
        {"to": "UserX", "message": "ü", "id": "1", "ttl": 60, "wait": 0},
    ]


def test_names_and_queries_are_quoted(stub: Stub) -> None:
    """No name can change the route or the query."""
    stub.answers({})
    stub.answers({})
    Node(stub.url).lookup("a/../b?c")
    Node(stub.url).inbox(sender="a&limit=1", after=0)
    assert stub.requests[0].path == "/lookup/a%2F..%2Fb%3Fc"
    assert stub.requests[1].query == {"after": "0", "from": "a&limit=1"}


def test_the_token_is_sent_as_bearer(stub: Stub) -> None:
    """The token goes into the header and nowhere else."""
    stub.answers({})
    Node(stub.url, "secret").seeds()
    assert stub.requests[0].headers["Authorization"] == "Bearer secret"


def test_a_path_in_front_of_the_node_is_kept(stub: Stub) -> None:
    """A node behind a proxy may live under a path; the scheme may be left out."""
    stub.answers({})
    Node(f"127.0.0.1:{stub.port}/mesh/").seeds()
    assert stub.requests[0].path == "/mesh/seeds"


@pytest.mark.parametrize(
    "url", ["", "ftp://host", "http://", "http://user:secret@host", "http://host:port", "host?x", "unix:"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    """A wrong address is told at once, not when connecting."""
    with pytest.raises(ValueError, match=r"."):
        Node(url)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("localhost", "http://localhost:3000"),
        ("localhost/mesh/", "http://localhost:3000/mesh"),
        ("localhost:", "http://localhost:3000"),
        ("[::1]", "http://[::1]:3000"),
        ("localhost:3001", "http://localhost:3001"),
        ("http://localhost", "http://localhost"),
        ("https://userx.example/", "https://userx.example"),
        ("https://userx.example:3000", "https://userx.example:3000"),
    ],
)
def test_a_host_alone_is_at_the_usual_port(given: str, url: str) -> None:
    """As somebody means it who leaves the port out; a URL is what it is everywhere else."""
    assert Node(given).url == url


def test_a_problem_is_told_in_full(stub: Stub) -> None:
    """Status, title, detail, Retry-After and the very text."""
    text = stub.refuses(429, "Slow Down", "the outbox is full", Retry_After="7")
    with pytest.raises(Problem) as caught:
        Node(stub.url).outbox()
    problem = caught.value
    assert (problem.status, problem.title, problem.detail) == (429, "Slow Down", "the outbox is full")
    assert (problem.retry_after_s, problem.text) == (7, text)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(404, b"<html>", {"Content-Type": "text/html"}), "not a user node: HTTP 404, text/html"),
        (Reply(302, b"", {"Location": "http://127.0.0.1:1/"}), "not a user node"),
        (Reply(200, b"{", {"Content-Type": JSON}), "not readable JSON"),
        (Reply(200, b"\xff", {"Content-Type": JSON}), "not readable JSON"),
        (Reply(200, b"[" * 100_000, {"Content-Type": JSON}), "not readable JSON"),
        (Reply(200, b"[]", {"Content-Type": JSON}), "not a JSON object"),
        (Reply(200, b"{}", {"Content-Type": JSON, "Content-Length": "9"}), "ended half-way"),
    ],
)
def test_what_is_not_a_node_is_not_taken_for_one(stub: Stub, reply: Reply, reason: str) -> None:
    """Another web server on that port, or an answer cut short, is never mistaken for the node's word."""
    stub.replies(reply)
    with pytest.raises(Unreachable, match=reason):
        Node(stub.url).status()


@pytest.mark.parametrize(("status", "uncertain"), [(404, False), (502, True), (200, True)])
def test_a_refusal_by_something_else_is_certain(stub: Stub, status: int, uncertain: bool) -> None:
    """Another web server's 404 took no message; a proxy's 502 may hide a node that did."""
    stub.replies(Reply(status, b"", {"Content-Type": "text/html"}))
    with pytest.raises(Unreachable) as caught:
        Node(stub.url).send("UserX", "hi")
    assert caught.value.uncertain == uncertain


def test_an_endless_answer_is_not_read(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading stops at the limit."""
    monkeypatch.setattr(asking, "ANSWER_BYTES_MAX", 10)
    stub.answers({"much": "x" * 20})
    with pytest.raises(Unreachable, match="longer than 10 bytes"):
        Node(stub.url).status()


def test_a_silent_node_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that accepts and says nothing ends in a timeout, which grows with what it was asked to wait."""
    stub = Stub()  # never served: the kernel accepts, nobody answers
    try:
        with pytest.raises(Unreachable, match=r"no answer within 0\.06 s"):
            Node(stub.url, timeout_s=0.05).inbox(wait_s=0.01)
    finally:
        stub._server.server_close()


def test_an_absurd_number_spoils_nothing(stub: Stub) -> None:
    """Python refuses integers of so many digits; the inbox that holds one can be read all the same."""
    digits = "1" * 5000
    stub.replies(Reply(200, f'{{"message": {digits}}}'.encode(), {"Content-Type": JSON}))
    assert Node(stub.url).inbox().document == {"message": digits}
