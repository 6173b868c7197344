"""Work that nobody waits for."""

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure


def background(work: Coroutine[Any, Any, None], log: Logger) -> "Deferred[None]":
    """Begin the work. Cancel it to end it; anything else that it raises is a bug, and is logged."""

    def bug(failure: Failure) -> None:
        if not failure.check(CancelledError):
            log.failure("a bug", failure=failure)

    return ensureDeferred(work).addErrback(bug)
