"""A seed as time goes by: presence, restarts, rounds."""

import random
from itertools import pairwise

import pytest

from meshproto.core.directory import CLAIM_TTL_S
from meshproto.core.effects import Exchange, Save
from meshproto.core.peering import GOSSIP_INTERVAL_S, GOSSIP_PEERS, PUSH_DELAY_S, REDIAL_DEAD_S, SILENT_PEERS
from meshproto.core.registry import SWEEP_HOLD_S, SWEEP_NAMES
from meshproto.core.seed import LEASE_S, Seed, Settings
from meshproto.errors import BadState
from meshproto.wire import EntryValue, NameParams, Nothing, WatchParams
from tests.core.seed_mesh import START_S, Client, SeedMesh
from tests.core.users import signed, value_of

NOW_MS = int(START_S * 1000)
JITTER_MAX = 1.2


@pytest.fixture(params=["own", "shared"])
def mesh(request: pytest.FixtureRequest) -> SeedMesh:
    """A seed, whichever kind of directory it has."""
    return SeedMesh("seedA", sharing=["seedA"] if request.param == "shared" else [])


@pytest.fixture
def client(mesh: SeedMesh) -> Client:
    client = Client(mesh, "seedA")
    client.register("UserX")
    return client


@pytest.fixture
def other(mesh: SeedMesh) -> Client:
    return Client(mesh, "seedA")


class TestPresence:
    def test_a_lease_runs_out(self, mesh: SeedMesh, client: Client, other: Client) -> None:
        """A silent link's users are online to the last moment of the lease, and away from its end on."""
        mesh.advance(LEASE_S - 0.001)
        assert other.lookup("UserX").online
        mesh.advance(0.001)
        found = other.lookup("UserX")
        assert (found.online, found.seen) == (False, NOW_MS + int(LEASE_S * 1000))
        assert not mesh.kept("seedA", "userx").online

    @pytest.mark.parametrize(
        ("method", "params"),
        [("ping", Nothing()), ("lookup", NameParams("nobody")), ("names", Nothing()), ("register", signed("Y", 1))],
        ids=["ping", "lookup", "names", "register"],
    )
    def test_any_line_renews_the_lease(
        self, mesh: SeedMesh, client: Client, other: Client, method: str, params: NameParams
    ) -> None:
        """Whatever a link says, also what is refused, its users are there."""
        mesh.advance(LEASE_S - 1.0)
        client.say(method, params)
        mesh.advance(LEASE_S - 0.001)
        assert other.lookup("UserX").online
        mesh.advance(0.001)
        assert not other.lookup("UserX").online

    def test_back_with_the_next_line(self, mesh: SeedMesh, client: Client, other: Client) -> None:
        """A link that was silent for too long needs only to say something; those who watch hear of it."""
        other.call("watch", WatchParams(["UserX"]), Nothing)
        mesh.advance(2 * LEASE_S)
        client.tell("ping", Nothing())
        online = [told.entry.online for told in other.told() if told.entry]
        assert online == [False, True]
        assert other.lookup("UserX").online
        assert mesh.kept("seedA", "userx").online

    def test_only_a_change_is_written(self, mesh: SeedMesh, client: Client) -> None:
        """A renewed lease costs no write."""
        version = mesh["seedA"].seed.gossip.own.version
        for _ in range(10):
            mesh.advance(LEASE_S / 3)
            client.call("ping", Nothing(), Nothing)
        assert mesh.writes("seedA") == 1
        assert mesh["seedA"].seed.gossip.own.version == version

    def test_all_users_of_a_link_go_together(self, mesh: SeedMesh, client: Client, other: Client) -> None:
        """A link that closes takes all of its users away, onto a disk in one write, and no others."""
        client.register("UserY")
        other.register("UserZ")
        client.close()
        assert [other.lookup(name).online for name in ("UserX", "UserY", "UserZ")] == [False, False, True]
        if not mesh.sharing:
            assert [key for key, _ in mesh["seedA"].saves[-1].rows] == ["userx", "usery"]

    def test_a_link_without_users_leaves_no_trace(self, mesh: SeedMesh, other: Client) -> None:
        """Closing a link that registered nobody has no effects."""
        assert mesh["seedA"].seed.closed(other.link, mesh.now) == []

    @pytest.mark.parametrize("how", ["closes", "falls silent"])
    def test_a_second_link_takes_over(self, mesh: SeedMesh, client: Client, other: Client, how: str) -> None:
        """A user who came back over a new link stays online whatever becomes of the old one."""
        other.register("UserX", 2)
        if how == "closes":
            client.close()
        for _ in range(4):
            mesh.advance(LEASE_S / 2)
            other.call("ping", Nothing(), Nothing)
        assert other.lookup("UserX").online

    def test_the_old_link_does_not_speak_for_the_user(self, mesh: SeedMesh, client: Client, other: Client) -> None:
        """After a second link took over and closed, a line over the first one brings nobody back."""
        other.register("UserX", 2)
        other.close()
        client.call("ping", Nothing(), Nothing)
        mesh.advance(LEASE_S)
        client.call("ping", Nothing(), Nothing)
        assert not client.lookup("UserX").online

    def test_leases_run_out_in_order(self, mesh: SeedMesh, client: Client, other: Client) -> None:
        """Each link has its own deadline, also when it was renewed in between."""
        mesh.advance(1.0)
        other.register("UserY")
        mesh.advance(1.0)
        client.call("ping", Nothing(), Nothing)
        asking = Client(mesh, "seedA")
        mesh.advance(LEASE_S - 1.0)
        assert [asking.lookup(name).online for name in ("UserX", "UserY")] == [True, False]
        mesh.advance(1.0)
        assert not asking.lookup("UserX").online


