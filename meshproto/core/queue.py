"""One recipient's queue of the outbox: what waits for them, how far it has come, and what of it is in memory.

All of it is on disk. In memory are the batch under way and about one more that gathers behind it; of the rest a queue
knows only how many there are.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Final

from msgspec import Struct, field

from meshproto.core.envelope import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX


class Status(StrEnum):
    """How far a message has come. It never goes back: one that was found once and not reached stays `delivering`."""

    QUEUED = "queued"
    LOCATING = "locating"
    DELIVERING = "delivering"
    DELIVERED = "delivered"
    EXPIRED = "expired"
    REFUSED = "refused"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return not TRANSITIONS[self]


_ENDS: Final = frozenset({Status.EXPIRED, Status.CANCELLED})
TRANSITIONS: Final[dict[Status, frozenset[Status]]] = {
    Status.QUEUED: frozenset({Status.LOCATING, Status.DELIVERING}) | _ENDS,
    Status.LOCATING: frozenset({Status.DELIVERING}) | _ENDS,
    Status.DELIVERING: frozenset({Status.DELIVERED, Status.REFUSED}) | _ENDS,
    Status.DELIVERED: frozenset(),
    Status.EXPIRED: frozenset(),
    Status.REFUSED: frozenset(),
    Status.CANCELLED: frozenset(),
}


class Message(Struct, frozen=True, gc=False):
    """One message for one recipient, as it stands on disk under `row` (rising in the order of acceptance). `to` is what
    its sender wrote, NAME or NAME~FINGERPRINT; `message` is JSON text; times are ms since 1970 UTC."""

    row: int
    id: str
    to: str
    type: str
    message: bytes
    sent_at: int
    expires_at: int

    @property
    def name(self) -> str:
        return self.to.partition("~")[0]

    def is_for(self, print_: str) -> bool:
        """Whether it may go to the key with this fingerprint."""
        return self.to.partition("~")[2] in ("", print_)


class Queue(Struct):
    """`waiting` counts all messages; those after `row_known` are on disk only. `phase` tells how far the messages up to
    `row_tried` have come; those up to `row_sent` may have arrived without our knowing. `doubtful`: nobody knows whether
    the recipient is there. `ending`: messages under way that end, and how, unless this attempt delivers them.
    `next_try` is on the clock that the outbox is given; nobody's word but the recipient's makes it earlier than
    `not_before`; `alive_at` is when they last gave it. `aside`: rows that are for another key than the recipient has,
    as the seeds say, and how far they had come. They are on disk only, and the others go past them, until they take
    their place again: when they are `recalled`, at `aside_next_try` by itself."""

    to: str
    oldest_at: int
    doubtful: bool = False
    phase: Status = Status.QUEUED
    row_tried: int = 0
    row_sent: int = 0
    ready: deque[Message] = field(default_factory=deque)
    ready_bytes: int = 0
    under_way: tuple[Message, ...] = ()
    ending: dict[int, tuple[Status, str]] = field(default_factory=dict)
    waiting: int = 0
    row_known: int = 0
    on_disk: bool = False
    loading: bool = False
    attempts: int = 0
    next_try: float | None = None
    not_before: float = 0.0
    alive_at: float = -math.inf
    reason: str | None = None
    aside: dict[int, Status] = field(default_factory=dict)
    aside_attempts: int = 0
    aside_next_try: float | None = None
    aside_reason: str | None = None
    recalled: bool = False

    def push(self, message: Message) -> None:
        self.ready.append(message)
        self.ready_bytes += len(message.message)
        self.row_known = message.row

    def has_room(self, messages: int, size: int) -> bool:
        """Whether so many more, of so many bytes together, are no more than a batch with what is ready."""
        return len(self.ready) + messages <= BATCH_MESSAGES_MAX and self.ready_bytes + size <= BATCH_BYTES_MAX

    def extend(self, messages: Sequence[Message], size: int) -> None:
        self.ready.extend(messages)
        self.ready_bytes += size
        self.row_known = messages[-1].row

    def take_batch(self) -> None:
        """What is ready goes under way: at most a batch, at least one message."""
        if self.has_room(0, 0):
            self.under_way = tuple(self.ready)
            self.ready.clear()
            self.ready_bytes = 0
        else:
            self.under_way = tuple(self._gather())
        if self.under_way[0].row > self.row_tried:
            self.phase = Status.QUEUED  # none of them was tried before
        self.row_tried = max(self.row_tried, self.under_way[-1].row)
        self.advance(Status.LOCATING)

    def _gather(self) -> Iterator[Message]:
        size = count = 0
        while self.ready and count < BATCH_MESSAGES_MAX:
            length = len(self.ready[0].message)
            size += length
            if count and size > BATCH_BYTES_MAX:
                return
            count += 1
            self.ready_bytes -= length
            yield self.ready.popleft()

    def put_back(self, messages: Iterable[Message]) -> None:
        for message in reversed(list(messages)):
            self.ready.appendleft(message)
            self.ready_bytes += len(message.message)

    def remove(self, unwanted: Callable[[Message], bool]) -> list[Message]:
        """Take messages out of what is ready, wherever they stand."""
        removed = [message for message in self.ready if unwanted(message)]
        if removed:
            self.ready = deque(message for message in self.ready if not unwanted(message))
            self.ready_bytes -= sum(len(message.message) for message in removed)
        return removed

    def unload(self) -> None:
        """Leave what is ready to the disk, where it is too."""
        if self.ready:
            self.row_known = self.ready[0].row - 1
            self.ready.clear()
            self.ready_bytes = 0
            self.on_disk = True

    def set_aside(self, messages: Iterable[Message]) -> None:
        self.aside.update((message.row, self.phase) for message in messages)

    def recall(self) -> None:
        """What stands aside takes its place again: on disk, as all that is behind it."""
        self.aside_next_try, self.recalled = None, False
        if not self.aside:
            return
        self.unload()
        self.row_known = min(self.row_known, min(self.aside) - 1)
        self.on_disk = True
        for phase in self.aside.values():
            self.advance(phase)
        self.aside.clear()

    def advance(self, phase: Status) -> None:
        """The messages under way have come further; a repeated attempt changes nothing."""
        if phase in TRANSITIONS[self.phase]:
            self.phase = phase

    def status_of(self, row: int) -> Status:
        """Of a message of this queue that has not come to an end."""
        if row in self.aside:
            return self.aside[row]
        return self.phase if row <= self.row_tried else Status.QUEUED

    @property
    def why(self) -> str | None:
        """What happened when the recipient was last tried, or why some of the messages stand aside."""
        return self.aside_reason if self.reason is None and self.aside else self.reason

    @property
    def tried_at(self) -> float | None:
        """When it is tried next; None: now, or as soon as there is a place."""
        at_work = self.busy or self.ready or self.on_disk
        return self.next_try if at_work or self.next_try is not None else self.aside_next_try

    @property
    def busy(self) -> bool:
        """It is being served: it has one of the places."""
        return self.loading or bool(self.under_way)

    @property
    def full(self) -> bool:
        return len(self.ready) >= BATCH_MESSAGES_MAX or self.ready_bytes >= BATCH_BYTES_MAX
