"""One name of a shared directory, decided by the rules of every registry: what stands in the store is read as an entry
beside those that gossip tells of, and what the rules write becomes the value that is to stand there."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from meshproto.core.effects import Effect
from meshproto.core.entry import Entry, pack_own
from meshproto.core.gossip import VERSION_BYTES
from meshproto.core.names import Parts
from meshproto.core.registry import Registry
from meshproto.errors import Unavailable
from meshproto.wire import EntryValue, LookupResult

HOME: Final = ""
"""Under which the shared directory's entries stand beside those of seeds; no seed is called so."""
_HEAD: Final = re.compile(rb"([A-Za-z0-9._-]{1,64}) (\d{1,16})\n")


class Place(NamedTuple):
    """Where a user is: connected to `seed`, in the life of it that has this number."""

    seed: str
    life: int


class Draft:
    """What becomes of one name's value. `place`: where the user is from now on; None: where they were. `calls`: what
    follows when it is written."""

    def __init__(self, before: bytes | None, place: Place | None = None) -> None:
        self.before = self.after = before
        self.at: Place | None = None  # where the user is, as it was read
        self._place = place
        self.calls: list[Callable[[], object]] = []

    def read(self) -> bytes | None:
        """The packed entry that stands there. Raises :class:`Unavailable`."""
        if self.before is None:
            return None
        head = _HEAD.match(self.before)
        if head is None:
            raise Unavailable("what the shared directory has of this name is damaged: its user has to register again")
        self.at = Place(head[1].decode(), int(head[2]))
        return self.before[head.end() :]

    def write(self, value: EntryValue) -> bytes:
        packed = pack_own(HOME, value)
        place = self._place or self.at or Place("-", 0)
        self.after = b"%b %d\n%b" % (place.seed.encode(), place.life, packed)
        return stored(packed)


class Drafted:
    """The :class:`meshproto.core.registry.Own` of a directory that is written one draft at a time."""

    def __init__(self) -> None:
        self.draft = Draft(None)

    def write(self, _key: str, value: EntryValue) -> bytes:
        return self.draft.write(value)

    def drop(self, _key: str, _now: float) -> None:
        self.draft.after = None

    def tell_soon(self, _now: float) -> None:
        """The store tells those who watch."""

    def then(self, call: Callable[[], object]) -> None:
        self.draft.calls.append(call)


class Rules(Registry):
    """The rules of every registry, for one name at a time: between :meth:`loaded` and its end the directory has what
    the shared one has of it."""

    def __init__(self, parts: Parts) -> None:
        self._drafted = Drafted()
        super().__init__(
            HOME,
            self._drafted,
            parts.peering,
            parts.sessions,
            parts.rates,
            claim_ttl_s=parts.claim_ttl_s,
            may_register=parts.may_register,
        )

    @property
    def draft(self) -> "Draft":
        """The one that is loaded."""
        return self._drafted.draft

    @property
    def kept_ms(self) -> int:
        """How long a value stands that nobody writes: as long as a farewell has to (:meth:`Registry.sweep`)."""
        return self.directory.claim_ttl_ms + self.renew_ms

    def shared(self, key: str) -> Entry | None:
        return self.directory.at_home(key, HOME)

    def read(self, draft: Draft, now: float) -> Entry | None:
        """The entry that stands there, as it is to be understood now. Raises :class:`Unavailable` for a value that does
        not read."""
        packed = draft.read()
        self._drafted.draft = draft
        if packed is None:
            return None
        entry = Entry(stored(packed), HOME, True)
        if entry.online and draft.at is not None and not self._peering.lives(*draft.at, now):
            entry = Entry(stored(pack_own(HOME, self.away(entry.value, now))), HOME, True)
        return entry

    def find_alone(self, draft: Draft, now: float) -> LookupResult | None:
        """What there is to answer for a name that nothing else is known of: as :meth:`find` does, in less time."""
        entry = self.read(draft, now)
        return self._result(entry, now) if entry is not None and self.directory.holds(entry, _ms(now)) else None

    @contextmanager
    def loaded(self, key: str, draft: Draft, now: float) -> Iterator[None]:
        """Raises :class:`Unavailable`, as :meth:`read` does."""
        entry = self.read(draft, now)
        if entry is not None:
            self.directory.put(key, entry)
        try:
            yield
        finally:
            self.directory.remove(key, HOME)

    def _result(self, entry: Entry, now: float) -> LookupResult:
        if entry.home != HOME or self.draft.at is None:
            return super()._result(entry, now)
        value, at = entry.value, self.draft.at
        seen = _ms(now) if value.online else value.seen
        return LookupResult(value.record, value.sig, value.since, at.seed, value.online, seen)

    def _changed(self, keys: set[str], now: float) -> list[Effect]:
        """The store tells those who watch, here as at other seeds."""
        return []


def read_value(kept: bytes) -> EntryValue:
    """What the store has of a name. Raises :class:`Unavailable` when it is damaged."""
    packed = Draft(kept).read()
    assert packed is not None  # noqa: S101 -- as there is something
    return Entry(stored(packed), HOME).value


def stored(packed: bytes) -> bytes:
    """As an :class:`Entry` has it, which is read from a space of versions otherwise."""
    return bytes(VERSION_BYTES) + packed


def _ms(now: float) -> int:
    return int(now * 1000)
