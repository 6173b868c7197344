"""Hands the inbox over to one of the owner's programs: in order, one message at a time, at least once.

Where the program stands is a cursor of the inbox, which moves past a message when the program has taken it, or has said
that it never will. Anything else makes that message come again, and the ones behind it wait: one second, doubling to
five minutes, jittered, for as long as it takes.

The cursor is written down after each message, before the next is handed over. So a node that is killed hands the one
message that was under way over again, and one whose disk refuses to write those since it last did.

Whoever carries this out asks :meth:`Handover.step` what is to be done, does it, tells what came of it, and asks again.
"""

import random
from collections import deque
from collections.abc import Iterable
from enum import Enum, auto
from typing import Final

from msgspec import Struct

from meshproto.core.inbox import Received
from meshproto.core.outbox import BACKOFF_FIRST_S, BACKOFF_MAX_S

PAGE_MESSAGES: Final = 100
"""Messages read from disk at a time; :data:`meshproto.core.inbox.PAGE_BYTES_MAX` bounds their text."""
LOAD_RETRY_S: Final = 5.0
"""When to read again after the disk has refused: whether it works is seen at once, so there is no backing off."""


class Verdict(Enum):
    """`TAKEN`: the program has it. `NEVER`: it will not take this message, ever. `LATER`: anything else."""

    TAKEN = auto()
    NEVER = auto()
    LATER = auto()


class Answer(Struct, frozen=True):
    """What the program made of a message. `what`: in our words, such as "exit code 1". `words`: in its own, which may
    repeat the message and so are not for the log."""

    verdict: Verdict
    what: str
    words: str = ""

    @property
    def reason(self) -> str:
        return f"{self.what}: {self.words}" if self.words else self.what


class Save(Struct, frozen=True):
    """Write the cursor down, then :meth:`Handover.saved` or :meth:`Handover.not_saved`."""

    cursor: int


class Load(Struct, frozen=True):
    """Bring at most :data:`PAGE_MESSAGES` that came after the cursor to :meth:`Handover.loaded`, or say why not to
    :meth:`Handover.put_off`. When there are none, wait a while for some."""

    after: int


class Give(Struct, frozen=True):
    """Hand the message over, then :meth:`Handover.answered`."""

    message: Received


class Pause(Struct, frozen=True):
    """Nothing is to be done before that time."""

    until: float


Step = Save | Load | Give | Pause


class Handover:
    """`cursor`: how far the program has come. `attempts`: in vain, since the last success. `next_try`: when the pause
    is over, if there is one. `reason`: why it is not further."""

    def __init__(self, cursor: int, rng: random.Random) -> None:
        self.cursor = cursor
        self.attempts = 0
        self.next_try: float | None = None
        self.reason: str | None = None
        self._rng = rng
        self._page: deque[Received] = deque()
        self._to_save = False
        self._unsaved = False  # the disk refused: it is asked again after the next message or page

    def step(self, now: float) -> Step:
        if self._to_save:
            return Save(self.cursor)
        if self.next_try is not None and now < self.next_try:
            return Pause(self.next_try)
        self.next_try = None
        return Give(self._page[0]) if self._page else Load(self.cursor)

    # -- what came of it -----------------------------------------------------------------------------------------

    def saved(self) -> None:
        self._to_save = self._unsaved = False

    def not_saved(self) -> None:
        """The handing over goes on: a program must not stand still for what concerns a restart alone."""
        self._to_save, self._unsaved = False, True

    def loaded(self, page: Iterable[Received]) -> None:
        self._page.extend(page)
        self._to_save = self._unsaved
        self.reason = None

    def put_off(self, reason: str, retry_after_s: float | None, now: float) -> None:
        """Nothing can be done for a while, and it is not the program's fault."""
        self.reason = reason
        self.next_try = now + (LOAD_RETRY_S if retry_after_s is None else retry_after_s)

    def answered(self, answer: Answer, now: float) -> None:
        if answer.verdict is Verdict.LATER:
            self.reason = answer.reason
            self.attempts += 1
            delay_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(self.attempts - 1, 30))
            self.next_try = now + delay_s * self._rng.uniform(0.5, 1.0)
            return
        self.cursor = self._page.popleft().cursor
        self.attempts = 0
        self.reason = None
        self._to_save = True
