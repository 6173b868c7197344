"""Whose lines are handled next, when more have come than one turn of the reactor should deal with.

Whoever pipelines has the rest of their lines wait, and is not read from meanwhile; networks take turns, and the links
of one network among themselves. A link that says little is never made to wait, so that a single question is answered
within one turn, whatever the others pour in. (Deficit round robin, Shreedhar and Varghese 1995. Lines count alike as
long as they are quick; how long some take is measured.)
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from time import perf_counter
from typing import Final, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

TURN_LINES: Final = 1024
"""Handled in one turn of the reactor before others are made to wait: two or three milliseconds of lookups. Fewer, and
links that pipeline would spend their time on turns: each that has to wait costs as much as ten lookups."""
SLICE_LINES: Final = 128
"""Handled for one link before it is the next one's turn."""
SLICE_S: Final = 0.001
"""However few the lines were: a page of names takes longer than a hundred lookups. Then it is the next one's turn."""
TURN_S: Final = 0.004
"""Likewise, of a turn of the reactor."""
AT_ONCE_LINES: Final = 4
"""Handled at once for a link whatever the others do: a question, and a ping or two."""


class Waiting(Protocol):
    """A link with lines that wait."""

    network: str

    def go_on(self) -> None:
        """It is its turn; it may wait for another one."""

    def abort(self) -> None:
        """Close at once."""


class Turns:
    """Shared by all links of a listener. `seconds`: what time is measured with; the reactor's stands still within a
    turn. `allowed`: how many lines a link may have handled now."""

    log = Logger()

    def __init__(self, clock: IReactorTime, seconds: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self.seconds = seconds
        self.allowed = TURN_LINES
        self._left = TURN_LINES
        self._waiting: OrderedDict[str, deque[Waiting]] = OrderedDict()
        self._timer: IDelayedCall | None = None

    def used(self, lines: int) -> None:
        """So many were."""
        self._left -= lines
        self._allow()
        self._arm()

    def wait(self, link: Waiting) -> None:
        """Have it go on when it is its turn."""
        self._waiting.setdefault(link.network, deque()).append(link)
        self._allow()
        self._arm()

    def _allow(self) -> None:
        share = SLICE_LINES if self._waiting else TURN_LINES
        self.allowed = max(min(share, self._left), AT_ONCE_LINES)

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._clock.callLater(0, self._turn)

    def _turn(self) -> None:
        self._timer, self._left = None, TURN_LINES
        ends_at = self.seconds() + TURN_S
        while self._waiting and self._left > 0 and self.seconds() < ends_at:
            network, links = self._waiting.popitem(last=False)
            link = links.popleft()
            if links:
                self._waiting[network] = links
            self._allow()
            try:
                link.go_on()
            except Exception:
                # As Twisted does with a protocol that fails on what it is given: it goes, and the others go on.
                self.log.failure("a bug in what a line asked for")
                link.abort()
        self._allow()
        if self._waiting:
            self._arm()
