"""Where a user is, as the seeds say: the home seed first, then the others, in bounded time.

The rules are :class:`meshproto.core.lookup.Walk`'s. A search lets go of what is under way when it is over: of dials,
and of places in the queue for a connection that is being made. Only a request that was sent stays, until it is
answered or overdue: that finds out a connection that is dead (:class:`meshproto.net.calls.Calls`).
"""

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from msgspec.structs import replace
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from meshproto import wire
from meshproto.core.addresses import Addresses
from meshproto.core.identity import fingerprint, verify_once
from meshproto.core.lookup import LOOKUP_S, MISSING_TTL_S, Cache, Located, Said, Walk
from meshproto.core.reach import Kind, kind_of
from meshproto.errors import MeshError, NoSeedAnswers, PeerError, ShuttingDown, Unavailable, Unreachable, UserNotFound
from meshproto.net.calls import Calls, Connect, Greet, Links
from meshproto.net.deferred import shield
from meshproto.net.home import Home
from meshproto.net.tallies import LookupTally
from meshproto.net.user_store import UserStore


class _AtHome(NamedTuple):
    """`here`: the home seed is on this machine."""

    home: Home
    calls: Calls
    here: bool


class Finding:
    log = Logger()

    def __init__(
        self,
        addresses: Addresses,
        store: UserStore,
        clock: IReactorTime,
        connect: Connect,
        greet: Greet,
    ) -> None:
        self.tally = LookupTally()
        self._addresses = addresses
        self._store = store
        self._clock = clock
        self._links = Links(clock, connect, greet)
        self._cache = Cache()
        self._home: _AtHome | None = None
        self._searches: set[_Search] = set()
        self._closed = False

    async def locate(self, name: str, *, fresh: bool = False, print_: str | None = None) -> Located:
        """Where the user is: from the cache (not when `fresh`), the seeds, or the last known record. Raises
        :class:`UserNotFound`, or :class:`Unavailable` when no seed answers and nothing is known. Asks the seeds for
        :data:`LOOKUP_S` at most. `print_`: the fingerprint of the key that is wanted. A seed that answers with another
        key has not answered as long as others may; when none knows that key it is what the first has said."""
        now = self._clock.seconds()
        if not fresh:
            cached = self._cache.get(name, now)
            if cached is not None and (_has_key(cached, print_) or self._cache.is_missing(f"{name}~{print_}", now)):
                self.tally.cached += 1
                return cached
            if self._cache.is_missing(name, now):
                self.tally.missing += 1
                raise _not_found(name)
        search = await self._search(name, print_)
        found = search.found or search.other
        if found is not None:
            self.tally.seed += 1
            located = await self._newest(found)
            self._cache.found(name, located, self._clock.seconds())
            if search.found is None:
                self._cache.missing(f"{name}~{print_}", self._clock.seconds())
            return located
        if search.verdict is Said.MISSING:
            self.tally.missing += 1
            self._cache.missing(name, self._clock.seconds())
            raise _not_found(name)
        contact = await self._store.contacts.get(name)
        if contact is None:
            self.tally.silent += 1
            raise NoSeedAnswers(f"{search.why}, and no address of {name} is known", retry_after_s=LOOKUP_S)
        self.tally.known += 1
        return Located(verify_once(contact.signed), contact.signed, None)

    async def _newest(self, located: Located) -> Located:
        """A seed is behind at times, or repeats what was true once: a newer record that the contact has sent counts
        more. Asked of the disk, and only when a seed was: no memory hears of what comes by mail."""
        try:
            contact = await self._store.contacts.get(located.record.name)
        except Unavailable:
            return located
        if contact is None or contact.key != located.record.key or contact.signed == located.signed:
            return located
        known = verify_once(contact.signed)
        if known.seq <= located.record.seq or not known.uris:
            return located
        # The seed has seen where the addresses it was given came from, and no others.
        neighbour = located.neighbour and known.uris == located.record.uris
        return replace(located, record=known, signed=contact.signed, neighbour=neighbour)

    def forget(self, name: str) -> None:
        """What was cached of the user was no good."""
        self._cache.drop(name)

    def arrived(self, home: Home, calls: Calls) -> None:
        """The home seed, and the connection to it."""
        self._home = _AtHome(home, calls, kind_of(calls.host) is Kind.LOOPBACK)

    def left(self) -> None:
        self._home = None
        self._cache.drop_missing()

    def close(self) -> None:
        """Nobody is looked for any more; who still waits is told."""
        self._closed = True
        for search in list(self._searches):
            search.stop(ShuttingDown())
        self._links.close()

    async def _search(self, name: str, print_: str | None) -> "_Search":
        if self._closed:
            raise ShuttingDown
        home = self._home.home.address if self._home is not None else None
        others = self._addresses.to_ask(at_home=home is not None)
        walk = Walk(home, others, self._clock.seconds())
        search = _Search(walk, lambda at: self._ask(at, name), lambda found: _has_key(found, print_), self._clock)
        self._searches.add(search)
        try:
            await search.run()
        finally:
            self._searches.discard(search)
        for address in search.unreachable:
            self._addresses.silent(address)
        return search

    async def _ask(self, address: str, name: str) -> Located:
        """What one seed says. Raises :class:`MeshError`."""
        at = self._home if self._home is not None and self._home.home.address == address else None
        calls = at.calls if at is not None else await self._links.get(address)
        said = await shield(ensureDeferred(calls.call("lookup", wire.NameParams(name), wire.LookupResult)))
        record = verify_once(said.signed)
        if wire.fold(record.name) != wire.fold(name) or not record.uris:
            raise PeerError(f"the seed answered with a record of {record.name}")
        neighbour = at is not None and at.here and said.home == at.home.name
        return Located(record, said.signed, said, neighbour)


