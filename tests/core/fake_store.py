"""A store that seeds share, in memory: what Redis does for them, on the tests' own clock."""

from collections.abc import Callable, Iterable

from meshproto.core.entry import unpack
from meshproto.errors import Unavailable
from meshproto.wire import EntryValue, decode_value


class FakeStore:
    """`gone`: nobody answers; `deaf`: nobody is told. `before_swap`: called once, before a value is compared; whoever
    is quicker is quicker there."""

    RETRY_S = 1.5

    def __init__(self, now: Callable[[], float]) -> None:
        self.values: dict[str, tuple[bytes, float]] = {}
        self.gone = self.deaf = False
        self.before_swap: Callable[[], None] | None = None
        self.swaps = 0
        self._now = now
        self._seats: list[Seat] = []

    def seat(self, changed: Callable[[str], None]) -> "Seat":
        """For one more seed."""
        seat = Seat(self, changed)
        self._seats.append(seat)
        return seat

    def read(self, key: str) -> bytes | None:
        if self.gone:
            raise Unavailable("nobody answers", retry_after_s=self.RETRY_S)
        value, until = self.values.get(key, (b"", 0.0))
        return value if until > self._now() else None

    def swap(self, key: str, before: bytes | None, after: bytes | None, ttl_ms: int) -> bool:
        quicker, self.before_swap = self.before_swap, None
        if quicker is not None:
            quicker()
        if self.read(key) != before:
            return False
        self.swaps += 1
        if after is None:
            self.values.pop(key, None)
        else:
            self.values[key] = after, self._now() + ttl_ms / 1000
        for seat in self._seats:
            if key in seat.watched and not self.deaf:
                seat.changed(key)
        return True

    def copy(self) -> dict[str, tuple[bytes, float]]:
        """What a replica has at this moment."""
        return dict(self.values)

    def value_of(self, key: str) -> EntryValue:
        return decode_value(unpack(self.values[key][0].partition(b"\n")[2]), EntryValue)


class Seat:
    """A :class:`meshproto.core.shared.SharedStore`, as one seed has it."""

    def __init__(self, store: FakeStore, changed: Callable[[str], None]) -> None:
        self._store = store
        self.changed = changed
        self.watched: set[str] = set()

    async def get(self, key: str) -> bytes | None:
        return self._store.read(key)

    async def swap(self, key: str, before: bytes | None, after: bytes | None, ttl_ms: int) -> bool:
        return self._store.swap(key, before, after, ttl_ms)

    def watch(self, keys: Iterable[str]) -> None:
        self.watched.update(keys)

    def unwatch(self, keys: Iterable[str]) -> None:
        self.watched.difference_update(keys)

    async def count(self) -> int:
        return len(self._store.values)

    async def identity(self) -> str:
        return "fake"
