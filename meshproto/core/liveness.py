"""Which seeds are alive: the phi-accrual detector (Hayashibara, Défago, Yared, Katayama: "The φ Accrual Failure
Detector", SRDS 2004), with exponential arrivals as Cassandra has it.

phi says how surprising the silence is: phi = 1 means that such a silence would come up once in ten times, phi = 8 once
in 10^8. A seed's heartbeats arrive over others too, so one broken line accuses nobody.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

PHI_DEAD: Final = 8.0
"""Cassandra's default: between heartbeats that arrive each second that is a silence of about 18 s."""
WINDOW: Final = 100
"""Arrivals remembered: a minute or two, so that the detector follows a network that changes."""
INTERVAL_PRIOR_S: Final = 1.0
"""What is expected before anything was seen: a heartbeat each gossip round."""
INTERVAL_MIN_S: Final = 0.5
"""Bursts must not make the detector impatient: several seeds may tell of the same heartbeat within milliseconds."""
INTERVAL_MAX_S: Final = 10.0
"""A silence that was survived is not taken as the new normal."""


@dataclass
class _Arrivals:
    last: float
    intervals: deque[float] = field(default_factory=lambda: deque([INTERVAL_PRIOR_S], maxlen=WINDOW))

    @property
    def mean_s(self) -> float:
        return max(INTERVAL_MIN_S, sum(self.intervals) / len(self.intervals))


class Liveness:
    def __init__(self) -> None:
        self._arrivals: dict[str, _Arrivals] = {}

    def heard(self, seed: str, now: float) -> None:
        """A sign of life that is newer than all before it."""
        arrivals = self._arrivals.get(seed)
        if arrivals is None:
            self._arrivals[seed] = _Arrivals(now)
            return
        arrivals.intervals.append(min(INTERVAL_MAX_S, max(0.0, now - arrivals.last)))
        arrivals.last = now

    def phi(self, seed: str, now: float) -> float:
        """Infinite for a seed that was never heard."""
        arrivals = self._arrivals.get(seed)
        if arrivals is None:
            return math.inf
        return (now - arrivals.last) / arrivals.mean_s * math.log10(math.e)

    def alive(self, seed: str, now: float) -> bool:
        return self.phi(seed, now) < PHI_DEAD

    def last_heard(self, seed: str) -> float | None:
        arrivals = self._arrivals.get(seed)
        return arrivals.last if arrivals else None

    def suspect(self, seed: str) -> None:
        """Strong evidence of death (its process refused a connection): silent until it is heard again."""
        self._arrivals.pop(seed, None)

    def forget(self, seed: str) -> None:
        self._arrivals.pop(seed, None)
