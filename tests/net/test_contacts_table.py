"""The contacts on disk: pinned to the key that was seen first."""

import pytest

from meshproto.errors import StaleRecord
from meshproto.net.user_store import UserStore
from tests.net.on_clock import OnClock
from tests.net.user_rows import letter, user


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
        """An older record, brought by a batch that is sent once more, does not take the place of a newer one, and the
        batch is refused."""
        newer, signed = user(seq=2)
        disk.run(store.contacts.pin(newer, signed, 1))
        with pytest.raises(StaleRecord):
            disk.run(store.inbox.receive(*user(seq=1), [letter("a")], 5))
        assert disk.run(store.inbox.totals())[0] == 0
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
