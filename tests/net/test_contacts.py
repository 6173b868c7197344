"""Whose keys are known."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import ensureDeferred
from twisted.logger import capturedLogs

from meshproto.core.identity import Identity, Record, b64, fingerprint, verify
from meshproto.core.lookup import Located
from meshproto.errors import KeyChanged, Unavailable
from meshproto.net import contacts, contacts_table
from meshproto.net.contacts import Contacts
from meshproto.net.contacts_table import ContactsTable
from meshproto.net.database_file import connect
from meshproto.net.store import SQLiteDatabase
from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION, UPGRADES
from meshproto.wire import SignedRecord
from tests.net.on_clock import OnClock


def located(name: str, key: int = 1, seq: int = 1) -> Located:
    return Located(Record(name, [], b64(bytes([key] * 32)), "mail", seq), SignedRecord("record", "sig"), None)


class Rig:
    def __init__(self, disk: OnClock) -> None:
        self.disk = disk
        self.now_ms = 1
        self.contacts = Contacts(ContactsTable(disk.database), lambda: self.now_ms)

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


def say(rig: Rig, name: str, keys: range) -> int:
    """A seed says that the name has these keys, one after the other: how many lines of the log that gave."""
    with capturedLogs() as events:
        for key in keys:
            with pytest.raises(KeyChanged):
                rig.check(located(name, key))
    return len(events)


def offered(rig: Rig, name: str) -> str | None:
    contact = rig.disk.run(ContactsTable(rig.disk.database).get(name))
    assert contact is not None
    return None if contact.offered is None else contact.offered.key


def test_a_seed_that_says_another_key_each_time(rig: Rig) -> None:
    """One key of a contact a minute is written down and told to the log; each of them is refused."""
    rig.check(located("Bob"))
    rig.check(located("Eve"))
    assert (say(rig, "Bob", range(2, 9)), say(rig, "bob", range(9, 12)), say(rig, "Eve", range(2, 4))) == (1, 0, 1)
    assert offered(rig, "bob") == located("Bob", 2).record.key
    rig.now_ms += 60_000
    assert say(rig, "Bob", range(12, 14)) == 1
    assert offered(rig, "bob") == located("Bob", 12).record.key
    rig.now_ms = 0  # the clock was set back
    assert say(rig, "Bob", range(14, 16)) == 0
    rig.now_ms += 60_000
    assert say(rig, "Bob", range(14, 16)) == 1


def test_a_seed_that_says_it_of_everybody(rig: Rig) -> None:
    """Of all contacts together so many keys are written down at once, and one a second after that."""
    many = int(contacts.NEWS_IN_ALL.burst) + 20
    for number in range(many):
        rig.check(located(f"Bob{number}"))
    assert sum(say(rig, f"Bob{number}", range(2, 3)) for number in range(many)) == contacts.NEWS_IN_ALL.burst
    rig.now_ms += 60_000
    assert sum(say(rig, f"Bob{number}", range(2, 3)) for number in range(many)) == 20


def test_nobody_waits_for_what_seeds_say_to_be_synced(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first key, a newer record, another key: no seed makes the disk sync by telling of them."""
    durable: list[bool] = []
    submit = rig.disk.database.submit

    def watched(job: Any, **how: Any) -> Any:
        durable.append(how.get("durable", True))
        return submit(job, **how)

    monkeypatch.setattr(rig.disk.database, "submit", watched)
    rig.check(located("Bob"))
    rig.check(located("Bob", seq=2))
    say(rig, "Bob", range(2, 3))
    assert durable == [False, False, False]


def test_a_disk_that_refuses(rig: Rig) -> None:
    """A newer record of a known key is taken while the disk refuses to write it; a stranger is not."""
    rig.check(located("Bob"))
    rig.disk.connection.execute("PRAGMA query_only=ON")
    rig.check(located("Bob", seq=2))
    rig.disk.connection.execute("PRAGMA query_only=ON")
    with pytest.raises(Unavailable):
        rig.check(located("Eve"))


