"""Seeds and users of one local network find each other there, without an address that anybody would have typed.

A thin shell: what to make of an announcement says :mod:`meshproto.core.nearby`, multicast DNS is spoken by
:mod:`meshproto.net.multicast`. The machine's addresses may change at any time; then all begins anew.
"""

from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Interface
from typing import Any, Final, Protocol

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from meshproto.core.nearby import Announcement, Nearby
from meshproto.errors import BadState
from meshproto.net.background import background
from meshproto.net.interfaces import lan_interfaces

LOOK_S: Final = 5.0
"""How often the machine's addresses are looked at: a laptop that has come to another network is found there soon."""
TELL_S: Final = 0.5
"""What is announced within it is told together: a flood of announcements is two changes a second."""
ANNOUNCE_AGAIN_S: Final = 60.0
"""When an announcement that was not made is tried again: who had the name may be gone."""


class Speaker(Protocol):
    """See :class:`meshproto.net.multicast.Multicast`; each call waits."""

    def announce(self, said: Announcement) -> None: ...

    def close(self) -> None: ...


Open = Callable[[list[str], Callable[[Announcement], None], Callable[[str], None]], Speaker]


def _multicast(hosts: list[str], heard: Callable[[Announcement], None], withdrawn: Callable[[str], None]) -> Speaker:
    from meshproto.net.multicast import Multicast  # noqa: PLC0415 - whoever does not ask for it does without its 8 MB

    return Multicast(hosts, heard, withdrawn)


class Lan(Service):
    """`moved`: called with the machine's addresses on local networks, whenever they are others; says at which of them
    the node can be reached. `announce`: what to announce, given those; None: a user's node announces nothing. `found`:
    told where the seeds are, whenever that has changed."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        nearby: Nearby,
        *,
        moved: Callable[[list[IPv4Interface]], list[str]],
        announce: Callable[[list[str]], Announcement] | None,
        found: Callable[[list[str]], None],
        interfaces: Callable[[], list[IPv4Interface]] = lan_interfaces,
        open_: Open = _multicast,
        in_thread: Callable[..., "Deferred[Any]"] | None = None,
    ) -> None:
        self._reactor = reactor
        self._nearby = nearby
        self._moved = moved
        self._announce = announce
        self._found = found
        self._interfaces = interfaces
        self._open = open_
        self._in_thread = in_thread or partial(deferToThreadPool, reactor, reactor.getThreadPool())
        self._here: list[IPv4Interface] | None = None
        self._hosts: list[str] = []
        self._speaker: Speaker | None = None
        self._session: object = None  # of the speaker, from before it begins: what comes later of another is old
        self._announce_at: float | None = None  # when that is to be tried; None: it is done
        self._told: list[str] = []
        self._said = ""  # what was wrong at the last look
        self._telling: IDelayedCall | None = None
        self._pause: Deferred[None] = succeed(None)
        self._loop: Deferred[None] = succeed(None)

    def startService(self) -> None:
        super().startService()
        self._loop = background(self._stay(), self.log)

    def stopService(self) -> "Deferred[None]":
        """Fires when what was announced is withdrawn."""
        super().stopService()
        self._pause.cancel()
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        return self._loop

    async def _stay(self) -> None:
        while self.running:
            try:
                await self._look()
                self._said = self._said if self._announce_at is not None else ""
            except BadState as reason:
                if self._said != reason.detail:
                    self._said = reason.detail
                    self.log.error("{reason}", reason=reason.detail)
            if self.running:
                await self._rest()
        await self._close()

    async def _rest(self) -> None:
        self._pause = deferLater(self._reactor, LOOK_S)
        try:
            await self._pause
        except CancelledError:
            return  # the service is stopped

    async def _look(self) -> None:
        """Raises :class:`BadState` for what is to be tried again."""
        here = self._interfaces()
        if here != self._here:
            await self._close()
            self._here = here
            self._nearby.move(here)
            self._hosts = self._moved(here)
            self._tell_soon()
            where = ", ".join(map(str, here)) or "none, so that nobody is found"
            self.log.info("addresses on local networks: {where}", where=where)
        if here and self._speaker is None:
            await self._begin([str(interface.ip) for interface in here])
        if self._speaker is not None and self._announce_at is not None and self._reactor.seconds() >= self._announce_at:
            await self._say(self._speaker)

    async def _begin(self, hosts: list[str]) -> None:
        self._session = session = object()

        def from_thread(then: Callable[..., None], what: Any) -> None:
            self._reactor.callFromThread(lambda: then(what) if self._session is session else None)

        heard, withdrawn = partial(from_thread, self._heard), partial(from_thread, self._withdrawn)
        self._speaker = await self._in_thread(self._open, hosts, heard, withdrawn)
        self._announce_at = self._reactor.seconds()

    async def _say(self, speaker: Speaker) -> None:
        if self._announce is not None and self._hosts:
            self._announce_at = self._reactor.seconds() + ANNOUNCE_AGAIN_S
            await self._in_thread(speaker.announce, self._announce(self._hosts))
        self._announce_at = None

    async def _close(self) -> None:
        if self._speaker is not None:
            speaker, self._speaker, self._session = self._speaker, None, None
            await self._in_thread(speaker.close)

    # -- what others announce ------------------------------------------------------------------------------------

    def _heard(self, said: Announcement) -> None:
        self._nearby.heard(said)
        self._tell_soon()

    def _withdrawn(self, label: str) -> None:
        self._nearby.withdrawn(label)
        self._tell_soon()

    def _tell_soon(self) -> None:
        if self._telling is None and self.running:
            self._telling = self._reactor.callLater(TELL_S, self._tell)

    def _tell(self) -> None:
        self._telling = None
        addresses = self._nearby.addresses()
        if addresses != self._told:
            self._told = addresses
            self.log.info("seeds on the local network: {seeds}", seeds=", ".join(addresses) or "none")
            self._found(addresses)
