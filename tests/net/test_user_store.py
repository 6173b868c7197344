"""What a user node keeps: its outbox, its inbox, its contacts, its seeds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from twisted.internet.defer import Deferred

from meshproto.core.envelope import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, MESSAGE_BYTES_MAX, Letter
from meshproto.core.identity import Record, b64
from meshproto.core.inbox import PAGE_BYTES_MAX, Correspondent
from meshproto.core.queue import Status
from meshproto.errors import IdReused, KeyChanged, NotFound, Unavailable
from meshproto.net import outbox_table, user_store
from meshproto.net.database_file import connect
from meshproto.net.outbox_table import FIRST, OVERDUE_MAX, Accepted, Draft, Overdue, Waiting
from meshproto.net.store import ClockedDatabase
from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION, UPGRADES, Start, UserStore, begin_cursors, read_start
from meshproto.wire import SignedRecord
from tests.net.on_clock import OnClock

NOW_MS = 1_000_000
LARGE = b'"' + b"x" * (MESSAGE_BYTES_MAX - 2) + b'"'


@pytest.fixture
def disk() -> Iterator[OnClock]:
    disk = OnClock(SCHEMA, SCHEMA_VERSION)
    yield disk
    disk.close()


@pytest.fixture
def store(disk: OnClock) -> UserStore:
    return UserStore(disk.database)


def draft(id_: str = "a", to: str = "Bob", text: bytes = b'"hi"', sent_at: int = NOW_MS, type_: str = "") -> Draft:
    return Draft(to.lower(), id_, to, type_, text, sent_at, sent_at + 1000)


def user(name: str = "Bob", key: str = "key1", seq: int = 1) -> tuple[Record, SignedRecord]:
    """A record and its signed text; the store does not verify, whoever calls it has."""
    record = Record(name, [f"http://192.0.2.{seq}:3000"], key, "mail", seq)
    return record, SignedRecord(f"record {name} {key} {seq}", f"sig{seq}")


def letter(id_: str, text: bytes = b'"hi"') -> Letter:
    return Letter(id_, Raw(text), NOW_MS)


def accept(disk: OnClock, store: UserStore, *drafts: Draft) -> Accepted:
    """What became of the last of them."""
    accepted = disk.run(store.outbox.accept(drafts))[-1]
    if isinstance(accepted, Exception):
        raise accepted
    return accepted


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


class TestReceive:
    def test_once(self, disk: OnClock, store: UserStore) -> None:
        """A letter that comes again, alone or in another batch, is there once, as it came first."""
        record, signed = user()
        for letters in ([letter("a"), letter("b")], [letter("b"), letter("c")], [letter("a", b'"other"')]):
            disk.run(store.inbox.receive(record, signed, letters, NOW_MS))
        assert [(one.id, bytes(one.message)) for one in disk.run(store.inbox.page(0, None, 10))] == [
            ("a", b'"hi"'),
            ("b", b'"hi"'),
            ("c", b'"hi"'),
        ]

    def test_a_repeated_one_uses_no_cursor(self, disk: OnClock, store: UserStore) -> None:
        """Cursors have no gaps, however often a batch comes."""
        for _ in range(3):
            disk.run(store.inbox.receive(*user(), [letter("a"), letter("b")], NOW_MS))
        disk.run(store.inbox.receive(*user(), [letter("b"), letter("c")], NOW_MS))
        assert [one.cursor for one in disk.run(store.inbox.page(0, None, 10))] == [1, 2, 3]

    def test_unique_by_key(self, disk: OnClock, store: UserStore) -> None:
        """The same id from another key is another message; from the same key under another name it is not."""
        for name, key in (("Bob", "key1"), ("Eve", "key2"), ("Robert", "key1")):
            disk.run(store.inbox.receive(*user(name, key), [letter("a")], NOW_MS))
        assert [one.sender.name for one in disk.run(store.inbox.page(0, None, 10))] == ["Bob", "Eve"]

    def test_another_key(self, disk: OnClock, store: UserStore) -> None:
        """A batch from a name that is pinned to another key is refused, and nothing of it kept."""
        bob = b64(bytes(32)), b64(bytes([1] * 32))
        disk.run(store.inbox.receive(*user("Bob", bob[0]), [letter("a")], NOW_MS))
        with pytest.raises(KeyChanged, match="bob is known here with the key"):
            disk.run(store.inbox.receive(*user("bob", bob[1], 9), [letter("b")], NOW_MS))
        assert disk.run(store.inbox.totals()) == (1, 1)

    def test_as_it_came(self, disk: OnClock, store: UserStore) -> None:
        """A message is shown with its sender's name and key, and the times of sending and of arrival."""
        disk.run(store.inbox.receive(*user("Bob", "key1"), [Letter("a", Raw(b"[1, 2]"), 5, "chat")], 9))
        (one,) = disk.run(store.inbox.page(0, None, 10))
        assert (one.sender, one.type, bytes(one.message)) == (Correspondent("Bob", "key1"), "chat", b"[1, 2]")
        assert (one.sent_at, one.received_at) == (5, 9)

    def test_cursor_is_never_used_again(self, disk: OnClock, store: UserStore) -> None:
        """Also when the latest message is gone the next one gets a higher cursor."""
        disk.run(store.inbox.receive(*user(), [letter("a")], NOW_MS))
        (gone,) = disk.run(store.inbox.page(0, None, 10))
        disk.connection.execute("DELETE FROM inbox")
        disk.run(store.inbox.receive(*user(), [letter("b")], NOW_MS))
        (one,) = disk.run(store.inbox.page(0, None, 10))
        assert one.cursor > gone.cursor

    def test_totals(self, disk: OnClock, store: UserStore) -> None:
        """How many there are, and the latest cursor; nothing and 0 to begin with."""
        assert disk.run(store.inbox.totals()) == (0, 0)
        disk.run(store.inbox.receive(*user(), [letter("a"), letter("b")], NOW_MS))
        (_, last) = disk.run(store.inbox.page(0, None, 10))
        assert disk.run(store.inbox.totals()) == (2, last.cursor)


