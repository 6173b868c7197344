"""The time of day is set on a seed's machine, by hand or by NTP: nobody is judged by time that did not go by."""

import pytest

from meshproto.core.gossip import CLOCK_AHEAD_S
from meshproto.core.names import Embedded
from meshproto.core.seed import LEASE_S
from meshproto.net.home import PING_S
from tests.world import World

HOUR_S = 3600.0


@pytest.fixture
def world() -> World:
    world = World(71)
    world.add_seed("seedX")
    for name in ("seedY", "seedZ"):
        world.add_seed(name, peers=["seedX"])
    world.add_user("UserX", seeds=["seedX"])
    world.run_until(world.registered)
    world.run(20)
    return world


def alive(world: World, seed: str) -> dict[str, bool]:
    """Whom a seed takes for alive."""
    return {view.name: view.alive for view in world.cores[seed].picture(world.seeds[seed].now())}


def online(world: World, seed: str) -> bool:
    """Whether UserX is, as the seed says."""
    names = world.cores[seed]._names
    assert isinstance(names, Embedded)
    found, _ = names.registry.find("UserX", world.seeds[seed].now())
    assert found is not None
    return found.online


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S, 2.0, -2.0, 20 * 86400.0, -20 * 86400.0])
def test_nobody_is_taken_for_dead_or_away(world: World, step_s: float) -> None:
    """Not at the moment of the step, nor later: a lease goes on for as long as it would have, the other seeds were not
    silent, and rounds of gossip are a second apart. The others notice nothing. Only seeds that are more than a day
    apart do not believe each other."""
    world.hosts["seedX"].ahead_s += step_s
    home = world.users["UserX"].seeds.home
    for pause_s in (*[0.05] * 100, *[1.0] * 120):
        world.run(pause_s)
        assert online(world, "seedX")
        assert world.cores["seedX"].peering.next_round - world.seeds["seedX"].now() <= 2.0
        if abs(step_s) < CLOCK_AHEAD_S:
            assert all((*alive(world, "seedX").values(), *alive(world, "seedY").values()))
            assert online(world, "seedY")
    assert world.users["UserX"].seeds.home == home


def test_a_lease_is_as_long_as_before(world: World) -> None:
    """A user who is not heard any more is away when the lease is over, whatever the clock shows then."""
    world.hosts["seedX"].ahead_s += HOUR_S
    world.run(PING_S)
    for seed in world.seeds:
        world.cut("UserX", seed)
    world.run(LEASE_S - PING_S - 1)
    assert online(world, "seedX")
    world.hosts["seedX"].ahead_s -= 2 * HOUR_S
    world.run(PING_S + 2)
    assert not online(world, "seedX")


def test_what_is_told_is_the_time_of_day(world: World) -> None:
    """Stamps follow the clock: who registers after it was set back is known since then."""
    world.hosts["seedX"].ahead_s -= HOUR_S
    world.run(10)
    world.add_user("Bobby", seeds=["seedX"])
    world.run_until(world.registered)
    found = world.cores["seedX"].directory.best("Bobby", world.hosts["seedX"].now_ms())
    assert found is not None
    assert abs(found.since - world.hosts["seedX"].now_ms()) < 60_000
