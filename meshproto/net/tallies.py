"""What the parts of a user node count of what they do: each in an object of its own, where the thing happens, and a
batch at a time, so that a message costs next to nothing more. Who shows it is :mod:`meshproto.net.user_metrics`.
"""

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from operator import attrgetter
from typing import Final

from meshproto.core.queue import Message, Status
from meshproto.net.causes import Cause
from meshproto.net.exposition import Histogram

DELIVERY_BOUNDS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    *(60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 86400.0, 3 * 86400.0, 7 * 86400.0),
)
"""From a message to a neighbour to one whose recipient was away for all of its ttl."""

_sent_at = attrgetter("sent_at")


class SentTally:
    """`accepted`: messages that are on disk, to be sent; `refused`: those that were not taken from their sender, and
    why; `ended`: by how; `delivery`: how long it took those that arrived; `attempts`: deliveries begun; `failures`:
    those that came to nothing, and why."""

    __slots__ = ("accepted", "attempts", "delivery", "ended", "failures", "refused")

    def __init__(self) -> None:
        self.accepted = self.attempts = 0
        self.refused: Counter[Cause] = Counter()
        self.ended: Counter[Status] = Counter()
        self.delivery = Histogram(DELIVERY_BOUNDS_S)
        self.failures: Counter[Cause] = Counter()

    def arrived(self, messages: Sequence[Message], now_ms: int) -> None:
        """The recipient has them. By the time of day, since a message may have waited for longer than this process is
        there; should that have been set back meanwhile it has taken no time."""
        if len(messages) == 1:
            self.delivery.observe(max(0, now_ms - messages[0].sent_at) / 1000)
            return
        for sent_at, times in Counter(map(_sent_at, messages)).items():
            self.delivery.observe(max(0, now_ms - sent_at) / 1000, times)


class ReceivedTally:
    """`messages`: new ones, on disk; `repeated`: those that were there already; `refused`: those that will never be
    taken."""

    __slots__ = ("messages", "refused", "repeated")

    def __init__(self) -> None:
        self.messages = self.repeated = self.refused = 0


class LookupTally:
    """How often a user was looked for, and what said where they are: the cache, a seed, or, when none answered, what
    was known from before. `missing`: no seed knows the name; `silent`: none answered, and nothing is known."""

    __slots__ = ("cached", "known", "missing", "seed", "silent")

    def __init__(self) -> None:
        self.cached = self.seed = self.known = self.missing = self.silent = 0


class Kept(StrEnum):
    """What is deleted when it is old."""

    INBOX = "inbox"
    OUTBOX = "outbox"


class Part(StrEnum):
    """Of the HTTP: which routes."""

    SEND = "send"
    DELIVER = "deliver"
    PUBLIC = "public"
    """The other routes for anyone."""
    OWNER = "owner"
    PAGE = "page"


ANSWER_CLASSES: Final = 6
"""The first digit of an answer's code: up to 5."""


class HTTPTally:
    """Requests that were answered: for each part how many with a code of which class. What is refused before it is a
    request is not among them."""

    __slots__ = ("parts",)

    def __init__(self) -> None:
        self.parts = {part: [0] * ANSWER_CLASSES for part in Part}
