"""What is different where seeds share a directory: they see each other's users at once, may be quicker than each other,
and outlive their store. That the rules are the same is shown by the tests of a seed, which run on both."""

import pytest
from msgspec import UNSET

from meshproto.core.names import TAKING_OVER_S
from meshproto.core.registry import RENEWALS_PER_CLAIM
from meshproto.core.seed import LEASE_S, Settings
from meshproto.core.shared import CARE_S, CONTESTED_NAMES_MAX, KNOWN_NAMES_MAX, TRIES_MAX
from meshproto.core.shared_rules import read_value
from meshproto.wire import ConflictParams, NameParams, Nothing, SeedsResult, WatchParams, decode_value, encode_request
from tests.core.seed_mesh import START_S, Client, SeedMesh
from tests.core.users import forged, key_of, signed, value_of

NOW_MS = int(START_S * 1000)
SITE = ("seedA", "seedB")


@pytest.fixture
def mesh() -> SeedMesh:
    """Two seeds that share a directory, and one with its own."""
    mesh = SeedMesh(*SITE, "seedE", sharing=SITE)
    mesh.advance(5)
    return mesh


def conflicts(client: Client) -> list[ConflictParams]:
    """What the client was told of names that it has lost."""
    lines = client.mesh[client.seed].lines[client.link]
    told = [line.params for line in lines if line.method == "conflict"]
    return [decode_value(params, ConflictParams) for params in told if params is not UNSET]


class TestTwoSeeds:
    def test_a_user_of_one_is_a_user_of_both(self, mesh: SeedMesh) -> None:
        """At once, with where they are; and nothing of it is gossiped."""
        Client(mesh, "seedA").register("UserX")
        found = Client(mesh, "seedB").lookup("userx")
        assert (found.home, found.online, found.since) == ("seedA", True, mesh.kept("seedA", "userx").since)
        mesh.advance(5)
        assert "userx" not in mesh["seedE"].seed.directory.entries

    def test_who_leaves_one_is_away_at_both(self, mesh: SeedMesh) -> None:
        user, other = Client(mesh, "seedA"), Client(mesh, "seedB")
        user.register("UserX")
        user.close()
        assert not other.lookup("UserX").online

    def test_those_who_watch_are_told_at_both(self, mesh: SeedMesh) -> None:
        """Of a registration, of going and of a farewell, each once."""
        watching = [Client(mesh, seed) for seed in SITE]
        for each in watching:
            each.call("watch", WatchParams(["userx"]), Nothing)
        user = Client(mesh, "seedA")
        user.register("UserX")
        user.close()
        Client(mesh, "seedB").unregister("UserX")
        for each in watching:
            assert [told.entry and told.entry.online for told in each.told()] == [True, False, None]
            each.close()
        Client(mesh, "seedB").register("UserX", 3)  # nobody minds any more

    def test_a_name_is_taken_at_both(self, mesh: SeedMesh) -> None:
        Client(mesh, "seedA").register("UserX", 5)
        other = Client(mesh, "seedB")
        assert other.refused("register", signed("userx", 9, owner=2)).message == "name taken"
        assert other.refused("register", signed("UserX", 4)).message == "stale record"
        assert other.refused("register", signed("UserX", 5)).message == "stale record"  # anybody can repeat it

    def test_a_user_moves(self, mesh: SeedMesh) -> None:
        """To another seed of the site, with the connection to the former one still open for a while: what becomes of
        that says nothing of them any more."""
        before, after = Client(mesh, "seedA"), Client(mesh, "seedB")
        before.register("UserX", 1)
        since = after.register("UserX", 2).since
        before.call("ping", Nothing(), Nothing)
        mesh.advance(CARE_S + 2)
        after.call("ping", Nothing(), Nothing)
        before.close()
        found = Client(mesh, "seedA").lookup("UserX")
        assert (found.home, found.online, found.since) == ("seedB", True, since) == ("seedB", True, NOW_MS + 5000)

    @pytest.mark.parametrize("how", ["it dies", "it is restarted"])
    def test_where_a_seed_was_nobody_is(self, mesh: SeedMesh, how: str) -> None:
        """Nobody has written that its users went; until they register again they are away, and were seen for as long as
        nobody can rule out."""
        Client(mesh, "seedA").register("UserX")
        mesh.advance(5)
        mesh.stop("seedA")
        if how == "it is restarted":
            mesh.start("seedA")
        mesh.advance(15)
        found = Client(mesh, "seedB").lookup("UserX")
        assert (found.online, found.seen) == (False, int(mesh.now * 1000))
        if how == "it is restarted":
            Client(mesh, "seedA").register("UserX", 2)
            assert Client(mesh, "seedB").lookup("UserX").online

    def test_who_is_there_is_seen(self) -> None:
        """A claim does not run out while its user is connected, and does when nobody has seen them."""
        ttl_s = 600.0
        mesh = SeedMesh(*SITE, sharing=SITE, settings=Settings(claim_ttl_s=ttl_s))
        user, other = Client(mesh, "seedA"), Client(mesh, "seedB")
        user.register("UserX")
        for _ in range(int(2 * ttl_s / LEASE_S) + 1):
            mesh.advance(LEASE_S - 1)
            user.call("ping", Nothing(), Nothing)
        assert other.lookup("UserX").since == NOW_MS
        user.close()
        mesh.advance(ttl_s - 1)
        assert other.refused("register", signed("UserX", 1, owner=2)).message == "name taken"
        mesh.advance(2)
        assert not other.knows("UserX")
        other.register("UserX", 1, owner=2)
        other.close()
        mesh.advance(ttl_s * (1 + 1 / RENEWALS_PER_CLAIM) + 1)
        assert mesh.store.read("userx") is None

    def test_seeds_tell_that_they_share(self, mesh: SeedMesh) -> None:
        """So that nobody has to ask each of them; a seed that shares no more says so."""
        for seed in SITE:
            mesh[seed].seed.peering.share("one")
        mesh.advance(3)
        told = Client(mesh, "seedE").call("seeds", Nothing(), SeedsResult).seeds
        assert {seed.name: seed.directory for seed in told} == {"seedA": "one", "seedB": "one", "seedE": UNSET}
        mesh.stop("seedA")
        mesh.sharing.remove("seedA")
        mesh.advance(1)
        mesh.start("seedA")
        mesh.advance(10)
        told = Client(mesh, "seedE").call("seeds", Nothing(), SeedsResult).seeds
        assert {seed.name: seed.directory for seed in told} == {"seedA": UNSET, "seedB": "one", "seedE": UNSET}


