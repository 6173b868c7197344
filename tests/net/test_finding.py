"""Where a user is, asked of seeds of which some are silent."""

import random
from collections.abc import Iterator

import msgspec
import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail

from meshproto import wire
from meshproto.core.addresses import Addresses
from meshproto.core.identity import verify
from meshproto.core.lookup import FOUND_TTL_S, LOOKUP_S, MISSING_TTL_S, SLOW_S, WALK_WIDTH, Located
from meshproto.errors import SlowDown, Unavailable, UserNotFound
from meshproto.net.calls import CALL_TIMEOUT_S, DIAL_TIMEOUT_S, Calls, dial
from meshproto.net.finding import Finding
from meshproto.net.home import Home
from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION, UserStore
from tests.core.users import user
from tests.net.far import failure_of, no_result_of, result_of, start
from tests.net.on_clock import OnClock
from tests.net.street import TICK_S, Reply, Street

BOBBY = user(2)


def found(name: str = "Bobby", seq: int = 1) -> wire.LookupResult:
    signed = BOBBY.sign(name, ["http://192.0.2.1:3000"], seq)
    return wire.LookupResult(signed.record, signed.sig, 0, "seedX", True, 0)


class Searcher:
    """A node that knows the seeds of a street, without a home."""

    def __init__(self, given: list[str]) -> None:
        self.street = Street()
        self.disk = OnClock(SCHEMA, SCHEMA_VERSION)
        self.store = UserStore(self.disk.database)
        self.addresses = Addresses(given, [], random.Random(1))
        self.finding = Finding(self.addresses, self.store, self.street.clock, self.street.connect, self._greet)

    async def _greet(self, address: str, calls: Calls) -> None:
        await calls.call("hello", wire.HelloParams(1, "user", "UserX"), wire.HelloResult)
        self.addresses.answered(address, address)

    def seed(self, address: str, lookup: Reply) -> None:
        """A seed that answers hello, and lookups so."""

        def says(method: str) -> Reply:
            return wire.HelloResult(1, address.replace(":", "-"), "open", {}) if method == "hello" else lookup

        self.street.seeds[address] = says

    def move_to(self, address: str, ip: str = "192.0.2.9") -> Calls:
        """Take the seed for home, which is at the IP address."""
        calls = Calls(self.street.clock)
        result_of(start(dial(self.street.connect, address, calls, self.street.clock)))
        self.street.far(address).pipe.peerAddr = IPv4Address("TCP", ip, 5001)
        self.finding.arrived(Home(address.replace(":", "-"), address, 0), calls)
        return calls

    def locate(self, name: str = "Bobby") -> "Deferred[Located]":
        located = start(self.finding.locate(name))
        self.settle()
        return located

    def settle(self) -> None:
        self.street.settle()
        self.disk.clock.advance(0)

    def after(self, located: "Deferred[Located]", seconds: float) -> "Deferred[Located]":
        self.street.run(seconds)
        self.disk.clock.advance(0)
        return located

    def meet(self, seq: int = 1, uri: str = "http://192.0.2.1:3000") -> None:
        """Bobby is an old acquaintance, and this is the newest record of theirs."""
        signed = BOBBY.sign("Bobby", [uri], seq)
        self.disk.run(self.store.contacts.trust(verify(signed), signed, 0))


@pytest.fixture
def node() -> Iterator[Searcher]:
    """One that knows sixty seeds, at none of which anything answers. After the test nothing is left under way."""
    searcher = Searcher([f"s{number}:1" for number in range(60)])
    searcher.street.dark.update(searcher.addresses.known())
    yield searcher
    searcher.finding.close()
    for _, far in searcher.street.fars:
        far.lose()
    assert searcher.street.dialling == []
    assert searcher.street.clock.getDelayedCalls() == []
    searcher.disk.close()


def light(node: Searcher, address: str, lookup: Reply) -> None:
    node.street.dark.discard(address)
    node.seed(address, lookup)


# -- the time a lookup may take -----------------------------------------------------------------------------------


