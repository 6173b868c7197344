"""Keys, fingerprints and signed records."""

import base64
import hashlib
import json
import random
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.exceptions import CryptoError
from nacl.public import Box
from nacl.signing import SigningKey, VerifyKey

from meshproto.core.identity import (
    BOXES_MAX,
    MAIL_KEYS_KEPT,
    RECORD_DOMAIN,
    RECORDS_REMEMBERED_MAX,
    REMEMBERED_CHARS_MAX,
    Identity,
    Record,
    b64,
    check_uri,
    fingerprint,
    grouped,
    next_seq,
    parse_address,
    parse_fingerprint,
    unb64,
    verify,
    verify_once,
)
from meshproto.errors import BadParams, BadSignature, MeshError
from meshproto.wire import RECORD_CHARS_MAX, URI_CHARS_MAX, URIS_MAX, SignedRecord, decode_value, encode_value

NOW_MS = 1_795_343_300_123
URI = "http://192.0.2.7:3000"


def identity(seed: int = 1) -> Identity:
    return Identity.create(random.Random(seed).randbytes, NOW_MS)


ME = identity()
SIGNED = ME.sign("UserX", [URI], NOW_MS)


def signed_text(text: str, key: SigningKey = ME.signing, domain: bytes = RECORD_DOMAIN) -> SignedRecord:
    return SignedRecord(text, b64(key.sign(domain + text.encode()).signature))


def record_text(**fields: Any) -> str:
    """A record's JSON, with other or more fields than the usual ones."""
    usual = {"name": "UserX", "uris": [URI], "key": b64(ME.key), "mail": b64(bytes(ME.mail.public_key)), "seq": 1}
    return json.dumps(usual | fields)


# -- base64url ----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=70))
def test_base64url_round_trip(data: bytes) -> None:
    """Bytes come back, from text without padding."""
    assert unb64(b64(data)) == data
    assert "=" not in b64(data)


@given(st.text(alphabet="AQgwxyz-_+/=\n é", max_size=9))
def test_bytes_have_one_text(text: str) -> None:
    """Only the text that `b64` writes is read: no padding, no other alphabet, no stray bits, no line breaks."""
    try:
        data = unb64(text)
    except BadParams:
        return
    assert b64(data) == text


@given(st.binary(max_size=70), st.integers(0), st.characters(max_codepoint=255))
def test_texts_are_read_as_the_standard_librarys(data: bytes, at: int, char: str) -> None:
    """Also one with a letter changed: what is read of it is what the standard library reads, or nothing."""
    text = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    assert b64(data) == text
    at %= len(text) + 1
    changed = text[:at] + char + text[at + 1 :]
    try:
        read = unb64(changed)
    except BadParams:
        return
    assert base64.urlsafe_b64encode(read).rstrip(b"=").decode() == changed


@pytest.mark.parametrize("text", ["QQ=", "QQ==", "QR", "+/8", "A", "QQ\n", "Q Q", "é"])
def test_other_texts_are_refused(text: str) -> None:
    """Padding, the other alphabet and bits that belong to no byte raise BadParams."""
    with pytest.raises(BadParams, match="base64url"):
        unb64(text)


def test_a_length_can_be_asked_for() -> None:
    """Fewer or more bytes than expected raise BadParams."""
    assert unb64(b64(bytes(32)), 32) == bytes(32)
    for length in (31, 33):
        with pytest.raises(BadParams, match=f"{length} bytes where 32"):
            unb64(b64(bytes(length)), 32)


# -- fingerprints and addresses -----------------------------------------------------------------------------------


def test_a_fingerprint_is_80_bits_of_sha_256_in_base32() -> None:
    """16 characters, which decode to the first ten bytes of the hash."""
    print_ = fingerprint(ME.key)
    assert base64.b32decode(print_.upper()) == hashlib.sha256(ME.key).digest()[:10]
    assert (ME.fingerprint, len(print_), print_.lower()) == (print_, 16, print_)


def test_fingerprints_are_remembered_by_the_key() -> None:
    """No more than RECORDS_REMEMBERED_MAX of them; what was forgotten is made anew."""
    keys = [number.to_bytes(32, "big") for number in range(RECORDS_REMEMBERED_MAX + 10)]
    prints = [fingerprint(key) for key in keys]
    assert prints == [fingerprint(key) for key in keys] and len(set(prints)) == len(keys)
    assert fingerprint.cache_info().currsize == RECORDS_REMEMBERED_MAX


