"""What a seed answers to each request."""

import pytest
from msgspec import Struct

from meshproto.core.liveness import PHI_DEAD
from meshproto.core.quick import NOT_FOUND_RETRY_S
from meshproto.core.seed import LEASE_S, Settings
from meshproto.core.sessions import REGISTRATIONS_PER_LINK_MAX, WATCHES_PER_LINK_MAX
from meshproto.wire import (
    LINE_BYTES_MAX,
    NAMES_PAGE_MAX,
    WATCH_NAMES_MAX,
    GossipParams,
    HelloParams,
    HelloResult,
    NameParams,
    NamesParams,
    NamesResult,
    Nothing,
    SeedsResult,
    StatusResult,
    WatchParams,
)
from tests.core.seed_mesh import START_S, Client, SeedMesh
from tests.core.users import forged, signed

NOW_MS = int(START_S * 1000)


@pytest.fixture(params=["own", "shared"])
def mesh(request: pytest.FixtureRequest) -> SeedMesh:
    """A seed, whichever kind of directory it has."""
    return SeedMesh("seedA", sharing=["seedA"] if request.param == "shared" else [])


@pytest.fixture
def client(mesh: SeedMesh) -> Client:
    return Client(mesh, "seedA")


class TestHello:
    def test_the_answer(self, client: Client) -> None:
        """A user's hello is answered with the version, the seed's name and its limits."""
        limits = {"line_bytes": LINE_BYTES_MAX, "watches": WATCHES_PER_LINK_MAX, "names_page": NAMES_PAGE_MAX}
        told = client.call("hello", HelloParams(1, "user"), HelloResult)
        assert told == HelloResult(1, "seedA", "open", limits)

    @pytest.mark.parametrize(
        ("params", "code", "detail"),
        [
            (HelloParams(2, "user"), 400, "this seed speaks version 1 of the protocol, not 2"),
            (HelloParams(0, "seed", "seedB"), 400, "this seed speaks version 1"),
            (HelloParams(1, "seed"), 400, "a seed says its name"),
            (HelloParams(1, "seed", "seedA"), 409, "this seed is called seedA too"),
        ],
        ids=["newer", "older", "nameless", "same name"],
    )
    def test_refusals(self, client: Client, params: HelloParams, code: int, detail: str) -> None:
        """Another version, a seed without a name and one of the same name are told why, and may not gossip."""
        error = client.refused("hello", params)
        assert (error.code, error.data.detail[: len(detail)]) == (code, detail)
        assert client.refused("gossip", GossipParams({})).code == 403

    def test_an_untrusted_address_may_not_be_a_seed(self, mesh: SeedMesh) -> None:
        """From a public address a user may say hello, a seed may not."""
        stranger = Client(mesh, "seedA", trusted=False)
        assert stranger.refused("hello", HelloParams(1, "seed", "seedB")).code == 403
        assert stranger.call("hello", HelloParams(1, "user"), HelloResult).seed == "seedA"

    def test_no_gossip_without_hello(self, client: Client) -> None:
        """Who has not said hello as a seed is refused; a push from them is not read."""
        error = client.refused("gossip", GossipParams({}))
        assert (error.code, error.data.detail) == (403, "gossip is for seeds: say hello with role seed first")
        client.tell("gossip", GossipParams({}))


