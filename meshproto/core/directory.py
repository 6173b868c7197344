"""Name -> best entry; claims and conflicts.

Every seed where a user has registered says so in its own key space, so there may be several entries for one name: a
user who moved, or two users who claimed the name on two sides of a split. The order is the same everywhere, so every
seed comes to the same answer by itself:

1. Of two keys the one with the earlier `since` owns the name, then the smaller key.
2. Of the owner's entries the one with the highest `seq` counts, then the one that is online, then the one seen last.

A claim that ran out (its user was not seen for `claim_ttl`; of whoever is online a home says anew, now and then, that
it sees them) and a user who unregistered (a record without URIs) own nothing any more.

A farewell has to be remembered for as long as an older entry of the same user may stand somewhere, on the disk of a
seed that is down, say: whoever registers the name next carries the farewells of those before in the own entry.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Final

from sortedcontainers import SortedList

from meshproto.core.entry import Entry, home_of, is_packed
from meshproto.core.gossip import content
from meshproto.core.identity import Record
from meshproto.errors import NameTaken, StaleRecord
from meshproto.wire import FAREWELLS_MAX, SignedRecord, decode_value, fold

CLAIM_TTL_S: Final = 30 * 86400.0
"""A name whose owner was not seen for a month is free."""


class Directory:
    """The index of all entries that are known here. `entries`: by folded name, in as little as possible: one that is
    the only one of its name, and was checked, and is packed (as most are) stands as the bytes that are stored, which
    need nothing beside them to be answered with; another that is the only one stands for itself."""

    def __init__(self, claim_ttl_s: float = CLAIM_TTL_S) -> None:
        self.claim_ttl_ms = int(claim_ttl_s * 1000)
        self.entries: dict[str, bytes | Entry | tuple[Entry, ...]] = {}
        self._names: SortedList[str] = SortedList()
        self.users_by_home: Counter[str] = Counter()
        self.online_by_home: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.entries)

    def put(self, key: str, entry: Entry) -> None:
        """Take the entry in place of the one that the same home had. `key`: the folded name."""
        self._set(key, (*self._without(key, entry.home), entry))

    def remove(self, key: str, home: str) -> None:
        self._set(key, self._without(key, home))

    def at_home(self, key: str, home: str) -> Entry | None:
        return next((entry for entry in self._all(key) if entry.home == home), None)

    def homes(self, key: str) -> set[str]:
        """Where entries of the folded name stand."""
        return {entry.home for entry in self._all(key)}

    def best(self, name: str, now_ms: int) -> Entry | None:
        """The entry that answers for the name, if anybody owns it."""
        entries = self._all(fold(name))
        if len(entries) == 1:
            return entries[0] if self.holds(entries[0], now_ms) else None
        return self._owner(entries, now_ms)

    def check(self, key: str, entry: Entry) -> bool:
        """Whether the signature fits; an entry with one that does not fit is dropped."""
        checked = entry.verified
        fits = entry.check()
        if not fits:
            self.remove(key, entry.home)
        elif not checked and self.entries.get(key) is entry:
            self.entries[key] = _compact(entry)
        return fits

    def verified(self, name: str, now_ms: int) -> tuple[Entry | None, list[Entry]]:
        """The best entry among those whose signature fits, checked when the name is first served; and those that had
        to be dropped. All are checked: a forged record could also own the name, or say that its owner is gone."""
        key = fold(name)
        dropped = [entry for entry in self._all(key) if not self.check(key, entry)]
        return self.best(name, now_ms), dropped

    def claim(self, record: Record, now_ms: int) -> int:
        """Whether `record` may be registered now: since when its key has owned the name. Raises
        :class:`NameTaken` or :class:`StaleRecord`."""
        entries = self._all(fold(record.name))
        owner = self._owner(entries, now_ms)
        if owner is not None and owner.key != record.key:
            raise NameTaken(f"{record.name} belongs to another key: choose another name")
        left = _left(entries).get(record.key, -1)
        mine = [entry for entry in entries if entry.key == record.key]
        if any(record.seq < entry.seq for entry in mine) or record.seq <= left:
            raise StaleRecord(f"a newer record of {record.name} is known")
        counted = [entry.since for entry in mine if entry.seq > left and not self.ran_out(entry, now_ms)]
        return now_ms if owner is None else min(counted)

    def knows(self, key: str) -> bool:
        """Whether anything is known of the folded name."""
        return key in self.entries

    def has(self, record: Record) -> bool:
        """Whether this record of its user is known, or a newer one."""
        return any(entry.key == record.key and entry.seq >= record.seq for entry in self._all(fold(record.name)))

    def farewells(self, key: str, owner: str) -> tuple[SignedRecord, ...]:
        """The latest words of others who have left, newest first, for the entry of the next owner."""
        left: dict[str, tuple[int, SignedRecord]] = {}
        for entry in self._all(key):
            for signed in (*entry.value.farewells, *([entry.signed] if entry.gone else ())):
                record = decode_value(signed.record, Record)
                if record.key != owner and record.seq > left.get(record.key, (-1, signed))[0]:
                    left[record.key] = record.seq, signed
        newest = sorted(left.values(), key=lambda word: word[0], reverse=True)
        return tuple(signed for _, signed in newest[:FAREWELLS_MAX])

    def page(self, prefix: str, after: str, limit: int, now_ms: int) -> tuple[list[str], str | None]:
        """Names in order that begin with `prefix` and come after `after`; the cursor of the next page, if any."""
        prefix, after = fold(prefix), fold(after)
        found: list[str] = []
        keys = self._names.irange(after, inclusive=(False, True)) if after >= prefix else self._names.irange(prefix)
        last = None
        for key in islice(keys, 4 * limit):
            if not key.startswith(prefix):
                return found, None
            if len(found) == limit:
                return found, last
            last = key
            if (entry := self.best(key, now_ms)) is not None:
                found.append(entry.name)
        more = last is not None and next(self._names.irange(last, inclusive=(False, True)), None) is not None
        return found, last if more else None

    def window(self, after: str, limit: int) -> tuple[list[str], str]:
        """The next `limit` names after `after`, and the name to go on after ("" at the end)."""
        keys = list(islice(self._names.irange(after, inclusive=(False, True)), limit))
        return keys, keys[-1] if len(keys) == limit else ""

    def ran_out(self, entry: Entry, now_ms: int) -> bool:
        return entry.seen + self.claim_ttl_ms < now_ms

    def _all(self, key: str) -> tuple[Entry, ...]:
        found = self.entries.get(key, ())
        if isinstance(found, bytes):
            return (Entry(found, home_of(found), True),)
        return found if isinstance(found, tuple) else (found,)

    def _without(self, key: str, home: str) -> tuple[Entry, ...]:
        found = self._all(key)
        return tuple(entry for entry in found if entry.home != home) if found else found

    def _set(self, key: str, entries: tuple[Entry, ...]) -> None:
        """The entries of the name, which may be none, and what is counted of them."""
        before = self._all(key)
        self._count(before, -1)
        self._count(entries, 1)
        if entries:
            self.entries[key] = entries if len(entries) > 1 else _compact(entries[0])
            if not before:
                self._names.add(key)
        elif before:
            del self.entries[key]
            self._names.remove(key)

    def _count(self, entries: Iterable[Entry], by: int) -> None:
        for entry in entries:
            if not entry.gone:
                self.users_by_home[entry.home] += by
            if entry.online:
                self.online_by_home[entry.home] += by

    def _owner(self, entries: tuple[Entry, ...], now_ms: int) -> Entry | None:
        """The newest entry of the key that owns the name: rule 1, among the keys whose newest entry still holds."""
        left = _left(entries)
        newest: dict[str, Entry] = {}
        since: dict[str, int] = {}
        for entry in entries:
            key = entry.key
            if entry.seq <= left.get(key, -1):
                continue
            known = newest.get(key)
            if known is None or _rank(entry) > _rank(known):
                newest[key] = entry
            if not self.ran_out(entry, now_ms):
                since[key] = min(since.get(key, entry.since), entry.since)
        holders = [(since[key], key) for key, entry in newest.items() if self.holds(entry, now_ms)]
        return newest[min(holders)[1]] if holders else None

    def holds(self, entry: Entry, now_ms: int) -> bool:
        """Whether it owns the name, if nobody else does."""
        return not entry.gone and not self.ran_out(entry, now_ms)


def _compact(entry: Entry) -> bytes | Entry:
    return entry.stored if entry.verified and is_packed(content(entry.stored)) else entry


def _left(entries: Iterable[Entry]) -> dict[str, int]:
    """The `seq` with which each key has left the name: what it had said before counts no more."""
    left: dict[str, int] = {}
    for entry in entries:
        for record in (*entry.farewells, *([entry.record] if entry.gone else ())):
            left[record.key] = max(record.seq, left.get(record.key, -1))
    return left


def _rank(entry: Entry) -> tuple[int, bool, int, str]:
    """Rule 2, and what makes the order the same everywhere: a user who moved may stand at two homes with one record."""
    return entry.seq, entry.online, entry.seen, entry.home
