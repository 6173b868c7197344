"""What every shared store does, whatever it is kept in: one suite for the fake one and for Redis."""

import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable
from typing import TypeVar

from twisted.internet.defer import Deferred, gatherResults

from meshproto.core.shared import SharedStore

LONG_MS = 600_000
SWAPPERS = 50
ROUNDS = 10

T = TypeVar("T")

_numbers = itertools.count()


class Heard:
    """What a store has told its seed."""

    def __init__(self) -> None:
        self.changes: Counter[str] = Counter()
        self.resumptions = 0
        self._waiting: list[tuple[str | None, int, Deferred[None]]] = []

    def changed(self, key: str) -> None:
        self.changes[key] += 1
        self._look()

    def resumed(self) -> None:
        self.resumptions += 1
        self._look()

    def at_least(self, times: int, key: str | None = None) -> "Deferred[None]":
        """Fires when the key was said to have changed so many times; without a key: that it has resumed."""
        told: Deferred[None] = Deferred()
        self._waiting.append((key, times, told))
        self._look()
        return told

    def _look(self) -> None:
        for one in list(self._waiting):
            key, times, told = one
            if (self.resumptions if key is None else self.changes[key]) >= times:
                self._waiting.remove(one)
                told.callback(None)


class Stores(ABC):
    """Makes stores on one and the same directory."""

    @abstractmethod
    async def make(self, heard: Heard | None = None) -> SharedStore: ...

    @abstractmethod
    async def expire(self, store: SharedStore, key: str) -> None:
        """Until a key that has a millisecond left is gone."""


def fresh() -> str:
    """A key that nobody has used."""
    return f"user-{next(_numbers)}"


class SharedStoreSuite:
    async def test_a_value_is_what_was_written(self, stores: Stores) -> None:
        """Bytes of any kind come back as they were; the empty value is a value."""
        store, key = await stores.make(), fresh()
        assert await store.get(key) is None
        for value in (b"", b"=", bytes(range(256)) * 40):
            assert await store.swap(key, await store.get(key), value, LONG_MS)
            assert await store.get(key) == value

    async def test_a_swap_needs_the_value_that_was_there(self, stores: Stores) -> None:
        store, key = await stores.make(), fresh()
        assert not await store.swap(key, b"", b"new", LONG_MS)
        assert await store.swap(key, None, b"", LONG_MS)
        assert not await store.swap(key, None, b"new", LONG_MS)
        assert not await store.swap(key, b"other", b"new", LONG_MS)
        assert await store.swap(key, b"", b"new", LONG_MS)
        assert not await store.swap(key, b"", None, LONG_MS)
        assert await store.swap(key, b"new", None, LONG_MS)
        assert await store.get(key) is None
        assert await store.swap(key, None, None, LONG_MS)

    async def test_a_value_expires(self, stores: Stores) -> None:
        """With its own time, which a swap sets anew."""
        store, key, kept = await stores.make(), fresh(), fresh()
        assert await store.swap(key, None, b"short", 1)
        assert await store.swap(kept, None, b"short", LONG_MS)
        await stores.expire(store, key)
        assert await store.swap(key, None, b"again", LONG_MS)
        assert await store.get(kept) == b"short"

    async def test_of_many_who_swap_one_wins(self, stores: Stores) -> None:
        """Fifty swappers at two stores, round by round: exactly one each time, and its value is there."""
        both, key = [await stores.make(), await stores.make()], fresh()
        before: bytes | None = None
        for round_ in range(ROUNDS):
            values = [b"%d of %d" % (number, round_) for number in range(SWAPPERS)]
            swaps = [both[number % 2].swap(key, before, value, LONG_MS) for number, value in enumerate(values)]
            won = await gatherResults([_deferred(swap) for swap in swaps])
            assert sum(won) == 1
            before = values[won.index(True)]
            assert [await store.get(key) for store in both] == [before, before]

    async def test_who_watches_hears_of_every_write(self, stores: Stores) -> None:
        """By whomever, also by themselves; a deletion too; and once when it begins to be heard."""
        mine, theirs, key = Heard(), Heard(), fresh()
        own, other = await stores.make(mine), await stores.make(theirs)
        own.watch([key])
        other.watch([key])
        await mine.at_least(1, key)
        await theirs.at_least(1, key)
        assert await own.swap(key, None, b"1", LONG_MS)
        await theirs.at_least(2, key)
        assert await other.swap(key, b"1", None, LONG_MS)
        await mine.at_least(3, key)
        await theirs.at_least(3, key)
        assert mine.changes[key] == theirs.changes[key] == 3

    async def test_who_watches_no_more_hears_nothing(self, stores: Stores) -> None:
        heard, key, last = Heard(), fresh(), fresh()
        store = await stores.make(heard)
        store.watch([key, last])
        await heard.at_least(1, key)
        await heard.at_least(1, last)
        store.unwatch([key, fresh()])
        assert await store.swap(key, None, b"1", LONG_MS)
        assert await store.swap(last, None, b"1", LONG_MS)
        await heard.at_least(2, last)
        assert heard.changes[key] == 1

    async def test_a_swap_that_failed_tells_nobody(self, stores: Stores) -> None:
        heard, key = Heard(), fresh()
        store = await stores.make(heard)
        store.watch([key])
        await heard.at_least(1, key)
        assert not await store.swap(key, b"other", b"1", LONG_MS)
        assert await store.swap(key, None, b"1", LONG_MS)
        await heard.at_least(2, key)
        assert heard.changes[key] == 2

    async def test_all_stores_say_which_directory_it_is(self, stores: Stores) -> None:
        one, other = await stores.make(), await stores.make()
        found = await gatherResults([_deferred(store.identity()) for store in (one, other)])
        assert found[0] == found[1] == await one.identity()
        assert len(found[0]) == 32

    async def test_keys_are_counted(self, stores: Stores) -> None:
        store = await stores.make()
        before = await store.count()
        for _ in range(10):
            assert await store.swap(fresh(), None, b"1", LONG_MS)
        assert await store.count() >= before + 10


def _deferred(awaitable: Awaitable[T]) -> "Deferred[T]":
    assert isinstance(awaitable, Deferred)
    return awaitable
