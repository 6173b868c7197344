"""A network that was cut for long and comes back: how soon everybody is found again."""

import random
from collections.abc import Iterable

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from zope.interface import implementer

from meshproto.core.addresses import RETRY_MAX_S
from meshproto.core.lookup import LOOKUP_S
from meshproto.core.meshkey import NO_KEYS, Applicant
from meshproto.core.peering import GOSSIP_INTERVAL_S
from meshproto.net.calls import CALL_TIMEOUT_S, DIAL_TIMEOUT_S
from meshproto.net.home import PING_S
from meshproto.net.seeds import Seeds
from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION, UserStore
from tests.core.users import user
from tests.net.on_clock import OnClock
from tests.network import Wire
from tests.world import World

HEALED_S_MAX = 5.0
NEWS_S_MAX = 2 * GOSSIP_INTERVAL_S
"""When two of them have met, the others hear of it."""


class SlowWorld(World):
    """One where TCP takes its time (RFC 6298, 5.5): what was sent into a cut is sent again after twice the time, and so
    gets through when the network has been back for as long as the cut had lasted."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._stuck: dict[Wire, float] = {}  # since when
        self._again: dict[Wire, float] = {}  # when it will be sent again

    def heal(self) -> None:
        super().heal()
        now = self.clock.seconds()
        self._again |= {wire: now + (now - since) for wire, since in self._stuck.items()}
        self._stuck.clear()

    def _carry_all(self) -> bool:
        now, moved = self.clock.seconds(), False
        for wire in list(self._wires):
            reachable = self._hears(*wire.ends)
            if not reachable and (wire.client.stream or wire.server.stream):
                self._stuck.setdefault(wire, now)
            through = reachable and self._again.get(wire, now) <= now
            moved = wire.carry(through, through) or moved
        self._wires = [wire for wire in self._wires if not wire.over]
        return moved


def split(world: World, one: Iterable[str], other: Iterable[str]) -> None:
    for here in one:
        for there in other:
            world.cut(here, there)


def agree(world: World) -> bool:
    """Whether each seed takes all others for alive, and all say the same of every user."""
    now = world.clock.seconds()
    if not all(view.alive for core in world.cores.values() for view in core.picture(now)):
        return False
    for name in world.users:
        said = [world.lookup(seed, name) for seed in world.seeds]
        if None in said or len({(entry.record, entry.home, entry.online) for entry in said if entry}) > 1:
            return False
    return True


@pytest.mark.parametrize("cut_s", [20, 60, 180])
@pytest.mark.parametrize("sides", [(1, 1), (2, 3)])
def test_a_cut_heals_soon_however_long_it_was(sides: tuple[int, int], cut_s: int) -> None:
    """Seeds that a cut has parted agree on everything a few seconds after it ends: the connections that survived it,
    which would be silent for as long again, are not waited for."""
    here, there = ([f"seed{side}{number}" for number in range(count)] for side, count in zip("XY", sides, strict=True))
    world = SlowWorld(seed=cut_s)
    for name in (*here, *there):
        world.add_seed(name, peers=["seedX0"])
    world.run(15)
    split(world, (*here, "UserX"), (*there, "UserY"))
    world.add_user("UserX", seeds=["seedX0"])
    world.add_user("UserY", seeds=["seedY0"])
    world.run(cut_s)
    assert not agree(world)
    world.heal()
    assert world.run_until(lambda: agree(world), seconds_max=300) <= HEALED_S_MAX + NEWS_S_MAX


def lonely() -> SlowWorld:
    """UserX and Bobby know each other, both are at home at one of two seeds."""
    world = SlowWorld(seed=7)
    world.add_seed("seedX")
    world.add_seed("seedY", peers=["seedX"])
    world.add_user("UserX", seeds=["seedX", "seedY"])
    world.add_user("Bobby", seeds=["seedY"])
    world.run(5)
    assert world.send("UserX", "Bobby", "before").code == 200
    return world


def test_a_node_that_was_cut_off_comes_home_soon() -> None:
    """A node that no seed heard for ten minutes is registered again, and what waited in its outbox delivered, a few
    seconds after the network is back."""
    world = lonely()
    split(world, ["UserX"], ["seedX", "seedY", "Bobby"])
    world.run(PING_S + CALL_TIMEOUT_S)
    assert world.users["UserX"].seeds.home is None
    assert world.send("UserX", "Bobby", "meanwhile", wait=0).json["status"] == "queued"
    world.run(600)
    world.heal()
    came_home_s = world.run_until(world.registered)
    assert came_home_s <= DIAL_TIMEOUT_S + RETRY_MAX_S
    assert world.run_until(lambda: world.inbox("Bobby") == ["before", "meanwhile"], seconds_max=600) <= 1


def test_a_lookup_in_vain_leaves_the_home_seed() -> None:
    """A home seed that does not answer is left when a lookup finds out, not only at the next ping."""
    world = lonely()
    home = world.users["UserX"].seeds.home
    assert home is not None
    world.cut("UserX", home.name)
    world.request("POST", "UserX", "/send", {"to": "Nobody", "message": "?"}).addErrback(lambda _: None)
    world.run(CALL_TIMEOUT_S + DIAL_TIMEOUT_S + 0.5)
    now_home = world.users["UserX"].seeds.home
    assert now_home is not None
    assert now_home.name != home.name


def test_a_lookup_among_many_that_are_cut_off() -> None:
    """A node that can reach its home alone of twenty seeds says within LOOKUP_S that a name is not found: all others
    were tried, and count as not reachable."""
    world = World(seed=3)
    names = [f"seed{number}" for number in range(20)]
    for name in names:
        world.add_seed(name, peers=names[:1] if name != names[0] else [])
    world.add_user("UserX", seeds=names)
    world.run(10)
    home = world.users["UserX"].seeds.home
    assert home is not None
    split(world, ["UserX"], [name for name in names if name != home.name])
    asked = world.clock.seconds()
    answer = world.get("UserX", "/lookup/Nobody")
    assert world.clock.seconds() - asked <= LOOKUP_S
    assert answer.code == 404
    assert world.users["UserX"].seeds.home == home


def test_a_node_that_is_stopped_while_it_dials_stops() -> None:
    """Whoever was looking for a seed looks no further."""
    clock, disk = Clock(), OnClock(SCHEMA, SCHEMA_VERSION)

    @implementer(IStreamClientEndpoint)
    class Silent:
        def connect(self, factory: IProtocolFactory) -> "Deferred[IProtocol]":
            # As Twisted's own endpoints say it.
            return Deferred(lambda connecting: connecting.errback(ConnectingCancelledError(None)))

    seeds = Seeds(
        "UserX",
        lambda: user(1),
        lambda: [],
        ["seedX:5001"],
        learnt=[],
        last_seq=0,
        store=UserStore(disk.database),
        clock=clock,
        now_ms=lambda: 0,
        applicant=Applicant("UserX", NO_KEYS, random.Random(1).randbytes),
        rng=random.Random(1),
        connect=lambda _: Silent(),
        changed=lambda *_: None,
    )
    seeds.startService()
    seeds.stopService()
    assert clock.getDelayedCalls() == []
    disk.close()
