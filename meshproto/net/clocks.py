"""Two clocks: one to stamp with what others are told, one to wait by.

The wall clock is set by people and by NTP, also back, also by a day. Whoever waits by it then waits a day too long, and
Twisted's reactors do.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime

T = TypeVar("T", bound=Hashable)
NowMs = Callable[[], int]
"""The wall clock: ms since 1970 UTC."""


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def wait_by_monotonic_time(reactor: Any) -> None:
    """From now on the reactor's timers do not follow the wall clock. It asks its own `seconds` for the time wherever
    it needs it, so this is all; call it before there are timers."""
    reactor.seconds = time.monotonic


class Alarm:
    """Calls `ring` once, at the earliest of the times it is given (in the clock's seconds); then it is free again."""

    def __init__(self, clock: IReactorTime, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._timer: IDelayedCall | None = None
        self._at = 0.0

    def at(self, when: float) -> None:
        delay_s = max(0.0, when - self._clock.seconds())
        if self._timer is None:
            self._timer = self._clock.callLater(delay_s, self._due)
        elif when < self._at:
            self._timer.reset(delay_s)
        else:
            return
        self._at = when

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        self._ring()


class Deadlines(Generic[T]):
    """All that is begun has the same time; `overdue` gets what did not end in it. One timer serves all, which may ring
    once more when nothing is left: to begin and to end costs an entry in a dict."""

    def __init__(self, clock: IReactorTime, timeout_s: float, overdue: Callable[[T], None]) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._overdue = overdue
        self._due_at: OrderedDict[T, float] = OrderedDict()  # rising
        self._alarm = Alarm(clock, self._look)

    def __len__(self) -> int:
        return len(self._due_at)

    @property
    def first(self) -> T:
        """What was begun before all others; there is something."""
        return next(iter(self._due_at))

    def begin(self, one: T) -> None:
        """What has not begun yet."""
        due_at = self._clock.seconds() + self._timeout_s
        self._due_at[one] = due_at
        if len(self._due_at) == 1:
            self._alarm.at(due_at)

    def end(self, one: T) -> bool:
        """Whether it was under way."""
        return self._due_at.pop(one, None) is not None

    def stop(self) -> list[T]:
        """Nothing is overdue any more; what was under way."""
        self._alarm.stop()
        left = list(self._due_at)
        self._due_at.clear()
        return left

    def _look(self) -> None:
        while self._due_at:
            one = self.first
            if self._due_at[one] > self._clock.seconds():
                self._alarm.at(self._due_at[one])
                return
            del self._due_at[one]
            self._overdue(one)


class Timeout:
    """Calls `over` when it is reached. It is put off with every request and hardly ever reached: to put it off is an
    assignment, and the timer that goes off too early sleeps on."""

    def __init__(self, clock: IReactorTime, over: Callable[[], None]) -> None:
        self._clock = clock
        self._over = over
        self._at = math.inf
        self._timer: IDelayedCall | None = None
        self._timer_at = math.inf

    def set(self, delay_s: float) -> None:
        self._at = self._clock.seconds() + delay_s
        if self._at < self._timer_at:
            self._sleep(delay_s)

    def clear(self) -> None:
        """There is none any more."""
        self._at = math.inf

    def stop(self) -> None:
        """Nor a timer."""
        self.clear()
        if self._timer is not None and self._timer.active():  # a clock that has stopped may have cancelled it
            self._timer.cancel()
        self._timer, self._timer_at = None, math.inf

    def _sleep(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.callLater(delay_s, self._look)
        self._timer_at = self._at

    def _look(self) -> None:
        self._timer, self._timer_at = None, math.inf
        left_s = self._at - self._clock.seconds()
        if left_s <= 0:
            self.clear()
            self._over()
        elif self._at < math.inf:
            self._sleep(left_s)
