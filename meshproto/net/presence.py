"""Who is there: told to those who look, for as long as they look.

What a seed tells by itself is a reason to look the name up, and never what is believed."""

from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from meshproto.errors import MeshError
from meshproto.net.background import background
from meshproto.net.seeds import Seeds
from meshproto.wire import fold

LOOKUPS_MAX: Final = 8
"""Names that are looked up at a time, so that a page with a hundred contacts leaves the seeds time for others."""
CHANGES_S: Final = 1.0
"""No name is looked up more often than that, however often it comes and goes."""


class Presence(Struct, frozen=True):
    """`online`: None when nobody knows, `seen`: ms since 1970 UTC."""

    name: str
    online: bool | None
    seen: int | None


Told = Callable[[Presence], None]


class Watcher:
    """Looks at names until :meth:`stop`; `told` hears of each as it is, and whenever it has changed."""

    log = Logger()

    def __init__(self, seeds: Seeds, names: Iterable[str], clock: IReactorTime, told: Told) -> None:
        self._seeds = seeds
        self._names = {fold(name): name for name in names}
        self._clock = clock
        self._told = told
        self._last: dict[str, Presence] = {}
        self._looking: dict[str, Deferred[None]] = {}
        self._again: set[str] = set()
        self._limit = DeferredSemaphore(LOOKUPS_MAX)
        seeds.presence.add(self._changed)
        for key, name in self._names.items():
            seeds.hold(name)
            self._look(key)

    def stop(self) -> None:
        self._seeds.presence.remove(self._changed)
        for name in self._names.values():
            self._seeds.let_go(name)
        for looking in list(self._looking.values()):
            looking.cancel()

    def _changed(self, name: str) -> None:
        if (key := fold(name)) in self._names:
            self._look(key)

    def _look(self, key: str) -> None:
        if key in self._looking:
            self._again.add(key)
            return
        self._looking[key] = looking = background(self._find_and_tell(key), self.log)
        looking.addCallback(lambda _: self._looked(key))

    def _looked(self, key: str) -> None:
        del self._looking[key]
        if key in self._again:
            self._again.discard(key)
            self._look(key)

    async def _find_and_tell(self, key: str) -> None:
        await self._limit.acquire()
        try:
            found = await self._find(self._names[key])
        finally:
            self._limit.release()
        if found != self._last.get(key):
            self._last[key] = found
            self._told(found)
        await deferLater(self._clock, CHANGES_S)

    async def _find(self, name: str) -> Presence:
        try:
            said = (await self._seeds.locate(name, fresh=True)).said
        except MeshError:
            said = None
        return Presence(name, None, None) if said is None else Presence(name, said.online, said.seen)
