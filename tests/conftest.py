"""Safety nets for every test: no timer, no unhandled failure and no logged error may be left behind.

klein must not be imported here: it would install a reactor before pytest-twisted has chosen one.
"""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.logger import LogLevel, globalLogPublisher


@pytest.fixture(autouse=True)
def no_timer_left() -> Iterator[None]:
    """The real reactor has no more delayed calls after the test than before."""
    from twisted.internet import reactor

    before = set(reactor.getDelayedCalls())  # type: ignore[attr-defined]
    yield
    left = [call for call in reactor.getDelayedCalls() if call not in before]  # type: ignore[attr-defined]
    for call in left:
        call.cancel()
    assert not left, f"timers left behind: {left}"


@pytest.fixture(autouse=True)
def nothing_logged_as_failure() -> Iterator[list[dict[str, Any]]]:
    """No failure was logged and no Deferred's failure went unhandled. A test that provokes one clears the list."""
    events: list[dict[str, Any]] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("log_level") is LogLevel.critical:
            events.append(event)

    globalLogPublisher.addObserver(observe)
    yield events
    gc.collect()
    globalLogPublisher.removeObserver(observe)
    assert not events, [event.get("log_failure") or event.get("log_format") for event in events]
