"""Sealing a batch of messages for one recipient, and the sealed acknowledgement.

Both are NaCl boxes (X25519, XSalsa20, Poly1305; Bernstein 2009) between two mail keys. The sender's signed record goes
beside the box, so the recipient knows whose mail key it is: only the holder of that key can have sealed the batch, and
only the holder of the recipient's can have sealed the acknowledgement. The acknowledgement repeats the batch's random
token, so that an old one proves nothing about a new batch.
"""

import re
from math import isinf
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct
from nacl.exceptions import CryptoError
from nacl.public import Box

from meshproto.core.identity import Entropy, Identity, Record, b64, unb64, verify_once
from meshproto.errors import BadParams, Forbidden, Misdirected, PeerError, TooLarge
from meshproto.wire import B64, ID_CHARS_MAX, SignedRecord, encode_value

BATCH_MESSAGES_MAX: Final = 1000
"""At 1000 a batch's fixed cost (a request, a commit) is already below a hundredth of a message's own."""
BATCH_BYTES_MAX: Final = 1024 * 1024
"""Message texts in one batch: what a recipient holds in memory for one request, several times over while opening it."""
MESSAGE_BYTES_MAX: Final = 256 * 1024
"""One message as JSON: four of the largest still travel together."""
TYPE_CHARS_MAX: Final = 64
DEPTH_MAX: Final = 100
"""Brackets within brackets in one message: deeper ones make programs that read them recursively fall over."""
NUMBER_CHARS_MAX: Final = 400
"""One number as it is written: room for every integer of a binary64 (309 digits). Programs that read integers of any
size take quadratic time for them, or refuse them by an exception that nobody expects."""
SEALED_BYTES_MAX: Final = 4 * 1024 * 1024
"""A sealed batch as it travels: the texts, 1000 ids, types and times, JSON around them, and base64's third."""

_NONCE_BYTES: Final = 24
_TOKEN_BYTES: Final = 16

_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BRACKETS: Final = re.compile(rb"[\[{]+|[\]}]+")
_DIGITS: Final = bytes.maketrans(b"123456789.E", b"0000000000e")
_HUGE: Final = b"0e000"
_LONG: Final = b"0" * 200
"""What a number has that is long or not finite, when all digits are 0 and there is no +: below 200 digits and an
exponent of 100 none is. To look for these takes a tenth of what a regular expression does."""
_NUMBER: Final = re.compile(rb"-?[0-9][0-9.eE+-]*+")


def check_message(text: bytes) -> None:
    """Raises :class:`BadParams` or :class:`TooLarge` unless the JSON text may be a message."""
    if len(text) > MESSAGE_BYTES_MAX:
        raise TooLarge(f"the message has {len(text)} bytes, at most {MESSAGE_BYTES_MAX} are taken")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as reason:
        raise BadParams(f"the message is not UTF-8: {reason}") from None
    if text.count(b"[") + text.count(b"{") > DEPTH_MAX:
        depth = 0
        for run in _BRACKETS.findall(_STRING.sub(b"", text)):
            depth += len(run) if run[0] in b"[{" else -len(run)
            if depth > DEPTH_MAX:
                raise BadParams(f"the message is nested deeper than {DEPTH_MAX} levels")
    digits = text.translate(_DIGITS, b"+")
    if _HUGE in digits or _LONG in digits:
        for number in _NUMBER.findall(_STRING.sub(b"", text)):
            _check_number(number)


def are_plain(texts: list[bytes]) -> bool:
    """Whether :func:`check_message` surely takes each of these JSON texts: nearly always, and seen in a third of the
    time. If not they are to be looked at one by one."""
    together = b"\n".join(texts)
    try:
        together.decode("utf-8")
    except UnicodeDecodeError:
        return False
    digits = together.translate(_DIGITS, b"+")
    if _HUGE in digits or _LONG in digits:
        return False
    return all(len(text) <= 2 * DEPTH_MAX or _is_flat(text) for text in texts)


def _is_flat(text: bytes) -> bool:
    return len(text) <= MESSAGE_BYTES_MAX and text.count(b"[") + text.count(b"{") <= DEPTH_MAX


def _check_number(text: bytes) -> None:
    if len(text) > NUMBER_CHARS_MAX:
        raise BadParams(
            f"the message has a number of {len(text)} characters, {text[:20].decode('ascii')}...: at most "
            f"{NUMBER_CHARS_MAX} are taken, write a longer one as a string"
        )
    if isinf(float(text)):
        raise BadParams(
            f"the message has the number {text[:40].decode('ascii')}, which is beyond binary64 (1.8e308): write it as "
            "a string"
        )


class Letter(Struct, frozen=True, gc=False):
    """One message inside a batch: any JSON as `message`; `sent_at` in ms since 1970 UTC."""

    id: Annotated[str, Meta(min_length=1, max_length=ID_CHARS_MAX)]
    message: Raw
    sent_at: Annotated[int, Meta(ge=0, le=2**53)]
    type: Annotated[str, Meta(max_length=TYPE_CHARS_MAX)] = ""


