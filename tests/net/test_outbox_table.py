"""The outbox on disk: accepted once, ended once, listed in order."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from meshproto.core.envelope import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, MESSAGE_BYTES_MAX
from meshproto.core.queue import Status
from meshproto.errors import IdReused, NotFound, Unavailable
from meshproto.net import outbox_table
from meshproto.net.outbox_table import FIRST, OVERDUE_MAX, Accepted, Draft, Overdue
from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION, UserStore
from tests.net.on_clock import OnClock
from tests.net.user_rows import LARGE, NOW_MS, accept, draft


class TestAccept:
    def test_first(self, disk: OnClock, store: UserStore) -> None:
        """A message gets a row that rises with each, and is queued."""
        first, second = (accept(disk, store, draft(id_)) for id_ in ("a", "b"))
        assert (first.fresh, first.status, first.reason) == (True, Status.QUEUED, None)
        assert (first.message.id, first.message.to, first.message.message) == ("a", "Bob", b'"hi"')
        assert second.message.row > first.message.row

    def test_again(self, disk: OnClock, store: UserStore) -> None:
        """The same id with the same text is the same message as it was, in whatever case the recipient is written."""
        first = accept(disk, store, draft())
        again = accept(disk, store, draft(to="BOB", sent_at=NOW_MS + 5))
        assert again == first._replace(fresh=False)

    def test_again_when_it_ended(self, disk: OnClock, store: UserStore) -> None:
        """A message sent again after its end tells how it ended, and does not go out again."""
        row = accept(disk, store, draft()).message.row
        disk.run(store.outbox.finish([row], Status.REFUSED, "too deep", NOW_MS))
        again = accept(disk, store, draft())
        assert (again.fresh, again.status, again.reason) == (False, Status.REFUSED, "too deep")
        assert disk.run(store.outbox.waiting_after("bob", 0)) == []

    @pytest.mark.parametrize("other", [draft(text=b'"ho"'), draft(type_="chat")])
    def test_id_reused(self, disk: OnClock, store: UserStore, other: Draft) -> None:
        """The same id with another text or type is refused, and the first message stays."""
        first = accept(disk, store, draft())
        with pytest.raises(IdReused, match="'a' was used for another message to Bob"):
            accept(disk, store, other)
        assert disk.run(store.outbox.waiting_after("bob", 0)) == [first.message]

    def test_other_recipient(self, disk: OnClock, store: UserStore) -> None:
        """The same id to another recipient is another message."""
        accept(disk, store, draft())
        other = accept(disk, store, draft(to="Eve", text=b'"ho"'))
        assert other.fresh
        assert [kept.to for kept in disk.run(store.outbox.by_id("a"))] == ["Bob", "Eve"]


class TestUnsure:
    """Acceptances that failed because of the disk, which may have taken them all the same."""

    def fail(self, disk: OnClock, work: "Deferred[Any]") -> None:
        """The disk takes it, and says that it has not."""
        disk.take_and_fail()
        with pytest.raises(Unavailable):
            disk.run(work)

    def test_undone(self, disk: OnClock, store: UserStore) -> None:
        """What was told to have failed is not kept: it goes with the next acceptance."""
        self.fail(disk, store.outbox.accept([draft("ghost")]))
        accept(disk, store, draft("b"))
        assert [kept.id for kept in disk.run(store.outbox.page(None, None, None, 9)).messages] == ["b"]

    def test_undone_without_another(self, disk: OnClock, store: UserStore) -> None:
        """Nor does it wait for ever when nobody sends anything more."""
        self.fail(disk, store.outbox.accept([draft("ghost")]))
        assert disk.run(store.outbox.overdue(NOW_MS + 5000, FIRST)) == Overdue({}, None, None)

    def test_a_bound(self, disk: OnClock, store: UserStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of UNSURE_MAX acceptances it is remembered that they are to be undone."""
        monkeypatch.setattr(outbox_table, "UNSURE_MAX", 1)
        for name in ("ghost", "another"):
            self.fail(disk, store.outbox.accept([draft(name)]))
        accept(disk, store, draft("b"))
        assert "ghost" not in [kept.id for kept in disk.run(store.outbox.page(None, None, None, 9)).messages]
        assert not store.outbox._unsure

    def test_sent_again(self, disk: OnClock, store: UserStore) -> None:
        """Sent again it is a new message."""
        self.fail(disk, store.outbox.accept([draft("a")]))
        assert accept(disk, store, draft("a")).fresh

    def test_run_twice(self, disk: OnClock, store: UserStore) -> None:
        """A job that runs again because the disk said that it had not taken it, and had, brings a new message."""
        disk.database.submit(lambda connection: None)  # so that there is a group, whose jobs are run again
        disk.take_and_fail()
        assert accept(disk, store, draft("a")).fresh

    def test_an_older_one_stays(self, disk: OnClock, store: UserStore) -> None:
        """The message with the same id that had been accepted before stays."""
        first = accept(disk, store, draft("a"))
        self.fail(disk, store.outbox.accept([draft("a")]))
        again = accept(disk, store, draft("a"))
        assert again == first._replace(fresh=False)


