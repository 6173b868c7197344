"""Keys in order while they come and go."""

import hypothesis.strategies as st
from hypothesis import given

from meshproto.core.order import Order

keys = st.text("abc", min_size=1, max_size=3)


@given(st.lists(st.tuples(keys, st.booleans(), keys, st.booleans())))
def test_like_a_sorted_set(steps: list[tuple[str, bool, str, bool]]) -> None:
    """After any coming and going, what comes after any key is what a sorted set would say."""
    present: dict[str, None] = {}
    order = Order(present)
    for key, comes, after, inclusive in steps:
        if comes and key not in present:
            present[key] = None
            order.added(key)
        elif not comes and key in present:
            del present[key]
            order.removed()
        wanted = sorted(each for each in present if each > after or (inclusive and each == after))
        assert list(order.after(after, inclusive=inclusive)) == wanted


def test_settled_does_not_look_at_what_is_new() -> None:
    """A walk through all keys need not sort in what has come meanwhile; what has gone is left out all the same."""
    present = dict.fromkeys("abc")
    order = Order(present)
    for key in present:
        order.added(key)
    assert list(order.after("")) == ["a", "b", "c"]
    present["d"] = None
    order.added("d")
    del present["b"]
    order.removed()
    assert list(order.after("", settled=True)) == ["a", "c"]
    assert list(order.after("")) == ["a", "c", "d"]
