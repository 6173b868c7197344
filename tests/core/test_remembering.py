"""What seeds remember, and for how long: of users who are here for months, of homes that never come back, of seeds."""

import random

import pytest
from msgspec import Raw

from meshproto.core.directory import CLAIM_TTL_S
from meshproto.core.effects import Exchange, Save
from meshproto.core.peering import FACTS_KEY, RELAY_BYTES_MAX, Peering
from meshproto.core.registry import RENEWALS_PER_CLAIM
from meshproto.core.seed import Seed, Settings
from meshproto.wire import CELL_BYTES_MAX, Cell, Delta, GossipResult, SeedFacts, Summary, encode_value
from tests.core.seed_mesh import START_S, Client, SeedMesh
from tests.core.users import signed, value_of

SETTLED_S = 10.0
TTL_S = 600.0
"""A month in ten minutes."""
PING_S = 10.0
NOW_MS = int(START_S * 1000)


def months(*names: str) -> SeedMesh:
    mesh = SeedMesh(*names, settings=Settings(claim_ttl_s=TTL_S))
    mesh.advance(SETTLED_S)
    return mesh


class TestUsers:
    def test_who_stays_for_long_is_said_anew_to_be_here(self) -> None:
        """A home raises `seen` of whoever is online often enough for the claim not to run out anywhere, on disk too."""
        mesh = months("seedA", "seedB")
        client = Client(mesh, "seedA")
        client.register("UserX")
        for _ in range(int(2 * TTL_S / PING_S)):
            mesh.advance(PING_S)
            client.tell("ping", SeedFacts("unused:1"))
        late_ms = int((mesh.now - TTL_S / RENEWALS_PER_CLAIM - SETTLED_S) * 1000)
        entry = mesh["seedB"].seed.directory.at_home("userx", "seedA")
        assert entry is not None
        assert entry.seen >= late_ms
        assert mesh["seedA"].disk["userx"].seen >= late_ms

    @pytest.mark.parametrize("restarted", [False, True])
    def test_a_home_that_does_not_come_back(self, restarted: bool) -> None:
        """Its users are not online, and their claims run out; then another key may have the name."""
        mesh = months("seedA", "seedB")
        Client(mesh, "seedA").register("UserX")
        mesh.advance(SETTLED_S)
        mesh.stop("seedA")
        mesh.advance(60.0)
        other = Client(mesh, "seedB")
        assert not other.lookup("UserX").online
        status = mesh["seedB"].seed.status(mesh.now)
        assert (status.names, status.online) == (1, 0)
        assert other.refused("register", signed("UserX", 1, owner=2)).message == "name taken"
        mesh.advance(TTL_S)
        assert not other.knows("UserX")
        other.register("UserX", 1, owner=2)
        if restarted:
            mesh.start("seedA")
            mesh.advance(SETTLED_S)
            assert Client(mesh, "seedA").lookup("UserX").home == "seedB"

    def test_a_seed_that_was_down_for_long(self) -> None:
        """It does not know how long before its end it had seen its users, but it was no more than one renewal."""
        seen = NOW_MS - int(TTL_S * 1000)
        entries = [("userx", value_of(signed("UserX", 1), seen=seen)), ("usery", value_of(signed("UserY", 1), seen=0))]
        seed = lonely(entries=entries, settings=Settings(claim_ttl_s=TTL_S))
        found = seed.directory.at_home("userx", "seedA")
        assert found is not None
        assert (found.online, found.seen) == (False, seen + int(TTL_S * 1000) // RENEWALS_PER_CLAIM)
        (saved,) = (effect for effect in seed.tick(START_S) if isinstance(effect, Save))
        assert saved.rows == (("usery", None),)


class TestSeeds:
    def test_a_seed_that_does_not_come_back_is_forgotten(self) -> None:
        """After a month nothing is left of it, anywhere, for good: whoever still tells of it is not listened to."""
        mesh = months("seedA", "seedB", "seedC")
        Client(mesh, "seedC").register("UserX")
        mesh.advance(SETTLED_S)
        mesh.stop("seedC")
        digest = mesh["seedA"].seed.gossip.digest()
        mesh.advance(TTL_S - 2 * SETTLED_S)
        assert "seedC" in mesh["seedA"].seed.peering.addresses
        mesh.advance(3 * SETTLED_S)
        for name in ("seedA", "seedB"):
            seed = mesh[name].seed
            assert [view.name for view in seed.picture(mesh.now)] == sorted(["seedA", "seedB"], key=name.__ne__)
            assert len(seed.directory) == 0
            seed.gossip.heard(digest, mesh.now - TTL_S)
            assert "seedC" not in seed.gossip.spaces
        mesh.start("seedC")
        mesh.advance(SETTLED_S)
        assert len(mesh["seedA"].seed.picture(mesh.now)) == 3

    def test_what_a_newcomer_hears_of_the_dead(self) -> None:
        """A heartbeat that was never heard before may be an old one: nobody is alive for that."""
        mesh = months("seedA", "seedB", "seedC")
        Client(mesh, "seedC").register("UserX")
        mesh.advance(SETTLED_S)
        mesh.stop("seedC")
        mesh.advance(60.0)
        mesh.stop("seedB")
        mesh.start("seedB")
        mesh.advance(0.5)
        assert [(view.name, view.alive) for view in mesh["seedB"].seed.picture(mesh.now)] == [
            ("seedB", True),
            ("seedA", True),
            ("seedC", False),
        ]
        assert not Client(mesh, "seedB").lookup("UserX").online

    def test_two_with_one_name(self) -> None:
        """Or a clock that was set back: it is said in the log, once for each time."""
        mine = peering()
        told = {"seedA": Summary(NOW_MS + 1, 5, 5)}
        _, effects = mine.hear(told, [], START_S, teller="seedB", pushed=False)
        assert [str(effect) for effect in effects if "two have this name" in str(effect)] == list(map(str, effects))
        assert len(effects) == 1
        assert mine.hear(told, [], START_S, teller="seedB", pushed=False) == ([], [])


class TestExchanges:
    def test_an_exchange_that_gets_nowhere_ends(self) -> None:
        """Whoever promises more and tells nothing, or does not take what it is told, is asked again with the next
        round, not at once."""
        mine = peering()
        mine.gossip.put("userx", b"1")
        promise = GossipResult({"seedB": Summary(NOW_MS, 1, 0)}, [], True)
        assert len(mine.exchanged("b:1", promise, START_S)) == 1
        for _ in range(2):
            assert mine.exchanged("c:1", promise, START_S) != []
            assert mine.exchanged("c:1", promise, START_S) == []

    def test_an_exchange_that_gets_ahead_goes_on(self) -> None:
        """On either side."""
        mine = peering()
        for at in range(3):
            mine.gossip.put(f"k{at}", b"1")
        for version in range(3):
            taken = GossipResult({"seedA": Summary(NOW_MS, 0, version)}, [], False)
            (effect,) = mine.exchanged("b:1", taken, START_S)
            assert isinstance(effect, Exchange)
        assert mine.exchanged("b:1", GossipResult({"seedA": mine.gossip.own.summary}, [], False), START_S) == []
        mine.hear({"seedB": Summary(NOW_MS, 1, 3)}, [], START_S, teller="seedB", pushed=False)
        for upto in (1, 2):
            cell = Cell("x", upto, Raw(b"1"))
            mine.hear({}, [Delta("seedB", NOW_MS, upto - 1, upto, 3, 0, [cell])], START_S, teller="seedB", pushed=False)
            promise = GossipResult({"seedA": mine.gossip.own.summary}, [], True)
            assert len(mine.exchanged("c:1", promise, START_S)) == 1

    @pytest.mark.parametrize("passed_on", [True, False])
    def test_what_is_passed_on_fits_in_a_line(self, passed_on: bool) -> None:
        """News that came in a full line is left to the rounds: beside an own summary it might not fit."""
        mine = peering()
        facts = Cell(FACTS_KEY, 1, Raw(encode_value(SeedFacts("b:1"))))
        mine.hear(
            {"seedB": Summary(NOW_MS, 1, 1)},
            [Delta("seedB", NOW_MS, 0, 1, 1, 0, [facts])],
            START_S,
            teller="seedB",
            pushed=False,
        )
        value = Raw(b'"' + b"x" * (CELL_BYTES_MAX - 2) + b'"')
        count = RELAY_BYTES_MAX // CELL_BYTES_MAX - passed_on
        cells = [Cell(f"k{at}", 2 + at, value) for at in range(count)]
        news = Delta("seedB", NOW_MS, 1, 1 + count, 1 + count, 0, cells)
        mine.hear({}, [news], START_S, teller="seedB", pushed=True)
        pushes = [effect for effect in mine.tick(START_S + 0.5) if "Push" in type(effect).__name__]
        assert bool(pushes) is passed_on


def peering() -> Peering:
    return Peering("seedA", "a:1", now=START_S, rng=random.Random(1), bootstrap=[], forget_s=CLAIM_TTL_S)


def lonely(**fields: object) -> Seed:
    rng = random.Random(1)
    return Seed("seedA", "a:1", now=START_S, rng=rng, entropy=rng.randbytes, **fields)  # type: ignore[arg-type]
