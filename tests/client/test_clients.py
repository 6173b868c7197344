"""Both clients against real nodes: the same calls, the same results, the same errors."""

import inspect
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshproto import client as package
from meshproto.cli.processes import Children, until
from meshproto.client import (
    BadCursor,
    BadRequest,
    BadSetting,
    Draft,
    IdReused,
    KeyChanged,
    Message,
    MessageEnded,
    NotFound,
    OtherNode,
    Problem,
    QueueFull,
    Unauthorized,
    Unreachable,
    UserNotFound,
)
from meshproto.client.on_twisted import Client as OnTwistedClient
from meshproto.client.under_way import LINE_BYTES_MAX
from tests.cli.stub import Reply, Stub
from tests.client.drivers import DRIVERS, Driver, Stopped, in_thread
from tests.net.certificates import self_signed

MANY = 3000


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A seed, Bobby and UserX at it, one over a unix socket, and one who has gone: where each is."""
    directory = tmp_path_factory.mktemp("mesh")
    with Children(directory) as children:
        seed = children.start("meshseed", "seedX")
        places = {name: children.start("meshuser", name, "--seed", seed) for name in ("UserX", "Bobby")}
        places["socket"] = f"unix:{directory / 'api.sock'}"
        children.start("meshuser", "Socket", "--seed", seed, "--api", places["socket"])
        places["Gone"] = children.start("meshuser", "Gone", "--seed", seed)
        for name in ("UserX", "Bobby", "socket", "Gone"):
            client = package.Client(places[name])
            until(lambda client=client: client.status().registered or None, f"{name} is registered")  # type: ignore[misc]
        children.stop("Gone")
        yield places


@pytest.fixture(params=DRIVERS)
def kind(request: pytest.FixtureRequest) -> type[Driver]:
    return DRIVERS[request.param]


@pytest.fixture
def bobby(mesh: dict[str, str], kind: type[Driver]) -> Driver:
    return kind(mesh["Bobby"])


@pytest.fixture
def user_x(mesh: dict[str, str], kind: type[Driver]) -> Driver:
    return kind(mesh["UserX"])


def test_the_same_names() -> None:
    """What one has the other has, with the same parameters; only how a stream is waited for differs."""
    methods = [name for name in vars(package.Client) if not name.startswith("_")]
    assert methods == [name for name in vars(OnTwistedClient) if not name.startswith("_")]
    for name in [*methods, "__init__"]:
        ours = inspect.signature(getattr(package.Client, name)).parameters
        theirs = dict(inspect.signature(getattr(OnTwistedClient, name)).parameters)
        theirs.pop("reactor", None)
        assert list(ours) == list(theirs)
        assert [one.default for one in ours.values()] == [one.default for one in theirs.values()] or name == "follow"


@in_thread
def test_a_message_is_sent_and_read(bobby: Driver, user_x: Driver) -> None:
    """With all that goes with it; the page says who wrote it, with their full address."""
    after = user_x.status().next
    sent = bobby.send("UserX", {"disk": "/", "full": 0.97}, type="alert", ttl_s=60, wait_s=5)
    assert (sent.to, sent.status, sent.is_delivered, sent.error) == ("UserX", "delivered", True, None)
    (message,) = user_x.inbox(after=after, sender="bobby", limit=10, wait_s=1).messages
    assert (message.id, message.name, message.type) == (sent.id, "Bobby", "alert")
    assert message.message == {"disk": "/", "full": 0.97}
    assert message.sender == bobby.status().address
    assert message.received_at_ms >= message.sent_at_ms - 60_000
    kept = bobby.state(sent.id, "UserX")
    assert (kept.id, kept.to, kept.status, kept.reason) == (sent.id, "UserX", "delivered", None)


@in_thread
def test_several_recipients(bobby: Driver) -> None:
    """A result each, in order; one that failed has its error, and the others have none."""
    good, bad = bobby.send(["UserX", "Nobody"], "lunch?")
    assert (good.status, good.error, good.id) == ("delivered", None, bad.id)
    assert bad.status == "failed"
    assert isinstance(bad.error, UserNotFound)
    assert bad.error.retry_after_s is not None


@in_thread
def test_what_is_refused_has_a_kind(bobby: Driver) -> None:
    """One for each thing that a program does differently."""
    with pytest.raises(UserNotFound) as unknown:
        bobby.send("Nobody", "x")
    assert (unknown.value.status, unknown.value.title) == (404, "User Not Found")
    with pytest.raises(UserNotFound):
        bobby.lookup("Nobody")
    with pytest.raises(BadRequest):
        bobby.send("no name", "x")
    with pytest.raises(NotFound):
        bobby.state("no-such", "UserX")
    bobby.send("UserX", "x", id="taken")
    with pytest.raises(IdReused):
        bobby.send("UserX", "y", id="taken")
    with pytest.raises(KeyChanged):
        bobby.send(f"UserX~{'a' * 16}", "x")
    with pytest.raises(ValueError, match="JSON"):
        bobby.send("UserX", float("nan"))


@in_thread
def test_a_message_is_given_up(bobby: Driver) -> None:
    """One that waits is cancelled; sent again, it says so; one that was delivered cannot be taken back."""
    sent = bobby.send("Gone", "x", wait_s=0)
    assert sent.status == "queued"
    assert bobby.cancel(sent.id, "Gone").status == "cancelled"
    with pytest.raises(MessageEnded):
        bobby.send("Gone", "x", id=sent.id)
    delivered = bobby.send("UserX", "x")
    with pytest.raises(MessageEnded):
        bobby.cancel(delivered.id, "UserX")


@in_thread
def test_a_user_is_found(bobby: Driver, mesh: dict[str, str]) -> None:
    found = bobby.lookup("userx")
    assert (found.name, found.online, found.uris) == ("UserX", True, (mesh["UserX"],))
    assert found.address == f"UserX~{found.fingerprint}"


@in_thread
def test_over_a_unix_socket(kind: type[Driver], mesh: dict[str, str]) -> None:
    assert kind(mesh["socket"]).status().name == "Socket"
    assert kind(mesh["socket"]).send("UserX", "over a socket").is_delivered


@in_thread
def test_many_messages_with_results_in_order(bobby: Driver, user_x: Driver) -> None:
    """Also those that fail, in their place; the inbox has each of the others once, in order."""
    after = user_x.status().next
    drafts = [Draft("UserX", number) for number in range(MANY)]
    drafts[7] = Draft("Nobody", 7)
    drafts[9] = Draft("UserX", "x" * LINE_BYTES_MAX)
    results = bobby.send_many(iter(drafts))
    assert [result.to for result in results][6:9] == ["UserX", "Nobody", "UserX"]
    assert isinstance(results[7].error, UserNotFound)
    assert results[9].error is not None
    assert results[9].error.status == 413
    assert [number for number, result in enumerate(results) if result.error] == [7, 9]
    assert len(results) == MANY
    messages = user_x.follow(after=after, limit=MANY - 2)
    assert [message.message for message in messages] == [n for n in range(MANY) if n not in (7, 9)]


@in_thread
def test_no_messages(bobby: Driver) -> None:
    assert bobby.send_many([]) == []


@in_thread
def test_a_source_that_fails(bobby: Driver) -> None:
    """What came before is sent, and then its error is told; so is a message that JSON cannot say."""
    told: list[str] = []

    def drafts() -> Iterator[Draft]:
        yield Draft("UserX", 1)
        raise Stopped

    with pytest.raises(Stopped):
        bobby.send_many(drafts(), lambda sent: told.append(sent.status))
    with pytest.raises(ValueError, match="JSON"):
        bobby.send_many([Draft("UserX", 1), Draft("UserX", float("inf"))], lambda sent: told.append(sent.status))
    assert [status in ("delivered", "queued") for status in told] == [True, True]


@in_thread
def test_no_more_is_taken_than_may_be_under_way(bobby: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: each result lets another message follow."""
    monkeypatch.setattr("meshproto.client.under_way.AHEAD_LINES", 10)
    taken = done = most = 0

    def drafts() -> Iterator[Draft]:
        nonlocal taken, most
        for number in range(300):
            taken += 1
            most = max(most, taken - done)
            yield Draft("UserX", number)

    def told(_: Any) -> None:
        nonlocal done
        done += 1

    assert len(bobby.send_many(drafts(), told)) == 300
    assert most <= 11  # the one that is read when the tenth is answered, and not told yet


