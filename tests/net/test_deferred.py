"""Views of work that goes on, and waiting for something to happen to a key."""

import gc
import weakref
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from meshproto.net.deferred import Soon, Task, Waiters, apart, shield

result_of = SynchronousTestCase().successResultOf
failure_of = SynchronousTestCase().failureResultOf
no_result_of = SynchronousTestCase().assertNoResult

WAITERS_MAX = 3


class Told:
    """What came of a task."""

    def __init__(self, work: Coroutine[Deferred[Any], Any, Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self.times = 0
        self.task = Task(work, self._done, self._failed)

    def _done(self, result: Any) -> None:
        self.times += 1
        self.result = result

    def _failed(self, error: BaseException) -> None:
        self.times += 1
        self.error = error


class TestTask:
    def test_what_need_not_wait(self) -> None:
        """Is over at once, also what has awaited something that was there."""

        async def work() -> int:
            return await succeed(3)

        told = Told(work())
        assert (told.result, told.times, told.task.over) == (3, 1, True)

    def test_what_fails_before_it_waits(self) -> None:
        async def work() -> int:
            raise KeyError("no")

        told = Told(work())
        assert isinstance(told.error, KeyError)
        assert told.task.over

    def test_what_waits(self) -> None:
        """More than once, for what succeeds and what fails."""
        first: Deferred[int] = Deferred()
        second: Deferred[int] = Deferred()
        third: Deferred[int] = Deferred()

        async def work() -> list[int]:
            results = [await first]
            try:
                await second
            except ValueError:
                results.append(-1)
            return [*results, await third]

        told = Told(work())
        third.callback(3)
        first.callback(1)
        assert (told.times, told.task.over) == (0, False)
        second.errback(ValueError("no"))
        assert (told.result, told.times, told.task.over) == ([1, -1, 3], 1, True)

    def test_what_fails_after_it_has_waited(self) -> None:
        waits_for: Deferred[int] = Deferred()

        async def work() -> int:
            return 1 // await waits_for

        told = Told(work())
        waits_for.callback(0)
        assert isinstance(told.error, ZeroDivisionError)

    def test_cancelled(self) -> None:
        """What it waits for is, and it may see to that; once it is over there is nothing to cancel."""
        cancelled: list[object] = []
        waits_for: Deferred[int] = Deferred(cancelled.append)
        seen: list[str] = []

        async def work() -> int:
            try:
                return await waits_for
            finally:
                seen.append("the end")

        told = Told(work())
        told.task.cancel()
        assert isinstance(told.error, CancelledError)
        told.task.cancel()
        assert (cancelled, seen, told.times) == ([waits_for], ["the end"], 1)

    def test_leaves_no_garbage(self) -> None:
        """Though whoever is told holds the task."""

        async def work(waits_for: Deferred[int]) -> int:
            return await waits_for

        gc.collect()
        gc.disable()
        try:
            for waits_for in (succeed(1), Deferred[int]()):
                told = Told(work(waits_for))
                if not waits_for.called:
                    waits_for.callback(1)
                gone = weakref.ref(told)
                del told
                assert gone() is None
        finally:
            gc.enable()


class TestSoon:
    """Awaited by a coroutine that a :class:`Task` runs, or `ensureDeferred`."""

    def test_told(self) -> None:
        """With a result, or a failure."""

        async def work(soon: Soon[int]) -> int:
            return 6 // await soon

        for result, error in ((3, None), (0, ZeroDivisionError), (Failure(KeyError("no")), KeyError)):
            soon: Soon[int] = Soon()
            told = Told(work(soon))
            soon.tell(result)
            assert soon.over
            soon.tell(7)
            assert (told.times, told.result) == (1, 2 if error is None else None)
            assert isinstance(told.error, error or type(None))
            soon = Soon()
            deferred = ensureDeferred(work(soon))
            no_result_of(deferred)
            soon.tell(result)
            assert result_of(deferred) == 2 if error is None else failure_of(deferred, error)

    def test_cancelled(self) -> None:
        """Whoever awaits it hears so, and nothing more."""

        async def work(soon: Soon[int]) -> int:
            return await soon

        soon: Soon[int] = Soon()
        told = Told(work(soon))
        told.task.cancel()
        soon.tell(3)
        assert isinstance(told.error, CancelledError)
        assert told.times == 1
        soon = Soon()
        deferred = ensureDeferred(work(soon))
        deferred.cancel()
        soon.tell(3)
        failure_of(deferred, CancelledError)


class TestApart:
    @staticmethod
    async def wait(view: Soon[int]) -> int:
        return await view

    def test_result_and_failure(self) -> None:
        """Also when it is there at once."""

        async def work(waits_for: Deferred[int]) -> int:
            return 6 // await waits_for

        waits_for: Deferred[int] = Deferred()
        told = Told(self.wait(apart(work(waits_for))))
        assert not told.task.over
        waits_for.callback(3)
        assert told.result == 2
        assert Told(self.wait(apart(work(succeed(3))))).result == 2
        assert isinstance(Told(self.wait(apart(work(succeed(0))))).error, ZeroDivisionError)

    def test_cancelled(self) -> None:
        """Whoever waits no longer hears so at once, and the work goes on; how it ends is nobody's business."""
        seen: list[int] = []

        async def work(waits_for: Deferred[int]) -> int:
            seen.append(6 // await waits_for)
            return seen[-1]

        for result in (3, 0):
            waits_for: Deferred[int] = Deferred()
            told = Told(self.wait(apart(work(waits_for))))
            told.task.cancel()
            assert isinstance(told.error, CancelledError)
            assert not waits_for.called
            waits_for.callback(result)
            assert told.times == 1
        assert seen == [2]


class TestShield:
    def test_result(self) -> None:
        """The view fires as the work does."""
        work: Deferred[int] = Deferred()
        view = shield(work)
        no_result_of(view)
        work.callback(5)
        assert result_of(view) == 5

    def test_done_already(self) -> None:
        """The view of work that is done has fired."""
        work: Deferred[int] = Deferred()
        work.callback(5)
        assert result_of(shield(work)) == 5

    def test_failure(self) -> None:
        """A failure passes, and is the viewer's to handle."""
        work: Deferred[int] = Deferred()
        view = shield(work)
        work.errback(KeyError("no"))
        failure_of(view, KeyError)

    def test_cancelled(self) -> None:
        """Cancelling the view ends the view at once and leaves the work alone."""
        stopped: list[Deferred[int]] = []
        work: Deferred[int] = Deferred(stopped.append)
        view = shield(work)
        view.cancel()
        failure_of(view, CancelledError)
        assert not stopped
        assert not work.called
        work.callback(5)
        assert work.called

    def test_cancelled_then_failed(self) -> None:
        """The failure of work that nobody looks at any more is nobody's unhandled error."""
        work: Deferred[int] = Deferred()
        view = shield(work)
        view.cancel()
        failure_of(view, CancelledError)
        work.errback(KeyError("no"))


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    yield clock
    assert not clock.getDelayedCalls(), "a timer is left of someone who waits no longer"


@pytest.fixture
def waiters(clock: Clock) -> Waiters[str, int]:
    return Waiters(clock, WAITERS_MAX)


class TestWaiters:
    def test_told(self, waiters: Waiters[str, int]) -> None:
        """Everyone who waits for the key hears what is told, once; the others wait on."""
        first, second, other = (waiters.wait(key, 5) for key in ("a", "a", "b"))
        waiters.tell("a", 1)
        waiters.tell("a", 2)
        assert [result_of(first), result_of(second)] == [1, 1]
        no_result_of(other)
        waiters.tell_all(0)
        assert result_of(other) == 0

    def test_nobody_waits(self, waiters: Waiters[str, int]) -> None:
        """What is told to nobody is not kept for whoever comes later."""
        waiters.tell("a", 1)
        waiters.tell_all(1)
        late = waiters.wait("a", 5)
        no_result_of(late)
        waiters.tell("a", 2)
        assert result_of(late) == 2

    def test_timeout(self, clock: Clock, waiters: Waiters[str, int]) -> None:
        """When the time is over the waiter hears None, and the others of the key wait on."""
        short, long = waiters.wait("a", 5), waiters.wait("a", 6)
        clock.advance(4.9)
        no_result_of(short)
        clock.advance(0.1)
        assert result_of(short) is None
        waiters.tell("a", 1)
        assert result_of(long) == 1

    def test_cancel(self, waiters: Waiters[str, int]) -> None:
        """Who hangs up is forgotten, and tells nobody else."""
        gone, stays = waiters.wait("a", 5), waiters.wait("a", 5)
        gone.cancel()
        failure_of(gone, CancelledError)
        waiters.tell("a", 1)
        assert result_of(stays) == 1

    @pytest.mark.parametrize("way", ["told", "timeout", "cancelled"])
    def test_full(self, clock: Clock, waiters: Waiters[str, int], way: str) -> None:
        """As many as may wait, and there is room again whichever way one of them ends."""
        waiting = [waiters.wait(str(number), 5 + number) for number in range(WAITERS_MAX)]
        assert waiters.full
        if way == "told":
            waiters.tell("0", 1)
        elif way == "timeout":
            clock.advance(5)
        else:
            waiting[0].cancel()
            failure_of(waiting[0], CancelledError)
        assert not waiters.full
        again = waiters.wait("again", 5)
        assert waiters.full
        waiters.tell_all(7)
        assert [result_of(one) for one in (*waiting[1:], again)] == [7, 7, 7]
        assert not waiters.full

    def test_waits_again(self, waiters: Waiters[str, int]) -> None:
        """Who waits again on being told hears the next thing, not the same one."""
        heard: list[int | None] = []

        def again(value: int | None) -> None:
            heard.append(value)
            if value is not None and value < 3:
                waiters.wait("a", 5).addCallback(again)

        waiters.wait("a", 5).addCallback(again)
        for value in (1, 2, 3, 4):
            waiters.tell("a", value)
        assert heard == [1, 2, 3]

    def test_one_hangs_up_on_the_other(self, waiters: Waiters[str, int]) -> None:
        """A waiter that is cancelled by the one told before it ends as cancelled, and is counted once."""
        first, second = waiters.wait("a", 5), waiters.wait("a", 5)
        first.addCallback(lambda _: second.cancel())
        failures: list[Failure] = []
        second.addErrback(failures.append)
        waiters.tell("a", 1)
        assert [failure.type for failure in failures] == [CancelledError]
        for key in range(WAITERS_MAX):
            assert not waiters.full
            waiters.wait(str(key), 5)
        waiters.tell_all(0)
