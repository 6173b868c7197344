"""--log-messages: the way of a message through both nodes."""

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from meshproto.net import message_log
from tests.world import World


@implementer(ILogObserver)
class Said:
    """What message logs have said since it was asked last."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []

    def __call__(self, event: LogEvent) -> None:
        if "message_log" in event["log_namespace"]:
            own = {name: value for name, value in event.items() if not name.startswith("log_")}
            self._events.append({**own, "text": formatEvent(event)})

    def take(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events


@pytest.fixture
def said() -> Iterator[Said]:
    said = Said()
    globalLogPublisher.addObserver(said)
    yield said
    globalLogPublisher.removeObserver(said)


@pytest.fixture
def world() -> Iterator[World]:
    """UserX and Bobby, who log messages, and have exchanged one."""
    world = World(8)
    world.logs_messages = True
    world.add_seed("seedX")
    for name in ("UserX", "Bobby"):
        world.add_user(name, ["seedX"])
    world.run_until(world.registered)
    world.run(2)
    yield world
    world.close()


def test_one_that_arrives(world: World, said: Said) -> None:
    """A line at each step, with the same id; and not a word of what it says."""
    world.send("UserX", "Bobby", "hello", id="1", type="greeting")
    accepted, received, delivered = said.take()
    assert (accepted["event"], accepted["id"], accepted["to"]) == ("accepted", "1", "Bobby")
    assert accepted["text"] == "accepted 1 for Bobby"
    assert (received["event"], received["id"]) == ("received", "1")
    assert received["from"].startswith("UserX~") and received["text"] == f"received 1 from {received['from']}"
    assert (delivered["event"], delivered["id"], delivered["attempts"], delivered["ms"]) == ("delivered", "1", 1, 0)
    assert delivered["text"] == "delivered 1 for Bobby after 0 ms, attempts: 1"
    assert "hello" not in str((accepted, received, delivered)) and "greeting" not in str(accepted)


def test_one_that_waits(world: World, said: Said) -> None:
    """How long it took and how often it was tried, whatever ended the waiting in between."""
    world.send("UserX", "Bobby", "hello")
    world.crash("Bobby")
    world.settle()
    before = world.users["UserX"].sending.tally.attempts
    world.send("UserX", "Bobby", "hello", id="2", wait=0)
    world.run(60)
    world.ask("POST", "UserX", "/outbox/retry")
    world.restart("Bobby")
    world.run(20)
    said_of_it = [event for event in said.take() if event["id"] == "2"]
    assert [event["event"] for event in said_of_it] == ["accepted", "received", "delivered"]
    tries = world.users["UserX"].sending.tally.attempts - before
    assert said_of_it[-1]["attempts"] == tries > 3 and said_of_it[-1]["ms"] >= 60_000
    world.send("UserX", "Bobby", "hello", id="3")
    assert said.take()[-1]["attempts"] == 1


def test_other_ends(world: World, said: Said) -> None:
    """Each by its name, with the reason."""
    world.send("UserX", "Bobby", "hello")
    world.crash("Bobby")
    world.settle()
    said.take()
    world.send("UserX", "Bobby", "hello", id="late", ttl=10, wait=0)
    world.send("UserX", "Bobby", "hello", id="wrong", wait=0)
    world.ask("DELETE", "UserX", "/outbox/wrong")
    world.run(90)
    ends = {event["id"]: event for event in said.take() if event["event"] != "accepted"}
    assert {id_: event["event"] for id_, event in ends.items()} == {"late": "expired", "wrong": "cancelled"}
    assert "cancelled by its sender" in ends["wrong"]["reason"] and "refused" in ends["late"]["text"]


def test_one_that_comes_again(world: World, said: Said) -> None:
    """Its recipient says so."""
    world.send("UserX", "Bobby", "hello")
    said.take()
    world.troubles["Bobby"].doubts = 1.0
    world.send("UserX", "Bobby", "again", id="4", wait=0)
    world.run(1)
    world.troubles["Bobby"].mend()
    world.run(30)
    assert "repeated" in [event["event"] for event in said.take() if event["id"] == "4"]


def test_what_it_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more rows it does not know how often they were tried."""
    monkeypatch.setattr(message_log, "ENDING_MAX", 3)
    log = message_log.MessageLog()
    for _ in range(2):
        log.attempt("bobby")
    for row in range(9):
        log.ending("bobby", [row])
    assert len(log._attempts) == 3
    log.reached("bobby")
    assert not log._tries


def test_nobody_has_it_by_default(said: Said) -> None:
    world = World(9)
    world.add_seed("seedX")
    world.add_user("UserX", ["seedX"])
    world.run_until(world.registered)
    world.send("UserX", "UserX", "hello")
    assert said.take() == []
    world.close()
