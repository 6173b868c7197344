"""A seed that says of names what is not so: what of a node it can stop, and what it cannot."""

import random
from typing import Any

import pytest
from msgspec import UNSET
from twisted.logger import LogEvent, capturedLogs, formatEvent

from meshproto import wire
from meshproto.core.identity import Identity
from meshproto.net import sending
from meshproto.net.lines import Lines
from tests.world import World

MALLORY = Identity.create(random.Random(99).randbytes, 0)


class Liar:
    """Has a seed answer look-ups of a name with a record of Mallory's, or of a new key each time, until it stops."""

    def __init__(self, world: World, seed: str, name: str, *, anew: bool = False) -> None:
        self.asked = 0
        self.lies = True
        self._world = world
        self._name = name
        self._anew = anew
        service = world.seeds[seed]
        self._honest = service.line
        service.line = self._line  # type: ignore[method-assign]
        service.quick = lambda number: lambda lines: []  # type: ignore[method-assign]
        for lines in service._links.values():  # those that are there know the short way already
            lines.quick = None

    def _line(self, number: int, lines: Lines, line: bytes) -> None:
        request = wire.decode_request(line)
        if not (self.lies and isinstance(request, wire.Lookup) and wire.fold(request.params.name) == self._name):
            self._honest(number, lines, line)
            return
        self.asked += 1
        assert request.id is not UNSET
        owner = Identity.create(self._world.rng.randbytes, 0) if self._anew else MALLORY
        signed = owner.sign("UserX", ["http://10.0.0.99:3000"], 10**13 + self.asked)
        lines.send(wire.encode_result(request.id, wire.LookupResult(signed.record, signed.sig, 0, "seedX", True, 0)))


@pytest.fixture
def world() -> World:
    """Bobby and UserX have exchanged a message; then UserX went away."""
    world = World(13)
    world.add_seed("seedX")
    world.add_user("Bobby", seeds=["seedX"])
    world.add_user("UserX", seeds=["seedX"])
    world.run_until(world.registered)
    assert world.send("Bobby", "UserX", "first").code == 200
    world.stop("UserX")
    return world


def queue_strict(world: World, **more: Any) -> str:
    """A message for UserX's key alone, which waits: its fingerprint."""
    print_ = world.identities["UserX"].fingerprint
    assert world.send("Bobby", f"UserX~{print_}", "strict", id="strict", wait=0, **more).code == 202
    return print_


def forget_contact(world: World) -> None:
    assert world.ask("DELETE", "Bobby", "/contacts/UserX").code == 200


def test_a_lie_ends_no_message_for_a_full_address(world: World) -> None:
    """The owner has forgotten the contact, and the only seed says that the name has another key: the message waits, its
    reason says for what, and nobody is pinned. When the seed tells the truth again it arrives."""
    print_ = queue_strict(world)
    forget_contact(world)
    liar = Liar(world, "seedX", "userx")
    world.run(400)
    assert liar.asked > 0
    waiting = world.get("Bobby", "/outbox/strict").json
    assert waiting["status"] in ("queued", "locating", "delivering")
    assert waiting["reason"] == f"it is for UserX~{print_} alone, and UserX has the key {MALLORY.fingerprint} now"
    (queue,) = world.get("Bobby", "/outbox").json["recipients"]
    assert (queue["waiting"], queue["reason"]) == (1, waiting["reason"]) and queue["next_try_at"] is not None
    assert world.get("Bobby", "/contacts").json["contacts"] == []
    liar.lies = False
    world.restart("UserX")
    world.run_until(lambda: world.inbox("UserX") == ["first", "strict"], 400)
    assert world.get("Bobby", "/outbox/strict").json["status"] == "delivered"


def test_the_owner_may_end_it(world: World) -> None:
    """By cancelling, by a time that runs out; and `retry` tries at once."""
    print_ = queue_strict(world, ttl=600)
    world.send("Bobby", f"UserX~{print_}", "another", id="another", wait=0)
    forget_contact(world)
    liar = Liar(world, "seedX", "userx")
    world.run(100)
    assert world.ask("DELETE", "Bobby", "/outbox/another").json["status"] == "cancelled"
    asked = liar.asked
    assert world.post("Bobby", "/outbox/retry", {}).code == 200
    world.settle()
    assert liar.asked == asked + 1
    world.run(700)
    over = world.get("Bobby", "/outbox/strict").json
    assert over["status"] == "expired" and "alone" in over["reason"]
    assert world.get("Bobby", "/outbox").json["recipients"] == []