class TestRestart:
    def test_entries_come_back_away(self, mesh: SeedMesh, client: Client) -> None:
        """After a crash a registered user is known, as away and seen until now, and owns the name still."""
        mesh.advance(10.0)
        mesh.stop("seedA")
        mesh.advance(10.0)
        mesh.start("seedA")
        asking = Client(mesh, "seedA")
        found = asking.lookup("UserX")
        assert (found.online, found.seen, found.since) == (False, NOW_MS + 20_000, NOW_MS)
        assert asking.refused("register", signed("UserX", 1, owner=2)).code == 409
        assert asking.register("UserX", 2).since == NOW_MS

    def test_who_was_away_stays_seen_when_they_were(self, mesh: SeedMesh, client: Client) -> None:
        """A restart does not make a user seen who was away before."""
        client.close()
        mesh.advance(10.0)
        mesh.stop("seedA")
        mesh.start("seedA")
        assert Client(mesh, "seedA").lookup("UserX").seen == NOW_MS

    def test_who_left_stays_away(self, mesh: SeedMesh, client: Client) -> None:
        """An unregistered user is not found after a restart either, and an old record is refused."""
        client.unregister("UserX", 2)
        mesh.stop("seedA")
        mesh.start("seedA")
        asking = Client(mesh, "seedA")
        assert not asking.knows("UserX")
        assert asking.refused("register", signed("UserX", 1)).message == "stale record"

    def test_a_row_that_does_not_read(self) -> None:
        """A damaged row on disk is an error at start, not a seed that has forgotten claims."""
        other = EntryValue(signed("UserY", 1).record, signed("UserY", 1).sig, 0, True, 0)
        with pytest.raises(BadState, match=r"the entry of userx is damaged \(it holds a record of UserY"):
            lonely_with(other)
        with pytest.raises(BadState, match="the entry of userx is damaged"):
            Seed(
                "seedA",
                "seedA:5001",
                now=START_S,
                rng=random.Random(1),
                entropy=random.Random(1).randbytes,
                entries=[("userx", EntryValue("{}", "", 0, True, 0))],
            )


def lonely_with(value: EntryValue) -> Seed:
    rng = random.Random(1)
    return Seed("seedA", "seedA:5001", now=START_S, rng=rng, entropy=rng.randbytes, entries=[("userx", value)])


def lonely(*peers: str) -> Seed:
    rng = random.Random(1)
    return Seed("seedA", "seedA:5001", now=START_S, rng=rng, entropy=rng.randbytes, peers=peers)


