"""Sealed batches and their receipts."""

import json
import math
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw, structs
from nacl.public import Box, PublicKey

from meshproto.core.envelope import (
    BATCH_BYTES_MAX,
    BATCH_MESSAGES_MAX,
    DEPTH_MAX,
    MESSAGE_BYTES_MAX,
    NUMBER_CHARS_MAX,
    SEALED_BYTES_MAX,
    TYPE_CHARS_MAX,
    Batch,
    Letter,
    Opened,
    Pending,
    Sealed,
    SealedReceipt,
    check_message,
    open_batch,
    open_receipt,
    seal,
    seal_receipt,
)
from meshproto.core.identity import RECORD_DOMAIN, Identity, Record, b64, unb64, verify
from meshproto.errors import BadParams, BadSignature, Forbidden, MeshError, Misdirected, PeerError, TooLarge
from meshproto.wire import ID_CHARS_MAX, SignedRecord, decode_value, encode_value

NOW_MS = 1_795_343_300_123
URI = "http://192.0.2.7:3000"
entropy = random.Random(0).randbytes

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class User:
    """An identity with its signed record."""

    def __init__(self, name: str) -> None:
        self.identity = Identity.create(random.Random(name).randbytes, NOW_MS)
        self.signed = self.identity.sign(name, [URI], NOW_MS)
        self.record = verify(self.signed)

    def seal(self, letters: list[Letter], to: Record) -> Pending:
        return seal(letters, self.identity, self.signed, to, entropy)

    def open(self, body: bytes) -> Opened:
        return open_batch(body, self.identity)


ALICE, BOB, EVE = User("Alice"), User("Bob"), User("Eve")
PENDING = ALICE.seal([Letter("1", Raw(b'"hi"'), NOW_MS)], BOB.record)
SEALED = msgspec.json.decode(PENDING.body, type=Sealed)
RECEIPT = seal_receipt(BOB.open(PENDING.body), ["1"], {}, entropy)


def letter(text: bytes = b"1", message_id: str = "1") -> Letter:
    return Letter(message_id, Raw(text), NOW_MS)


def resealed(plain: bytes, sender: User = ALICE) -> bytes:
    """A body with anything inside the box."""
    box = Box(sender.identity.mail, BOB.identity.mail.public_key).encrypt(plain, entropy(24))
    return encode_value(Sealed(sender.signed, BOB.record.mail, b64(box)))


def with_box(box: bytes) -> bytes:
    return encode_value(Sealed(SEALED.sender, SEALED.to, b64(box)))


# -- a batch ------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.lists(json_values, min_size=1, max_size=5))
def test_any_json_travels_byte_for_byte(messages: list[Any]) -> None:
    """The recipient opens exactly the texts that were sealed, in order, and knows who sealed them."""
    letters = [Letter(str(at), Raw(json.dumps(m).encode()), NOW_MS, "chat") for at, m in enumerate(messages)]
    opened = BOB.open(ALICE.seal(letters, BOB.record).body)
    assert [bytes(one.message) for one in opened.batch.letters] == [bytes(one.message) for one in letters]
    assert [(one.id, one.sent_at, one.type) for one in opened.batch.letters] == [
        (one.id, one.sent_at, one.type) for one in letters
    ]
    assert (opened.sender, opened.signed) == (ALICE.record, ALICE.signed)


def test_what_travels_shows_no_message() -> None:
    """Neither text nor id of a message stands in the body."""
    body = ALICE.seal([letter(b'"attack at dawn"', "first-id")], BOB.record).body
    assert b"attack" not in body
    assert b"first-id" not in body


def test_only_the_recipient_opens() -> None:
    """A batch for somebody else's mail key is misdirected; with the address changed it is not ours to open either."""
    with pytest.raises(Misdirected):
        EVE.open(PENDING.body)
    with pytest.raises(Forbidden):
        EVE.open(encode_value(Sealed(SEALED.sender, EVE.record.mail, SEALED.box)))


