"""What a store was asked, what came of it, and how long it took."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
"""Up to what an operation may take; what takes longer ends as an error."""

OPERATIONS: Final = ("get", "swap", "count", "identity", "scan")
ERRORS: Final = ("busy", "slow", "gone", "unknown", "refused")


@dataclass(slots=True)
class Counters:
    """Since the start. `errors` by kind: `busy` (too much under way), `slow` (no answer in time), `gone` (nobody has
    that part of the keys), `unknown` (whether it was done), `refused` (in the store's own words); `outages`: times that
    a node did not answer. `within`: of those answered, how many took up to each of :data:`BOUNDS_S`, and how many
    longer."""

    operations: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    outages: int = 0
    answered: int = 0
    answered_s: float = 0.0
    within: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))

    def took(self, seconds: float) -> None:
        self.answered += 1
        self.answered_s += seconds
        self.within[bisect_left(BOUNDS_S, seconds)] += 1
