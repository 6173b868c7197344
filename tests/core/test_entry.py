"""What is kept of an entry: the same that came, in fewer bytes."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from meshproto.core.entry import pack, pack_own, read_entry, unpack
from meshproto.core.gossip import VERSION_BYTES
from meshproto.core.identity import Record, verify
from meshproto.errors import PeerError
from meshproto.wire import EntryValue, SignedRecord, decode_value, encode_value
from tests.core.users import entry_of, forged, signed, user, value_of

VERSION = bytes(VERSION_BYTES)

times = st.one_of(st.integers(0, 2**53), st.sampled_from([10**12 - 1, 10**12, 1795343300123, 10**13 - 1, 10**13]))
uris = st.lists(
    st.sampled_from(["", "http://192.0.2.7:3000", 'a"b', "a\\b", "a],b", "\xe4", "\n", "\0", "u" * 400]), max_size=3
)
values = st.builds(
    value_of,
    st.one_of(
        st.builds(signed, st.just("UserX"), st.integers(0, 2), owner=st.integers(1, 2), gone=st.booleans()),
        st.builds(lambda uris, seq: user(1).sign("UserX", uris, seq), uris, times),
    ),
    since=times,
    online=st.booleans(),
    seen=times,
    farewells=st.sampled_from([(), (signed("UserX", 1, owner=3, gone=True),)]),
)
texts = st.one_of(
    values.map(encode_value),
    values.map(lambda value: encode_value(value).replace(b'"sig"', b' "sig"')),
    values.map(lambda value: encode_value(value).replace(b'"sig"', b'"more":1,"sig"')),
    st.just(encode_value(value_of(SignedRecord("nonsense", "")))),
    st.binary().filter(bool),
)


class TestPacking:
    @given(st.sampled_from(["userx", "usery", "@"]), texts)
    def test_every_byte_comes_out_again(self, key: str, text: bytes) -> None:
        """Whatever a seed tells, it is passed on as it was told."""
        if not text[0] & 0x80:  # which no JSON text begins with
            assert unpack(pack("seedA", key, text)) == text

    @given(values)
    def test_what_is_read_is_what_was_told(self, value: EntryValue) -> None:
        """An entry says the same as the JSON that it came as."""
        record = decode_value(value.record, Record)
        entry = read_entry("seedA", "userx", VERSION + pack("seedA", "userx", encode_value(value)))
        assert (entry.value, entry.record, entry.signed.sig) == (value, record, value.sig)
        assert (entry.since, entry.seen, entry.online) == (value.since, value.seen, value.online)
        assert (entry.name, entry.key, entry.seq, entry.gone) == (
            record.name,
            record.key,
            record.seq,
            not record.uris,
        )
        assert [each.seq for each in entry.farewells] == [1] * len(value.farewells)

    @given(values)
    def test_own_and_heard_are_kept_alike(self, value: EntryValue) -> None:
        """A seed keeps what it writes itself as the others keep it."""
        assert pack_own("seedA", value) == pack("seedA", "userx", encode_value(value))

    def test_a_quarter_less(self) -> None:
        """That is what it is for."""
        text = encode_value(value_of(signed("UserX", 1795343300123), since=1795343300123, seen=1795343300123))
        assert len(pack("seedA", "userx", text)) < 0.75 * len(text)


class TestReading:
    @pytest.mark.parametrize(
        ("key", "text", "reason"),
        [
            ("usery", encode_value(value_of(signed("UserX", 1))), "stands under usery"),
            ("userx", b"{}", "EntryValue"),
            ("userx", b"7", "EntryValue"),
            ("userx", encode_value(value_of(SignedRecord("{}", ""))), "Record"),
            (
                "userx",
                encode_value(value_of(signed("UserX", 1), farewells=(signed("UserY", 1, gone=True),))),
                "stands under userx",
            ),
        ],
    )
    def test_what_is_no_entry(self, key: str, text: bytes, reason: str) -> None:
        """A value that is no entry, a record that is none, and one under another name are a peer's errors."""
        with pytest.raises(PeerError, match=reason):
            read_entry("seedA", key, VERSION + pack("seedA", key, text))

    def test_a_signature_that_cannot_be_packed(self) -> None:
        """It is kept as it came, and does not fit when it is looked at."""
        value = value_of(SignedRecord(signed("UserX", 1).record, "short"))
        assert not entry_of(value, "seedA", verified=False).check()

    @pytest.mark.parametrize(
        ("value", "fits"),
        [
            (value_of(signed("UserX", 1)), True),
            (value_of(forged(signed("UserX", 1))), False),
            (value_of(signed("UserX", 1), farewells=(signed("UserX", 1, owner=2, gone=True),)), True),
            (value_of(signed("UserX", 1), farewells=(forged(signed("UserX", 1, owner=2, gone=True)),)), False),
            (value_of(signed("UserX", 1), farewells=(signed("UserX", 1, owner=2),)), False),
        ],
        ids=["true", "forged", "true farewell", "forged farewell", "a record that is no farewell"],
    )
    def test_checking(self, value: EntryValue, fits: bool) -> None:
        """All that is signed in it must fit, and a farewell must be one."""
        entry = entry_of(value, "seedA", verified=False)
        assert entry.check() is fits
        assert entry.verified is fits

    def test_what_need_not_be_checked_again(self) -> None:
        """Another presence under the same signatures, but not another record."""
        entry = entry_of(value_of(signed("UserX", 1)), "seedA", verified=True)
        assert entry.signs_the_same(entry_of(value_of(signed("UserX", 1), online=False), "seedA", verified=False))
        assert not entry.signs_the_same(entry_of(value_of(signed("UserX", 2)), "seedA", verified=False))
        assert verify(entry.signed).seq == 1
