"""The short way from a line to its answer.

Nearly all that a seed is asked are lookups, and nearly all of those are for a name of which one entry is known, whose
signature was checked and whose user has not left. Their answers are copied together from what is kept
(:mod:`meshproto.core.entry`): nothing is decoded but the request, and no effect is made. Whatever is not quite like
that has no answer here and goes the way of all requests, :meth:`meshproto.core.seed.Seed.receive`, which says the same
to the byte: tests/core/test_quick.py compares the two.

All is in one loop because a call in between would cost as much as any of its lines.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from msgspec import UNSET

from meshproto.core.directory import Directory
from meshproto.core.entry import ANSWER, ONLINE, PARTS, PRESENT, WORDS_AT
from meshproto.core.gossip import VERSION_BYTES
from meshproto.wire import UNFIT, decode_lookup, encode_id


def answers(lines: list[bytes], directory: Directory, now: float, alive: Callable[[str, float], bool]) -> list[bytes]:
    """The answers to the first of the lines, up to one that is no lookup of that kind."""
    ids, keys = [], []
    for line in lines:
        try:
            lookup = decode_lookup(line)
        except UNFIT:
            break
        request_id, name = lookup.id, lookup.params.name
        if request_id is UNSET or not name.isascii():  # some letters beyond ASCII have their small form within
            break
        ids.append(request_id)
        keys.append(name.lower())
    now_ms, told = int(now * 1000), b""
    oldest = b"%013d" % (now_ms - directory.claim_ttl_ms)
    found: list[bytes] = []
    for request_id, stored in zip(ids, _values(directory.entries, keys)):
        if type(stored) is not bytes:
            break
        flags, key, mail, seq, sig, since, seen, home_bytes = PARTS.unpack_from(stored, VERSION_BYTES)
        if flags not in PRESENT or seen < oldest:
            break
        home, online = stored[-home_bytes:], b"false"
        if flags & ONLINE and alive(home.decode(), now):
            online, seen = b"true", told or (told := b"%d" % now_ms)
        words = stored[WORDS_AT:-home_bytes]
        found.append(ANSWER % (encode_id(request_id), words, key, mail, seq, sig, since, home, online, seen))
    return found


def _values(entries: dict[str, Any], keys: list[str]) -> Sequence[Any]:
    """What stands under each. Of a million entries nearly none are in the processor's caches, and to wait for memory
    takes longer than all else that a lookup takes; asked for by one call, several of them come up at a time."""
    try:
        return itemgetter(*keys)(entries) if len(keys) > 1 else [entries[keys[0]]]
    except LookupError:
        return [*map(entries.get, keys)]
