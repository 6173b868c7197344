"""Seeds among themselves: what one knows, all come to know; and whom they believe."""

import pytest
from msgspec import Raw

from meshproto.core.gossip import TOMBSTONE_GRACE_S
from meshproto.core.peering import FACTS_KEY, PUSH_DELAY_S, PUSH_PEERS
from meshproto.core.seed import LEASE_S
from meshproto.wire import (
    GOSSIP_SEEDS_MAX,
    Cell,
    Delta,
    GossipParams,
    GossipResult,
    HelloParams,
    HelloResult,
    Nothing,
    SeedFacts,
    SeedInfo,
    SeedsResult,
    SignedRecord,
    Summary,
    WatchParams,
    encode_value,
)
from tests.core.seed_mesh import START_S, Client, SeedMesh
from tests.core.users import forged, signed, user, value_of

NAMES = [f"seed{letter}" for letter in "ABCDE"]
NOW_MS = int(START_S * 1000)
SETTLED_S = 10.0
DEAD_S = 60.0


@pytest.fixture
def mesh() -> SeedMesh:
    mesh = SeedMesh(*NAMES)
    mesh.advance(SETTLED_S)
    return mesh


def homes(mesh: SeedMesh, name: str) -> dict[str, str | None]:
    """What each running seed says where the user is."""
    now_ms = int(mesh.now * 1000)
    found = {host.name: host.seed.directory.best(name, now_ms) for host in mesh.hosts.values() if host.core}
    return {seed: entry.home if entry else None for seed, entry in found.items()}


class Stranger:
    """A seed played by the test: it may say anything."""

    def __init__(self, mesh: SeedMesh, at: str) -> None:
        self._client = Client(mesh, at)
        self._client.call("hello", HelloParams(1, "seed", "stranger"), HelloResult)
        self._version = 0

    def says(self, **cells: bytes) -> GossipResult:
        """Writes to its key space, and pushes them."""
        base = self._version
        written = []
        for key, value in cells.items():
            self._version += 1
            written.append(Cell(key, self._version, Raw(value)))
        summary = Summary(NOW_MS, self._version, self._version)
        delta = Delta("stranger", NOW_MS, base, self._version, self._version, 0, written)
        return self._client.call("gossip", GossipParams({"stranger": summary}, [delta]), GossipResult)

    def claims(self, record: SignedRecord, *, since: int = 0, key: str = "userx") -> None:
        self.says(**{key: encode_value(value_of(record, since=since, seen=NOW_MS))})