class Batch(Struct, frozen=True):
    """What is inside the box: a random token (for the acknowledgement), the identity keys of who wrote it and for whom,
    and the letters in order. The box alone proves two mail keys, which anybody may put into a record of theirs, and
    is the same in both directions."""

    token: B64
    sender: B64
    recipient: B64
    letters: Annotated[list[Letter], Meta(min_length=1, max_length=BATCH_MESSAGES_MAX)]


class Receipt(Struct, frozen=True):
    """What is inside the answer's box: the ids that are on the recipient's disk, and those it will never take, with
    the reason for each."""

    token: B64
    ids: list[str]
    refused: dict[str, str]


class Sealed(Struct, frozen=True):
    """The body of `POST /deliver`: the sender's signed record, the recipient's mail key, the box (nonce first)."""

    sender: SignedRecord
    to: B64
    box: str


class SealedReceipt(Struct, frozen=True):
    """The answer to `POST /deliver`."""

    box: str


class Opened(Struct, frozen=True):
    """An opened batch: who wrote it (verified), the letters, and the box it came in."""

    sender: Record
    signed: SignedRecord
    batch: Batch
    box: Box


class Pending(Struct, frozen=True):
    """A sealed batch on its way, and what is needed to read its receipt."""

    body: bytes
    token: str
    box: Box


def seal(letters: list[Letter], identity: Identity, own: SignedRecord, recipient: Record, entropy: Entropy) -> Pending:
    """The sealed body for `recipient`. `own` is the sender's current signed record, made with `identity.mail`. Raises
    :class:`PeerError` when the recipient's mail key is none that can be used."""
    try:
        box = identity.box(identity.mail_text, recipient.mail)
    except CryptoError as reason:
        raise PeerError(f"the mail key of {recipient.name} cannot be used: {reason}") from None
    token = b64(entropy(_TOKEN_BYTES))
    sealed = box.encrypt(encode_value(Batch(token, identity.key_text, recipient.key, letters)), entropy(_NONCE_BYTES))
    return Pending(encode_value(Sealed(own, recipient.mail, b64(sealed))), token, box)


def open_batch(body: bytes, identity: Identity) -> Opened:
    """Raises BadParams (not a batch), TooLarge, BadSignature (the record), Misdirected (sealed for a key that is not
    ours, or written for somebody else), Forbidden (not sealed or not written by the sender of the record)."""
    sealed = _decode(body, Sealed)
    record = verify_once(sealed.sender)
    text = unb64(sealed.box)
    try:
        box = identity.box(sealed.to, record.mail)
        plain = box.decrypt(text)
    except KeyError:
        raise Misdirected("sealed for a mail key that this node does not hold: look the recipient up again") from None
    except (CryptoError, ValueError):
        raise Forbidden(f"the batch was not sealed by {record.name}'s mail key") from None
    batch = _decode(plain, Batch)
    if batch.sender != record.key:
        raise Forbidden(f"the batch was not written by the key of {record.name}")
    if batch.recipient != identity.key_text:
        raise Misdirected("written for another key than this node's: look the recipient up again")
    if sum(len(letter.message) for letter in batch.letters) > BATCH_BYTES_MAX:
        raise TooLarge(f"a batch holds at most {BATCH_BYTES_MAX} bytes of messages")
    if len({letter.id for letter in batch.letters}) != len(batch.letters):
        raise BadParams("an id stands twice in the batch")
    return Opened(record, sealed.sender, batch, box)


def seal_receipt(opened: Opened, ids: list[str], refused: dict[str, str], entropy: Entropy) -> bytes:
    """The sealed answer to an opened batch."""
    receipt = encode_value(Receipt(opened.batch.token, ids, refused))
    return encode_value(SealedReceipt(b64(opened.box.encrypt(receipt, entropy(_NONCE_BYTES)))))


def open_receipt(body: bytes, pending: Pending) -> Receipt:
    """Raises :class:`PeerError` unless it is the recipient's own receipt for this very batch."""
    try:
        plain = pending.box.decrypt(unb64(_decode(body, SealedReceipt).box))
        receipt = _decode(plain, Receipt)
    except (CryptoError, ValueError, BadParams) as reason:
        raise PeerError(f"the answer is not the recipient's sealed receipt: {reason}") from None
    if receipt.token != pending.token:
        raise PeerError("the receipt is for another batch")
    return receipt


T = TypeVar("T", bound=Struct)
_CALLED: Final[dict[type[Struct], str]] = {
    Sealed: "sealed batch",
    Batch: "batch of letters",
    SealedReceipt: "sealed receipt",
    Receipt: "receipt",
}


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as reason:
        raise BadParams(f"not a {_CALLED[kind]}: {reason}") from None
