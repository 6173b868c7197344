"""What waits to be delivered, to whom, and what is tried when.

A message enters when it is on disk. Each recipient has a queue of their own, in order: one batch is under way while the
next gathers, so batches grow with load. A failure makes that recipient wait, alone: one second, doubling to five
minutes, jittered; a sign of life from them ends the waiting at once. A bounded number of recipients is served at a
time, in turn, so a dead one costs the others nothing but its turn.

In memory a queue holds about one batch besides the one under way; what is behind it stays on disk and is loaded when
its turn comes. When memory is short a queue that is not served holds nothing.
"""

import heapq
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from msgspec import Struct

from meshproto.core.envelope import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX
from meshproto.errors import SlowDown

TTL_S: Final = 7 * 86400.0
"""How long a message for someone away is kept, if its sender does not say: what mail does."""
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 300.0
DELIVERIES_MAX: Final = 64
"""Recipients served at a time: sockets and memory for batches stay bounded."""
RECIPIENT_MESSAGES_MAX: Final = 100_000
OUTBOX_MESSAGES_MAX: Final = 1_000_000
"""About a gigabyte of disk with messages of usual size."""
OUTBOX_FULL_RETRY_S: Final = 5.0
MEMORY_BYTES_MAX: Final = 64 * 1024 * 1024
"""Message texts kept in memory over all queues; past that what waits is on disk alone, and only the recipients being
served have a batch in memory."""


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
    """One message for one recipient, as it stands on disk under `row` (rising in the order of acceptance). `message` is
    JSON text; times are ms since 1970 UTC."""

    row: int
    id: str
    to: str
    type: str
    message: bytes
    sent_at: int
    expires_at: int


class Attempt(Struct, frozen=True):
    """Find the recipient and deliver the batch, then tell the outbox: :meth:`Outbox.found`, and :meth:`Outbox.answered`
    or :meth:`Outbox.failed`."""

    key: str
    to: str
    batch: tuple[Message, ...]


class Load(Struct, frozen=True):
    """Bring the next waiting messages after `row` from disk, at most a batch of them, to :meth:`Outbox.loaded`."""

    key: str
    row: int


class Finish(Struct, frozen=True):
    """The messages have come to an end; the reason is for their sender to read."""

    messages: tuple[Message, ...]
    status: Status
    reason: str | None


Effect = Attempt | Load | Finish


@dataclass
class Queue:
    """One recipient's. `waiting` counts all messages; those after `row_known` are on disk only. `phase` tells how far
    the messages up to `row_tried` have come."""

    to: str
    oldest_at: int
    phase: Status = Status.QUEUED
    row_tried: int = 0
    ready: deque[Message] = field(default_factory=deque)
    ready_bytes: int = 0
    under_way: tuple[Message, ...] = ()
    waiting: int = 0
    row_known: int = 0
    on_disk: bool = False
    loading: bool = False
    attempts: int = 0
    next_try: float | None = None
    reason: str | None = None

    def push(self, message: Message) -> None:
        self.ready.append(message)
        self.ready_bytes += len(message.message)
        self.row_known = message.row

    def pop(self) -> Message:
        message = self.ready.popleft()
        self.ready_bytes -= len(message.message)
        return message

    def put_back(self, messages: Iterable[Message]) -> None:
        for message in reversed(list(messages)):
            self.ready.appendleft(message)
            self.ready_bytes += len(message.message)

    def advance(self, phase: Status) -> None:
        """The messages under way have come further; a repeated attempt changes nothing."""
        if phase in TRANSITIONS[self.phase]:
            self.phase = phase

    def status_of(self, row: int) -> Status:
        """Of a message of this queue that has not come to an end."""
        return self.phase if row <= self.row_tried else Status.QUEUED

    def unload(self) -> None:
        """Leave what is ready to the disk, where it is too."""
        if self.ready:
            self.row_known = self.ready[0].row - 1
            self.ready.clear()
            self.ready_bytes = 0
            self.on_disk = True

    @property
    def busy(self) -> bool:
        """It is being served: it has one of the places."""
        return self.loading or bool(self.under_way)

    @property
    def full(self) -> bool:
        return len(self.ready) >= BATCH_MESSAGES_MAX or self.ready_bytes >= BATCH_BYTES_MAX