def test_all_are_silent(node: Searcher) -> None:
    """However many seeds are silent, after LOOKUP_S a name that was never heard of is not available; whoever was being
    called is let go."""
    located = node.locate()
    no_result_of(node.after(located, LOOKUP_S - TICK_S))
    assert node.street.dialling != []
    error = failure_of(node.after(located, TICK_S), Unavailable).value
    assert error.detail == f"no seed answered within {LOOKUP_S:g} s, and no address of Bobby is known"
    assert error.retry_after_s is not None
    assert node.street.dialling == []
    assert node.street.clock.getDelayedCalls() == []


def test_the_last_known_address(node: Searcher) -> None:
    """When the time is over without an answer the last known record is used, and it is told that no seed said so."""
    node.meet()
    located = result_of(node.after(node.locate(), LOOKUP_S))
    assert (located.record.name, located.said) == ("Bobby", None)


def test_one_of_many_answers(node: Searcher) -> None:
    """A seed that knows the name is reached behind silent ones, WALK_WIDTH of which cost SLOW_S together."""
    order = Addresses(node.addresses.known(), [], random.Random(1)).to_ask(at_home=False)
    light(node, order[4 * WALK_WIDTH], found())
    located = node.locate()
    no_result_of(node.after(located, 4 * SLOW_S - TICK_S))
    assert result_of(node.after(located, TICK_S)).said == found()
    assert node.street.dialling == []


def test_a_404_in_time_among_many_that_were_not_asked(node: Searcher) -> None:
    """That one seed does not know the name says nothing when others could not be asked."""
    order = Addresses(node.addresses.known(), [], random.Random(1)).to_ask(at_home=False)
    light(node, order[0], UserNotFound())
    error = failure_of(node.after(node.locate(), LOOKUP_S), Unavailable).value
    assert error.detail.startswith(f"not every seed answered within {LOOKUP_S:g} s")


def test_404_of_all_that_can_be_reached(node: Searcher) -> None:
    """Who was silent for the whole of a lookup counts as not reachable: the others' 404 is believed, for a while."""
    for number in range(2, 60):
        light(node, f"s{number}:1", UserNotFound())
    located = node.locate()
    # Who does not answer a dial is given up before the time is over.
    no_result_of(node.after(located, DIAL_TIMEOUT_S - TICK_S))
    failure_of(node.after(located, SLOW_S), UserNotFound)
    dialled = len(node.street.dialled)
    assert failure_of(node.locate(), UserNotFound).value.retry_after_s == MISSING_TTL_S
    assert len(node.street.dialled) == dialled


def test_a_seed_that_takes_calls_and_says_nothing(node: Searcher) -> None:
    """A 404 is believed at the end of the time while another seed, that was asked long ago, says nothing to hello."""
    for number in range(60):
        light(node, f"s{number}:1", UserNotFound())
    node.street.seeds["s0:1"] = lambda method: None
    located = node.locate()
    no_result_of(node.after(located, LOOKUP_S - TICK_S))
    failure_of(node.after(located, TICK_S), UserNotFound)


def test_whoever_was_silent_is_not_waited_for_again(node: Searcher) -> None:
    """Who took the call and said nothing for the rest of one lookup is asked last in the next."""
    for number in range(60):
        light(node, f"s{number}:1", UserNotFound())
    for number in range(20):
        node.street.seeds[f"s{number}:1"] = lambda method: None
    failure_of(node.after(node.locate("Eve"), LOOKUP_S), UserNotFound)
    assert set(node.addresses.to_ask(at_home=False)[40:]) == {f"s{number}:1" for number in range(20)}


# -- the home seed ------------------------------------------------------------------------------------------------


def test_a_home_that_hangs(node: Searcher) -> None:
    """When the home seed says nothing the others are asked after SLOW_S; and the home is left when its answer is
    overdue, though nobody waits for that any more."""
    light(node, "s0:1", None)
    home = node.move_to("s0:1")
    for number in range(1, 60):
        light(node, f"s{number}:1", found())
    located = node.locate()
    no_result_of(node.after(located, SLOW_S - TICK_S))
    result_of(node.after(located, TICK_S))
    assert home.connected
    node.street.run(CALL_TIMEOUT_S)
    assert not home.connected


