"""What one home seed says of one user, in few bytes: a million of them have to fit into memory.

Between seeds it is JSON (:class:`meshproto.wire.EntryValue`). Kept is the record's text as it was signed, and beside it
the signature and the numbers as bytes: a quarter less. What would not come out again byte for byte (written by another
program, or with farewells in it, which few have) is kept as the JSON that it came as.
"""

from binascii import a2b_base64
from struct import Struct as Layout
from typing import Final

from msgspec import Struct

from meshproto.core.gossip import content
from meshproto.core.identity import SIG_BYTES, Record, b64, verify
from meshproto.errors import BadParams, MeshError, PeerError
from meshproto.wire import EntryValue, SignedRecord, decode_value, encode_value, fold

_HEAD: Final = Layout(f"<BQQ{SIG_BYTES}s")
"""Flags, since, seen, signature; the record's text comes after."""
_PACKED, _ONLINE, _GONE = 0x80, 0x01, 0x02
"""No JSON text begins with a byte that has the first of these bits."""
_FROM_URL: Final = bytes.maketrans(b"-_", b"+/")


def pack(key: str, value: bytes) -> bytes:
    """JSON of an entry that stands under `key` -> the bytes that are kept; anything else comes back as it is."""
    try:
        entry = decode_value(value, EntryValue)
        record = decode_value(entry.record, Record)
        packed = pack_own(entry, record)
    except MeshError:
        return value
    return packed if fold(record.name) == key and unpack(packed) == value else value


def pack_own(value: EntryValue, record: Record) -> bytes:
    """The same for an entry that is written here; `record`: what stands in it. Raises :class:`BadParams`."""
    if value.farewells:
        return encode_value(value)
    flags = _PACKED | (_ONLINE if value.online else 0) | (0 if record.uris else _GONE)
    return _HEAD.pack(flags, value.since, value.seen, _signature(value.sig)) + value.record.encode()


def unpack(packed: bytes) -> bytes:
    """The JSON again."""
    return encode_value(_unpacked(packed)) if _is_packed(packed) else packed


def _is_packed(packed: bytes) -> bool:
    return packed[0] >= _PACKED


def _unpacked(packed: bytes) -> EntryValue:
    flags, since, seen, sig = _HEAD.unpack_from(packed)
    return EntryValue(packed[_HEAD.size :].decode(), b64(sig), since, bool(flags & _ONLINE), seen)


def _signature(text: str) -> bytes:
    """A quick :func:`unb64` for what is compared with its origin afterwards, or was verified before."""
    try:
        sig = a2b_base64(text.encode().translate(_FROM_URL) + b"==")
    except ValueError as reason:
        raise BadParams(f"not base64url: {reason}") from None
    if len(sig) != SIG_BYTES:
        raise BadParams(f"{len(sig)} bytes where {SIG_BYTES} are expected")
    return sig


class Entry(Struct, gc=False):
    """`stored`: the very bytes that the key space of `home` holds, read when they are asked for. `verified`: the
    signatures were checked here."""

    stored: bytes
    home: str
    verified: bool = False

    @property
    def value(self) -> EntryValue:
        packed = content(self.stored)
        return _unpacked(packed) if _is_packed(packed) else decode_value(packed, EntryValue)

    @property
    def record(self) -> Record:
        return decode_value(self.value.record, Record)

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def key(self) -> str:
        return self.record.key

    @property
    def seq(self) -> int:
        return self.record.seq

    @property
    def signed(self) -> SignedRecord:
        value = self.value
        return SignedRecord(value.record, value.sig)

    @property
    def since(self) -> int:
        packed = content(self.stored)
        return int(_HEAD.unpack_from(packed)[1]) if _is_packed(packed) else self.value.since

    @property
    def seen(self) -> int:
        packed = content(self.stored)
        return int(_HEAD.unpack_from(packed)[2]) if _is_packed(packed) else self.value.seen

    @property
    def online(self) -> bool:
        """Whether `home` says so: that it lives is another matter."""
        packed = content(self.stored)
        return bool(packed[0] & _ONLINE) if _is_packed(packed) else self.value.online

    @property
    def gone(self) -> bool:
        """A farewell: the record has no URIs."""
        packed = content(self.stored)
        return bool(packed[0] & _GONE) if _is_packed(packed) else not self.record.uris

    @property
    def farewells(self) -> list[Record]:
        """With what former owners left who had registered at this home."""
        if _is_packed(content(self.stored)):
            return []
        return [decode_value(signed.record, Record) for signed in self.value.farewells]

    def signs_the_same(self, other: "Entry") -> bool:
        """Whether signatures that fit here fit there."""
        mine, theirs = self.value, other.value
        return (mine.record, mine.sig, mine.farewells) == (theirs.record, theirs.sig, theirs.farewells)

    def check(self) -> bool:
        """Whether all signatures fit, which is looked at once."""
        if not self.verified:
            try:
                verify(self.signed)
                self.verified = not any(verify(signed).uris for signed in self.value.farewells)
            except MeshError:
                return False
        return self.verified


def read_entry(home: str, key: str, stored: bytes) -> Entry:
    """A value of a seed's key space -> an entry whose signature is not yet checked. Raises
    :class:`meshproto.errors.PeerError` when it does not read as one, or stands under another name."""
    entry = Entry(stored, home)
    if not _is_packed(content(stored)):  # what was packed has been looked at
        value = decode_value(content(stored), EntryValue)
        for text in (value.record, *(signed.record for signed in value.farewells)):
            if fold(decode_value(text, Record).name) != key:
                raise PeerError(f"the record of another name stands under {key}")
    return entry