@in_thread
def test_an_inbox_is_followed_from_a_stored_cursor(bobby: Driver, user_x: Driver, tmp_path: Path) -> None:
    """A message whose body did not come to its end comes again, and none that is done does."""
    cursor = tmp_path / "cursor"
    after = user_x.status().next
    for text in ("one", "two", "three"):
        bobby.send("UserX", text)
    assert [one.message for one in user_x.follow(cursor, after=after, limit=1)] == ["one"]

    def dies(message: Message) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        user_x.follow(cursor, body=dies)
    assert [one.message for one in user_x.follow(cursor, limit=2)] == ["two", "three"]
    assert [one.name for one in tmp_path.iterdir()] == ["cursor"]
    assert json.loads(cursor.read_text()) == {
        "node": user_x.status().fingerprint,
        "after": user_x.status().next,
    }


@in_thread
def test_from_now_on(bobby: Driver, user_x: Driver, tmp_path: Path) -> None:
    """What came before the cursor was made is not told; what came after it is, although nobody followed."""
    bobby.send("UserX", "before")

    def dies(message: Message) -> None:
        raise Stopped

    bobby.send("UserX", "x")
    after = user_x.status().next
    assert user_x.follow(after=after - 1, limit=1)[0].message == "x"
    bobby.send_many([Draft("UserX", "first")])
    with pytest.raises(Stopped):
        user_x.follow(tmp_path / "cursor", after=after, body=dies)
    bobby.send("UserX", "second")
    assert [one.message for one in user_x.follow(tmp_path / "cursor", after=None, limit=2)] == ["first", "second"]


