"""Two clocks: one to stamp with what others are told, one to wait by.

The wall clock is set by people and by NTP, also back, also by a day. Whoever waits by it then waits a day too long, and
Twisted's reactors do.
"""

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

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
