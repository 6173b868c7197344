"""What a node waits by."""

import time
from types import ModuleType

import pytest
from twisted.internet.testing import MemoryReactorClock

from meshproto import seed_tap, user_tap


@pytest.mark.parametrize("tap", [seed_tap, user_tap])
def test_a_node_waits_by_monotonic_time(tap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed as well as a user's node: its timers, and its limits by the second, know nothing of the time of day."""
    reactor = MemoryReactorClock()
    monkeypatch.setattr("twisted.internet.reactor", reactor)
    options = tap.Options()
    options.parseOptions(["--name", "UserX", "--port", "0"])
    tap.makeService(options)
    assert reactor.seconds is time.monotonic
