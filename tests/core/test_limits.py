"""What one address may take: `meshproto.core.limits`."""

import tracemalloc
from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshproto.core.limits import Buckets, Places, Rate, network_of


class TestNetwork:
    @pytest.mark.parametrize(
        ("host", "network"),
        [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("::1", "::/64"),
            ("", ""),
            ("pipe", "pipe"),
        ],
    )
    def test_who_counts_together(self, host: str, network: str) -> None:
        assert network_of(host) == network


class TestBuckets:
    def test_what_is_given_back(self) -> None:
        """It may be had again, but never more than the burst; a network that has had nothing gets nothing."""
        buckets = Buckets(Rate(per_s=1.0, burst=4.0))
        assert [buckets.take("a", 0.0, 4.0), buckets.take("a", 0.0, 3.0)] == [0.0, 3.0]
        buckets.give_back("a", 3.0)
        assert buckets.take("a", 0.0, 3.0) == 0.0
        buckets.give_back("a", 100.0)
        buckets.give_back("b", 100.0)
        assert [buckets.take(network, 0.0, 4.0) for network in "aabb"] == [0.0, 4.0, 0.0, 4.0]

    def test_a_burst_and_then_the_rate(self) -> None:
        buckets = Buckets(Rate(per_s=2.0, burst=4.0))
        assert [buckets.take("a", 10.0) for _ in range(5)] == [0.0, 0.0, 0.0, 0.0, 0.5]
        assert buckets.take("a", 10.5) == 0.0
        assert buckets.take("a", 10.5) == 0.5

    def test_what_is_full_again_is_forgotten(self) -> None:
        """So what is kept is of those who were there lately, however many came before."""
        buckets = Buckets(Rate(per_s=1.0, burst=4.0))
        for number in range(1000):
            buckets.take(f"network {number}", number / 10, 2.0)
            assert len(buckets) <= 21
        assert buckets.take("network 999", 100.0, 4.0) == pytest.approx(1.9)
        assert buckets.take("network 980", 100.0, 4.0) == 0.0
        for number in range(100):
            assert buckets.take("alone", 1000.0 + number, 4.0) == (0.0 if number % 4 == 0 else 4.0 - number % 4)
        assert len(buckets) == 1

    def test_to_be_refused_costs_nothing(self) -> None:
        buckets = Buckets(Rate(per_s=1.0, burst=1.0))
        buckets.take("a", 0.0)
        for _ in range(100):
            assert buckets.take("a", 0.5) == 0.5
        assert buckets.take("a", 1.0) == 0.0

    def test_each_network_has_its_own(self) -> None:
        buckets = Buckets(Rate(per_s=1.0, burst=1.0))
        assert [buckets.take(network, 0.0) for network in "abc"] == [0.0, 0.0, 0.0]

    def test_more_than_a_burst_at_once_is_given_as_a_burst(self) -> None:
        """Else it could never be had."""
        buckets = Buckets(Rate(per_s=1.0, burst=10.0))
        assert buckets.take("a", 0.0, 1000.0) == 0.0
        assert buckets.take("a", 0.0, 1000.0) == 10.0

    def test_a_clock_that_steps_back_takes_nothing_away(self) -> None:
        buckets = Buckets(Rate(per_s=1.0, burst=2.0))
        assert [buckets.take("a", 100.0), buckets.take("a", 0.0), buckets.take("a", 1.0)] == [0.0, 0.0, 0.0]

    def test_only_so_many_are_remembered(self) -> None:
        buckets = Buckets(Rate(per_s=1.0, burst=1.0), networks_max=2)
        for network in "abc":
            buckets.take(network, 0.0)
        assert len(buckets) == 2
        assert buckets.take("c", 0.0) == 1.0
        assert buckets.take("a", 0.0) == 0.0  # forgotten


