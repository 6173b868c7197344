"""Who makes room for whom: `meshproto.core.waiting`."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from meshproto.core.waiting import WaitingRoom

ROOMY = 10**9


def test_a_network_has_its_share() -> None:
    """Of one more its own longest-waiting one goes."""
    room = WaitingRoom(places_max=9, per_network_max=2, bytes_max=ROOMY)
    assert [room.enter(number, network, 1) for number, network in enumerate("aaba")] == [[], [], [], [0]]
    assert len(room) == 3


def test_all_places_are_taken() -> None:
    """The longest-waiting one of the network that has most goes: who is alone stays until all are alone; then whoever
    has waited longest."""
    room = WaitingRoom(places_max=3, per_network_max=9, bytes_max=ROOMY)
    assert [room.enter(number, network, 1) for number, network in enumerate("abbcd")] == [[], [], [], [1], [0]]
    assert room.enter(5, "b", 1) == [2]  # who comes a second time does not take the place of who came once


def test_bytes() -> None:
    """The same of the network that holds most, as many as it takes; or the newcomer, who would."""
    room = WaitingRoom(places_max=9, per_network_max=9, bytes_max=10)
    assert [room.enter(number, network, 3) for number, network in enumerate("aab")] == [[], [], []]
    assert room.enter(3, "c", 5) == [0, 3]
    assert room.enter(4, "c", 4) == []


def test_who_has_left() -> None:
    """Leaves a place, once."""
    room = WaitingRoom(places_max=1, per_network_max=1, bytes_max=1)
    room.enter(0, "a", 1)
    room.leave(0)
    room.leave(0)
    assert room.enter(1, "b", 1) == []


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 12), st.booleans())))
def test_never_more(history: list[tuple[str, int, bool]]) -> None:
    """Whoever comes and goes, the limits hold, and nobody with less of what there is too little of goes for others."""
    room = WaitingRoom(places_max=5, per_network_max=3, bytes_max=10)
    inside: dict[int, tuple[str, int]] = {}
    for number, (network, held, leaves) in enumerate(history):
        if leaves and inside:
            one = next(iter(inside))
            room.leave(one)
            del inside[one]
        goes = room.enter(number, network, held)
        inside[number] = network, held
        for one in goes:
            del inside[one]
        assert len(room) == len(inside) <= 5
        assert sum(held for _, held in inside.values()) <= 10
        assert max(Counter(network for network, _ in inside.values()).values(), default=0) <= 3
