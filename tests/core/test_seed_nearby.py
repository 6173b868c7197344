"""A seed on a local network: whom it finds there, and that it moves."""

import random

from meshproto.core.effects import Exchange
from meshproto.core.peering import GOSSIP_INTERVAL_S, PUSH_DELAY_S, REDIAL_DEAD_S
from meshproto.core.seed import Seed
from tests.core.seed_mesh import START_S, SeedMesh

NEIGHBOUR = "192.168.7.1:5001"


def lonely() -> Seed:
    rng = random.Random(1)
    return Seed("seedA", "192.168.7.9:5001", now=START_S, rng=rng, entropy=rng.randbytes)


def dialled(seed: Seed, seconds: float) -> set[str]:
    """Where the seed turns to within this time."""
    until = seed.wake_at + seconds
    effects = []
    while seed.wake_at <= until:
        effects += seed.tick(seed.wake_at)
    return {effect.address for effect in effects if isinstance(effect, Exchange)}


def test_who_is_announced_is_dialled_for_as_long() -> None:
    """Again and again when nobody answers, and no more once it is withdrawn."""
    seed = lonely()
    assert dialled(seed, GOSSIP_INTERVAL_S) == set()
    seed.found([NEIGHBOUR])
    assert dialled(seed, 2 * GOSSIP_INTERVAL_S) == {NEIGHBOUR}
    seed.unreachable(NEIGHBOUR, seed.wake_at)
    assert dialled(seed, 2 * REDIAL_DEAD_S) == {NEIGHBOUR}
    seed.found([])
    assert dialled(seed, 2 * REDIAL_DEAD_S) == set()


def test_its_own_address_is_not() -> None:
    """Not even when somebody announces it under another name."""
    seed = lonely()
    seed.found([seed.address])
    assert dialled(seed, 2 * GOSSIP_INTERVAL_S) == set()


def test_a_seed_that_moves_tells_the_others() -> None:
    """At once, and they know it there and nowhere else."""
    mesh = SeedMesh("seedA", "seedB")
    mesh.advance(5 * GOSSIP_INTERVAL_S)
    mesh["seedB"].seed.moved("192.168.7.77:5001", mesh.now)
    mesh.hosts["seedB"].address = "192.168.7.77:5001"
    mesh.advance(2 * PUSH_DELAY_S)
    assert mesh["seedA"].seed.peering.addresses == {"seedB": "192.168.7.77:5001"}
