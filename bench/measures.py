"""What `python -m bench.gossip` measures, each on a mesh of its own: from a number of seeds and a random seed to
figures. Every function can be run in a process of its own.
"""

import random
from collections.abc import Callable
from functools import cache, partial
from typing import Final

from msgspec import UNSET, Struct

from bench.mesh_sim import Mesh, Node
from meshproto.core.identity import Identity

BOOTSTRAP_SEEDS: Final = 3
"""Each seed is started with the addresses of the first few, as an operator would do it."""
WARM_UP_S: Final = 30.0
"""Time for the failure detectors to learn the network."""
POLL_S: Final = 0.05
SAMPLE_S: Final = 0.5
"""How often accusations are looked for: a wrong one lasts until the next heartbeat, about a second."""
LOSS: Final = 0.05
HOUR_S: Final = 3600.0
STALL_S: Final = 5.0
STALL_EVERY_S: Final = 30.0
SPLIT_S: Final = 600.0
SPLIT_EVERY_S: Final = 5.0


class Failed(Exception):
    """A run did not come to its end."""


class Traffic(Struct, frozen=True):
    """kB/s of each seed."""

    sent: list[float]
    received: list[float]


class Split(Struct, frozen=True):
    """`heal_s`: seconds from the healing until all directories are equal; `wrong`: the names whose conflict did not end
    by the rule."""

    heal_s: float
    names: int
    conflicts: int
    wrong: list[str]


@cache
def identity(number: int) -> Identity:
    return Identity.create(random.Random(number).randbytes, 0)


def settled(seeds: int, seed: int, *, loss: float = 0.0, warm_up_s: float = 5.0) -> Mesh:
    """A mesh in which everybody knows everybody."""
    mesh = Mesh(seed, loss=loss)
    names = [f"s{number:04d}" for number in range(seeds)]
    for number, name in enumerate(names):
        mesh.add(name, names[: min(number, BOOTSTRAP_SEEDS)])
    expect(mesh, lambda: all(len(node.core.peering.addresses) == seeds - 1 for node in mesh.live), 60.0, "all met")
    mesh.run(warm_up_s)
    return mesh


def expect(mesh: Mesh, true: Callable[[], bool], within_s: float, what: str) -> float:
    """Seconds until it is true, looked at every POLL_S."""
    start = mesh.now
    while not true():
        if mesh.now - start > within_s:
            raise Failed(f"after {within_s:g} s it is still not so that {what}")
        mesh.run(POLL_S)
    return mesh.now - start


# -- 1. news ------------------------------------------------------------------------------------------------------


def spread(seeds: int, seed: int, registrations: int) -> list[float]:
    """Seconds until a registration at one seed is known to every seed."""
    mesh = settled(seeds, seed)
    times = []
    for number in range(registrations):
        mesh.run(mesh.rng.uniform(1.0, 2.0))
        times.append(_news_s(mesh, mesh.rng.choice(mesh.live), f"user{number}"))
    return times


def _news_s(mesh: Mesh, home: Node, user: str) -> float:
    waiting = set(mesh.nodes) - {home.name}

    def look(node: Node) -> None:
        if node.name in waiting and node.core.directory.best(user, _ms(mesh)) is not None:
            waiting.discard(node.name)

    mesh.after_event = look
    start = mesh.now
    mesh.register(home.name, identity(0), user, _ms(mesh))
    done = mesh.run(60.0, until=lambda: not waiting)
    mesh.after_event = None
    if not done:
        raise Failed(f"{len(waiting)} seeds do not know {user}")
    return mesh.now - start


# -- 2. traffic ---------------------------------------------------------------------------------------------------


def idle(seeds: int, seed: int, measured_s: float) -> Traffic:
    """kB/s per seed when nothing happens."""
    mesh = settled(seeds, seed)
    for node in mesh.live:
        node.sent_bytes = node.received_bytes = 0
    mesh.run(measured_s)
    nodes = mesh.live
    per_kbyte_s = 1000 * measured_s
    sent = [node.sent_bytes / per_kbyte_s for node in nodes]
    return Traffic(sent, [node.received_bytes / per_kbyte_s for node in nodes])


# -- 3. death -----------------------------------------------------------------------------------------------------


def killed(seeds: int, seed: int, deaths: int) -> list[float]:
    """Seconds until all others know that a process is dead which was killed."""
    return _deaths(seeds, seed, deaths, Mesh.kill, Mesh.restart)


def cut_off(seeds: int, seed: int, deaths: int) -> list[float]:
    """The same for a seed that is silent without its connections' being closed."""
    return _deaths(seeds, seed, deaths, lambda mesh, name: mesh.split({name: 1}), lambda mesh, _: mesh.heal())


def _deaths(
    seeds: int, seed: int, deaths: int, strike: Callable[[Mesh, str], None], mend: Callable[[Mesh, str], None]
) -> list[float]:
    mesh = settled(seeds, seed, warm_up_s=WARM_UP_S)
    times = []
    for _ in range(deaths):
        mesh.run(mesh.rng.uniform(0.0, 1.0))
        name = mesh.rng.choice(sorted(mesh.nodes))
        strike(mesh, name)
        times.append(expect(mesh, partial(_dead, mesh, name), 60.0, f"{name} is dead to all"))
        mend(mesh, name)
        expect(mesh, lambda: not _accused(mesh, mesh.live), 60.0, "all are alive again")
        mesh.run(WARM_UP_S)
    return times