def test_the_home_is_asked_alone(node: Searcher) -> None:
    """Nobody else is called when the home seed knows the name."""
    light(node, "s0:1", found())
    node.move_to("s0:1")
    assert result_of(node.locate()).said == found()
    assert node.street.dialled == ["s0:1"]


def test_what_was_found_is_asked_again(node: Searcher) -> None:
    """An address is good for FOUND_TTL_S, and not for whoever wants to know where the user is now."""
    light(node, "s0:1", found())
    node.move_to("s0:1")
    result_of(node.locate())
    node.street.run(FOUND_TTL_S - TICK_S)
    result_of(node.locate())
    assert len(node.street.asked("lookup")) == 1
    light(node, "s0:1", found(seq=2))
    fresh = start(node.finding.locate("Bobby", fresh=True))
    node.settle()
    assert result_of(fresh).record.seq == 2
    node.street.run(FOUND_TTL_S)
    result_of(node.locate())
    assert len(node.street.asked("lookup")) == 3


def test_without_home_what_was_missing_is_asked_again(node: Searcher) -> None:
    """A 404 is forgotten with the home that said it."""
    for number in range(60):
        light(node, f"s{number}:1", UserNotFound())
    failure_of(node.locate(), UserNotFound)
    node.finding.left()
    light(node, "s7:1", found())
    assert result_of(node.locate()).said == found()


# -- what is not believed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        found("Eve"),
        msgspec.structs.replace(found(), sig="A" * 86),
        wire.Nothing(),
        SlowDown("not now"),
    ],
    ids=["another-name", "forged", "no-lookup-result", "refused"],
)
def test_an_answer_that_does_not_fit(answer: Reply) -> None:
    """A seed that answers with something else than a good record of that name is passed over, and says nothing of
    whether the name exists."""
    node = Searcher(["a:1"])
    node.seed("a:1", answer)
    error = failure_of(node.after(node.locate(), 0), Unavailable).value
    assert error.detail == "no seed can be reached, and no address of Bobby is known"
    node.finding.close()
    node.street.far("a:1").lose()
    node.disk.close()


def test_an_older_record_than_the_contact_has_sent(node: Searcher) -> None:
    """A seed that repeats what was true once sends nobody to an old address, nor has it sealed for an old mail key; a
    newer record than the known one is taken."""
    node.meet(seq=5, uri="http://192.0.2.5:3000")
    light(node, "s0:1", found(seq=4))
    node.move_to("s0:1")
    for _ in range(2):  # from the cache too
        assert result_of(node.locate()).record.uris == ["http://192.0.2.5:3000"]
    node.finding.forget("Bobby")
    light(node, "s0:1", found(seq=6))
    assert result_of(node.locate()).record.seq == 6


