"""What waits to be delivered, to whom, and what is tried when.

A message enters when it is on disk. Each recipient has a queue of their own, in order: one batch is under way while the
next gathers, so batches grow with load. A failure makes that recipient wait, alone: one second, doubling to five
minutes, jittered; a sign of life from them ends the waiting at once, and a seed's word that they are back soon. A
bounded number of recipients is served at a time, in turn. Those of whom nobody knows whether they are there have places
of their own, and an attempt that hangs gives its place away after a moment: the dead cost the living hardly anything.

In memory a queue holds about one batch besides the one under way; what is behind it stays on disk and is loaded when
its turn comes. When memory is short a queue that is not served holds nothing.

An end counts when it is on disk. Until the disk has taken the mark the message is what it was before, for everyone who
asks; when the disk refuses the mark it is written again, and the message is not sent a second time.
"""

import heapq
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from meshproto.core.queue import Message, Queue, Status
from meshproto.errors import SlowDown

TTL_S: Final = 7 * 86400.0
"""How long a message for someone away is kept, if its sender does not say: what mail does."""
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 300.0
DELIVERIES_MAX: Final = 64
"""Recipients served at a time: sockets and memory for batches stay bounded."""
DOUBTFUL_MAX: Final = 32
"""Recipients tried at a time, besides, who failed the last time, or are offline, or were waited for before a restart: a
thousand dead machines, each silent until the time-out, hold up nobody who lives."""
PLACE_S: Final = 1.0
"""How long an attempt may keep one of these places when somebody wants it; then it goes on without. A hundred machines
that take a connection and never answer would hold them all until the time-out."""
HANGING_MAX: Final = 512
"""Attempts that go on without a place: each is a socket and a batch in memory."""
RECIPIENT_MESSAGES_MAX: Final = 100_000
OUTBOX_MESSAGES_MAX: Final = 1_000_000
"""About a gigabyte of disk with messages of usual size."""
RECIPIENTS_MAX: Final = 20_000
"""Recipients that messages wait for: a queue takes about a kilobyte of memory, however short it is."""
OUTBOX_FULL_RETRY_S: Final = 5.0
MEMORY_BYTES_MAX: Final = 64 * 1024 * 1024
"""Message texts kept in memory over all queues; past that what waits is on disk alone, and only the recipients being
served have a batch in memory."""
UNMARKED_MAX: Final = 100_000
"""Ends that the disk has not taken yet. Past that nothing more is sent: after a crash all of it would be sent again."""
MARK_RETRY_S: Final = 2.0


class Attempt(Struct, frozen=True):
    """Find the recipient and deliver the batch, then tell the outbox: :meth:`Outbox.found`, and one of
    :meth:`Outbox.answered`, :meth:`Outbox.failed` and :meth:`Outbox.withheld`."""

    key: str
    to: str
    batch: tuple[Message, ...]


class Load(Struct, frozen=True):
    """Bring the next waiting messages after `row` from disk, at most a batch of them, to :meth:`Outbox.loaded`, or say
    :meth:`Outbox.not_loaded`."""

    key: str
    row: int


class Finish(Struct, frozen=True):
    """The messages have come to an end; the reason is for their sender to read. Write it, then tell
    :meth:`Outbox.marked` or :meth:`Outbox.not_marked`."""

    rows: tuple[int, ...]
    status: Status
    reason: str | None


Effect = Attempt | Load | Finish