@pytest.mark.parametrize(
    "written", ["kzdvvj2umnduyauf", "KZDV-VJ2U-MNDU-YAUF", " kzdv vj2u mndu yauf\n", grouped("kzdvvj2umnduyauf")]
)
def test_a_fingerprint_is_read_as_people_write_it(written: str) -> None:
    """With dashes, spaces and capitals."""
    assert parse_fingerprint(written) == "kzdvvj2umnduyauf"


def test_groups_are_of_four() -> None:
    """A fingerprint to compare by eye."""
    assert grouped("kzdvvj2umnduyauf") == "kzdv-vj2u-mndu-yauf"


@pytest.mark.parametrize(
    "text", ["", "kzdvvj2umnduyau", "kzdvvj2umnduyauff", "kzdvvj2umnduyau1", "k\u00e9vvj2umnduyauf"]
)
def test_other_fingerprints_are_refused(text: str) -> None:
    """Another length or alphabet is told of."""
    with pytest.raises(BadParams, match="is no fingerprint"):
        parse_fingerprint(text)


def test_an_address_is_a_name_with_or_without_fingerprint() -> None:
    """A bare name works everywhere; a fingerprint is compared in lower case."""
    print_ = ME.fingerprint
    assert parse_address("UserX") == ("UserX", None)
    assert parse_address(f"UserX~{print_}") == ("UserX", print_)
    assert parse_address(f"UserX~{print_.upper()}") == ("UserX", print_)


BAD_ADDRESSES = [
    "~",
    "UserX~",
    "~aaaaaaaaaaaaaaaa",
    "U~aaaaaaaaaaaaaaa",
    "U~aaaaaaaaaaaaaaaaa",
    "U~aaaaaaaaaaaaaaa1",
    "U~~aaaaaaaaaaaaaaaa",
    "U~aaaaaaaaaaaaaaaa~aaaaaaaaaaaaaaaa",
]


@pytest.mark.parametrize("text", [*BAD_ADDRESSES, "", "a b", "UserX\n", "U~aaaaaaaaaaaaaaaa\n", "n" * 65, "~" * 5000])
def test_other_addresses_are_refused(text: str) -> None:
    """Anything else raises BadParams, which quotes no more than 100 characters."""
    with pytest.raises(BadParams) as raised:
        parse_address(text)
    assert len(raised.value.detail) < 250


# -- records ------------------------------------------------------------------------------------------------------


def test_a_record_says_what_was_signed() -> None:
    """The owner's name, addresses, keys and sequence come back from a verified record."""
    assert verify(SIGNED) == Record("UserX", [URI], b64(ME.key), b64(bytes(ME.mail.public_key)), NOW_MS)
    assert verify(SIGNED).key_bytes == ME.key
    assert verify(SIGNED).mail_bytes == bytes(ME.mail.public_key)


def test_the_signature_covers_the_domain_and_the_text_byte_for_byte() -> None:
    """Ed25519 over `meshproto record 1`, a newline, and exactly the text that travels."""
    VerifyKey(ME.key).verify(b"meshproto record 1\n" + SIGNED.record.encode(), unb64(SIGNED.sig))


def test_any_text_its_owner_signed_is_a_record() -> None:
    """Nothing is canonicalised: other spacing, order, escapes and unknown fields are the signer's business."""
    text = json.dumps(json.loads(record_text(later={"x": [1]}, note="ü")), indent=2, sort_keys=True)
    assert verify(signed_text(text)).name == "UserX"
    with pytest.raises(BadSignature):
        verify(SignedRecord(json.dumps(json.loads(text)), signed_text(text).sig))


def again(signed: SignedRecord) -> SignedRecord:
    """The same, as it comes by another way."""
    return decode_value(encode_value(signed), SignedRecord)


