"""Small help with Deferreds."""

from collections.abc import Coroutine, Generator, Iterable
from functools import partial
from types import coroutine
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, FirstError, ensureDeferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

K = TypeVar("K")
V = TypeVar("V")


def begin(work: "Coroutine[Deferred[Any], Any, V]") -> "V | Deferred[V]":
    """Goes on with `work` until it has to wait: what it returns or raises, if it comes to its end; else a Deferred of
    it, which can be cancelled. What need not wait does without one."""
    try:
        waits_for = work.send(None)
    except StopIteration as end:
        result: V = end.value
        return result
    return ensureDeferred(_go_on(work, waits_for))


@coroutine
def _go_on(work: "Coroutine[Deferred[Any], Any, V]", waits_for: "Deferred[Any]") -> "Generator[Deferred[Any], Any, V]":
    while True:
        try:
            step = partial(work.send, (yield waits_for))
        except BaseException as error:
            step = partial(work.throw, error)
        try:
            waits_for = step()
        except StopIteration as end:
            result: V = end.value
            return result


def shield(work: "Deferred[V]") -> "Deferred[V]":
    """Fires as `work` does; cancelling it leaves `work` alone. Klein cancels a request's Deferred when its client goes
    away: what was accepted goes on."""
    view: Deferred[V] = Deferred()

    def pass_on(result: V | Failure) -> None:
        if not view.called:
            view.callback(result)

    work.addBoth(pass_on)
    return view


def together(work: "Iterable[Deferred[V]]") -> "Deferred[list[V]]":
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

    @property
    def full(self) -> bool:
        return self._count >= self._waiters_max

    def wait(self, key: K, timeout_s: float) -> "Deferred[V | None]":
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
