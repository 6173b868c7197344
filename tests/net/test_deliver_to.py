"""A program that messages are posted to: what it gets, and what its answers mean."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone

from meshproto.core.identity import verify
from meshproto.core.outbox import BACKOFF_FIRST_S
from meshproto.errors import BadParams
from meshproto.net.courier import REASON_CHARS_MAX
from meshproto.net.deliver_to import ANSWER_BYTES_MAX, ANSWER_TIMEOUT_S, DeliverTo, check_url
from meshproto.net.programs import DRAIN_S
from tests.net.owner import NOW_MS, Owner, working

URL = "http://127.0.0.1:8000/messages"


@pytest.fixture
def owner() -> Iterator[Owner]:
    yield from working()


class Body:
    """The connection under an answer."""

    def __init__(self) -> None:
        self.lost = False

    def loseConnection(self) -> None:
        self.lost = True


class Response:
    def __init__(self, code: int) -> None:
        self.code = code
        self.transport = Body()
        self.protocol: Any = None

    def deliverBody(self, protocol: Any) -> None:
        self.protocol = protocol
        protocol.makeConnection(self.transport)

    def end(self, body: bytes = b"") -> None:
        self.protocol.dataReceived(body)
        self.protocol.connectionLost(Failure(ResponseDone()))


class Client:
    """Stands for treq: keeps what was posted until the test answers it."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, dict[str, Any], Deferred[Any]]] = []
        self.cancelled = 0

    def post(self, url: str, **more: Any) -> "Deferred[Any]":
        posted: Deferred[Any] = Deferred(lambda _: self._cancel())
        self.posts.append((url, more, posted))
        return posted

    def _cancel(self) -> None:
        self.cancelled += 1

    def respond(self, code: int) -> Response:
        response = Response(code)
        self.posts[-1][2].callback(response)
        return response


@pytest.fixture
def client(owner: Owner) -> Client:
    client = Client()
    owner.start(DeliverTo(URL, client, owner.clock))
    return client


def test_what_is_posted(owner: Owner, client: Client) -> None:
    """The object that GET /inbox shows, with the cursor as Idempotency-Key, and no redirect is followed."""
    owner.arrive({"full": 0.97}, type_="alert", id_="disk-1")
    ((url, more, _),) = client.posts
    assert url == URL
    assert json.loads(more["data"]) == {
        "cursor": 1,
        "id": "disk-1",
        "from": {"name": "Bobby", "key": verify(owner.sender.sign("Bobby", [URL], 1)).key},
        "type": "alert",
        "message": {"full": 0.97},
        "sent_at": NOW_MS - 5,
        "received_at": NOW_MS,
    }
    assert more["headers"] == {"Content-Type": "application/json", "Idempotency-Key": "1"}
    assert more["allow_redirects"] is False


@pytest.mark.parametrize("code", [200, 201, 202, 204, 299, 410])
def test_codes_that_move_on(owner: Owner, client: Client, code: int) -> None:
    """2xx and 410: the next message is posted."""
    owner.arrive("a", "b")
    client.respond(code).end()
    owner.settle()
    assert len(client.posts) == 2
    assert owner.cursor_on_disk("deliver-to") == 1


@pytest.mark.parametrize("code", [199, 300, 302, 400, 404, 409, 429, 500, 503])
def test_codes_that_do_not(owner: Owner, client: Client, code: int) -> None:
    """Whatever else is answered: the same message again, and the reason says what it was."""
    owner.arrive("a", "b")
    client.respond(code).end("kaputt\u00fc\n".encode())
    owner.settle()
    assert owner.shown[0]["reason"] == f"answered {code}: kaputt\u00fc"
    owner.run(BACKOFF_FIRST_S)
    assert [json.loads(more["data"])["message"] for _, more, _ in client.posts] == ["a", "a"]


def test_nobody_listens(owner: Owner, client: Client) -> None:
    """A refused connection is tried again, with the system's words as the reason."""
    owner.arrive("a")
    client.posts[-1][2].errback(Failure(ConnectionRefusedError()))
    owner.settle()
    assert "refused" in owner.shown[0]["reason"]
    owner.run(BACKOFF_FIRST_S)
    assert len(client.posts) == 2


def test_no_answer_in_time(owner: Owner, client: Client) -> None:
    """After ANSWER_TIMEOUT_S the request is given up, and made again later."""
    owner.arrive("a")
    owner.run(ANSWER_TIMEOUT_S - 0.1)
    assert client.cancelled == 0
    owner.run(0.1)
    assert client.cancelled == 1
    assert owner.shown[0]["reason"] == f"no answer within {ANSWER_TIMEOUT_S:g} s"
    owner.run(BACKOFF_FIRST_S)
    assert len(client.posts) == 2


def test_an_answer_that_never_ends(owner: Owner, client: Client) -> None:
    """The head says that the message was taken; the rest is waited for as long as for any answer."""
    owner.arrive("a", "b")
    response = client.respond(200)
    owner.run(ANSWER_TIMEOUT_S - 0.1)
    assert len(client.posts) == 1
    owner.run(0.1)
    assert response.transport.lost
    assert len(client.posts) == 2
    response.protocol.connectionLost(Failure(ResponseDone()))


def test_an_answer_that_is_too_long(owner: Owner, client: Client) -> None:
    """An answer is read up to ANSWER_BYTES_MAX, and its beginning is the reason."""
    owner.arrive("a")
    response = client.respond(500)
    response.protocol.dataReceived(b"x" * ANSWER_BYTES_MAX)
    assert not response.transport.lost
    response.protocol.dataReceived(b"x")
    owner.settle()
    assert response.transport.lost
    assert owner.shown[0]["reason"] == "answered 500: " + "x" * REASON_CHARS_MAX


def test_stopped_while_it_is_posted(owner: Owner, client: Client) -> None:
    """The request is given up when the node has waited long enough."""
    owner.arrive("a")
    stopped = owner.stop()
    owner.run(DRAIN_S)
    assert (stopped.called, client.cancelled) == (True, 1)
    assert owner.cursor_on_disk("deliver-to") == 0


@pytest.mark.parametrize("url", ["http://localhost:8000", "https://[::1]/a/b?token=%20x&y", "http://192.0.2.7/"])
def test_urls(url: str) -> None:
    """A URL with a query is one, and is taken as it is."""
    assert check_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://localhost/",
        "http:///",
        "http://u:p@localhost/",
        "http://a/#b",
        "http://a/?b#c",
        "http://a/?b c",
        "http://a/?\u00fc",
        "http://a:99999/",
        "http://a/\n",
    ],
)
def test_no_urls(url: str) -> None:
    """What cannot be posted to is refused with a sentence."""
    with pytest.raises(BadParams, match="bad uri"):
        check_url(url)
