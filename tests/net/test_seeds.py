"""A user node among seeds: what it asks them, and what it makes of their answers."""

import random
from collections.abc import Iterator

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred

from meshproto import wire
from meshproto.core.addresses import RETRY_MAX_S, SWITCH_MAX_S
from meshproto.core.identity import b64, verify
from meshproto.core.lookup import FOUND_TTL_S, Located
from meshproto.core.meshkey import NO_KEYS, Applicant
from meshproto.errors import SlowDown, Unavailable, UserNotFound
from meshproto.net import watching
from meshproto.net.calls import CALL_TIMEOUT_S
from meshproto.net.database_file import connect
from meshproto.net.home import LOOK_S, NOBODY, PING_S
from meshproto.net.learning import LEARN_S
from meshproto.net.seeds import Seeds
from meshproto.net.store import SQLiteDatabase
from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION, UserStore, read_start
from tests.core.users import user
from tests.net.far import failure_of, result_of, start
from tests.net.street import TICK_S, Reply, Street


def record_of(name: str, owner: int = 2, seq: int = 1) -> wire.LookupResult:
    signed = user(owner).sign(name, ["http://192.0.2.1:3000"], seq)
    return wire.LookupResult(signed.record, signed.sig, 0, "seedA", True, 0)


class Node:
    """UserX, and the seeds of a street; `says` has what a seed says where it is not what all say."""

    def __init__(self, given: list[str], rng_seed: int = 1) -> None:
        self.street = Street()
        self.says: dict[tuple[str, str], Reply] = {}
        self.told: list[wire.SeedInfo] = []
        self.back: list[str] = []
        self.perhaps_back: list[str] = []
        self.connection = connect(":memory:", SCHEMA, SCHEMA_VERSION)
        self.database = SQLiteDatabase(self.connection, self.street.clock)
        self.seeds = Seeds(
            "UserX",
            lambda: user(1),
            lambda: ["http://192.0.2.7:3000"],
            given,
            learnt=[],
            last_seq=0,
            store=UserStore(self.database),
            clock=self.street.clock,
            now_ms=lambda: 0,
            applicant=Applicant("UserX", NO_KEYS, random.Random(1).randbytes),
            rng=random.Random(rng_seed),
            connect=self.street.connect,
            changed=lambda name, surely: (self.back if surely else self.perhaps_back).append(name),
        )

    def seed(self, name: str, address: str) -> None:
        def says(method: str) -> Reply:
            if (name, method) in self.says:
                return self.says[name, method]
            usual: dict[str, Reply] = {
                "hello": wire.HelloResult(1, name, "open", {}),
                "register": wire.RegisterResult(name, 77, 30.0),
                "seeds": wire.SeedsResult(self.told),
                "lookup": UserNotFound(),
            }
            return usual.get(method, wire.Nothing())

        self.street.seeds[address] = says

    def begin(self) -> None:
        self.seeds.startService()
        self.street.run(1)

    def kill(self, address: str) -> None:
        """The seed's process ends."""
        del self.street.seeds[address]
        for at, far in self.street.fars:
            if at == address:
                far.lose()

    def locate(self, name: str) -> "Deferred[Located]":
        located = start(self.seeds.locate(name))
        self.street.settle()
        return located

    def ask(self, name: str) -> int:
        """The seq of the record that a lookup brings."""
        return result_of(self.locate(name)).record.seq

    def watch(self, name: str) -> None:
        watched = start(self.seeds.watch(name))
        self.street.settle()
        result_of(watched)

    def unwatch(self, name: str) -> None:
        unwatched = start(self.seeds.unwatch(name))
        self.street.settle()
        result_of(unwatched)

    @property
    def lookups(self) -> int:
        """How many seeds were asked for a name so far."""
        return len(self.street.asked("lookup"))

    def end(self) -> None:
        """Nothing is left."""
        self.seeds.stopService()
        for _, far in self.street.fars:
            far.lose()
        self.street.settle()
        assert self.street.clock.getDelayedCalls() == []
        self.database.close()

    def notify(self, address: str, params: wire.ChangedParams) -> None:
        self.street.far(address).say(wire.encode_request("changed", params))


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node(["a:1"])
    node.seed("seedA", "a:1")
    node.begin()
    yield node
    node.end()


