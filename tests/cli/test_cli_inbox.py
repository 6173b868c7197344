"""Reading the inbox to its end, and on and on through restarts of the node."""

from itertools import islice

import pytest

from meshproto.cli.inbox import LONG_POLL_S, follow, read
from meshproto.cli.node import Node, Problem, Unreachable
from tests.cli.stub import Stub, message


def no_sleep(_length_s: float) -> None:
    """Retry at once."""


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


def test_follow_goes_on_after_a_restart() -> None:
    """The next question has the cursor from before the restart, and each change is told once."""
    notices: list[str] = []
    delays: list[float] = []
    restarted: list[Stub] = []

    def sleep(length_s: float) -> None:
        delays.append(length_s)
        if len(delays) == 3:
            restarted.append(Stub(first.port).__enter__())
            restarted[0].answers(page(2, following=2))

    with Stub() as first:
        first.answers(page(1, following=1))
        node = Node(first.url)
        messages = follow(node, after=None, sender=None, limit=2, notice=notices.append, retry_delay_s=0.5, sleep=sleep)
        assert next(messages)["cursor"] == 1
    assert [each["cursor"] for each in messages] == [2]
    restarted[0].close()
    assert delays == [0.5] * 3
    assert restarted[0].requests[0].query == {"after": "1", "limit": "1", "wait": str(LONG_POLL_S)}
    assert len(notices) == 2
    assert "Trying again every 0.5 s" in notices[0]
    assert notices[1] == "The node is back."


def test_follow_waits_for_a_busy_node(stub: Stub) -> None:
    """A node that starts, stops or is too busy is asked again."""
    stub.answers(page(1, following=1))
    stub.refuses(503, "Starting", "")
    stub.refuses(429, "Slow Down", "")
    stub.answers(page(2, following=2))
    messages = follow(Node(stub.url), after=0, sender=None, limit=None, notice=lambda _: None, sleep=no_sleep)
    assert [each["cursor"] for each in islice(messages, 2)] == [1, 2]


def test_follow_ends_when_it_is_refused(stub: Stub) -> None:
    """Asking again does not make a wrong token right."""
    stub.answers(page(following=0))
    stub.refuses(401, "Unauthorized", "")
    with pytest.raises(Problem):
        next(follow(Node(stub.url), after=0, sender=None, limit=None, notice=lambda _: None, sleep=no_sleep))


def test_follow_does_not_wait_for_what_was_never_there() -> None:
    """A wrong address is an error, not a node that restarts."""
    with Stub() as gone:
        pass
    with pytest.raises(Unreachable):
        next(follow(Node(gone.url), after=0, sender=None, limit=None, notice=lambda _: None, sleep=no_sleep))