class TestRemembered:
    """A record that is the same to the byte is not verified twice."""

    def test_the_same_is_what_it_was(self) -> None:
        first = verify_once(SIGNED)
        assert verify_once(again(SIGNED)) is first

    @settings(max_examples=200)
    @given(st.integers(0, len(SIGNED.record) + len(SIGNED.sig) - 1), st.integers(1, 127))
    def test_nothing_else_is(self, at: int, flip: int) -> None:
        """Neither with a changed text nor with a changed signature; and what was refused once is refused again, while
        the right one is still what it was."""
        first = verify_once(SIGNED)
        both = bytearray((SIGNED.record + SIGNED.sig).encode())
        both[at] ^= flip
        changed = both.decode()
        forged = SignedRecord(changed[: len(SIGNED.record)], changed[len(SIGNED.record) :])
        for _ in range(2):
            with pytest.raises((BadSignature, BadParams)):
                verify_once(forged)
        assert verify_once(again(SIGNED)) is first

    def test_two_good_ones_are_two(self) -> None:
        """Of one key, and of two keys with one name."""
        others = [
            ME.sign("UserX", [URI], NOW_MS + 1),
            ME.sign("userx", [URI], NOW_MS),
            identity(2).sign("UserX", [URI], NOW_MS),
        ]
        for _ in range(2):
            assert [verify_once(other).seq for other in others] == [NOW_MS + 1, NOW_MS, NOW_MS]
            assert [verify_once(other).name for other in others] == ["UserX", "userx", "UserX"]
            assert verify_once(others[2]).key != verify_once(SIGNED).key

    def test_records_remembered_max(self) -> None:
        """So many, and the one that was not seen longest is verified anew."""
        first = verify_once(SIGNED)
        others = [ME.sign("UserX", [], seq) for seq in range(RECORDS_REMEMBERED_MAX)]
        for other in others[:-1]:
            verify_once(other)
        assert verify_once(again(SIGNED)) is first
        before = verify_once(others[1])
        verify_once(others[0])
        verify_once(others[-1])
        assert verify_once(again(others[1])) is before
        assert verify_once(again(SIGNED)) is first
        for other in others:
            verify_once(other)
        assert verify_once(again(SIGNED)) is not first

    @pytest.mark.parametrize(("longer", "same"), [(0, True), (1, False)])
    def test_remembered_chars_max(self, longer: int, same: bool) -> None:
        """Nobody fills memory with long records."""
        text = record_text(x="")
        signed = signed_text(text.replace('"x": ""', f'"x": "{"y" * (REMEMBERED_CHARS_MAX - len(text) + longer)}"'))
        assert len(signed.record) == REMEMBERED_CHARS_MAX + longer
        assert (verify_once(signed) is verify_once(again(signed))) == same


class TestBoxes:
    """What is shared between two mail keys is computed once."""

    HERS = identity(2)

    def test_the_same_for_both_sides(self) -> None:
        mine = ME.box(ME.mail_text, self.HERS.mail_text)
        assert mine is ME.box(str(ME.mail_text), self.HERS.mail_text)
        assert bytes(mine) == bytes(self.HERS.box(self.HERS.mail_text, ME.mail_text))
        assert bytes(mine) == bytes(Box(ME.mail, self.HERS.mail.public_key))

    def test_each_pair_has_its_own(self) -> None:
        """A new mail key, on either side, is another secret; those before it open what is late."""
        mine, hers = (
            ME.rotated(random.Random(3).randbytes, NOW_MS),
            self.HERS.rotated(random.Random(4).randbytes, NOW_MS),
        )
        pairs = {
            (ours, theirs)
            for ours in (ME.mail_text, mine.mail_text)
            for theirs in (self.HERS.mail_text, hers.mail_text)
        }
        for _ in range(2):
            assert len({bytes(mine.box(ours, theirs)) for ours, theirs in pairs}) == 4
        for ours, theirs in pairs:
            assert bytes(mine.box(ours, theirs)) == bytes(hers.box(theirs, ours))

    def test_a_key_that_is_not_kept_opens_nothing(self) -> None:
        """Though it did a moment ago."""
        mine = ME
        mine.box(ME.mail_text, self.HERS.mail_text)
        for number in range(MAIL_KEYS_KEPT):
            mine.box(ME.mail_text, self.HERS.mail_text)
            mine = mine.rotated(random.Random(number).randbytes, NOW_MS)
        with pytest.raises(KeyError):
            mine.box(ME.mail_text, self.HERS.mail_text)

    def test_secrets_go_with_their_keys(self) -> None:
        """At once, without waiting for anybody to collect them."""
        mine = identity(5)
        shared = weakref.ref(mine.box(mine.mail_text, self.HERS.mail_text))
        assert shared() is not None
        del mine
        assert shared() is None

    def test_bad_keys_are_bad_each_time(self) -> None:
        for _ in range(2):
            with pytest.raises(CryptoError):
                ME.box(ME.mail_text, b64(bytes(32)))
            with pytest.raises(BadParams):
                ME.box(ME.mail_text, b64(bytes(31)))

    def test_boxes_max(self) -> None:
        """So many, and the one that was not used longest is computed anew."""
        mine = identity(6)
        first = mine.box(mine.mail_text, self.HERS.mail_text)
        others = [b64(number.to_bytes(32, "big")) for number in range(2**200, 2**200 + BOXES_MAX)]
        for other in others[:-1]:
            mine.box(mine.mail_text, other)
        assert mine.box(mine.mail_text, self.HERS.mail_text) is first
        for other in others:
            mine.box(mine.mail_text, other)
        assert mine.box(mine.mail_text, self.HERS.mail_text) is not first


