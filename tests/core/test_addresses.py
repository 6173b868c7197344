"""Which seeds a user's node knows, and whom it tries next."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproto.core.addresses import RETRY_FIRST_S, RETRY_MAX_S, SEEDS_MAX, SWITCH_MAX_S, Addresses
from meshproto.wire import SeedInfo


def addresses(given: list[str], learnt: list[str] | None = None) -> Addresses:
    return Addresses(given, learnt or [], random.Random(1))


def info(name: str, address: str, *, alive: bool = True) -> SeedInfo:
    return SeedInfo(name, address, alive, 0)


class TestKnown:
    def test_given_first_each_once(self) -> None:
        """An address that is given and learnt, or given twice, is one."""
        assert addresses(["b:1", "a:1", "b:1"], ["c:1", "a:1", "c:1"]).known() == ["b:1", "a:1", "c:1"]

    def test_told(self) -> None:
        """What a home seed tells of is learnt, except what is given and what cannot be dialled."""
        known = addresses(["a:1"])
        known.told([info("A", "a:1"), info("B", "b:1"), info("C", "c:1", alive=False), info("D", "nowhere")])
        assert known.learnt == ["b:1", "c:1"]

    def test_who_shares_a_directory(self) -> None:
        """By address, also where a seed is known under another than it tells of; and no longer than it is said."""
        known = addresses(["localhost:1"])
        known.answered("localhost:1", "A")
        shared = msgspec.structs.replace(info("A", "127.0.0.1:1"), directory="one")
        known.told([shared, info("B", "b:1")])
        assert known.directories == {"localhost:1": "one", "127.0.0.1:1": "one"}
        known.told([info("A", "127.0.0.1:1"), info("B", "b:1")])
        assert known.directories == {}
        known.told([shared, info("B", "b:1")])
        known.ended("localhost:1")  # whoever answers there next may share another, or none
        assert known.directories == {"127.0.0.1:1": "one"}

    def test_nobody_is_given_up(self) -> None:
        """A seed that a home does not tell of is kept, whether its name is known or not."""
        known = addresses(["a:1"], ["from-disk:1"])
        known.told([info("A", "a:1"), info("B", "b:1")])
        known.told([info("A", "a:1")])
        assert sorted(known.known()) == ["a:1", "b:1", "from-disk:1"]

    def test_who_has_moved(self) -> None:
        """A seed that is told of at another address is known there alone."""
        known = addresses(["a:1"])
        known.told([info("B", "b:1")])
        known.told([info("B", "b:2")])
        assert known.known() == ["a:1", "b:2"]

    def test_another_lives_there_now(self) -> None:
        """Where another seed answers than was told, that seed is kept when the former one is told of elsewhere."""
        known = addresses(["a:1"])
        known.told([info("B", "b:1")])
        known.answered("b:1", "C")
        known.told([info("B", "b:2")])
        assert sorted(known.known()) == ["a:1", "b:1", "b:2"]

    def test_seeds_max(self) -> None:
        """SEEDS_MAX addresses are learnt at most, those told of last before those from earlier; from disk likewise."""
        known = addresses(["a:1"], [f"old:{number}" for number in range(1, SEEDS_MAX + 2)])
        assert len(known.learnt) == SEEDS_MAX
        known.told([info(f"S{number}", f"new:{number}") for number in range(1, SEEDS_MAX)])
        assert (len(known.learnt), known.learnt[-2:]) == (SEEDS_MAX, [f"new:{SEEDS_MAX - 1}", "old:1"])

    def test_one_seed_of_two_addresses(self) -> None:
        """While the seed that is told of at a learnt address answers at a given one it is known there alone."""
        known = addresses(["localhost:1"])
        known.answered("localhost:1", "A")
        known.told([info("A", "127.0.0.1:1"), info("B", "b:1")])
        assert known.known() == ["localhost:1", "b:1"]

    def test_a_given_address_without_a_connection(self) -> None:
        """Once nobody answers at a given address any more, who lived there counts as living where it is told of."""
        known = addresses(["a:1"])
        known.answered("a:1", "A")
        known.answered("a:1", "A")
        known.told([info("A", "moved:1")])
        known.ended("a:1")
        assert known.known() == ["a:1"]  # the other connection still stands
        known.ended("a:1")
        assert known.known() == ["a:1", "moved:1"]

    def test_another_seed_at_a_given_address(self) -> None:
        """The seed that answers at a given address is who lives there, whoever did before."""
        known = addresses(["a:1"])
        known.answered("a:1", "A")
        known.told([info("A", "moved:1"), info("Z", "z:1")])
        known.answered("a:1", "Z")
        assert known.known() == ["a:1", "moved:1"]

    def test_what_answers_counts_more_than_what_is_told(self) -> None:
        """A seed that tells of itself at the address of another, which answers there, hides nobody."""
        known = addresses(["a:1"])
        known.answered("a:1", "A")
        known.told([info("Liar", "a:1"), info("B", "b:1")])
        known.told([info("Liar", "b:1")])
        assert known.known() == ["a:1", "b:1"]


class TestWhatIsLearnt:
    PLAIN = "b:1"
    TLS = "tls:c:1"

    def test_by_tls_alone(self) -> None:
        """A node that was given seeds by TLS alone learns no others: neither from a home nor from its disk."""
        known = addresses(["tls:a:1"], [self.PLAIN, self.TLS])
        assert known.known() == ["tls:a:1", self.TLS]
        known.told([info("B", self.PLAIN), info("D", "tls:d:1")])
        assert sorted(known.known()) == ["tls:a:1", self.TLS, "tls:d:1"]
        assert self.PLAIN not in {known.next() for _ in range(3)} | set(known.to_ask(at_home=True))

    def test_who_is_told_of_without_tls_has_not_moved(self) -> None:
        known = addresses(["tls:a:1"], [self.TLS])
        known.told([info("C", self.TLS)])
        known.told([info("C", "c:1", alive=False)])
        assert sorted(known.to_ask(at_home=True)) == ["tls:a:1", self.TLS]

    def test_of_both_kinds(self) -> None:
        """A node that was given one seed in the clear takes what it is told of."""
        known = addresses(["tls:a:1", "a:2"], [self.PLAIN])
        known.told([info("C", self.TLS)])
        assert sorted(known.learnt) == [self.PLAIN, self.TLS]

    @pytest.mark.parametrize("address", ["169.254.169.254:80", "0.0.0.0:1", "tls:[ff02::1]:1", "2852039166:80"])
    @pytest.mark.parametrize("home", ["192.0.2.1", "127.0.0.1", "169.254.169.254"])
    def test_what_is_never_dialled(self, address: str, home: str) -> None:
        """A cloud's credentials, what is unspecified, and what is multicast: unless the owner says so."""
        known = addresses(["localhost:1", "[fe80::1]:1"], [address])
        known.told([info("B", address)], home)
        assert known.learnt == []
        assert addresses([address]).known() == [address]

    @pytest.mark.parametrize(
        ("address", "given", "home"),
        [
            ("127.0.0.1:6379", "localhost:1", "127.0.0.1"),
            ("127.1:6379", "tls:[::1]:1", "::1"),
            ("localhost:6379", "a:1", "127.0.0.1"),
            ("[fe80::2]:1", "[fe80::1]:1", "fe80::1%eth0"),
            ("169.254.7.7:1", "a:1", "169.254.8.8"),
        ],
    )
    def test_this_machine_and_this_link(self, address: str, given: str, home: str) -> None:
        """What is there is learnt by a node whose home, or a seed that it was given, is there too."""
        if given.startswith("tls:"):
            address = f"tls:{address}"
        near = addresses([given])
        near.told([info("B", address)], home)
        assert near.learnt == [address]
        far = addresses(["tls:a:1" if given.startswith("tls:") else "a:1"], [address])
        far.told([info("B", address)], "192.0.2.1")
        assert far.learnt == []


