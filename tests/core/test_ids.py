"""Ids that a node makes."""

import random

from hypothesis import given
from hypothesis import strategies as st

from meshproto.core.ids import DRAWN_IDS, ID_RANDOM_BYTES, MessageIds


def test_all_differ() -> None:
    """Also those of one millisecond, and of the next drawing; each has randomness of its own."""
    ids = MessageIds(random.Random(1).randbytes)
    made = [ids.next(1795343300123) for _ in range(3 * DRAWN_IDS)]
    assert len(set(made)) == len(made)
    assert {len(each) for each in made} == {12 + 2 * ID_RANDOM_BYTES}
    assert len({each[-1:] for each in made}) == 16


@given(st.lists(st.integers(0, 2**47), min_size=2))
def test_rise_with_time(times: list[int]) -> None:
    """In the order of their milliseconds."""
    ids = MessageIds(random.Random(2).randbytes)
    made = [ids.next(each) for each in sorted(set(times))]
    assert made == sorted(made)
