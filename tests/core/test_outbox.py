"""The outbox's rules one by one; :mod:`tests.core.test_outbox_machine` mixes them."""

import random
from collections.abc import Iterable

import pytest

from meshproto.core import outbox as outbox_module
from meshproto.core.envelope import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, MESSAGE_BYTES_MAX
from meshproto.core.outbox import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    DELIVERIES_MAX,
    TRANSITIONS,
    TTL_S,
    Attempt,
    Effect,
    Finish,
    Load,
    Message,
    Outbox,
    Status,
)

NOW = 1000.0


def message(row: int, to: str = "bob", text: bytes = b'"hi"', ttl_s: float = TTL_S) -> Message:
    return Message(row, f"id{row}", to, "", text, int(NOW * 1000), int((NOW + ttl_s) * 1000))


def messages(rows: Iterable[int], to: str = "bob", text: bytes = b'"hi"') -> list[Message]:
    return [message(row, to, text) for row in rows]


def rows(effect: Effect) -> list[int]:
    assert isinstance(effect, Attempt)
    return [sent.row for sent in effect.batch]


@pytest.fixture
def box() -> Outbox:
    return Outbox(random.Random(1))


class TestStatus:
    def test_ends(self) -> None:
        """Delivered, expired, refused and cancelled are final; the others are not."""
        final = {status for status in Status if status.final}
        assert final == {Status.DELIVERED, Status.EXPIRED, Status.REFUSED, Status.CANCELLED}

    def test_no_way_back(self) -> None:
        """No chain of transitions leads to a status again."""

        def reachable(status: Status) -> set[Status]:
            return set(TRANSITIONS[status]).union(*(reachable(after) for after in TRANSITIONS[status]))

        assert all(status not in reachable(status) for status in Status)

    def test_always_an_end(self) -> None:
        """Whatever has not ended may expire or be cancelled."""
        assert all({Status.EXPIRED, Status.CANCELLED} <= TRANSITIONS[status] for status in Status if not status.final)

    def test_as_a_message_goes(self, box: Outbox) -> None:
        """A message is queued behind the batch under way, then locating, then delivering."""
        box.add("bob", [message(1)], NOW)
        box.add("bob", [message(2)], NOW)
        queue = box.queues["bob"]
        assert [queue.status_of(1), queue.status_of(2)] == [Status.LOCATING, Status.QUEUED]
        box.found("bob")
        assert [queue.status_of(1), queue.status_of(2)] == [Status.DELIVERING, Status.QUEUED]
        box.answered("bob", {"id1"}, {}, NOW)
        assert queue.status_of(2) is Status.LOCATING

    def test_tried_before(self, box: Outbox) -> None:
        """A message that was found once stays delivering while it is looked up again."""
        box.add("bob", [message(1)], NOW)
        box.found("bob")
        box.failed("bob", "unreachable", NOW)
        box.wake("bob", NOW)
        assert box.queues["bob"].status_of(1) is Status.DELIVERING

    def test_after_an_expiry(self, box: Outbox) -> None:
        """What comes after a batch that was found and expired starts from locating."""
        box.add("bob", [message(1, ttl_s=1)], NOW)
        box.found("bob")
        box.add("bob", [message(2)], NOW)
        box.failed("bob", "unreachable", NOW + 2)
        box.wake("bob", NOW + 2)
        assert box.queues["bob"].status_of(2) is Status.LOCATING


class TestBatches:
    def test_gathers(self, box: Outbox) -> None:
        """What comes while a batch is under way goes out together, in order, when it has ended."""
        (first,) = box.add("bob", [message(1)], NOW)
        assert box.add("bob", messages([2, 3]), NOW) == []
        _, second = box.answered("bob", {"id1"}, {}, NOW)
        assert (rows(first), rows(second)) == ([1], [2, 3])

    def test_messages_max(self, box: Outbox) -> None:
        """A batch holds BATCH_MESSAGES_MAX messages; the rest stays on disk and the next batch is loaded."""
        attempt, load = box.add("bob", messages(range(1, BATCH_MESSAGES_MAX + 2)), NOW)
        assert rows(attempt) == list(range(1, BATCH_MESSAGES_MAX + 1))
        assert load == Load("bob", BATCH_MESSAGES_MAX)

    def test_bytes_max(self, box: Outbox) -> None:
        """A batch holds BATCH_BYTES_MAX bytes of text, and no byte more."""
        text = b"x" * MESSAGE_BYTES_MAX
        (attempt, *_) = box.add("bob", [*messages(range(1, 5), text=text), message(5, text=b"1")], NOW)
        assert rows(attempt) == [1, 2, 3, 4]
        assert BATCH_BYTES_MAX == 4 * MESSAGE_BYTES_MAX

    def test_one_message_always_fits(self, box: Outbox) -> None:
        """A message larger than a batch travels alone."""
        box.add("eve", messages([1]), NOW)
        box.add("eve", [message(2, text=b"x" * (BATCH_BYTES_MAX + 1)), message(3)], NOW)
        effects = box.answered("eve", {"id1"}, {}, NOW)
        assert rows(effects[1]) == [2]


