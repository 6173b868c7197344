"""A user's node: the parts of this package put together, started and stopped in order."""

import random
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger
from twisted.web.server import Site

from meshproto.core.identity import Entropy, Identity
from meshproto.core.outbox import Outbox
from meshproto.net.clocks import NowMs
from meshproto.net.courier import Courier, HTTPClient
from meshproto.net.front import Front, site
from meshproto.net.receiving import Receiving
from meshproto.net.seeds import Seeds
from meshproto.net.sending import Sending
from meshproto.net.user_store import Start, UserStore


class UserNode(Service):
    """`uris`: where peers reach this node; called once it listens with :attr:`site`. `now_ms`: the time that messages
    and records are stamped with; `reactor`: timers only, which must not stand still when somebody sets the clock."""

    log = Logger()

    def __init__(
        self,
        name: str,
        identity: Identity,
        *,
        uris: Callable[[], list[str]],
        seeds: list[str],
        store: UserStore,
        start: Start,
        client: HTTPClient,
        connect: Callable[[str], IStreamClientEndpoint],
        reactor: Any,
        now_ms: NowMs,
        rng: random.Random,
        entropy: Entropy,
    ) -> None:
        self._store = store
        self._waiting = start.waiting
        self.seeds = Seeds(
            name,
            identity,
            uris,
            seeds,
            learnt=start.seeds,
            last_seq=start.seq,
            store=store,
            clock=reactor,
            now_ms=now_ms,
            rng=rng,
            connect=connect,
            changed=self._is_back,
        )
        self.sending = Sending(
            identity, Outbox(rng), store, self.seeds, Courier(client, reactor), reactor, now_ms, entropy
        )
        self.receiving = Receiving(identity, store, reactor, now_ms, entropy, heard=self.sending.wake)
        self.front = Front(identity, self.seeds, self.sending, self.receiving, store, reactor, now_ms, entropy)
        self.site: Site = site(self.front, reactor)

    def _is_back(self, user: str) -> None:
        self.sending.wake(user)

    def startService(self) -> None:
        super().startService()
        self.seeds.startService()
        self.sending.startService()
        self.sending.restore(self._waiting)

    def stopService(self) -> "Deferred[None]":
        """What is under way ends, what waits is on disk."""
        super().stopService()
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        self.receiving.stop()
        await self.sending.stopService()
        self.seeds.stopService()
        await self._store.close()