def test_nobody_speaks_for_another() -> None:
    """A box goes with the record of whoever sealed it: beside another's record it does not open."""
    theirs = msgspec.json.decode(EVE.seal([letter()], BOB.record).body, type=Sealed)
    with pytest.raises(Forbidden, match="was not sealed by Alice's mail key"):
        BOB.open(encode_value(Sealed(ALICE.signed, theirs.to, theirs.box)))


def with_mail_key_of(user: User, other: User) -> User:
    """A user who has put another's mail key into a record of their own, as anybody may."""
    forger = User(user.record.name)
    record = structs.replace(user.record, mail=other.record.mail)
    text = encode_value(record)
    sig = b64(user.identity.signing.sign(RECORD_DOMAIN + text).signature)
    forger.signed = SignedRecord(text.decode(), sig)
    forger.record = verify(forger.signed)
    return forger


def test_a_batch_is_for_one_key_whoever_borrows_its_mail_key() -> None:
    """What is written to Eve, who says that Bob's mail key is hers, is nothing that Bob may take for his."""
    eve = with_mail_key_of(EVE, BOB)
    with pytest.raises(Misdirected):
        BOB.open(ALICE.seal([letter()], eve.record).body)


def test_a_batch_is_of_one_key_whoever_borrows_its_mail_key() -> None:
    """With Eve's record beside it, in which stands Alice's mail key, it is not Eve's; nor is it Bob's when it is sent
    back to Alice, though the box reads the same in both directions."""
    sealed = decode_value(ALICE.seal([letter()], BOB.record).body, Sealed)
    eve = with_mail_key_of(EVE, ALICE)
    with pytest.raises(Forbidden):
        BOB.open(encode_value(structs.replace(sealed, sender=eve.signed)))
    with pytest.raises((Forbidden, Misdirected)):
        ALICE.open(encode_value(structs.replace(sealed, sender=BOB.signed, to=ALICE.record.mail)))


def test_what_eve_was_sent_is_not_of_whom_she_says() -> None:
    """Eve, with Bob's mail key in her record, posts what Alice wrote to her to Alice, as if Bob had."""
    eve = with_mail_key_of(EVE, BOB)
    sealed = decode_value(ALICE.seal([letter()], eve.record).body, Sealed)
    with pytest.raises((Forbidden, Misdirected)):
        ALICE.open(encode_value(structs.replace(sealed, sender=BOB.signed, to=ALICE.record.mail)))


def test_a_record_that_its_owner_did_not_sign_is_refused() -> None:
    """The sender's record is verified before its mail key is believed."""
    with pytest.raises(BadSignature):
        BOB.open(encode_value(Sealed(SignedRecord(ALICE.signed.record, EVE.signed.sig), SEALED.to, SEALED.box)))


def test_late_mail_still_opens() -> None:
    """A batch for a mail key that was rotated out, but is kept, opens; its receipt is read by its sender."""
    mail_keys = (EVE.identity.mail, BOB.identity.mail)
    rotated = Identity(BOB.identity.signing, mail_keys, (NOW_MS, NOW_MS - 1))
    opened = open_batch(PENDING.body, rotated)
    assert open_receipt(seal_receipt(opened, ["1"], {}, entropy), PENDING).ids == ["1"]


def test_a_record_that_was_good_once_vouches_for_no_other() -> None:
    """Alice's node is known here. Beside the box of another's it still has to be her mail key that sealed it, and a
    record that is not hers, however near, is verified."""
    for _ in range(2):
        assert BOB.open(PENDING.body).sender == ALICE.record
        theirs = decode_value(resealed(b"{}", EVE), Sealed)
        with pytest.raises(Forbidden):
            BOB.open(encode_value(structs.replace(theirs, sender=ALICE.signed)))
        near = SignedRecord(ALICE.signed.record.replace("192.0.2.7", "192.0.2.8"), ALICE.signed.sig)
        with pytest.raises(BadSignature):
            BOB.open(encode_value(Sealed(near, SEALED.to, SEALED.box)))