class TestRounds:
    def test_wakes_for_the_next_round(self) -> None:
        """A seed wants to be woken about each second, and does nothing before that."""
        seed, now = lonely(), START_S
        for _ in range(20):
            assert 0 <= seed.wake_at - now <= JITTER_MAX * GOSSIP_INTERVAL_S
            assert seed.tick(seed.wake_at - 0.001) == []
            now = seed.wake_at
            heartbeat = seed.gossip.own.heartbeat
            seed.tick(now)
            assert heartbeat < seed.gossip.own.heartbeat <= heartbeat + 2

    def test_wakes_for_leases_and_pushes(self, mesh: SeedMesh, client: Client) -> None:
        """Whatever is due first is when a seed wants to be woken."""
        seed = mesh["seedA"].seed
        mesh.advance(5 * GOSSIP_INTERVAL_S)
        client.register("UserX", 2)
        if not mesh.sharing:  # else nobody has to be told by gossip
            assert seed.wake_at <= mesh.now + PUSH_DELAY_S
        mesh.advance(LEASE_S - 0.2)
        assert seed.wake_at <= mesh.now + 0.2

    def test_a_seed_does_not_dial_itself(self) -> None:
        """Its own address among the bootstrap ones is left out."""
        assert not any(isinstance(effect, Exchange) for effect in lonely("seedA:5001").tick(START_S))

    def test_bootstrap_addresses_are_tried_for_ever(self) -> None:
        """Who does not answer is tried again about every REDIAL_DEAD_S, however often it did not."""
        seed, now = lonely("lost:5001"), START_S
        dialled = []
        while now < START_S + 600.0:
            now = seed.wake_at
            for effect in seed.tick(now):
                assert isinstance(effect, Exchange)
                dialled.append(now)
                assert seed.unreachable(effect.address, now) == []
        waits_s = [later - earlier for earlier, later in pairwise(dialled)]
        assert min(waits_s) >= 0.75 * REDIAL_DEAD_S
        assert max(waits_s) <= 1.25 * REDIAL_DEAD_S + JITTER_MAX * GOSSIP_INTERVAL_S

    def test_peers_asked_each_round(self) -> None:
        """GOSSIP_PEERS live peers and SILENT_PEERS silent addresses at most are asked in one round."""
        names = [f"seed{at}" for at in range(GOSSIP_PEERS + 5)]
        mesh = SeedMesh(*names)
        mesh.advance(10.0)
        seed = mesh["seed0"].seed
        mesh.stop("seed1")
        asked = [len(seed.tick(seed.wake_at)) for _ in range(5)]
        assert set(asked) == {GOSSIP_PEERS}
        seed.gossip.beat(seed.wake_at)
        while seed.peering.liveness.alive("seed1", seed.wake_at):
            seed.tick(seed.wake_at)
        assert max(len(seed.tick(seed.wake_at)) for _ in range(10)) <= GOSSIP_PEERS + SILENT_PEERS

    def test_a_clock_that_is_set_back(self) -> None:
        """What was planned for a time that is now far off is done at once, and what waited is tried again."""
        seed, now = lonely("lost:5001"), START_S
        for _ in range(5):
            now = seed.wake_at
            for effect in seed.tick(now):
                assert isinstance(effect, Exchange)
                seed.unreachable(effect.address, now)
        heartbeat = seed.gossip.own.heartbeat
        back = now - 3600.0
        assert [type(effect) for effect in seed.tick(back)] == [Exchange]
        assert seed.gossip.own.heartbeat == heartbeat + 1
        assert seed.wake_at <= back + JITTER_MAX * GOSSIP_INTERVAL_S

    def test_a_clock_that_is_wrong_for_a_moment(self) -> None:
        """Nobody's claim is let go of at once after a start, nor after a jump of the clock."""
        seed = lonely_with(value_of(signed("UserX", 1), online=False, seen=int(START_S * 1000)))
        for ahead_s in (0.0, 1.0, 2 * CLAIM_TTL_S, 2.0, 3.0):
            seed.tick(START_S + ahead_s)
        assert seed.directory.at_home("userx", "seedA") is not None

    def test_a_sweep_looks_at_so_many_names(self) -> None:
        """Claims that ran out are let go of SWEEP_NAMES at a time, from the disk and for everybody."""
        entries = [(f"u{at:04}", value_of(signed(f"u{at:04}", 1), online=False)) for at in range(SWEEP_NAMES + 1)]
        seed = Seed(
            "seedA",
            "seedA:5001",
            now=START_S,
            rng=random.Random(1),
            entropy=random.Random(1).randbytes,
            settings=Settings(claim_ttl_s=60.0),
            entries=entries,
        )
        swept = []
        for _ in range(int(SWEEP_HOLD_S / 0.8)):
            swept += [len(effect.rows) for effect in seed.tick(seed.wake_at) if isinstance(effect, Save)]
        assert swept == [SWEEP_NAMES, 1]
        assert len(seed.directory) == 0