class TestPlaces:
    def test_when_somebody_has_to_go(self) -> None:
        places = Places(3, per_network_max=2)
        assert not places.is_full("a")
        places.enter(1, "a")
        places.enter(2, "a")
        assert [places.is_full("a"), places.is_full("b")] == [True, False]
        places.enter(3, "b")
        assert places.is_full("b")
        places.leave(1)
        assert [places.is_full("a"), places.is_full("b")] == [False, False]

    def test_the_idlest_guest_of_a_network_that_has_its_share_goes(self) -> None:
        places = Places(100, per_network_max=2)
        assert [places.enter(1, "a"), places.enter(2, "a")] == [None, None]
        places.heard(1)
        assert places.enter(3, "a") == 2
        assert places.enter(4, "b") is None

    def test_whoever_is_more_than_a_guest_stays(self) -> None:
        places = Places(100, per_network_max=2)
        places.enter(1, "a")
        places.keep(1)
        places.enter(2, "a")
        assert places.enter(3, "a") == 2
        places.keep(3)
        assert places.enter(4, "a") == 4
        assert places.of("a") == 2

    def test_when_all_places_are_taken_the_fullest_network_gives_one(self) -> None:
        places = Places(4, per_network_max=4)
        for number, network in enumerate("abbc"):
            places.enter(number, network)
        assert places.enter(9, "d") == 1
        assert len(places) == 4

    def test_of_nothing_but_kept_ones_nobody_goes_but_the_newcomer(self) -> None:
        """Unless a network has more of them than the newcomer's would have."""
        places = Places(2, per_network_max=2)
        for number, network in enumerate("ab"):
            places.enter(number, network)
            places.keep(number)
        assert places.enter(9, "c") == 9
        assert len(places) == 2

    def test_nobody_holds_all_places_by_being_more_than_a_guest(self) -> None:
        """The idlest of the network that has most goes for one that has fewer."""
        places = Places(6, per_network_max=3)
        for number in range(6):
            places.enter(number, "ab"[number % 2])
            places.keep(number)
        places.heard(0)
        assert places.enter(10, "c") == 2
        places.keep(10)
        assert places.enter(11, "c") == 1
        places.keep(11)
        assert places.enter(12, "c") == 12
        assert (places.of("a"), places.of("b"), places.of("c")) == (2, 2, 2)

    def test_a_guest_again(self) -> None:
        """As idle as one who has just asked."""
        places = Places(100, per_network_max=2)
        places.enter(1, "a")
        places.keep(1)
        places.enter(2, "a")
        places.let_go(1)
        assert places.enter(3, "a") == 2
        assert places.enter(4, "a") == 1

    def test_what_is_remembered_of_those_who_left_is_bounded(self) -> None:
        """However many come and go while one stays whom nobody asks for."""
        places = Places(100, per_network_max=100)
        places.enter(0, "a")
        tracemalloc.start()
        for number in range(1, 20_000):
            places.enter(number, "a")
            places.heard(number)
            places.leave(number)
        kept_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept_bytes < 100_000


class PlacesMachine(RuleBasedStateMachine):
    """Against counting all anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.places = Places(8, per_network_max=4)
        self.network: dict[int, str] = {}
        self.guests: list[int] = []  # the idlest first
        self.kept: list[int] = []  # likewise
        self.last = 0

    @rule(network=st.sampled_from("abcd"))
    def enter(self, network: str) -> None:
        self.last += 1
        goes = self.places.enter(self.last, network)
        before = Counter(self.network.values())
        if before[network] == 4:
            own = [number for number in self.guests if self.network[number] == network]
            assert goes == (own[0] if own else self.last)
        elif len(self.network) == 8:
            idlest = self._idlest(self.guests)
            if not idlest and max(Counter(self.network[number] for number in self.kept).values()) > before[network] + 1:
                idlest = self._idlest(self.kept)
            assert goes in (idlest or {self.last})
        else:
            assert goes is None
        self.network[self.last] = network
        self.guests.append(self.last)
        if goes is not None:
            self._forget(goes)

    @rule(data=st.data())
    def heard(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, self.last))
        self.places.heard(number)
        for crowd in (self.guests, self.kept):
            if number in crowd:
                crowd.remove(number)
                crowd.append(number)

    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, self.last))
        self.places.keep(number)
        if number in self.guests:
            self.guests.remove(number)
            self.kept.append(number)

    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, self.last))
        self.places.let_go(number)
        if number in self.kept:
            self.kept.remove(number)
            self.guests.append(number)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, self.last))
        self.places.leave(number)
        self._forget(number)

    def _idlest(self, crowd: list[int]) -> set[int]:
        """In each of the networks that have most of the crowd."""
        sizes = Counter(self.network[number] for number in crowd)
        most = max(sizes.values(), default=0)
        return {
            next(number for number in crowd if self.network[number] == network)
            for network, size in sizes.items()
            if size == most
        }

    def _forget(self, number: int) -> None:
        self.network.pop(number, None)
        for crowd in (self.guests, self.kept):
            if number in crowd:
                crowd.remove(number)

    @invariant()
    def counts(self) -> None:
        assert len(self.places) == len(self.network)
        sizes = Counter(self.network.values())
        assert {network: self.places.of(network) for network in "abcd"} == {
            network: sizes[network] for network in "abcd"
        }


TestPlacesMachine = PlacesMachine.TestCase
