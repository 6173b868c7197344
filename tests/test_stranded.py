"""Users whose home tells them of too few seeds find one that lives: no seed once heard of is given up."""

from tests.world import World

SEEDS = [f"seed{letter}" for letter in "ABCDE"]
SETTLED_S = 5.0
DEAD_S = 40.0
FOUND_S = 5.0


def mesh(home: str) -> World:
    """Five seeds that know each other, and a user who was told of one."""
    world = World(seed=1)
    for name in SEEDS:
        world.add_seed(name, peers=SEEDS[:1] if name != SEEDS[0] else [])
    world.run(SETTLED_S)
    world.add_user("UserX", seeds=[home])
    world.run(SETTLED_S)
    return world


def found_within_s(world: World, seeds: list[str]) -> float:
    """Until each of the seeds, which are all that live, finds the user online at one of them."""

    def online() -> bool:
        found = [world.lookup(seed, "UserX") for seed in seeds]
        return all(entry is not None and entry.online and entry.home in seeds for entry in found)

    return world.run_until(online, 120.0)


def test_a_home_that_was_cut_off_from_the_others() -> None:
    """It took all others for dead, and then died itself."""
    world = mesh("seedA")
    for other in SEEDS[1:]:
        world.cut("seedA", other)
    world.run(DEAD_S)
    world.crash("seedA")
    assert found_within_s(world, SEEDS[1:]) <= FOUND_S


def test_first_some_die_and_then_the_others() -> None:
    """Those who had been dead are back when the home and all that it held for alive die."""
    world = mesh("seedC")
    for name in SEEDS[:2]:
        world.crash(name)
    world.run(DEAD_S)
    for name in SEEDS[:2]:
        world.restart(name)
    world.run(SETTLED_S)
    for name in SEEDS[2:]:
        world.crash(name)
    assert found_within_s(world, SEEDS[:2]) <= FOUND_S


def test_a_home_that_does_not_know_the_others_yet() -> None:
    """A seed that has just been started tells of itself alone; a user who knew more keeps that."""
    world = mesh("seedA")
    for name in (*SEEDS, "UserX"):
        world.crash(name)
    world.restart("seedA")
    world.restart("UserX")
    world.run(1.0)
    for name in SEEDS[1:]:
        world.restart(name)
    world.run(SETTLED_S)
    world.crash("seedA")
    assert found_within_s(world, SEEDS[1:]) <= FOUND_S