class TestPages:
    @given(senders=st.lists(st.sampled_from(["Bob", "Eve"]), max_size=20), limit=st.integers(1, 7))
    def test_every_message_once(self, senders: list[str], limit: int) -> None:
        """Page after page brings every message once and in order, for everyone and for one sender."""
        disk = OnClock(SCHEMA, SCHEMA_VERSION)
        store = UserStore(disk.database)
        for number, name in enumerate(senders):
            disk.run(store.inbox.receive(*user(name, name), [letter(str(number))], NOW_MS))
        for wanted in (None, "bOB"):
            read: list[str] = []
            after = 0
            while page := disk.run(store.inbox.page(after, wanted, limit)):
                assert len(page) <= limit
                read += [one.id for one in page]
                after = page[-1].cursor
            assert read == [str(number) for number, name in enumerate(senders) if wanted is None or name == "Bob"]
        disk.close()

    def test_bytes_max(self, disk: OnClock, store: UserStore) -> None:
        """A page holds at most PAGE_BYTES_MAX of text; what does not fit comes with the next."""
        fits = PAGE_BYTES_MAX // MESSAGE_BYTES_MAX
        for number in range(fits + 1):
            store.inbox.receive(*user(), [letter(str(number), LARGE)], NOW_MS)
        page = disk.run(store.inbox.page(0, None, 1000))
        assert len(page) == fits
        (last,) = disk.run(store.inbox.page(page[-1].cursor, None, 1000))
        assert last.id == str(fits)

    def test_one_at_least(self, disk: OnClock, store: UserStore) -> None:
        """A message larger than a page comes alone."""
        store.inbox.receive(*user(), [letter("large", b"x" * (PAGE_BYTES_MAX + 1)), letter("small")], NOW_MS)
        assert [one.id for one in disk.run(store.inbox.page(0, None, 10))] == ["large"]