def test_an_older_record_while_the_disk_refuses(node: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is unreachable because the disk cannot tell what is known of them."""
    node.meet(seq=5)
    monkeypatch.setattr(node.store.contacts, "get", lambda name: fail(Unavailable("the disk refuses")))
    light(node, "s0:1", found(seq=4))
    node.move_to("s0:1")
    assert result_of(node.locate()).record.seq == 4


def test_thousands_that_fail_at_once() -> None:
    """Seeds that cannot even be dialled are got through in one go, however many."""
    node = Searcher([f"s{number}:1" for number in range(1500)])
    failure_of(node.after(node.locate(), 0), Unavailable)
    assert len(node.street.dialled) == 1500
    node.finding.close()
    node.disk.close()


# -- giving up ----------------------------------------------------------------------------------------------------


def test_whoever_asked_goes_away(node: Searcher) -> None:
    """A lookup that is cancelled lets go of everything."""
    located = node.locate()
    located.cancel()
    failure_of(located)
    assert node.street.dialling == []
    assert node.street.clock.getDelayedCalls() == []


def test_the_node_stops(node: Searcher) -> None:
    """Who waits when the node stops is told so at once, as is who comes after."""
    located = node.locate()
    node.finding.close()
    for told in (located, node.locate()):
        assert failure_of(told, Unavailable).value.detail == "this node is shutting down"
    assert node.street.dialling == []


def test_many_want_the_same_silent_seed(node: Searcher) -> None:
    """Lookups that queue for a connection to the same seed end in time all the same."""
    waiting = [node.locate(f"u{number}") for number in range(100)]
    node.after(waiting[0], LOOKUP_S)
    for located in waiting:
        failure_of(located, Unavailable)
    assert node.street.dialling == []


# -- a key that is wanted -----------------------------------------------------------------------------------------


def by_mallory() -> wire.LookupResult:
    """What a seed says of Bobby that Mallory has signed."""
    signed = user(66).sign("Bobby", ["http://192.0.2.66:3000"], 9)
    return wire.LookupResult(signed.record, signed.sig, 0, "seedX", True, 0)


def test_seeds_that_say_another_key_are_passed_over(node: Searcher) -> None:
    """Also what the home said a moment ago is no answer for who wants another key."""
    light(node, "s1:1", by_mallory())
    for address in node.addresses.known():
        if address != "s1:1":
            light(node, address, found())
    node.move_to("s1:1")
    assert result_of(node.locate()).said == by_mallory()
    for _ in range(2):
        wanted = start(node.finding.locate("Bobby", print_=BOBBY.fingerprint))
        node.settle()
        assert result_of(wanted).said == found()
    assert result_of(node.locate()).said == found()


def test_when_nobody_knows_the_key_that_is_wanted(node: Searcher) -> None:
    """All are asked, and then it is what the first has said; whoever wanted it has to look. For MISSING_TTL_S they are
    not asked again."""
    light(node, "s1:1", by_mallory())
    for address in node.addresses.known():
        if address != "s1:1":
            light(node, address, UserNotFound())
    node.move_to("s1:1")

    def want() -> wire.LookupResult | None:
        wanted = start(node.finding.locate("Bobby", print_=BOBBY.fingerprint))
        node.settle()
        return result_of(wanted).said

    assert want() == by_mallory()
    assert len(set(node.street.dialled)) == 60
    for address in node.addresses.known():
        if address != "s1:1":
            light(node, address, found())
    assert want() == by_mallory()
    node.street.run(MISSING_TTL_S)
    assert want() == found()


# -- neighbours ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ip", "home", "neighbour"),
    [("127.0.0.1", "s1:1", True), ("127.0.0.1", "seedY", False), ("192.0.2.9", "s1:1", False)],
)
def test_who_is_registered_at_a_seed_on_this_machine(node: Searcher, ip: str, home: str, neighbour: bool) -> None:
    """A neighbour is who has registered at the home seed itself, and that only when it is on this machine: it has seen
    where the registration came from. What it has heard from other seeds says nothing of that."""
    light(node, "s1:1", msgspec.structs.replace(found(), home=home.replace(":", "-")))
    node.move_to("s1:1", ip)
    located = result_of(node.locate())
    assert located.neighbour is neighbour


@pytest.mark.parametrize(("uri", "neighbour"), [("http://192.0.2.1:3000", True), ("http://127.0.0.1:22", False)])
def test_a_neighbour_whose_newer_record_the_seed_has_not_seen(node: Searcher, uri: str, neighbour: bool) -> None:
    """A contact who is registered at the seed on this machine, and sends a newer record by mail, is a neighbour at the
    addresses that the seed has seen, and at no other."""
    node.meet(seq=5, uri=uri)
    light(node, "s1:1", msgspec.structs.replace(found(), home="s1-1"))
    node.move_to("s1:1", "127.0.0.1")
    located = result_of(node.locate())
    assert (located.record.seq, located.neighbour) == (5, neighbour)


def test_no_other_seed_can_make_neighbours(node: Searcher) -> None:
    """One that says of a user what only the home seed can know is not believed."""
    light(node, "s1:1", UserNotFound())
    for address in node.addresses.known():
        if address != "s1:1":
            light(node, address, msgspec.structs.replace(found(), home="s1-1"))
    node.move_to("s1:1", "127.0.0.1")
    assert not result_of(node.locate()).neighbour
