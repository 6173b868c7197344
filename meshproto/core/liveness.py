"""Which seeds are alive: the phi-accrual detector (Hayashibara, Défago, Yared, Katayama: "The φ Accrual Failure
Detector", SRDS 2004), with exponential arrivals as Cassandra has it, and local health in the spirit of Lifeguard
(Dadgar, Phillips, Currey: "Lifeguard: Local Health Awareness for More Accurate Failure Detection", 2017).

phi says how surprising the silence is: phi = 1 means that such a silence would come up once in ten times, phi = 3 once
in a thousand. A seed's heartbeats arrive over others too, so one broken line accuses nobody.

The silence is measured on a clock of our own that stands still while this seed itself did nothing (its reactor lagged),
and runs slowly while it hears from nobody: then the trouble is more likely here than everywhere else.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

PHI_PER_MEAN: Final = math.log10(math.e)
"""A silence as long as the mean interval, when arrivals are exponential."""
PHI_DEAD: Final = 3.0
"""With heartbeats that arrive each second: a silence of about seven seconds."""
WINDOW: Final = 100
"""Arrivals remembered: a minute or two, so that the detector follows a network that changes."""
INTERVAL_PRIOR_S: Final = 1.0
"""What is expected before anything was seen: a heartbeat each gossip round."""
INTERVAL_MIN_S: Final = 0.5
"""Bursts must not make the detector impatient: several seeds may tell of the same heartbeat within milliseconds."""
INTERVAL_MAX_S: Final = 10.0
"""A silence that was survived is not taken as the new normal."""
QUIET_S: Final = 5.0
"""Not one heartbeat of anybody for this long: our own line is in doubt."""
QUIET_RATE: Final = 1 / 3
"""How fast silence counts then."""
DOUBT_S: Final = 10.0
"""After strong evidence of a seed's death, what others still tell of its heartbeats is old news for this long."""


@dataclass
class _Arrivals:
    """On the clock that stands still while this seed does. `dead_at`: when the silence reaches PHI_DEAD."""

    last: float
    intervals: deque[float] = field(default_factory=lambda: deque([INTERVAL_PRIOR_S]))
    total_s: float = INTERVAL_PRIOR_S
    dead_at: float = 0.0

    def __post_init__(self) -> None:
        self._set_dead_at()

    def add(self, at: float) -> None:
        interval_s = min(INTERVAL_MAX_S, max(0.0, at - self.last))
        self.last = at
        self.intervals.append(interval_s)
        self.total_s += interval_s
        if len(self.intervals) > WINDOW:
            self.total_s -= self.intervals.popleft()
        self._set_dead_at()

    def _set_dead_at(self) -> None:
        self.dead_at = self.last + self.mean_s * PHI_DEAD / PHI_PER_MEAN

    @property
    def mean_s(self) -> float:
        return max(INTERVAL_MIN_S, self.total_s / len(self.intervals))


class Liveness:
    def __init__(self, now: float) -> None:
        self._arrivals: dict[str, _Arrivals] = {}
        self._doubted: dict[str, float] = {}
        self._not_counted_s = 0.0
        self._ticked = now
        self._news = now

    def tick(self, now: float, lag_s: float) -> None:
        """Time has gone by; `lag_s` of it this seed was not able to do anything."""
        passed_s = max(0.0, now - self._ticked)
        self._ticked = now
        lag_s = min(max(0.0, lag_s), passed_s)
        quiet_s = passed_s - lag_s if now - self._news > QUIET_S + lag_s else 0.0
        self._not_counted_s += lag_s + quiet_s * (1 - QUIET_RATE)

    def stepped(self, by_s: float) -> None:
        """The clock was set, which is no silence of anybody's."""
        self._not_counted_s += by_s
        self._ticked += by_s
        self._news += by_s
        self._doubted = {seed: until + by_s for seed, until in self._doubted.items()}

    def heard(self, seed: str, now: float, *, directly: bool = False) -> None:
        """A sign of life that is newer than all before it; `directly`: from the seed itself."""
        if directly:
            self._doubted.pop(seed, None)
        elif self.doubted(seed, now):
            return
        self._news = now
        at = now - self._not_counted_s
        arrivals = self._arrivals.get(seed)
        if arrivals is None:
            self._arrivals[seed] = _Arrivals(at)
        else:
            arrivals.add(at)

    def knows(self, seed: str) -> bool:
        return seed in self._arrivals

    def phi(self, seed: str, now: float) -> float:
        """Infinite for a seed that was never heard, or is known to be dead."""
        arrivals = self._arrivals.get(seed)
        if arrivals is None:
            return math.inf
        return max(0.0, now - self._not_counted_s - arrivals.last) / arrivals.mean_s * PHI_PER_MEAN

    def alive(self, seed: str, now: float) -> bool:
        """Whether phi has not reached PHI_DEAD."""
        arrivals = self._arrivals.get(seed)
        return arrivals is not None and now - self._not_counted_s < arrivals.dead_at

    def bury(self, seed: str, now: float) -> None:
        """Its process is not there (the connection was refused): dead until it is heard from again."""
        self._arrivals.pop(seed, None)
        self._doubted[seed] = now + DOUBT_S

    def doubted(self, seed: str, now: float) -> bool:
        """Whether it was found dead lately, and not heard itself since."""
        return self._doubted.get(seed, now) > now

    def forget(self, seed: str) -> None:
        self._arrivals.pop(seed, None)
        self._doubted.pop(seed, None)