class TestContacts:
    def test_pinned(self, disk: OnClock, store: UserStore) -> None:
        """A record with another key changes nothing, however new it is and whichever way it comes."""
        record, signed = user("Bob", "key1", 1)
        disk.run(store.contacts.pin(record, signed, 1))
        assert disk.run(store.contacts.pin(*user("bob", "key2", 9), 2)) == "key1"
        contact = disk.run(store.contacts.get("BOB"))
        assert contact is not None
        assert (contact.name, contact.key, contact.signed, contact.changed_at) == ("Bob", "key1", signed, 1)

    def test_newer_record(self, disk: OnClock, store: UserStore) -> None:
        """A newer record with the pinned key takes the place of the old one; the contact is as old as it was."""
        disk.run(store.contacts.pin(*user("bob", seq=1), 1))
        record, signed = user("Bob", seq=2)
        disk.run(store.contacts.pin(record, signed, 5))
        contact = disk.run(store.contacts.get("bob"))
        assert contact is not None
        assert (contact.name, contact.signed, contact.first_seen, contact.changed_at) == ("Bob", signed, 1, 5)

    def test_older_record(self, disk: OnClock, store: UserStore) -> None:
        """An older record, brought by a batch that is sent once more, does not take the place of a newer one."""
        newer, signed = user(seq=2)
        disk.run(store.contacts.pin(newer, signed, 1))
        disk.run(store.inbox.receive(*user(seq=1), [letter("a")], 5))
        contact = disk.run(store.contacts.get("Bob"))
        assert contact is not None
        assert (contact.signed, contact.changed_at) == (signed, 1)

    def test_trust(self, disk: OnClock, store: UserStore) -> None:
        """Trusting pins the other key, from then on; a lower sequence does not matter for another key."""
        disk.run(store.contacts.pin(*user("Bob", "key1", 9), 1))
        record, signed = user("Bob", "key2", 1)
        disk.run(store.contacts.trust(record, signed, 2))
        contact = disk.run(store.contacts.get("bob"))
        assert contact is not None
        assert (contact.key, contact.signed) == ("key2", signed)
        disk.run(store.contacts.pin(*user("Bob", "key1", 10), 3))
        assert disk.run(store.contacts.get("bob")) == contact

    def test_all(self, disk: OnClock, store: UserStore) -> None:
        """Contacts are listed by name; one that is not known is None."""
        for name in ("eve", "Bob"):
            disk.run(store.contacts.pin(*user(name), 1))
        assert [contact.name for contact in disk.run(store.contacts.all())] == ["Bob", "eve"]
        assert disk.run(store.contacts.get("nobody")) is None


class TestStart:
    def test_fresh(self, disk: OnClock) -> None:
        """A new node has no sequence, no seeds, and nothing waits."""
        assert read_start(disk.connection) == Start(0, [], [])

    def test_seq(self, disk: OnClock, store: UserStore) -> None:
        """The sequence saved last is the one read."""
        disk.run(store.save_seq(10))
        disk.run(store.save_seq(11))
        assert read_start(disk.connection).seq == 11

    def test_seeds(self, disk: OnClock, store: UserStore) -> None:
        """The seeds saved last take the place of those before, each once."""
        disk.run(store.save_seeds(["b:1", "a:1"]))
        disk.run(store.save_seeds(["c:1", "b:1", "c:1"]))
        assert read_start(disk.connection).seeds == ["b:1", "c:1"]

    def test_seeds_when_the_group_is_run_again(self, disk: OnClock, store: UserStore) -> None:
        """Seeds given by an iterator are saved also when the job has to run twice."""
        disk.database.submit(lambda connection: 1 / 0).addErrback(lambda failure: failure.trap(ZeroDivisionError))
        disk.run(store.save_seeds(iter(["a:1"])))
        assert read_start(disk.connection).seeds == ["a:1"]

    def test_waiting(self, disk: OnClock, store: UserStore) -> None:
        """What waits is counted for each recipient, with the age of the oldest; what has ended is not."""
        rows = [
            accept(disk, store, draft(id_, to, sent_at=at)).message.row
            for id_, to, at in [("a", "Bob", 3), ("b", "Bob", 5), ("c", "bOB", 7), ("d", "Eve", 4), ("e", "Ann", 1)]
        ]
        disk.run(store.outbox.finish([rows[0], rows[4]], Status.EXPIRED, None, NOW_MS))
        assert sorted(read_start(disk.connection).waiting) == [
            Waiting("bob", "Bob", 2, 5, rows[2]),
            Waiting("eve", "Eve", 1, 4, rows[3]),
        ]


