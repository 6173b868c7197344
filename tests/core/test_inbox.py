"""Which letters of a batch are taken."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from meshproto.core.envelope import DEPTH_MAX, MESSAGE_BYTES_MAX, Batch, Letter
from meshproto.core.inbox import sort

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


def letter(id_: str, text: bytes) -> Letter:
    return Letter(id_, Raw(text), 1)


def test_kept_in_order() -> None:
    """Letters that can be taken are kept in the order of the batch, around those that cannot."""
    batch = Batch("", "", "", [letter("b", b"1"), letter("bad", b'"\xff"'), letter("a", b"2")])
    kept, refused = sort(batch)
    assert [one.id for one in kept] == ["b", "a"]
    assert list(refused) == ["bad"]
    assert "not UTF-8" in refused["bad"]


def test_too_large() -> None:
    """A message of MESSAGE_BYTES_MAX is taken; one with a byte more is refused, and its sender is told the limit."""
    fits = b'"' + b"x" * (MESSAGE_BYTES_MAX - 2) + b'"'
    kept, refused = sort(Batch("", "", "", [letter("fits", fits), letter("not", fits[:-1] + b'x"')]))
    assert [one.id for one in kept] == ["fits"]
    assert str(MESSAGE_BYTES_MAX) in refused["not"]


def test_too_deep() -> None:
    """Brackets DEPTH_MAX deep are taken, one more is refused."""

    def nested(depth: int) -> bytes:
        return b"[" * depth + b"]" * depth

    kept, refused = sort(Batch("", "", "", [letter("fits", nested(DEPTH_MAX)), letter("not", nested(DEPTH_MAX + 1))]))
    assert [one.id for one in kept] == ["fits"]
    assert "deeper" in refused["not"]


def test_numbers() -> None:
    """A number that no program can hold is refused with the reason, and the letters beside it are kept."""
    kept, refused = sort(
        Batch("", "", "", [letter("fits", b"-0"), letter("huge", b"[1e999]"), letter("long", b"1" * 5000)])
    )
    assert [one.id for one in kept] == ["fits"]
    assert "1e999, which is beyond binary64" in refused["huge"]
    assert "5000 characters" in refused["long"]


@given(st.lists(JSON, min_size=1, max_size=5))
def test_any_json(values: list[Any]) -> None:
    """Whatever is JSON and within the limits is kept as it came."""
    letters = [letter(str(number), json.dumps(value).encode()) for number, value in enumerate(values)]
    assert sort(Batch("", "", "", letters)) == (letters, {})