class TestRaces:
    def test_somebody_else_is_quicker(self, mesh: SeedMesh) -> None:
        """Two register one name at two seeds at once: one of them has it."""
        quick, slow = Client(mesh, "seedB"), Client(mesh, "seedA")
        mesh.store.before_swap = lambda: quick.tell("register", signed("UserX", 1, owner=2))
        assert slow.refused("register", signed("UserX", 1)).message == "name taken"
        assert Client(mesh, "seedA").lookup("UserX").signed == signed("UserX", 1, owner=2)
        mesh.store.before_swap = lambda: quick.tell("register", signed("UserY", 1, owner=2))
        slow.register("UserZ")

    def test_somebody_else_is_always_quicker(self, mesh: SeedMesh) -> None:
        """It is tried so often, then the user is asked to come again, and nothing was written."""
        other, tries = Client(mesh, "seedB"), []

        def quicker() -> None:
            tries.append(1)
            other.tell("register", signed("UserX", len(tries)))
            mesh.store.before_swap = quicker

        mesh.store.before_swap = quicker
        error = Client(mesh, "seedA").refused("register", signed("UserX", 1000))
        assert (error.code, error.data.retry_after, len(tries)) == (503, 1.0, TRIES_MAX)

    def test_the_connection_ends_before_the_store_answers(self, mesh: SeedMesh) -> None:
        """Who registers and is gone is away."""
        user = Client(mesh, "seedA")
        mesh.store.before_swap = user.close
        user.tell("register", signed("UserX", 1))
        assert not Client(mesh, "seedB").lookup("UserX").online


