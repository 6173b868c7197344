"""A seed's part in a directory that seeds share: it joins when the store answers, and counts now and then."""

import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from meshproto.core.effects import Effect
from meshproto.core.names import Names, Parts
from meshproto.core.shared import Shared
from meshproto.core.shared_rules import read_value
from meshproto.errors import BadState, MeshError, Unavailable
from meshproto.net.redis_store import RedisStore
from meshproto.wire import EntryValue

MakeStore = Callable[[Callable[[str], None], Callable[[], None]], RedisStore]
"""Given what is called for a key that has changed, and when the store is back."""

COUNT_S: Final = 10.0
"""How old the number of names may be that a seed tells."""
JOIN_AGAIN_S: Final = 1.0
SETTLED_LOOK_S: Final = 0.2
"""How often a seed looks whether all that it brings along is in the store."""


class Bringing:
    """Takes over what another directory has, once, while the seed runs. :attr:`take` is the seed's: it gets some, and
    whether those were the last."""

    log = Logger()

    def __init__(self, make_store: MakeStore, reactor: Any) -> None:
        self._store = make_store(lambda _: None, lambda: None)
        self._reactor = reactor
        self.take: Callable[[list[tuple[str, EntryValue]], bool], None] = lambda _, __: None
        self._work: Deferred[None] | None = None
        self._brought = 0

    def start(self) -> None:
        self._work = ensureDeferred(self._bring())
        self._work.addErrback(lambda failure: failure.trap(CancelledError))
        self._work.addErrback(lambda failure: self.log.failure("a bug", failure=failure))

    async def stop(self) -> None:
        if self._work is not None:
            self._work.cancel()
        await self._store.close()

    async def _bring(self) -> None:
        self.take([], False)
        while True:
            try:
                self._brought = 0
                await self._store.open()
                await self._store.read_all(self._some)
            except (Unavailable, BadState) as gone:
                self.log.warn("{reason}: it is read again", reason=gone.detail)
                await deferLater(self._reactor, JOIN_AGAIN_S)
            else:
                break
        self.take([], True)
        self.log.info("{count} names were taken over: leave out --directory-import from now on", count=self._brought)

    def _some(self, found: list[tuple[str, bytes]]) -> None:
        entries = []
        for key, kept in found:
            try:
                entries.append((key, read_value(kept)))
            except MeshError as damaged:
                self.log.warn("{key}: {reason}", key=key, reason=damaged.detail)
        self._brought += len(entries)
        self.take(entries, False)


class Sharing:
    """`clock`: s since 1970 UTC; `entries`: what this seed had on its own disk. :attr:`carry_out` and :attr:`share` are
    the seed's."""

    log = Logger()

    def __init__(
        self,
        make_store: MakeStore,
        reactor: Any,
        clock: Callable[[], float],
        entries: Iterable[tuple[str, EntryValue]],
    ) -> None:
        self.store = make_store(self._changed, self._resumed)
        self.carry_out: Callable[[Iterable[Effect]], None] = lambda _: None
        self.share: Callable[[str], None] = lambda _: None
        self._reactor = reactor
        self._clock = clock
        self._entries = entries
        self._names: Shared | None = None
        self._work: Deferred[None] | None = None

    def make_names(self, parts: Parts, _: float) -> Names:
        self._names = Shared(parts, self.store, self._clock, self._entries)
        return self._names

    def start(self) -> None:
        self._work = ensureDeferred(self._join())
        self._work.addErrback(lambda failure: failure.trap(CancelledError))
        self._work.addErrback(lambda failure: self.log.failure("a bug", failure=failure))

    async def stop(self) -> None:
        if self._work is not None:
            self._work.cancel()
        await self.store.close()

    async def _join(self) -> None:
        while True:
            try:
                await self.store.open()
                directory = await self.store.identity()
            except Unavailable as gone:
                self.log.warn("{reason}: it is tried again", reason=gone.detail)
                await deferLater(self._reactor, JOIN_AGAIN_S)
            except BadState as wrong:
                self.log.error("{reason}", reason=wrong.detail)
                print(f"meshseed: {wrong.detail}", file=sys.__stderr__)  # sys.stderr is twistd's log
                self._reactor.stop()
                return
            else:
                break
        while self._names is None or not self._names.settled:
            await deferLater(self._reactor, SETTLED_LOOK_S)
        self.log.info("the directory {directory} is shared", directory=directory)
        self.share(directory)
        while True:
            await self._count()
            await deferLater(self._reactor, COUNT_S)

    async def _count(self) -> None:
        try:
            names = await self.store.count()
        except Unavailable:
            return
        if self._names is not None:
            self._names.names = max(0, names - 1)  # one is the directory's own name

    def _changed(self, key: str) -> None:
        if self._names is not None:
            self.carry_out(self._names.changed(key))

    def _resumed(self) -> None:
        if self._names is not None:
            self.carry_out(self._names.resumed())
