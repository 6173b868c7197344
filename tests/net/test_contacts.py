"""Whose keys are known."""

from collections.abc import Iterator

import pytest
from twisted.internet.defer import ensureDeferred

from meshproto.core.identity import Record, b64
from meshproto.core.lookup import Located
from meshproto.errors import KeyChanged, Unavailable
from meshproto.net import contacts
from meshproto.net.contacts import Contacts
from meshproto.net.contacts_table import ContactsTable
from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION
from meshproto.wire import SignedRecord
from tests.net.on_clock import OnClock


def located(name: str, key: int = 1, seq: int = 1) -> Located:
    return Located(Record(name, [], b64(bytes([key] * 32)), "mail", seq), SignedRecord("record", "sig"), None)


class Rig:
    def __init__(self, disk: OnClock) -> None:
        self.disk = disk
        self.contacts = Contacts(ContactsTable(disk.database), lambda: 1)

    def check(self, found: Located, wanted: str | None = None) -> None:
        self.disk.run(ensureDeferred(self.contacts.check(found, wanted)))


@pytest.fixture
def rig() -> Iterator[Rig]:
    disk = OnClock(SCHEMA, SCHEMA_VERSION)
    yield Rig(disk)
    disk.close()


def test_the_first_key_counts(rig: Rig) -> None:
    """The key of the first contact is pinned, whatever the case of the name and however new another record is."""
    rig.check(located("Bob"))
    rig.check(located("bob", seq=5))
    with pytest.raises(KeyChanged, match="you have exchanged messages with the key"):
        rig.check(located("BOB", key=2, seq=9))


def test_two_at_once(rig: Rig) -> None:
    """Of two first contacts with different keys at the same moment one is pinned, and the other refused."""
    first = ensureDeferred(rig.contacts.check(located("Bob", key=1)))
    second = ensureDeferred(rig.contacts.check(located("Bob", key=2)))
    rig.disk.run(first)
    with pytest.raises(KeyChanged):
        rig.disk.run(second)


def test_a_fingerprint(rig: Rig) -> None:
    """Who asks for a fingerprint gets that one or nobody, and nothing is pinned."""
    with pytest.raises(KeyChanged, match="has the key"):
        rig.check(located("Bob"), "aaaaaaaaaaaaaaaa")
    rig.check(located("Bob", key=2))


def test_some_in_memory(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """PINS_MAX contacts are kept in memory; of the others the disk is asked, and says the same."""
    monkeypatch.setattr(contacts, "PINS_MAX", 1)
    for name in ("Bob", "Eve"):
        rig.check(located(name))
    assert len(rig.contacts._pins) == 1
    with pytest.raises(KeyChanged):
        rig.check(located("Bob", key=2))


def test_a_disk_that_refuses(rig: Rig) -> None:
    """A newer record of a known key is taken while the disk refuses to write it; a stranger is not."""
    rig.check(located("Bob"))
    rig.disk.connection.execute("PRAGMA query_only=ON")
    rig.check(located("Bob", seq=2))
    rig.disk.connection.execute("PRAGMA query_only=ON")
    with pytest.raises(Unavailable):
        rig.check(located("Eve"))
