"""Name -> best entry; claims and conflicts.

Every seed where a user has registered says so in its own key space, so there may be several entries for one name: a
user who moved, or two users who claimed the name on two sides of a split. The order is the same everywhere, so every
seed comes to the same answer by itself:

1. Of two keys the one with the earlier `since` owns the name, then the smaller key.
2. Of the owner's entries the one with the highest `seq` counts, then the one that is online, then the one seen last.

A claim that runs out (nobody online, not seen for `claim_ttl`) and a user who unregistered (a record without URIs) own
nothing any more.
"""

from collections import Counter
from itertools import islice
from typing import Final

from msgspec import Struct

from meshproto.core.identity import Record, verify
from meshproto.core.order import Order
from meshproto.errors import MeshError, NameTaken, PeerError, StaleRecord
from meshproto.wire import EntryValue, SignedRecord, decode_value, encode_value, fold

CLAIM_TTL_S: Final = 30 * 86400.0
"""A name whose owner was not seen for a month is free."""


class Entry(Struct, gc=False):
    """What one home seed says of one user: `text` is the JSON of a :class:`EntryValue`, the same bytes that the key
    space holds, read when they are asked for (a million names are kept, and few of them read at a time). `verified`:
    the signature was checked here."""

    text: bytes
    home: str
    online: bool
    gone: bool
    verified: bool

    @property
    def value(self) -> EntryValue:
        return decode_value(self.text, EntryValue)

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


def entry_of(record: Record, value: EntryValue, home: str, *, verified: bool) -> Entry:
    return Entry(encode_value(value), home, value.online, not record.uris, verified)


def read_entry(home: str, key: str, text: bytes) -> Entry:
    """A value of a seed's key space -> an entry whose signature is not yet checked. Raises
    :class:`meshproto.errors.PeerError` when it does not read as one, or stands under another name."""
    value = decode_value(text, EntryValue)
    record = decode_value(value.record, Record)
    if fold(record.name) != key:
        raise PeerError(f"the record of {record.name} stands under {key}")
    return Entry(text, home, value.online, not record.uris, False)