class TestTheStoreIsGone:
    def test_lookups_go_on(self, mesh: SeedMesh) -> None:
        """With what was known last, which is said; of others nothing is known, and nothing is claimed."""
        user, other = Client(mesh, "seedA"), Client(mesh, "seedB")
        user.register("UserX")
        user.register("UserY")
        before = other.lookup("UserX")
        mesh.store.gone = True
        found = other.lookup("UserX")
        assert (found.signed, found.stale, found.online) == (before.signed, True, False)
        error = other.refused("lookup", NameParams("UserY"))
        assert (error.code, error.data.retry_after) == (503, mesh.store.RETRY_S)
        mesh.store.gone = False
        assert other.lookup("UserX") == before

    def test_so_much_is_remembered(self, mesh: SeedMesh, monkeypatch: pytest.MonkeyPatch) -> None:
        """And what was not asked for longest is forgotten."""
        assert KNOWN_NAMES_MAX == 100_000
        monkeypatch.setattr("meshproto.core.shared.KNOWN_NAMES_MAX", 2)
        user, other = Client(mesh, "seedA"), Client(mesh, "seedB")
        for name in ("X", "Y", "Z"):
            user.register(name)
            other.lookup(name)
        mesh.store.gone = True
        assert other.refused("lookup", NameParams("X")).code == 503
        assert other.lookup("Y").stale and other.lookup("Z").stale

    def test_nobody_registers(self, mesh: SeedMesh) -> None:
        """Until it is back; who leaves meanwhile is away when the seed has looked after them."""
        mesh.store.gone = True
        assert Client(mesh, "seedA").refused("register", signed("UserX", 1)).code == 503
        mesh.store.gone = False
        assert not Client(mesh, "seedA").knows("UserX")

    def test_who_leaves_meanwhile(self, mesh: SeedMesh) -> None:
        """Is away when it is back, and who falls silent too, as soon as the seed has looked after them."""
        gone, silent, other = Client(mesh, "seedA"), Client(mesh, "seedA"), Client(mesh, "seedB")
        gone.register("UserX")
        silent.register("UserY", owner=2)
        mesh.store.gone = True
        gone.close()
        mesh.advance(LEASE_S + 1)
        mesh.store.gone = False
        mesh.advance(CARE_S + 2)
        assert [other.lookup(name).online for name in ("UserX", "UserY")] == [False, False]
        silent.call("ping", Nothing(), Nothing)
        assert other.lookup("UserY").online

    def test_what_changes_while_nobody_can_look(self, mesh: SeedMesh) -> None:
        """Those who watch are told later, once, and the log says once that they wait."""
        other = Client(mesh, "seedB")
        other.call("watch", WatchParams(["UserX"]), Nothing)
        names = mesh["seedB"].names
        assert names is not None
        mesh.store.gone = True
        for _ in range(3):
            mesh.carry_out(mesh["seedB"], names.changed("userx"))
            mesh.advance(1)
        assert other.told() == []
        assert len([line for line in mesh["seedB"].logs if "names wait" in line]) == 1
        mesh.store.gone = False
        mesh.advance(2)
        assert [told.entry for told in other.told()] == [None]

    def test_those_who_watch_are_told_when_it_is_back(self, mesh: SeedMesh) -> None:
        """What happened meanwhile was not heard."""
        user, other = Client(mesh, "seedA"), Client(mesh, "seedB")
        other.call("watch", WatchParams(["UserX"]), Nothing)
        mesh.store.deaf = True
        user.register("UserX")
        assert other.told() == []
        mesh.store.deaf = False
        names = mesh["seedB"].names
        assert names is not None
        mesh.carry_out(mesh["seedB"], names.resumed())
        assert [told.entry and told.entry.online for told in other.told()] == [True]


class TestWhatAFailOverLoses:
    def test_a_registration_is_written_again(self, mesh: SeedMesh) -> None:
        """With the same claim, within a while; at once when the store says that it was gone."""
        user, other = Client(mesh, "seedA"), Client(mesh, "seedB")
        before = mesh.store.copy()
        since = user.register("UserX").since
        mesh.store.values = before
        assert not other.knows("UserX")
        for _ in range(int(CARE_S / LEASE_S) + 1):
            mesh.advance(LEASE_S - 1)
            user.call("ping", Nothing(), Nothing)
        found = other.lookup("UserX")
        assert (found.since, found.home, found.online) == (since, "seedA", True)
        assert any("was lost" in line for line in mesh["seedA"].logs)
        mesh.store.values = before
        names = mesh["seedA"].names
        assert names is not None
        mesh.carry_out(mesh["seedA"], names.resumed())
        mesh.advance(2)
        assert other.knows("UserX")

    def test_somebody_else_took_the_name_meanwhile(self, mesh: SeedMesh) -> None:
        """The one who had it first has it, and the other is told so when their seed looks after them."""
        first, second = Client(mesh, "seedA"), Client(mesh, "seedB")
        before = mesh.store.copy()
        first.register("UserX")
        mesh.store.values = before
        mesh.advance(1)
        second.register("UserX", owner=2)
        for _ in range(int(2 * CARE_S / LEASE_S) + 2):
            mesh.advance(LEASE_S - 1)
            first.tell("ping", Nothing())
            second.tell("ping", Nothing())
        assert Client(mesh, "seedB").lookup("UserX").signed == signed("UserX", 1)
        assert conflicts(second) == [ConflictParams("UserX", key_of(1))]
        assert conflicts(first) == []

    def test_somebody_else_wants_the_name_at_the_same_seed(self, mesh: SeedMesh) -> None:
        """The seed knows whose it is, whatever the store has forgotten."""
        first, second = Client(mesh, "seedA"), Client(mesh, "seedA")
        before = mesh.store.copy()
        first.register("UserX")
        mesh.store.values = before
        assert second.refused("register", signed("UserX", 1, owner=2)).message == "name taken"
        first.close()
        assert second.refused("register", signed("UserX", 1, owner=2)).message == "name taken"

    def test_an_older_record_comes_back(self, mesh: SeedMesh) -> None:
        """The newer one is written again."""
        user = Client(mesh, "seedA")
        user.register("UserX", 1)
        before = mesh.store.copy()
        user.register("UserX", 2)
        mesh.store.values = before
        names = mesh["seedA"].names
        assert names is not None
        mesh.carry_out(mesh["seedA"], names.resumed())
        mesh.advance(2)
        assert Client(mesh, "seedB").lookup("UserX").signed == signed("UserX", 2)

    def test_a_damaged_value(self, mesh: SeedMesh) -> None:
        """Is no answer, and no reason to give the name away."""
        mesh.store.values["userx"] = (b"what is this?", START_S * 2)
        other = Client(mesh, "seedA")
        assert other.refused("lookup", NameParams("UserX")).code == 503
        assert other.refused("register", signed("UserX", 1)).code == 503


