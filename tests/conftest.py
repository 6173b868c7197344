"""Safety nets for every test: no timer, no unhandled failure and no logged error may be left behind.

klein must not be imported here: it would install a reactor before pytest-twisted has chosen one.
"""

import gc
from collections.abc import Iterator

import pytest
from hypothesis import settings
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from zope.interface import implementer

settings.register_profile(
    "mesh", deadline=None
)  # how long a test takes is for bench/ to say, on a machine that is quiet
settings.load_profile("mesh")


def pytest_collection_finish() -> None:
    """What was imported stays: the collections after each test need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_timer_left() -> Iterator[None]:
    """The real reactor has no more delayed calls after the test than before."""
    from twisted.internet import reactor

    before = set(reactor.getDelayedCalls())
    yield
    left = [call for call in reactor.getDelayedCalls() if call not in before]
    for call in left:
        call.cancel()
    assert not left, f"timers left behind: {left}"


@implementer(ILogObserver)
class _Failures:
    """Keeps what was logged as a failure."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_level") is LogLevel.critical:
            self.events.append(event)


@pytest.fixture(autouse=True)
def nothing_logged_as_failure() -> Iterator[list[LogEvent]]:
    """No failure was logged and no Deferred's failure went unhandled. A test that provokes one clears the list."""
    failures = _Failures()
    globalLogPublisher.addObserver(failures)
    yield failures.events
    gc.collect()
    globalLogPublisher.removeObserver(failures)
    assert not failures.events, [event.get("log_failure") or event.get("log_format") for event in failures.events]
