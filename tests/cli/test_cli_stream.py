"""Events on and on: nothing missed, nothing twice, whatever happens to the connection."""

import threading

import pytest

from meshproto.cli.following import stream as following
from meshproto.client.errors import Problem, Unreachable
from meshproto.client.node import Node
from tests.cli.fake_node import FakeNode
from tests.cli.stub import Stub, problem_reply

WAIT_S = 10.0


def no_sleep(_length_s: float) -> None:
    """Retry at once."""


@pytest.fixture
def node(stub: Stub) -> FakeNode:
    return FakeNode(stub)


def test_a_stream_goes_on_where_it_was(stub: Stub, node: FakeNode) -> None:
    """After each loss it is opened after the last message that was seen."""
    node.receives("one")
    stream = following(Node(stub.url), "message", after=0, sender="UserX", sleep=no_sleep)
    events = iter(stream)
    assert [next(events)["event"], next(events)["message"]] == ["open", "one"]
    node.cut()
    node.receives("two")
    assert [next(events)["event"] for _ in range(3)] == ["lost", "open", "message"]
    node.receives("three")
    assert next(events)["message"] == "three"
    stream.close()
    assert list(events) == []
    assert [node.opened.get(timeout=WAIT_S).query["after"] for _ in range(2)] == ["0", "1"]


def test_signs_of_life_are_no_events(stub: Stub, node: FakeNode) -> None:
    """They are there for the connection."""
    stream = following(Node(stub.url), "message", after=0, sleep=no_sleep)
    events = iter(stream)
    next(events)
    node.tell({"event": "alive"})
    node.receives("one")
    assert next(events)["message"] == "one"
    stream.close()


def test_a_stream_that_the_node_ends(stub: Stub, node: FakeNode) -> None:
    """It says why, and is opened again."""
    events = iter(following(Node(stub.url), "message", after=0, sleep=no_sleep))
    next(events)
    node.tell({"event": "end", "status": 503, "title": "unavailable", "detail": "too slow"})
    lost = next(events)
    assert (lost["event"], lost["error"].detail) == ("lost", "too slow")
    assert next(events)["event"] == "open"


def test_a_refusal_is_final(stub: Stub, node: FakeNode) -> None:
    """Asking again does not make a wrong token right; a node that is too busy is asked again."""
    events = iter(following(Node(stub.url), "message", after=0, sleep=no_sleep))
    next(events)
    replies = [problem_reply(503, "Starting"), problem_reply(429, "Slow Down"), problem_reply(401, "Unauthorized")]
    stub.routes["GET /inbox/stream"] = lambda _: replies.pop(0)
    node.cut()
    assert next(events)["event"] == "lost"
    with pytest.raises(Problem):
        next(events)
    assert replies == []


def test_what_was_never_there_is_not_waited_for() -> None:
    """A wrong address is an error, not a node that restarts."""
    with Stub() as gone:
        pass
    with pytest.raises(Unreachable):
        next(iter(following(Node(gone.url), "message", after=0, sleep=no_sleep)))


def test_what_answers_otherwise_is_an_older_node(stub: Stub) -> None:
    """A page of JSON is no stream."""
    stub.answers({})
    with pytest.raises(Problem) as error:
        next(iter(following(Node(stub.url), "message", after=0, sleep=no_sleep)))
    assert error.value.status == 415


def test_closing_ends_the_waiting(stub: Stub, node: FakeNode) -> None:
    """Another thread may close it while one waits for an event."""
    stream = following(Node(stub.url), "message", after=0, sleep=no_sleep)
    seen: list[str] = []
    reader = threading.Thread(target=lambda: seen.extend(event["event"] for event in stream))
    reader.start()
    node.opened.get(timeout=WAIT_S)
    stream.close()
    reader.join(WAIT_S)
    assert not reader.is_alive()
    assert seen in ([], ["open"])