class TestCursors:
    """How far the programs have come that the inbox is handed over to."""

    def test_begin(self, disk: OnClock, store: UserStore) -> None:
        """A program that was never there begins with what comes from now on; one that was goes on."""
        assert begin_cursors(disk.connection, ["a"]) == {"a": 0}
        disk.run(store.inbox.receive(*user(), [letter("x"), letter("y")], NOW_MS))
        assert begin_cursors(disk.connection, ["a", "b"]) == {"a": 0, "b": 2}

    def test_saved(self, disk: OnClock, store: UserStore) -> None:
        """The cursor saved last is where it goes on, each program for itself."""
        begin_cursors(disk.connection, ["a", "b"])
        for cursor in (3, 7):
            disk.run(store.save_cursor("a", cursor))
        assert begin_cursors(disk.connection, ["a", "b"]) == {"a": 7, "b": 0}

    def test_behind(self, disk: OnClock, store: UserStore) -> None:
        """What came after the cursor is counted, without what is no longer kept."""
        disk.run(store.inbox.receive(*user(), [letter(str(number)) for number in range(10)], NOW_MS))
        assert [disk.run(store.inbox.behind(after)) for after in (0, 9, 10, 15)] == [10, 1, 0, 0]
        disk.run(store.inbox.prune(4, None, None))
        assert disk.run(store.inbox.behind(0)) == 4


