"""A user's node: the parts of this package put together, started and stopped in order."""

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.web.server import Site

from meshproto.core.identity import Entropy, Identity, b64
from meshproto.core.meshkey import NO_KEYS, Applicant, Keyring
from meshproto.core.outbox import Outbox
from meshproto.net.accepting import Accepting
from meshproto.net.clocks import NowMs
from meshproto.net.contacts import Contacts
from meshproto.net.courier import Courier
from meshproto.net.doctor import Doctor
from meshproto.net.face import Face, site
from meshproto.net.front import Front
from meshproto.net.history import History
from meshproto.net.http_client import HTTPClient
from meshproto.net.keys import Keys
from meshproto.net.message_log import MessageLog
from meshproto.net.process_metrics import Commits
from meshproto.net.program import Program
from meshproto.net.programs import Programs
from meshproto.net.public_front import PublicFront
from meshproto.net.receiving import Receiving
from meshproto.net.retention import KEEP_ALL, Keep, Retention
from meshproto.net.seeds import Seeds
from meshproto.net.sending import Sending
from meshproto.net.tallies import HTTPTally
from meshproto.net.treq_client import TreqClient
from meshproto.net.user_metrics import UserMetrics
from meshproto.net.user_store import Start, UserStore
from meshproto.net.writers import ANYONE, Accept, Writers


class UserNode(Service):
    """`save`: see :class:`Keys`. `uris`: where peers reach this node; called once it listens with :attr:`site`, where
    nobody is the owner until :attr:`face` has a door; :attr:`public_site` is for listeners where nobody ever is.
    `now_ms`: the time that messages and records are stamped with; `reactor`: timers only, which must not stand still
    when somebody sets the clock. `peers`: the client for other users' nodes; `client`: the one for this node's own
    addresses. `programs`: what the inbox is handed over to, each with the cursor it begins after. `accept`: who may
    write to it. `commits`: what the store counts in; `message_log`: None where messages are not in the log.
    `http_tally`: what its listeners count in, for one more of them."""

    log = Logger()

    def __init__(
        self,
        name: str,
        identity: Identity,
        *,
        save: Callable[[Identity], None],
        uris: Callable[[], list[str]],
        seeds: list[str],
        store: UserStore,
        start: Start,
        peers: HTTPClient,
        client: TreqClient,
        connect: Callable[[str], IStreamClientEndpoint],
        reactor: Any,
        history: History,
        now_ms: NowMs,
        rng: random.Random,
        entropy: Entropy,
        register_tokens: Keyring = NO_KEYS,
        keep: Keep = KEEP_ALL,
        accept: Accept = ANYONE,
        programs: Iterable[tuple[Program, int]] = (),
        commits: Commits | None = None,
        message_log: MessageLog | None = None,
    ) -> None:
        self._commits = commits or Commits()
        self.http_tally = HTTPTally()
        self._store, self._waiting = store, start.waiting
        self.keys = Keys(identity, save, reactor, now_ms, entropy, rotated=self._renew)
        self._applicant = Applicant(name, register_tokens, entropy)
        self.seeds = Seeds(
            name,
            lambda: self.keys.current,
            uris,
            seeds,
            learnt=start.seeds,
            last_seq=start.seq,
            store=store,
            clock=reactor,
            now_ms=now_ms,
            rng=rng,
            connect=connect,
            applicant=self._applicant,
            changed=self._is_back,
        )
        contacts = Contacts(store.contacts, now_ms)
        self.sending = Sending(
            Outbox(rng), store.outbox, self.seeds, contacts, Courier(peers), reactor, now_ms, entropy, message_log
        )
        accepting = Accepting(self.seeds, contacts, store.outbox, self.sending, reactor)
        self._writers = Writers(
            accept, name, b64(identity.key), contacts, partial(self.seeds.locate, fresh=True), reactor
        )
        self.receiving = Receiving(
            lambda: self.keys.current,
            store.inbox,
            reactor,
            now_ms,
            entropy,
            self._writers.check,
            heard=self.sending.wake,
            message_log=message_log,
        )
        self.programs = Programs(programs, self.receiving, store, reactor, now_ms, rng)
        self.history = history
        self.retention = Retention(keep, store, self.programs, history, reactor, now_ms, self._mail_keys_made_ms)
        doctor = Doctor(self.seeds, connect, client, reactor, now_ms)
        self.front = self._make_front(identity.fingerprint, contacts, accepting, doctor, reactor, now_ms, entropy)
        self._open(PublicFront(self.seeds, self.receiving, store), reactor)

    def _open(self, public: PublicFront, clock: IReactorTime) -> None:
        self.face = Face(public, self.front, tally=self.http_tally)
        self.site: Site = site(self.face, clock)
        self.public_site: Site = site(Face(public, self.front, tally=self.http_tally), clock)

    def _make_front(
        self,
        print_: str,
        contacts: Contacts,
        accepting: Accepting,
        doctor: Doctor,
        clock: IReactorTime,
        now_ms: NowMs,
        entropy: Entropy,
    ) -> Front:
        return Front(
            print_,
            self.seeds,
            contacts,
            accepting,
            self.sending,
            self.receiving,
            self.programs,
            self.history,
            doctor,
            self._metrics(clock, now_ms).families,
            self._store,
            clock,
            now_ms,
            entropy,
        )

    def reconfigure(self, *, seeds: list[str], register_tokens: Keyring, keep: Keep, accept: Accept) -> None:
        """What may change while it runs. Nobody is sent away by it."""
        self.seeds.give(seeds)
        self._applicant.rekey(register_tokens)
        self.retention.keep = keep
        self._writers.accept = accept

    def _metrics(self, clock: IReactorTime, now_ms: NowMs) -> UserMetrics:
        return UserMetrics(
            self._store,
            self._commits,
            self.seeds,
            self.sending,
            self.receiving,
            self.programs,
            self.retention,
            self.http_tally,
            lambda: self.front.stream_readers,
            clock,
            now_ms,
        )

    def _mail_keys_made_ms(self) -> Sequence[int]:
        return self.keys.current.made_at_ms

    def _renew(self) -> None:
        self.seeds.renew()

    def _is_back(self, user: str, surely: bool) -> None:
        self.sending.hint(user, alive=surely)

    def startService(self) -> None:
        super().startService()
        self.keys.startService()
        self.seeds.startService()
        self.sending.startService()
        self.sending.restore(self._waiting)
        self.retention.startService()
        self.programs.startService()

    def stopService(self) -> "Deferred[None]":
        """What is under way ends, what waits is on disk."""
        super().stopService()
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        self.receiving.stop()
        self.front.stop()
        await self.history.stop()
        self.retention.stopService()
        self.keys.stopService()
        stopping: list[Deferred[Any]] = [self.sending.stopService(), self.programs.stopService()]
        await DeferredList(stopping)
        self.seeds.stopService()
        await self._store.close()
