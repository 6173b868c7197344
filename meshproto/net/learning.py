"""A user node asks its home, as long as it has one, which seeds there are, and keeps their addresses on disk."""

import random
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from meshproto import wire
from meshproto.core.addresses import Addresses
from meshproto.errors import MeshError
from meshproto.net.background import background
from meshproto.net.calls import Calls
from meshproto.net.user_store import UserStore

LEARN_S: Final = 30.0
"""How often the home seed is asked; a fifth more or less, so that its users do not ask all at once."""


class Learning:
    """`seeds`: as the last home told of them."""

    log = Logger()

    def __init__(self, addresses: Addresses, store: UserStore, clock: IReactorTime, rng: random.Random) -> None:
        self._addresses = addresses
        self._store = store
        self._clock = clock
        self._rng = rng
        self._loop: Deferred[None] | None = None
        self._saved = set(addresses.learnt)
        self.seeds: list[wire.SeedInfo] = []

    def start(self, calls: Calls) -> None:
        self._loop = background(self._learn(calls), self.log)

    def stop(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
            self._loop = None

    async def _learn(self, calls: Calls) -> None:
        while True:
            try:
                told = await calls.call("seeds", wire.Nothing(), wire.SeedsResult)
            except MeshError as error:
                self.log.debug("seeds: {reason}", reason=error.detail)
            else:
                self.seeds = told.seeds
                self._addresses.told(told.seeds, calls.host)
                await self._save()
            await deferLater(self._clock, LEARN_S * self._rng.uniform(0.8, 1.2))

    async def _save(self) -> None:
        """For the next start."""
        learnt = self._addresses.learnt
        if set(learnt) == self._saved:
            return
        try:
            await self._store.save_seeds(learnt)
            self._saved = set(learnt)
        except MeshError as error:
            self.log.error("the list of seeds was not saved: {reason}", reason=error.detail)