class TestAnswers:
    def test_all_kinds(self, box: Outbox) -> None:
        """Acknowledged ones are delivered, refused ones refused with their reason, the others tried again at once;
        ids that were not in the batch are passed over."""
        box.add("bob", messages([1]), NOW)
        box.add("bob", messages([2, 3, 4]), NOW)
        box.answered("bob", {"id1"}, {}, NOW)
        effects = box.answered("bob", {"id3", "other"}, {"id2": "too deep", "another": "?"}, NOW)
        assert effects == [
            Finish((message(3),), Status.DELIVERED, None),
            Finish((message(2),), Status.REFUSED, "too deep"),
            Attempt("bob", "bob", (message(4),)),
        ]

    def test_delivered_wins(self, box: Outbox) -> None:
        """An id both acknowledged and refused is on the recipient's disk."""
        box.add("bob", [message(1)], NOW)
        assert box.answered("bob", {"id1"}, {"id1": "no"}, NOW) == [Finish((message(1),), Status.DELIVERED, None)]
        assert box.queues == {}

    def test_nothing_acknowledged(self, box: Outbox) -> None:
        """A receipt that names nothing of the batch is a failure: the recipient waits."""
        box.add("bob", [message(1)], NOW)
        assert box.answered("bob", {"other"}, {}, NOW) == []
        assert box.queues["bob"].next_try is not None
        assert box.queues["bob"].reason == "the recipient's node acknowledged nothing"

    def test_success_ends_the_back_off(self, box: Outbox) -> None:
        """After a delivery the next failure waits as a first one does."""
        box.add("bob", messages([1]), NOW)
        for _ in range(5):
            box.failed("bob", "unreachable", NOW)
            box.wake("bob", NOW)
        box.add("bob", messages([2]), NOW)
        box.answered("bob", {"id1"}, {}, NOW)
        box.failed("bob", "unreachable", NOW)
        assert delay_s(box) <= BACKOFF_FIRST_S


def delay_s(box: Outbox, key: str = "bob", now: float = NOW) -> float:
    next_try = box.queues[key].next_try
    assert next_try is not None
    return next_try - now


class TestBackOff:
    def test_doubles(self) -> None:
        """A second, doubling to five minutes, each between half of it and all of it."""
        shares: list[float] = []
        for seed in range(50):
            box, now = Outbox(random.Random(seed)), NOW
            box.add("bob", [message(1)], now)
            for nominal_s in (1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300):
                assert box.failed("bob", "unreachable", now) == []
                shares.append(delay_s(box, now=now) / nominal_s)
                assert box.wake_at is not None
                now = box.wake_at
                assert len(box.tick(now)) == 1
        assert 0.5 <= min(shares) < 0.52
        assert 0.98 < max(shares) <= 1.0

    def test_for_ever(self, box: Outbox) -> None:
        """However often it fails, the wait is at most BACKOFF_MAX_S."""
        box.add("bob", [message(1)], NOW)
        box.queues["bob"].attempts = 10**6
        box.failed("bob", "unreachable", NOW)
        assert BACKOFF_MAX_S / 2 <= delay_s(box) <= BACKOFF_MAX_S

    def test_not_before_time(self, box: Outbox) -> None:
        """A tick before the next try starts nothing."""
        box.add("bob", [message(1)], NOW)
        box.failed("bob", "unreachable", NOW)
        assert box.wake_at is not None
        assert box.tick(box.wake_at - 0.001) == []

    def test_more_messages_do_not_hurry(self, box: Outbox) -> None:
        """A message for someone who is waited for does not start an attempt."""
        box.add("bob", [message(1)], NOW)
        box.failed("bob", "unreachable", NOW)
        assert box.add("bob", [message(2)], NOW) == []

    def test_wake(self, box: Outbox) -> None:
        """A sign of life starts the attempt at once, and the tick that had been due starts no other."""
        box.add("bob", [message(1)], NOW)
        box.failed("bob", "unreachable", NOW)
        assert box.wake("bob", NOW) == [Attempt("bob", "bob", (message(1),))]
        assert box.tick(NOW + 2) == []

    def test_wake_under_way(self, box: Outbox) -> None:
        """A sign of life that comes while an attempt is failing is not forgotten: the next wait is a short one."""
        box.add("bob", [message(1)], NOW)
        box.queues["bob"].attempts = 10
        assert box.wake("bob", NOW) == []
        box.failed("bob", "unreachable", NOW)
        assert delay_s(box) <= BACKOFF_FIRST_S

    def test_wake_of_a_stranger(self, box: Outbox) -> None:
        """A sign of life from someone for whom nothing waits changes nothing."""
        assert box.wake("eve", NOW) == []
        assert box.queues == {}