def test_the_word_of_a_seed_counts_more_than_a_batch(rig: Rig) -> None:
    """What a batch says of a contact's key is remembered only where nothing is, and never when its record is older;
    what a seed says takes its place."""
    rig.check(located("Bob", seq=5))

    def offer(key: int, seq: int, *, said_by_seed: bool) -> str | None:
        found = located("Bob", key, seq)
        return contacts_table.offer(rig.disk.connection, found.record, found.signed, 1, said_by_seed=said_by_seed)

    assert offer(1, 9, said_by_seed=True) is None
    assert offer(2, 5, said_by_seed=False) is None
    pinned = b64(bytes([1] * 32))
    assert offer(2, 6, said_by_seed=False) == pinned
    assert offer(3, 7, said_by_seed=False) is None
    assert offer(4, 1, said_by_seed=True) == pinned
    assert offer(4, 2, said_by_seed=True) is None
    contact = rig.disk.run(ContactsTable(rig.disk.database).get("bob"))
    assert contact is not None and contact.offered is not None
    assert contact.offered.key == b64(bytes([4] * 32))


def signed_by(number: int, seq: int) -> Located:
    signed = Identity.create(random.Random(number).randbytes, 0).sign("Bob", [], seq)
    return Located(verify(signed), signed, None)


def test_what_is_in_memory_follows_the_owner(rig: Rig) -> None:
    """After the owner has trusted another key, or forgotten the contact, the old pin counts no more, however low the
    sequence of the other key's record is."""

    async def locate() -> Located:
        return signed_by(2, seq=1)

    rig.check(signed_by(1, seq=9))
    wanted = fingerprint(signed_by(2, seq=1).record.key_bytes)
    trusting = ensureDeferred(rig.contacts.trust("Bob", wanted, locate))
    for _ in range(2):
        rig.disk.clock.advance(0)
    rig.disk.run(trusting)
    rig.check(signed_by(2, seq=1))
    forgetting = ensureDeferred(rig.contacts.forget("bob"))
    rig.disk.clock.advance(0)
    rig.disk.run(forgetting)
    rig.check(signed_by(3, seq=0))


SECOND_SCHEMA = """
CREATE TABLE contacts (name TEXT PRIMARY KEY, shown TEXT NOT NULL, key TEXT NOT NULL, record TEXT NOT NULL,
    sig TEXT NOT NULL, seq INTEGER NOT NULL, first_seen INTEGER NOT NULL, changed_at INTEGER NOT NULL) WITHOUT ROWID
"""


def test_contacts_of_the_second_schema_are_kept(tmp_path: Path) -> None:
    """After an upgrade their keys are pinned as before, and none of them is verified."""
    path = tmp_path / "user.db"
    old = connect(path, SECOND_SCHEMA, 2)
    old.execute("INSERT INTO contacts VALUES ('bob', 'Bob', ?, 'record', 'sig', 1, 5, 6)", (b64(bytes([1] * 32)),))
    old.close()
    disk = OnClock(SCHEMA, SCHEMA_VERSION)
    columns = "SELECT m.name, c.name, c.type FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.name IN "
    columns += "('contacts', 'offered') ORDER BY 1, 2"
    fresh = disk.connection.execute(columns).fetchall()
    disk.close()
    disk.connection = connect(path, SCHEMA, SCHEMA_VERSION, UPGRADES)
    disk.database = SQLiteDatabase(disk.connection, disk.clock)
    assert disk.connection.execute(columns).fetchall() == fresh
    rig = Rig(disk)
    rig.check(located("Bob", seq=2))
    with pytest.raises(KeyChanged):
        rig.check(located("Bob", key=2, seq=3))
    (contact,) = disk.run(ContactsTable(disk.database).all())
    assert (contact.first_seen, contact.verified_at) == (5, None)
    assert contact.offered is not None
    disk.close()
