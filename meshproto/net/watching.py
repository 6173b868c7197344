"""A user node has its home seed tell when those come back for whom messages wait, and when those come and go whom
somebody looks at."""

from collections import Counter
from collections.abc import Callable
from typing import Final

from twisted.logger import Logger

from meshproto import wire
from meshproto.errors import MeshError
from meshproto.net.calls import Calls

WATCHES_MAX: Final = 10_000
"""As many as a seed keeps for one connection. Whoever is not watched is tried again now and then all the same."""


class Watching:
    """`changed` gets the name when a watched user was registered anew, came or went: what was known of them may be
    wrong. `back` gets it then of each who is online, and True; and after every change of the home of all
    for whom messages wait, and False: who came back while this node had none was told of to nobody.

    What a seed tells here is a reason to look, and never what is believed: the records in it are not read."""

    log = Logger()

    def __init__(self, changed: Callable[[str], None], back: Callable[[str, bool], None]) -> None:
        self._changed = changed
        self._back = back
        self._names: dict[str, str] = {}  # folded -> as it was given
        self._waited_for: set[str] = set()
        self._held: Counter[str] = Counter()
        self._calls: Calls | None = None

    async def watch(self, name: str) -> None:
        """Messages wait for them."""
        if self._has_room(name):
            self._waited_for.add(wire.fold(name))
            await self._begin(name)

    async def unwatch(self, name: str) -> None:
        """They wait no longer."""
        self._waited_for.discard(wire.fold(name))
        await self._end(name)

    async def hold(self, name: str) -> None:
        """Somebody looks at them."""
        self._held[wire.fold(name)] += 1
        if self._has_room(name):
            await self._begin(name)

    async def let_go(self, name: str) -> None:
        """And looks away; each that did :meth:`hold` does it once."""
        self._held -= Counter([wire.fold(name)])
        await self._end(name)

    @property
    def held(self) -> list[str]:
        """Whom somebody looks at, folded."""
        return list(self._held)

    def _has_room(self, name: str) -> bool:
        return wire.fold(name) in self._names or len(self._names) < WATCHES_MAX

    async def _begin(self, name: str) -> None:
        if wire.fold(name) in self._names:
            return
        self._names[wire.fold(name)] = name
        try:
            if self._calls is not None:
                await self._calls.call("watch", wire.WatchParams([name]), wire.Nothing)
        except MeshError as error:
            self.log.debug("cannot watch {name}: {reason}", name=name, reason=error.detail)

    async def _end(self, name: str) -> None:
        key = wire.fold(name)
        if key in self._waited_for or key in self._held:
            return
        known = self._names.pop(key, None) is not None
        try:
            if known and self._calls is not None:
                await self._calls.call("unwatch", wire.WatchParams([name]), wire.Nothing)
        except MeshError as error:
            self.log.debug("cannot unwatch {name}: {reason}", name=name, reason=error.detail)

    def notified(self, changed: wire.ChangedParams) -> None:
        if wire.fold(changed.name) in self._names:
            self._changed(changed.name)
            if changed.entry is not None and changed.entry.online:
                self._back(changed.name, True)

    # -- as homes come and go ------------------------------------------------------------------------------------

    async def move_to(self, calls: Calls) -> None:
        """Have the seed to be the next home watch them. Raises :class:`MeshError`."""
        self._calls = calls  # who is to be watched from now on is told of there
        names = list(self._names.values())
        for at in range(0, len(names), wire.WATCH_NAMES_MAX):
            await calls.call("watch", wire.WatchParams(names[at : at + wire.WATCH_NAMES_MAX]), wire.Nothing)

    def moved(self) -> None:
        for key, name in list(self._names.items()):
            if key in self._waited_for:
                self._back(name, False)

    def left(self) -> None:
        self._calls = None