class TestConvergence:
    def test_all_seeds_meet(self, mesh: SeedMesh) -> None:
        """From one bootstrap address all come to know all, alive and where they listen."""
        for host in mesh.hosts.values():
            assert [(info.name, info.address, info.alive) for info in sorted_infos(mesh, host.name)] == [
                (name, f"{name}:5001", True) for name in NAMES
            ]
            assert host.peers == {f"{name}:5001" for name in NAMES} - {host.address}

    def test_every_seed_answers_every_lookup(self, mesh: SeedMesh) -> None:
        """Users registered here and there are found everywhere, with the same answer."""
        clients = [Client(mesh, name) for name in NAMES]
        for at, client in enumerate(clients):
            client.register(f"User{at}")
        mesh.advance(SETTLED_S)
        for at in range(len(NAMES)):
            found = [client.lookup(f"User{at}") for client in clients]
            assert all(each == found[0] for each in found)
            assert (found[0].home, found[0].online) == (NAMES[at], True)

    def test_presence_is_known_everywhere(self, mesh: SeedMesh) -> None:
        """That a user is away travels too, to those who watch elsewhere."""
        client, watcher = Client(mesh, "seedA"), Client(mesh, "seedE")
        watcher.call("watch", WatchParams(["UserX"]), Nothing)
        client.register("UserX")
        mesh.advance(SETTLED_S)
        client.close()
        mesh.advance(SETTLED_S)
        assert [told.entry.online for told in watcher.told() if told.entry] == [True, False]

    def test_news_travels_at_once(self, mesh: SeedMesh) -> None:
        """A registration is pushed after PUSH_DELAY_S and passed on: nobody waits for a round."""
        mesh.advance(mesh["seedA"].seed.wake_at - mesh.now + 0.001)
        mesh.pushes.clear()
        client = Client(mesh, "seedA")
        client.register("UserX")
        client.register("UserY")
        mesh.advance(PUSH_DELAY_S - 0.001)
        assert not [push for name, push in mesh.pushes if name == "seedA"]
        mesh.advance(0.002)
        pushed = [push for name, push in mesh.pushes if name == "seedA"]
        assert len(pushed) == min(PUSH_PEERS, len(NAMES) - 1)
        assert {len(push.params.delta[0].cells) for push in pushed} == {2}
        assert set(homes(mesh, "UserX").values()) == {"seedA"}
        client.register("UserX", 2)
        mesh.advance(PUSH_DELAY_S + 0.001)
        assert [cell.key for cell in mesh.pushes[-1][1].params.delta[0].cells] == ["userx"]

    def test_a_push_reaches_so_many_peers(self) -> None:
        """PUSH_PEERS are told by one seed; those pass it on, until nobody learns anything new."""
        mesh = SeedMesh(*(f"seed{at}" for at in range(PUSH_PEERS + 6)))
        mesh.advance(SETTLED_S)
        mesh.pushes.clear()
        Client(mesh, "seed3").register("UserX")
        mesh.advance(PUSH_DELAY_S + 0.001)
        assert len([push for name, push in mesh.pushes if name == "seed3"]) == PUSH_PEERS
        mesh.advance(5 * PUSH_DELAY_S)
        assert set(homes(mesh, "UserX").values()) == {"seed3"}
        pushes = len(mesh.pushes)
        assert pushes <= PUSH_PEERS * len(mesh.hosts)
        mesh.advance(SETTLED_S)
        assert len(mesh.pushes) == pushes

    def test_a_split_heals(self, mesh: SeedMesh) -> None:
        """Two halves that could not reach each other know the same again when they can; what comes with the rounds is
        not pushed on."""
        mesh.cut = {frozenset((one, two)) for one in NAMES[:2] for two in NAMES[2:]}
        mesh.advance(DEAD_S)
        Client(mesh, "seedB").register("UserX")
        Client(mesh, "seedE").register("UserY")
        mesh.advance(SETTLED_S)
        assert set(homes(mesh, "UserX").values()) == {"seedB", None}
        mesh.cut.clear()
        mesh.pushes.clear()
        mesh.advance(SETTLED_S)
        assert mesh.pushes == []
        assert set(homes(mesh, "UserX").values()) == {"seedB"}
        assert set(homes(mesh, "UserY").values()) == {"seedE"}

    def test_many_users_within_lines(self, mesh: SeedMesh) -> None:
        """A newcomer reads more than one line holds, in lines that fit, before anything else happens."""
        for at in range(300):
            if at % 100 == 0:
                client = Client(mesh, "seedA")
            client.register(f"user{at:03}" + "x" * 50)
        mesh.stop("seedE")
        mesh.advance(DEAD_S)
        mesh.start("seedE")
        mesh.advance(1.0)
        assert len(mesh["seedE"].seed.directory) == 300

    def test_large_records_within_lines(self, mesh: SeedMesh) -> None:
        """Records of the largest size travel too, each in a line that fits."""
        uris = [f"http://h{at}.example:3000/" + "x" * 480 for at in range(8)]
        for number in range(1, 20):
            client = Client(mesh, "seedA" if number % 2 else "seedB")
            client.call("register", user(number).sign(f"user{number}", uris, 1), Raw)
        mesh.stop("seedE")
        mesh.start("seedE")
        mesh.advance(SETTLED_S)
        assert len(mesh["seedE"].seed.directory) == 19

    def test_as_many_seeds_as_there_may_be(self) -> None:
        """Seeds that know GOSSIP_SEEDS_MAX others still tell each other of users, in lines that fit, and come to an end
        although there is a stranger for whom they have no room."""
        mesh = SeedMesh("seedA", "seedB")
        mesh.advance(SETTLED_S)
        crowd = {f"crowd-{at:04}": Summary(NOW_MS, 1, 0) for at in range(GOSSIP_SEEDS_MAX)}
        for name in ("seedA", "seedB"):
            mesh[name].seed.gossip.heard(crowd)
        forgotten = next(seed for seed in mesh["seedA"].seed.gossip.spaces if seed.startswith("crowd"))
        mesh["seedA"].seed.gossip.forget(forgotten)
        Stranger(mesh, "seedA").claims(signed("UserX", 1))
        for at in range(100):
            Client(mesh, "seedA").register(f"user{at}")
        mesh.cut = {frozenset(("seedA", "seedB"))}
        mesh.advance(1.0)
        mesh.cut.clear()
        mesh.advance(SETTLED_S)
        assert "stranger" not in mesh["seedB"].seed.gossip.spaces
        assert len(mesh["seedB"].seed.directory) == 100
        assert len(mesh["seedA"].seed.directory) == 101


