"""What a seed keeps: the entries of its users, and where other seeds were."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproto.errors import BadState
from meshproto.net.database_file import connect
from meshproto.net.seed_store import PEERS_MAX, SCHEMA, SCHEMA_VERSION, UPGRADES, SeedStore, read_entries, read_peers
from meshproto.wire import EntryValue, SignedRecord
from tests.net.on_clock import OnClock

MS = st.integers(0, 2**53)
FAREWELLS = st.sampled_from([(), (SignedRecord('{"name":"x"}', "A" * 86),)])
SIGS = st.text("azAZ09-_", max_size=86)
VALUES = st.builds(EntryValue, st.text(), SIGS, MS, st.booleans(), MS, FAREWELLS)
FIRST_SCHEMA = """
CREATE TABLE entries (name TEXT PRIMARY KEY, record TEXT NOT NULL, sig TEXT NOT NULL, since INTEGER NOT NULL,
    online INTEGER NOT NULL, seen INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE peers (address TEXT PRIMARY KEY, met_at INTEGER NOT NULL) WITHOUT ROWID
"""


@pytest.fixture
def disk() -> Iterator[OnClock]:
    disk = OnClock(SCHEMA, SCHEMA_VERSION)
    yield disk
    disk.close()


@given(saves=st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.none() | VALUES), max_size=4), max_size=5))
def test_last_value_stays(saves: list[list[tuple[str, EntryValue | None]]]) -> None:
    """Of each name the value saved last is read back as it was; None deletes it, known or not."""
    disk = OnClock(SCHEMA, SCHEMA_VERSION)
    store = SeedStore(disk.database)
    expected: dict[str, EntryValue | None] = {}
    for rows in saves:
        disk.run(store.save(tuple(rows)))
        expected.update(rows)
    assert dict(read_entries(disk.connection)) == {name: value for name, value in expected.items() if value is not None}
    disk.run(store.save(()))
    store.close()


def test_peers_max(disk: OnClock) -> None:
    """The PEERS_MAX seeds met last are kept, the latest first."""
    store = SeedStore(disk.database)
    for number in range(PEERS_MAX + 2):
        store.save_peer(f"seed{number}:5001", number)
    disk.clock.advance(0)
    peers = read_peers(disk.connection)
    assert (len(peers), peers[0], peers[-1]) == (PEERS_MAX, f"seed{PEERS_MAX + 1}:5001", "seed2:5001")


def test_peer_met_again(disk: OnClock) -> None:
    """A seed met again is there once, as the latest."""
    store = SeedStore(disk.database)
    for address, at in (("a:1", 1), ("b:1", 2), ("a:1", 3)):
        disk.run(store.save_peer(address, at))
    assert read_peers(disk.connection) == ["a:1", "b:1"]


def test_entries_of_the_first_schema(tmp_path: Path) -> None:
    """What a seed of the first version has written is read as it was, and can be written again."""
    path = tmp_path / "seed.db"
    first = connect(path, FIRST_SCHEMA, 1)
    first.execute("INSERT INTO entries VALUES ('a', 'r', 's', 1, 1, 2)")
    first.close()
    connection = connect(path, SCHEMA, SCHEMA_VERSION, UPGRADES)
    assert list(read_entries(connection)) == [("a", EntryValue("r", "s", 1, True, 2))]
    connection.close()


@pytest.mark.parametrize(
    "row",
    [
        ("r", "s", 1, 1, 2, "nonsense"),
        ("r", "s", 1, 1, 2, "{}"),
        ("r", "s", -1, 1, 2, "[]"),
        ("r", "s", 1, 1, 2.5, "[]"),
        (b"\xff", "s", 1, 1, 2, "[]"),
    ],
)
def test_a_row_that_does_not_read(disk: OnClock, row: tuple[object, ...]) -> None:
    """A damaged row is named, with what to do."""
    disk.connection.execute("INSERT INTO entries VALUES ('a', ?, ?, ?, ?, ?, ?)", row)
    with pytest.raises(BadState, match=r"the entry of a is damaged .*: restore a backup"):
        list(read_entries(disk.connection))
