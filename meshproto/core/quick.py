"""The short way from a line to its answer.

Nearly all that a seed is asked are lookups, and nearly all of those are for a name of which one entry is known, whose
signature was checked and whose user has not left, or of which nothing is known. The one is answered with what is kept
(:mod:`meshproto.core.entry`) by copying it together: nothing is decoded but the request, and no effect is made.
Whatever is not quite like that has no answer here and goes the way of all requests,
:meth:`meshproto.core.seed.Seed.receive`, which says the same, to the byte: tests/core/test_quick.py compares the two.

It is one function because calls in between would cost as much as all that it does.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any, Final

from msgspec import UNSET

from meshproto.core.directory import Directory
from meshproto.core.entry import ANSWER, END, ONLINE, PARTS, PRESENT, REST_AT
from meshproto.core.gossip import VERSION_BYTES
from meshproto.errors import UserNotFound
from meshproto.wire import NAME_PATTERN, UNFIT, Id, decode_lookup, encode_error, encode_id

NOT_FOUND_RETRY_S: Final = 5.0
"""What a 404 says about when to ask again."""
_is_name = re.compile(NAME_PATTERN).match


def not_found(name: str) -> UserNotFound:
    return UserNotFound(f"no user {name} is known here", retry_after_s=NOT_FOUND_RETRY_S)


_NOBODY: Final = encode_error(0, not_found("NAME")).replace(b'"id":0', b'"id":%b').replace(b"NAME", b"%b")
"""The line that says so. In a name nothing needs an escape."""


def answers(
    lines: Sequence[bytes], directory: Directory, now: float, alive: Callable[[str, float], bool], *, misses: bool
) -> tuple[list[bytes], int]:
    """The answers to the first of the lines, up to one that is no lookup of that kind. `misses`: whether "not found" is
    one as well. And how many of them say so."""
    entries = directory.entries
    asked: list[tuple[Id, str, str]] = []
    for line in lines:
        try:
            lookup = decode_lookup(line)
        except UNFIT:
            break
        request_id, name = lookup.id, lookup.params.name
        if request_id is UNSET or not name.isascii():  # some letters beyond ASCII have their small form within
            break
        asked.append((request_id, name, name.lower()))
    if len(asked) > 1:
        _warm(entries, [folded for _, _, folded in asked])
    now_ms, told = int(now * 1000), b""
    oldest = b"%013d" % (now_ms - directory.claim_ttl_ms)
    found: list[bytes] = []
    missed = 0
    for request_id, name, folded in asked:
        stored = entries.get(folded)
        if type(stored) is bytes:
            flags, key, mail, seq, sig, since, seen = PARTS.unpack_from(stored, VERSION_BYTES)
            if flags not in PRESENT or seen < oldest:
                break
            own_name, uris, home = stored[REST_AT:].split(END)
            online = b"false"
            if flags & ONLINE and alive(home.decode(), now):
                online, seen = b"true", told or (told := b"%d" % now_ms)
            number = encode_id(request_id)
            found.append(ANSWER % (number, own_name, uris, key, mail, seq, sig, since, home, online, seen))
        elif stored is None and misses and _is_name(name):
            found.append(_NOBODY % (encode_id(request_id), name.encode()))
            missed += 1
        else:
            break
    return found, missed


def _warm(entries: dict[str, Any], keys: list[str]) -> None:
    """Nothing follows from this. But of a million entries nearly none are in the processor's caches, and to wait for
    memory takes as long as all else that a lookup takes; touched by as few instructions as this, several of them come
    up at a time."""
    with suppress(KeyError, TypeError):  # unknown names, and entries that are not answered here
        b"".join(itemgetter(*keys)(entries))