class TestMixedMesh:
    def test_what_others_gossip_is_known_here(self, mesh: SeedMesh) -> None:
        user = Client(mesh, "seedE")
        user.register("UserE")
        mesh.advance(1)
        found = Client(mesh, "seedA").lookup("UserE")
        assert (found.home, found.online) == ("seedE", True)
        assert Client(mesh, "seedA").refused("register", signed("UserE", 9, owner=2)).message == "name taken"

    def test_those_who_watch_hear_of_it(self, mesh: SeedMesh) -> None:
        other = Client(mesh, "seedA")
        other.call("watch", WatchParams(["UserE"]), Nothing)
        Client(mesh, "seedE").register("UserE")
        mesh.advance(1)
        assert [told.entry and told.entry.home for told in other.told()] == ["seedE"]

    def test_a_name_that_is_taken_here(self, mesh: SeedMesh) -> None:
        """A seed with its own directory cannot know it at first. It is told by gossip, and its user by it."""
        Client(mesh, "seedA").register("UserX")
        mesh.advance(1)
        late = Client(mesh, "seedE")
        late.register("UserX", owner=2)
        mesh.advance(3)
        for seed in ("seedA", "seedB", "seedE"):
            assert Client(mesh, seed).lookup("UserX").signed == signed("UserX", 1), seed
        assert conflicts(late) == [ConflictParams("UserX", key_of(1))]
        assert "userx" not in mesh["seedE"].disk
        assert Client(mesh, "seedE").refused("register", signed("UserX", 2, owner=2)).message == "name taken"

    def test_what_is_told_of_such_a_name_is_true(self, mesh: SeedMesh) -> None:
        """For as long as it is: its user moves, goes, and leaves."""
        Client(mesh, "seedE").register("UserX", 1)
        user = Client(mesh, "seedA")
        mesh.advance(1)
        user.register("UserX", 2)
        other = Client(mesh, "seedE")
        mesh.advance(5)
        assert (other.lookup("UserX").signed, other.lookup("UserX").online) == (signed("UserX", 2), True)
        again = Client(mesh, "seedB")
        again.register("UserX", 3)
        mesh.advance(1)
        assert other.lookup("UserX").signed == signed("UserX", 3)
        again.close()
        mesh.advance(1)
        assert not other.lookup("UserX").online
        Client(mesh, "seedA").unregister("UserX", 4)
        mesh.advance(1)
        assert not other.knows("UserX")

    def test_so_many_such_names(self, mesh: SeedMesh, monkeypatch: pytest.MonkeyPatch) -> None:
        """And no more, those for longest go."""
        assert CONTESTED_NAMES_MAX == 10_000
        monkeypatch.setattr("meshproto.core.shared.CONTESTED_NAMES_MAX", 2)
        for name in ("X", "Y", "Z"):
            Client(mesh, "seedE").register(name, 1)
            mesh.advance(1)
            Client(mesh, "seedA").register(name, 2)
            mesh.advance(3)
        assert [Client(mesh, "seedE").knows(name) for name in ("X", "Y", "Z")] == [False, True, True]

    def test_a_name_that_was_taken_there(self, mesh: SeedMesh) -> None:
        """Before this site had heard of it: the shared directory lets go, and its user is told."""
        mesh.cut = {frozenset((seed, "seedE")) for seed in SITE}
        Client(mesh, "seedE").register("UserX", owner=2)
        mesh.advance(1)
        late = Client(mesh, "seedA")
        late.register("UserX")
        mesh.cut.clear()
        for _ in range(int(CARE_S / LEASE_S) + 2):
            mesh.advance(LEASE_S - 1)
            late.tell("ping", Nothing())
        assert conflicts(late) == [ConflictParams("UserX", key_of(2))]
        for seed in ("seedA", "seedB", "seedE"):
            assert Client(mesh, seed).lookup("UserX").signed == signed("UserX", 1, owner=2), seed
        assert mesh.store.read("userx") is None

    def test_a_user_moves_here_and_back(self, mesh: SeedMesh) -> None:
        """The latest registration counts everywhere, and the claim is as old as it was."""
        there = Client(mesh, "seedE")
        since = there.register("UserX", 1).since
        mesh.advance(1)
        there.close()
        here = Client(mesh, "seedA")
        assert here.register("UserX", 2).since == since
        mesh.advance(5)
        assert Client(mesh, "seedB").lookup("UserX").home == "seedA"
        assert "userx" not in mesh["seedE"].disk
        here.close()
        again = Client(mesh, "seedE")
        assert again.register("UserX", 3).since == since
        mesh.advance(5)
        found = Client(mesh, "seedB").lookup("UserX")
        assert (found.home, found.signed) == ("seedE", signed("UserX", 3))
        assert mesh.store.read("userx") is None


