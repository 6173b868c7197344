"""A shared store of the fake world: a :class:`meshproto.core.shared.SharedStore` without processes, on a fake clock.

It takes as long as its random generator says, fails as often, and forgets what a fail-over may forget.
"""

import random
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from meshproto.errors import Unavailable

OPERATION_S = 2.0
RETRY_AFTER_S = 1.0


class Shared:
    """What all stores on it have in common. `gone`: nobody answers."""

    def __init__(self, clock: IReactorTime) -> None:
        self.clock = clock
        self.stores: list[MemoryStore] = []
        self.id: str | None = None
        self.gone = False
        self._values: dict[str, tuple[bytes, float]] = {}
        self._undo: list[tuple[str, tuple[bytes, float] | None]] = []

    def get(self, key: str) -> bytes | None:
        value, expires_at = self._values.get(key, (b"", 0.0))
        return value if expires_at > self.clock.seconds() else None

    def swap(self, key: str, before: bytes | None, after: bytes | None, ttl_ms: int) -> bool:
        if self.get(key) != before:
            return False
        self._undo.append((key, self._values.get(key)))
        self._values.pop(key, None)
        if after is not None:
            self._values[key] = (after, self.clock.seconds() + ttl_ms / 1000)
        for store in self.stores:
            store.written(key)
        return True

    def count(self) -> int:
        return sum(self.get(key) is not None for key in self._values)

    def fail_over(self, lost: int) -> None:
        """The last so many writes had not reached the replica that stands in now."""
        for _ in range(min(lost, len(self._undo))):
            key, value = self._undo.pop()
            self._values.pop(key, None)
            if value is not None:
                self._values[key] = value
        for store in list(self.stores):
            store.resumed()


class MemoryStore:
    """One seed's. `delay_s_max`: each way; 0: everything is answered at once. `failing`: the part of the operations
    that fail, half of them after they were carried out. `deaf`: nothing that is written is heard."""

    def __init__(
        self,
        shared: Shared,
        changed: Callable[[str], None],
        resumed: Callable[[], None],
        rng: random.Random | None = None,
        delay_s_max: float = 0.0,
        failing: float = 0.0,
    ) -> None:
        self.resumed = resumed
        self.failing = failing
        self.deaf = False
        self._shared = shared
        self._changed = changed
        self._rng = rng or random.Random(0)
        self._delay_s_max = delay_s_max
        self._keys: set[str] = set()
        self._closed = False
        shared.stores.append(self)

    def get(self, key: str) -> "Deferred[bytes | None]":
        return self._operation(lambda: self._shared.get(key))

    def swap(self, key: str, before: bytes | None, after: bytes | None, ttl_ms: int) -> "Deferred[bool]":
        return self._operation(lambda: self._shared.swap(key, before, after, ttl_ms))

    def watch(self, keys: Iterable[str]) -> None:
        for key in keys:
            if key not in self._keys:
                self._keys.add(key)
                self._later(lambda key=key: self.written(key))  # type: ignore[misc]

    def unwatch(self, keys: Iterable[str]) -> None:
        self._keys.difference_update(keys)

    def count(self) -> "Deferred[int]":
        return self._operation(self._shared.count)

    def identity(self) -> "Deferred[str]":
        def made() -> str:
            self._shared.id = self._shared.id or f"{self._rng.getrandbits(128):032x}"
            return self._shared.id

        return self._operation(made)

    def close(self) -> "Deferred[None]":
        self._closed = True
        self._shared.stores.remove(self)
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    def written(self, key: str) -> None:
        if key in self._keys and not self.deaf and not self._closed:
            self._changed(key)

    def _operation(self, carry_out: Callable[[], Any]) -> "Deferred[Any]":
        answer: Deferred[Any] = Deferred()
        if self._closed:
            answer.errback(_unavailable("it is closed"))
        elif self._shared.gone:
            self._shared.clock.callLater(OPERATION_S, answer.errback, _unavailable("no answer in time"))
        else:
            fails = self._rng.random() < self.failing
            is_done = not fails or self._rng.random() < 0.5
            self._later(lambda: self._arrived(carry_out, answer, is_done, fails))
        return answer

    def _arrived(self, carry_out: Callable[[], Any], answer: "Deferred[Any]", is_done: bool, fails: bool) -> None:
        result = carry_out() if is_done else None
        self._later(lambda: answer.callback(_unavailable("the answer was lost") if fails else result))

    def _later(self, work: Callable[[], None]) -> None:
        if self._delay_s_max:
            self._shared.clock.callLater(self._rng.uniform(0, self._delay_s_max), work)
        else:
            work()


def _unavailable(why: str) -> Failure:
    return Failure(Unavailable(f"the directory: {why}", retry_after_s=RETRY_AFTER_S))
