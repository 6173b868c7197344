"""The shared store of the fake world does what a real one does, and fails as one may."""

import random
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from meshproto.core.shared import SharedStore
from meshproto.errors import Unavailable
from tests.memory_store import OPERATION_S, MemoryStore, Shared
from tests.shared_suite import LONG_MS, Heard, SharedStoreSuite, Stores


class MemoryStores(Stores):
    def __init__(self) -> None:
        self.clock = Clock()
        self.shared = Shared(self.clock)

    async def make(self, heard: Heard | None = None) -> SharedStore:
        heard = heard or Heard()
        return MemoryStore(self.shared, heard.changed, heard.resumed)

    async def expire(self, store: SharedStore, key: str) -> None:
        self.clock.advance(0.001)
        assert await store.get(key) is None


@pytest.fixture
def stores() -> MemoryStores:
    return MemoryStores()


class TestMemoryStore(SharedStoreSuite):
    """The suite, on the fake store."""


def slow(shared: Shared, seed: int, failing: float = 0.0) -> MemoryStore:
    return MemoryStore(shared, Heard().changed, Heard().resumed, random.Random(seed), 0.1, failing)


def outcome(shared: Shared, answer: "Deferred[Any]") -> object:
    """What comes of it, as the fake clock runs."""
    found: list[object] = []
    answer.addCallbacks(found.append, lambda failure: found.append(failure.value))
    for _ in range(100):
        if found:
            return found[0]
        shared.clock.advance(0.05)  # type: ignore[attr-defined]
    raise AssertionError("no answer")


def test_answers_take_their_time() -> None:
    """Both ways, as the random generator says; two swaps that travel together: one wins."""
    shared = Shared(Clock())
    store = slow(shared, 1)
    both = [store.swap("a", None, b"1", LONG_MS), store.swap("a", None, b"2", LONG_MS)]
    assert not any(swap.called for swap in both)
    assert sorted(bool(outcome(shared, swap)) for swap in both) == [False, True]


def test_a_part_of_the_operations_fails_after_it_was_carried_out() -> None:
    shared = Shared(Clock())
    store = slow(shared, 2, failing=1.0)
    done = []
    for number in range(40):
        key = str(number)
        assert isinstance(outcome(shared, store.swap(key, None, b"1", LONG_MS)), Unavailable)
        done.append(shared.get(key) is not None)
    assert 0 < sum(done) < len(done)


def test_nobody_answers() -> None:
    """Then it says so after the time an operation may take, and not before; and answers again by itself."""
    shared = Shared(Clock())
    store = slow(shared, 3)
    shared.gone = True
    answer = store.get("a")
    shared.clock.advance(OPERATION_S - 0.01)  # type: ignore[attr-defined]
    assert not answer.called
    error = outcome(shared, answer)
    assert isinstance(error, Unavailable) and error.retry_after_s
    shared.gone = False
    assert outcome(shared, store.get("a")) is None


def test_a_fail_over_forgets_the_last_writes() -> None:
    """And tells every seed that something may have changed unheard."""
    shared, heard = Shared(Clock()), Heard()
    store = MemoryStore(shared, heard.changed, heard.resumed)
    for before, after in ((None, b"1"), (b"1", b"2"), (b"2", b"3")):
        assert outcome(shared, store.swap("a", before, after, LONG_MS))
    shared.fail_over(2)
    assert outcome(shared, store.get("a")) == b"1"
    assert heard.resumptions == 1


def test_one_that_is_deaf_hears_nothing() -> None:
    shared, heard = Shared(Clock()), Heard()
    store = MemoryStore(shared, heard.changed, heard.resumed)
    store.deaf = True
    store.watch(["a"])
    assert outcome(shared, store.swap("a", None, b"1", LONG_MS))
    assert not heard.changes


def test_one_that_is_closed_answers_nothing() -> None:
    shared = Shared(Clock())
    store = slow(shared, 4)
    store.close()
    assert isinstance(outcome(shared, store.get("a")), Unavailable)
