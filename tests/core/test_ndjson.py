"""A stream of lines, however it is cut."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from meshproto.core.ndjson import Splitter

LINE_BYTES_MAX = 5
texts = st.lists(st.sampled_from([b"a", b"bc", b" ", b"\r", b"\n", b"\n\n", b"defghi"]), max_size=40).map(b"".join)


def lines(pieces: list[bytes]) -> list[tuple[int, bytes | None]]:
    splitter = Splitter(LINE_BYTES_MAX)
    found = [line for piece in pieces for line in splitter.feed(piece)]
    return [*found, *splitter.end()]


@given(texts, st.lists(st.integers(0, 60)))
def test_cut_anywhere(text: bytes, cuts: list[int]) -> None:
    """The lines are those of the whole text, with their numbers, without white space around them and without blank
    ones; a line that is longer than LINE_BYTES_MAX comes as None."""
    at = sorted({min(cut, len(text)) for cut in (0, *cuts, len(text))})
    pieces = [text[one:other] for one, other in itertools.pairwise(at)]
    whole = [
        (number, None if len(line) > LINE_BYTES_MAX else line.strip())
        for number, line in enumerate(text.split(b"\n"), 1)
        if len(line) > LINE_BYTES_MAX or line.strip()
    ]
    assert lines(pieces) == whole