class TestExpiry:
    def test_reason(self, box: Outbox) -> None:
        """What expires says why it could not be delivered."""
        box.add("bob", [message(1, ttl_s=1)], NOW)
        assert box.failed("bob", "unreachable", NOW + 1) == [
            Finish((message(1, ttl_s=1),), Status.EXPIRED, "unreachable")
        ]
        assert (box.queues, box.waiting) == ({}, 0)

    def test_to_the_millisecond(self, box: Outbox) -> None:
        """A message is not attempted any more in the millisecond of its end."""
        box.add("bob", [message(1)], NOW)
        box.add("bob", [message(2, ttl_s=1)], NOW)
        (_, expired) = box.answered("bob", {"id1"}, {}, NOW + 1)
        assert expired == Finish((message(2, ttl_s=1),), Status.EXPIRED, "not delivered in time")

    def test_the_others_go(self, box: Outbox) -> None:
        """One that expires in the middle leaves the order of the others."""
        box.add("bob", [message(1)], NOW)
        box.add("bob", [message(2), message(3, ttl_s=1), message(4)], NOW)
        (_, expired, attempt) = box.answered("bob", {"id1"}, {}, NOW + 2)
        assert isinstance(expired, Finish)
        assert rows(attempt) == [2, 4]


class TestFairness:
    def test_deliveries_max(self, box: Outbox) -> None:
        """DELIVERIES_MAX recipients are served at a time; the next one when one of them has ended, well or not."""
        for number in range(DELIVERIES_MAX):
            assert len(box.add(f"u{number}", [message(number + 1, f"u{number}")], NOW)) == 1
        assert box.add("late", [message(1000, "late")], NOW) == []
        assert box.add("later", [message(1001, "later")], NOW) == []
        (attempt,) = box.failed("u5", "unreachable", NOW)
        assert attempt == Attempt("late", "late", (message(1000, "late"),))
        (_, attempt) = box.answered("u6", {"id7"}, {}, NOW)
        assert attempt == Attempt("later", "later", (message(1001, "later"),))

    def test_the_dead_cost_nothing(self, box: Outbox) -> None:
        """A live recipient among a thousand dead ones gets every message through in its turn, while each of the dead
        is tried once and then waited for."""
        tried: list[str] = []
        todo: list[Effect] = []
        for number in range(1000):
            todo += box.add(f"dead{number}", [message(number + 1, f"dead{number}")], NOW)
        todo += box.add("live", [message(5000, "live")], NOW)
        while todo:
            effect = todo.pop(0)
            if isinstance(effect, Attempt):
                tried.append(effect.key)
                if effect.key == "live":
                    todo += box.answered("live", {effect.batch[0].id}, {}, NOW)
                else:
                    todo += box.failed(effect.key, "unreachable", NOW)
        assert sorted(tried) == sorted(["live", *(f"dead{number}" for number in range(1000))])

    def test_turns(self, box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
        """One who gets a lot of mail gives way to the others after each batch."""
        monkeypatch.setattr(outbox_module, "DELIVERIES_MAX", 1)
        box.add("busy", [message(1, "busy")], NOW)
        box.add("busy", [message(2, "busy")], NOW)
        box.add("quiet", [message(3, "quiet")], NOW)
        assert rows(box.answered("busy", {"id1"}, {}, NOW)[1]) == [3]
        assert rows(box.answered("quiet", {"id3"}, {}, NOW)[1]) == [2]
