"""How messages end that are not delivered, and how their ends get to the disk."""

import random
from collections.abc import Iterable

import pytest

from meshproto.core import outbox as outbox_module
from meshproto.core.outbox import (
    BACKOFF_MAX_S,
    MARK_RETRY_S,
    PLACE_S,
    Attempt,
    Effect,
    Finish,
    Load,
    Outbox,
)
from meshproto.core.queue import Message, Status
from tests.core.outbox_rig import NOW, message, messages, rows


@pytest.fixture
def box() -> Outbox:
    return Outbox(random.Random(1))


def finished(effects: Iterable[Effect]) -> list[Finish]:
    return [effect for effect in effects if isinstance(effect, Finish)]


class TestEnds:
    """Messages that are over before they were delivered: expired, or cancelled."""

    def test_one_that_waits(self, box: Outbox) -> None:
        """One in the middle ends at once and leaves the order of the others."""
        box.add("bob", [message(1)], NOW)
        box.add("bob", messages([2, 3, 4]), NOW)
        assert box.end("bob", [3], Status.CANCELLED, "not wanted", NOW) == [
            Finish((3,), Status.CANCELLED, "not wanted")
        ]
        assert rows(box.answered("bob", {"id1"}, {}, NOW)[1]) == [2, 4]

    def test_the_last_one(self, box: Outbox) -> None:
        """With the last one the queue goes."""
        box.add("bob", [message(1)], NOW)
        box.failed("bob", "unreachable", NOW)
        box.end("bob", [1], Status.EXPIRED, "too late", NOW)
        assert (box.queues, box.waiting) == ({}, 0)

    def test_under_way_and_not_delivered(self, box: Outbox) -> None:
        """One that is under way ends when the attempt has failed, and is not tried again."""
        box.add("bob", messages([1, 2]), NOW)
        box.failed("bob", "unreachable", NOW)
        box.wake("bob", NOW)
        assert box.end("bob", [1], Status.CANCELLED, "not wanted", NOW) == []
        (end,) = box.failed("bob", "unreachable", NOW)
        assert isinstance(end, Finish)
        assert end.rows == (1,)
        assert rows(box.wake("bob", NOW, alive=False)[0]) == [2]

    def test_under_way_and_delivered(self, box: Outbox) -> None:
        """One that is delivered by the attempt under way is delivered."""
        box.add("bob", [message(1)], NOW)
        box.end("bob", [1], Status.CANCELLED, "not wanted", NOW)
        assert box.answered("bob", {"id1"}, {}, NOW) == [Finish((1,), Status.DELIVERED, None)]

    def test_the_first_reason_counts(self, box: Outbox) -> None:
        """One that was cancelled and then expires while it is under way was cancelled."""
        box.add("bob", [message(1)], NOW)
        box.end("bob", [1], Status.CANCELLED, "not wanted", NOW)
        box.end("bob", [1], Status.EXPIRED, "too late", NOW)
        assert [end.status for end in finished(box.failed("bob", "?", NOW))] == [Status.CANCELLED]

    def test_on_disk_only(self, box: Outbox) -> None:
        """One that is not in memory ends likewise, and once."""
        box.restore("bob", "Bob", 3, 0, 3, NOW)
        assert [end.rows for end in finished(box.end("bob", [2], Status.CANCELLED, "x", NOW))] == [(2,)]
        assert box.end("bob", [2], Status.CANCELLED, "x", NOW) == []
        assert (box.waiting, box.queues["bob"].waiting) == (2, 2)
        (attempt, _) = box.loaded("bob", messages([1, 2, 3]), NOW)
        assert rows(attempt) == [1, 3]

    def test_unknown_rows(self, box: Outbox) -> None:
        """A row that has ended already, and a recipient for whom nothing waits, change nothing."""
        box.add("bob", messages([1, 2]), NOW)
        box.answered("bob", {"id1"}, {}, NOW)
        box.marked([1], NOW)
        assert box.end("bob", [1], Status.CANCELLED, "x", NOW) == box.end("eve", [9], Status.CANCELLED, "x", NOW) == []
        assert box.waiting == 1

    def test_what_is_withheld_for_good(self, box: Outbox) -> None:
        """Messages that are for another key, as the owner says, end as refused, honestly; the others go out at once,
        without them."""
        box.add("bob", messages([1, 2]), NOW)
        box.may_have_arrived("bob")
        box.failed("bob", "x", NOW)
        box.add("bob", messages([3, 4]), NOW)
        (attempt,) = box.wake("bob", NOW)
        assert rows(attempt) == [1, 2, 3, 4]
        one, three, again = box.withheld("bob", {1: "no", 3: "never"}, NOW, for_good=True)
        assert one == Finish((1,), Status.REFUSED, "no; it was sent before, without an answer, and may have arrived")
        assert three == Finish((3,), Status.REFUSED, "never")
        assert rows(again) == [2, 4] and box.waiting == 2
        assert box.withheld("bob", {2: "no", 4: "no"}, NOW, for_good=True)[-1] == Finish((4,), Status.REFUSED, "no")
        assert not box.queues and not box.waiting

    def test_what_stands_aside(self, box: Outbox) -> None:
        """Messages that are for another key, as a seed says, wait; what comes after them goes out. They are tried again
        after a while, ever later, from disk, in their place."""
        box.add("bob", messages([1, 2]), NOW)
        queue = box.queues["bob"]
        (others,) = box.withheld("bob", {1: "no"}, NOW, for_good=False)
        assert rows(others) == [2]
        assert box.answered("bob", {"id2"}, {}, NOW) == [Finish((2,), Status.DELIVERED, None)]
        box.marked([2], NOW)
        assert (box.waiting, queue.why, box.status_of("bob", 1)) == (1, "no", Status.LOCATING)
        delays = []
        for _ in range(12):
            due = queue.tried_at
            assert due is not None and box.wake_at == due
            delays.append(due - NOW)
            assert box.tick(due - 0.001) == []
            assert box.tick(due) == [Load("bob", 0)]
            attempt, load = box.loaded("bob", messages([1]), NOW)
            assert rows(attempt) == [1] and load == Load("bob", 1) and queue.tried_at is None
            assert box.withheld("bob", {1: "no"}, NOW, for_good=False) == []
            assert box.loaded("bob", [], NOW) == []
        assert 0.5 <= delays[0] <= 1.0
        assert BACKOFF_MAX_S / 2 <= delays[-1] <= BACKOFF_MAX_S

    def test_what_stands_aside_comes_back_to_its_place(self, box: Outbox) -> None:
        """Before what came after it and waits too; that is read from disk again, and its bytes count once."""
        box.add("bob", messages([1, 2]), NOW)
        box.withheld("bob", {1: "no"}, NOW, for_good=False)
        box.failed("bob", "x", NOW, retry_after_s=100)
        assert box.tick(NOW + 50) == []
        assert box.tick(NOW + 100) == [Load("bob", 0)]
        attempt, load = box.loaded("bob", messages([1, 2]), NOW + 100)
        assert rows(attempt) == [1, 2] and load == Load("bob", 2)
        assert len(finished(box.answered("bob", {"id1", "id2"}, {}, NOW + 100))) == 1
        box.loaded("bob", [], NOW + 100)
        assert not box.queues and not box._bytes

    def test_what_stands_aside_is_tried_when_the_owner_wants(self, box: Outbox) -> None:
        """At once; not for a sign of life from whoever has the name now."""
        box.add("bob", messages([1]), NOW)
        assert box.withheld("bob", {1: "no"}, NOW, for_good=False) == []
        assert box.queues["bob"].tried_at == box.wake_at
        assert box.wake("bob", NOW) == box.hint("bob", NOW, alive=True) == []
        assert box.wake("bob", NOW, alive=False) == [Load("bob", 0)]

    def test_what_stands_aside_ends(self, box: Outbox) -> None:
        """Its owner may cancel it, its time may be over, also while it was under way; it may have arrived before."""
        box.add("bob", messages([1, 2, 3]), NOW)
        box.may_have_arrived("bob")
        box.failed("bob", "x", NOW)
        box.wake("bob", NOW)
        box.end("bob", [2], Status.CANCELLED, "not wanted", NOW)
        (two,) = finished(box.withheld("bob", {1: "no", 2: "no", 3: "no"}, NOW, for_good=False))
        assert (two.rows, two.status) == ((2,), Status.CANCELLED)
        (ends,) = finished(box.end("bob", [1, 3], Status.EXPIRED, "too late", NOW))
        assert (ends.rows, ends.reason) == (
            (1, 3),
            "too late; it was sent before, without an answer, and may have arrived",
        )
        assert not box.queues and not box.waiting

    def test_a_queue_is_of_a_name(self, box: Outbox) -> None:
        """Whoever is asked for is the name, with whatever fingerprint its messages were addressed."""
        (attempt,) = box.add("bob", [message(1, "Bob~kzdvvj2umnduyauf")], NOW)
        assert isinstance(attempt, Attempt) and attempt.to == "Bob"

    def test_what_may_have_arrived(self, box: Outbox) -> None:
        """The reason says so when an attempt may have reached the recipient, and only then."""
        box.add("bob", messages([1]), NOW)
        box.may_have_arrived("bob")
        box.failed("bob", "no answer", NOW)
        box.add("bob", messages([2]), NOW)
        (first, second) = finished(box.end("bob", [1, 2], Status.CANCELLED, "x", NOW))
        assert (first.rows, first.reason) == ((2,), "x")
        assert (second.rows, second.reason) == ((1,), "x; it was sent before, without an answer, and may have arrived")

    def test_the_oldest(self, box: Outbox) -> None:
        """When a later message ends, the oldest that waits is as old as it was."""
        box.add("bob", [message(1)], NOW)
        box.add("bob", [Message(2, "id2", "bob", "", b"2", 10**9, 10**10), message(3)], NOW)
        oldest_at = box.queues["bob"].oldest_at
        box.end("bob", [3], Status.CANCELLED, "x", NOW)
        assert box.queues["bob"].oldest_at == oldest_at
        box.answered("bob", {"id1"}, {}, NOW)
        assert box.queues["bob"].oldest_at == 10**9

    def test_nothing_went_out(self, box: Outbox) -> None:
        """An attempt that reached nobody leaves no doubt."""
        box.add("bob", messages([1]), NOW)
        box.failed("bob", "refused", NOW)
        assert [end.reason for end in finished(box.end("bob", [1], Status.EXPIRED, "refused", NOW))] == ["refused"]


