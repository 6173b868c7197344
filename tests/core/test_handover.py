"""Handing the inbox over: in order, at least once, for as long as it takes."""

import random
from bisect import bisect_right

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import Raw

from meshproto.core.handover import LOAD_RETRY_S, PAGE_MESSAGES, Answer, Give, Handover, Load, Pause, Save, Verdict
from meshproto.core.inbox import Correspondent, Received
from meshproto.core.outbox import BACKOFF_FIRST_S, BACKOFF_MAX_S

TAKEN, NEVER, LATER = (Answer(verdict, verdict.name.lower()) for verdict in Verdict)
NOW = 1000.0


def message(cursor: int) -> Received:
    return Received(cursor, f"id{cursor}", Correspondent("Bob", "key"), "", Raw(b'"text"'), 0, 0)


def handover(*cursors: int) -> Handover:
    """One that has a page with these."""
    core = Handover(0, random.Random(1))
    core.loaded([message(cursor) for cursor in cursors])
    return core


@pytest.mark.parametrize("answer", [TAKEN, NEVER])
def test_the_cursor_moves_on(answer: Answer) -> None:
    """A message that was taken, or will never be, is behind the cursor, which is saved before the next is given."""
    core = handover(3, 5)
    assert core.step(NOW) == Give(message(3))
    core.answered(answer, NOW)
    assert core.cursor == 3
    assert core.step(NOW) == Save(3)
    core.saved()
    assert core.step(NOW) == Give(message(5))
    core.answered(answer, NOW)
    core.saved()
    assert core.step(NOW) == Load(5)


def test_what_is_not_taken_comes_again() -> None:
    """The pause doubles from one second to five minutes, with jitter, and starts anew after a success."""
    core = handover(1, 2)
    now, longest_s = NOW, BACKOFF_FIRST_S
    for attempt in range(1, 15):
        assert core.step(now) == Give(message(1))
        assert core.next_try is None
        core.answered(Answer(Verdict.LATER, "answered 500", "my disk is full"), now)
        assert (core.attempts, core.reason, core.cursor) == (attempt, "answered 500: my disk is full", 0)
        pause = core.step(now)
        assert isinstance(pause, Pause)
        assert longest_s / 2 <= pause.until - now <= longest_s
        assert core.next_try == pause.until
        now, longest_s = pause.until, min(BACKOFF_MAX_S, 2 * longest_s)
    assert longest_s == BACKOFF_MAX_S
    core.step(now)
    core.answered(TAKEN, now)
    assert (core.attempts, core.reason, core.next_try) == (0, None, None)
    core.saved()
    core.step(now)
    core.answered(LATER, now)
    assert core.next_try is not None and core.next_try - now <= BACKOFF_FIRST_S


def test_two_programs_do_not_keep_step() -> None:
    """Of two that fail at the same times each pauses for a time of its own."""
    rng = random.Random(1)
    both = [Handover(0, rng), Handover(0, rng)]
    for core in both:
        core.loaded([message(1)])
        core.answered(LATER, NOW)
    assert both[0].next_try != both[1].next_try


def test_a_disk_that_does_not_save_holds_nobody_up() -> None:
    """The next message is given; the cursor is saved with it, or after the next look at the inbox."""
    core = handover(1, 2)
    core.answered(TAKEN, NOW)
    core.not_saved()
    assert core.step(NOW) == Give(message(2))
    core.answered(TAKEN, NOW)
    assert core.step(NOW) == Save(2)
    core.not_saved()
    assert core.step(NOW) == Load(2)
    core.loaded([])
    assert core.step(NOW) == Save(2)
    core.saved()
    core.loaded([])
    assert core.step(NOW) == Load(2)


def test_a_disk_that_does_not_read_is_asked_again() -> None:
    """After LOAD_RETRY_S, or when the one who refused said; the reason goes when it works."""
    core = handover()
    core.put_off("the disk is gone", None, NOW)
    assert (core.step(NOW), core.reason) == (Pause(NOW + LOAD_RETRY_S), "the disk is gone")
    assert core.step(NOW + LOAD_RETRY_S) == Load(0)
    core.put_off("too many readers", 1.0, NOW)
    assert core.step(NOW) == Pause(NOW + 1.0)
    core.step(NOW + 1.0)
    core.loaded([])
    assert (core.reason, core.attempts) == (None, 0)


class Model(RuleBasedStateMachine):
    """Whatever the program answers, whatever the disk refuses, whenever the node is killed."""

    def __init__(self) -> None:
        super().__init__()
        self.inbox: list[int] = []
        self.stored = 0
        self.now = NOW
        self.done: set[int] = set()
        self.unstored: set[int] = set()  # done in this life, and not written down yet
        self.done_now: set[int] = set()
        self.core = Handover(0, random.Random(1))

    def teardown(self) -> None:
        """With a program that takes everything, everything is taken."""
        while not isinstance(self.core.step(self.now), Load) or self.core.cursor < (self.inbox or [0])[-1]:
            self.do_next(TAKEN, works=True)
            self.time_goes_by(BACKOFF_MAX_S)
        assert self.done >= set(self.inbox)

    @rule(gaps=st.lists(st.integers(1, 3), min_size=1, max_size=4))
    def arrive(self, gaps: list[int]) -> None:
        for gap in gaps:
            self.inbox.append((self.inbox or [0])[-1] + gap)

    @rule(answer=st.sampled_from([TAKEN, NEVER, LATER]), works=st.booleans())
    def do_next(self, answer: Answer, works: bool) -> None:
        match self.core.step(self.now):
            case Save(cursor=cursor):
                if works:
                    self.stored, self.unstored = cursor, set()
                    self.core.saved()
                else:
                    self.core.not_saved()
            case Load(after=after):
                first = bisect_right(self.inbox, after)
                page = [message(cursor) for cursor in self.inbox[first : first + PAGE_MESSAGES]]
                if works:
                    self.core.loaded(page)
                else:
                    self.core.put_off("the disk is full", None, self.now)
            case Give(message=given):
                assert self.done >= {cursor for cursor in self.inbox if cursor < given.cursor}, "overtaken"
                assert given.cursor not in self.done_now, "given again in one life"
                assert given.cursor > self.stored, "given again though it was written down"
                self.core.answered(answer, self.now)
                if answer is not LATER:
                    self.done.add(given.cursor)
                    self.done_now.add(given.cursor)
                    self.unstored.add(given.cursor)
            case Pause(until=until):
                assert self.now < until <= self.now + BACKOFF_MAX_S

    @rule(seconds=st.sampled_from([0.4, 1.0, BACKOFF_MAX_S]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def is_killed(self) -> None:
        self.unstored, self.done_now = set(), set()
        self.core = Handover(self.stored, random.Random(1))

    @invariant()
    def the_cursor_is_past_what_is_done_alone(self) -> None:
        assert {cursor for cursor in self.inbox if cursor <= self.core.cursor} <= self.done
        assert self.stored <= self.core.cursor
        assert (self.stored == self.core.cursor) == (not self.unstored)


TestHandoverModel = Model.TestCase
TestHandoverModel.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