class TestOverdue:
    def test_those_and_the_next(self, disk: OnClock, store: UserStore) -> None:
        """Waiting messages whose time is over to the millisecond, by recipient, and when the next one's is."""
        rows = [
            accept(disk, store, draft(id_, to, sent_at=at)).message.row
            for id_, to, at in [("a", "Bob", 5), ("b", "Bob", 6), ("c", "Eve", 5), ("d", "Eve", 9)]
        ]
        disk.run(store.outbox.finish(rows[:1], Status.DELIVERED, None, NOW_MS))
        assert disk.run(store.outbox.overdue(1006, FIRST)) == Overdue({"bob": rows[1:2], "eve": rows[2:3]}, None, 1009)

    def test_a_bound(self, disk: OnClock, store: UserStore) -> None:
        """At most OVERDUE_MAX at a time, and the rest after those."""
        disk.run(store.outbox.accept([draft(str(number)) for number in range(OVERDUE_MAX + 1)]))
        first = disk.run(store.outbox.overdue(10**9, FIRST))
        assert len(first.rows["bob"]) == OVERDUE_MAX
        assert first.more is not None
        rest = disk.run(store.outbox.overdue(10**9, first.more))
        assert (len(rest.rows["bob"]), rest.more) == (1, None)


class TestFinish:
    @given(ends=st.lists(st.sampled_from([status for status in Status if status.final]), min_size=1, max_size=4))
    def test_only_once(self, ends: list[Status]) -> None:
        """Of several ends the first stays, with its reason and time."""
        disk = OnClock(SCHEMA, SCHEMA_VERSION)
        store = UserStore(disk.database)
        row = accept(disk, store, draft()).message.row
        for number, status in enumerate(ends):
            disk.run(store.outbox.finish([row], status, f"reason {number}", NOW_MS + number))
        (kept,) = disk.run(store.outbox.by_id("a"))
        assert (kept.status, kept.reason, kept.changed_at) == (ends[0], "reason 0", NOW_MS)
        disk.close()

    def test_only_those(self, disk: OnClock, store: UserStore) -> None:
        """The messages named come to an end, the others wait on."""
        rows = [accept(disk, store, draft(id_)).message.row for id_ in "abc"]
        disk.run(store.outbox.finish([rows[0], rows[2], 999], Status.DELIVERED, None, NOW_MS))
        assert [message.id for message in disk.run(store.outbox.waiting_after("bob", 0))] == ["b"]


