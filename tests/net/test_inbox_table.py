"""The inbox on disk: each letter once and in order, as long as it is kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from meshproto.core.envelope import MESSAGE_BYTES_MAX, Letter
from meshproto.core.identity import b64
from meshproto.core.inbox import PAGE_BYTES_MAX, Correspondent
from meshproto.errors import KeyChanged
from meshproto.net import outbox_table
from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION, UserStore
from tests.net.on_clock import OnClock
from tests.net.user_rows import LARGE, NOW_MS, letter, user


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
        for _ in range(3):
            assert disk.run(store.inbox.receive(*user(), [letter("a")], NOW_MS)) == {"a"}
        assert disk.run(store.inbox.receive(*user(), [letter("d")], NOW_MS)) == set()
        assert [one.cursor for one in disk.run(store.inbox.page(0, None, 10))] == [1, 2, 3, 4]

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


class TestBehind:
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

    def test_a_portion_at_a_time(self, disk: OnClock, store: UserStore) -> None:
        """One job looks at PRUNE_ROWS messages at most."""
        letters = [letter(str(number)) for number in range(1000)]
        disk.run(store.inbox.receive(*user(), letters, 1))
        disk.run(store.inbox.receive(*user(), [letter("last")], 1))
        disk.run(store.inbox.prune(0, None, None))
        assert disk.run(store.inbox.totals()).messages == 1001 - outbox_table.PRUNE_ROWS
        assert disk.run(store.inbox.prune(0, None, None)) and disk.run(store.inbox.prune(0, None, None))
        assert disk.run(store.inbox.forget(2))