@settings(max_examples=200)
@given(st.integers(0, len(SIGNED.record) - 1), st.integers(1, 127))
def test_any_change_of_the_text_is_refused(at: int, flip: int) -> None:
    """A record with one changed character is no record of its owner."""
    text = bytearray(SIGNED.record.encode())
    text[at] ^= flip
    with pytest.raises((BadSignature, BadParams)):
        verify(SignedRecord(text.decode(), SIGNED.sig))


@settings(max_examples=200)
@given(st.integers(0, 63), st.integers(1, 255))
def test_any_change_of_the_signature_is_refused(at: int, flip: int) -> None:
    """A signature with one changed byte is none."""
    sig = bytearray(unb64(SIGNED.sig))
    sig[at] ^= flip
    with pytest.raises(BadSignature):
        verify(SignedRecord(SIGNED.record, b64(bytes(sig))))


@settings(max_examples=200)
@given(st.integers(0, 85), st.characters(max_codepoint=127))
def test_any_change_of_the_signatures_text_is_refused(at: int, char: str) -> None:
    """One signature has one text: its last character cannot be varied either."""
    sig = SIGNED.sig[:at] + char + SIGNED.sig[at + 1 :]
    if sig != SIGNED.sig:
        with pytest.raises((BadSignature, BadParams)):
            verify(SignedRecord(SIGNED.record, sig))


@pytest.mark.parametrize("domain", [b"", b"meshproto record 2\n", b"meshproto record 1"])
def test_a_signature_for_another_purpose_is_refused(domain: bytes) -> None:
    """Domain separation: what was signed as something else is no record, though its text reads as one."""
    with pytest.raises(BadSignature):
        verify(signed_text(SIGNED.record, domain=domain))


def test_nobody_signs_for_another_key() -> None:
    """A record must be signed by the key that stands in it."""
    with pytest.raises(BadSignature, match="the record of UserX is not signed by the key in it"):
        verify(signed_text(record_text(), identity(2).signing))


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f", b"\xff" * 32])
def test_keys_under_which_anything_verifies_are_refused(key: bytes) -> None:
    """A public key of low order, or one that is no point, signs nothing."""
    sig = b64(b"\x01" + bytes(63))
    with pytest.raises(BadSignature):
        verify(SignedRecord(record_text(key=b64(key)), sig))


DEEP_RECORD = record_text(x="DEEP").replace('"DEEP"', "[" * 5000 + "]" * 5000)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '"', "{" * 5000, '{"x":' * 5000, DEEP_RECORD, record_text() + "x", record_text()[:-1]],
)
def test_a_signed_text_that_is_no_record_is_refused(text: str) -> None:
    """A good signature does not make a record of a text that is none."""
    with pytest.raises(BadParams):
        verify(signed_text(text))


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "a b"},
        {"name": "n" * 65},
        {"uris": URI},
        {"uris": ["ftp://x"]},
        {"uris": [URI] * (URIS_MAX + 1)},
        {"uris": ["http://" + "h" * URI_CHARS_MAX]},
        {"key": ""},
        {"key": b64(bytes(31))},
        {"mail": b64(bytes(33))},
        {"mail": "="},
        {"seq": -1},
        {"seq": 1.5},
        {"seq": 2**53 + 1},
    ],
)
def test_a_signed_record_must_make_sense(fields: dict[str, Any]) -> None:
    """Names, addresses, keys and sequences out of bounds are refused, whoever signed them."""
    with pytest.raises(BadParams):
        verify(signed_text(record_text(**fields)))


