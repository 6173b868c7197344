"""Handing the inbox over to the owner's programs: in what order, and what may fail."""

from collections.abc import Iterator, Sequence

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.logger import LogEvent, capturedLogs, formatEvent

from meshproto.core.handover import LOAD_RETRY_S, Answer, Verdict
from meshproto.core.inbox import WAIT_S_MAX, Received
from meshproto.core.outbox import BACKOFF_FIRST_S, BACKOFF_MAX_S
from meshproto.errors import Unavailable
from meshproto.net.programs import DRAIN_S
from tests.net.owner import LATER, NOW_MS, TAKEN, Manual, Owner, Prompt, working


@pytest.fixture
def owner() -> Iterator[Owner]:
    yield from working()


def said(events: Sequence[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in events]


# -- the order of things ------------------------------------------------------------------------------------------


def test_one_at_a_time_in_order(owner: Owner) -> None:
    """The next message is given when the one before was answered; the cursor is then on disk."""
    program = Manual()
    owner.start(program)
    owner.arrive("a", "b")
    owner.arrive("c")
    for number, text in enumerate(["a", "b", "c"], start=1):
        assert program.texts == ["a", "b", "c"][:number]
        assert program.texts[-1] == text
        before = program.given[-1].cursor
        assert owner.cursor_on_disk("manual") < before
        program.answer(TAKEN)
        owner.settle()
        assert owner.cursor_on_disk("manual") == before
    assert len(program.given) == 3


def test_more_than_a_page(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """All messages come, however many a page holds, and those that come meanwhile."""
    monkeypatch.setattr("meshproto.net.programs.PAGE_MESSAGES", 3)
    program = Prompt()
    owner.start(program)
    owner.arrive(*range(10))
    owner.arrive(*range(10, 14))
    assert program.texts == list(range(14))


def test_what_came_before_is_not_handed_over(owner: Owner) -> None:
    """A program that is given for the first time begins with what comes from then on."""
    owner.arrive("old")
    program = Prompt()
    owner.start(program)
    owner.arrive("new")
    assert program.texts == ["new"]


def test_a_program_that_was_left_out_goes_on(owner: Owner) -> None:
    """A program that is given again goes on where it was, with what came while it was left out."""
    owner.start(Prompt())
    owner.arrive("a")
    owner.wait(owner.stop())
    owner.start()
    owner.arrive("b")
    owner.wait(owner.stop())
    again = Prompt()
    owner.start(again)
    assert again.texts == ["b"]


def test_one_that_never_will_does_not_stop_the_others(owner: Owner) -> None:
    """The log says which message was left out, and nothing of what was in it or of the program's own words."""
    program = Manual()
    owner.start(program)
    with capturedLogs() as events:
        owner.arrive("secret", "next")
        program.answer(Answer(Verdict.NEVER, "answered 410", "secret is no number"))
        owner.settle()
    (warning,) = said(events)
    assert warning == "manual: message 1 will never be taken (answered 410): going on without it"
    assert program.texts == ["secret", "next"]


def test_one_that_fails_is_given_again(owner: Owner) -> None:
    """What was not taken comes again, before the next, after a pause that grows; the log says so once."""
    program = Manual()
    owner.start(program)
    with capturedLogs() as events:
        owner.arrive("a", "b")
        for attempt in range(1, 4):
            assert program.texts == ["a"] * attempt
            program.answer(LATER)
            owner.run(BACKOFF_FIRST_S / 2 * 2 ** (attempt - 1) - 0.01)
            assert len(program.texts) == attempt
            owner.run(BACKOFF_FIRST_S / 2 * 2 ** (attempt - 1) + 0.01)
        program.answer(TAKEN)
        owner.settle()
    assert program.texts == ["a", "a", "a", "a", "b"]
    assert said(events) == [
        "manual: message 1 is not taken (said later): it will be tried again",
        "manual: message 1 is taken: going on",
    ]


def test_each_at_its_own_pace(owner: Owner) -> None:
    """A program that fails does not hold up the other; `cursor` is where the slower one is, None without any."""
    assert owner.programs.cursor is None
    slow, fast = Manual("slow"), Prompt("fast")
    owner.start(slow, fast)
    owner.arrive("a", "b")
    assert (slow.texts, fast.texts) == (["a"], ["a", "b"])
    assert owner.programs.cursor == 0
    slow.answer(TAKEN)
    owner.settle()
    assert owner.programs.cursor == 1
    assert (owner.cursor_on_disk("slow"), owner.cursor_on_disk("fast")) == (1, 2)


def test_what_the_owner_sees(owner: Owner) -> None:
    """Each program's place, how many messages wait, and what is wrong with it."""
    program = Manual()
    owner.start(program)
    calm = {
        "kind": "manual",
        "target": "by hand",
        "next": 0,
        "behind": 0,
        "attempts": 0,
        "next_try_at": None,
        "reason": None,
    }
    assert owner.shown == [calm]
    owner.arrive("a", "b")
    assert owner.shown == [{**calm, "behind": 2}]
    program.answer(Answer(Verdict.LATER, "exit code 1", "no space"))
    (shown,) = owner.shown
    assert NOW_MS < shown.pop("next_try_at") <= NOW_MS + BACKOFF_FIRST_S * 1000
    del calm["next_try_at"]
    assert shown == {**calm, "behind": 2, "attempts": 1, "reason": "exit code 1: no space"}
    owner.run(BACKOFF_FIRST_S)
    program.answer(TAKEN)
    owner.settle()
    assert owner.shown == [{**calm, "next": 1, "behind": 1, "next_try_at": None}]


# -- what may fail ------------------------------------------------------------------------------------------------


def test_a_disk_that_cannot_be_read(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the inbox cannot be read it is tried again, and the owner sees why."""
    program = Prompt()
    owner.arrive("old")

    with monkeypatch.context() as patch:
        patch.setattr(owner.store.inbox, "page", lambda *_: fail(Unavailable("the disk does not take it: no")))
        owner.start(program)
        (shown,) = owner.shown
        assert shown["reason"] == "the disk does not take it: no"
        assert shown["attempts"] == 0 and shown["next_try_at"] is not None
    owner.arrive("a")
    assert program.texts == []
    owner.run(LOAD_RETRY_S)
    assert program.texts == ["a"]
    assert owner.shown[0]["reason"] is None


def test_a_disk_that_cannot_be_written(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the cursor cannot be saved the handing over goes on, and it is saved when that works again."""
    program = Prompt()
    owner.start(program)
    with monkeypatch.context() as patch, capturedLogs() as events:
        patch.setattr(owner.store, "save_cursor", lambda *_: fail(Unavailable("the disk does not take it: no")))
        owner.arrive("a", "b")
    assert program.texts == ["a", "b"]
    assert any("its cursor is not saved" in line for line in said(events))
    assert owner.cursor_on_disk("manual") == 0
    owner.run(WAIT_S_MAX)
    assert owner.cursor_on_disk("manual") == 2


def test_when_too_many_read(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """When there is no place to wait for messages, the program looks for them every second or so."""
    monkeypatch.setattr(owner.receiving._readers, "_waiters_max", 0)
    program = Prompt()
    owner.start(program)
    owner.arrive("a")
    owner.run(1.0)
    assert program.texts == ["a"]


def test_a_bug_does_not_stop_it(owner: Owner, nothing_logged_as_failure: list[LogEvent]) -> None:
    """A program of ours that raises what it should not is tried again, and the log has the traceback."""

    class Broken(Prompt):
        def give(self, message: Received) -> "Deferred[Answer]":
            if not self.given:
                self.given.append(message)
                raise ZeroDivisionError
            return super().give(message)

    program = Broken()
    owner.start(program)
    owner.arrive("a")
    assert [event["log_failure"].type for event in nothing_logged_as_failure] == [ZeroDivisionError]
    nothing_logged_as_failure.clear()
    owner.run(LOAD_RETRY_S)
    assert program.texts == ["a", "a"]


# -- stopping -----------------------------------------------------------------------------------------------------


def test_a_program_without_work_stops_at_once(owner: Owner) -> None:
    """Waiting for messages, or for the next try, ends when the node stops."""
    waiting, failing = Manual("waiting"), Manual("failing")
    owner.start(waiting)
    assert owner.stop().called
    owner.start(failing)
    owner.arrive("a")
    failing.answer(LATER)
    owner.settle()
    assert owner.stop().called
    assert (waiting.cuts, failing.cuts) == (0, 0)
    assert not owner.receiving._readers._waiting


def test_what_is_under_way_may_end(owner: Owner) -> None:
    """A message that is taken while the node stops is behind the cursor on disk; the next one is not given."""
    program = Manual()
    owner.start(program)
    owner.arrive("a", "b")
    stopped = owner.stop()
    owner.run(DRAIN_S - 0.1)
    assert not stopped.called
    program.answer(TAKEN)
    owner.settle()
    assert stopped.called
    assert owner.cursor_on_disk("manual") == 1
    assert (program.texts, program.cuts) == (["a"], 0)


def test_what_does_not_end_is_cut(owner: Owner) -> None:
    """After DRAIN_S what is under way is cut off, and comes again at the next start."""
    program = Manual()
    owner.start(program)
    owner.arrive("a")
    stopped = owner.stop()
    owner.run(DRAIN_S)
    assert (stopped.called, program.cuts) == (True, 1)
    again = Prompt()
    owner.start(again)
    assert again.texts == ["a"]


def test_pauses_are_bounded(owner: Owner) -> None:
    """However often a program has failed, it is tried again within BACKOFF_MAX_S."""
    program = Manual()
    owner.start(program)
    owner.arrive("a")
    for attempt in range(1, 20):
        assert len(program.given) == attempt
        program.answer(LATER)
        owner.run(BACKOFF_MAX_S)