@in_thread
def test_another_nodes_cursor(user_x: Driver, bobby: Driver, tmp_path: Path) -> None:
    """Is refused, as it would skip messages; and so is a file that is none."""
    bobby.send("UserX", "x")
    user_x.follow(tmp_path / "cursor", after=user_x.status().next - 1, limit=1)
    with pytest.raises(OtherNode):
        bobby.follow(tmp_path / "cursor")
    for text in ("", "{}", '{"node": "x", "after": true}', '{"node": "x", "after": -1}', "[]", "\xff"):
        (tmp_path / "cursor").write_text(text, "latin-1")
        with pytest.raises(BadCursor, match="no cursor: remove it"):
            user_x.follow(tmp_path / "cursor")


@in_thread
def test_an_answer_goes_to_whoever_wrote(bobby: Driver, user_x: Driver) -> None:
    """To their full address; given twice, also as another text, it is given once. Another part is another answer."""
    after, theirs = user_x.status().next, bobby.status().next
    bobby.send("UserX", "question")
    (message,) = user_x.inbox(after=after).messages
    first = user_x.answer(message, "answer", type="reply")
    again = user_x.answer(message, "another answer, made after a crash")
    other = user_x.answer(message, "more", part="2")
    assert first.is_delivered
    assert again == first
    assert other.id != first.id
    answers = bobby.inbox(after=theirs).messages
    assert [(one.message, one.type) for one in answers] == [("answer", "reply"), ("more", "")]


# -- the way to the node ------------------------------------------------------------------------------------------


@in_thread
def test_nothing_is_there(kind: type[Driver]) -> None:
    """It is said what could not be reached and why, and whether anything was handed over."""
    with Stub() as gone:
        pass
    client = kind(gone.url, retry_s=0)
    for ask in (client.status, lambda: client.send("UserX", "x"), client.follow):
        with pytest.raises(Unreachable, match="refused") as error:
            ask()
        assert not error.value.uncertain
    with pytest.raises(Unreachable):
        kind("unix:/nowhere/api.sock", retry_s=0).status()


@in_thread
def test_a_message_is_sent_again_with_its_id(kind: type[Driver], stub: Stub) -> None:
    """When the connection breaks after it was handed over: the made-up id is the same."""
    stub.replies(Reply(200, b"", {"Content-Length": "10", "Content-Type": "application/json"}))
    stub.answers({"id": "x", "to": "UserX", "status": "delivered"})
    assert kind(stub.url).send("UserX", "hi").is_delivered
    first, again = (json.loads(request.body) for request in stub.requests)
    assert first == again
    assert len(first["id"]) == 24


@in_thread
def test_it_is_not_sent_for_ever(kind: type[Driver], stub: Stub) -> None:
    """The error says that it may have been taken."""
    stub.default = Reply(200, b"", {"Content-Length": "10", "Content-Type": "application/json"})
    with pytest.raises(Unreachable, match="half-way") as error:
        kind(stub.url, retry_s=0).send("UserX", "hi")
    assert error.value.uncertain