class TestRegister:
    def test_the_answer(self, client: Client) -> None:
        """Where, since when, and for how long."""
        told = client.register("UserX")
        assert (told.seed, told.since, told.lease) == ("seedA", NOW_MS, LEASE_S)

    def test_the_answer_waits_for_the_disk(self, mesh: SeedMesh, client: Client) -> None:
        """The claim is on disk when the answer goes out, and is what a lookup tells."""
        client.register("UserX")
        if not mesh.sharing:
            (save,) = mesh["seedA"].saves
            assert [send.link for send in save.then] == [client.link]
        found = client.lookup("userx")
        assert (found.signed, found.home, found.online) == (signed("UserX", 1), "seedA", True)
        assert mesh.kept("seedA", "userx").record == found.record

    def test_a_full_disk(self, mesh: SeedMesh, client: Client) -> None:
        """What cannot be written is answered with 503 and when to come back, not with a result."""
        mesh.refuse_writes("seedA")
        for method, record in (("register", signed("UserX", 1)), ("unregister", signed("UserX", 2, gone=True))):
            error = client.refused(method, record)
            retry_after = mesh.store.RETRY_S if mesh.sharing else 5.0
            assert (error.code, error.message, error.data.retry_after) == (503, "unavailable", retry_after)

    @pytest.mark.parametrize(
        ("method", "record", "code", "message"),
        [
            ("register", forged(signed("UserX", 2)), 403, "bad signature"),
            ("register", signed("UserX", 2, gone=True), 400, "bad params"),
            ("register", signed("UserX", 0), 409, "stale record"),
            ("register", signed("userx", 2, owner=2), 409, "name taken"),
            ("unregister", forged(signed("UserX", 2, gone=True)), 403, "bad signature"),
            ("unregister", signed("UserX", 2), 400, "bad params"),
            ("unregister", signed("UserX", 0, gone=True), 409, "stale record"),
            ("unregister", signed("UserX", 2, owner=2, gone=True), 409, "name taken"),
            ("unregister", signed("UserY", 2, gone=True), 404, "User Not Found"),
        ],
    )
    def test_refusals(self, client: Client, method: str, record: Struct, code: int, message: str) -> None:
        """A registration that is refused changes nothing."""
        client.register("UserX")
        error = client.refused(method, record)
        assert (error.code, error.message) == (code, message)
        assert client.lookup("UserX").signed == signed("UserX", 1)

    def test_as_a_notification(self, mesh: SeedMesh, client: Client) -> None:
        """Without an id a registration is carried out, and neither it nor its refusal is answered."""
        client.tell("register", signed("UserX", 1))
        client.tell("register", signed("UserX", 1, owner=2))
        client.tell("ping", Nothing())
        assert mesh["seedA"].lines[client.link] == []
        assert client.knows("UserX")

    def test_registrations_per_link(self, mesh: SeedMesh, client: Client) -> None:
        """A link registers so many names and no more; those it has may register again, and another link may go on."""
        for at in range(REGISTRATIONS_PER_LINK_MAX):
            client.register(f"u{at}")
        error = client.refused("register", signed("more", 1))
        assert (error.code, error.message) == (429, "slow down")
        client.register("u0", 2)
        Client(mesh, "seedA").register("more")
        client.unregister("u1", 2)
        client.register("u1", 3)


class TestUnregister:
    def test_the_name_is_free(self, mesh: SeedMesh, client: Client) -> None:
        """A user who left is not found, stays so on disk, and another key may take the name."""
        client.register("UserX")
        client.unregister("UserX")
        assert not client.knows("UserX")
        assert mesh.kept("seedA", "userx").record == signed("UserX", 2, gone=True).record
        Client(mesh, "seedA").register("UserX", owner=2)

    def test_the_old_record_does_not_bring_the_user_back(self, client: Client) -> None:
        """A record from before, which anybody may have kept, is refused."""
        client.register("UserX")
        client.unregister("UserX")
        assert client.refused("register", signed("UserX", 1)).message == "stale record"
        assert not client.knows("UserX")

    def test_over_another_link(self, mesh: SeedMesh, client: Client) -> None:
        """The signature counts, not the link; the link of the registration changes nothing afterwards."""
        client.register("UserX")
        other = Client(mesh, "seedA")
        other.unregister("UserX")
        client.call("ping", Nothing(), Nothing)
        client.close()
        assert not other.knows("UserX")
        assert mesh["seedA"].seed.status(mesh.now).online == 0


class TestLookup:
    def test_nobody(self, client: Client) -> None:
        """404 says when it is worth asking again."""
        error = client.refused("lookup", NameParams("UserX"))
        assert (error.code, error.message, error.data.retry_after) == (404, "User Not Found", NOT_FOUND_RETRY_S)
        assert error.data.detail == "no user UserX is known here"

    def test_away(self, mesh: SeedMesh, client: Client) -> None:
        """A user who is away is found, with when they were last seen."""
        client.register("UserX")
        mesh.advance(5.0)
        client.close()
        mesh.advance(5.0)
        found = Client(mesh, "seedA").lookup("UserX")
        assert (found.online, found.seen, found.since) == (False, NOW_MS + 5000, NOW_MS)

    def test_online_is_seen_now(self, mesh: SeedMesh, client: Client) -> None:
        """Who is online is seen at this moment."""
        client.register("UserX")
        mesh.advance(5.0)
        assert client.lookup("UserX").seen == NOW_MS + 5000


