"""Keys, fingerprints, and records that a user signs about themselves.

A record is JSON text that is signed byte for byte: nothing is canonicalised, and what is verified is exactly what is
then read. The signature covers a prefix that no other signed thing of this project has (domain separation).

Sources: Ed25519 (RFC 8032) and X25519 (RFC 7748) through libsodium; base32 and base64url as in RFC 4648.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct
from nacl.exceptions import BadSignatureError
from nacl.public import Box, PrivateKey, PublicKey
from nacl.signing import SigningKey, VerifyKey

from meshproto.errors import BadParams, BadSignature, BadState
from meshproto.wire import (
    B64,
    NAME_PATTERN,
    NAME_RULE,
    URI_CHARS_MAX,
    URIS_MAX,
    Name,
    SignedRecord,
    encode_value,
    explain,
)

RECORD_DOMAIN: Final = b"meshproto record 1\n"
KEY_BYTES: Final = 32
SIG_BYTES: Final = 64
FINGERPRINT_CHARS: Final = 16
GROUP_CHARS: Final = 4
"""Of a fingerprint as it is compared by eye: what one remembers on the way from one screen to the other."""
FINGERPRINT_PATTERN: Final = r"^[\s-]*([A-Za-z2-7][\s-]*){16}$"
"""As people write it: see :func:`parse_fingerprint`."""
ADDRESS_PATTERN: Final = NAME_PATTERN.removesuffix(r"\Z") + r"(~[A-Za-z2-7]{16})?$"
"""`UserX` or `UserX~fingerprint`: a pattern that JSON Schema has words for too; all of the text is to match it."""
MAIL_KEYS_KEPT: Final = 3
"""The mail key in use and the two before it, so that late mail still opens."""

Entropy = Callable[[int], bytes]
"""`os.urandom` outside tests: the number of bytes -> that many unpredictable bytes."""

RECORDS_REMEMBERED_MAX: Final = 2048
"""Records that were verified, and need not be again while they stay the same to the byte: one for each of those who
write to a node and are written to, at a kilobyte or two. So many fingerprints, too."""
REMEMBERED_CHARS_MAX: Final = 1024
"""A longer record is verified each time: a usual one has 250 characters, and nobody is to fill memory with others."""
BOXES_MAX: Final = 2048
"""Users with whom a secret is shared that need not be computed again, at half a kilobyte."""

_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL: Final = bytes.maketrans(b"-_+/=", b"+/   ")
"""What unpadded base64url does not have becomes what nothing has."""
_ADDRESS = re.compile(ADDRESS_PATTERN)
_FINGERPRINT = re.compile(FINGERPRINT_PATTERN)


def b64(data: bytes) -> str:
    """Bytes -> unpadded base64url."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=").decode("ascii")


def unb64(text: str, length: int | None = None) -> bytes:
    """Unpadded base64url -> bytes; raises :class:`BadParams` on anything else, or another length than asked for."""
    # msgspec reads base64 in half the time that the standard library takes.
    try:
        padded = text.encode("ascii").translate(_FROM_URL) + b"=" * (-len(text) % 4)
        data = msgspec.convert(padded.decode("ascii"), bytes)
    except ValueError:  # of which msgspec's own and those about letters are two
        raise BadParams("not unpadded base64url: padding, another alphabet, or a length that none has") from None
    over = len(data) % 3
    if over and b64(data[-over:]) != text[-over - 1 :]:
        raise BadParams("not unpadded base64url: bits that no byte has")
    if length is not None and len(data) != length:
        raise BadParams(f"{len(data)} bytes where {length} are expected")
    return data


@lru_cache(RECORDS_REMEMBERED_MAX)
def fingerprint(key: bytes) -> str:
    """The first 16 base32 characters (80 bits) of SHA-256 of an identity key, in lower case."""
    return base64.b32encode(hashlib.sha256(key).digest()).decode("ascii").lower()[:FINGERPRINT_CHARS]


def grouped(print_: str) -> str:
    """A fingerprint to be compared by eye: `kzdv-vj2u-mndu-yauf`."""
    return "-".join(print_[at : at + GROUP_CHARS] for at in range(0, len(print_), GROUP_CHARS))


