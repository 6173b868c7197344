"""Two clocks: one to stamp messages with, one to wait by.

The wall clock is set by people and by NTP, also back, also by a day. Whoever waits by it then waits a day too long, and
Twisted's reactors do.
"""

import time
from collections.abc import Callable
from typing import Any

NowMs = Callable[[], int]
"""The wall clock: ms since 1970 UTC."""


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def wait_by_monotonic_time(reactor: Any) -> None:
    """From now on the reactor's timers do not follow the wall clock. It asks its own `seconds` for the time wherever
    it needs it, so this is all; call it before there are timers."""
    reactor.seconds = time.monotonic
