"""What :mod:`bench.effort` counts: each function prepares a world and does something in it that people do often, by the
bytes that they would send. It does it a few times before it is counted: the first time fills caches.
"""

import json
from collections.abc import Callable
from typing import Any, Final

from bench.effort_world import Client, EffortWorld, request
from tests.core.users import signed

WARM_UP: Final = 3
TEXT: Final = "x" * 256
NDJSON: Final = "application/x-ndjson"

Operation = Callable[[EffortWorld], None]


def lookups(world: EffortWorld) -> None:
    world.add_seed("seedX")
    client = world.client("seedX")
    world.exchange(_registrations(range(100)), client, answers=100)
    hit, miss = _call("lookup", name="User7"), _call("lookup", name="Nobody")
    for line, what, errors in ((hit, "look-up", 0), (miss, "look-up of nobody", 1)):
        for _ in range(WARM_UP):
            world.exchange(line, client, errors=errors)
        with world.counted(f"{what}, one at a time", 64, seed="seedX"):
            for _ in range(64):
                world.exchange(line, client, errors=errors)
        with world.counted(f"{what}, 64 pipelined", 64, seed="seedX"):
            world.exchange(line * 64, client, answers=64, errors=64 * errors)
    clients = [world.client("seedX") for _ in range(64)]
    world.exchange(hit * WARM_UP, *clients, answers=WARM_UP)
    world.exchange(hit, *clients)
    world.ask_together("seedX", hit, clients)
    with world.counted("look-up, by each of 64 at once", 64, seed="seedX"):
        world.ask_together("seedX", hit, clients)


def registrations(world: EffortWorld) -> None:
    world.add_seed("seedX")
    world.add_seed("seedY", peers=["seedX"])
    world.run(5)
    warm, lone, pipelining, *more = [world.client("seedX") for _ in range(8)]
    world.exchange(_registrations(range(WARM_UP)), warm, answers=WARM_UP)
    one_by_one, together = [_registrations([number]) for number in range(10, 30)], _registrations(range(100, 200))
    world.run(1)
    with world.counted("registration, one at a time", 20, seed="seedX"):
        for line in one_by_one:
            world.exchange(line, lone)
    world.run(1)
    with world.counted("registration, 100 pipelined", 100, seed="seedX"):
        world.exchange(together, pipelining, answers=100)
    with world.counted("gossip of 100 registrations", 100, teller="seedX", hearer="seedY"):
        world.run(2)
    assert world.lookup("seedY", "User199") is not None
    hundreds = [_registrations(range(start, start + 100)) for start in range(200, 700, 100)]
    with world.kept("memory of a name at a seed", 500):
        for client, hundred in zip(more, hundreds, strict=True):
            world.exchange(hundred, client, answers=100)


def lone_sends(world: EffortWorld) -> None:
    client = _anna_and_bert(world)
    body = request("POST", "/send", _message())
    for _ in range(WARM_UP):
        world.exchange(body, client)
    with world.counted("POST /send, one at a time", 20, sender="Anna", recipient="Bert"):
        for _ in range(20):
            world.exchange(body, client)
    with world.counted("POST /send, each over a new connection", 20, sender="Anna", recipient="Bert"):
        for _ in range(20):
            world.exchange(body, world.client("Anna"))


def sends_together(world: EffortWorld) -> None:
    _anna_and_bert(world)
    clients = [world.client("Anna") for _ in range(64)]
    body = request("POST", "/send", _message())
    for _ in range(WARM_UP):
        world.exchange(body, *clients)
    with world.counted("POST /send, 64 at a time", 64, sender="Anna", recipient="Bert"):
        world.exchange(body, *clients)