def parse_fingerprint(text: str) -> str:
    """A fingerprint as people write it, with dashes, spaces, upper case -> in lower case. Raises BadParams."""
    if not _FINGERPRINT.match(text):
        raise BadParams(f"{text[:100]!r} is no fingerprint: it has {FINGERPRINT_CHARS} characters of a-z and 2-7")
    return re.sub(r"[\s-]", "", text).lower()


@lru_cache(RECORDS_REMEMBERED_MAX)
def parse_address(text: str) -> tuple[str, str | None]:
    """`UserX` -> ("UserX", None); `UserX~fingerprint` -> both, the fingerprint in lower case. Raises BadParams."""
    if not _ADDRESS.fullmatch(text):
        raise BadParams(f"{text[:100]!r} is neither a name nor NAME~FINGERPRINT: {NAME_RULE}")
    name, _, print_ = text.partition("~")
    return name, print_.lower() or None


class Record(Struct, frozen=True, gc=False):
    """What a user says of themselves. `uris` in order of preference, empty for "I am gone"; `key` (identity) and
    `mail` (sealing) are unpadded base64url of 32 bytes; `seq` is ms since 1970 UTC, strictly rising for one key."""

    name: Name
    uris: Annotated[list[Annotated[str, Meta(max_length=URI_CHARS_MAX)]], Meta(max_length=URIS_MAX)]
    key: B64
    mail: B64
    seq: Annotated[int, Meta(ge=0, le=2**53)]

    @property
    def key_bytes(self) -> bytes:
        return unb64(self.key, KEY_BYTES)

    @property
    def mail_bytes(self) -> bytes:
        return unb64(self.mail, KEY_BYTES)


_record_decoder = msgspec.json.Decoder(Record)


