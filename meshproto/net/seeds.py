"""A user node and the mesh: what it says of itself to seeds, and the parts that deal with them put together.

    home.py      stays registered at one seed, whichever answers
    finding.py   asks seeds where users are
    watching.py  has the home tell who comes back
    learning.py  has the home tell which seeds there are

All of them go by one table of seeds, :class:`meshproto.core.addresses.Addresses`. Only :class:`Seeds` knows them all;
nothing but a connection to the home goes from one to another, and it is here that one sees where.
"""

import random
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from msgspec import Raw
from twisted.application.service import Service
from twisted.internet.defer import succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from meshproto import wire
from meshproto.core.addresses import Addresses
from meshproto.core.identity import Identity, next_seq, verify
from meshproto.core.lookup import Located
from meshproto.core.meshkey import Applicant
from meshproto.core.reach import Reach, reach_of
from meshproto.errors import MeshError
from meshproto.net.background import background
from meshproto.net.calls import Calls, Connect, say_hello
from meshproto.net.clocks import NowMs
from meshproto.net.finding import Finding
from meshproto.net.home import Home, HomeService
from meshproto.net.learning import Learning
from meshproto.net.tallies import LookupTally
from meshproto.net.user_store import UserStore
from meshproto.net.watching import Watching

RENEW_AGAIN_S: Final = 60.0
"""When a record that was to be renewed is tried again, since the seed or the disk did not take it. The one before it is
good for two days more."""


class Own(NamedTuple):
    """A record of this node's, and the keys that it was signed with: `identity.mail` is the mail key in it."""

    signed: wire.SignedRecord
    identity: Identity


