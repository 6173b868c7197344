"""Small help with Deferreds."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any, Generic, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

K = TypeVar("K")
V = TypeVar("V")


class Task(Generic[V]):
    """A coroutine on its way: `done` gets what it returns, or `failed` what it raises, maybe before this returns. That
    is `ensureDeferred` for what nobody else awaits, in a third of the time. What it awaits and is there already is a
    call deeper each time: it is not for loops."""

    __slots__ = ("_done", "_failed", "_waits_for", "_work")

    def __init__(
        self,
        work: Coroutine[Deferred[Any], Any, V],
        done: Callable[[V], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._work = work
        self._done = done
        self._failed = failed
        self._waits_for: Deferred[Any] | Soon[Any] | None = None
        self._go_on(None)

    @property
    def over(self) -> bool:
        return self._waits_for is None

    def cancel(self) -> None:
        """What it waits for is; the coroutine may see to that."""
        if self._waits_for is not None:
            self._waits_for.cancel()

    def _go_on(self, result: Any) -> None:
        self._waits_for = None
        try:
            failed = isinstance(result, Failure)
            waits_for = self._work.throw(result.value) if failed else self._work.send(result)
        except StopIteration as end:
            self._end(self._done, end.value)
        except BaseException as error:
            self._end(self._failed, error)
        else:
            self._waits_for = waits_for
            waits_for.addBoth(self._go_on)

    def _end(self, tell: Callable[[Any], None], result: Any) -> None:
        del self._done, self._failed  # whoever is told may hold the task: no garbage for the collector
        tell(result)


class Soon(Generic[V]):
    """What one coroutine awaits, once: what a Deferred would do for it, in a fifth of the time if a :class:`Task` runs
    the coroutine."""

    __slots__ = ("_go_on", "_result", "over")

    def __init__(self) -> None:
        self.over = False
        self._result: V | Failure | None = None  # if it was there before it was awaited
        self._go_on: Callable[[Any], None] | None = None

    def tell(self, result: V | Failure) -> None:
        """Nothing more comes of it once it is over."""
        if self.over:
            return
        self.over = True
        go_on, self._go_on = self._go_on, None
        if go_on is None:
            self._result = result
        else:
            go_on(result)

    def cancel(self) -> None:
        """Whoever awaits it waits no longer."""
        self.tell(Failure(CancelledError()))

    def addBoth(self, go_on: Callable[[Any], None]) -> None:
        """For the one who awaits it; named as it is for a Deferred."""
        self._go_on = go_on

    def __await__(self) -> Generator[Any, Any, V]:
        result: Any = self._result
        if not self.over:
            result = yield self
        if result is self:  # it is `ensureDeferred` that runs the coroutine, and waits for Deferreds alone
            told: Deferred[V] = Deferred(lambda _: self.cancel())
            self.addBoth(told.callback)
            result = yield told
        if isinstance(result, Failure):
            raise cast(BaseException, result.value)
        returned: V = result
        return returned


def shield(work: Deferred[V]) -> Deferred[V]:
    """Fires as `work` does; cancelling it leaves `work` alone. Klein cancels a request's Deferred when its client goes
    away: what was accepted goes on."""
    view: Deferred[V] = Deferred()

    def pass_on(result: V | Failure) -> None:
        if not view.called:
            view.callback(result)

    work.addBoth(pass_on)
    return view


def apart(work: Coroutine[Deferred[Any], Any, V]) -> Soon[V]:
    """The same of a coroutine."""
    view: Soon[V] = Soon()
    Task(work, view.tell, lambda error: view.tell(Failure(error)))
    return view


def together(work: Iterable[Deferred[V]]) -> Deferred[list[V]]:
    """Fires with all results, in order, or with the first failure as it is: also with the :class:`CancelledError` of
    whoever no longer waits, which Twisted's own would wrap, and Klein then take for a bug."""

    def unwrap(failure: Failure) -> Failure:
        return failure.value.subFailure if isinstance(failure.value, FirstError) else failure

    return gatherResults(work, consumeErrors=True).addErrback(unwrap)


class Waiters(Generic[K, V]):
    """Those who wait for something to happen to a key, each for so long. Nobody is to be added when it is full."""

    def __init__(self, clock: IReactorTime, waiters_max: int) -> None:
        self._clock = clock
        self._waiters_max = waiters_max
        self._waiting: dict[K, dict[Deferred[V | None], None]] = {}  # by key: in order, and quick to leave
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        return self._count >= self._waiters_max

    def wait(self, key: K, timeout_s: float) -> Deferred[V | None]:
        """Fires with what :meth:`tell` says, or None when the time is over."""
        waiter: Deferred[V | None] = Deferred()
        self._waiting.setdefault(key, {})[waiter] = None
        self._count += 1
        timer = self._clock.callLater(timeout_s, waiter.callback, None)

        def ended(result: V | Failure | None) -> V | Failure | None:
            if timer.active():
                timer.cancel()
            others = self._waiting.get(key, {})
            others.pop(waiter, None)
            if not others:
                self._waiting.pop(key, None)
            self._count -= 1
            return result

        waiter.addBoth(ended)
        return waiter

    def tell(self, key: K, value: V) -> None:
        for waiter in self._waiting.pop(key, {}):
            waiter.callback(value)

    def tell_all(self, value: V) -> None:
        """Nobody waits any longer."""
        for key in list(self._waiting):
            self.tell(key, value)
