"""The mesh of seeds, in the fake world: joining, dying, splitting, healing."""

from itertools import combinations

from meshproto.core.seed import LEASE_S
from tests.world import World


def five(seed: int = 1) -> World:
    """Five seeds that joined by one address."""
    world = World(seed)
    world.add_seed("seed0")
    for number in range(1, 5):
        world.add_seed(f"seed{number}", peers=["seed0"])
    world.run(5)
    return world


def alive(world: World, at: str) -> set[str]:
    """The other seeds that a seed takes for alive."""
    return {view.name for view in world.cores[at].picture(world.clock.seconds()) if view.alive and not view.itself}


def split(world: World, one: list[str], other: list[str]) -> None:
    for here in one:
        for there in other:
            world.cut(here, there)


def test_one_address_is_enough() -> None:
    """A seed that was told of one other knows all, and all know it."""
    world = five()
    for name in world.seeds:
        assert alive(world, name) == world.seeds.keys() - {name}


def test_a_killed_seed_is_known_dead_at_once() -> None:
    """A process that ends is known dead to every other within two seconds, and alive again when it is back."""
    world = five()
    world.crash("seed3")
    took_s = world.run_until(lambda: not any("seed3" in alive(world, name) for name in world.seeds))
    assert took_s < 2
    world.restart("seed3")
    assert world.run_until(lambda: all("seed3" in alive(world, name) for name in world.seeds if name != "seed3")) < 15


def test_a_seed_that_is_cut_off_is_known_dead() -> None:
    """A seed whose lines go silent is known dead within fifteen seconds, and found again when they are healed."""
    world = five()
    split(world, ["seed2"], [name for name in world.seeds if name != "seed2"])
    assert world.run_until(lambda: not any("seed2" in alive(world, name) for name in world.seeds)) < 15
    world.heal()
    assert world.run_until(lambda: all("seed2" in alive(world, name) for name in world.seeds if name != "seed2")) < 15


def test_nobody_is_accused_in_peace() -> None:
    """In ten quiet minutes no seed takes another for dead."""
    world = five()
    for _ in range(600):
        world.run(1)
        assert all(len(alive(world, name)) == 4 for name in world.seeds)


def test_every_seed_answers_for_everyone() -> None:
    """A registration, a user's leaving and return are known at every seed within a second."""
    world = five()
    world.add_user("UserX", seeds=["seed1"])
    world.run_until(world.registered)
    world.run(1)
    assert all((found := world.lookup(name, "UserX")) and found.online for name in world.seeds)
    world.stop("UserX")
    world.run(1)
    assert all((found := world.lookup(name, "UserX")) and not found.online for name in world.seeds)
    world.restart("UserX")
    world.run(1)
    assert all((found := world.lookup(name, "UserX")) and found.online for name in world.seeds)


def test_users_of_a_dead_seed_are_not_online() -> None:
    """As soon as a home seed is known dead its users count as away, until they are at home elsewhere."""
    world = five()
    world.add_user("UserX", seeds=["seed1"])
    world.run_until(world.registered)
    world.run(1)
    home = world.users["UserX"].seeds.home
    assert home is not None
    world.crash("UserX")
    world.crash(home.name)
    world.run(3)
    assert all((found := world.lookup(name, "UserX")) and not found.online for name in world.seeds)


def test_watching_across_seeds() -> None:
    """Bobby, at another seed, hears that UserX is back within two seconds, however long after the lease."""
    world = five()
    world.add_user("UserX", seeds=["seed1"])
    world.add_user("Bobby", seeds=["seed2"])
    world.run_until(world.registered)
    world.run(1)
    world.send("Bobby", "UserX", "first")
    world.crash("UserX")
    world.run(10 * LEASE_S)
    assert world.send("Bobby", "UserX", "second", wait=0).code == 202
    world.run(120)
    world.restart("UserX")
    assert world.run_until(lambda: world.users["Bobby"].sending.outbox.waiting == 0) < 2


def test_a_split_heals_and_the_earlier_claim_wins() -> None:
    """The same name claimed on both sides of a split: afterwards every seed names the key that was first; the loser's
    node is told, says so in its status, and does not get the name back."""
    world = five()
    left, right = ["seed0", "seed1"], ["seed2", "seed3", "seed4"]
    split(world, left, right)
    world.run(60)
    world.add_user("First", seeds=["seed1"])
    world.users["First"].seeds.user = "Name"
    split(world, ["First"], right)
    world.run(5)
    world.add_user("Second", seeds=["seed3"])
    world.users["Second"].seeds.user = "Name"
    split(world, ["Second"], left)
    world.run(5)
    assert world.registered()
    world.heal()

    def settled() -> bool:
        answers = {found.record for name in world.seeds if (found := world.lookup(name, "Name"))}
        return len(answers) == 1 and world.users["Second"].seeds.home is None

    took_s = world.run_until(settled)
    assert took_s < 10
    world.run(5)
    found = world.lookup("seed4", "Name")
    assert found is not None and world.users["First"].seeds.own_record() == found.signed
    status = world.get("Second", "/status").json
    assert status["registered"] is False
    assert "belongs to" in status["problem"]
    assert world.users["First"].seeds.home is not None


def test_halves_become_one_again() -> None:
    """After a split of ten minutes with registrations on both sides, every seed knows every user within five seconds
    of the halves hearing each other again."""
    world = five(3)
    left, right = ["seed0", "seed1"], ["seed2", "seed3", "seed4"]
    split(world, left, right)
    for number, seed in enumerate([*left, *right]):
        world.add_user(f"User{number}", seeds=[seed])
        split(world, [f"User{number}"], right if seed in left else left)
    world.run(600)
    world.heal()
    names = [f"User{number}" for number in range(5)]
    world.run_until(lambda: all(alive(world, one) & {other} for one, other in combinations(world.seeds, 2)))
    world.run(5)
    for seed in world.seeds:
        for name in names:
            found = world.lookup(seed, name)
            assert found is not None and found.online
