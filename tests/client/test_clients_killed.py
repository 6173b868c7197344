"""Both clients while their node is killed (SIGKILL) and started again: nothing is lost, nothing has two effects."""

import signal
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from meshproto.cli.processes import Children, until
from meshproto.client import Client, Draft, Message
from tests.client.drivers import DRIVERS, Driver, Stopped, in_thread

MESSAGES = 2000
KILLED_AT = (150, 900, 1500)


class Mesh:
    """A seed, and UserX and Bobby at it, whom one can kill."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._seed = children.start("meshseed", "seedX")
        self.urls = {name: children.start("meshuser", name, "--seed", self._seed) for name in ("UserX", "Bobby")}
        for url in self.urls.values():
            until(lambda url=url: Client(url).status().registered or None, "registered")  # type: ignore[misc]

    def kill(self, name: str) -> None:
        """And start it again, without waiting for it: where it was."""
        process = self._children.all[name].process
        process.send_signal(signal.SIGKILL)
        process.wait()
        port = urlsplit(self.urls[name]).port or 0
        self._children.launch("meshuser", name, "--seed", self._seed, port=port)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with Children(tmp_path) as children:
        yield Mesh(children)


@pytest.fixture(params=DRIVERS)
def kind(request: pytest.FixtureRequest) -> type[Driver]:
    return DRIVERS[request.param]


def killer(mesh: Mesh, name: str) -> Callable[[object], None]:
    """Kills at some of the calls."""
    calls = 0

    def counted(_: object) -> None:
        nonlocal calls
        calls += 1
        if calls in KILLED_AT:
            mesh.kill(name)

    return counted


@in_thread
def test_the_node_is_killed_while_many_messages_are_sent(mesh: Mesh, kind: type[Driver]) -> None:
    """A result for each, in order, and the recipient has each once."""
    drafts = [Draft("UserX", number) for number in range(MESSAGES)]
    results = kind(mesh.urls["Bobby"]).send_many(drafts, killer(mesh, "Bobby"))
    assert len(results) == MESSAGES
    assert len({result.id for result in results}) == MESSAGES
    assert [result.error for result in results if result.error] == []
    came = [message.message for message in kind(mesh.urls["UserX"]).follow(limit=MESSAGES)]
    assert sorted(came, key=lambda number: int(str(number))) == list(range(MESSAGES))


@in_thread
def test_the_node_is_killed_while_it_is_followed(mesh: Mesh, kind: type[Driver], tmp_path: Path) -> None:
    """Over its deaths, and over that of the program that follows: each once, in order, but for the one that the
    program died with, which comes again."""
    seen: list[object] = []
    lost: list[object] = []
    kill, sender = killer(mesh, "UserX"), Client(mesh.urls["Bobby"])

    def send(first: int, end: int) -> None:
        assert len(list(sender.send_many(Draft("UserX", number) for number in range(first, end)))) == end - first

    def body(message: Message) -> None:
        seen.append(message.message)
        kill(message)
        if message.message == 1000 and not died:
            died.append(1000)
            raise Stopped
        if len(seen) in ends:  # sent after the node's death only, so that no stream could have brought them before it
            send(len(seen), ends[len(seen)])

    died: list[object] = []
    ends = dict(pairwise((*KILLED_AT, MESSAGES)))
    send(0, KILLED_AT[0])
    with pytest.raises(Stopped):
        kind(mesh.urls["UserX"]).follow(tmp_path / "cursor", body=body, on_lost=lost.append)
    assert seen.pop() == 1000
    kind(mesh.urls["UserX"]).follow(tmp_path / "cursor", body=body, limit=MESSAGES - len(seen), on_lost=lost.append)
    assert seen == list(range(MESSAGES))
    assert len(lost) >= len(KILLED_AT)


@in_thread
def test_a_service_that_is_killed_answers_once(mesh: Mesh, kind: type[Driver], tmp_path: Path) -> None:
    """It dies after it has answered, and before that is noted: whoever asked gets one answer to each question."""
    asks = [Draft("UserX", number) for number in range(20)]
    kind(mesh.urls["Bobby"]).send_many(asks)
    client = Client(mesh.urls["UserX"])

    def serves(message: Message) -> None:
        client.answer(message, {"answer": message.message})
        if message.message in (3, 11):
            if died_at.count(message.message) == 0:
                died_at.append(message.message)
                raise Stopped
            mesh.kill("UserX")

    died_at: list[object] = []
    left = len(asks)
    while left:
        try:
            left -= len(kind(mesh.urls["UserX"]).follow(tmp_path / "cursor", body=serves, limit=left))
        except Stopped:
            left = len(asks) - int(str(died_at[-1]))
    answers = [message.message for message in kind(mesh.urls["Bobby"]).follow(limit=len(asks))]
    assert answers == [{"answer": number} for number in range(len(asks))]
    assert kind(mesh.urls["Bobby"]).status().next == len(asks)
