"""Where a user is: which seed to ask next, and what is still known from the last time.

The home seed is asked first. When it does not know the name the other seeds are asked, a few at a time, until one
does. "User Not Found" is said only when every seed that could be reached said 404; when none could be reached nothing
is known, which is something else.
"""

from collections import OrderedDict
from collections.abc import Iterable
from enum import Enum, auto
from typing import Final

from msgspec import Struct

from meshproto.core.identity import Record
from meshproto.wire import LookupResult, SignedRecord, fold

WALK_WIDTH: Final = 3
"""Seeds asked at a time: one slow seed does not hold up the walk, and a miss does not ask a thousand at once."""
FOUND_TTL_S: Final = 60.0
MISSING_TTL_S: Final = 1.0
"""A program that keeps sending to a name nobody has costs the seeds one walk a second."""
CACHE_NAMES_MAX: Final = 10_000


class Located(Struct, frozen=True):
    """A verified record, and what the seed said with it (None: it is the last known one, no seed was reached)."""

    record: Record
    signed: SignedRecord
    said: LookupResult | None


class Said(Enum):
    """What came back from one seed."""

    FOUND = auto()
    MISSING = auto()
    SILENT = auto()


class Walk:
    """One lookup's way through the seeds. Ask :meth:`next` whom to ask now, tell :meth:`heard` what came."""

    def __init__(self, home: str | None, others: Iterable[str]) -> None:
        self._home = home
        self._at_home = False
        self._left = [address for address in others if address != home]
        self._asked: set[str] = set()
        self.found = False
        self.missing = 0
        self.silent = 0

    def next(self) -> list[str]:
        """The seeds to ask now, besides those that are being asked."""
        if self._home is not None:
            home, self._home = self._home, None
            self._asked.add(home)
            self._at_home = True
            return [home]
        if self._at_home and self._asked:
            return []  # the home seed's word first
        self._at_home = False
        now = self._left[: WALK_WIDTH - len(self._asked)]
        self._left = self._left[len(now) :]
        self._asked.update(now)
        return now

    def heard(self, address: str, said: Said) -> None:
        self._asked.discard(address)
        self.found = self.found or said is Said.FOUND
        self.missing += said is Said.MISSING
        self.silent += said is Said.SILENT

    @property
    def over(self) -> bool:
        """The name was found, or there is nobody left to ask."""
        return self.found or (self._home is None and not self._asked and not self._left)


class Cache:
    """What lookups brought lately: at most :data:`CACHE_NAMES_MAX` names, the one not used longest leaves first."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, tuple[float, Located]] = OrderedDict()
        self._missing: OrderedDict[str, float] = OrderedDict()

    def found(self, name: str, located: Located, now: float) -> None:
        key = fold(name)
        self._missing.pop(key, None)
        self._found[key] = (now + FOUND_TTL_S, located)
        self._found.move_to_end(key)
        if len(self._found) > CACHE_NAMES_MAX:
            self._found.popitem(last=False)

    def missing(self, name: str, now: float) -> None:
        key = fold(name)
        self._found.pop(key, None)
        self._missing[key] = now + MISSING_TTL_S
        self._missing.move_to_end(key)
        if len(self._missing) > CACHE_NAMES_MAX:
            self._missing.popitem(last=False)

    def get(self, name: str, now: float) -> Located | None:
        key = fold(name)
        until, located = self._found.get(key, (0.0, None))
        if located is None or now >= until:
            return None
        self._found.move_to_end(key)
        return located

    def is_missing(self, name: str, now: float) -> bool:
        return now < self._missing.get(fold(name), 0.0)

    def drop_missing(self) -> None:
        """Nobody who said so is there any more."""
        self._missing.clear()

    def drop(self, name: str) -> None:
        self._found.pop(fold(name), None)
        self._missing.pop(fold(name), None)