class TestMarks:
    """An end counts when it is on disk."""

    def test_not_yet(self, box: Outbox) -> None:
        """Until its mark is on disk a delivered message is still delivering for whoever asks."""
        box.add("bob", [message(1)], NOW)
        box.found("bob")
        box.answered("bob", {"id1"}, {}, NOW)
        assert box.status_of("bob", 1) is Status.DELIVERING

    def test_refused_by_the_disk(self, box: Outbox) -> None:
        """A mark that the disk refuses is written again, MARK_RETRY_S later."""
        box.add("bob", [message(1)], NOW)
        (finish,) = finished(box.answered("bob", {"id1"}, {}, NOW))
        box.not_marked(finish, NOW)
        assert box.wake_at == NOW + MARK_RETRY_S
        assert box.tick(NOW + 0.1) == []
        assert box.tick(NOW + MARK_RETRY_S) == [finish]
        assert box.wake_at is None

    def test_not_sent_again(self, box: Outbox) -> None:
        """What the disk still shows as waiting because the mark is not there yet is loaded and not sent again."""
        box.restore("bob", "Bob", 3, 0, 3, NOW)
        box.loaded("bob", messages([1, 2]), NOW)
        box.answered("bob", {"id1", "id2"}, {}, NOW)
        box.queues["bob"].row_known = 0  # as when memory was short
        (attempt, *_) = box.loaded("bob", messages([1, 2, 3]), NOW)
        assert rows(attempt) == [3]

    def test_nobody_looks_for_places_meanwhile(self, box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
        """While the disk owes marks no place is given away, and no time is said at which one would be."""
        monkeypatch.setattr(outbox_module, "UNMARKED_MAX", 1)
        monkeypatch.setattr(outbox_module, "DELIVERIES_MAX", 2)
        for row, key in enumerate(("bob", "carol", "dan"), 1):
            box.add(key, [message(row, key)], NOW)
        assert box.wake_at == NOW + PLACE_S
        box.answered("bob", {"id1"}, {}, NOW)
        assert box.wake_at is None
        assert box.marked([1], NOW) == [Attempt("dan", "dan", (message(3, "dan"),))]

    def test_a_bound(self, box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
        """While UNMARKED_MAX ends are not on disk nothing more is sent; then it goes on."""
        monkeypatch.setattr(outbox_module, "UNMARKED_MAX", 2)
        box.add("bob", messages([1, 2]), NOW)
        assert len(box.answered("bob", {"id1", "id2"}, {}, NOW)) == 1
        assert box.add("eve", [message(3, "eve")], NOW) == []
        assert [rows(effect) for effect in box.marked([1], NOW)] == [[3]]