# -- home ---------------------------------------------------------------------------------------------------------


def test_at_home(node: Node) -> None:
    """A node is at home at the seed that answered its registration, since when that says."""
    assert node.seeds.home == ("seedA", "a:1", 77)
    assert node.seeds.problem is None


def test_the_home_is_lost(node: Node) -> None:
    """Without a home the node says why; when the seed is back it is at home again."""
    node.kill("a:1")
    node.street.run(1)
    assert node.seeds.home is None
    assert "refused" in str(node.seeds.problem)
    assert not node.seeds.answered
    node.seed("seedA", "a:1")
    node.street.run(10)
    assert node.seeds.home == ("seedA", "a:1", 77)
    assert node.seeds.problem is None


@pytest.mark.parametrize("says", [None, SlowDown("too many")], ids=["silent", "refused"])
def test_a_ping_in_vain(node: Node, says: Reply) -> None:
    """A home whose ping fails is left."""
    node.says["seedA", "ping"] = says
    node.street.run(PING_S + CALL_TIMEOUT_S)
    assert node.street.fars[0][1].pipe.aborted


def test_a_home_that_hangs_up_on_whoever_has_registered(node: Node) -> None:
    """It is tried ever more rarely, as one that refuses: not until it has answered a ping is it a home."""

    lost = 0

    def registrations_in(seconds: int) -> int:
        nonlocal lost
        before = len(node.street.asked("register"))
        for _ in range(round(seconds / TICK_S)):
            for _, far in node.street.fars[lost:]:
                far.lose()
            lost = len(node.street.fars)
            node.street.run(TICK_S)
        return len(node.street.asked("register")) - before

    registrations_in(20)
    assert registrations_in(30) <= 30 / (RETRY_MAX_S / 2)
    node.street.run(RETRY_MAX_S + 2 * PING_S)
    assert node.seeds.home == ("seedA", "a:1", 77)


def test_a_lost_name(node: Node) -> None:
    """A home that says the name belongs to another key is left, and the owner of the node is told which."""
    conflict = wire.ConflictParams("UserX", b64(user(3).key))
    node.street.far("a:1").say(wire.encode_request("conflict", conflict))
    assert user(3).fingerprint in str(node.seeds.problem)
    assert node.seeds.answered
    assert node.street.far("a:1").pipe.aborted


def test_a_notification_that_does_not_read(node: Node) -> None:
    """Nonsense in a notification, or one of a kind unknown here, changes nothing."""
    far = node.street.far("a:1")
    far.say(wire.encode_request("changed", wire.Nothing()))
    far.say(wire.encode_request("conflict", wire.Nothing()))
    far.say(wire.encode_request("weather", wire.Nothing()))
    assert node.seeds.home is not None
    assert not far.pipe.aborted


# -- learning of seeds --------------------------------------------------------------------------------------------


def test_seeds_are_learnt_and_kept(node: Node) -> None:
    """What the home tells of is known, and on disk for the next start."""
    node.told = [wire.SeedInfo("seedA", "a:1", True, 1), wire.SeedInfo("seedB", "b:1", True, 0)]
    node.street.run(1.25 * LEARN_S)
    assert node.seeds.seeds == node.told
    assert read_start(node.connection).seeds == ["b:1"]


@pytest.mark.parametrize(("ip", "learnt"), [("127.0.0.1", ["127.0.0.1:1"]), ("192.0.2.9", [])])
def test_seeds_on_this_machine_are_learnt_from_one_that_is_there(node: Node, ip: str, learnt: list[str]) -> None:
    """Where the home was dialled says whether a loopback address may mean a seed."""
    node.street.far("a:1").pipe.peerAddr = IPv4Address("TCP", ip, 1)
    node.told = [wire.SeedInfo("seedB", "127.0.0.1:1", True, 0)]
    node.street.run(1.25 * LEARN_S)
    assert read_start(node.connection).seeds == learnt


@pytest.mark.parametrize("says", [SlowDown("not now"), wire.NameParams("what?")], ids=["refused", "nonsense"])
def test_learning_goes_on_after_an_error(node: Node, says: Reply) -> None:
    """A home that once answers with an error, or nonsense, is asked again."""
    node.says["seedA", "seeds"] = says
    node.street.run(1.25 * LEARN_S)
    del node.says["seedA", "seeds"]
    node.told = [wire.SeedInfo("seedB", "b:1", True, 0)]
    node.street.run(1.25 * LEARN_S)
    assert node.seeds.seeds == node.told


