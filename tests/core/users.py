"""Users for the tests of the directory and of seeds: keys from small numbers, records, values."""

import random
from functools import cache

from meshproto.core.identity import Identity, b64
from meshproto.wire import EntryValue, SignedRecord


@cache
def user(number: int) -> Identity:
    return Identity.create(random.Random(number).randbytes, 0)


def key_of(number: int) -> str:
    return b64(user(number).key)


@cache
def signed(name: str, seq: int, *, owner: int = 1, gone: bool = False) -> SignedRecord:
    """A record that `owner` has signed; `gone`: one that unregisters."""
    return user(owner).sign(name, [] if gone else ["http://127.0.0.1:3000"], seq)


def forged(record: SignedRecord) -> SignedRecord:
    """The record with a signature that does not fit."""
    return SignedRecord(record.record, "A" * 86)


def value_of(record: SignedRecord, *, since: int = 0, online: bool = True, seen: int = 0) -> EntryValue:
    return EntryValue(record.record, record.sig, since, online, seen)