def sorted_infos(mesh: SeedMesh, name: str) -> list[SeedInfo]:
    return sorted(Client(mesh, name).call("seeds", Nothing(), SeedsResult).seeds, key=lambda info: info.name)


class TestDeath:
    def test_the_death_of_a_home_hides_nobody(self, mesh: SeedMesh) -> None:
        """Users of a dead seed are found, as away."""
        Client(mesh, "seedA").register("UserX")
        mesh.advance(SETTLED_S)
        mesh.stop("seedA")
        asking = Client(mesh, "seedB")
        assert asking.lookup("UserX").online
        mesh.advance(DEAD_S)
        assert not asking.lookup("UserX").online

    def test_a_restart_hides_nobody(self, mesh: SeedMesh) -> None:
        """While a restarted seed is read anew its users stay known, and afterwards too."""
        Client(mesh, "seedA").register("UserX")
        mesh.advance(SETTLED_S)
        mesh.stop("seedA")
        mesh.advance(1.0)
        mesh.start("seedA")
        for _ in range(100):
            mesh.advance(0.1)
            assert set(homes(mesh, "UserX").values()) == {"seedA"}
        assert mesh["seedB"].seed.peering.liveness.alive("seedA", mesh.now)

    def test_a_seed_that_lost_its_disk(self, mesh: SeedMesh) -> None:
        """What a restarted seed no longer knows is gone everywhere."""
        Client(mesh, "seedA").register("UserX")
        mesh.advance(SETTLED_S)
        mesh.stop("seedA")
        mesh["seedA"].disk.clear()
        mesh.advance(1.0)
        mesh.start("seedA")
        mesh.advance(SETTLED_S)
        assert set(homes(mesh, "UserX").values()) == {None}

    def test_a_clock_set_back(self, mesh: SeedMesh) -> None:
        """A seed that restarts with its clock a year back is heard again, and its users found."""
        mesh.stop("seedA")
        now, mesh.now = mesh.now, mesh.now - 365 * 86400.0
        mesh.start("seedA")
        mesh.now = now
        Client(mesh, "seedA").register("UserX")
        mesh.advance(SETTLED_S)
        assert set(homes(mesh, "UserX").values()) == {"seedA"}

    def test_beyond_the_grace(self, mesh: SeedMesh) -> None:
        """A seed that was cut off while a deletion came and went unlearns the name when it is back."""
        client = Client(mesh, "seedA")
        client.register("UserX")
        client.register("UserY")
        mesh.advance(SETTLED_S)
        mesh.cut = {frozenset(("seedE", name)) for name in NAMES[:4]}
        moved = Client(mesh, "seedB")
        moved.register("UserX", 2)
        mesh.advance(TOMBSTONE_GRACE_S + SETTLED_S)
        assert mesh["seedA"].seed.gossip.own.collected > 0
        mesh.cut.clear()
        mesh.advance(SETTLED_S)
        directory = mesh["seedE"].seed.directory
        assert directory.at_home("userx", "seedA") is None
        assert directory.at_home("usery", "seedA") is not None