def _dead(mesh: Mesh, name: str) -> bool:
    return not any(_alive(mesh, node, name) for node in mesh.live if node.name != name)


def lossy_hour(seeds: int, seed: int, seconds: float) -> list[str]:
    """Wrong accusations while LOSS of all exchanges are lost."""
    return _accusations(settled(seeds, seed, loss=LOSS, warm_up_s=WARM_UP_S), seconds)


def stalls(seeds: int, seed: int, seconds: float) -> list[str]:
    """Wrong accusations, by and of a seed whose reactor stands still for STALL_S every STALL_EVERY_S."""
    mesh = settled(seeds, seed, warm_up_s=WARM_UP_S)
    slow = mesh.rng.choice(mesh.live)
    for number in range(int(seconds / STALL_EVERY_S)):
        mesh.at(number * STALL_EVERY_S + mesh.rng.uniform(0.0, 1.0), lambda: _stall(mesh, slow))
    return _accusations(mesh, seconds)


def _stall(mesh: Mesh, node: Node) -> None:
    node.stalled_until = mesh.now + STALL_S


def _accusations(mesh: Mesh, seconds: float) -> list[str]:
    """Each time that a living seed holds another for dead: who does it, whom, and when."""
    start = mesh.now
    found = []
    former: set[tuple[str, str]] = set()
    while mesh.now - start < seconds:
        mesh.run(SAMPLE_S)
        accused = _accused(mesh, [node for node in mesh.live if node.stalled_until <= mesh.now])
        found += [f"{by} accused {of} at {mesh.now - start:.1f} s" for by, of in sorted(accused - former)]
        former = accused
    return found


def _accused(mesh: Mesh, by: list[Node]) -> set[tuple[str, str]]:
    names = [node.name for node in mesh.live]
    return {(node.name, name) for node in by for name in names if not _alive(mesh, node, name)}


def _alive(mesh: Mesh, by: Node, name: str) -> bool:
    return by.core.peering.alive(name, mesh.now)


# -- 4. split -----------------------------------------------------------------------------------------------------


def split(seeds: int, seed: int, seconds: float) -> Split:
    """Two halves that do not hear each other while users register, move, and claim the same names on both sides."""
    mesh = settled(seeds, seed, warm_up_s=WARM_UP_S)
    names = sorted(mesh.nodes)
    halves = names[::2], names[1::2]
    rounds = int(seconds / SPLIT_EVERY_S)
    for number in range(rounds):
        _claim(mesh, mesh.rng.choice(names), f"mover{number}", 0)
    mesh.run(WARM_UP_S)
    mesh.split({name: side for side, half in enumerate(halves) for name in half})
    owners = {}
    for number in range(rounds):
        mesh.run(SPLIT_EVERY_S)
        here, there = mesh.rng.sample(halves, 2)
        _claim(mesh, mesh.rng.choice(here), f"new{number}", 0)
        _claim(mesh, mesh.rng.choice(here), f"mover{number}", 0)
        contested = f"both{number}"
        claims = [_claim(mesh, mesh.rng.choice(half), contested, key) for half, key in ((here, 1), (there, 2))]
        owners[contested] = min(claims)[1]
    mesh.heal()
    users = [f"{kind}{number}" for number in range(rounds) for kind in ("new", "mover", "both")]
    heal_s = expect(mesh, lambda: all(_alike(mesh, name) for name in users), 120.0, "all directories are equal")
    wrong = [name for name, key in owners.items() if _owner(mesh, mesh.live[0], name) != key]
    return Split(heal_s, len(users), len(owners), wrong)


def _claim(mesh: Mesh, home: str, user: str, key: int) -> tuple[int, str]:
    """Register: since when the claim is owned, and the key; of several claims the smallest has to win."""
    mesh.run(0.001)
    answer = mesh.register(home, identity(key), user, _ms(mesh), link=mesh.connect(home))
    if answer.result is UNSET:
        raise Failed(f"{user} could not register at {home}: {answer.error}")
    entry = mesh.nodes[home].core.directory.best(user, _ms(mesh))
    assert entry is not None
    return entry.value.since, entry.key


def _alike(mesh: Mesh, user: str) -> bool:
    """Whether every seed gives the same answer."""
    answers = set()
    for node in mesh.live:
        best = node.core.directory.best(user, _ms(mesh))
        answers.add(best and (best.key, best.seq, best.home, best.value.since, best.value.online))
        if len(answers) > 1 or best is None:
            return False
    return True


def _owner(mesh: Mesh, node: Node, user: str) -> str | None:
    best = node.core.directory.best(user, _ms(mesh))
    return best.key if best else None


def _ms(mesh: Mesh) -> int:
    return int(mesh.now * 1000)