class Outbox:
    """`now` is seconds on a clock that never goes back."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.queues: dict[str, Queue] = {}
        self._turns: OrderedDict[str, None] = OrderedDict()  # recipients that may be served now, in order
        self._doubtful_turns: OrderedDict[str, None] = OrderedDict()
        self._retries: list[tuple[float, str]] = []  # heap; stale ones are skipped
        self._served: set[str] = set()  # recipients that are busy, at most DELIVERIES_MAX
        self._doubtful_served: set[str] = set()  # the same, at most DOUBTFUL_MAX
        self._hanging: set[str] = set()  # busy too, for longer than PLACE_S
        self._places: OrderedDict[str, float] = OrderedDict()  # who has one of the first two -> until when
        self._unmarked: dict[int, Status] = {}  # ended rows the disk does not show as such yet -> how far they had come
        self._unwritten: deque[Finish] = deque()  # those the disk has refused
        self._write_at: float | None = None
        self._reserved: Counter[str] = Counter()
        self._reserved_total = 0
        self._bytes = 0
        self.waiting = 0

    @property
    def wake_at(self) -> float | None:
        """When :meth:`tick` wants to be called next, if ever."""
        times = [] if self._write_at is None else [self._write_at]
        if self._retries:
            times.append(self._retries[0][0])
        # Places are only given away when somebody wants one.
        wanted = (self._turns or self._doubtful_turns) and not self._blocked
        if wanted and self._places and self._has_room_to_hang:
            times.append(next(iter(self._places.values())))
        return min(times) if times else None

    # -- what comes in -------------------------------------------------------------------------------------------

    def reserve(self, key: str, to: str, wanted: int = 1) -> int:
        """Keep room for some more messages until :meth:`release`, while they are written: for so many. Raises
        :class:`SlowDown` when already one is too many."""
        queue = self.queues.get(key)
        known = len(self.queues) + len(self._reserved)
        waiting = self._reserved[key] + (queue.waiting if queue else 0)
        room_in_all = OUTBOX_MESSAGES_MAX - self.waiting - self._reserved_total
        room = min(wanted, room_in_all, RECIPIENT_MESSAGES_MAX - waiting)
        if room_in_all <= 0:
            detail = f"the outbox is full: {OUTBOX_MESSAGES_MAX} messages wait"
        elif room <= 0:
            detail = f"{waiting} messages wait for {to} already"
        elif queue is None and key not in self._reserved and known >= RECIPIENTS_MAX:
            detail = f"messages wait for {RECIPIENTS_MAX} recipients already"
        else:
            self._reserved[key] += room
            self._reserved_total += room
            return room
        raise SlowDown(detail, retry_after_s=OUTBOX_FULL_RETRY_S)

    def release(self, key: str, reserved: int = 1) -> None:
        self._reserved[key] -= reserved
        self._reserved_total -= reserved
        if not self._reserved[key]:
            del self._reserved[key]

    def restore(self, key: str, to: str, waiting: int, oldest_at: int, last_row: int, now: float) -> list[Effect]:
        """At the start: so many messages for the recipient wait on disk, up to `last_row`. They count as `delivering`:
        nobody knows any more whether they were on their way."""
        queue = self.queues[key] = Queue(to, oldest_at, doubtful=True, waiting=waiting, on_disk=True)
        queue.phase, queue.row_tried, queue.row_sent = Status.DELIVERING, last_row, last_row
        self.waiting += waiting
        self._enqueue(key, queue)
        return self._serve(now)

    def add(self, key: str, messages: Sequence[Message], now: float, *, doubtful: bool = False) -> list[Effect]:
        """Messages that are on disk now, in the order of their rows. `doubtful`: the recipient is said to be away."""
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = Queue(messages[0].name, messages[0].sent_at, doubtful=doubtful)
        elif not queue.attempts:
            queue.doubtful = queue.doubtful and doubtful
        queue.waiting += len(messages)
        self.waiting += len(messages)
        size = sum([len(message.message) for message in messages])
        if not queue.on_disk and queue.has_room(len(messages), size) and self._bytes + size <= MEMORY_BYTES_MAX:
            self._bytes += size
            queue.extend(messages, size)
        else:
            self._add_some(queue, messages)
        self._enqueue(key, queue)
        return self._serve(now)

    def _add_some(self, queue: Queue, messages: Sequence[Message]) -> None:
        for message in messages:
            if queue.on_disk or queue.full or self._crowded:
                queue.on_disk = True  # from here on all of them
                break
            self._bytes += len(message.message)
            queue.push(message)

    def loaded(self, key: str, messages: Iterable[Message], now: float) -> list[Effect]:
        """What :class:`Load` brought; nothing: there is no more on disk."""
        queue = self.queues[key]
        brought = list(messages)
        queue.on_disk = bool(brought)
        for message in brought:
            if message.row in self._unmarked or message.row in queue.aside:
                queue.row_known = message.row
                continue
            self._bytes += len(message.message)
            queue.push(message)
        self._end_load(key, queue)
        nothing_left = not (brought or queue.ready or queue.under_way or queue.aside)
        if nothing_left or not queue.waiting:
            self.waiting -= queue.waiting
            del self.queues[key]
            return self._serve(now)
        if queue.next_try is not None:
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
        done = [message for message in batch if message.id in ids]
        never = [message for message in batch if message.id in refused and message.id not in ids]
        if not done and not never:
            return self.failed(key, "the recipient's node acknowledged nothing", now)
        queue.doubtful, queue.attempts, queue.reason = False, 0, None
        queue.aside_attempts = queue.aside_attempts if queue.aside else 0
        effects = self._finish(key, queue, done, Status.DELIVERED, None) if done else []
        for message in never:
            effects += self._finish(key, queue, [message], Status.REFUSED, refused[message.id])
        left: Sequence[Message] = ()
        if len(done) + len(never) < len(batch):
            ended = {message.id for message in (*done, *never)}
            left = [message for message in batch if message.id not in ended]
        effects += self._end_attempt(key, queue, left)
        return [*effects, *self._serve(now)]

    def withheld(self, key: str, reasons: dict[int, str], now: float, *, for_good: bool) -> list[Effect]:
        """Nothing went out: these rows are for another key than the recipient's. `for_good`: their sender has said so,
        and they end. Otherwise it is the word of a seed, which ends nothing: they stand aside, and are tried again now
        and then. The others are tried again at once, without them."""
        queue = self.queues[key]
        batch = queue.under_way
        rows = reasons.keys() - queue.ending.keys()
        strict = [message for message in batch if message.row in rows]
        left = [message for message in batch if message.row not in rows]
        effects: list[Effect] = []
        if for_good:
            for message in strict:
                told = _honest(reasons[message.row], sent=message.row <= queue.row_sent)
                effects += self._finish(key, queue, [message], Status.REFUSED, told)
        elif strict:
            self._set_aside(key, queue, strict, reasons[strict[0].row], now)
        effects += self._end_attempt(key, queue, left)
        return [*effects, *self._serve(now)]

    def _set_aside(self, key: str, queue: Queue, messages: Sequence[Message], reason: str, now: float) -> None:
        self._bytes -= sum(len(message.message) for message in messages)
        queue.set_aside(messages)
        queue.reason, queue.aside_reason = None, reason
        if queue.aside_next_try is None:
            queue.aside_attempts += 1
            queue.aside_next_try = now + self._delay_s(queue.aside_attempts)
            heapq.heappush(self._retries, (queue.aside_next_try, key))

    def may_have_arrived(self, key: str) -> None:
        """The batch under way was sent and not answered."""
        queue = self.queues[key]
        queue.row_sent = max(queue.row_sent, queue.under_way[-1].row)

    def failed(self, key: str, reason: str, now: float, retry_after_s: float = 0.0) -> list[Effect]:
        """The attempt came to nothing: wait, longer each time; `retry_after_s`: as long as the peer asks for, up to
        :data:`BACKOFF_MAX_S`."""
        queue = self.queues[key]
        queue.doubtful = True
        self._back_off(key, queue, reason, now, retry_after_s)
        return [*self._end_attempt(key, queue, queue.under_way), *self._serve(now)]

    # -- what ends otherwise -------------------------------------------------------------------------------------

    def end(self, key: str, rows: Iterable[int], status: Status, reason: str, now: float) -> list[Effect]:
        """Messages of one recipient that the disk shows as waiting are over: expired or cancelled. One that is under
        way at this moment ends so if it is not delivered now."""
        queue = self.queues.get(key)
        if queue is None:
            return []
        wanted = {row for row in rows if row not in self._unmarked}
        for message in queue.under_way:
            if message.row in wanted:
                wanted.discard(message.row)
                queue.ending.setdefault(message.row, (status, reason))
        removed = queue.remove(lambda message: message.row in wanted)
        wanted.difference_update(message.row for message in removed)
        on_disk = queue.on_disk or queue.loading
        unseen = sorted(row for row in wanted if row in queue.aside or (row > queue.row_known and on_disk))
        effects: list[Effect] = []
        for sent in (False, True):
            some = [message for message in removed if (message.row <= queue.row_sent) is sent]
            others = [row for row in unseen if (row <= queue.row_sent) is sent]
            if some or others:
                effects += self._finish(key, queue, some, status, _honest(reason, sent=sent), others)
        for row in unseen:
            queue.aside.pop(row, None)
        return [*effects, *self._serve(now)]

    def marked(self, rows: Iterable[int], now: float) -> list[Effect]:
        """The ends of these messages are on disk."""
        for row in rows:
            self._unmarked.pop(row, None)
        effects: list[Effect] = list(self._unwritten)  # the disk takes them again
        self._unwritten.clear()
        self._write_at = None
        return [*effects, *self._serve(now)]

    def not_marked(self, finish: Finish, now: float) -> None:
        """The disk refuses to write it: once more, later."""
        self._unwritten.appendleft(finish)
        if self._write_at is None:
            self._write_at = now + MARK_RETRY_S

    # -- as time goes by -----------------------------------------------------------------------------------------

    def wake(self, key: str, now: float, *, alive: bool = True) -> list[Effect]:
        """No more waiting, and should the attempt under way fail, hardly any. `alive`: it was a sign of life from the
        recipient; else somebody wants it tried. Whoever gives a thousand such signs a second has themselves, or whom
        they say that they are, tried no more often than a seed has (:meth:`hint`)."""
        queue = self.queues.get(key)
        if queue is None:
            return []
        if alive and now < queue.alive_at + BACKOFF_FIRST_S:
            return self.hint(key, now, alive=True)
        queue.alive_at = now if alive else queue.alive_at
        queue.next_try, queue.attempts, queue.doubtful = None, 0, queue.doubtful and not alive
        if queue.aside and not alive:  # the recipient has another key than that, so their life is no sign
            queue.recalled, queue.aside_attempts = True, 0
        self._enqueue(key, queue)
        return self._serve(now)

    def hint(self, key: str, now: float, *, alive: bool) -> list[Effect]:
        """A seed says that the recipient is back (not `alive`: may be). Anybody can be a seed, and say so again and
        again: they are tried no earlier than :data:`BACKOFF_FIRST_S` after the last attempt, nor than they have asked
        for."""
        queue = self.queues.get(key)
        if queue is None:
            return []
        queue.attempts, queue.doubtful = min(queue.attempts, 1), queue.doubtful and not alive
        if queue.next_try is not None and queue.not_before < queue.next_try:
            queue.next_try = queue.not_before
            heapq.heappush(self._retries, (queue.next_try, key))
        self._enqueue(key, queue)
        return self.tick(now)

    def tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._write_at is not None and self._write_at <= now:
            effects.append(self._unwritten.popleft())  # the others when this one is written
            self._write_at = None
        while self._retries and self._retries[0][0] <= now:
            due, key = heapq.heappop(self._retries)
            queue = self.queues.get(key)
            if queue is None or due not in (queue.next_try, queue.aside_next_try):
                continue
            queue.next_try = None if queue.next_try == due else queue.next_try
            queue.recalled = queue.recalled or queue.aside_next_try == due
            self._enqueue(key, queue)
        return [*effects, *self._serve(now)]

    # -- to look at ----------------------------------------------------------------------------------------------

    def has_ended(self, row: int) -> bool:
        """Whether a message that the disk shows as waiting has come to an end that is not on disk yet."""
        return row in self._unmarked

    def status_of(self, key: str, row: int) -> Status:
        """Of a message that the disk shows as waiting."""
        ended = self._unmarked.get(row)
        if ended is not None:
            return ended
        queue = self.queues.get(key)
        return queue.status_of(row) if queue is not None else Status.QUEUED

    # -- inside --------------------------------------------------------------------------------------------------

    @property
    def _blocked(self) -> bool:
        """The disk has to take some ends before anything is sent."""
        return len(self._unmarked) >= UNMARKED_MAX

    @property
    def _crowded(self) -> bool:
        return self._bytes >= MEMORY_BYTES_MAX

    def _enqueue(self, key: str, queue: Queue, *, first: bool = False) -> None:
        if queue.recalled and not queue.busy:
            before = queue.ready_bytes
            queue.recall()
            self._bytes -= before - queue.ready_bytes
        has_work = bool(queue.ready) or queue.on_disk
        if not has_work or queue.busy or queue.next_try is not None:
            return
        turns, others = self._turns, self._doubtful_turns
        if queue.doubtful:
            turns, others = others, turns
        others.pop(key, None)
        if key not in turns:
            turns[key] = None
            turns.move_to_end(key, last=not first)

    def _serve(self, now: float) -> list[Effect]:
        if self._blocked:
            return []
        while self._places and next(iter(self._places.values())) <= now and self._has_room_to_hang:
            key = self._places.popitem(last=False)[0]
            self._served.discard(key)
            self._doubtful_served.discard(key)
            self._hanging.add(key)
        effects: list[Effect] = []
        while self._turns and len(self._served) < DELIVERIES_MAX:
            effects += self._take_turn(self._turns.popitem(last=False)[0], self._served, now)
        while self._doubtful_turns and len(self._doubtful_served) < DOUBTFUL_MAX:
            effects += self._take_turn(self._doubtful_turns.popitem(last=False)[0], self._doubtful_served, now)
        return effects

    @property
    def _has_room_to_hang(self) -> bool:
        return len(self._hanging) < HANGING_MAX and not self._crowded

    def _take_turn(self, key: str, places: set[str], now: float) -> list[Effect]:
        queue = self.queues.get(key)
        if queue is None or queue.busy or queue.next_try is not None:
            return []
        effects: list[Effect] = []
        if queue.ready:
            queue.take_batch()
            effects.append(Attempt(key, queue.to, queue.under_way))
        if queue.on_disk and not queue.ready and not (queue.under_way and self._crowded):
            queue.loading = True
            effects.append(Load(key, queue.row_known))
        if queue.busy:
            places.add(key)
            self._places[key] = now + PLACE_S
        return effects

    def _end_attempt(self, key: str, queue: Queue, left: Sequence[Message]) -> list[Effect]:
        queue.under_way = ()
        ending, queue.ending = queue.ending, {}
        effects: list[Effect] = []
        if left:
            queue.put_back(message for message in left if message.row not in ending)
        for message in left:
            if message.row in ending:
                status, reason = ending[message.row]
                told = _honest(reason, sent=message.row <= queue.row_sent)
                effects += self._finish(key, queue, [message], status, told)
        if key in self.queues:
            if queue.ready and not queue.aside:
                queue.oldest_at = queue.ready[0].sent_at
            if not queue.busy:
                self._free(key)
                self._make_room(queue)
            self._enqueue(key, queue)
        return effects

    def _end_load(self, key: str, queue: Queue) -> None:
        queue.loading = False
        if not queue.busy:
            self._free(key)

    def _free(self, key: str) -> None:
        self._served.discard(key)
        self._doubtful_served.discard(key)
        self._hanging.discard(key)
        self._places.pop(key, None)

    def _make_room(self, queue: Queue) -> None:
        if self._crowded:
            self._bytes -= queue.ready_bytes
            queue.unload()

    def _back_off(self, key: str, queue: Queue, reason: str, now: float, least_s: float = 0.0) -> None:
        queue.attempts += 1
        queue.reason = reason
        least_s = min(least_s, BACKOFF_MAX_S)
        queue.next_try = now + max(self._delay_s(queue.attempts), least_s)
        queue.not_before = now + max(BACKOFF_FIRST_S, least_s)
        heapq.heappush(self._retries, (queue.next_try, key))

    def _delay_s(self, attempts: int) -> float:
        longest_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(attempts - 1, 30))
        return longest_s * self._rng.uniform(0.5, 1.0)

    def _finish(
        self,
        key: str,
        queue: Queue,
        messages: Sequence[Message],
        status: Status,
        reason: str | None,
        unseen: Sequence[int] = (),
    ) -> list[Effect]:
        """`unseen`: rows that are on disk only."""
        rows = (*[message.row for message in messages], *unseen)
        for row in rows:
            self._unmarked[row] = queue.status_of(row)
        self.waiting -= len(rows)
        queue.waiting -= len(rows)
        self._bytes -= sum([len(message.message) for message in messages])
        if queue.ready and not queue.under_way and not queue.aside:
            queue.oldest_at = queue.ready[0].sent_at
        if not queue.waiting and not queue.loading:
            self._free(key)
            del self.queues[key]
        return [Finish(rows, status, reason)]


def _honest(reason: str, *, sent: bool) -> str:
    return f"{reason}; it was sent before, without an answer, and may have arrived" if sent else reason