class TestBringingAlong:
    def test_what_stood_on_a_disk(self) -> None:
        """A seed that is started with a shared directory for the first time brings its users along, away, with their
        claims; lookups find them all the time, and its own disk is empty then."""
        mesh = SeedMesh(*SITE, sharing=["seedB"])
        Client(mesh, "seedA").register("UserX")
        Client(mesh, "seedA").register("UserY", owner=3)
        Client(mesh, "seedA").unregister("UserY", 2, owner=3)
        mesh.advance(10)
        mesh.stop("seedA")
        mesh.sharing.add("seedA")
        mesh.start("seedA")
        found = Client(mesh, "seedA").lookup("UserX")
        assert (found.since, found.online, found.home) == (NOW_MS, False, "seedA")
        names = mesh["seedA"].names
        assert names is not None and not names.settled
        mesh.advance(3)
        assert names.settled
        assert mesh["seedA"].disk == {}
        assert mesh.kept("seedA", "userx").since == NOW_MS
        mesh.advance(30)
        for seed in SITE:
            assert Client(mesh, seed).lookup("UserX").since == NOW_MS
            assert Client(mesh, seed).refused("register", signed("UserX", 1, owner=2)).message == "name taken"
            assert Client(mesh, seed).refused("register", signed("UserY", 1, owner=3)).message == "stale record"
        assert Client(mesh, "seedA").register("UserX", 2).since == NOW_MS

    @pytest.mark.parametrize("newer", ["on the disk", "in the store"])
    def test_the_newer_record_counts(self, newer: str) -> None:
        """And the older claim."""
        mesh = SeedMesh(*SITE, sharing=SITE)
        Client(mesh, "seedB").register("UserX", 5)
        mesh.stop("seedA")
        there = value_of(signed("UserX", 9 if newer == "on the disk" else 4), since=NOW_MS - 5000, seen=NOW_MS)
        mesh["seedA"].disk["userx"] = there
        mesh.start("seedA")
        mesh.advance(3)
        kept = mesh.kept("seedA", "userx")
        assert (kept.record, kept.since) == (
            signed("UserX", 9 if newer == "on the disk" else 5).record,
            NOW_MS - 5000,
        )
        assert mesh["seedA"].disk == {}

    def test_the_store_is_gone_meanwhile(self) -> None:
        """Nothing is lost, and it goes on when it is back."""
        mesh = SeedMesh(*SITE, sharing=SITE)
        mesh.stop("seedA")
        mesh["seedA"].disk["userx"] = value_of(signed("UserX", 1), since=NOW_MS, seen=NOW_MS)
        mesh.store.gone = True
        mesh.start("seedA")
        mesh.advance(3)
        assert list(mesh["seedA"].disk) == ["userx"]
        assert Client(mesh, "seedA").lookup("UserX").stale
        mesh.store.gone = False
        mesh.advance(3)
        assert mesh["seedA"].disk == {}
        assert Client(mesh, "seedB").knows("UserX")