class _Search:
    """One walk: `ask` is what is done at an address, and `fits` says whether the answer is what is looked for. After
    :meth:`run`: what was `found`, the first `other` answer that does not fit, the `verdict`, `why` nothing is known,
    and who was `unreachable`."""

    log = Logger()

    def __init__(
        self,
        walk: Walk,
        ask: Callable[[str], Coroutine[Any, Any, Located]],
        fits: Callable[[Located], bool],
        clock: IReactorTime,
    ) -> None:
        self._walk = walk
        self._ask = ask
        self._fits = fits
        self._clock = clock
        self._under_way: list[Deferred[None]] = []
        self._news: Deferred[None] = Deferred()
        self._over = False
        self.found: Located | None = None
        self.other: Located | None = None
        self.verdict = Said.SILENT
        self.why = "no seed can be reached"
        self.unreachable: set[str] = set()

    async def run(self) -> None:
        try:
            await self._search()
        except Exception:
            self._end()
            raise
        self._end()

    def _end(self) -> None:
        self._over = True
        for asking in self._under_way:
            asking.cancel()

    async def _search(self) -> None:
        while not self._walk.over(now := self._clock.seconds()):
            self._news = Deferred()  # before they are asked: somebody may fail at once
            for address in self._walk.next(now):
                self._begin(address)
            timer = self._clock.callLater(self._walk.wake_at(now) - now, self._go_on)
            try:
                await self._news
            finally:
                if timer.active():
                    timer.cancel()
        self._conclude(now)

    def stop(self, error: MeshError) -> None:
        if not self._news.called:
            self._news.errback(error)

    def _go_on(self) -> None:
        if not self._news.called:
            self._news.callback(None)

    def _begin(self, address: str) -> None:
        def located(found: Located) -> None:
            if self._over:
                return
            if self._fits(found):
                self.found = self.found or found
                self._walk.heard(address, Said.FOUND)
            else:
                self.other = self.other or found
                self._walk.heard(address, Said.MISSING)

        def failed(failure: Failure) -> None:
            if self._over:
                return
            error = failure.value
            if not isinstance(error, MeshError):
                self.log.failure("a bug", failure=failure)
            elif isinstance(error, Unreachable):
                self.unreachable.add(address)
            missing = isinstance(error, UserNotFound)
            if not missing:  # a stranger may have names looked up that nobody has
                self.log.debug("lookup at {address}: {reason}", address=address, reason=error)
            self._walk.heard(address, Said.MISSING if missing else Said.SILENT)

        asking = ensureDeferred(self._ask(address)).addCallbacks(located, failed)
        self._under_way.append(asking.addCallback(lambda _: self._go_on()))

    def _conclude(self, now: float) -> None:
        self.verdict = self._walk.verdict(now)
        if self.verdict is Said.FOUND or self._walk.complete:
            return
        self.unreachable.update(self._walk.slow(now))
        who = "not every seed" if self._walk.missing else "no seed"
        self.why = f"{who} answered within {LOOKUP_S:g} s"


def _has_key(located: Located, print_: str | None) -> bool:
    """Whether it is a record of the key with this fingerprint; None: any key will do."""
    return print_ is None or fingerprint(located.record.key_bytes) == print_


def _not_found(name: str) -> UserNotFound:
    return UserNotFound(f"no seed knows {name}", retry_after_s=MISSING_TTL_S)
