"""The client on Twisted in the fake world, where every connection can break at any byte and time is ours."""

import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from meshproto.client import Draft, Message, Sent, Unreachable
from meshproto.client.asking import EVENTS_SILENCE_S, SILENCE_S
from meshproto.client.exchange import HELD_BYTES_MAX
from meshproto.client.on_twisted import Client
from meshproto.client.steps import RETRY_S
from tests.world import USER_PORT, World

MESSAGES = 60


@pytest.fixture
def world() -> Iterator[World]:
    world = World(seed=1)
    world.add_seed("seedX")
    for name in ("UserX", "Bobby"):
        world.add_user(name, ["seedX"])
    world.run(1)
    yield world
    world.close()


def client(world: World, name: str = "Bobby", **settings: Any) -> Client:
    return Client(f"http://{world.hosts[name].ip}:{USER_PORT}", reactor=world.laptop, **settings)


async def drained(stream: AsyncIterator[Any]) -> list[Any]:
    return [one async for one in stream]


@pytest.mark.parametrize("seed", range(8))
def test_connections_that_break_anywhere(seed: int) -> None:
    """After any share of the bytes that are under way, again and again: each message once, a result for each."""
    rng = random.Random(seed)
    world = World(seed, latency_s=0.001)
    world.add_seed("seedX")
    for name in ("UserX", "Bobby"):
        world.add_user(name, ["seedX"])
    world.run(1)
    sending = Deferred.fromCoroutine(
        drained(client(world).send_many(Draft("UserX", number, wait_s=1) for number in range(MESSAGES)))
    )
    following = Deferred.fromCoroutine(drained(client(world, "UserX").follow(limit=MESSAGES)))
    for _ in range(12):
        world.run(rng.random() * 0.01)
        world.reset("laptop", rng.choice(["UserX", "Bobby"]), rng.random())
    results: list[Sent] = world.wait(sending, 300)
    messages: list[Message] = world.wait(following, 300)
    assert [result.error for result in results] == [None] * MESSAGES
    assert sorted(int(str(one.message)) for one in messages) == list(range(MESSAGES))
    world.close()


def test_a_source_that_takes_its_time(world: World) -> None:
    """What is there is sent, and its result told, while the next is waited for; also over a lost connection, which
    does not lose what the source was just asked for."""
    waited: Deferred[None] = Deferred()
    told: list[str] = []

    async def drafts() -> AsyncIterator[Draft]:
        yield Draft("UserX", "one")
        await waited
        yield Draft("UserX", "two")

    async def send() -> None:
        async for sent in client(world).send_many(drafts()):
            told.append(sent.status)

    sending = Deferred.fromCoroutine(send())
    world.run(1)
    assert told == ["delivered"]
    world.run(3 * SILENCE_S)  # nothing is due, so silence is no sign of anything
    world.reset("laptop", "Bobby")
    world.run(1)
    waited.callback(None)
    world.wait(sending)
    assert told == ["delivered", "delivered"]
    assert world.inbox("UserX") == ["one", "two"]


def test_a_node_that_is_cut_off_is_noticed(world: World) -> None:
    """A stream says every now and then that it is there; when it does not, the node is asked anew."""
    lost: list[Any] = []
    following = Deferred.fromCoroutine(drained(client(world, "UserX").follow(limit=1, on_lost=lost.append)))
    world.run(EVENTS_SILENCE_S * 2)
    assert lost == []
    world.cut("laptop", "UserX")
    world.send("Bobby", "UserX", "hello")
    world.run(EVENTS_SILENCE_S + 1)
    assert [error.reason for error in lost] == [f"no answer within {EVENTS_SILENCE_S:g} s"]
    world.heal()
    (message,) = world.wait(following, 120)
    assert message.message == "hello"


def test_a_reader_that_takes_its_time(world: World) -> None:
    """A body that waits for long does not let the connection seem dead, nor messages gather without bound."""
    text, many = "x" * 100_000, 3 * HELD_BYTES_MAX // 100_000
    for _ in range(many):
        world.send("Bobby", "UserX", text)
    waited: Deferred[None] = Deferred()
    lost: list[Any] = []
    seen: list[object] = []

    async def follow() -> None:
        async for message in client(world, "UserX").follow(limit=many, on_lost=lost.append):
            seen.append(message.message)
            if len(seen) == 1:
                await waited

    following = Deferred.fromCoroutine(follow())
    world.run(30)
    waited.callback(None)
    world.wait(following)
    assert seen == [text] * many
    assert lost == []


def test_a_node_that_is_away_is_given_up(world: World) -> None:
    """After as long as is told."""
    world.crash("Bobby")
    asking = client(world).send("UserX", "x")
    began = world.clock.seconds()
    with pytest.raises(Unreachable):
        world.wait(asking, RETRY_S + 20)
    assert world.clock.seconds() - began >= RETRY_S


def test_a_question_is_cancelled(world: World) -> None:
    """And its connection is gone."""
    asking = client(world, "UserX").inbox(after=10, wait_s=60)
    world.run(1)
    asking.cancel()
    world.settle()
    with pytest.raises(CancelledError):
        world.wait(asking)
    assert not [call for call in world.laptop.getDelayedCalls() if call.active()]


def test_callbacks_do_as_well_as_await(world: World, tmp_path: Path) -> None:
    """Each method gives a Deferred."""
    names: list[str] = []
    client(world).status().addCallback(lambda status: names.append(status.name))
    world.run(1)
    assert names == ["Bobby"]