class TestPrune:
    """What is no longer kept."""

    def received(self, disk: OnClock, store: UserStore, *times: int) -> None:
        for number, at in enumerate(times):
            disk.run(store.inbox.receive(*user(), [letter(f"id{number}")], at))

    def ids(self, disk: OnClock, store: UserStore) -> list[str]:
        return [one.id for one in disk.run(store.inbox.page(0, None, 100))]

    def test_by_number(self, disk: OnClock, store: UserStore) -> None:
        """The last so many are kept, in the totals too, and cursors stay what they were."""
        self.received(disk, store, 1, 2, 3, 4)
        assert disk.run(store.inbox.prune(2, None, None))
        assert not disk.run(store.inbox.prune(2, None, None))
        assert self.ids(disk, store) == ["id2", "id3"]
        assert disk.run(store.inbox.totals()) == (2, 4)

    def test_by_age(self, disk: OnClock, store: UserStore) -> None:
        """What came before goes, up to the first that came later: the order of arrival is kept whole."""
        self.received(disk, store, 1, 2, 5, 3)
        disk.run(store.inbox.prune(None, 4, None))
        assert self.ids(disk, store) == ["id2", "id3"]

    def test_not_what_a_program_has_not_got(self, disk: OnClock, store: UserStore) -> None:
        """Nothing after the cursor of who still needs it."""
        self.received(disk, store, 1, 2, 3)
        disk.run(store.inbox.prune(0, 100, 1))
        assert self.ids(disk, store) == ["id1", "id2"]

    def test_the_text_is_gone_and_the_id_is_not(self, disk: OnClock, store: UserStore) -> None:
        """A message that is no longer kept is still not taken a second time."""
        self.received(disk, store, 1)
        disk.run(store.inbox.prune(0, None, None))
        assert disk.connection.execute("SELECT count(*) FROM inbox").fetchone() == (0,)
        disk.run(store.inbox.receive(*user(), [letter("id0")], 9))
        assert self.ids(disk, store) == []

    def test_ids_are_forgotten(self, disk: OnClock, store: UserStore) -> None:
        """Ids go when no sender can repeat them any more, of what is no longer kept; cursors are not used again."""
        self.received(disk, store, 1, 2, 3)
        disk.run(store.inbox.prune(1, None, None))
        assert not disk.run(store.inbox.forget(3))
        assert disk.connection.execute("SELECT count(*) FROM seen").fetchone() == (0,)
        disk.run(store.inbox.receive(*user(), [letter("id0")], 9))
        assert [one.cursor for one in disk.run(store.inbox.page(0, None, 9))] == [3, 4]

    def test_large_texts_go_in_smaller_portions(self, disk: OnClock, store: UserStore) -> None:
        """A job deletes a few megabytes of text at most, however few messages that is."""
        count = outbox_table.PRUNE_BYTES // len(LARGE) + 2
        disk.run(store.inbox.receive(*user(), [letter(str(number), LARGE) for number in range(count)], 1))
        assert disk.run(store.inbox.prune(0, None, None))
        assert disk.run(store.inbox.totals()).messages == 2

    def test_large_ones_of_the_outbox_too(self, disk: OnClock, store: UserStore) -> None:
        """Of the outbox likewise, and it goes on after the last that was looked at."""
        count = outbox_table.PRUNE_BYTES // len(LARGE) + 2
        rows = [accept(disk, store, draft(str(number), text=LARGE)).message.row for number in range(count)]
        disk.run(store.outbox.finish(rows, Status.DELIVERED, None, 5))
        after = disk.run(store.outbox.prune(0, NOW_MS + 1))
        assert after == rows[-3]
        assert disk.run(store.outbox.prune(after, NOW_MS + 1)) is None
        assert disk.run(store.outbox.page(None, None, None, 9)).messages == []

    def test_a_portion_at_a_time(self, disk: OnClock, store: UserStore) -> None:
        """One job looks at PRUNE_ROWS messages at most."""
        letters = [letter(str(number)) for number in range(1000)]
        disk.run(store.inbox.receive(*user(), letters, 1))
        disk.run(store.inbox.receive(*user(), [letter("last")], 1))
        disk.run(store.inbox.prune(0, None, None))
        assert disk.run(store.inbox.totals()).messages == 1001 - outbox_table.PRUNE_ROWS
        assert disk.run(store.inbox.prune(0, None, None)) and disk.run(store.inbox.prune(0, None, None))
        assert disk.run(store.inbox.forget(2))

    def test_of_the_outbox(self, disk: OnClock, store: UserStore) -> None:
        """What ended before goes, whatever comes between; what waits or ended later stays."""
        rows = [accept(disk, store, draft(id_, sent_at=1)).message.row for id_ in "abc"]
        disk.run(store.outbox.finish(rows[2:], Status.DELIVERED, None, 5))
        disk.run(store.outbox.finish(rows[:1], Status.REFUSED, None, 9))
        assert disk.run(store.outbox.prune(0, 6)) is None
        assert [kept.id for kept in disk.run(store.outbox.page(None, None, None, 9)).messages] == ["b", "a"]

    def test_of_the_outbox_by_portions(self, disk: OnClock, store: UserStore) -> None:
        """A job tells where the next one goes on, and ends where nothing can be old enough any more."""
        drafts = [draft(str(number), sent_at=1) for number in range(outbox_table.PRUNE_ROWS + 1)]
        accepted = disk.run(store.outbox.accept(drafts))
        last = accepted[outbox_table.PRUNE_ROWS - 1]
        assert isinstance(last, Accepted)
        assert disk.run(store.outbox.prune(0, 6)) == last.message.row
        assert disk.run(store.outbox.prune(0, 1)) is None