class TestToAsk:
    def test_at_home_the_dead_are_not_asked(self) -> None:
        """A node with a home leaves out the seeds that are dead; those given it asks last."""
        known = addresses(["a:1", "b:1"])
        known.told([info("C", "c:1", alive=False), info("D", "d:1"), info("E", "e:1")])
        known.silent("a:1")
        known.silent("d:1")
        order = known.to_ask(at_home=True)
        assert (sorted(order), order[-1]) == (["a:1", "b:1", "e:1"], "a:1")

    def test_without_home_the_dead_are_asked_last(self) -> None:
        """A node without a home asks everybody."""
        known = addresses(["a:1"])
        known.told([info("C", "c:1", alive=False), info("D", "d:1")])
        order = known.to_ask(at_home=False)
        assert (sorted(order[:2]), order[2:]) == (["a:1", "d:1"], ["c:1"])

    def test_who_answers_is_not_dead(self) -> None:
        """A seed that was silent and answers is asked like any other."""
        known = addresses(["a:1"], ["b:1"])
        known.silent("b:1")
        known.answered("b:1", "B")
        assert sorted(known.to_ask(at_home=True)) == ["a:1", "b:1"]

    def test_the_homes_word(self) -> None:
        """Whom the home calls alive is asked again; of whom it says nothing, silence is remembered."""
        known = addresses(["a:1"], ["b:1", "c:1"])
        known.silent("b:1")
        known.silent("c:1")
        known.told([info("B", "b:1")])
        assert sorted(known.to_ask(at_home=True)) == ["a:1", "b:1"]


