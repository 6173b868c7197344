"""A user node stays registered at one seed, its home, and goes to the next one when that is lost.

Registering is part of connecting, so a home is a seed that has answered our registration; a seed that does not is left
for the next one. Who is where a home is needed gets it by :class:`Resident`.
(Twisted's `ClientService` dials one endpoint, and does not survive the loss of a connection that `prepareConnection`
has rejected: its state machine has no transition for it.)
"""

from typing import Final, NamedTuple, Protocol

from msgspec import Raw
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from meshproto import wire
from meshproto.core.addresses import Addresses
from meshproto.core.identity import fingerprint, unb64
from meshproto.errors import MeshError, NameTaken, Unreachable
from meshproto.net.background import background
from meshproto.net.calls import Calls, Connect, dial

PING_S: Final = 10.0
"""A third of the lease: one ping may be lost."""
LOOK_S: Final = 0.5
"""How often it is looked whether a seed is known by now, while none is."""
NOBODY: Final = "no seed has been found on the local network yet"


class Home(NamedTuple):
    """`name` and `address` of the seed where this node is registered; `since`: ms since 1970 UTC, of the claim."""

    name: str
    address: str
    since: int


class Resident(Protocol):
    """Who lives at the home. The first three come in this order, and make it a home unless one raises
    :class:`MeshError`."""

    async def greet(self, address: str, calls: Calls) -> str:
        """Say hello; the seed's name."""

    async def register(self, calls: Calls) -> int:
        """Register; since when (ms since 1970 UTC) the name is this node's."""

    async def arriving(self, calls: Calls) -> None:
        """What has to be done before it counts as a home."""

    def arrived(self, home: Home, calls: Calls) -> None:
        """From now on it does."""

    def left(self) -> None:
        """It does not any more, or after :meth:`arriving` has not come to."""

    def notified(self, method: str, params: Raw) -> None:
        """The seed says something by itself. Raises :class:`MeshError` when it does not read."""


class HomeService(Service):
    """`problem`: why this node is registered nowhere, or was not at the last try; None while it is. `answered`: whether
    that is what a seed has said; False when none has answered the last try."""

    log = Logger()

    def __init__(self, resident: Resident, addresses: Addresses, clock: IReactorTime, connect: Connect) -> None:
        self._resident = resident
        self._addresses = addresses
        self._clock = clock
        self._connect = connect
        self._calls: Calls | None = None
        self._loop: Deferred[None] | None = None
        self._pinging: Deferred[None] = succeed(None)
        self._troubles: set[str] = set()
        self.home: Home | None = None
        self.problem: str | None = None
        self.answered = True

    def startService(self) -> None:
        super().startService()
        self._loop = background(self._stay(), self.log)

    def stopService(self) -> None:
        super().stopService()
        if self._loop is not None:
            self._loop.cancel()

    async def _stay(self) -> None:
        """Be registered somewhere, for as long as the service runs."""
        while True:
            address = self._addresses.next()
            if address is None:
                self._trouble(NOBODY, loud=False, answered=False)
                await deferLater(self._clock, LOOK_S)
                continue
            self._calls = calls = Calls(self._clock, self._notified)
            try:
                await self._settle(address, calls)
                self._addresses.failed()  # until it has answered a ping: it may hang up on whoever has registered
                await self._live(calls)
                self._trouble(f"lost the home seed {address}", loud=False, answered=False)
            except CancelledError:
                self._leave(calls)
                raise
            except MeshError as error:
                self._addresses.failed()
                loud, answered = isinstance(error, NameTaken), not isinstance(error, Unreachable)
                self._trouble(f"seed {address}: {error.detail}", loud=loud, answered=answered)
            except Exception:
                self._addresses.failed()  # a bug, or a seed that found one: the other seeds are tried all the same
                self.log.failure("a bug at seed {address}", address=address)
                self._trouble(f"seed {address}: internal error, the node's log says more", loud=True)
            self._leave(calls)
            if not self.running:
                return  # an endpoint that is told to give up may say so in words of its own
            await deferLater(self._clock, self._addresses.retry_delay_s())

    async def _settle(self, address: str, calls: Calls) -> None:
        """Connect, say hello and register; raises :class:`MeshError` when this seed will not be our home."""
        await dial(self._connect, address, calls, self._clock)
        name = await self._resident.greet(address, calls)
        since = await self._resident.register(calls)
        await self._resident.arriving(calls)
        self.problem, self.answered = None, True
        self._troubles.clear()
        self.home = Home(name, address, since)
        self._resident.arrived(self.home, calls)

    async def _live(self, calls: Calls) -> None:
        """Until the connection is lost."""
        self._pinging = background(self._ping(calls), self.log)
        await calls.lost

    def _leave(self, calls: Calls) -> None:
        self.home = None
        calls.close()
        self._pinging.cancel()
        self._resident.left()

    async def _ping(self, calls: Calls) -> None:
        try:
            while True:
                await deferLater(self._clock, PING_S)
                await calls.call("ping", wire.Nothing(), wire.Nothing)
                self._addresses.settled()
        except MeshError as error:
            self.log.debug("ping: {reason}", reason=error.detail)
        finally:
            calls.close()  # and on to the next seed

    def _notified(self, method: str, params: Raw) -> None:
        try:
            if method == "conflict":
                self._lost_the_name(wire.decode_value(params, wire.ConflictParams))
            else:
                self._resident.notified(method, params)
        except MeshError as error:
            self.log.warn("the home seed sent a notification that does not read: {reason}", reason=error.detail)

    def _lost_the_name(self, conflict: wire.ConflictParams) -> None:
        """Try the other seeds; they will say the same, until the owner of this node has chosen another name."""
        owner = fingerprint(unb64(conflict.key))
        self._trouble(f"the name {conflict.name} belongs to the key {owner}, which claimed it earlier", loud=True)
        if self._calls is not None:
            self._calls.close()

    def _trouble(self, what: str, *, loud: bool, answered: bool = True) -> None:
        """Each thing that is wrong is logged once, until this node is registered again."""
        if what not in self._troubles:
            self._troubles.add(what)
            (self.log.error if loud else self.log.warn)("{what}", what=what)
        self.problem, self.answered = what, answered
