"""The mail key of a node: when it is a new one, and what a disk or a clock can do about it."""

import random

import pytest
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from meshproto.core.identity import MAIL_KEYS_KEPT, Identity
from meshproto.errors import BadState
from meshproto.net.keys import LOOK_S, ROTATE_S, Keys

DAY_MS = int(ROTATE_S * 1000)
BORN_MS = 1_795_343_300_123


class Node:
    """`on_disk`: what a restart would find. `told`: the keys on disk whenever somebody was told of new ones."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.wall_ms = float(BORN_MS)
        self.entropy = random.Random(5).randbytes
        self.on_disk = Identity.create(self.entropy, BORN_MS)
        self.refuses = False
        self.told: list[Identity] = []
        self.start()

    def start(self) -> None:
        def rotated() -> None:
            assert self.keys.current is self.on_disk
            self.told.append(self.on_disk)

        self.keys = Keys(self.on_disk, self._save, self.clock, lambda: int(self.wall_ms), self.entropy, rotated)
        self.keys.startService()

    def run(self, seconds: float) -> None:
        while seconds > 0:
            step = min(seconds, LOOK_S)
            self.wall_ms += step * 1000
            self.clock.advance(step)
            seconds -= step

    def _save(self, identity: Identity) -> None:
        if self.refuses:
            raise BadState("keys.json cannot be written: No space left on device")
        assert Identity.load(identity.dump()) == identity
        self.on_disk = identity


@pytest.fixture
def node() -> Node:
    return Node()


def test_once_a_day(node: Node) -> None:
    """A day after the last one, to the minutes between two looks; and it is on disk before anybody is told."""
    node.run(ROTATE_S - LOOK_S)
    assert node.told == []
    node.run(LOOK_S)
    assert len(node.told) == 1
    node.run(6 * ROTATE_S)
    assert len(node.told) == 7


def test_the_user_stays_and_the_last_keys_open(node: Node) -> None:
    """The identity is for ever; of the mail keys the newest comes first, and so many are kept."""
    seen = [node.keys.current.mail]
    for _ in range(5):
        before = node.keys.current
        node.run(ROTATE_S)
        seen.insert(0, node.keys.current.mail)
        assert node.keys.current.key == before.key
        assert list(node.keys.current.mail_keys) == seen[:MAIL_KEYS_KEPT]
        assert list(node.keys.current.made_at_ms) == sorted(node.keys.current.made_at_ms, reverse=True)
    assert len(set(map(bytes, seen))) == 6


def test_after_a_week_there_is_one(node: Node) -> None:
    """A node that was stopped for a week takes one new key, at its start."""
    node.keys.stopService()
    node.wall_ms += 7 * DAY_MS
    node.start()
    assert len(node.told) == 1
    node.run(ROTATE_S - LOOK_S)
    assert len(node.told) == 1


def test_a_full_disk_keeps_the_key(node: Node) -> None:
    """The key in use stays until the disk takes the new one, and the log has it once."""
    key = node.keys.current
    node.run(ROTATE_S - LOOK_S)
    node.refuses = True
    with capturedLogs() as logged:
        node.run(20 * LOOK_S)
    assert [formatEvent(event) for event in logged] == [
        "the mail key stays as it is: keys.json cannot be written: No space left on device"
    ]
    assert node.keys.current is node.on_disk is key
    node.refuses = False
    node.run(LOOK_S)
    assert node.on_disk is not key
    assert len(node.told) == 1


def test_a_clock_that_is_set_to_and_fro(node: Node) -> None:
    """However often, it brings one new key: mail on its way for the keys before it still opens."""
    for _ in range(50):
        node.wall_ms += 3 * DAY_MS
        node.run(LOOK_S)
        node.wall_ms -= 3 * DAY_MS
        node.run(LOOK_S)
    assert len(node.told) == 1


def test_a_clock_that_was_years_ahead(node: Node) -> None:
    """A key made in a wrong future is a day old when it was used for a day; after that all is as usual."""
    node.wall_ms += 3650 * DAY_MS
    node.run(LOOK_S)
    node.wall_ms -= 3650 * DAY_MS
    assert len(node.told) == 1
    node.run(ROTATE_S - LOOK_S)
    assert len(node.told) == 1
    node.run(2 * LOOK_S)
    assert len(node.told) == 2
    assert node.keys.current.made_at_ms[0] <= node.wall_ms
    node.run(ROTATE_S)
    assert len(node.told) == 3


def test_starts_with_a_clock_that_has_not_been_set_yet(node: Node) -> None:
    """A machine without a clock of its own begins each time in the past: no start brings a new key."""
    node.wall_ms = 1000.0
    for _ in range(5):
        node.keys.stopService()
        node.start()
        node.run(LOOK_S)
    assert node.told == []