def test_a_list_that_was_not_saved_is_saved_later(node: Node) -> None:
    """After the disk has refused the list of seeds it is written when the home is asked the next time."""
    node.told = [wire.SeedInfo("seedB", "b:1", True, 0)]
    node.connection.execute("PRAGMA query_only=ON")
    node.street.run(1.25 * LEARN_S)
    assert read_start(node.connection).seeds == []
    node.connection.execute("PRAGMA query_only=OFF")
    node.street.run(1.25 * LEARN_S)
    assert read_start(node.connection).seeds == ["b:1"]


# -- who lives where ----------------------------------------------------------------------------------------------


def test_a_given_address_where_another_seed_lives_now() -> None:
    """The seed that lived at a given address is found where it has moved, although it is not known yet who answers at
    the old one."""
    node = Node(["b:1", "a:1"])
    node.seed("seedA", "a:1")
    node.seed("seedB", "b:1")
    node.says["seedA", "register"] = SlowDown("no room")
    node.begin()
    assert node.seeds.home is not None and node.seeds.home.name == "seedB"
    failure_of(node.locate("Nobody"), UserNotFound)  # so seedA has answered at a:1
    node.kill("a:1")
    node.seed("seedZ", "a:1")
    node.seed("seedA", "moved:1")
    node.says["seedA", "lookup"] = record_of("Bobby")
    node.told = [wire.SeedInfo("seedB", "b:1", True, 1), wire.SeedInfo("seedA", "moved:1", True, 1)]
    node.street.run(1.25 * LEARN_S)
    assert node.ask("Bobby") == 1
    node.end()


def test_one_seed_under_two_addresses_is_asked_once(node: Node) -> None:
    """The home is not asked again at the address that it tells of itself."""
    node.seed("seedA", "192.0.2.1:1")
    node.told = [wire.SeedInfo("seedA", "192.0.2.1:1", True, 1)]
    node.street.run(1.25 * LEARN_S)
    failure_of(node.locate("Nobody"), UserNotFound)
    assert node.street.dialled == ["a:1"]


# -- watching -----------------------------------------------------------------------------------------------------


def test_back(node: Node) -> None:
    """When a watched user is said to be online what was known of them is dropped before anybody hears of it."""
    node.says["seedA", "lookup"] = record_of("Bobby", seq=1)
    assert node.ask("Bobby") == 1
    node.watch("Bobby")
    node.says["seedA", "lookup"] = record_of("Bobby", seq=2)
    node.notify("a:1", wire.ChangedParams("Bobby", record_of("Bobby", seq=2)))
    assert node.back == ["Bobby"]
    assert node.ask("bobby") == 2


def test_another_key_comes_back(node: Node) -> None:
    """Nothing of a notification is believed: with the record of another key, or a forged one, it is a reason to look,
    and what the seeds say then counts."""
    node.says["seedA", "lookup"] = record_of("Bobby")
    assert node.ask("Bobby") == 1
    node.watch("Bobby")
    forged = wire.LookupResult(record_of("Bobby", owner=3, seq=9).record, "A" * 86, 0, "seedA", True, 0)
    for entry in (record_of("Bobby", owner=3, seq=9), forged):
        node.notify("a:1", wire.ChangedParams("Bobby", entry))
        assert result_of(node.locate("Bobby")).record.key == b64(user(2).key)
    assert node.back == ["Bobby", "Bobby"]


def test_gone_is_not_back(node: Node) -> None:
    """Of a user who left, or whose name is gone, nothing is known any more, and nobody is woken."""
    node.says["seedA", "lookup"] = record_of("Bobby")
    node.ask("Bobby")
    node.watch("Bobby")
    away = record_of("Bobby")
    for entry in (None, wire.LookupResult(away.record, away.sig, 0, "seedA", False, 0)):
        node.notify("a:1", wire.ChangedParams("bobby", entry))
    assert node.back == []
    before = node.lookups
    node.ask("Bobby")
    assert node.lookups == before + 1