class Directory:
    """The index of all entries that are known here."""

    def __init__(self, claim_ttl_s: float = CLAIM_TTL_S) -> None:
        self._claim_ttl_ms = int(claim_ttl_s * 1000)
        self._entries: dict[str, Entry | tuple[Entry, ...]] = {}  # a name with one entry, as most have, costs no tuple
        self._order = Order(self._entries)
        self.users_by_home: Counter[str] = Counter()
        self.online = 0  # names that some home says are online

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry, key: str | None = None) -> None:
        """Take the entry in place of the one that the same home had. `key`: the folded name, if it is at hand."""
        key = key or fold(entry.name)
        if key not in self._entries:
            self._order.added(key)
        self._set(key, (*self._without(key, entry.home), entry))

    def remove(self, key: str, home: str) -> None:
        self._set(key, self._without(key, home))

    def at_home(self, key: str, home: str) -> Entry | None:
        return next((entry for entry in self._all(key) if entry.home == home), None)

    def best(self, name: str, now_ms: int) -> Entry | None:
        """The entry that answers for the name, if anybody owns it."""
        entries = self._all(fold(name))
        if len(entries) == 1:
            return entries[0] if self._holds(entries[0], now_ms) else None
        return self._owner(entries, now_ms)

    def check(self, entry: Entry) -> bool:
        """Whether the signature fits, which is looked at once; an entry with one that does not fit is dropped."""
        if not entry.verified:
            try:
                verify(entry.signed)
                entry.verified = True
            except MeshError:
                self.remove(fold(entry.name), entry.home)
        return entry.verified

    def verified(self, name: str, now_ms: int) -> tuple[Entry | None, list[Entry]]:
        """The best entry among those whose signature fits, checked when the name is first served; and those that had
        to be dropped. All are checked: a forged record could also own the name, or say that its owner is gone."""
        dropped = [entry for entry in self._all(fold(name)) if not self.check(entry)]
        return self.best(name, now_ms), dropped

    def claim(self, record: Record, now_ms: int) -> int:
        """Whether `record` may be registered now: since when its key has owned the name. Raises
        :class:`NameTaken` or :class:`StaleRecord`."""
        entries = self._all(fold(record.name))
        owner = self._owner(entries, now_ms)
        if owner is not None and owner.key != record.key:
            raise NameTaken(f"{record.name} belongs to another key: choose another name")
        mine = [entry for entry in entries if entry.key == record.key]
        if any(record.seq < entry.seq for entry in mine):
            raise StaleRecord(f"a newer record of {record.name} is known")
        return now_ms if owner is None else min(entry.value.since for entry in mine)

    def page(self, prefix: str, after: str, limit: int, now_ms: int) -> tuple[list[str], str | None]:
        """Names in order that begin with `prefix` and come after `after`; the cursor of the next page, if any."""
        prefix, after = fold(prefix), fold(after)
        found: list[str] = []
        keys = self._order.after(after) if after >= prefix else self._order.after(prefix, inclusive=True)
        last = None
        for key in islice(keys, 4 * limit):
            if not key.startswith(prefix):
                return found, None
            if len(found) == limit:
                return found, last
            last = key
            if (entry := self.best(key, now_ms)) is not None:
                found.append(entry.name)
        more = last is not None and next(self._order.after(last), None) is not None
        return found, last if more else None

    def lapsed(self, home: str, after: str, limit: int, now_ms: int) -> tuple[list[str], str]:
        """Look at the next `limit` names after `after`: those whose entry at `home` owns nothing any more, and the
        name to go on after ("" at the end)."""
        keys = list(islice(self._order.after(after, settled=bool(after)), limit))
        over = [key for key in keys if (entry := self.at_home(key, home)) and self._ran_out(entry, now_ms)]
        return over, keys[-1] if len(keys) == limit else ""

    def _all(self, key: str) -> tuple[Entry, ...]:
        found = self._entries.get(key, ())
        return found if isinstance(found, tuple) else (found,)

    def _without(self, key: str, home: str) -> tuple[Entry, ...]:
        return tuple(entry for entry in self._all(key) if entry.home != home)

    def _set(self, key: str, entries: tuple[Entry, ...]) -> None:
        """The entries of the name, which may be none, and what is counted of them."""
        before = self._all(key)
        self.users_by_home.subtract(entry.home for entry in before)
        self.users_by_home.update(entry.home for entry in entries)
        self.online += any(entry.online for entry in entries) - any(entry.online for entry in before)
        if entries:
            self._entries[key] = entries if len(entries) > 1 else entries[0]
        elif before:
            del self._entries[key]
            self._order.removed()

    def _owner(self, entries: tuple[Entry, ...], now_ms: int) -> Entry | None:
        """The newest entry of the key that owns the name: rule 1, among the keys whose newest entry still holds."""
        newest: dict[str, Entry] = {}
        since: dict[str, int] = {}
        for entry in entries:
            known = newest.get(entry.key)
            if known is None or _rank(entry) > _rank(known):
                newest[entry.key] = entry
            since[entry.key] = min(since.get(entry.key, entry.value.since), entry.value.since)
        holders = [entry for entry in newest.values() if self._holds(entry, now_ms)]
        return min(holders, key=lambda entry: (since[entry.key], entry.key), default=None)

    def _holds(self, entry: Entry, now_ms: int) -> bool:
        return not entry.gone and not self._ran_out(entry, now_ms)

    def _ran_out(self, entry: Entry, now_ms: int) -> bool:
        return not entry.online and entry.value.seen + self._claim_ttl_ms < now_ms


def _rank(entry: Entry) -> tuple[int, bool, int, str]:
    """Rule 2, and what makes the order the same everywhere: a user who moved may stand at two homes with one record."""
    return entry.seq, entry.online, entry.value.seen, entry.home
