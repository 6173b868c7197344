"""The room that bodies of requests take: `meshproto.core.bodies`."""

from hypothesis import given
from hypothesis import strategies as st

from meshproto.core.bodies import BODIES_BYTES_MAX, BODY_SURE_S, Bodies


def test_up_to_the_limit() -> None:
    """BODIES_BYTES_MAX fit; a byte more does not, and then the body that wanted it holds nothing."""
    bodies = Bodies()
    assert bodies.add(1, "a", BODIES_BYTES_MAX - 1, 0.0) == []
    assert bodies.add(2, "a", 1, 0.0) == []
    assert bodies.is_full("a", 0.0)
    assert bodies.add(2, "a", 1, 0.0) == [2]
    assert bodies.bytes == BODIES_BYTES_MAX - 1
    assert not bodies.is_full("a", 0.0)


def test_the_oldest_goes_when_it_had_its_time() -> None:
    """For a newer one, and only as many as are needed."""
    bodies = Bodies(100)
    for number in range(4):
        bodies.add(number, "a", 25, float(number))
    assert bodies.add(9, "a", 1, BODY_SURE_S - 0.1) == [9]
    assert not bodies.is_full("a", BODY_SURE_S)
    assert bodies.add(9, "a", 26, BODY_SURE_S + 1) == [0, 1]
    assert bodies.bytes == 76


def test_the_network_that_holds_most_makes_room() -> None:
    """At once, however young its bodies are; the oldest of them first, and only for one that holds less."""
    bodies = Bodies(100)
    for number in range(4):
        bodies.add(number, "a", 20, float(number))
    bodies.add(5, "b", 20, 4.0)
    assert bodies.is_full("a", 4.0)
    assert not bodies.is_full("c", 4.0)
    assert bodies.add(6, "c", 5, 4.0) == [0]
    assert bodies.add(7, "a", 40, 4.0) == [7]
    assert bodies.bytes == 85


def test_a_body_does_not_make_room_for_itself() -> None:
    """The oldest that wants more than there is has to go itself."""
    bodies = Bodies(100)
    bodies.add(1, "a", 60, 0.0)
    bodies.add(2, "a", 40, 0.0)
    assert bodies.add(1, "a", 1, 2 * BODY_SURE_S) == [1]
    assert bodies.bytes == 40


def test_what_is_complete_stays() -> None:
    """It is being worked on; its room is free when that is over."""
    bodies = Bodies(100)
    bodies.add(1, "a", 100, 0.0)
    bodies.complete(1)
    assert bodies.is_full("a", 10 * BODY_SURE_S)
    assert bodies.add(2, "a", 1, 10 * BODY_SURE_S) == [2]
    bodies.end(1)
    assert bodies.add(2, "a", 100, 10 * BODY_SURE_S) == []


def test_what_came_at_once_is_complete() -> None:
    """As long as there is room; it was never under way, and does not go for others."""
    bodies = Bodies(100)
    assert bodies.add_whole(1, 60)
    assert not bodies.add_whole(2, 41)
    bodies.complete(1)
    assert bodies.add(2, "a", 41, 10 * BODY_SURE_S) == [2]
    bodies.end(1)
    assert bodies.bytes == 0


@given(
    st.lists(st.tuples(st.sampled_from("agwce"), st.integers(0, 5), st.integers(1, 60), st.floats(0, 30)), max_size=60)
)
def test_the_sum_is_that_of_what_is_held(steps: list[tuple[str, int, int, float]]) -> None:
    """Whatever comes and goes, in any order: never more than the limit, and nothing is left in the end."""
    bodies, held, now = Bodies(100), dict.fromkeys(range(6), 0), 0.0
    for what, number, amount, passed_s in steps:
        now += passed_s
        match what:
            case "a" | "g":
                held[number] += amount
                for goes in bodies.add(number, "a", amount, now):
                    held[goes] = 0
            case "w":
                held[number] += amount if bodies.add_whole(number, amount) else 0
            case "c":
                bodies.complete(number)
            case "e":
                bodies.end(number)
                held[number] = 0
        assert bodies.bytes == sum(held.values()) <= 100
    for number in held:
        bodies.end(number)
    assert bodies.bytes == 0