class TestWaitingAfter:
    def test_in_order(self, disk: OnClock, store: UserStore) -> None:
        """What waits for this recipient after the row, in the order of acceptance."""
        accepted = [accept(disk, store, draft(id_, to)).message for id_, to in ("aB", "bE", "cB", "dB")]
        assert disk.run(store.outbox.waiting_after("b", accepted[0].row)) == [accepted[2], accepted[3]]

    def test_messages_max(self, disk: OnClock, store: UserStore) -> None:
        """At most BATCH_MESSAGES_MAX at a time."""
        for number in range(BATCH_MESSAGES_MAX + 1):
            store.outbox.accept([draft(str(number))])
        assert len(disk.run(store.outbox.waiting_after("bob", 0))) == BATCH_MESSAGES_MAX

    def test_bytes_max(self, disk: OnClock, store: UserStore) -> None:
        """At most BATCH_BYTES_MAX of text, no message skipped."""
        for number in range(BATCH_BYTES_MAX // MESSAGE_BYTES_MAX + 1):
            store.outbox.accept([draft(str(number), text=LARGE)])
        store.outbox.accept([draft("small")])
        assert [message.id for message in disk.run(store.outbox.waiting_after("bob", 0))] == ["0", "1", "2", "3"]

    def test_one_at_least(self, disk: OnClock, store: UserStore) -> None:
        """A message larger than a batch comes alone."""
        store.outbox.accept([draft("large", text=b"x" * (BATCH_BYTES_MAX + 1))])
        store.outbox.accept([draft("small")])
        assert [message.id for message in disk.run(store.outbox.waiting_after("bob", 0))] == ["large"]


class TestOutbox:
    def test_listed(self, disk: OnClock, store: UserStore) -> None:
        """The latest messages come first; of those that wait the oldest do."""
        rows = [accept(disk, store, draft(id_)).message.row for id_ in "abcd"]
        disk.run(store.outbox.finish(rows[1:2], Status.DELIVERED, None, NOW_MS))
        assert [kept.id for kept in disk.run(store.outbox.page(None, None, None, 3)).messages] == ["d", "c", "b"]
        assert [kept.id for kept in disk.run(store.outbox.page(Status.QUEUED, None, None, 2)).messages] == ["a", "c"]

    def test_pages(self, disk: OnClock, store: UserStore) -> None:
        """Each way of listing goes on after the last row of a page, and for one recipient."""
        sent = (("a", "Bob"), ("b", "Eve"), ("c", "Bob"), ("d", "Bob"))
        rows = [accept(disk, store, draft(*one)).message.row for one in sent]
        assert [kept.id for kept in disk.run(store.outbox.page(None, None, rows[2], 9)).messages] == ["b", "a"]
        assert [kept.id for kept in disk.run(store.outbox.page(Status.QUEUED, None, rows[1], 9)).messages] == ["c", "d"]
        assert [kept.id for kept in disk.run(store.outbox.page(None, "bob", None, 2)).messages] == ["d", "c"]
        assert disk.run(store.outbox.page(Status.REFUSED, None, None, 9)) == ([], None)

    def test_a_page_of_what_is_rare(self, disk: OnClock, store: UserStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """A page looks at LOOK_ROWS messages at most; what is beyond comes with the next."""
        monkeypatch.setattr(outbox_table, "LOOK_ROWS", 3)
        rows = [
            accept(disk, store, draft(str(number), "Eve" if number == 1 else "Bob")).message.row for number in range(7)
        ]
        pages = []
        after: int | None = None
        while True:
            page = disk.run(store.outbox.page(None, "eve", after, 9))
            pages.append([kept.id for kept in page.messages])
            if page.next is None:
                break
            after = page.next
        assert pages == [[], ["1"], []]
        assert rows == sorted(rows)

    def test_by_id_and_recipient(self, disk: OnClock, store: UserStore) -> None:
        """An id that was used for several recipients is found for one of them."""
        for to in ("Bob", "Eve"):
            accept(disk, store, draft("a", to))
        assert [kept.to for kept in disk.run(store.outbox.by_id("a", "eve"))] == ["Eve"]

    def test_unknown_id(self, disk: OnClock, store: UserStore) -> None:
        """An id that no message has is not found."""
        with pytest.raises(NotFound, match="no message 'x' in the outbox"):
            disk.run(store.outbox.by_id("x"))

    def test_by_id_is_indexed(self, disk: OnClock) -> None:
        """Looking a message up by its id does not read the whole outbox."""
        plan = disk.connection.execute("EXPLAIN QUERY PLAN SELECT row FROM outbox WHERE id='a'").fetchall()
        assert "SEARCH" in plan[0][3]


class TestPrune:
    """What is no longer kept."""

    def test_large_ones_of_the_outbox_too(self, disk: OnClock, store: UserStore) -> None:
        """Of the outbox likewise, and it goes on after the last that was looked at."""
        count = outbox_table.PRUNE_BYTES // len(LARGE) + 2
        rows = [accept(disk, store, draft(str(number), text=LARGE)).message.row for number in range(count)]
        disk.run(store.outbox.finish(rows, Status.DELIVERED, None, 5))
        deleted, after = disk.run(store.outbox.prune(0, NOW_MS + 1))
        assert after == rows[-3] and deleted == len(rows) - 2
        assert disk.run(store.outbox.prune(after, NOW_MS + 1)) == (2, None)
        assert disk.run(store.outbox.page(None, None, None, 9)).messages == []

    def test_of_the_outbox(self, disk: OnClock, store: UserStore) -> None:
        """What ended before goes, whatever comes between; what waits or ended later stays."""
        rows = [accept(disk, store, draft(id_, sent_at=1)).message.row for id_ in "abc"]
        disk.run(store.outbox.finish(rows[2:], Status.DELIVERED, None, 5))
        disk.run(store.outbox.finish(rows[:1], Status.REFUSED, None, 9))
        assert disk.run(store.outbox.prune(0, 6)) == (1, None)
        assert [kept.id for kept in disk.run(store.outbox.page(None, None, None, 9)).messages] == ["b", "a"]

    def test_of_the_outbox_by_portions(self, disk: OnClock, store: UserStore) -> None:
        """A job tells where the next one goes on, and ends where nothing can be old enough any more."""
        drafts = [draft(str(number), sent_at=1) for number in range(outbox_table.PRUNE_ROWS + 1)]
        accepted = disk.run(store.outbox.accept(drafts))
        last = accepted[outbox_table.PRUNE_ROWS - 1]
        assert isinstance(last, Accepted)
        assert disk.run(store.outbox.prune(0, 6)) == (0, last.message.row)
        assert disk.run(store.outbox.prune(0, 1)) == (0, None)
