"""Reading the inbox to its end, and on and on through restarts of the node."""

import pytest

from meshproto.cli.following import RETRY_DELAY_S
from meshproto.cli.inbox import follow, read
from meshproto.client.errors import Unreachable
from meshproto.client.node import Node
from tests.cli.fake_node import FakeNode
from tests.cli.stub import Stub, message

WAIT_S = 10.0


def page(*cursors: int, following: int) -> dict[str, object]:
    """An answer of the inbox."""
    return {"messages": [message(cursor, "x") for cursor in cursors], "next": following}


def test_reads_page_after_page(stub: Stub) -> None:
    """The end is where the cursor stays; an empty page that moves on is not the end."""
    for answer in (page(1, 2, following=2), page(following=9), page(10, following=10), page(following=10)):
        stub.answers(answer)
    messages = read(Node(stub.url), after=None, sender="Bobby", limit=None)
    assert [each["cursor"] for each in messages] == [1, 2, 10]
    assert [request.query.get("after") for request in stub.requests] == [None, "2", "9", "10"]


def test_reads_no_more_than_the_limit(stub: Stub) -> None:
    """What is left of the limit is what is asked for."""
    stub.answers(page(1, 2, following=2))
    stub.answers(page(3, following=3))
    assert len(list(read(Node(stub.url), after=0, sender=None, limit=3))) == 3
    assert [request.query["limit"] for request in stub.requests] == ["3", "1"]


def test_follow_goes_on_after_a_restart(stub: Stub) -> None:
    """Each change is told once, and the next message is the one after the last."""
    node, notices, delays = FakeNode(stub), list[str](), list[float]()
    node.receives("one")
    messages = follow(Node(stub.url), after=None, sender="UserX", limit=2, notice=notices.append, sleep=delays.append)
    first = next(messages)
    assert "event" not in first
    node.cut()
    node.receives("two")
    assert [first["cursor"], *(each["cursor"] for each in messages)] == [1, 2]
    assert delays == [RETRY_DELAY_S]
    asked = [node.opened.get(timeout=WAIT_S).query for _ in range(2)]
    assert asked == [{"events": "message", "after": after, "from": "UserX"} for after in ("0", "1")]
    assert len(notices) == 2
    assert "Trying again every 1 s" in notices[0]
    assert notices[1] == "The node is back."


def test_follow_begins_after_a_cursor(stub: Stub) -> None:
    """Only what came after it."""
    node = FakeNode(stub)
    for text in ("one", "two"):
        node.receives(text)
    messages = follow(Node(stub.url), after=1, sender=None, limit=1, notice=lambda _: None)
    assert [each["message"] for each in messages] == ["two"]


def test_follow_does_not_wait_for_what_was_never_there() -> None:
    """A wrong address is an error, not a node that restarts."""
    with Stub() as gone:
        pass
    with pytest.raises(Unreachable):
        next(follow(Node(gone.url), after=0, sender=None, limit=None, notice=lambda _: None))
