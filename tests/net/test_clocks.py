"""What a node waits by."""

import time
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from meshproto import seed_tap, user_tap
from meshproto.net.clocks import Deadlines, Timeout


@pytest.mark.parametrize("tap", [seed_tap, user_tap])
def test_a_node_waits_by_monotonic_time(tap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed as well as a user's node: its timers, and its limits by the second, know nothing of the time of day."""
    reactor = MemoryReactorClock()
    monkeypatch.setattr("twisted.internet.reactor", reactor)
    options = tap.Options()
    options.parseOptions(["--name", "UserX", "--port", "0"])
    tap.makeService(options)
    assert reactor.seconds is time.monotonic


TIMEOUT_S = 10.0


class Work:
    """Deadlines on a clock, and what was overdue, when."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.overdue: dict[int, float] = {}
        self.deadlines: Deadlines[int] = Deadlines(self.clock, TIMEOUT_S, self._note)

    def _note(self, number: int) -> None:
        assert number not in self.overdue
        self.overdue[number] = self.clock.seconds()


@given(st.lists(st.tuples(st.sampled_from(["begin", "end", "wait"]), st.integers(0, 6)), max_size=60))
def test_what_does_not_end_in_time_is_overdue(steps: list[tuple[str, int]]) -> None:
    """Each at its own time, to the second, and nothing else; with one timer at most."""
    work = Work()
    due_at: dict[int, float] = {}
    expected: dict[int, float] = {}
    for number, (what, value) in enumerate(steps):
        if what == "begin":
            work.deadlines.begin(number)
            due_at[number] = work.clock.seconds() + TIMEOUT_S
        elif what == "end":
            there = next((one for one in due_at if one % 7 == value), None)
            assert work.deadlines.end(-1 if there is None else there) is (there is not None)
            due_at.pop(-1 if there is None else there, None)
        else:
            work.clock.advance(value)
        now = work.clock.seconds()
        expected |= {one: at for one, at in due_at.items() if at <= now}
        due_at = {one: at for one, at in due_at.items() if at > now}
        assert set(work.overdue) == set(expected)
        assert len(work.deadlines) == len(due_at) and (not due_at or work.deadlines.first == min(due_at))
        assert len(work.clock.getDelayedCalls()) <= 1
    assert work.deadlines.stop() == list(due_at)
    assert work.clock.getDelayedCalls() == []


def test_who_is_told_may_begin_and_end_others() -> None:
    """What is begun then has its time, what is ended then is not told of."""
    clock = Clock()
    told: list[int] = []

    def overdue(number: int) -> None:
        told.append(number)
        if number == 1:
            deadlines.end(2)
            deadlines.begin(3)

    deadlines: Deadlines[int] = Deadlines(clock, TIMEOUT_S, overdue)
    deadlines.begin(1)
    deadlines.begin(2)
    clock.advance(TIMEOUT_S)
    assert told == [1]
    clock.advance(TIMEOUT_S)
    assert told == [1, 3] and clock.getDelayedCalls() == []


class TestDeadline:
    @pytest.fixture(autouse=True)
    def made(self) -> None:
        self.clock = Clock()
        self.reached: list[float] = []
        self.timeout = Timeout(self.clock, lambda: self.reached.append(self.clock.seconds()))

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds * 10)):
            self.clock.advance(0.1)

    def test_it_is_reached_once(self) -> None:
        self.timeout.set(5)
        self.run(20)
        assert self.reached == [pytest.approx(5, abs=0.2)]
        assert not self.clock.getDelayedCalls()

    def test_put_off_again_and_again(self) -> None:
        """With one timer."""
        for _ in range(20):
            self.timeout.set(5)
            self.run(1)
            assert len(self.clock.getDelayedCalls()) == 1
        assert self.reached == []
        self.run(5)
        assert self.reached == [pytest.approx(24, abs=0.2)]

    def test_brought_forward(self) -> None:
        self.timeout.set(60)
        self.timeout.set(5)
        assert len(self.clock.getDelayedCalls()) == 1
        self.run(6)
        assert self.reached == [pytest.approx(5, abs=0.2)]

    def test_cleared_and_set_again(self) -> None:
        """What there was is not reached; the timer that is left is used."""
        self.timeout.set(5)
        self.timeout.clear()
        self.run(1)
        self.timeout.set(5)
        assert len(self.clock.getDelayedCalls()) == 1
        self.run(6)
        assert self.reached == [pytest.approx(6, abs=0.2)]

    def test_cleared(self) -> None:
        self.timeout.set(5)
        self.timeout.clear()
        self.run(10)
        assert self.reached == []
        assert not self.clock.getDelayedCalls()

    def test_stopped(self) -> None:
        """No timer is left, any number of times."""
        self.timeout.stop()
        self.timeout.set(5)
        self.timeout.stop()
        self.timeout.stop()
        assert not self.clock.getDelayedCalls()

    def test_set_when_it_is_reached(self) -> None:
        timeout = Timeout(self.clock, lambda: timeout.set(5) if len(self.clock.getDelayedCalls()) < 1 else None)
        timeout.set(5)
        self.run(12)
        assert len(self.clock.getDelayedCalls()) == 1
        timeout.stop()
