"""What one home seed says of one user, in few bytes: a million of them have to fit into memory, and be answered with.

Between seeds it is JSON (:class:`meshproto.wire.EntryValue`). Nearly all of it reads alike, because nearly all records
are written by the same line (:meth:`meshproto.core.identity.Identity.sign`): kept is what differs from one to the next,
as the text that it is, so that JSON is made of it by copying alone. What would not come out again byte for byte
(written by another program, or with farewells in it, which few have), or is uncommonly long, is kept as it came.
"""

import re
from struct import Struct as Layout
from typing import Final

from msgspec import Struct

from meshproto.core.gossip import VERSION_BYTES, content
from meshproto.core.identity import Record, verify
from meshproto.errors import MeshError, PeerError
from meshproto.wire import EntryValue, SignedRecord, decode_value, encode_value, fold

URIS_BYTES_MAX: Final = 512
"""Of what is packed. So the answer that is made of it is short, and many of them may be gathered."""

_SIGNED: Final = (
    rb'{"record":"{\"name\":\"%b\",\"uris\":[%b],\"key\":\"%b\",\"mail\":\"%b\",\"seq\":%b}","sig":"%b","since":%b,'
)
_VALUE: Final = _SIGNED + rb'"online":%b,"seen":%b}'
"""An :class:`meshproto.wire.EntryValue`, as nearly all are."""
ANSWER: Final = rb'{"jsonrpc":"2.0","id":%b,"result":' + _SIGNED + rb'"home":"%b","online":%b,"seen":%b}}' + b"\n"
"""The line that answers with a :class:`meshproto.wire.LookupResult`."""
_URI: Final = rb'\\"[ !#-\[\]-~]*\\"'
_NAME, _URIS = rb"([A-Za-z0-9._-]{1,64})", rb"((?:%b(?:,%b)*)?)" % (_URI, _URI)
_KEY, _SIG, _TIME, _BOOL = rb"([\w-]{43})", rb"([\w-]{86})", rb"([1-9]\d{12})", rb"(true|false)"
_PATTERN: Final = re.compile(re.escape(_VALUE) % (_NAME, _URIS, _KEY, _KEY, _TIME, _SIG, _TIME, _BOOL, _TIME))
PARTS: Final = Layout("B43s43s13s86s13s13s")
"""Flags, key, mail, seq, signature, since, seen. After them comes what has no fixed length: the user's name, the URIs,
and the home's name, with :data:`END` in between."""
END: Final = b"\0"
_PACKED, ONLINE, _GONE = 0x80, 0x01, 0x02
"""Flags. No JSON text begins with a byte that has the first of these bits."""
PRESENT: Final = frozenset({_PACKED, _PACKED | ONLINE})
REST_AT: Final = VERSION_BYTES + PARTS.size
_SAID: Final = (b"false", b"true")


def pack(home: str, key: str, value: bytes) -> bytes:
    """JSON of an entry that stands under `key` at `home` -> the bytes that are kept; anything else comes back as it
    is."""
    packed = _packed(home, value)
    if is_packed(packed):
        try:
            record = decode_value(decode_value(value, EntryValue).record, Record)
        except MeshError:
            return value
        if fold(record.name) != key:
            return value
    return packed


def pack_own(home: str, value: EntryValue) -> bytes:
    """The same for an entry that is written here."""
    return _packed(home, encode_value(value))


def unpack(packed: bytes) -> bytes:
    """The JSON again."""
    if not is_packed(packed):
        return packed
    flags, key, mail, seq, sig, since, seen = PARTS.unpack_from(packed)
    name, uris, _ = packed[PARTS.size :].split(END)
    return _VALUE % (name, uris, key, mail, seq, sig, since, _SAID[flags & ONLINE], seen)


def home_of(stored: bytes) -> str:
    """At which seed a packed entry stands."""
    return stored.rpartition(END)[2].decode()


def _packed(home: str, value: bytes) -> bytes:
    usual = _PATTERN.fullmatch(value)
    if usual is None:
        return value
    name, uris, key, mail, seq, sig, since, online, seen = usual.groups()
    if len(uris) > URIS_BYTES_MAX:
        return value
    flags = _PACKED | (ONLINE if online == b"true" else 0) | (0 if uris else _GONE)
    return PARTS.pack(flags, key, mail, seq, sig, since, seen) + END.join((name, uris, home.encode()))


def is_packed(packed: bytes) -> bool:
    """Whether it is not as it came."""
    return packed[0] >= _PACKED


class Entry(Struct, gc=False):
    """`stored`: the very bytes that the key space of `home` holds, read when they are asked for. `verified`: the
    signatures were checked here."""

    stored: bytes
    home: str
    verified: bool = False

    @property
    def value(self) -> EntryValue:
        return decode_value(unpack(content(self.stored)), EntryValue)

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
        return int(PARTS.unpack_from(packed)[5]) if is_packed(packed) else self.value.since

    @property
    def seen(self) -> int:
        packed = content(self.stored)
        return int(PARTS.unpack_from(packed)[6]) if is_packed(packed) else self.value.seen

    @property
    def online(self) -> bool:
        """Whether `home` says so: that it lives is another matter."""
        packed = content(self.stored)
        return bool(packed[0] & ONLINE) if is_packed(packed) else self.value.online

    @property
    def gone(self) -> bool:
        """A farewell: the record has no URIs."""
        packed = content(self.stored)
        return bool(packed[0] & _GONE) if is_packed(packed) else not self.record.uris

    @property
    def farewells(self) -> list[Record]:
        """With what former owners left who had registered at this home."""
        if is_packed(content(self.stored)):
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
    if not is_packed(content(stored)):  # what was packed has been looked at
        value = decode_value(content(stored), EntryValue)
        for text in (value.record, *(signed.record for signed in value.farewells)):
            if fold(decode_value(text, Record).name) != key:
                raise PeerError(f"the record of another name stands under {key}")
    return entry
