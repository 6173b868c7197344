"""Which letters of a batch are taken."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from meshproto.core.envelope import DEPTH_MAX, MESSAGE_BYTES_MAX, Batch, Letter, are_plain, check_message
from meshproto.core.inbox import sort
from meshproto.errors import CallerError

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


TEXTS = (
    st.builds(lambda depth: b"[" * depth + b"]" * depth, st.integers(DEPTH_MAX - 2, DEPTH_MAX + 2))
    | st.builds(lambda depth: b'{"a":' * depth + b"1" + b"}" * depth, st.integers(DEPTH_MAX - 2, DEPTH_MAX + 2))
    | st.builds(lambda many: b"[" + b"[]," * many + b"1]", st.integers(0, 2 * DEPTH_MAX))
    | st.builds(lambda size: b'"' + b"x" * size + b'"', st.integers(MESSAGE_BYTES_MAX - 4, MESSAGE_BYTES_MAX))
    | st.builds(lambda digits: b"1" * digits, st.integers(195, 405))
    | st.sampled_from(
        [b'"\xff"', b'"\xc3"', b'"\xa4"', b"1e999", b"-1E+0000400", b"1e99", b'"1e999"', b"0", b'"\xc3\xa4"']
    )
    | JSON.map(lambda value: json.dumps(value).encode())
)


@given(st.lists(TEXTS, max_size=8))
def test_what_is_seen_at_once_is_what_is_seen_one_by_one(texts: list[bytes]) -> None:
    """A batch in which all is plain has nothing that is refused; what is not taken is the same in any company."""

    def refused(text: bytes) -> str | None:
        try:
            check_message(text)
        except CallerError as error:
            return error.detail
        return None

    reasons = {str(number): reason for number, text in enumerate(texts) if (reason := refused(text)) is not None}
    letters = [letter(str(number), text) for number, text in enumerate(texts)]
    kept = [one for one in letters if one.id not in reasons]
    assert sort(Batch("", "", "", letters)) == (kept, reasons)
    assert not (are_plain(texts) and reasons)


def test_a_usual_batch_is_plain() -> None:
    """So that the quick way is the way: texts, objects, numbers, nesting as messages have them."""
    usual = [{"text": "ä" * 300, "at": 1_795_343_300_123, "of": [1.5, 1e20, {"a": [[[]]]}]}, "hello", 0, None]
    assert are_plain([json.dumps(one).encode() for one in usual] * 250)