def test_a_text_with_half_a_character_is_refused() -> None:
    """Lone surrogates, which have no UTF-8, raise BadParams or BadSignature like any other nonsense."""
    for text in ("\ud800", record_text(note="x").replace("x", "\udc00")):
        with pytest.raises((BadParams, BadSignature)):
            verify(SignedRecord(text, SIGNED.sig))


def test_the_limits_of_a_record_can_be_reached() -> None:
    """URIS_MAX addresses of URI_CHARS_MAX fit in RECORD_CHARS_MAX, together with the longest name."""
    uris = [f"http://{number}.example/".ljust(URI_CHARS_MAX, "x") for number in range(URIS_MAX)]
    signed = ME.sign("n" * 64, uris, 2**53)
    assert verify(signed).uris == uris
    assert len(signed.record) <= RECORD_CHARS_MAX


def test_no_addresses_means_gone() -> None:
    """A record with empty `uris` is a good one."""
    assert verify(ME.sign("UserX", [], 1)).uris == []


@given(st.text(max_size=40), st.text(max_size=100))
def test_anything_else_raises_a_mesh_error(text: str, sig: str) -> None:
    """No text and no signature make `verify` raise anything but an error of the family."""
    with pytest.raises(MeshError):
        verify(SignedRecord(text, sig))


# -- uris ---------------------------------------------------------------------------------------------------------


LONGEST_URI = "http://" + "h" * (URI_CHARS_MAX - 7)
GOOD_URIS = [
    "https://mesh.example",
    "http://[2001:db8::1]:3000",
    "http://localhost:1/",
    "HTTP://h:65535",
    "http://h/a/b",
]
BAD_URIS = [
    "h",
    "//h",
    "ftp://h",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "http://",
    "http:///x",
    "http://:3000",
    "http://h:0",
    "http://h:65536",
    "http://h:x",
    "http://[::1",
    "http://u@h",
    "http://u:p@h",
    "http://@h",
    "http://:@h",
    "http://h?",
    "http://h?q",
    "http://h#",
    "http://h/#f",
    "http://ü.example",
]
BAD_CHARACTERS = ["http://h h", "http://h\n", "\thttp://h", "http://h\x00", "http://h\x7f", "http://h/\u2028"]


@pytest.mark.parametrize("uri", [URI, LONGEST_URI, *GOOD_URIS])
def test_uris_that_messages_may_be_posted_to(uri: str) -> None:
    """http and https, a host, perhaps a port and a path."""
    check_uri(uri)


@pytest.mark.parametrize("uri", ["", LONGEST_URI + "h", *BAD_URIS, *BAD_CHARACTERS])
def test_other_uris_are_refused(uri: str) -> None:
    """Another scheme, no host, a port out of range, users, queries, fragments, spaces, controls, too long."""
    with pytest.raises(BadParams, match="bad uri"):
        check_uri(uri)


@given(st.text(max_size=20).map(lambda text: "http://" + text))
def test_any_uri_is_good_or_bad(uri: str) -> None:
    """No text makes `check_uri` raise anything but BadParams, and what it takes is printable ASCII."""
    try:
        check_uri(uri)
    except BadParams:
        return
    assert uri.isascii()
    assert uri.isprintable()


# -- sequences ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_sequences_rise_whatever_the_clock_does(times_ms: list[int]) -> None:
    """Each sequence is above the last one, also when the clock stands still or steps back."""
    last = 0
    for now_ms in times_ms:
        last, before = next_seq(last, now_ms), last
        assert last > before
        assert last >= now_ms


def test_a_sequence_is_the_time_where_it_can_be() -> None:
    """Milliseconds since 1970, or one more than the last."""
    assert next_seq(0, NOW_MS) == NOW_MS
    assert next_seq(NOW_MS, NOW_MS) == NOW_MS + 1
    assert next_seq(NOW_MS + 5, NOW_MS) == NOW_MS + 6
