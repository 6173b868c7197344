"""A user node's connection to the mesh: the home seed, the next one when it is lost, and lookups.

The home seed is picked at random among those that were given and those that seeds have told of. Registering is part of
connecting, so a home is a seed that has answered our registration; a seed that does not is left for the next one.
(Twisted's `ClientService` dials one endpoint, and does not survive the loss of a connection that `prepareConnection`
has rejected: its state machine has no transition for it.)
"""

import random
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, NamedTuple

from msgspec import Raw
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from meshproto import wire
from meshproto.core.identity import Identity, fingerprint, next_seq, unb64, verify
from meshproto.core.lookup import MISSING_TTL_S, Cache, Located, Said, Walk
from meshproto.errors import MeshError, NameTaken, PeerError, Unavailable, Unreachable, UserNotFound
from meshproto.net.calls import Calls, Connect, Links, dial
from meshproto.net.clocks import NowMs
from meshproto.net.user_store import UserStore

PING_S: Final = 10.0
LEARN_S: Final = 30.0
"""How often the home seed is asked which seeds there are."""
RETRY_FIRST_S: Final = 0.2
RETRY_MAX_S: Final = 5.0
"""While no seed answers. So a node is back this long after the network at most, and hurries nobody before."""
SEEDS_MAX: Final = 1000
"""Addresses remembered, those given at the start not counted."""
WATCHES_MAX: Final = 10_000


class Home(NamedTuple):
    """`name` and `address` of the seed where this node is registered; `since`: ms since 1970 UTC, of the claim."""

    name: str
    address: str
    since: int