def test_a_new_mail_key_is_sealed_for_at_once() -> None:
    """Though the one before it was used a moment ago; the new one alone opens it."""
    ALICE.seal([letter()], BOB.record)
    rotated = BOB.identity.rotated(entropy, NOW_MS)
    record = verify(rotated.sign("Bob", [URI], NOW_MS + 1))
    body = ALICE.seal([letter()], record).body
    with pytest.raises(Misdirected):
        BOB.open(body)
    assert open_batch(body, rotated).sender == ALICE.record
    assert open_batch(PENDING.body, rotated).sender == ALICE.record


@settings(max_examples=200)
@given(st.integers(0, len(unb64(SEALED.box)) - 1), st.integers(1, 255))
def test_any_changed_byte_of_the_box_is_refused(at: int, flip: int) -> None:
    """Nonce, authenticator and ciphertext: one changed byte anywhere and the box does not open."""
    box = bytearray(unb64(SEALED.box))
    box[at] ^= flip
    with pytest.raises(Forbidden):
        BOB.open(with_box(bytes(box)))


@settings(max_examples=200)
@given(st.integers(0, len(PENDING.body) - 1), st.integers(0, 255))
def test_any_changed_byte_of_the_body_is_refused(at: int, byte: int) -> None:
    """What was tampered with raises an error of the family, and never opens."""
    body = PENDING.body[:at] + bytes([byte]) + PENDING.body[at + 1 :]
    if body != PENDING.body:
        with pytest.raises(MeshError):
            BOB.open(body)


@pytest.mark.parametrize("length", [0, 1, 23, 24, 25, 39, 40, 41])
def test_a_box_that_was_cut_short_is_refused(length: int) -> None:
    """Less than a nonce, less than an authenticator, less than a batch."""
    with pytest.raises(Forbidden):
        BOB.open(with_box(unb64(SEALED.box)[:length]))


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"\xff", b'{"a":' * 5000, encode_value(Sealed(SEALED.sender, SEALED.to, "é="))]
)
def test_a_body_that_is_no_batch_is_refused(body: bytes) -> None:
    """What is not even a sealed batch is a bad request."""
    with pytest.raises(BadParams):
        BOB.open(body)


@pytest.mark.parametrize("plain", [b"", b"{}", b"[]", b"\xff", b'{"a":' * 5000, b'{"token":"","letters":[{}]}'])
def test_a_box_with_something_else_inside_is_refused(plain: bytes) -> None:
    """A good seal around what is not a batch is a bad request."""
    with pytest.raises(BadParams, match="not a batch"):
        BOB.open(resealed(plain))


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"\xed" + b"\xff" * 30 + b"\x7f"])
def test_mail_keys_that_keep_no_secret_are_refused(key: bytes) -> None:
    """With a public key of low order anybody could read along: it neither seals nor opens."""
    weak = EVE.record
    weak = Record(weak.name, weak.uris, weak.key, b64(key), weak.seq)
    with pytest.raises(PeerError, match="the mail key of Eve cannot be used"):
        ALICE.seal([letter()], weak)
    text = encode_value(weak)
    signed = SignedRecord(text.decode(), b64(EVE.identity.signing.sign(b"meshproto record 1\n" + text).signature))
    with pytest.raises(Forbidden):
        BOB.open(encode_value(Sealed(signed, SEALED.to, SEALED.box)))


# -- limits of a batch --------------------------------------------------------------------------------------------


def test_batch_messages_max() -> None:
    """BATCH_MESSAGES_MAX letters open; no letter, or one more, do not."""
    letters = [letter(message_id=str(number)) for number in range(BATCH_MESSAGES_MAX + 1)]
    assert len(BOB.open(ALICE.seal(letters[:-1], BOB.record).body).batch.letters) == BATCH_MESSAGES_MAX
    for count in (0, BATCH_MESSAGES_MAX + 1):
        with pytest.raises(BadParams, match="length"):
            BOB.open(ALICE.seal(letters[:count], BOB.record).body)