def test_who_is_not_watched(node: Node) -> None:
    """A home that tells of users who are not watched, or no longer, wakes nobody and makes nobody look."""
    node.says["seedA", "lookup"] = record_of("Bobby")
    node.ask("Bobby")
    node.watch("Bobby")
    node.unwatch("Bobby")
    node.notify("a:1", wire.ChangedParams("Bobby", record_of("Bobby")))
    assert node.back == []
    before = node.lookups
    node.street.run(FOUND_TTL_S / 2)
    node.ask("Bobby")
    assert node.lookups == before


def test_watched_at_the_next_home(node: Node) -> None:
    """A new home is told who is watched before it counts as one, also of whom is watched while it is being told; then
    all are tried, for nobody told who came back meanwhile."""
    node.watch("Bobby")
    node.says["seedA", "watch"] = None
    node.kill("a:1")
    node.seed("seedA", "a:1")
    node.street.run(SWITCH_MAX_S + 3)
    assert node.seeds.home is None
    start(node.seeds.watch("Eve"))
    far = node.street.far("a:1")
    waiting = [request for request in far.asked if request["method"] == "watch"]
    assert [request["params"]["names"] for request in waiting] == [["UserX", "Bobby"], ["Eve"]]
    for request in waiting:
        far.answer(wire.Nothing(), request["id"])
    node.street.run(TICK_S)
    assert node.seeds.home is not None
    assert (node.back, node.perhaps_back) == ([], ["Bobby", "Eve"])


def test_watches_max(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """WATCHES_MAX names are watched, the node's own among them; one more is not, until there is room."""
    monkeypatch.setattr(watching, "WATCHES_MAX", 3)
    for name in ("Bobby", "Eve", "Mallory"):
        node.watch(name)
    node.unwatch("Bobby")
    node.watch("Alice")
    asked = [request["params"]["names"] for request in node.street.far("a:1").asked if request["method"] == "watch"]
    assert asked == [["UserX"], ["Bobby"], ["Eve"], ["Alice"]]


def test_a_watch_that_is_refused(node: Node) -> None:
    """Who cannot be watched is nobody's failure: they are tried again by and by."""
    node.says["seedA", "watch"] = node.says["seedA", "unwatch"] = SlowDown("enough")
    node.watch("Bobby")
    node.unwatch("Bobby")


def test_another_node_with_the_same_key(node: Node) -> None:
    """A record of this node's own key that is later than its own says that there is another: that is the problem until
    this node has registered again. What another key has signed, a forgery, an older record and this node's own say
    nothing."""
    own = node.seeds.own_record()
    seq = verify(own).seq
    forged = record_of("UserX", 1, seq + 9)
    for harmless in (
        record_of("UserX", 2, seq + 1),
        record_of("UserX", 1, seq - 1),
        wire.LookupResult(own.record, own.sig, 0, "seedA", True, 0),
        wire.LookupResult(forged.record.replace("192.0.2.1", "192.0.2.2"), forged.sig, 0, "seedA", True, 0),
    ):
        node.notify("a:1", wire.ChangedParams("UserX", harmless))
        assert (node.seeds.problem, node.seeds.registered) == (None, True)
    node.notify("a:1", wire.ChangedParams("UserX", forged))
    assert not node.seeds.registered
    assert "another node has this one's key and name" in (node.seeds.problem or "")
    assert "http://192.0.2.1:3000" in (node.seeds.problem or "")
    node.seeds.renew()
    node.street.run(1)
    assert (node.seeds.problem, node.seeds.registered) == (None, True)


# -- the local network --------------------------------------------------------------------------------------------


def test_no_seed_is_known_at_first() -> None:
    """Without a given seed a node waits until one announces itself, and then registers there soon; a name that is asked
    for meanwhile cannot be found out."""
    node = Node([])
    node.seed("seedL", "192.168.7.1:5001")
    node.begin()
    node.street.run(30)
    assert (node.seeds.problem, node.seeds.answered, node.street.dialled) == (NOBODY, False, [])
    failure_of(node.locate("Bobby"), Unavailable)
    node.seeds.found(["192.168.7.1:5001"])
    node.street.run(LOOK_S)
    assert node.seeds.home == ("seedL", "192.168.7.1:5001", 77)
    node.seeds.found([])
    node.street.run(PING_S)
    assert node.seeds.home is not None  # whoever withdraws its announcement does not end a connection
    node.end()