class Seeds(Service):
    """`uris` is called when it is time to register, after the node listens. `changed` gets the name of a watched user
    who is back, and of each that may be: who came back while this node had no home was told of to nobody."""

    log = Logger()

    def __init__(
        self,
        user: str,
        identity: Identity,
        uris: Callable[[], list[str]],
        given: Iterable[str],
        *,
        learnt: Iterable[str],
        last_seq: int,
        store: UserStore,
        clock: IReactorTime,
        now_ms: NowMs,
        rng: random.Random,
        connect: Connect,
        changed: Callable[[str], None],
    ) -> None:
        self.user = user
        self._identity = identity
        self._uris = uris
        self._given = list(dict.fromkeys(given))
        self._learnt = [address for address in learnt if address not in self._given]
        self._seq = last_seq
        self._store = store
        self._clock = clock
        self._now_ms = now_ms
        self._rng = rng
        self._changed = changed
        self._connect = connect
        self._cache = Cache()
        self._dead: set[str] = set()  # addresses of seeds that the last home, or this node, found dead
        self._round: list[str] = []
        self._home: Home | None = None
        self._calls: Calls | None = None
        self._watched: dict[str, str] = {}
        self._names: dict[str, str] = {}  # address -> the seed that answered there, or is said to
        self._timers: list[IDelayedCall] = []
        self.seeds: list[wire.SeedInfo] = []
        self.problem: str | None = None
        self._troubles: set[str] = set()
        self._signed: wire.SignedRecord | None = None
        self._links = Links(clock, connect, self._greet)
        self._loop: Deferred[None] | None = None

    # -- the service ---------------------------------------------------------------------------------------------

    def startService(self) -> None:
        super().startService()
        self._loop = ensureDeferred(self._stay())
        self._loop.addErrback(self._bug)

    def stopService(self) -> None:
        super().stopService()
        self._stop_timers()
        self._links.close()
        if self._loop is not None:
            self._loop.cancel()
        if self._calls is not None:
            self._calls.close()

    @property
    def home(self) -> Home | None:
        """None: not registered anywhere at this moment."""
        return self._home

    @property
    def uris(self) -> list[str]:
        """Where this node says it can be reached."""
        return self._uris()

    def addresses(self) -> list[str]:
        """Every seed that is known, once, those given first."""
        given = {self._names.get(address) for address in self._given} - {None}
        others = [address for address in self._learnt if self._names.get(address) not in given]
        return [*self._given, *others]

    # -- lookups -------------------------------------------------------------------------------------------------

    async def locate(self, name: str, *, fresh: bool = False) -> Located:
        """Where the user is: from the cache (not when `fresh`), the seeds, or the last known record. Raises
        :class:`UserNotFound`, or :class:`Unavailable` when no seed answers and nothing is known."""
        now = self._clock.seconds()
        if not fresh:
            cached = self._cache.get(name, now)
            if cached is not None:
                return cached
            if self._cache.is_missing(name, now):
                raise UserNotFound(f"no seed knows {name}", retry_after_s=MISSING_TTL_S)
        located = await self._walk(name)
        if located is not None:
            self._cache.found(name, located, self._clock.seconds())
            return located
        contact = await self._store.contacts.get(name)
        if contact is None:
            raise Unavailable(f"no seed can be reached, and no address of {name} is known", retry_after_s=5.0)
        return Located(verify(contact.signed), contact.signed, None)

    def forget(self, name: str) -> None:
        """What was cached of the user was no good."""
        self._cache.drop(name)

    async def _walk(self, name: str) -> Located | None:
        """None: no seed could be reached."""
        home = self._home.address if self._home else None
        dead = self._dead.difference(self._given) if home else frozenset[str]()
        known = [address for address in self.addresses() if address not in dead]
        walk = Walk(home, self._rng.sample(known, len(known)))
        found: list[Located] = []
        over: Deferred[None] = Deferred()

        def go_on(_: object = None) -> None:
            if over.called:
                return
            if walk.over:
                over.callback(None)
                return
            for address in walk.next():
                asked = ensureDeferred(self._ask_one(address, name, walk, found))
                asked.addCallbacks(go_on, bug)

        def bug(failure: Failure) -> None:
            if not over.called:
                over.errback(failure)

        go_on()
        await over
        if found:
            return found[0]
        if walk.missing:
            self._cache.missing(name, self._clock.seconds())
            raise UserNotFound(f"no seed knows {name}", retry_after_s=MISSING_TTL_S)
        return None

    async def _ask_one(self, address: str, name: str, walk: Walk, found: list[Located]) -> None:
        try:
            at_home = self._home is not None and address == self._home.address
            calls = self._calls if at_home and self._calls else await self._links.get(address)
            said = await calls.call("lookup", wire.NameParams(name), wire.LookupResult)
            record = verify(said.signed)
            if wire.fold(record.name) != wire.fold(name) or not record.uris:
                raise PeerError(f"the seed answered with a record of {record.name}")
        except UserNotFound:
            walk.heard(address, Said.MISSING)
        except MeshError as error:
            if isinstance(error, Unreachable):
                self._dead.add(address)
            self.log.debug("lookup of {name} at {address}: {reason}", name=name, address=address, reason=error.detail)
            walk.heard(address, Said.SILENT)
        else:
            found.append(Located(record, said.signed, said))
            walk.heard(address, Said.FOUND)

    async def watch(self, name: str) -> None:
        """Have `changed` called when the user is registered anew, also after the home seed has changed."""
        key = wire.fold(name)
        if key in self._watched or len(self._watched) >= WATCHES_MAX:
            return
        self._watched[key] = name
        if self._calls is not None and self._home is not None:
            try:
                await self._calls.call("watch", wire.WatchParams([name]), wire.Nothing)
            except MeshError as error:
                self.log.debug("cannot watch {name}: {reason}", name=name, reason=error.detail)

    async def unwatch(self, name: str) -> None:
        if self._watched.pop(wire.fold(name), None) is not None and self._calls is not None:
            try:
                await self._calls.call("unwatch", wire.WatchParams([name]), wire.Nothing)
            except MeshError as error:
                self.log.debug("cannot unwatch {name}: {reason}", name=name, reason=error.detail)

    def _notified(self, method: str, params: Raw) -> None:
        try:
            if method == "conflict":
                self._lost_the_name(wire.decode_value(params, wire.ConflictParams))
            elif method == "changed":
                self._has_changed(wire.decode_value(params, wire.ChangedParams))
        except MeshError as error:
            self.log.warn("the home seed sent a notification that does not read: {reason}", reason=error.detail)

    def _lost_the_name(self, conflict: wire.ConflictParams) -> None:
        """Try the other seeds; they will say the same, until the owner of this node has chosen another name."""
        owner = fingerprint(unb64(conflict.key))
        self._trouble(f"the name {conflict.name} belongs to the key {owner}, which claimed it earlier", loud=True)
        if self._calls is not None:
            self._calls.close()

    def _has_changed(self, changed: wire.ChangedParams) -> None:
        self._cache.drop(changed.name)
        if changed.entry is not None and changed.entry.online:
            self._changed(changed.name)

    # -- home ----------------------------------------------------------------------------------------------------

    async def _stay(self) -> None:
        """Be registered somewhere, for as long as the service runs."""
        failed = 0
        while True:
            address = self._next()
            calls = Calls(self._clock, self._notified)
            try:
                await self._settle(address, calls)
                failed = 0
                await calls.lost
                self._trouble(f"lost the home seed {address}", loud=False)
            except MeshError as error:
                failed += 1
                self._trouble(f"seed {address}: {error.detail}", loud=isinstance(error, NameTaken))
            except CancelledError:
                raise
            except Exception:
                failed += 1  # a bug, or a seed that found one: the other seeds are tried all the same
                self.log.failure("a bug at seed {address}", address=address)
                self._trouble(f"seed {address}: internal error, the node's log says more", loud=True)
            finally:
                self._stop_timers()
                self._calls = self._home = None
                self._cache.drop_missing()
                calls.close()
            if not self.running:
                return  # an endpoint that is told to give up may say so in words of its own
            await deferLater(self._clock, self._retry_delay(failed))

    def _next(self) -> str:
        """The seed to try: each known one once in a round, in random order, those last that the last home called
        dead: it may have been wrong, and they may be back."""
        if not self._round:
            known = self.addresses()
            self._round = self._rng.sample(known, len(known))
            self._round.sort(key=lambda address: address not in self._dead)  # taken from the end
        return self._round.pop()

    def _retry_delay(self, failed: int) -> float:
        """The other seeds are tried at once; after a whole round in vain the waiting begins."""
        rounds = failed / max(1, len(self.addresses()))
        if rounds < 1:
            return 0.05 * self._rng.random()
        return min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(rounds, 30)) * self._rng.uniform(0.5, 1.0)

    async def _settle(self, address: str, calls: Calls) -> None:
        """Connect, say hello and register; raises :class:`MeshError` when this seed will not be our home."""
        await dial(self._connect, address, calls, self._clock)
        await self._greet(address, calls)
        registered = await self._register(calls)
        names = list(self._watched.values())
        for at in range(0, len(names), wire.WATCH_NAMES_MAX):
            await calls.call("watch", wire.WatchParams(names[at : at + wire.WATCH_NAMES_MAX]), wire.Nothing)
        self._calls = calls
        self._home = Home(self._names[address], address, registered.since)
        self.problem = None
        self._troubles.clear()
        self._round.clear()
        self.log.info("{name} is registered at {seed}", name=self.user, seed=f"{self._home.name} ({address})")
        self._later(PING_S, self._ping)
        self._later(0, self._learn)
        for name in names:
            self._changed(name)

    async def _greet(self, address: str, calls: Calls) -> None:
        hello = wire.HelloParams(wire.PROTOCOL_VERSION, "user", self.user)
        self._names[address] = (await calls.call("hello", hello, wire.HelloResult)).seed
        self._dead.discard(address)

    async def _register(self, calls: Calls) -> wire.RegisterResult:
        self._seq = next_seq(self._seq, self._now_ms())
        await self._store.save_seq(self._seq)
        self._signed = self._identity.sign(self.user, self._uris(), self._seq)
        return await calls.call("register", self._signed, wire.RegisterResult)

    def own_record(self) -> wire.SignedRecord:
        """What this node says of itself: as it was last registered, or would be."""
        if self._signed is None:
            self._signed = self._identity.sign(self.user, self._uris(), self._seq)
        return self._signed

    async def _ping(self) -> None:
        calls = self._calls
        if calls is None:
            return
        try:
            await calls.call("ping", wire.Nothing(), wire.Nothing)
        except MeshError:
            calls.close()  # and on to the next seed
            return
        self._later(PING_S, self._ping)

    async def _learn(self) -> None:
        """Ask the home seed which seeds there are, and keep them for the next start."""
        if self._calls is None:
            return
        try:
            told = await self._calls.call("seeds", wire.Nothing(), wire.SeedsResult)
        except MeshError as error:
            self.log.debug("seeds: {reason}", reason=error.detail)
            return
        self.seeds = told.seeds
        where = {seed.name: seed.address for seed in told.seeds}
        # Who has moved is told of elsewhere; what answered at an address that was given may be told of under another.
        self._names = {at: name for at, name in self._names.items() if name not in where or at in self._given}
        self._names |= {address: name for name, address in where.items()}
        # A home that was cut off, or has just started, tells of too few.
        kept = [address for address in self._learnt if self._names.get(address) not in where]
        self._dead = {seed.address for seed in told.seeds if not seed.alive} | self._dead.intersection(kept)
        known = dict.fromkeys([*(seed.address for seed in told.seeds if _dialable(seed.address)), *kept])
        learnt = [address for address in known if address not in self._given][:SEEDS_MAX]
        if set(learnt) != set(self._learnt):
            self._learnt = learnt
            try:
                await self._store.save_seeds(learnt)
            except MeshError as error:
                self.log.error("the list of seeds was not saved: {reason}", reason=error.detail)
        self._later(LEARN_S * self._rng.uniform(0.8, 1.2), self._learn)

    def _trouble(self, what: str, *, loud: bool) -> None:
        """Each thing that is wrong is logged once, until this node is registered again."""
        if what not in self._troubles:
            self._troubles.add(what)
            (self.log.error if loud else self.log.warn)("{what}", what=what)
        self.problem = what

    def _later(self, delay_s: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._timers = [timer for timer in self._timers if timer.active()]

        def run() -> None:
            ensureDeferred(work()).addErrback(self._bug)

        if self.running:
            self._timers.append(self._clock.callLater(delay_s, run))

    def _bug(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self.log.failure("a bug", failure=failure)

    def _stop_timers(self) -> None:
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        self._timers = []


def _dialable(address: str) -> bool:
    try:
        wire.split_address(address)
    except MeshError:
        return False
    return True
