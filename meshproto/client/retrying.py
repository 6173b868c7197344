"""How long to wait for a node that went away, and when to give up."""

import random
from collections.abc import Callable

from meshproto.client.errors import NodeError

JITTER = 0.25  # of each pause: those who lost a node together do not come back together


class Patience:
    """Pauses of `first_s`, each twice the last, up to `max_s`. `give_up_s`: after so long without a sign of the node
    the error is raised; None: never. `clock`: seconds; `chance`: as `random.random`, None for pauses to the letter."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        first_s: float,
        max_s: float,
        give_up_s: float | None = None,
        chance: Callable[[], float] | None = random.random,
    ) -> None:
        self._clock, self._chance = clock, chance
        self._first_s, self._max_s, self._give_up_s = first_s, max_s, give_up_s
        self._lost_at: float | None = None
        self._pause_s = first_s

    @property
    def waits(self) -> bool:
        """Whether the node is away."""
        return self._lost_at is not None

    def back(self) -> None:
        """The node is there."""
        self._lost_at, self._pause_s = None, self._first_s

    def lost(self, error: NodeError) -> float:
        """For how many seconds to wait now. Raises the error when that has gone on for too long."""
        now = self._clock()
        if self._lost_at is None:
            self._lost_at = now
        if self._give_up_s is not None and now - self._lost_at >= self._give_up_s:
            raise error
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, self._max_s)
        return pause_s if self._chance is None else pause_s * (1 - JITTER + 2 * JITTER * self._chance())