def test_free_pages_go_by_portions(disk: OnClock, store: UserStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job gives VACUUM_PAGES back, and says whether there are more."""
    monkeypatch.setattr(user_store, "VACUUM_PAGES", 3)
    letters = [letter(str(number), b'"' + b"x" * 20_000 + b'"') for number in range(2)]
    disk.run(store.inbox.receive(*user(), letters, 1))
    disk.run(store.inbox.prune(0, None, None))
    (free,) = disk.connection.execute("PRAGMA freelist_count").fetchone()
    rounds = 0
    while disk.run(store.vacuum()):
        rounds += 1
    assert rounds == free // 3
    assert disk.connection.execute("PRAGMA freelist_count").fetchone() == (0,)


FIRST_SCHEMA = """
CREATE TABLE outbox (row INTEGER PRIMARY KEY AUTOINCREMENT, recipient TEXT NOT NULL, id TEXT NOT NULL,
    name TEXT NOT NULL, type TEXT NOT NULL, message BLOB NOT NULL, sent_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL, status TEXT NOT NULL, changed_at INTEGER NOT NULL, reason TEXT,
    UNIQUE (id, recipient));
CREATE INDEX outbox_waiting ON outbox (recipient, row) WHERE status = 'queued';
CREATE TABLE inbox (cursor INTEGER PRIMARY KEY AUTOINCREMENT, sender TEXT NOT NULL, name TEXT NOT NULL,
    key TEXT NOT NULL, id TEXT NOT NULL, type TEXT NOT NULL, message BLOB NOT NULL, sent_at INTEGER NOT NULL,
    received_at INTEGER NOT NULL, UNIQUE (key, id));
CREATE INDEX inbox_from ON inbox (sender, cursor);
CREATE TABLE contacts (name TEXT PRIMARY KEY, shown TEXT NOT NULL, key TEXT NOT NULL, record TEXT NOT NULL,
    sig TEXT NOT NULL, seq INTEGER NOT NULL, first_seen INTEGER NOT NULL, changed_at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE seeds (address TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID
"""


def test_the_first_schema_is_brought_forward(tmp_path: Path) -> None:
    """What was sent and received before an upgrade is there after it, in tables like those of a new database."""
    path = tmp_path / "user.db"
    old = connect(path, FIRST_SCHEMA, 1)
    old.execute("INSERT INTO outbox VALUES (7, 'bob', 'a', 'Bob', '', x'31', 5, 9, 'queued', 5, NULL)")
    old.execute("INSERT INTO inbox VALUES (3, 'eve', 'Eve', 'key', 'b', '', x'32', 5, 6)")
    old.close()
    disk = OnClock(SCHEMA, SCHEMA_VERSION)
    shapes = "SELECT type, name, tbl_name FROM sqlite_master ORDER BY name"
    columns = "SELECT name, type FROM pragma_table_info('outbox') ORDER BY name"
    fresh = [disk.connection.execute(query).fetchall() for query in (shapes, columns)]
    disk.close()
    disk.connection = connect(path, SCHEMA, SCHEMA_VERSION, UPGRADES)
    disk.database = ClockedDatabase(disk.connection, disk.clock)
    assert [disk.connection.execute(query).fetchall() for query in (shapes, columns)] == fresh
    store = UserStore(disk.database)
    assert [message.row for message in disk.run(store.outbox.waiting_after("bob", 0))] == [7]
    assert not accept(disk, store, draft("a", text=b"1")).fresh
    assert [one.id for one in disk.run(store.inbox.page(0, None, 9))] == ["b"]
    assert path.with_name("user.db.schema1").exists()
    disk.database.close()
