"""Users for the tests of the directory and of seeds: keys from small numbers, records, values."""

import random
from functools import cache

from meshproto.core.entry import Entry, pack, read_entry
from meshproto.core.gossip import VERSION_BYTES
from meshproto.core.identity import Identity, Record, b64
from meshproto.wire import EntryValue, SignedRecord, decode_value, encode_value, fold


@cache
def user(number: int) -> Identity:
    return Identity.create(random.Random(number).randbytes, 0)


def key_of(number: int) -> str:
    return b64(user(number).key)


@cache
def signed(name: str, seq: int, *, owner: int = 1, gone: bool = False) -> SignedRecord:
    """A record that `owner` has signed; `gone`: one that unregisters."""
    return user(owner).sign(name, [] if gone else ["http://192.0.2.7:3000"], seq)


def forged(record: SignedRecord) -> SignedRecord:
    """The record with a signature that does not fit."""
    return SignedRecord(record.record, "A" * 86)


def value_of(
    record: SignedRecord,
    *,
    since: int = 0,
    online: bool = True,
    seen: int = 0,
    farewells: tuple[SignedRecord, ...] = (),
) -> EntryValue:
    return EntryValue(record.record, record.sig, since, online, seen, farewells)


def entry_of(value: EntryValue, home: str, *, verified: bool) -> Entry:
    """As it stands in a directory when it has come by gossip, with version 0."""
    key = fold(decode_value(value.record, Record).name)
    entry = read_entry(home, key, bytes(VERSION_BYTES) + pack(home, key, encode_value(value)))
    entry.verified = verified
    return entry
