"""The lines of a bulk run on their way: cut, given what they lack, held until they are answered."""

import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meshproto.cli.feed import READ_BYTES, Feed, Source, dressed
from meshproto.client import under_way
from meshproto.client.under_way import AHEAD_BYTES, AHEAD_LINES, LINE_BYTES_MAX

RUN = "r"


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """A source that reads a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        yield Source(fd)
    finally:
        os.close(fd)


def drained(source: Source) -> Iterator[bytes]:
    """Every line."""
    while not source.ended:
        line = source.take()
        if line is None:
            source.fill()
        else:
            yield line


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a\nb", [b"a", b"b"]),
        (b"a\n\nb\n", [b"a", b"", b"b"]),
        (b"x" * LINE_BYTES_MAX + b"\ny", [b"x" * LINE_BYTES_MAX, b"y"]),
        (b"x" * (LINE_BYTES_MAX + 1) + b"\ny", [b"x" * (LINE_BYTES_MAX + 1), b"y"]),
        (b"x" * (LINE_BYTES_MAX + 5 * READ_BYTES) + b"\ny\n", [b"x" * (LINE_BYTES_MAX + 1), b"y"]),
        (b"x" * (LINE_BYTES_MAX + 5 * READ_BYTES), [b"x" * (LINE_BYTES_MAX + 1)]),
        (b"y\n" * READ_BYTES, [b"y"] * READ_BYTES),
    ],
)
def test_lines(tmp_path: Path, text: bytes, lines: list[bytes]) -> None:
    """Each line once and whole; one that is too long is cut so that it is still too long."""
    (tmp_path / "a").write_bytes(text)
    with opened(tmp_path / "a") as source:
        assert list(drained(source)) == lines
        assert source.number == len(lines)


def test_the_limit_is_the_nodes() -> None:
    """A line that the node would take is never cut."""
    from meshproto.net.asked import SEND_BYTES_MAX

    assert LINE_BYTES_MAX == SEND_BYTES_MAX


@pytest.mark.parametrize(
    ("line", "sent", "message_id"),
    [
        (b'{"to":"a","message":1e2}', b'{"to":"a","message":1e2,"id":"r-1"}', "r-1"),
        (b'{"message":"\xc3\xbc" }', b'{"message":"\xc3\xbc","id":"r-1"}', "r-1"),
        (b"{ }", b'{"id":"r-1"}', "r-1"),
        (b'{"id":"7"}', b'{"id":"7"}', "7"),
        (b'{"id":null}', b'{"id":null,"id":"r-1"}', "r-1"),
        (b'{"id":7}', b'{"id":7}', None),
        (b'{"n":' + b"1" * 5000 + b"}", b'{"n":' + b"1" * 5000 + b',"id":"r-1"}', "r-1"),
        (b"[1]", b"[1]", None),
        (b"{", b"{", None),
        (b"\xff", b"\xff", None),
        (b"[" * 100_000, b"[" * 100_000, None),
    ],
)
def test_a_line_gets_its_id_and_stays_what_it_is(line: bytes, sent: bytes, message_id: str | None) -> None:
    """Its own bytes are not touched; what is no JSON object goes out as it is."""
    assert dressed(line, "r-1", {}) == (sent, message_id)


def test_what_a_line_lacks_is_added() -> None:
    """`--to`, `--ttl` and `--wait` are for lines that do not say it, be it null."""
    defaults = {"to": '"UserX"', "wait": "0"}
    assert dressed(b'{"to":"a"}', "r-1", defaults)[0] == b'{"to":"a","wait":0,"id":"r-1"}'
    assert dressed(b'{"to":null,"id":"7"}', "r-1", defaults)[0] == b'{"to":null,"id":"7","wait":0}'


def of_file(path: Path, wants: Callable[[int], bool] = lambda _: True) -> Feed:
    """A feed of a file that stays open."""
    return Feed(Source(os.open(path, os.O_RDONLY)), wants, RUN, {})


def test_no_more_lines_are_under_way_than_may_be(tmp_path: Path) -> None:
    """The writer stops at the bound, and each answer lets one line follow."""
    (tmp_path / "a").write_bytes(b"{}\n" * (2 * AHEAD_LINES))
    feed = of_file(tmp_path / "a")
    assert sum(piece.count(b"\n") for piece in iter(feed.next_bytes, b"")) == AHEAD_LINES
    assert feed.waits_on() is None
    feed.settle("", {})
    assert feed.waits_on() is not None
    assert feed.next_bytes().count(b"\n") == 1


def test_no_more_bytes_are_under_way_than_may_be(tmp_path: Path) -> None:
    """Long lines count by their length."""
    line = b'{"m":"' + b"x" * 300_000 + b'"}\n'
    (tmp_path / "a").write_bytes(line * (2 * AHEAD_BYTES // len(line)))
    feed = of_file(tmp_path / "a")
    assert sum(map(len, iter(feed.next_bytes, b""))) <= AHEAD_BYTES + len(line) + 100


def test_what_is_not_answered_goes_out_again(tmp_path: Path) -> None:
    """The same bytes in the same order, and only then what was not read yet."""
    (tmp_path / "a").write_bytes(b'{"a":1}\n\n{"a":2}\n \r\n{"a":3}\n{"a":4}')
    feed = of_file(tmp_path / "a", wants=lambda number: number != 5)
    first = feed.next_bytes().splitlines()
    assert [json.loads(line)["id"] for line in first] == ["r-1", "r-3", "r-6"]
    feed.settle("", {})
    due = feed.due()
    assert due is not None
    assert due.number == 3
    feed.rewind()
    assert (feed.waiting, feed.held, feed.ended) == (False, True, False)
    assert feed.next_bytes().splitlines() == first[1:]
    assert feed.ended


def test_memory_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the lines, or one line of many megabytes, take no more memory: all there is is what is under way."""
    monkeypatch.setattr(under_way, "AHEAD_LINES", 100)

    def peak(text: bytes) -> int:
        (tmp_path / "a").write_bytes(text)
        feed = of_file(tmp_path / "a")
        tracemalloc.start()
        while feed.wait():
            feed.next_bytes()
            while feed.due() is not None:
                feed.settle("", {})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    small = peak(b'{"message":"some text"}\n' * 1000)
    assert peak(b'{"message":"some text"}\n' * 10_000) < small + 100_000
    assert peak(b"x" * 8_000_000) < small + 6 * LINE_BYTES_MAX
