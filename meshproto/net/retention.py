"""What is no longer kept, and the space it took.

Old messages go a few hundred at a time, each portion a job of its own for the disk, so that nobody who writes waits for
longer than that; then the free pages are given back likewise.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from meshproto.errors import MeshError
from meshproto.net.asked import TTL_S_MAX
from meshproto.net.background import background
from meshproto.net.clocks import NowMs
from meshproto.net.history import History
from meshproto.net.programs import Programs
from meshproto.net.tallies import Kept
from meshproto.net.user_store import UserStore

DAY_S: Final = 86400.0
IDS_KEPT_S: Final = TTL_S_MAX + 2 * DAY_S
"""How long the id of a message that was received is known, at least: a sender repeats a message until its ttl is over,
by a clock that may have been set meanwhile."""
ENDS_KEPT_S: Final = IDS_KEPT_S
"""How long a message that has ended is kept in the outbox unless --keep-days says otherwise."""
ENDS_KEPT_S_MIN: Final = DAY_S
"""However little is to be kept: whoever has got no answer to /send may ask again with the same id."""
LOOK_S: Final = 600.0
"""How often old messages are looked for."""
FIRST_LOOK_S: Final = 10.0
"""After the start, which has other things to do."""
PAUSE_S: Final = 0.02
"""Between two portions, for everybody else."""


class Keep(NamedTuple):
    """How much is kept; None: all."""

    days: float | None = None
    messages: int | None = None


KEEP_ALL: Final = Keep()


class Retention(Service):
    """What `programs` have not got yet is kept, however old. `mail_keys_made_ms`: when the mail keys that open batches
    at this moment were made, ms since 1970 UTC. `deleted`: messages, counted. `keep` may be changed while it runs."""

    log = Logger()

    def __init__(
        self,
        keep: Keep,
        store: UserStore,
        programs: Programs,
        history: History,
        clock: IReactorTime,
        now_ms: NowMs,
        mail_keys_made_ms: Callable[[], Sequence[int]],
    ) -> None:
        self.deleted: Counter[Kept] = Counter()
        self.keep = keep
        self._store = store
        self._programs = programs
        self._history = history
        self._clock = clock
        self._now_ms = now_ms
        self._mail_keys_made_ms = mail_keys_made_ms
        self._loop: Deferred[None] | None = None

    def startService(self) -> None:
        super().startService()
        self._loop = background(self._run(), self.log)

    def stopService(self) -> None:
        super().stopService()
        if self._loop is not None:
            self._loop.cancel()

    async def _run(self) -> None:
        wait_s = FIRST_LOOK_S
        while True:
            await deferLater(self._clock, wait_s)
            wait_s = LOOK_S
            try:
                await self.look()
            except MeshError as error:
                self.log.debug("old messages stay for now: {reason}", reason=error.detail)

    async def look(self) -> None:
        """Delete what is too old or too much now. Raises :class:`meshproto.errors.Unavailable` (the disk)."""
        now_ms = self._now_ms()
        keep_ms = None if self.keep.days is None else self.keep.days * DAY_S * 1000
        if keep_ms is not None or self.keep.messages is not None:
            came_before = None if keep_ms is None else int(now_ms - keep_ms)
            inbox = self._store.inbox
            while gone := await inbox.prune(self.keep.messages, came_before, self._programs.cursor):
                self.deleted[Kept.INBOX] += gone
                await self._pause()
        while await self._store.inbox.forget(self._ids_forgotten_before(now_ms)):
            await self._pause()
        ends_ms = ENDS_KEPT_S * 1000 if keep_ms is None else max(keep_ms, ENDS_KEPT_S_MIN * 1000)
        row: int | None = 0
        while row is not None:
            pruned = await self._store.outbox.prune(row, int(now_ms - ends_ms))
            self.deleted[Kept.OUTBOX] += pruned.deleted
            row = pruned.next
            await self._pause()
        while await self._store.vacuum():
            await self._pause()
        await self._history.purge()

    def _ids_forgotten_before(self, now_ms: int) -> int:
        """An id is known for as long as there is a key that opens the batch it came in: who has recorded that batch may
        send it again when this node has slept for a month, and the key with it. What came before the oldest key was
        made was sealed for one that is gone. A key that is made later than it is now, by a clock that was wrong then
        or is now, tells nothing."""
        made = self._mail_keys_made_ms()
        oldest_ms = min(made) if max(made) <= now_ms else 0
        return min(now_ms - int(IDS_KEPT_S * 1000), oldest_ms)

    def _pause(self) -> "Deferred[None]":
        return deferLater(self._clock, PAUSE_S)