def test_batch_bytes_max() -> None:
    """BATCH_BYTES_MAX of message texts open, to the byte; one more is too large."""
    largest = b'"' + b"x" * (BATCH_BYTES_MAX // 4 - 2) + b'"'
    assert len(largest) == MESSAGE_BYTES_MAX
    letters = [letter(largest, str(number)) for number in range(4)]
    assert len(BOB.open(ALICE.seal(letters, BOB.record).body).batch.letters) == 4
    with pytest.raises(TooLarge):
        BOB.open(ALICE.seal([*letters, letter(b"1", "one more")], BOB.record).body)


def test_the_largest_batch_fits_in_sealed_bytes_max() -> None:
    """1000 letters with the longest ids and types, in the characters that JSON makes longest, and a mebibyte of
    texts travel in one body."""
    text = b'"' + b"x" * (BATCH_BYTES_MAX // BATCH_MESSAGES_MAX - 2) + b'"'
    letters = [
        Letter(f"{number:04}".ljust(ID_CHARS_MAX, "\x01"), Raw(text), 2**53, "\x01" * TYPE_CHARS_MAX)
        for number in range(BATCH_MESSAGES_MAX)
    ]
    body = ALICE.seal(letters, BOB.record).body
    assert len(BOB.open(body).batch.letters) == BATCH_MESSAGES_MAX
    assert SEALED_BYTES_MAX // 2 < len(body) <= SEALED_BYTES_MAX


def test_an_id_stands_once_in_a_batch() -> None:
    """Two letters with one id are refused, whatever they say."""
    with pytest.raises(BadParams, match="an id stands twice"):
        BOB.open(ALICE.seal([letter(b"1", "a"), letter(b"2", "b"), letter(b"3", "a")], BOB.record).body)


@pytest.mark.parametrize(
    "bad",
    [
        Letter("", Raw(b"1"), 0),
        Letter("x" * (ID_CHARS_MAX + 1), Raw(b"1"), 0),
        Letter("1", Raw(b"1"), -1),
        Letter("1", Raw(b"1"), 2**53 + 1),
        Letter("1", Raw(b"1"), 0, "t" * (TYPE_CHARS_MAX + 1)),
    ],
)
def test_a_letter_out_of_bounds_is_refused(bad: Letter) -> None:
    """Ids, times and types have their limits."""
    with pytest.raises(BadParams, match="not a batch"):
        BOB.open(ALICE.seal([bad], BOB.record).body)


@pytest.mark.parametrize(
    "text", [b"", b"x", b"[1", b"1 2", b'"\x01"', b'"\\q"', b"01", b"NaN", b"[1,]", b'{"a" 1}', b"tru"]
)
def test_a_message_that_is_not_json_is_refused(text: bytes) -> None:
    """Raw as the texts are kept, they are checked to be JSON when the batch is opened."""
    with pytest.raises(BadParams):
        BOB.open(resealed(b'{"token":"QQ","letters":[{"id":"1","sent_at":0,"message":%b}]}' % text))


# -- one message --------------------------------------------------------------------------------------------------


def test_message_bytes_max() -> None:
    """MESSAGE_BYTES_MAX bytes are a message; one more is too large."""
    check_message(b'"' + b"x" * (MESSAGE_BYTES_MAX - 2) + b'"')
    with pytest.raises(TooLarge):
        check_message(b'"' + b"x" * (MESSAGE_BYTES_MAX - 1) + b'"')


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80"])
def test_a_message_is_utf8(bad: bytes) -> None:
    """Anything else would make a page of the inbox unreadable."""
    with pytest.raises(BadParams, match="not UTF-8"):
        check_message(b'"' + bad + b'"')


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")])
def test_depth_max(opening: bytes, closing: bytes) -> None:
    """DEPTH_MAX brackets within brackets are a message; one more is not."""
    levels = DEPTH_MAX // (opening.count(b"[") + opening.count(b"{"))
    check_message(opening * levels + b"1" + closing * levels)
    with pytest.raises(BadParams, match=f"deeper than {DEPTH_MAX} levels"):
        check_message(b"[" + opening * levels + b"1" + closing * levels + b"]")


def test_many_brackets_side_by_side_are_not_deep() -> None:
    """Depth counts what is open at one time."""
    check_message(b"[" + b",".join([b"[{}]"] * 10_000) + b"]")


@pytest.mark.parametrize(
    "text", ["[" * 200, '"' + "[" * 200, "[" * 200 + '"', "\\" + "{" * 200 + "\\", '\\"[' * 200, "\\\\"]
)
def test_brackets_in_strings_are_text(text: str) -> None:
    """Brackets in strings and keys do not count, also beside escaped quotes and backslashes."""
    check_message(json.dumps([text, {text: text}]).encode())


@pytest.mark.parametrize("text", ["", "a", '"', "\\", '\\"', '"\\', '""', "\\\\", "]" * 300, '"' * 301])
def test_strings_do_not_hide_brackets(text: str) -> None:
    """However a string before or behind them ends, brackets outside of strings count."""
    quoted = json.dumps(text).encode()
    deep = b"[" * DEPTH_MAX + b"]" * DEPTH_MAX
    with pytest.raises(BadParams, match="nested deeper"):
        check_message(b"[" + quoted + b"," + deep + b"," + quoted + b"]")


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@settings(max_examples=60)
@given(json_values, st.integers(DEPTH_MAX - 4, DEPTH_MAX + 2), st.text(alphabet='"\\[]{}a', max_size=12))
def test_depth_is_that_of_the_value(value: Any, levels: int, text: str) -> None:
    """A message is refused exactly when its value is deeper than DEPTH_MAX, whatever strings are in it."""
    for level in range(levels):
        value = [text, value, text] if level % 2 else {text: value}
    message = json.dumps(value).encode()
    if depth(value) > DEPTH_MAX:
        with pytest.raises(BadParams, match="nested deeper"):
            check_message(message)
    else:
        check_message(message)


def test_a_long_string_is_checked_quickly() -> None:
    """A message of escapes and quotes as long as one may be is looked at once, from front to back."""
    for filling in (b"\\\\", b'\\"', b"[]", b'","'):
        half = b'["' + filling * ((MESSAGE_BYTES_MAX - 400) // len(filling)) + b'",'
        check_message(half + b"[]" * DEPTH_MAX + b"]")


@pytest.mark.parametrize(
    "number",
    [
        "0", "-0", "-0.0", "1e308", "-1E+308", "1e-999", "-1e-400", "1e0000001", "0e999", "1.7976931348623157e308",
        "9" * 308, "1" + "0" * 308, "0." + "0" * 330 + "1e320", "1" * (NUMBER_CHARS_MAX - 5) + "e-300",
        "0." + "3" * (NUMBER_CHARS_MAX - 2),
    ],
)  # fmt: skip
def test_finite_numbers_are_taken(number: str) -> None:
    """Whatever a binary64 can be near to, however it is written, up to NUMBER_CHARS_MAX characters."""
    check_message(number.encode())
    check_message(json.dumps({"1e999": "1e999" + "9" * 500}).encode()[:-1] + b',"n":[' + number.encode() + b"]}")


@pytest.mark.parametrize(
    "number", ["1e999", "-1E999", "1e+999", "-1.5e+0000309", "1e309", "1.8e308", "9" * 309, "0." + "1" * 90 + "e400",
               "1" + "0" * 250 + "e99", "1" + "0" * 250 + "e+99"]
)  # fmt: skip
def test_numbers_that_are_not_finite_are_refused(number: str) -> None:
    """What other programs would read as infinity is refused by name, wherever it stands."""
    for text in (f"{number}", f"[{number}]", f'{{"a":"b\\"",{json.dumps(number)}:{number},"c":1}}'):
        with pytest.raises(BadParams, match=r"beyond binary64 \(1.8e308\): write it as a string"):
            check_message(text.encode())


@pytest.mark.parametrize(
    "number", ["1" * (NUMBER_CHARS_MAX + 1), "-" + "7" * 5000, "0." + "3" * 5000, "1e" + "0" * 5000]
)
def test_long_numbers_are_refused(number: str) -> None:
    """A number of more than NUMBER_CHARS_MAX characters: Python refuses its own integers beyond 4300 digits."""
    with pytest.raises(
        BadParams, match=f"a number of {len(number)} characters, .*at most {NUMBER_CHARS_MAX} are taken"
    ):
        check_message(f'{{"n": {number}}}'.encode())


@given(st.integers(0, 330), st.integers(-420, 420), st.sampled_from(["e", "E", "e+", "."]))
def test_what_is_refused_is_what_python_cannot_read(digits: int, exponent: int, sign: str) -> None:
    """A number is refused exactly when Python makes infinity of it."""
    number = f"1{'0' * digits}" + (
        ".0" if sign == "." else f"{sign}{abs(exponent)}" if "+" in sign else f"{sign}{exponent}"
    )
    if math.isinf(float(number)):
        with pytest.raises(BadParams, match="beyond binary64"):
            check_message(number.encode())
    else:
        check_message(number.encode())


# -- receipts -----------------------------------------------------------------------------------------------------


def test_a_receipt_names_what_is_on_disk_and_what_never_will_be() -> None:
    """Ids and refusals come back to the sender."""
    opened = BOB.open(PENDING.body)
    receipt = open_receipt(seal_receipt(opened, ["1", "2"], {"3": "nested"}, entropy), PENDING)
    assert (receipt.ids, receipt.refused) == (["1", "2"], {"3": "nested"})


def test_an_old_receipt_proves_nothing() -> None:
    """The receipt of one batch is not that of another, though both are between the same keys."""
    again = ALICE.seal([letter()], BOB.record)
    with pytest.raises(PeerError, match="another batch"):
        open_receipt(RECEIPT, again)


def test_only_the_recipient_acknowledges() -> None:
    """A receipt sealed with another key, even for the right token, is none."""
    token = BOB.open(PENDING.body).batch.token
    box = Box(EVE.identity.mail, PublicKey(ALICE.record.mail_bytes))
    opened = Opened(ALICE.record, ALICE.signed, Batch(token, "", "", [letter()]), box)
    with pytest.raises(PeerError, match="not the recipient's sealed receipt"):
        open_receipt(seal_receipt(opened, ["1"], {}, entropy), PENDING)


def test_a_batch_is_not_its_own_receipt() -> None:
    """Both directions share one key: a body sent back as an answer is no receipt."""
    with pytest.raises(PeerError):
        open_receipt(encode_value(SealedReceipt(SEALED.box)), PENDING)


@settings(max_examples=200)
@given(st.integers(0, len(RECEIPT) - 1), st.integers(0, 255))
def test_any_changed_byte_of_a_receipt_is_refused(at: int, byte: int) -> None:
    """A receipt that was tampered with raises PeerError."""
    body = RECEIPT[:at] + bytes([byte]) + RECEIPT[at + 1 :]
    if body != RECEIPT:
        with pytest.raises(PeerError):
            open_receipt(body, PENDING)


@pytest.mark.parametrize("plain", [b"", b"{}", b"[" * 5000, b'{"token":1}', b'{"token":"","ids":[1],"refused":{}}'])
def test_a_sealed_answer_that_is_no_receipt_is_the_peers_fault(plain: bytes) -> None:
    """The recipient's own nonsense raises PeerError too."""
    box = Box(BOB.identity.mail, PublicKey(ALICE.record.mail_bytes)).encrypt(plain, entropy(24))
    with pytest.raises(PeerError):
        open_receipt(encode_value(SealedReceipt(b64(box))), PENDING)
