"""How much gossip may say at once, how many seeds it follows, and how much work it does."""

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from msgspec import Raw

from meshproto.core.gossip import DIGEST_BYTES_MAX, TOMBSTONE_GRACE_S, Change, Gossip
from meshproto.wire import GOSSIP_SEEDS_MAX, NAME_CHARS_MAX, Cell, Delta, Digest, Summary, encode_value
from tests.core.scuttlebutt import PLENTY_BYTES, over_the_wire, pair, shown, tell

ENTRIES_MANY = 50_000


class Counting(dict[str, Any]):
    """Counts how often anything is looked at in it."""

    looks = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.looks += 1
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.looks += 1
        return super().__getitem__(key)

    def __iter__(self) -> Any:
        raise AssertionError("walks over everything")

    items = values = keys = __iter__


class TestBudget:
    @settings(max_examples=60, deadline=None)
    @given(
        sizes=st.lists(st.lists(st.integers(1, 600), max_size=12), min_size=1, max_size=5),
        bytes_max=st.integers(1000, 6000),
    )
    def test_deltas_fit(self, sizes: list[list[int]], bytes_max: int) -> None:
        """What is told is never longer on the wire than the budget, if a single cell fits into it."""
        teller = Gossip("teller", 2**53)
        for number, space in enumerate(sizes):
            writer = Gossip(f"{number:064}", 2**53)
            for at, size in enumerate(space):
                writer.put(f"{at:064}", encode_value("x" * size))
            tell(writer, teller)
        deltas, more = teller.delta({}, bytes_max)
        assert len(encode_value(deltas)) <= bytes_max
        assert more or sum(len(delta.cells) for delta in deltas) == sum(map(len, sizes))

    def test_one_cell_is_told_whatever_its_size(self) -> None:
        """A cell that is larger than the budget does not stop the exchange for ever."""
        writer, reader = pair("x", "y")
        deltas, more = writer.delta(reader.digest(), 0)
        assert ([cell.key for cell in deltas[0].cells], more) == (["x"], True)

    def test_a_large_cell_does_not_ride_behind_others(self) -> None:
        """The exception for a large cell holds for the first delta only: the line would grow beyond its limit."""
        small, large = Gossip("small", 1000), Gossip("large", 1000)
        small.put("x", b"1")
        for size in (20, 20_000):
            large.put("x", encode_value("x" * size))
        teller, reader = Gossip("teller", 1000), Gossip("reader", 1000)
        for writer in (small, large):
            tell(writer, teller)
        deltas, more = teller.delta(reader.digest(), 1000)
        assert ([delta.seed for delta in deltas], more) == (["teller", "small"], True)

    def test_news_fits(self) -> None:
        """Pushed news stays within its budget; the rest comes with the rounds."""
        writer, _ = pair(*(f"k{at}" for at in range(100)))
        news = writer.news(10, 1000)
        assert len(encode_value(news)) <= 1000
        assert (news.base, news.head) == (10, 100)
        assert 10 < news.upto < 100


class TestWork:
    def test_one_change_among_many_keys(self) -> None:
        """Telling and merging one change looks at that change alone, however large the space is."""
        writer, reader = pair(*(f"k{at}" for at in range(ENTRIES_MANY)))
        tell(writer, reader)
        writer.put("k7", b'"second"')
        writer.own.values = Counting(writer.own.values)
        space = reader.spaces["writer"]
        space.values = Counting(space.values)
        assert tell(writer, reader) == [Change("writer", "k7", b'"second"')]
        assert (writer.own.values.looks, space.values.looks) == (1, 1)

    def test_collecting_one_tombstone_among_many_keys(self) -> None:
        """Collecting looks at what was written since the last collection, not at the whole space."""
        writer, _ = pair(*(f"k{at}" for at in range(ENTRIES_MANY)))
        writer.delete("k1", 0.0)
        writer.collect(TOMBSTONE_GRACE_S)
        writer.delete("k2", TOMBSTONE_GRACE_S)
        writer.own.values = Counting(writer.own.values)
        writer.collect(2 * TOMBSTONE_GRACE_S)
        assert writer.own.values.looks == 1
        assert len(writer.own.values) == ENTRIES_MANY - 2

    def test_a_key_that_is_written_for_ever(self) -> None:
        """The log of a space is compacted: telling of one key written 100,000 times looks at 2,000 writes at most."""
        writer, reader = pair()
        for number in range(100_000):
            writer.put("x", b"%d" % number)
        writer.own.values = Counting(writer.own.values)
        assert tell(writer, reader) == [Change("writer", "x", b"99999")]
        assert writer.own.values.looks <= 2000


class TestSeedsMax:
    def crowd(self, chars: int = 4) -> Gossip:
        """A seed that has heard of more others than it can follow, with names of so many characters."""
        full = Gossip("full", 1000)
        told = Summary(1_795_343_300_123, 12_345_678, 12_345_678, 0)
        full.heard({f"{at:0{chars}}": told for at in range(2 * GOSSIP_SEEDS_MAX)})
        return full

    def test_no_more_spaces_are_taken_up(self) -> None:
        """Neither a digest nor a delta adds a seed beyond the limit, and its digest still decodes."""
        full = self.crowd()
        stranger, _ = pair("x")
        full.heard(stranger.digest())
        assert full.merge(stranger.news(0, PLENTY_BYTES)) == []
        assert len(full.spaces) == GOSSIP_SEEDS_MAX
        digest: Digest = over_the_wire(full.digest(), []).digest
        assert len(digest) == GOSSIP_SEEDS_MAX

    @pytest.mark.parametrize("chars", [4, 20, NAME_CHARS_MAX])
    def test_a_digest_fits_whatever_the_names(self, chars: int) -> None:
        """With long names fewer seeds are followed: the digest of all stays within its share of a line."""
        full = self.crowd(chars)
        assert len(encode_value(full.digest())) <= DIGEST_BYTES_MAX
        stranger = "x" * NAME_CHARS_MAX
        assert full.merge(Delta(stranger, 1000, 0, 1, 1, 0, [Cell("x", 1, Raw(b"1"))])) == []

    def test_those_known_go_on(self) -> None:
        """A full seed still follows the seeds that it knows."""
        full = self.crowd()
        (known, *_) = (seed for seed in full.spaces if seed != full.seed)
        news = Delta(known, 1_795_343_300_123, 0, 1, 1, 0, [Cell("x", 1, Raw(b"1"))])
        assert [shown(change) for change in full.merge(news)] == [Change(known, "x", b"1")]

    @pytest.mark.parametrize("chars", [4, 20, NAME_CHARS_MAX])
    def test_a_full_reader_is_not_told_of_strangers(self, chars: int) -> None:
        """What a full seed cannot take is not offered to it: the exchange would never end."""
        stranger = Gossip("x" * NAME_CHARS_MAX, 1000)
        stranger.put("x", b"1")
        assert stranger.delta(self.crowd(chars).digest(), PLENTY_BYTES) == ([], False)
