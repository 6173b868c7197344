"""What a node finds at its seeds and its own addresses, in the fake world."""

from typing import Any

import pytest
from msgspec import structs

from meshproto.core.identity import Identity
from meshproto.net import doctor
from meshproto.net.calls import Calls
from meshproto.net.doctor import LOOK_S
from meshproto.net.seeds import Seeds
from meshproto.wire import StatusResult
from tests.world import USER_PORT, World


@pytest.fixture
def world() -> World:
    world = World(5)
    world.add_seed("seedX")
    world.add_seed("seedY", peers=["seedX"])
    world.add_user("UserX", seeds=["seedX"])
    world.run_until(world.registered)
    world.run(2)
    return world


def report(world: World) -> Any:
    answer = world.get("UserX", "/doctor")
    assert answer.code == 200
    return answer.json


def seeds(world: World) -> dict[str, Any]:
    return {seed["address"]: seed for seed in report(world)["seeds"]}


def test_when_all_is_well(world: World) -> None:
    """The home comes first; each seed knows the record in use, sees the node's own address, and has its time."""
    found = report(world)
    assert [seed["name"] for seed in found["seeds"]] == ["seedX", "seedY"]
    for seed in found["seeds"]:
        assert (seed["reason"], seed["knows"], seed["clock_ms"]) == (None, "current", 0)
        assert seed["sees"] == world.hosts["UserX"].ip
    assert [seed["home"] for seed in found["seeds"]] == [True, False]
    uri = f"http://{world.hosts['UserX'].ip}:{USER_PORT}"
    assert found["uris"] == [{"uri": uri, "leads_here": True, "took_ms": 0.0, "reason": None}]
    assert found["unasked"] == 0


def test_nothing_stays_open(world: World) -> None:
    """What was opened to look is closed again."""
    links = world.cores["seedX"].status(world.clock.seconds()).links
    for _ in range(5):
        report(world)
    world.run(1)
    assert world.cores["seedX"].status(world.clock.seconds()).links == links


def test_a_seed_that_is_gone_or_silent(world: World) -> None:
    """Who does not answer is told with the reason, and holds nobody up for longer than the limit."""
    gone, silent = world.address("seedY"), world.address("seedX")
    world.crash("seedY")
    assert "refused" in seeds(world)[gone]["reason"]
    world.cut("UserX", "seedX")
    began = world.clock.seconds()
    assert seeds(world)[silent]["reason"] is not None
    assert world.clock.seconds() - began <= LOOK_S


def test_a_clock_that_is_wrong(world: World) -> None:
    """Of whoever is online a seed says that they are seen now: by that the clocks are compared."""
    world.hosts["UserX"].ahead_s -= 90.0
    assert seeds(world)[world.address("seedY")]["clock_ms"] == pytest.approx(90_000, abs=5)


def test_what_seeds_know(world: World) -> None:
    """Nothing, an older record, or somebody else's key."""
    world.users["UserX"].seeds._own = None
    world.users["UserX"].seeds._seq += 1
    assert seeds(world)[world.address("seedX")]["knows"] == "older"
    other = Identity.create(world.rng.randbytes, 0)
    world.users["UserX"].seeds._identity = lambda: other
    world.users["UserX"].seeds._own = None
    assert seeds(world)[world.address("seedX")]["knows"] == "other key"
    world.users["UserX"].seeds.user = "Nobody"
    assert seeds(world)[world.address("seedX")]["knows"] == "unknown"


@pytest.mark.parametrize("caller", ["nonsense", "\x1b[2J", ""])
def test_a_seed_that_sees_no_address(world: World, monkeypatch: pytest.MonkeyPatch, caller: str) -> None:
    """Only an IP address is passed on: `mesh doctor` reckons with one."""
    call = Calls.call

    async def lied(self: Calls, method: str, params: Any, result: Any) -> Any:
        answer = await call(self, method, params, result)
        return structs.replace(answer, caller=caller) if isinstance(answer, StatusResult) else answer

    monkeypatch.setattr(Calls, "call", lied)
    assert seeds(world)[world.address("seedX")]["sees"] is None


def test_no_more_than_some_are_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The home is; of the rest it is said how many there are."""
    monkeypatch.setattr(doctor, "SEEDS_ASKED_MAX", 1)
    found = report(world)
    assert [seed["home"] for seed in found["seeds"]] == [True]
    assert found["unasked"] == 1


@pytest.mark.parametrize(
    ("path", "says"),
    [("nobody listens", "refused"), ("another node", "another node answers: Bobby~"), ("no node", "no node: HTTP 404")],
)
def test_an_address_that_leads_elsewhere(world: World, path: str, says: str) -> None:
    """Nobody's, somebody else's, or no node's."""
    world.add_user("Bobby", seeds=["seedX"])
    world.run_until(world.registered)
    bobby = f"http://{world.hosts['Bobby'].ip}"
    uri = {
        "nobody listens": f"{bobby}:9",
        "another node": f"{bobby}:{USER_PORT}",
        "no node": f"{bobby}:{USER_PORT}/elsewhere",
    }
    world.users["UserX"].seeds._uris = lambda: [uri[path]]
    (found,) = report(world)["uris"]
    assert not found["leads_here"]
    assert says in found["reason"]


def test_an_address_that_says_too_much(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of an answer is kept than a record may take."""
    monkeypatch.setattr(doctor, "ANSWER_BYTES_MAX", 100)
    (found,) = report(world)["uris"]
    assert "no node" in found["reason"]


def test_an_address_that_does_not_answer(world: World) -> None:
    """It is waited for, but not for ever."""
    world.add_user("Bobby", seeds=["seedX"])
    world.run_until(world.registered)
    world.users["UserX"].seeds._uris = lambda: [f"http://{world.hosts['Bobby'].ip}:{USER_PORT}"]
    world.cut("UserX", "Bobby")
    (found,) = report(world)["uris"]
    assert found["reason"] == f"no answer within {LOOK_S:g} s" or "timeout" in found["reason"].lower()


def test_the_same_seed_under_two_addresses(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given as localhost and learnt as 127.0.0.1 it is told of once, also when it does not answer."""
    known = ["localhost:5001", "seedY:5001", "127.0.0.1:5001", "tls:localhost:5002", "127.0.0.1:5002"]
    monkeypatch.setattr(Seeds, "known", known)
    told = world.get("UserX", "/doctor").json["seeds"]
    assert [seed["address"] for seed in told] == [
        "localhost:5001",
        "seedY:5001",
        "tls:localhost:5002",
        "127.0.0.1:5002",
    ]