def check_uri(uri: str) -> None:
    """Raises :class:`BadParams` unless the URI is one that messages may be posted to."""
    try:
        parts = urlsplit(uri)
        port_fits = parts.port is None or parts.port > 0
    except ValueError as reason:
        raise BadParams(f"bad uri {uri[:100]!r}: {reason}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_fits:
        raise BadParams(f"bad uri {uri[:100]!r}: it must read http://HOST:PORT or https://HOST:PORT")
    if "@" in parts.netloc or "?" in uri or "#" in uri:
        raise BadParams(f"bad uri {uri[:100]!r}: no user, query or fragment may stand in it")
    if any(c.isspace() or not c.isprintable() or ord(c) > 126 for c in uri) or len(uri) > URI_CHARS_MAX:
        raise BadParams(f"bad uri {uri[:100]!r}: printable ASCII without spaces, at most {URI_CHARS_MAX} characters")


def verify(signed: SignedRecord) -> Record:
    """Raises :class:`BadSignature` when the signature does not fit, :class:`BadParams` when what was signed is not a
    record. The key that must have signed stands in the record itself: the record speaks for that key, and for the
    name only where a directory says so."""
    text = signed.record.encode("utf-8", "surrogatepass")
    try:
        record = _record_decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as reason:
        raise BadParams(f"the record does not read as one: {explain(reason)}") from None
    key, mail = record.key_bytes, unb64(signed.sig, SIG_BYTES)
    try:
        VerifyKey(key).verify(RECORD_DOMAIN + text, mail)
    except (BadSignatureError, ValueError):
        raise BadSignature(f"the record of {record.name} is not signed by the key in it") from None
    unb64(record.mail, KEY_BYTES)
    for uri in record.uris:
        check_uri(uri)
    return record


def verify_once(signed: SignedRecord) -> Record:
    """What :func:`verify` says of the record, which is remembered if it is good: for records that come with every
    message. To verify one takes ten times as long as all the rest of a message's envelope."""
    return _remembered(signed) if len(signed.record) <= REMEMBERED_CHARS_MAX else verify(signed)


_remembered = lru_cache(RECORDS_REMEMBERED_MAX)(verify)


class MailKey(Struct, frozen=True):
    """An X25519 secret (unpadded base64url) and when it was made, ms since 1970 UTC."""

    secret: B64
    made_at: int

    def __repr__(self) -> str:
        return f"<MailKey made at {self.made_at}>"


class KeyFile(Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in `keys.json`: the Ed25519 seed and the mail keys, newest first."""

    identity: B64
    mail: Annotated[list[MailKey], Meta(min_length=1, max_length=MAIL_KEYS_KEPT)]

    def __repr__(self) -> str:
        return f"<KeyFile with {len(self.mail)} mail keys>"


@dataclass(frozen=True)
class Identity:
    """A user's keys. `mail_keys`: newest first; the first one seals, all of them open."""

    signing: SigningKey
    mail_keys: tuple[PrivateKey, ...]
    made_at_ms: tuple[int, ...]

    def __repr__(self) -> str:
        return f"<Identity {self.fingerprint}>"

    @classmethod
    def create(cls, entropy: Entropy, now_ms: int) -> "Identity":
        return cls(SigningKey(entropy(KEY_BYTES)), (PrivateKey(entropy(KEY_BYTES)),), (now_ms,))

    @property
    def key(self) -> bytes:
        return bytes(self.signing.verify_key)

    @cached_property
    def key_text(self) -> str:
        return b64(self.key)

    @property
    def mail(self) -> PrivateKey:
        return self.mail_keys[0]

    @cached_property
    def mail_text(self) -> str:
        """The public half of the mail key that seals."""
        return b64(bytes(self.mail.public_key))

    @cached_property
    def box(self) -> Callable[[str, str], Box]:
        """The public halves of a mail key of this user's and of somebody else's -> the box between the two, for both
        directions. Raises KeyError when the first is not kept (any more), :class:`nacl.exceptions.CryptoError` when the
        second is no key that keeps a secret, and :class:`BadParams` when it is none at all.

        To agree on a secret takes forty times as long as to seal a message with it, so those agreed on last are
        remembered: here, with the keys, and no longer than these."""
        mail_keys = {b64(bytes(key.public_key)): key for key in self.mail_keys}

        @lru_cache(BOXES_MAX)
        def box(ours: str, theirs: str) -> Box:
            return Box(mail_keys[ours], PublicKey(unb64(theirs, KEY_BYTES)))

        return box

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.key)

    def sign(self, name: str, uris: list[str], seq: int) -> SignedRecord:
        """This user's record with a sequence that the caller keeps rising (:func:`next_seq`)."""
        record = Record(name, uris, self.key_text, self.mail_text, seq)
        text = encode_value(record)
        return SignedRecord(text.decode("utf-8"), b64(self.signing.sign(RECORD_DOMAIN + text).signature))

    def rotated(self, entropy: Entropy, now_ms: int) -> "Identity":
        """The same user with a new mail key; of those before it as many as are kept still open."""
        mail_keys = (PrivateKey(entropy(KEY_BYTES)), *self.mail_keys)[:MAIL_KEYS_KEPT]
        return Identity(self.signing, mail_keys, (now_ms, *self.made_at_ms)[:MAIL_KEYS_KEPT])

    def dump(self) -> bytes:
        """The secret text of `keys.json`."""
        mail = [MailKey(b64(bytes(key)), at) for key, at in zip(self.mail_keys, self.made_at_ms, strict=True)]
        return encode_value(KeyFile(b64(bytes(self.signing)), mail))

    @classmethod
    def load(cls, text: bytes) -> "Identity":
        """Raises :class:`BadState` when the text is not what :meth:`dump` writes."""
        try:
            file = msgspec.json.decode(text, type=KeyFile)
            mail = tuple(PrivateKey(unb64(key.secret, KEY_BYTES)) for key in file.mail)
            return cls(SigningKey(unb64(file.identity, KEY_BYTES)), mail, tuple(key.made_at for key in file.mail))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadParams) as reason:
            raise BadState(f"the key file is damaged ({reason}): restore it from a backup") from None


def next_seq(last: int, now_ms: int) -> int:
    """The sequence of the next record: the time, or one more than the last when the clock stood still or went back."""
    return max(last + 1, now_ms)