class Seeds(Service):
    """A :class:`meshproto.net.home.Resident`. `identity`: the keys in use. `uris` is called when it is time to
    register, after the node listens. `changed` gets the name of a watched user who is back, and whether that is sure
    (:class:`Watching`). `presence`: who is told of names that are held (:meth:`hold`)."""

    log = Logger()

    def __init__(
        self,
        user: str,
        identity: Callable[[], Identity],
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
        applicant: Applicant,
        changed: Callable[[str, bool], None],
    ) -> None:
        self.user = user
        self._identity = identity
        self._applicant = applicant
        self._uris = uris
        self._seq = last_seq
        self._store = store
        self._now_ms = now_ms
        self._clock = clock
        self._own: Own | None = None
        self._told: Own | None = None  # to the home
        self._double: str | None = None
        self._calls: Calls | None = None
        self._renewing = succeed(None)
        self._addresses = Addresses(given, learnt, rng)
        self._home = HomeService(self, self._addresses, clock, connect)
        self._finding = Finding(self._addresses, store, clock, connect, self._greet_link)
        self.seen_at = ""  # this machine's address on the connection over which it was registered last
        self.presence: set[Callable[[str], None]] = set()
        self._watching = Watching(changed=self._changed, back=changed)
        self._learning = Learning(self._addresses, store, clock, rng)

    def startService(self) -> None:
        super().startService()
        background(self._watching.hold(self.user), self.log)  # for somebody else with this node's key
        self._home.startService()

    def stopService(self) -> None:
        super().stopService()
        self._home.stopService()
        self._renewing.cancel()
        self._finding.close()

    # -- for the rest of the node --------------------------------------------------------------------------------

    @property
    def home(self) -> Home | None:
        """None: not registered anywhere at this moment."""
        return self._home.home

    @property
    def registered(self) -> bool:
        """Whether a seed leads others here."""
        return self.home is not None and self._double is None

    @property
    def problem(self) -> str | None:
        """Why not, in words for the owner."""
        return self._home.problem or self._double

    @property
    def answered(self) -> bool:
        """Whether a seed has answered the last try to register."""
        return self._home.answered

    @property
    def lookups(self) -> LookupTally:
        return self._finding.tally

    @property
    def seeds(self) -> list[wire.SeedInfo]:
        """The seeds there are, as the last home told of them."""
        return self._learning.seeds

    @property
    def known(self) -> list[str]:
        """Where a seed is, or may be: those given, and those learnt of."""
        return self._addresses.known()

    def give(self, addresses: Iterable[str]) -> None:
        """The seeds that the owner has chosen, in place of those before. A home stays one."""
        self._addresses.give(addresses)

    async def say_hello(self, address: str, calls: Calls) -> str:
        """On a connection that is nobody's home: the seed's name. Raises :class:`MeshError`."""
        return await say_hello(calls, address, self._applicant)

    @property
    def uris(self) -> list[str]:
        """Where this node says it can be reached."""
        return self._uris()

    def own(self) -> Own:
        """What this node says of itself: as it was last registered, or would be."""
        if self._own is None:
            self._own = self._signed(self._seq)
        return self._own

    def own_record(self) -> wire.SignedRecord:
        return self.own().signed

    def renew(self) -> None:
        """There are new keys, or addresses: say so in a new record, and to the home if there is one. Until the seed has
        it, others seal for the key before it."""
        self._renewing.cancel()
        self._renewing = background(self._renew(), self.log)

    async def locate(self, name: str, *, fresh: bool = False, print_: str | None = None) -> Located:
        """See :meth:`Finding.locate`."""
        return await self._finding.locate(name, fresh=fresh, print_=print_)

    def reach(self, located: Located, uri: str) -> Reach:
        """To which kinds of addresses the user's record may lead."""
        return reach_of(uri, self._uris(), neighbour=located.neighbour)

    def found(self, nearby: list[str]) -> None:
        """Where seeds announce themselves on the local network, all of them."""
        self._addresses.found(nearby)

    def forget(self, name: str) -> None:
        """What was known of where the user is was no good."""
        self._finding.forget(name)

    async def watch(self, name: str) -> None:
        """Have `changed` called when the user is registered anew, also after the home seed has changed."""
        await self._watching.watch(name)

    async def unwatch(self, name: str) -> None:
        await self._watching.unwatch(name)

    def hold(self, name: str) -> None:
        """Have all of :attr:`presence` called when the user may have come or gone, until :meth:`let_go`."""
        background(self._watching.hold(name), self.log)

    def let_go(self, name: str) -> None:
        background(self._watching.let_go(name), self.log)

    def _changed(self, name: str) -> None:
        self._finding.forget(name)
        self._look_again(name)

    def _look_again(self, name: str) -> None:
        for told in list(self.presence):
            told(name)

    # -- for the home --------------------------------------------------------------------------------------------

    async def greet(self, address: str, calls: Calls) -> str:
        name = await say_hello(calls, address, self._applicant)
        self._addresses.answered(address, name)
        calls.lost.addCallback(lambda _: self._addresses.ended(address))
        return name

    async def _greet_link(self, address: str, calls: Calls) -> None:
        await self.greet(address, calls)

    async def register(self, calls: Calls) -> int:
        self.seen_at = calls.own_host
        own = await self._sign_anew()
        since = (await calls.call("register", own.signed, wire.RegisterResult)).since
        self._told, self._double = own, None
        return since

    async def _sign_anew(self) -> Own:
        self._seq = seq = next_seq(self._seq, self._now_ms())
        await self._store.save_seq(seq)
        self._own = own = self._signed(seq)
        return own

    def _signed(self, seq: int) -> Own:
        identity = self._identity()
        return Own(identity.sign(self.user, self._uris(), seq), identity)

    async def _renew(self) -> None:
        while True:
            try:
                if self._calls is not None:
                    await self.register(self._calls)
                elif self._is_outdated():
                    await self._sign_anew()
                return
            except MeshError as error:
                self.log.warn("the new record is not known yet: {reason}", reason=error.detail)
            await deferLater(self._clock, RENEW_AGAIN_S)

    def _is_outdated(self) -> bool:
        return self._own is None or self._own.identity.mail != self._identity().mail

    async def arriving(self, calls: Calls) -> None:
        await self._watching.move_to(calls)

    def arrived(self, home: Home, calls: Calls) -> None:
        self.log.info("{name} is registered at {seed}", name=self.user, seed=f"{home.name} ({home.address})")
        self._finding.arrived(home, calls)
        self._learning.start(calls)
        self._watching.moved()
        for name in self._watching.held:
            self._look_again(name)
        self._calls = calls
        if self._told is not self._own or self._is_outdated():
            self.renew()  # it was told while the keys changed

    def left(self) -> None:
        self._calls = None
        self._finding.left()
        self._learning.stop()
        self._watching.left()

    def notified(self, method: str, params: Raw) -> None:
        if method == "changed":
            changed = wire.decode_value(params, wire.ChangedParams)
            if wire.fold(changed.name) == wire.fold(self.user) and changed.entry is not None:
                self._look_for_double(changed.entry)
            self._watching.notified(changed)

    def _look_for_double(self, told: wire.LookupResult) -> None:
        """A record that is signed with this node's key, and later than all that this node has signed: there is another
        with the key, a copy of the state directory, or the one that it was copied from. The later record counts, so
        what is sent to the name goes there; to take it back by force would have the two go on doing so for ever."""
        record = verify(wire.SignedRecord(told.record, told.sig))
        if record.key_bytes != self._identity().key or record.seq <= self._seq or not record.uris:
            return
        where = ", ".join(record.uris)
        double = f"another node has this one's key and name, and gets what is sent to {self.user}: {where}; stop one"
        if self._double != double:
            self.log.error("{what}", what=double)
        self._double = double