class TestMoving:
    def test_a_user_who_moves_leaves_no_second_entry(self, mesh: SeedMesh) -> None:
        """Registered at another seed with a newer record, the former home lets go, on disk too; its link changes
        nothing when it closes."""
        before = Client(mesh, "seedA")
        since = before.register("UserX", 1).since
        mesh.advance(SETTLED_S)
        after = Client(mesh, "seedB")
        assert after.register("UserX", 2).since == since
        mesh.advance(SETTLED_S)
        before.call("ping", Nothing(), Nothing)
        before.close()
        mesh.advance(SETTLED_S)
        assert set(homes(mesh, "UserX").values()) == {"seedB"}
        for host in mesh.hosts.values():
            assert host.seed.directory.at_home("userx", "seedA") is None
            assert (host.seed.status(mesh.now).online, host.seed.directory.users_by_home["seedA"]) == (1, 0)
        assert (mesh["seedA"].disk, list(mesh["seedB"].disk)) == ({}, ["userx"])

    def test_there_and_back(self, mesh: SeedMesh) -> None:
        """A user may return to a former home."""
        for seq, name in enumerate(["seedA", "seedB", "seedA"], start=1):
            client = Client(mesh, name)
            client.register("UserX", seq)
            mesh.advance(1.0)
        assert set(homes(mesh, "UserX").values()) == {"seedA"}
        assert mesh["seedB"].disk == {}

    def test_leaving_at_another_seed(self, mesh: SeedMesh) -> None:
        """A user may unregister anywhere."""
        Client(mesh, "seedA").register("UserX")
        mesh.advance(SETTLED_S)
        Client(mesh, "seedC").unregister("UserX")
        mesh.advance(SETTLED_S)
        assert set(homes(mesh, "UserX").values()) == {None}

    def test_two_claims_after_a_split(self, mesh: SeedMesh) -> None:
        """Of two users who took a name on two sides of a split the earlier one has it, everywhere; the other cannot
        register again."""
        mesh.cut = {frozenset((one, two)) for one in NAMES[:2] for two in NAMES[2:]}
        Client(mesh, "seedC").register("UserX", owner=1)
        mesh.advance(1.0)
        loser = Client(mesh, "seedA")
        loser.register("UserX", owner=2)
        mesh.cut.clear()
        mesh.advance(LEASE_S / 2)
        assert set(homes(mesh, "UserX").values()) == {"seedC"}
        assert loser.refused("register", signed("UserX", 2, owner=2)).message == "name taken"


