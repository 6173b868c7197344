"""What the outbox keeps in memory and what it leaves to the disk, and how much of it there may be."""

import random
from collections.abc import Iterable

import pytest

from meshproto.core import outbox as outbox_module
from meshproto.core.envelope import BATCH_MESSAGES_MAX, MESSAGE_BYTES_MAX
from meshproto.core.outbox import (
    DOUBTFUL_MAX,
    MEMORY_BYTES_MAX,
    OUTBOX_FULL_RETRY_S,
    OUTBOX_MESSAGES_MAX,
    RECIPIENT_MESSAGES_MAX,
    Attempt,
    Effect,
    Finish,
    Load,
    Outbox,
)
from meshproto.core.queue import Message, Status
from meshproto.errors import SlowDown

NOW = 1000.0
LARGE = b"x" * MESSAGE_BYTES_MAX


def message(row: int, to: str = "bob", text: bytes = b'"hi"') -> Message:
    return Message(row, f"id{row}", to, "", text, int(NOW * 1000), 10**9)


def messages(rows: Iterable[int], to: str = "bob") -> list[Message]:
    return [message(row, to) for row in rows]


def attempts(effects: Iterable[Effect]) -> list[Attempt]:
    return [effect for effect in effects if isinstance(effect, Attempt)]


def loads(effects: Iterable[Effect]) -> list[Load]:
    return [effect for effect in effects if isinstance(effect, Load)]


@pytest.fixture
def box() -> Outbox:
    return Outbox(random.Random(1))


