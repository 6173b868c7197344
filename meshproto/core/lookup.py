"""Where a user is: which seed to ask next, and what is still known from the last time.

The home seed is asked first. When it does not know the name the other seeds are asked, a few at a time, until one
does. Whoever is slow is still listened to, but no longer waited for: the next is asked meanwhile (what Dean and
Barroso, "The Tail at Scale", 2013, call a hedged request). So silent seeds cost little, and a lookup ends in time
however many there are.

"User Not Found" is said only when every seed that could be reached said 404; when none could be reached, or not all
could be asked in time, nothing is known, which is something else.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import Final

from msgspec import Struct

from meshproto.core.identity import Record
from meshproto.wire import LookupResult, SignedRecord, fold

WALK_WIDTH: Final = 3
"""Seeds asked at a time: one slow seed does not hold up the walk, and a miss does not ask a thousand at once."""
SLOW_S: Final = 0.5
"""A seed answers in milliseconds; one on the other side of the world, to which there is a connection, in 0.3 s."""
LOOKUP_S: Final = 5.0
"""The whole of a lookup: a program that sends waits as long unless it says otherwise."""
FOUND_TTL_S: Final = 60.0
MISSING_TTL_S: Final = 1.0
"""A program that keeps sending to a name nobody has costs the seeds one walk a second."""
CACHE_NAMES_MAX: Final = 10_000


class Located(Struct, frozen=True):
    """A verified record, and what the seed said with it (None: it is the last known one, no seed was reached).
    `neighbour`: the home seed is on this machine, and the user is registered there."""

    record: Record
    signed: SignedRecord
    said: LookupResult | None
    neighbour: bool = False


class Said(Enum):
    """What came back from one seed."""

    FOUND = auto()
    MISSING = auto()
    SILENT = auto()


class Walk:
    """One lookup's way through the seeds, begun at `now`. Ask :meth:`next` whom to ask, tell :meth:`heard` what came,
    ask again at that and at :meth:`wake_at`, until it is :meth:`over`; then :meth:`verdict` says what to believe.
    Times in seconds, of one clock. `directories`: those that seeds share, by address: what one of them says the others
    would say too, so one of them is asked, and another only if that one is silent."""

    def __init__(
        self, home: str | None, others: Iterable[str], now: float, directories: Mapping[str, str] | None = None
    ) -> None:
        self._home = home
        self._directories = directories or {}
        self._left = deque([] if home is None else [home])
        self._left.extend(address for address in others if address != home)
        self._asked: dict[str, float] = {}  # those that have not answered, and when they were asked
        self._ends_at = now + LOOKUP_S
        self.found = False
        self.missing = 0
        self.silent = 0

    def next(self, now: float) -> list[str]:
        """The seeds to ask now, besides those that are being asked."""
        waited_for = self._waited_for(now)
        if self._home in waited_for:
            return []  # the home seed's word first
        width = 1 if self._left and self._left[0] == self._home else WALK_WIDTH - len(waited_for)
        shared = {self._directories[address] for address in waited_for if address in self._directories}
        asked: list[str] = []
        for address in list(self._left):
            directory = self._directories.get(address)
            if len(asked) >= width:
                break
            if directory in shared:
                continue
            if directory is not None:
                shared.add(directory)
            asked.append(address)
            self._left.remove(address)
        self._asked.update((address, now) for address in asked)
        return asked

    def heard(self, address: str, said: Said) -> None:
        if self._asked.pop(address, None) is None:
            return  # another has said it already
        directory = self._directories.get(address)
        if said is Said.MISSING and directory is not None:
            self._left = deque(other for other in self._left if self._directories.get(other) != directory)
            for other in [other for other in self._asked if self._directories.get(other) == directory]:
                del self._asked[other]
        self.found = self.found or said is Said.FOUND
        self.missing += said is Said.MISSING
        self.silent += said is Said.SILENT

    def wake_at(self, now: float) -> float:
        """When to go on, should nobody answer before."""
        slow_at = [self._asked[address] + SLOW_S for address in self._waited_for(now) if self._left]
        return min([*slow_at, self._ends_at])

    def over(self, now: float) -> bool:
        """The name was found, there is nobody left to ask, or no time."""
        return self.found or self.complete or self._ends_at <= now

    @property
    def complete(self) -> bool:
        """Everybody was asked and has answered, or is known not to."""
        return not self._asked and not self._left

    def verdict(self, now: float) -> Said:
        """MISSING: whoever could be reached said so. SILENT: nobody could be reached, or the time was too short to ask
        them all."""
        if self.found:
            return Said.FOUND
        return Said.MISSING if self.missing and not self._left and not self._waited_for(now) else Said.SILENT

    def slow(self, now: float) -> list[str]:
        """Those that were asked :data:`SLOW_S` ago, or longer, and have not answered."""
        return [address for address, asked_at in self._asked.items() if asked_at + SLOW_S <= now]

    def _waited_for(self, now: float) -> list[str]:
        return [address for address, asked_at in self._asked.items() if now < asked_at + SLOW_S]


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