class TestGivingItUp:
    def test_all_go_back_to_directories_of_their_own(self) -> None:
        """One seed after the other. All are found all the time, also those who are away, with their claims; and nobody
        else gets their names."""
        mesh = SeedMesh(*SITE, "seedE", sharing=SITE)
        user = Client(mesh, "seedA")
        user.register("UserX")
        away = Client(mesh, "seedB")
        away.register("UserY", owner=3)
        away.close()
        mesh.advance(5)

        def everybody_is_found() -> None:
            known = [{name for name in ("UserX", "UserY") if Client(mesh, seed).knows(name)} for seed in mesh.hosts]
            assert set().union(*known) == {"UserX", "UserY"}

        for number, seed in enumerate(SITE, start=2):
            mesh.stop(seed)
            mesh.sharing.remove(seed)
            mesh.start(seed)
            everybody_is_found()
            entries = [(key, read_value(value)) for key, (value, _) in mesh.store.values.items()]
            mesh.carry_out(mesh[seed], mesh[seed].seed.bring(entries, mesh.now))
            everybody_is_found()
            user = Client(mesh, seed)
            user.register("UserX", number)
            mesh.advance(5)
            everybody_is_found()
        mesh.store.gone = True
        mesh.advance(20)
        for seed in mesh.hosts:
            assert Client(mesh, seed).lookup("UserX").signed == signed("UserX", 3), seed
            for name, owner in (("UserX", 1), ("UserY", 3)):
                assert Client(mesh, seed).lookup(name).since == NOW_MS, (seed, name)
                taken = Client(mesh, seed).refused("register", signed(name, 9, owner=owner + 1))
                assert taken.message == "name taken", (seed, name)
        assert [seed for seed in mesh.hosts if "userx" in mesh[seed].disk] == ["seedB"]

    def test_what_this_home_has_counts(self) -> None:
        """But for an older claim: of the same user it is theirs here too; another user's ends the one here."""
        mesh = SeedMesh("seedA")
        Client(mesh, "seedA").register("UserX", 5)
        loser = Client(mesh, "seedA")
        loser.register("UserY", 5)
        brought = [
            ("userx", value_of(signed("UserX", 4), since=NOW_MS - 1000, seen=NOW_MS)),
            ("usery", value_of(signed("UserY", 9, owner=2), since=NOW_MS - 1000, seen=NOW_MS)),
            ("userz", value_of(signed("UserZ", 1), since=NOW_MS - 1000, seen=NOW_MS)),
            ("userw", value_of(forged(signed("UserW", 1)), since=NOW_MS - 1000, seen=NOW_MS)),
        ]
        mesh.carry_out(mesh["seedA"], mesh["seedA"].seed.bring(brought, mesh.now))
        other = Client(mesh, "seedA")
        assert (other.lookup("UserX").signed, other.lookup("UserX").since) == (signed("UserX", 5), NOW_MS - 1000)
        assert other.lookup("UserY").signed == signed("UserY", 9, owner=2)
        assert conflicts(loser) == [ConflictParams("UserY", key_of(2))]
        assert not other.knows("UserW")
        assert not other.lookup("UserZ").online
        mesh.stop("seedA")
        mesh.start("seedA")
        assert Client(mesh, "seedA").lookup("UserZ").since == NOW_MS - 1000

    def test_nobody_is_unknown_before_all_was_taken_over(self) -> None:
        """A name that is not here yet is not nobody's."""
        mesh = SeedMesh("seedA")
        asking = Client(mesh, "seedA")
        mesh.carry_out(mesh["seedA"], mesh["seedA"].seed.bring([], mesh.now, complete=False))
        error = asking.refused("lookup", NameParams("UserX"))
        assert (error.code, error.data.retry_after) == (503, TAKING_OVER_S)
        asking.call("ping", Nothing(), Nothing)
        line = encode_request("lookup", NameParams("UserX"), 7)
        assert mesh["seedA"].seed.answers(asking.link, [line], mesh.now) == []
        mesh.carry_out(mesh["seedA"], mesh["seedA"].seed.bring([], mesh.now, complete=True))
        assert not asking.knows("UserX")
        assert mesh["seedA"].seed.answers(asking.link, [line], mesh.now) != []