class TestRoom:
    def test_for_a_recipient(self, box: Outbox) -> None:
        """The message after RECIPIENT_MESSAGES_MAX for one recipient is refused, also while those before it are still
        being written; others have room."""
        box.restore("bob", "Bob", RECIPIENT_MESSAGES_MAX - 1, 0, 1, NOW)
        box.reserve("bob", "Bob")
        with pytest.raises(SlowDown, match="100000 messages wait for Bob already") as refused:
            box.reserve("bob", "Bob")
        assert refused.value.retry_after_s == OUTBOX_FULL_RETRY_S
        box.reserve("eve", "Eve")
        box.release("bob")
        box.reserve("bob", "Bob")

    def test_for_all(self, box: Outbox) -> None:
        """The message after OUTBOX_MESSAGES_MAX is refused, whoever it is for."""
        each = OUTBOX_MESSAGES_MAX // 20
        for number in range(20):
            box.restore(f"u{number}", f"u{number}", each - (number == 19), 0, 1, NOW)
        box.reserve("eve", "Eve")
        with pytest.raises(SlowDown, match="the outbox is full"):
            box.reserve("zoe", "Zoe")

    def test_for_recipients(self, box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
        """A message for one recipient more than RECIPIENTS_MAX is refused; those who are there have room."""
        monkeypatch.setattr(outbox_module, "RECIPIENTS_MAX", 2)
        box.add("bob", [message(1)], NOW)
        box.reserve("eve", "Eve")
        with pytest.raises(SlowDown, match="messages wait for 2 recipients already"):
            box.reserve("zoe", "Zoe")
        box.reserve("bob", "Bob")
        box.reserve("eve", "Eve")


class TestMemory:
    def test_past_the_limit(self, box: Outbox) -> None:
        """What comes when MEMORY_BYTES_MAX is reached stays on disk, and a recipient whose first message that is gets
        it nevertheless: it is loaded in its turn."""
        for number in range(MEMORY_BYTES_MAX // MESSAGE_BYTES_MAX):
            box.add(f"u{number % 63}", [message(number + 1, f"u{number % 63}", LARGE)], NOW)
        assert box.add("late", [message(9999, "late")], NOW) == [Load("late", 0)]
        assert box.loaded("late", [message(9999, "late")], NOW) == [Attempt("late", "late", (message(9999, "late"),))]

    def test_the_dead_hold_nothing(self, box: Outbox) -> None:
        """However many recipients are waited for, memory stays within the limit and a batch for each one served."""
        rows = iter(range(1, 10**6))
        todo: list[Effect] = []
        held = 0
        for number in range(400):
            todo += box.restore(f"u{number}", f"u{number}", 4, 0, 10**6, NOW)
        while todo:
            effect = todo.pop(0)
            if isinstance(effect, Load):
                found = [message(next(rows), effect.key, LARGE) for _ in range(4)]
                todo += box.loaded(effect.key, found, NOW)
            elif isinstance(effect, Attempt):
                todo += box.failed(effect.key, "unreachable", NOW)
            held = max(held, box._bytes)
        assert all(queue.next_try is not None for queue in box.queues.values())
        assert MEMORY_BYTES_MAX <= held <= MEMORY_BYTES_MAX + DOUBTFUL_MAX * 4 * MESSAGE_BYTES_MAX

    def test_loaded_while_it_failed(self, box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
        """A batch that arrives from the disk for someone who is waited for by now is left to the disk."""
        monkeypatch.setattr(outbox_module, "MEMORY_BYTES_MAX", 10)
        box.restore("bob", "Bob", 4, 0, 10**6, NOW)
        box.loaded("bob", [message(1)], NOW)
        box.failed("bob", "unreachable", NOW)
        box.loaded("bob", [message(2), message(3)], NOW)
        queue = box.queues["bob"]
        assert (list(queue.ready), queue.row_known, queue.on_disk, box._bytes) == ([], 0, True, 0)

    def test_nothing_more_while_it_failed(self, box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
        """When memory is short and the disk has no more, what is waited for is not forgotten."""
        monkeypatch.setattr(outbox_module, "MEMORY_BYTES_MAX", 10)
        box.restore("bob", "Bob", 1, 0, 10**6, NOW)
        box.loaded("bob", [message(1)], NOW)
        box.failed("bob", "unreachable", NOW)
        box.add("eve", [message(2, "eve"), message(3, "eve")], NOW)
        assert box.loaded("bob", [], NOW) == []
        assert box.wake("bob", NOW) == [Load("bob", 0)]

    def test_gathering_stops_at_a_batch(self, box: Outbox) -> None:
        """Besides the batch under way a queue holds about one more."""
        box.add("bob", messages([1]), NOW)
        box.add("bob", messages(range(2, 5000)), NOW)
        assert len(box.queues["bob"].ready) == BATCH_MESSAGES_MAX


class TestLoading:
    def test_ahead(self, box: Outbox) -> None:
        """While one batch is under way the next is loaded, and goes out when the first has ended."""
        box.add("bob", messages([1]), NOW)
        box.add("bob", messages(range(2, 2002)), NOW)
        _, attempt, load = box.answered("bob", {"id1"}, {}, NOW)
        assert load == Load("bob", BATCH_MESSAGES_MAX + 1)
        assert box.loaded("bob", messages(range(1002, 2002)), NOW) == []
        assert isinstance(attempt, Attempt)
        (following,) = attempts(box.answered("bob", {sent.id for sent in attempt.batch}, {}, NOW))
        assert following.batch == tuple(messages(range(1002, 2002)))

    def test_nothing_more(self, box: Outbox) -> None:
        """When the disk has no more, what comes then is kept in memory again."""
        box.restore("bob", "Bob", 1, 0, 10**6, NOW)
        box.loaded("bob", messages([1]), NOW)
        assert box.loaded("bob", [], NOW) == []
        box.add("bob", messages([2]), NOW)
        assert list(box.queues["bob"].ready) == messages([2])

    def test_accepted_while_loading(self, box: Outbox) -> None:
        """A message that is told and loaded while the last one before it is acknowledged is there once."""
        box.restore("bob", "Bob", 1, 0, 10**6, NOW)
        _, load = box.loaded("bob", messages([1]), NOW)
        assert load == Load("bob", 1)
        box.answered("bob", {"id1"}, {}, NOW)
        assert box.add("bob", messages([2]), NOW) == []
        (attempt,) = attempts(box.loaded("bob", messages([2]), NOW))
        assert attempt.batch == (message(2),)
        box.loaded("bob", [], NOW)
        assert box.answered("bob", {"id2"}, {}, NOW) == [Finish((2,), Status.DELIVERED, None)]
        assert (box.queues, box.waiting, box._bytes) == ({}, 0, 0)

    def test_refused(self, box: Outbox) -> None:
        """When the disk does not give a batch the recipient waits, and it is asked again."""
        assert box.restore("bob", "Bob", 1, 0, 10**6, NOW) == [Load("bob", 0)]
        assert box.not_loaded("bob", "the disk is full", NOW) == []
        assert box.queues["bob"].reason == "the disk is full"
        assert box.wake_at is not None
        assert box.tick(box.wake_at) == [Load("bob", 0)]

    def test_refused_while_under_way(self, box: Outbox) -> None:
        """When the disk does not give the batch after the one under way it is asked again when that has ended."""
        box.restore("bob", "Bob", 2, 0, 10**6, NOW)
        box.loaded("bob", messages([1]), NOW)
        assert box.not_loaded("bob", "the disk is full", NOW) == []
        assert box.answered("bob", {"id1"}, {}, NOW) == [
            Finish((1,), Status.DELIVERED, None),
            Load("bob", 1),
        ]

    def test_refused_when_nothing_waits(self, box: Outbox) -> None:
        """A queue that was kept for a load that then failed does not stay behind."""
        box.restore("bob", "Bob", 1, 0, 10**6, NOW)
        box.loaded("bob", messages([1]), NOW)
        box.answered("bob", {"id1"}, {}, NOW)
        box.not_loaded("bob", "the disk is full", NOW)
        assert box.queues == {}


class TestRestart:
    def test_a_few_at_a_time(self, box: Outbox) -> None:
        """After a restart DOUBTFUL_MAX queues are loaded at a time, and attempted before the next are loaded."""
        effects: list[Effect] = []
        for number in range(DOUBTFUL_MAX + 2):
            effects += box.restore(f"u{number}", f"u{number}", 1, 0, 10**6, NOW)
        assert len(loads(effects)) == len(effects) == DOUBTFUL_MAX
        attempt, load = box.loaded("u0", messages([1], "u0"), NOW)
        assert (attempt, load) == (Attempt("u0", "u0", (message(1, "u0"),)), Load("u0", 1))
        box.loaded("u0", [], NOW)
        assert loads(box.failed("u0", "unreachable", NOW)) == [Load(f"u{DOUBTFUL_MAX}", 0)]

    def test_what_is_shown(self, box: Outbox) -> None:
        """A restored queue shows how many wait, for whom, and since when."""
        box.restore("bob", "Bob", 5, 777, 10**6, NOW)
        queue = box.queues["bob"]
        assert (queue.to, queue.waiting, queue.oldest_at, box.waiting) == ("Bob", 5, 777, 5)
