"""The outbox's rules one by one; :mod:`tests.core.test_outbox_machine` mixes them."""

import random

import pytest

from meshproto.core import outbox as outbox_module
from meshproto.core.envelope import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, MESSAGE_BYTES_MAX
from meshproto.core.outbox import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    DELIVERIES_MAX,
    DOUBTFUL_MAX,
    PLACE_S,
    Attempt,
    Effect,
    Finish,
    Load,
    Outbox,
)
from meshproto.core.queue import TRANSITIONS, Message, Status
from tests.core.outbox_rig import NOW, message, messages, rows


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

    @pytest.mark.parametrize(("wanted_s", "waited_s"), [(0.0, 1.0), (40.0, 40.0), (1e9, BACKOFF_MAX_S)])
    def test_as_the_peer_asks(self, box: Outbox, wanted_s: float, waited_s: float) -> None:
        """The next attempt comes not before the peer wants it, but no peer can have it put off for ever."""
        box.add("bob", [message(1)], NOW)
        box.failed("bob", "slow down", NOW, wanted_s)
        pause_s = (box.queues["bob"].next_try or NOW) - NOW
        assert waited_s / 2 <= pause_s <= waited_s
        assert not wanted_s or pause_s == waited_s

    def test_who_is_behind_ends(self, box: Outbox) -> None:
        """What is under way is the oldest that waits, whatever ends behind it."""
        waiting = [Message(row, f"id{row}", "bob", "", b"1", row, 10**15) for row in (1, 2, 3)]
        box.add("bob", waiting[:1], NOW)
        box.add("bob", waiting[1:], NOW)
        box.end("bob", [2], Status.CANCELLED, "cancelled", NOW)
        assert box.queues["bob"].oldest_at == 1
        box.answered("bob", {"id1"}, {}, NOW)
        box.failed("bob", "unreachable", NOW)
        assert box.queues["bob"].oldest_at == 3

    def test_after_an_expiry(self, box: Outbox) -> None:
        """What comes after a batch that was found and expired starts from locating."""
        box.add("bob", [message(1)], NOW)
        box.found("bob")
        box.add("bob", [message(2)], NOW)
        box.failed("bob", "unreachable", NOW)
        box.end("bob", [1], Status.EXPIRED, "too late", NOW)
        box.wake("bob", NOW)
        assert box.status_of("bob", 2) is Status.LOCATING

    def test_after_a_restart(self, box: Outbox) -> None:
        """What waited before a restart may have been on its way, so it counts as delivering; what comes is queued."""
        box.restore("bob", "Bob", 2, 0, 7, NOW)
        box.add("bob", [message(8)], NOW)
        assert [box.status_of("bob", row) for row in (3, 7, 8)] == [Status.DELIVERING, Status.DELIVERING, Status.QUEUED]


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
            Finish((3,), Status.DELIVERED, None),
            Finish((2,), Status.REFUSED, "too deep"),
            Attempt("bob", "bob", (message(4),)),
        ]

    def test_delivered_wins(self, box: Outbox) -> None:
        """An id both acknowledged and refused is on the recipient's disk."""
        box.add("bob", [message(1)], NOW)
        assert box.answered("bob", {"id1"}, {"id1": "no"}, NOW) == [Finish((1,), Status.DELIVERED, None)]
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
            box.wake("bob", NOW, alive=False)
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
            box.add("bob", [message(1)], NOW)
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

    def test_hints(self, box: Outbox) -> None:
        """A seed that says again and again that someone is back has them tried once a second at most."""
        box.add("bob", [message(1)], NOW)
        box.queues["bob"].attempts = 10
        tried_at = []
        box.failed("bob", "unreachable", NOW)
        for tenth in range(1, 100):
            now = NOW + tenth / 10
            box.hint("bob", now, alive=True)
            if box.queues["bob"].under_way:
                tried_at.append(now)
                box.hint("bob", now, alive=True)
                box.failed("bob", "unreachable", now)
        assert len(tried_at) == 9
        assert tried_at[0] == NOW + BACKOFF_FIRST_S
        assert len(box._retries) < 30

    def test_a_hint_after_a_while(self, box: Outbox) -> None:
        """Who has been waited for longer than that is tried at once."""
        box.add("bob", [message(1)], NOW)
        box.queues["bob"].attempts = 10
        box.failed("bob", "unreachable", NOW)
        assert box.hint("bob", NOW + BACKOFF_FIRST_S, alive=False) == [Attempt("bob", "bob", (message(1),))]
        assert box.hint("eve", NOW, alive=True) == []

    def test_hints_and_what_the_peer_asked_for(self, box: Outbox) -> None:
        """Who has asked to be left alone for a while is, whatever a seed says, until they say something themselves."""
        box.add("bob", [message(1)], NOW)
        box.failed("bob", "not now", NOW, retry_after_s=60.0)
        assert box.hint("bob", NOW + 59, alive=True) == []
        assert delay_s(box) == 60.0
        assert len(box.hint("bob", NOW + 60, alive=True)) == 1
        box.failed("bob", "not now", NOW + 60, retry_after_s=60.0)
        assert len(box.wake("bob", NOW + 61)) == 1

    def test_signs_of_life(self, box: Outbox) -> None:
        """The first has the recipient tried at once; whoever gives them again and again, while nothing reaches them, is
        tried twice a second at most."""
        box.add("bob", [message(1)], NOW)
        box.failed("bob", "unreachable", NOW, retry_after_s=60.0)
        tried_at = []
        for hundredth in range(1000):
            now = NOW + hundredth / 100
            box.wake("bob", now)
            box.tick(now)
            if box.queues["bob"].under_way:
                tried_at.append(now)
                box.failed("bob", "unreachable", now)
        assert tried_at[0] == NOW
        assert len(tried_at) <= 21
        assert len(box._retries) < 30

    def test_waking_everybody(self, box: Outbox) -> None:
        """When all who are silent are tried at once there are still places for the others."""
        keys = [f"away{number}" for number in range(DELIVERIES_MAX + DOUBTFUL_MAX)]
        for row, key in enumerate(keys, 1):
            box.add(key, [message(row, key)], NOW, doubtful=True)
        for _ in keys:
            for key in [key for key in keys if box.queues[key].under_way]:
                box.failed(key, "silent", NOW)
        for key in keys:
            box.wake(key, NOW, alive=False)
        assert [rows(effect) for effect in box.add("bob", [message(500)], NOW)] == [[500]]

    def test_wake_of_a_stranger(self, box: Outbox) -> None:
        """A sign of life from someone for whom nothing waits changes nothing."""
        assert box.wake("eve", NOW) == []
        assert box.queues == {}


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

    def test_the_doubtful_have_places_of_their_own(self, box: Outbox) -> None:
        """DOUBTFUL_MAX recipients that failed, are offline or were restored are tried at a time, and hold up nobody
        else, nor does anybody hold up them."""
        for number in range(DOUBTFUL_MAX):
            assert len(box.add(f"away{number}", [message(number + 1, f"away{number}")], NOW, doubtful=True)) == 1
        assert box.add("away", [message(500, "away")], NOW, doubtful=True) == []
        for number in range(DELIVERIES_MAX):
            assert len(box.add(f"u{number}", [message(number + 1000, f"u{number}")], NOW)) == 1
        assert [effect.key for effect in box.failed("away0", "?", NOW) if isinstance(effect, Attempt)] == ["away"]

    def test_a_sign_of_life_ends_the_doubt(self, box: Outbox) -> None:
        """Who shows up while they wait among the doubtful is served among the others."""
        for number in range(DOUBTFUL_MAX):
            box.add(f"away{number}", [message(number + 1, f"away{number}")], NOW, doubtful=True)
        box.add("back", [message(500, "back")], NOW, doubtful=True)
        assert [rows(effect) for effect in box.wake("back", NOW)] == [[500]]

    def test_one_that_hangs_gives_its_place_away(self, box: Outbox) -> None:
        """After PLACE_S an attempt goes on without a place, when somebody waits for one."""
        for number in range(DELIVERIES_MAX):
            box.add(f"hangs{number}", [message(number + 1, f"hangs{number}")], NOW)
        assert box.wake_at is None
        assert box.add("live", [message(900, "live")], NOW + 0.1) == []
        assert box.wake_at == NOW + PLACE_S
        assert [rows(effect) for effect in box.tick(NOW + PLACE_S)] == [[900]]
        (_,) = box.answered("hangs3", {"id4"}, {}, NOW + 9)
        assert "hangs3" not in box.queues

    def test_also_among_the_doubtful(self, box: Outbox) -> None:
        """A hundred that hang after a restart hold up the next for as long as it takes to give each a moment."""
        tried = 0
        for number in range(100):
            tried += len(box.restore(f"u{number:03}", "U", 1, 0, 1, NOW))
        moments = 0
        while tried < 100:
            moments += 1
            tried += len(box.tick(NOW + moments * PLACE_S))
        assert moments == 100 // DOUBTFUL_MAX

    def test_a_bound_of_those_that_hang(self, box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
        """When HANGING_MAX hang without a place the others keep theirs."""
        monkeypatch.setattr(outbox_module, "DELIVERIES_MAX", 1)
        monkeypatch.setattr(outbox_module, "HANGING_MAX", 1)
        for number, key in enumerate("abc"):
            box.add(key, [message(number + 1, key)], NOW)
        assert len(box.tick(NOW + PLACE_S)) == 1
        assert box.tick(NOW + 9 * PLACE_S) == []
        assert box.wake_at is None
        assert [rows(effect) for effect in box.failed("a", "too late", NOW + 30)] == [[3]]

    def test_tried_is_not_alive(self, box: Outbox) -> None:
        """Whom somebody only wants tried stays among the doubtful."""
        for number in range(DOUBTFUL_MAX + 1):
            box.add(f"away{number}", [message(number + 1, f"away{number}")], NOW, doubtful=True)
        assert box.wake(f"away{DOUBTFUL_MAX}", NOW, alive=False) == []

    def test_a_message_to_one_who_is_online(self, box: Outbox) -> None:
        """Who waits among the doubtful since a restart, and is found online, is served among the others."""
        for number in range(DOUBTFUL_MAX + 1):
            box.restore(f"u{number}", "U", 1, 0, 1, NOW)
        last = f"u{DOUBTFUL_MAX}"
        assert box.add(last, [message(500, last)], NOW, doubtful=False) == [Load(last, 0)]

    def test_turns(self, box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
        """One who gets a lot of mail gives way to the others after each batch."""
        monkeypatch.setattr(outbox_module, "DELIVERIES_MAX", 1)
        box.add("busy", [message(1, "busy")], NOW)
        box.add("busy", [message(2, "busy")], NOW)
        box.add("quiet", [message(3, "quiet")], NOW)
        assert rows(box.answered("busy", {"id1"}, {}, NOW)[1]) == [3]
        assert rows(box.answered("quiet", {"id3"}, {}, NOW)[1]) == [2]
