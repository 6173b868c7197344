"""Asks :class:`meshproto.net.history_file.HistoryFile`, in a thread, for those who look."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from meshproto.errors import MeshError, SlowDown, Unavailable
from meshproto.net.background import background
from meshproto.net.history_file import Ends, HistoryFile
from meshproto.net.user_store import UserStore

ASKED_MAX: Final = 100
"""Questions at a time: they are answered one after another."""
AT_ONCE_PORTIONS: Final = 8
"""How much is added to the history before a question is answered: some thousands of messages, some tenths of a second.
The rest is added in the background, and whoever asks is told how much that is."""
PAUSE_S: Final = 0.02
"""Between two portions in the background, for everybody else."""

T = TypeVar("T")
InThread = Callable[[Callable[[], Any]], Deferred[Any]]
"""Runs a call in a thread; fires with what it returns or raises."""


class Found(NamedTuple, Generic[T]):
    """`behind`: how many messages are not in the history yet."""

    result: T
    behind: int


class History:
    """`open_file` is called when somebody looks for the first time; in the thread, as all that is done with the file.
    `exists`: whether somebody has looked before."""

    log = Logger()

    def __init__(
        self,
        open_file: Callable[[], HistoryFile],
        exists: Callable[[], bool],
        in_thread: InThread,
        store: UserStore,
        clock: IReactorTime,
    ) -> None:
        self._open_file = open_file
        self._exists = exists
        self._in_thread = in_thread
        self._store = store
        self._clock = clock
        self._file: HistoryFile | None = None
        self._ends: Ends | None = None  # all up to there is in the history
        self._lock = DeferredLock()
        self._asked = 0
        self._filling: Deferred[None] | None = None
        self._stopped = False

    async def ask(self, question: Callable[[HistoryFile], T]) -> Found[T]:
        """What the history says, with all that was on disk before. Raises :class:`Unavailable`, :class:`SlowDown`, and
        what the question does."""
        if self._stopped:
            raise Unavailable("this node is shutting down")
        if self._asked >= ASKED_MAX:
            raise SlowDown(f"{ASKED_MAX} questions about the history wait already", retry_after_s=1.0)
        self._asked += 1
        try:
            ends = await self._store.ends()
            found: Found[T] = await self._run(lambda: self._answer(ends, question))
        finally:
            self._asked -= 1
        if found.behind and self._filling is None and not self._stopped:
            self._filling = background(self._fill(), self.log).addCallback(self._filled)
        return found

    async def purge(self) -> None:
        """Forget what the node keeps no longer. Raises :class:`Unavailable`."""
        after: int | None = None if self._stopped or not (self._file or self._exists()) else 0
        while after is not None:
            after = await self._run(partial(self._purge, after))
            await deferLater(self._clock, PAUSE_S)

    async def stop(self) -> None:
        """What is being asked comes to its end, at once."""
        self._stopped = True
        if self._filling is not None:
            self._filling.cancel()
        if self._file is not None:
            self._file.interrupt()
        if self._file is not None or self._asked:  # whoever asks first may be opening it at this moment
            await self._run(self._close)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _run(self, call: Callable[[], Any]) -> Deferred[Any]:
        return self._lock.run(self._in_thread, call)

    def _answer(self, ends: Ends, question: Callable[[HistoryFile], T]) -> Found[T]:
        file, behind = self._opened(), 0
        if ends != self._ends:
            for _ in range(AT_ONCE_PORTIONS):
                behind = file.catch_up(ends)
                if not behind:
                    self._ends = ends
                    break
        return Found(question(file), behind)

    def _opened(self) -> HistoryFile:
        if self._file is None:
            self._file = self._open_file()
        return self._file

    def _purge(self, after: int) -> int | None:
        return self._opened().purge(after)

    async def _fill(self) -> None:
        """Add what is missing."""
        try:
            ends = await self._store.ends()
            while await self._run(lambda: self._opened().catch_up(ends)):
                await deferLater(self._clock, PAUSE_S)
        except MeshError as error:
            self.log.warn("the history is behind: {reason}", reason=error.detail)

    def _filled(self, _: None) -> None:
        self._filling = None