def test_the_owners_word_counts_at_once(world: World) -> None:
    """When the owner trusts the other key, what is for the first one alone is refused then."""
    queue_strict(world)
    forget_contact(world)
    Liar(world, "seedX", "userx")
    world.run(200)
    wanted = {"fingerprint": MALLORY.fingerprint}
    assert world.ask("PUT", "Bobby", "/contacts/UserX", wanted).code == 200
    world.settle()
    assert world.get("Bobby", "/outbox/strict").json["status"] == "refused"


def test_another_seed_is_asked_for_the_key_that_is_trusted(world: World) -> None:
    """One that says another key does not keep the owner from trusting the right one, or from looking it up."""
    world.add_seed("seedY", peers=["seedX"])
    world.restart("UserX")
    world.run(60)
    Liar(world, "seedX", "userx")
    forget_contact(world)
    print_ = world.identities["UserX"].fingerprint
    assert world.get("Bobby", f"/lookup/UserX~{print_}").json["fingerprint"] == print_
    assert world.get("Bobby", "/lookup/UserX").json["fingerprint"] == MALLORY.fingerprint
    assert world.ask("PUT", "Bobby", "/contacts/UserX", {"fingerprint": print_}).code == 200


def test_what_is_for_whoever_has_the_name_goes_past(world: World) -> None:
    """Messages for a full address that wait for their key, more than a batch of them, hold up nobody else's."""
    print_ = queue_strict(world)
    for number in range(3):
        world.send("Bobby", f"UserX~{print_}", number, wait=0)
    forget_contact(world)
    world.forget_disk("UserX")
    old, world.identities["UserX"] = world.identities["UserX"], MALLORY
    Liar(world, "seedX", "userx").lies = False
    world.crash("seedX")
    world.forget_disk("seedX")
    world.restart("seedX")
    world.restart("UserX")
    world.run_until(world.registered)
    world.run(100)
    assert world.inbox("UserX") == []
    assert world.send("Bobby", "UserX", "for whoever", wait=1).code == 200
    assert world.inbox("UserX") == ["for whoever"]
    (queue,) = world.get("Bobby", "/outbox").json["recipients"]
    assert queue["waiting"] == 4 and old.fingerprint in queue["reason"]


def test_another_seed_is_asked_for_the_key(world: World) -> None:
    """What one seed says of another key is not believed for a full address while another seed knows the right one:
    such a message is accepted, and delivered, without waiting."""
    world.add_seed("seedY", peers=["seedX"])
    world.restart("UserX")
    world.run(60)
    assert world.users["Bobby"].seeds.home.name == "seedX"  # type: ignore[union-attr]
    Liar(world, "seedX", "userx")
    forget_contact(world)
    world.run(60)
    print_ = world.identities["UserX"].fingerprint
    assert world.send("Bobby", f"UserX~{print_}", "strict").code == 200
    assert world.inbox("UserX") == ["first", "strict"]


def test_when_all_seeds_say_so_the_key_has_changed(world: World) -> None:
    """A full address that no seed knows is refused when it is accepted, as before, and told of."""
    liar = Liar(world, "seedX", "userx")
    world.run(60)
    print_ = world.identities["UserX"].fingerprint
    answer = world.send("Bobby", f"UserX~{print_}", "strict")
    assert (answer.code, answer.json["title"]) == (409, "key changed")
    assert liar.asked == 1
    assert world.get("Bobby", "/contacts/UserX").json["offered"]["fingerprint"] == MALLORY.fingerprint


def test_a_seed_that_has_another_reason_each_time(world: World) -> None:
    """It says another key whenever it is asked, and has itself asked once a second: the log is told a few times."""
    world.send("Bobby", "UserX", "waits", wait=0)
    liar = Liar(world, "seedX", "userx", anew=True)
    assert 1 < lines_in_a_minute(world) <= sending.LINES_MAX + 1  # one is loud
    assert liar.asked >= 30


def test_a_seed_that_has_a_reason_for_everybody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all whom messages wait for, the log is told so many times a minute."""
    monkeypatch.setattr(sending, "LINES_IN_ALL_MAX", 2)
    world.crash("Bobby")
    world.restart("Bobby")
    world.run_until(world.registered)
    world.send("Bobby", "UserX", "waits", wait=0)
    Liar(world, "seedX", "userx", anew=True)
    assert 1 < lines_in_a_minute(world) <= 2 + 1


def lines_in_a_minute(world: World) -> int:
    """Of Bobby's log about UserX, while a seed says all the time that UserX is back."""
    with capturedLogs() as events:
        for _ in range(59):
            world.users["Bobby"].seeds.forget("UserX")
            world.users["Bobby"].sending.hint("UserX", alive=True)
            world.run(1)
    return len([text for text in map(_said, events) if "UserX" in text])


def _said(event: LogEvent) -> str:
    return formatEvent(event) if event["log_level"].name != "debug" else ""
