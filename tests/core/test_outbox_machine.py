"""The outbox against a model: whatever happens in whatever order, nothing is lost, nothing overtakes, nothing sticks.

The model stands for the shell around the outbox. Its disk works as the real one does: jobs are committed in the order
they were submitted and told in that order, but later, so that anything may happen in between.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshproto.core import outbox
from meshproto.core import queue as queue_module
from meshproto.core.outbox import Attempt, Effect, Finish, Load, Outbox
from meshproto.core.queue import Message, Status

LIMITS: Final[dict[str, Any]] = {
    "DELIVERIES_MAX": 2,
    "DOUBTFUL_MAX": 1,
    "HANGING_MAX": 1,
    "MEMORY_BYTES_MAX": 50,
    "UNMARKED_MAX": 6,
}
BATCH_LIMITS: Final[dict[str, Any]] = {"BATCH_MESSAGES_MAX": 3, "BATCH_BYTES_MAX": 30}
SERVED_MAX: Final = 2 + 1 + 1
MESSAGE_BYTES_MAX: Final = 35
"""Larger than a batch of BATCH_LIMITS: such a message travels alone."""
HELD_BYTES_MAX: Final = 50 + 2 * SERVED_MAX * MESSAGE_BYTES_MAX + MESSAGE_BYTES_MAX
"""What may be in memory: MEMORY_BYTES_MAX, for each recipient served a batch under way and one gathered, and the one
message that went over the limit."""
KEYS: Final = "abcde"
RANKS: Final = {Status.QUEUED: 0, Status.LOCATING: 1, Status.DELIVERING: 2}
ROUNDS_MAX: Final = 500

Told = Callable[[], list[Effect]]


@dataclass(frozen=True)
class Job:
    """Something for the disk; what `run` returns is told to the outbox when its turn comes."""

    run: Callable[[], Told | None]
    fail: Callable[[], Told | None] | None = None


class Model(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.limits = [patch.multiple(outbox, **LIMITS), patch.multiple(queue_module, **BATCH_LIMITS)]
        for limit in self.limits:
            limit.start()
        self.now = 1000.0
        self.outbox = Outbox(random.Random(1))
        self.disk: dict[int, Message] = {}
        self.ended_on_disk: set[int] = set()
        self.jobs: deque[Job] = deque()
        self.told: deque[Told] = deque()
        self.known: set[int] = set()  # rows the outbox was told of
        self.ended: set[int] = set()  # rows it declared to have come to an end
        self.unwritten: list[Finish] = []
        self.under_way: dict[str, Attempt] = {}
        self.ranks: dict[int, int] = {}
        self.rows = 0

    def teardown(self) -> None:
        try:
            self.drain()
        finally:
            for limit in self.limits:
                limit.stop()

    # -- the shell -----------------------------------------------------------------------------------------------

    def carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Attempt():
                    self.check_attempt(effect)
                    self.under_way[effect.key] = effect
                case Load():
                    self.jobs.append(self.load_job(effect))
                case Finish():
                    rows = set(effect.rows)
                    assert rows
                    assert len(rows) == len(effect.rows)
                    if effect in self.unwritten:
                        self.unwritten.remove(effect)
                    else:
                        assert not rows & self.ended, "finished twice"
                    self.ended |= rows
                    self.jobs.append(self.mark_job(effect))

    def check_attempt(self, attempt: Attempt) -> None:
        rows = [message.row for message in attempt.batch]
        size = sum(len(message.message) for message in attempt.batch)
        assert attempt.key not in self.under_way, "two attempts at a time for one recipient"
        assert len(self.under_way) < SERVED_MAX
        assert 1 <= len(rows) <= BATCH_LIMITS["BATCH_MESSAGES_MAX"]
        assert size <= BATCH_LIMITS["BATCH_BYTES_MAX"] or len(rows) == 1
        assert not self.ended & set(rows), "attempted after its end"
        aside = self.outbox.queues[attempt.key].aside
        assert not aside.keys() & set(rows), "attempted while it stands aside"
        unfinished = [row for row, message in sorted(self.disk.items()) if message.to == attempt.key]
        in_order = [row for row in unfinished if row not in self.ended and row not in aside and row <= rows[-1]]
        assert rows == in_order, "out of order"

    def mark_job(self, finish: Finish) -> Job:
        def run() -> Told:
            self.ended_on_disk.update(finish.rows)
            return lambda: self.outbox.marked(finish.rows, self.now)

        def fail() -> Told:
            def tell() -> list[Effect]:
                self.unwritten.append(finish)
                self.outbox.not_marked(finish, self.now)
                return []

            return tell

        return Job(run, fail)

    def end_job(self, key: str, rows: set[int]) -> Job:
        """The owner, or the time, ends some of what the disk shows as waiting."""

        def run() -> Told:
            waiting = [row for row in sorted(rows) if row in self.disk and row not in self.ended_on_disk]
            waiting = [row for row in waiting if self.disk[row].to == key]
            return lambda: self.outbox.end(key, waiting, Status.CANCELLED, "not wanted any more", self.now)

        return Job(run, fail=lambda: None)

    def load_job(self, load: Load) -> Job:
        def run() -> Told:
            found: list[Message] = []
            for row, message in sorted(self.disk.items()):
                if message.to == load.key and row > load.row and row not in self.ended_on_disk:
                    size = sum(len(other.message) for other in [*found, message])
                    full = len(found) == BATCH_LIMITS["BATCH_MESSAGES_MAX"] or size > BATCH_LIMITS["BATCH_BYTES_MAX"]
                    if found and full:
                        break
                    found.append(message)
            return lambda: self.outbox.loaded(load.key, found, self.now)

        return Job(run, fail=lambda: lambda: self.outbox.not_loaded(load.key, "the disk is full", self.now))

    def accept_job(self, key: str, size: int, *, doubtful: bool) -> Job:
        def run() -> Told:
            self.rows += 1
            message = Message(self.rows, f"id{self.rows}", key, "", b"x" * size, int(self.now * 1000), 10**15)
            self.disk[message.row] = message

            def tell() -> list[Effect]:
                self.known.add(message.row)
                return self.outbox.add(key, [message], self.now, doubtful=doubtful)

            return tell

        return Job(run, fail=lambda: None)

    # -- what may happen -----------------------------------------------------------------------------------------

    @rule(
        key=st.sampled_from(KEYS),
        sizes=st.lists(st.integers(1, MESSAGE_BYTES_MAX), min_size=1, max_size=5),
        doubtful=st.booleans(),
    )
    def send(self, key: str, sizes: list[int], doubtful: bool) -> None:
        self.jobs.extend(self.accept_job(key, size, doubtful=doubtful) for size in sizes)

    @precondition(lambda self: self.known - self.ended_on_disk)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """Ends rows of one recipient, some of which may have ended in the meantime."""
        left = sorted(self.known - self.ended_on_disk)
        rows = data.draw(st.sets(st.sampled_from(left), min_size=1))
        self.jobs.append(self.end_job(self.disk[min(rows)].to, rows))

    @precondition(lambda self: self.jobs)
    @rule(works=st.booleans())
    def commit_one(self, works: bool) -> None:
        job = self.jobs.popleft()
        tell = job.run() if works or job.fail is None else job.fail()
        if tell is not None:
            self.told.append(tell)

    @precondition(lambda self: self.told)
    @rule()
    def tell_one(self) -> None:
        self.carry_out(self.told.popleft()())

    @rule()
    def settle(self) -> None:
        """The disk does all it was asked for, and what follows from it."""
        for _ in range(ROUNDS_MAX):
            while self.jobs:
                self.commit_one(True)
            if not self.told:
                return
            self.tell_one()
        raise AssertionError("the outbox and the disk keep each other busy for ever")

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def find(self, data: st.DataObject) -> None:
        self.outbox.found(data.draw(st.sampled_from(sorted(self.under_way))))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), unknown=st.booleans())
    def answer(self, data: st.DataObject, unknown: bool) -> None:
        attempt = self.under_way.pop(data.draw(st.sampled_from(sorted(self.under_way))))
        some = st.lists(st.sampled_from([message.id for message in attempt.batch]), unique=True)
        done, never = set(data.draw(some)), dict.fromkeys(data.draw(some), "too deep")
        if unknown:
            done.add("never sent")
            never["nor this"] = "what is it?"
        self.outbox.found(attempt.key)
        before = set(self.ended)
        self.carry_out(self.outbox.answered(attempt.key, done, never, self.now))
        settled = {message.row for message in attempt.batch if message.id in done | set(never)}
        assert settled <= self.ended - before

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        attempt = self.under_way.pop(data.draw(st.sampled_from(sorted(self.under_way))))
        self.carry_out(self.outbox.failed(attempt.key, "unreachable", self.now))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), for_good=st.booleans(), found=st.booleans())
    def withhold(self, data: st.DataObject, for_good: bool, found: bool) -> None:
        """Some of a batch are for another key."""
        attempt = self.under_way.pop(data.draw(st.sampled_from(sorted(self.under_way))))
        some = data.draw(st.sets(st.sampled_from([message.row for message in attempt.batch]), min_size=1))
        if found or for_good:
            self.outbox.found(attempt.key)
        ending = set(self.outbox.queues[attempt.key].ending)
        before = set(self.ended)
        self.carry_out(self.outbox.withheld(attempt.key, dict.fromkeys(some, "no"), self.now, for_good=for_good))
        assert self.ended - before >= (some | ending if for_good else ending)
        assert for_good or not (some - ending) & self.ended, "ended by what a seed says"

    @rule(key=st.sampled_from(KEYS), alive=st.booleans())
    def wake(self, key: str, alive: bool) -> None:
        self.carry_out(self.outbox.wake(key, self.now, alive=alive))

    @rule(key=st.sampled_from(KEYS), alive=st.booleans())
    def hint(self, key: str, alive: bool) -> None:
        self.carry_out(self.outbox.hint(key, self.now, alive=alive))

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 4.0, 400.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out(self.outbox.tick(self.now))
        assert self.outbox.wake_at is None or self.outbox.wake_at > self.now

    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        """Clean: what was submitted is written first. Otherwise a power failure: only what is on disk counts."""
        if clean:
            self.settle()
        self.jobs.clear()
        self.told.clear()
        self.under_way.clear()
        self.unwritten.clear()
        self.ended = set(self.ended_on_disk)
        self.known = set(self.disk)
        self.outbox = Outbox(random.Random(self.rows))
        for key in KEYS:
            waiting = [row for row in self.disk if self.disk[row].to == key and row not in self.ended]
            if waiting:
                oldest_at = self.disk[waiting[0]].sent_at
                self.carry_out(self.outbox.restore(key, key, len(waiting), oldest_at, max(waiting), self.now))

    # -- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def counters_are_exact(self) -> None:
        left = [self.disk[row].to for row in self.known - self.ended]
        assert self.outbox.waiting == len(left)
        for key, queue in self.outbox.queues.items():
            assert queue.waiting == left.count(key)
            assert queue.waiting or queue.loading, "an empty queue is kept"
            assert queue.ready_bytes == sum(len(message.message) for message in queue.ready)
        held = [m for queue in self.outbox.queues.values() for m in (*queue.ready, *queue.under_way)]
        assert len({message.row for message in held}) == len(held)
        assert self.outbox._bytes == sum(len(message.message) for message in held) <= HELD_BYTES_MAX

    @invariant()
    def nothing_is_lost(self) -> None:
        """What is not in memory will be loaded: it is on disk, behind what the queue knows."""
        for row in self.known - self.ended:
            queue = self.outbox.queues[self.disk[row].to]
            in_memory = {message.row for message in (*queue.ready, *queue.under_way)}
            assert row in in_memory or row in queue.aside or (queue.on_disk and row > queue.row_known)
            assert row not in queue.aside or row not in in_memory

    @invariant()
    def nothing_is_stuck(self) -> None:
        for key, queue in self.outbox.queues.items():
            assert bool(queue.under_way) == (key in self.under_way)
            if queue.waiting and not queue.busy:
                blocked = len(self.outbox._unmarked) >= LIMITS["UNMARKED_MAX"]
                in_turn = key in self.outbox._turns and (
                    blocked or len(self.outbox._served) == LIMITS["DELIVERIES_MAX"]
                )
                in_doubt = key in self.outbox._doubtful_turns and (
                    blocked or len(self.outbox._doubtful_served) == LIMITS["DOUBTFUL_MAX"]
                )
                wake_at = self.outbox.wake_at
                waits = queue.next_try is not None and wake_at is not None and wake_at <= queue.next_try
                due = queue.aside_next_try if not (queue.ready or queue.on_disk) else None
                stands_aside = due is not None and wake_at is not None and wake_at <= due
                assert in_turn or in_doubt or waits or stands_aside
                assert set(queue.aside) <= self.known - self.ended
        served = self.outbox._served | self.outbox._doubtful_served | self.outbox._hanging
        assert served == {key for key, queue in self.outbox.queues.items() if queue.busy}
        assert set(self.outbox._places) == self.outbox._served | self.outbox._doubtful_served
        assert len(self.outbox._hanging) <= LIMITS["HANGING_MAX"]
        assert len(self.outbox._served) <= LIMITS["DELIVERIES_MAX"]
        assert len(self.outbox._doubtful_served) <= LIMITS["DOUBTFUL_MAX"]

    @invariant()
    def status_never_goes_back(self) -> None:
        """Also across restarts, and not while the disk does not show an end yet."""
        for row in self.known - self.ended_on_disk:
            rank = RANKS[self.outbox.status_of(self.disk[row].to, row)]
            assert rank >= self.ranks.get(row, 0)
            self.ranks[row] = rank

    # -- the end -------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """When everyone answers, everything comes to an end."""
        for _ in range(ROUNDS_MAX):
            self.settle()
            if not self.under_way:
                if self.outbox.wake_at is None:
                    break
                self.now = self.outbox.wake_at
                self.carry_out(self.outbox.tick(self.now))
            for attempt in list(self.under_way.values()):
                del self.under_way[attempt.key]
                ids = {message.id for message in attempt.batch}
                self.carry_out(self.outbox.answered(attempt.key, ids, {}, self.now))
            self.counters_are_exact()
            self.nothing_is_stuck()
        assert self.ended == self.ended_on_disk == set(self.disk)
        assert not self.outbox.queues
        assert not self.outbox.waiting
        assert not self.outbox._bytes


TestOutboxModel = Model.TestCase
TestOutboxModel.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
