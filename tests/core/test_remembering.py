"""What seeds remember, and for how long: of users who are here for months, of homes that never come back, of seeds."""

import random

import pytest
from msgspec import Raw

from meshproto.core.directory import CLAIM_TTL_S
from meshproto.core.effects import Exchange, Save
from meshproto.core.gossip import CLOCK_AHEAD_S
from meshproto.core.peering import FACTS_KEY, RELAY_BYTES_MAX, Peering
from meshproto.core.registry import RENEWALS_PER_CLAIM
from meshproto.core.seed import Seed, Settings
from meshproto.wire import (
    CELL_BYTES_MAX,
    GOSSIP_SEEDS_MAX,
    LINE_BYTES_MAX,
    Cell,
    Delta,
    GossipParams,
    GossipResult,
    SeedFacts,
    Summary,
    encode_request,
    encode_result,
    encode_value,
)
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
        seen = NOW_MS - int(TTL_S * 500)
        entries = [("userx", value_of(signed("UserX", 1), seen=seen)), ("usery", value_of(signed("UserY", 1), seen=0))]
        seed = lonely(entries=entries, settings=Settings(claim_ttl_s=TTL_S))
        found = seed.directory.at_home("userx", "seedA")
        assert found is not None
        assert (found.online, found.seen) == (False, seen + int(TTL_S * 1000) // RENEWALS_PER_CLAIM)
        ticks = [effect for _ in range(80) for effect in seed.tick(seed.wake_at)]
        (saved,) = (effect for effect in ticks if isinstance(effect, Save))
        assert saved.rows == (("usery", None),)

    def test_a_farewell_outlives_the_entry_that_it_speaks_against(self) -> None:
        """A home that went down when its user was there counts them as seen for a while longer: so long the farewell
        stays."""
        mesh = months("seedA", "seedB", "seedC")
        Client(mesh, "seedC").register("UserX")
        mesh.advance(SETTLED_S / 2)
        mesh.stop("seedC")
        mesh.advance(SETTLED_S / 2)
        Client(mesh, "seedA").unregister("UserX")
        mesh.advance(TTL_S + SETTLED_S)
        Client(mesh, "seedB").register("UserX", 1, owner=2)
        mesh.advance(SETTLED_S)
        mesh.start("seedC")
        mesh.advance(SETTLED_S)
        assert {Client(mesh, name).lookup("UserX").signed for name in mesh.hosts} == {signed("UserX", 1, owner=2)}


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

    def test_how_far_a_seed_has_written_it_knows_best(self) -> None:
        """What others claim of that is over when it says so itself."""
        mine = peering()
        for version, teller in ((1, "seedB"), (9_000_000_000, "seedC"), (1, "seedB")):
            mine.hear({"seedB": Summary(NOW_MS, 1, version)}, [], START_S, teller=teller, pushed=False)
        assert mine.gossip.spaces["seedB"].head == 1

    def test_who_answers_with_this_seeds_name(self) -> None:
        """It is still dialled: it is another, set up wrongly, or lies."""
        mine = Peering("seedA", "a:1", now=START_S, rng=random.Random(1), bootstrap=["b:1"], forget_s=CLAIM_TTL_S)
        mine.greeted("b:1", "seedA")
        dialled = [effect.address for effect in mine.tick(START_S) if isinstance(effect, Exchange)]
        assert dialled == ["b:1"]

    def test_who_claims_anothers_address(self) -> None:
        """A seed that lives keeps it: its death is seen at once, although another had said to be there too."""
        mine = peering()
        for name in ("seedB", "thief"):
            facts = Cell(FACTS_KEY, 1, Raw(encode_value(SeedFacts("b:1"))))
            delta = Delta(name, NOW_MS, 0, 1, 1, 0, [facts])
            mine.hear({name: Summary(NOW_MS, 1, 1)}, [delta], START_S, teller=name, pushed=False)
        facts = Cell(FACTS_KEY, 2, Raw(encode_value(SeedFacts("t:1"))))
        mine.hear({}, [Delta("thief", NOW_MS, 1, 2, 2, 0, [facts])], START_S, teller="thief", pushed=False)
        assert (mine.name_at("b:1"), mine.name_at("t:1")) == ("seedB", "thief")
        mine.unreachable("b:1", START_S, refused=True)
        assert not mine.alive("seedB", START_S)

    def test_two_with_one_name(self) -> None:
        """Or a clock that was set back: it is said in the log, once for each time."""
        mine = peering()
        told = {"seedA": Summary(NOW_MS + 1, 5, 5)}
        _, effects = mine.hear(told, [], START_S, teller="seedB", pushed=False)
        assert [str(effect) for effect in effects if "two have this name" in str(effect)] == list(map(str, effects))
        assert len(effects) == 1
        assert mine.hear(told, [], START_S, teller="seedB", pushed=False) == ([], [])

    def test_a_seed_that_was_renamed(self) -> None:
        """When the old name is forgotten the address is still known to be the new one's."""
        mine = peering()
        for name, now in (("old", START_S), ("new", START_S + CLAIM_TTL_S)):
            generation = int(now * 1000)
            facts = Cell(FACTS_KEY, 1, Raw(encode_value(SeedFacts("s:1"))))
            delta = Delta(name, generation, 0, 1, 1, 0, [facts])
            mine.hear({name: Summary(generation, 1, 1)}, [delta], now, teller=name, pushed=False)
        mine.forget(START_S + CLAIM_TTL_S + 10.0)
        assert (mine.name_at("s:1"), list(mine.addresses)) == ("new", ["new"])

    def test_a_seed_whose_clock_is_wrong(self) -> None:
        """Nothing that it says is believed, and the log says why, once; when the clock is right all is well."""
        mine = peering()
        logs = []
        for ahead_s in (2 * CLOCK_AHEAD_S, 2 * CLOCK_AHEAD_S, 0.0, -2 * CLAIM_TTL_S):
            told = {"seedB": Summary(int((START_S + ahead_s) * 1000), 1, 1)}
            logs.append(len(mine.hear(told, [], START_S, teller="seedB", pushed=False)[1]))
        assert logs == [1, 0, 0, 1]

    def test_a_delta_of_another_life_is_not_believed(self) -> None:
        """Only a digest tells of a new life, where it is looked at whether that can be: a delta with a number from the
        future would make the seed unheard for good."""
        mine = peering()
        mine.hear({"seedB": Summary(NOW_MS, 1, 1)}, [], START_S, teller="seedB", pushed=False)
        lie = Delta("seedB", 2**53, 0, 1, 1, 0, [Cell("x", 1, Raw(b"1"))])
        assert mine.hear({}, [lie], START_S, teller="seedC", pushed=True) == ([], [])
        assert mine.gossip.digest()["seedB"].generation == NOW_MS

    def test_a_value_that_is_too_large_is_logged_once(self) -> None:
        """It comes again with every exchange."""
        mine = peering()
        value = Raw(b'"' + b"x" * CELL_BYTES_MAX + b'"')
        delta = Delta("seedB", NOW_MS, 0, 1, 1, 0, [Cell("x", 1, value)])
        told = {"seedB": Summary(NOW_MS, 1, 1)}
        logs = [len(mine.hear(told, [delta], START_S, teller="seedB", pushed=False)[1]) for _ in range(3)]
        assert logs == [1, 0, 0]

    def test_who_asks_and_is_not_taken_up_is_not_remembered(self) -> None:
        """Names are cheap: anybody may say hello under many."""
        mine = peering()
        for at in range(10):
            mine.answer(f"stranger{at}", {}, START_S)
        assert not mine._asked


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
        for claimed in range(5, 7):
            empty = GossipResult({"seedC": Summary(NOW_MS, 0, claimed)}, [], True)
            assert len(mine.exchanged("d:1", empty, START_S)) == (claimed == 5), "a claim alone is no progress"
        mine.hear({"seedB": Summary(NOW_MS, 1, 3)}, [], START_S, teller="seedB", pushed=False)
        for upto in (1, 2):
            cell = Cell("x", upto, Raw(b"1"))
            mine.hear({}, [Delta("seedB", NOW_MS, upto - 1, upto, 3, 0, [cell])], START_S, teller="seedB", pushed=False)
            promise = GossipResult({"seedA": mine.gossip.own.summary}, [], True)
            assert len(mine.exchanged("c:1", promise, START_S)) == 1

    def test_a_large_value_does_not_hold_up_the_rest(self) -> None:
        """What comes beside it is taken, and the next delta goes on."""
        mine = peering()
        large = Raw(b'"' + b"x" * CELL_BYTES_MAX + b'"')
        delta = Delta("seedB", NOW_MS, 0, 2, 2, 0, [Cell("a", 1, large), Cell("b", 2, Raw(b"1"))])
        changes, _ = mine.hear({"seedB": Summary(NOW_MS, 1, 2)}, [delta], START_S, teller="seedB", pushed=False)
        assert [change.key for change in changes] == ["b"]
        assert mine.gossip.spaces["seedB"].version == 2

    def test_the_largest_digest_and_the_largest_cell_fit_in_a_line(self) -> None:
        """Whatever numbers a seed tells that the codec takes."""
        mine = peering()
        told = Summary(10**13 - 1, 0, 10**10 - 1, 10**10 - 1)
        mine.gossip.heard({f"s{at:04}": told for at in range(GOSSIP_SEEDS_MAX)})
        for space in mine.gossip.spaces.values():
            if space is not mine.gossip.own:
                space.heartbeat = space.version = space.collected = 10**10 - 1
        mine.gossip._touched.update(mine.gossip.spaces)
        mine.gossip.put("x" * 64, b'"' + b"x" * (CELL_BYTES_MAX - 2) + b'"')
        answer = mine.answer("seedB", {}, START_S)
        assert answer.delta
        assert len(encode_result(2**53, answer)) <= LINE_BYTES_MAX
        assert len(encode_request("gossip", GossipParams(answer.digest, answer.delta), 2**53)) <= LINE_BYTES_MAX

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