class TestDistrust:
    @pytest.mark.parametrize(
        "record",
        [signed("UserX", 9, owner=2), signed("UserX", 9), signed("UserX", 9, gone=True)],
        ids=["another owner", "newer", "gone"],
    )
    @pytest.mark.parametrize("at", ["seedA", "seedB"])
    def test_a_forged_record_is_dropped_when_first_served(self, mesh: SeedMesh, at: str, record: SignedRecord) -> None:
        """A seed cannot invent a fact about a user: neither at the user's home nor elsewhere does the true record
        give way to a forged one, which is dropped and logged."""
        home = Client(mesh, "seedA")
        home.register("UserX")
        mesh.advance(SETTLED_S)
        Stranger(mesh, at).claims(forged(record))
        asking = Client(mesh, at)
        found = asking.lookup("UserX")
        assert (found.signed, found.home, found.online) == (signed("UserX", 1), "seedA", True)
        expected = "dropped a record of userx that seed stranger passed on: its signature does not fit"
        assert mesh[at].logs == [expected]
        asking.lookup("UserX")
        assert mesh[at].logs == [expected]
        assert list(mesh["seedA"].disk) == ["userx"]

    @pytest.mark.parametrize("method", ["register", "unregister"])
    def test_a_forged_claim_keeps_nobody_out(self, mesh: SeedMesh, method: str) -> None:
        """The owner's request counts although a forged record says that the name is another's."""
        client = Client(mesh, "seedA")
        client.register("UserX")
        Stranger(mesh, "seedA").claims(forged(signed("UserX", 9, owner=2)))
        client.call(method, signed("UserX", 2, gone=method == "unregister"), Raw)

    def test_watchers_are_not_told_of_forged_records(self, mesh: SeedMesh) -> None:
        """What is forged is not passed on to users either."""
        watcher = Client(mesh, "seedB")
        watcher.call("watch", WatchParams(["UserX"]), Nothing)
        Stranger(mesh, "seedB").claims(forged(signed("UserX", 1)))
        assert [told.entry for told in watcher.told()] == [None]

    @pytest.mark.parametrize(
        "value",
        [
            b"7",
            b"{}",
            encode_value(value_of(SignedRecord("nonsense", ""))),
            encode_value(value_of(SignedRecord('{"x":' + "[" * 5000, ""))),
            encode_value(value_of(signed("Other", 1))),
        ],
        ids=["number", "empty", "no record", "deep", "another name"],
    )
    def test_values_that_are_no_entries_are_dropped(self, mesh: SeedMesh, value: bytes) -> None:
        """A cell that does not read is logged and dropped, and what came with it is taken; the one that this seed had
        said before is gone."""
        stranger = Stranger(mesh, "seedB")
        stranger.says(userx=encode_value(value_of(signed("UserX", 1), seen=NOW_MS)))
        stranger.says(userx=value, usery=encode_value(value_of(signed("UserY", 1), seen=NOW_MS)))
        asking = Client(mesh, "seedB")
        assert not asking.knows("UserX")
        assert asking.knows("UserY")
        (logged,) = mesh["seedB"].logs
        assert logged.startswith("dropped what seed stranger says of userx: ")

    def test_facts_that_do_not_read(self, mesh: SeedMesh) -> None:
        """A seed whose address does not read is logged and not dialled."""
        Stranger(mesh, "seedB").says(**{FACTS_KEY: b"7"})
        (logged,) = mesh["seedB"].logs
        assert logged.startswith("dropped what seed stranger says of itself: ")
        assert "stranger" not in [info.name for info in sorted_infos(mesh, "seedB")]

    def test_a_seed_at_ones_own_address(self, mesh: SeedMesh) -> None:
        """Another seed that gives this one's address is logged: one of the two is set up wrongly."""
        Stranger(mesh, "seedB").says(**{FACTS_KEY: encode_value(SeedFacts("seedB:5001"))})
        assert mesh["seedB"].logs == ["seed stranger says that it listens at this seed's own address seedB:5001"]

    def test_a_seed_that_moves_and_one_that_takes_its_facts_back(self, mesh: SeedMesh) -> None:
        """The last address counts; none, and the seed is not dialled."""
        stranger = Stranger(mesh, "seedB")
        for address in ("s:1", "s:2"):
            stranger.says(**{FACTS_KEY: encode_value(SeedFacts(address))})
        assert [info.address for info in sorted_infos(mesh, "seedB")][-1] == "s:2"
        stranger.says(**{FACTS_KEY: b"null"})
        assert len(sorted_infos(mesh, "seedB")) == len(NAMES)

    def test_nobody_writes_anothers_space_at_its_owner(self, mesh: SeedMesh) -> None:
        """What others say a seed has written is not believed by that seed."""
        client = Client(mesh, "seedB")
        client.call("hello", HelloParams(1, "seed", "stranger"), HelloResult)
        cell = Cell("userx", 1, Raw(encode_value(value_of(signed("UserX", 1)))))
        delta = Delta("seedB", 10**13 - 1, 0, 1, 1, 0, [cell])
        client.call("gossip", GossipParams({}, [delta]), GossipResult)
        assert not client.knows("UserX")