class TestHomes:
    @given(seed=st.integers(), dead=st.sets(st.integers(0, 9)))
    def test_each_once_a_round(self, seed: int, dead: set[int]) -> None:
        """In a round each known seed is tried once, those found dead after the others."""
        everyone = [f"s{number}:1" for number in range(10)]
        known = Addresses(everyone[:2], everyone[2:], random.Random(seed))
        for number in dead:
            known.silent(f"s{number}:1")
        for _ in range(2):
            tried = [known.next() or "" for _ in everyone]
            assert sorted(tried) == everyone
            assert set(tried[10 - len(dead) :]) == {f"s{number}:1" for number in dead}

    def test_a_home_ends_the_round(self) -> None:
        """After a home was lost every seed is tried, also those tried before it was found."""
        known = addresses(["a:1", "b:1", "c:1"])
        known.next()
        known.settled()
        assert {known.next() for _ in range(3)} == {"a:1", "b:1", "c:1"}

    def test_delays(self) -> None:
        """Within a round the next is tried at once; after it the delay doubles with every round, up to RETRY_MAX_S."""
        known = addresses(["a:1", "b:1"])
        assert known.retry_delay_s() <= SWITCH_MAX_S
        known.failed()
        assert known.retry_delay_s() <= SWITCH_MAX_S
        known.failed()
        assert RETRY_FIRST_S <= known.retry_delay_s() <= 2 * RETRY_FIRST_S
        for _ in range(10_000):
            known.failed()
        assert RETRY_MAX_S / 2 <= known.retry_delay_s() <= RETRY_MAX_S
        known.settled()
        assert known.retry_delay_s() <= SWITCH_MAX_S


@pytest.mark.parametrize("times", [1, 3])
def test_an_end_that_was_not_begun(times: int) -> None:
    """What ends more often than it began leaves the count right for the next."""
    known = addresses(["a:1"])
    for _ in range(times):
        known.ended("a:1")
    known.answered("a:1", "A")
    known.told([info("A", "b:1")])
    assert known.known() == ["a:1"]


class TestNearby:
    def test_as_long_as_it_is_announced(self) -> None:
        """What announces itself on the local network is known after what is given, once, and nothing to remember."""
        known = addresses(["a:1"], ["192.168.7.1:1"])
        known.found(["192.168.7.1:1", "192.168.7.2:1", "a:1"])
        assert known.known() == ["a:1", "192.168.7.1:1", "192.168.7.2:1"]
        assert known.learnt == ["192.168.7.1:1"]
        known.found([])
        assert known.known() == ["a:1", "192.168.7.1:1"]

    def test_nobody_is_known(self) -> None:
        """Where nothing is given there is no seed to try until one is announced; then it is the next."""
        known = addresses([])
        assert known.next() is None
        known.found(["192.168.7.1:1"])
        assert known.next() == "192.168.7.1:1"

    def test_who_is_new_is_tried_before_those_that_were_silent(self) -> None:
        known = addresses(["a:1"])
        known.next()
        known.silent("a:1")
        known.found(["192.168.7.1:1"])
        known.silent("192.168.7.1:1")
        known.found(["192.168.7.1:1", "192.168.7.2:1"])
        assert known.next() == "192.168.7.2:1"

    def test_a_node_of_tls_seeds_stays_with_tls(self) -> None:
        """What is announced without it is not dialled, unless nothing was given at all."""
        announced = ["192.168.7.1:1", "tls:192.168.7.2:1"]
        known = addresses(["tls:a:1"])
        known.found(announced)
        assert known.known() == ["tls:a:1", "tls:192.168.7.2:1"]
        known = addresses([])
        known.found(announced)
        assert known.known() == announced

    @pytest.mark.parametrize("address", ["127.0.0.1:1", "169.254.169.254:1", "224.0.0.1:1", "nowhere"])
    def test_where_no_seed_of_the_network_is(self, address: str) -> None:
        """The table of seeds does not take it either."""
        known = addresses([])
        known.found([address, "169.254.3.4:1"])
        assert known.known() == ["169.254.3.4:1"]

    def test_one_seed_nearby_and_elsewhere(self) -> None:
        """A seed that answers nearby is not asked a second time where others say that it is."""
        known = addresses([])
        known.found(["192.168.7.1:1"])
        known.answered("192.168.7.1:1", "A")
        known.told([info("A", "a:1"), info("B", "b:1")])
        assert known.known() == ["192.168.7.1:1", "b:1"]