class TestWatch:
    @pytest.fixture
    def watcher(self, mesh: SeedMesh) -> Client:
        watcher = Client(mesh, "seedA")
        watcher.call("watch", WatchParams(["userx"]), Nothing)
        return watcher

    def test_changes_are_told(self, client: Client, watcher: Client) -> None:
        """Whoever watches a name, in any case, hears of it being registered, away, and gone; of others not."""
        client.register("UserX")
        client.register("UserY", owner=2)
        (told,) = watcher.told()
        assert (told.name, told.entry) == ("UserX", client.lookup("UserX"))
        client.close()
        (told,) = watcher.told()
        assert told.entry is not None
        assert not told.entry.online
        watcher.unregister("UserX")
        assert [(told.name, told.entry) for told in watcher.told()] == [("userx", None)]

    def test_unwatch(self, client: Client, watcher: Client) -> None:
        """Afterwards nothing is told; unwatching what was not watched is no mistake."""
        watcher.call("unwatch", WatchParams(["USERX", "nobody"]), Nothing)
        client.register("UserX")
        assert watcher.told() == []

    def test_two_watch_and_one_leaves(self, mesh: SeedMesh, client: Client, watcher: Client) -> None:
        """A link that closes stops watching, others go on."""
        leaving = Client(mesh, "seedA")
        leaving.call("watch", WatchParams(["UserX"]), Nothing)
        leaving.close()
        client.register("UserX")
        assert len(watcher.told()) == 1
        assert leaving.told() == []

    def test_a_claim_that_runs_out_is_told(self) -> None:
        """Watchers hear when the name is free, and the disk is rid of it."""
        mesh = SeedMesh("seedA", settings=Settings(claim_ttl_s=60.0))
        client, watcher = Client(mesh, "seedA"), Client(mesh, "seedA")
        client.register("UserX")
        client.close()
        watcher.call("watch", WatchParams(["UserX"]), Nothing)
        mesh.advance(60.0)
        assert watcher.told() == []
        mesh.advance(2.0)
        assert [told.entry for told in watcher.told()] == [None]
        assert mesh["seedA"].disk == {}

    def test_watches_per_link(self, mesh: SeedMesh, client: Client) -> None:
        """A link watches so many names and no more; a refused watch watches none of its names."""
        for at in range(0, WATCHES_PER_LINK_MAX, WATCH_NAMES_MAX):
            client.call("watch", WatchParams([f"u{at + by}" for by in range(WATCH_NAMES_MAX)]), Nothing)
        client.call("watch", WatchParams(["U1", "u2"]), Nothing)
        assert client.refused("watch", WatchParams(["u1", "UserX"])).code == 429
        Client(mesh, "seedA").register("UserX")
        assert client.told() == []
        client.call("unwatch", WatchParams(["u1"]), Nothing)
        client.call("watch", WatchParams(["UserX"]), Nothing)


class TestAsking:
    def test_names(self, mesh: SeedMesh, client: Client) -> None:
        """A page of the names that somebody holds; a shared directory has them in no order."""
        if mesh.sharing:
            assert client.refused("names", NamesParams()).code == 403
            return
        for name in ("Bob", "alice", "bert"):
            client.register(name)
        client.unregister("bert")
        assert client.call("names", NamesParams(), NamesResult) == NamesResult(["alice", "Bob"], None)
        assert client.call("names", NamesParams("B"), NamesResult) == NamesResult(["Bob"], None)
        assert client.call("names", NamesParams(limit=1), NamesResult) == NamesResult(["alice"], "alice")
        assert client.call("names", NamesParams(after="alice"), NamesResult) == NamesResult(["Bob"], None)

    def test_names_switched_off(self) -> None:
        """A seed that does not list names says so, and still answers lookups."""
        client = Client(SeedMesh("seedA", settings=Settings(list_names=False)), "seedA")
        client.register("UserX")
        assert client.refused("names", NamesParams()).code == 403
        assert client.knows("UserX")

    def test_seeds(self) -> None:
        """Every seed that is known, with its address, whether it is alive and its users; first the one asked."""
        mesh = SeedMesh("seedA", "seedB", "seedC")
        client = Client(mesh, "seedB")
        client.register("UserX")
        mesh.advance(5.0)
        mesh.stop("seedC")
        mesh.advance(60.0)
        seeds = Client(mesh, "seedA").call("seeds", Nothing(), SeedsResult).seeds
        assert [(seed.name, seed.address, seed.alive, seed.users) for seed in seeds] == [
            ("seedA", "seedA:5001", True, 0),
            ("seedB", "seedB:5001", True, 1),
            ("seedC", "seedC:5001", False, 0),
        ]
        assert all(seed.lag == 0 for seed in seeds)
        assert seeds[1].phi < PHI_DEAD < seeds[2].phi
        assert mesh.now - 60.0 < seeds[2].since / 1000 < mesh.now

    def test_ping(self, client: Client) -> None:
        """A ping is answered with nothing."""
        assert client.call("ping", Nothing(), Nothing) == Nothing()

    def test_status(self) -> None:
        """The counts fit what has happened."""
        mesh = SeedMesh("seedA", "seedB", settings=Settings(version="1.2.3"))
        client = Client(mesh, "seedA")
        client.register("UserX")
        Client(mesh, "seedA").register("UserY")
        client.close()
        mesh.advance(5.0)
        asking = Client(mesh, "seedA")
        asking.lookup("UserX")
        asking.refused("lookup", NameParams("nobody"))
        told = asking.call("status", Nothing(), StatusResult)
        assert told == StatusResult("seedA", "1.2.3", 5.0, 2, 1, 2, 2, told.links, 2, 2, "127.0.0.1")
        assert told.links >= 2