class Outbox:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.queues: dict[str, Queue] = {}
        self._turns: deque[str] = deque()  # recipients that may be served now, in order
        self._queued: set[str] = set()  # the same, to find in
        self._retries: list[tuple[float, str]] = []  # heap; stale ones are skipped
        self._served: set[str] = set()  # recipients that are busy, at most DELIVERIES_MAX
        self._bytes = 0
        self.waiting = 0

    @property
    def wake_at(self) -> float | None:
        """When :meth:`tick` wants to be called next, if ever."""
        return self._retries[0][0] if self._retries else None

    def check_room(self, key: str) -> None:
        """Raises :class:`SlowDown` when one more message for the recipient is one too many."""
        queue = self.queues.get(key)
        if self.waiting >= OUTBOX_MESSAGES_MAX:
            raise SlowDown(
                f"the outbox is full: {OUTBOX_MESSAGES_MAX} messages wait", retry_after_s=OUTBOX_FULL_RETRY_S
            )
        if queue is not None and queue.waiting >= RECIPIENT_MESSAGES_MAX:
            detail = f"{queue.waiting} messages wait for {queue.to} already"
            raise SlowDown(detail, retry_after_s=OUTBOX_FULL_RETRY_S)

    # -- what comes in -------------------------------------------------------------------------------------------

    def restore(self, key: str, to: str, waiting: int, oldest_at: int, now: float) -> list[Effect]:
        """At the start: so many messages for the recipient wait on disk."""
        queue = self.queues[key] = Queue(to, oldest_at, waiting=waiting, on_disk=True)
        self.waiting += waiting
        self._enqueue(key, queue)
        return self._serve(now)

    def add(self, key: str, messages: Iterable[Message], now: float) -> list[Effect]:
        """Messages that are on disk now, in the order of their rows."""
        for message in messages:
            queue = self.queues.get(key)
            if queue is None:
                queue = self.queues[key] = Queue(message.to, message.sent_at)
            queue.waiting += 1
            self.waiting += 1
            if queue.on_disk or queue.full or self._crowded:
                queue.on_disk = True
            else:
                self._bytes += len(message.message)
                queue.push(message)
            self._enqueue(key, queue)
        return self._serve(now)

    def loaded(self, key: str, messages: Iterable[Message], now: float) -> list[Effect]:
        """What :class:`Load` brought; nothing: there is no more on disk."""
        queue = self.queues[key]
        self._end_load(key, queue)
        brought = list(messages)
        queue.on_disk = bool(brought)
        for message in brought:
            self._bytes += len(message.message)
            queue.push(message)
        if not brought and not queue.ready and not queue.under_way:
            self.waiting -= queue.waiting
            del self.queues[key]
        elif queue.next_try is not None:
            self._make_room(queue)
        self._enqueue(key, queue, first=True)
        return self._serve(now)

    def not_loaded(self, key: str, reason: str, now: float) -> list[Effect]:
        """The disk did not give what :class:`Load` asked for."""
        queue = self.queues[key]
        self._end_load(key, queue)
        if not queue.waiting:
            del self.queues[key]
        elif not queue.under_way and queue.next_try is None:
            self._back_off(key, queue, reason, now)
        return self._serve(now)

    # -- how an attempt went -------------------------------------------------------------------------------------

    def found(self, key: str) -> None:
        """The recipient's address is known: the batch goes out."""
        self.queues[key].advance(Status.DELIVERING)

    def answered(self, key: str, ids: set[str], refused: dict[str, str], now: float) -> list[Effect]:
        """The recipient has `ids` on disk, and will never take `refused` (with the reason for each)."""
        queue = self.queues[key]
        batch = queue.under_way
        done = tuple(message for message in batch if message.id in ids)
        never = [message for message in batch if message.id in refused and message.id not in ids]
        if not done and not never:
            return self.failed(key, "the recipient's node acknowledged nothing", now)
        effects: list[Effect] = [Finish(done, Status.DELIVERED, None)] if done else []
        effects += [Finish((message,), Status.REFUSED, refused[message.id]) for message in never]
        ended = {message.id for message in (*done, *never)}
        left = [message for message in batch if message.id not in ended]
        self._end_attempt(key, queue, left)
        queue.attempts, queue.reason = 0, None
        self._ended(key, queue, [*done, *never])
        return [*effects, *self._serve(now)]

    def failed(self, key: str, reason: str, now: float) -> list[Effect]:
        """The attempt came to nothing: wait, longer each time."""
        queue = self.queues[key]
        self._end_attempt(key, queue, queue.under_way)
        self._back_off(key, queue, reason, now)
        effects = self._expire(key, queue, now)
        return [*effects, *self._serve(now)]

    # -- as time goes by -----------------------------------------------------------------------------------------

    def wake(self, key: str, now: float) -> list[Effect]:
        """A sign of life from the recipient: no more waiting, and should the attempt under way fail, hardly any."""
        queue = self.queues.get(key)
        if queue is None:
            return []
        queue.next_try, queue.attempts = None, 0
        self._enqueue(key, queue)
        return self._serve(now)

    def tick(self, now: float) -> list[Effect]:
        while self._retries and self._retries[0][0] <= now:
            due, key = heapq.heappop(self._retries)
            queue = self.queues.get(key)
            if queue is not None and queue.next_try == due:
                queue.next_try = None
                self._enqueue(key, queue)
        return self._serve(now)

    # -- inside --------------------------------------------------------------------------------------------------

    @property
    def _crowded(self) -> bool:
        return self._bytes >= MEMORY_BYTES_MAX

    def _enqueue(self, key: str, queue: Queue, *, first: bool = False) -> None:
        has_work = bool(queue.ready) or queue.on_disk
        if has_work and not queue.busy and queue.next_try is None and key not in self._queued:
            (self._turns.appendleft if first else self._turns.append)(key)
            self._queued.add(key)

    def _serve(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while self._turns and len(self._served) < DELIVERIES_MAX:
            key = self._turns.popleft()
            queue = self.queues.get(key)
            if queue is not None and not queue.busy and queue.next_try is None:
                effects += self._take_turn(key, queue, now)
            self._queued.discard(key)
        return effects

    def _take_turn(self, key: str, queue: Queue, now: float) -> list[Effect]:
        effects = self._expire(key, queue, now)
        if queue.ready:
            effects.append(self._attempt(key, queue))
        if queue.waiting and queue.on_disk and not queue.ready and not (queue.under_way and self._crowded):
            queue.loading = True
            effects.append(Load(key, queue.row_known))
        if queue.busy:
            self._served.add(key)
        return effects

    def _attempt(self, key: str, queue: Queue) -> Attempt:
        queue.under_way = tuple(self._gather(queue))
        if queue.under_way[0].row > queue.row_tried:
            queue.phase = Status.QUEUED  # none of them was tried before
        queue.row_tried = max(queue.row_tried, queue.under_way[-1].row)
        queue.advance(Status.LOCATING)
        return Attempt(key, queue.to, queue.under_way)

    def _gather(self, queue: Queue) -> Iterator[Message]:
        size = count = 0
        while queue.ready and count < BATCH_MESSAGES_MAX:
            size += len(queue.ready[0].message)
            if count and size > BATCH_BYTES_MAX:
                return
            count += 1
            yield queue.pop()

    def _end_attempt(self, key: str, queue: Queue, left: Iterable[Message]) -> None:
        queue.under_way = ()
        queue.put_back(left)
        if not queue.busy:
            self._served.discard(key)
            self._make_room(queue)

    def _end_load(self, key: str, queue: Queue) -> None:
        queue.loading = False
        if not queue.busy:
            self._served.discard(key)

    def _make_room(self, queue: Queue) -> None:
        if self._crowded:
            self._bytes -= queue.ready_bytes
            queue.unload()

    def _back_off(self, key: str, queue: Queue, reason: str, now: float) -> None:
        queue.attempts += 1
        queue.reason = reason
        delay_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(queue.attempts - 1, 30))
        queue.next_try = now + delay_s * self._rng.uniform(0.5, 1.0)
        heapq.heappush(self._retries, (queue.next_try, key))

    def _expire(self, key: str, queue: Queue, now: float) -> list[Effect]:
        now_ms = int(now * 1000)
        over = [message for message in queue.ready if message.expires_at <= now_ms]
        if not over:
            return []
        queue.ready = deque(message for message in queue.ready if message.expires_at > now_ms)
        queue.ready_bytes = sum(len(message.message) for message in queue.ready)
        self._ended(key, queue, over)
        return [Finish(tuple(over), Status.EXPIRED, queue.reason or "not delivered in time")]

    def _ended(self, key: str, queue: Queue, messages: Sequence[Message]) -> None:
        self.waiting -= len(messages)
        queue.waiting -= len(messages)
        self._bytes -= sum(len(message.message) for message in messages)
        if queue.ready:
            queue.oldest_at = queue.ready[0].sent_at
        if queue.waiting == 0 and not queue.loading:
            del self.queues[key]
        else:
            self._enqueue(key, queue)