@in_thread
def test_the_queue_is_full(kind: type[Driver], stub: Stub) -> None:
    """It is said when to come back, and not tried again by itself."""
    stub.refuses(429, "slow down", "the outbox is full", Retry_After="7")
    with pytest.raises(QueueFull) as error:
        kind(stub.url).send("UserX", "hi")
    assert error.value.retry_after_s == 7
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(404, b"<html>", {"Content-Type": "text/html"}), "not a user node: HTTP 404, text/html"),
        (Reply(200, b"{", {"Content-Type": "application/json"}), "not readable JSON"),
        (Reply(200, b"[]", {"Content-Type": "application/json"}), "not a JSON object"),
        (Reply(200, b"{}", {"Content-Type": "application/json", "Content-Length": "9"}), "ended half-way"),
    ],
)
@in_thread
def test_what_is_no_node(kind: type[Driver], stub: Stub, reply: Reply, reason: str) -> None:
    stub.replies(reply)
    with pytest.raises(Unreachable, match=reason):
        kind(stub.url, retry_s=0).status()


@pytest.mark.parametrize("answer", [{}, {"results": []}, {"results": 1}, {"results": [None]}])
@in_thread
def test_json_that_is_no_nodes(kind: type[Driver], stub: Stub, answer: dict[str, Any]) -> None:
    """Is an error as any other, and not asked for again; of a message it is not known what became of it."""
    client = kind(stub.url)
    message = Message(1, "x", "UserX", "A" * 43, "", None, 0, 0, {})
    for ask in (lambda: client.send("UserX", "x"), lambda: client.answer(message, "x")):
        stub.answers(answer)
        with pytest.raises(Unreachable, match="not a user node's") as error:
            ask()
        assert error.value.uncertain
    stub.status = answer
    for question in (client.status, client.inbox, lambda: client.lookup("UserX"), lambda: client.state("x", "UserX")):
        stub.answers(answer)
        with pytest.raises(Unreachable, match="not a user node's"):
            question()
    with pytest.raises(Unreachable, match="not a user node's"):
        kind(stub.url, retry_s=0).follow(after=None)


@in_thread
def test_no_messages_are_waited_for(kind: type[Driver], stub: Stub) -> None:
    assert kind(stub.url).follow(limit=0) == []
    assert stub.requests == []


@in_thread
def test_an_older_node_has_no_streams(kind: type[Driver], stub: Stub) -> None:
    """A page of JSON is no stream; a refusal is one."""
    stub.answers({})
    with pytest.raises(Problem) as error:
        kind(stub.url).follow()
    assert error.value.status == 415
    stub.status = {"fingerprint": "abc"}
    stub.refuses(401, "Unauthorized", "no token")
    with pytest.raises(Unauthorized):
        kind(stub.url).send_many([Draft("UserX", "x")])


@in_thread
def test_a_silent_node_is_given_up(kind: type[Driver]) -> None:
    """It accepts and says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(Unreachable, match=r"no answer within 0\.05 s"):
            kind(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.05, retry_s=0).status()


@in_thread
def test_the_settings_of_the_command(
    kind: type[Driver], stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `mesh` finds its node the clients find it, and the token goes into the header."""
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("MESH_NODE", stub.url)
    monkeypatch.setenv("MESH_TOKEN_FILE", str(tmp_path / "token"))
    stub.refuses(503, "unavailable", "x")
    with pytest.raises(Problem):
        kind(None).status()  # type: ignore[arg-type]
    assert stub.requests[0].headers["Authorization"] == "Bearer secret"
    with pytest.raises(BadSetting, match="cannot be read as a token"):
        kind(stub.url, token_file=tmp_path / "none")
    with pytest.raises(BadSetting):
        kind(stub.url, ca=tmp_path / "token")
    with pytest.raises(ValueError, match="not the address of a node"):
        kind("ftp://host")


@in_thread
def test_over_https(kind: type[Driver], tmp_path: Path) -> None:
    """Whoever the given file stands for is trusted, and nobody else."""
    pem = tmp_path / "certificate.pem"
    pem.write_bytes(self_signed("127.0.0.1"))
    with Stub(tls=pem) as stub:
        stub.answers({"id": "x", "to": "UserX", "status": "delivered"})
        assert kind(stub.url, ca=pem).send("UserX", "hi").is_delivered
        with pytest.raises(Unreachable, match="certificate"):
            kind(stub.url, retry_s=0).status()