def sends_to_many(world: EffortWorld) -> None:
    names = [f"Friend{number}" for number in range(16)]
    client = _users(world, "Anna", *names)
    first = request("POST", "/send", _message(to=names[0]))
    for _ in range(WARM_UP):
        world.exchange(first, client)
    with world.counted("POST /send to 15 strangers", 15, sender="Anna", recipients=names[1:], seed="seedX"):
        world.exchange(request("POST", "/send", _message(to=names[1:])), client)
    with world.counted("POST /send to 16 names", 16, sender="Anna", recipients=names, seed="seedX"):
        world.exchange(request("POST", "/send", _message(to=names)), client)


def bulk(world: EffortWorld) -> None:
    client = _anna_and_bert(world)
    for wait, what in ((None, ""), (0, ", not waited for")):
        line = _message() if wait is None else _message(wait=wait)
        world.exchange(_lines(line, 20), client)
        with world.counted(f"line of a stream of 1000{what}", 1000, sender="Anna", recipient="Bert"):
            world.exchange(_lines(line, 1000), client)
            world.run(1)


def inbox(world: EffortWorld) -> None:
    sender, owner = _anna_and_bert(world), world.client("Bert")
    world.exchange(_lines(_message(), 1000), sender)
    page = request("GET", "/inbox?limit=100&after=500")
    for _ in range(WARM_UP):
        world.exchange(page, owner)
    with world.counted("GET /inbox, a page of 100", 10, node="Bert"):
        for _ in range(10):
            world.exchange(page, owner)


def backlog(world: EffortWorld) -> None:
    """Bert goes away, Anna writes to him, Anna's node starts again, Bert comes back."""
    client = _anna_and_bert(world)
    world.exchange(_lines(_message(), 20), client)
    world.crash("Bert")
    world.run(40)
    world.exchange(_lines(_message(wait=0), 20), client)
    with world.counted("line for somebody who is away", 500, sender="Anna"):
        world.exchange(_lines(_message(wait=0), 500), client)
    with world.kept("memory of a message that waits", 500):
        world.exchange(_lines(_message(wait=0), 500), client)
    world.crash("Anna")
    with world.counted("start with 1000 that wait", 1, node="Anna"):
        world.at("Anna", world.start, "Anna")
        world.run(2)
    with world.counted("delivery of 1000 that waited", 1000, sender="Anna", recipient="Bert"):
        world.at("Bert", world.start, "Bert")  # they may be delivered before this returns
        world.run(20)
    assert world.on_disk("Anna", "SELECT count(*) FROM outbox WHERE status='queued'") == 0


def idle(world: EffortWorld) -> None:
    world.add_seed("seedX")
    world.add_seed("seedY", peers=["seedX"])
    client = _users(world, "Anna", "Bert")
    world.exchange(request("POST", "/send", _message()), client)
    world.run(60)
    with world.counted("a second in which nothing happens", 300, node="Anna", seed="seedX"):
        world.run(300)


OPERATIONS: Final[tuple[Operation, ...]] = (
    lookups,
    registrations,
    lone_sends,
    sends_together,
    sends_to_many,
    bulk,
    inbox,
    backlog,
    idle,
)


def _anna_and_bert(world: EffortWorld) -> Client:
    """Anna's client; Bert knows her."""
    return _users(world, "Anna", "Bert")


def _users(world: EffortWorld, *names: str) -> Client:
    """The first one's client."""
    if "seedX" not in world.seeds:
        world.add_seed("seedX")
    for name in names:
        world.add_user(name, ["seedX"])
    world.run(3)
    assert world.registered()
    return world.client(names[0])


def _message(to: Any = "Bert", **more: Any) -> bytes:
    return json.dumps({"to": to, "message": TEXT, **more}).encode()


def _lines(line: bytes, count: int) -> bytes:
    return request("POST", "/send", (line + b"\n") * count, NDJSON)


def _call(method: str, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n"


def _registrations(numbers: Any) -> bytes:
    records = [signed(f"User{number}", 1_795_000_000_000, owner=number) for number in numbers]
    return b"".join(_call("register", record=one.record, sig=one.sig) for one in records)
