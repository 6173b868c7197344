"""The service that runs :class:`meshproto.core.seed.Seed`: its sockets, its timers, its disk."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from meshproto import wire
from meshproto.core.effects import Ask, Effect, Exchange, Log, Push, Save, SavePeer, Send, Tell
from meshproto.core.limits import called
from meshproto.core.notes import Notes
from meshproto.core.seed import Seed
from meshproto.errors import BadParams, MeshError, NobodyListens, SlowDown, TooSlow, Unavailable
from meshproto.net.calls import Calls, Links, say_hello
from meshproto.net.guests import SWEEP_S, Guests
from meshproto.net.lines import LineHandler, Lines, Quick
from meshproto.net.news import News
from meshproto.net.problem import last_answer
from meshproto.net.seed_store import SeedStore
from meshproto.net.turns import Turns

if TYPE_CHECKING:
    from meshproto.net.exposition import Family
    from meshproto.net.sharing import Bringing, Sharing

TICK_S_MAX: Final = 5.0
"""How late it may be noticed that the time of day was set."""
STEP_S: Final = 0.5
"""By less it is not set, but made to run faster or slower; which no lease and no judgement minds."""

STANDING: Final = frozenset({wire.Register, wire.Unregister, wire.Watch, wire.Unwatch, wire.Hello})
"""What may make more than a guest of somebody."""
HTTP: Final = re.compile(rb"[A-Z]{1,20} \S+ HTTP/[0-9.]{1,3}\r?\n")
"""A request line (RFC 9112, 3), as the first that a client says."""
NO_HTTP: Final = BadParams("this is a seed of a mesh: it speaks lines of JSON-RPC, not HTTP (docs/protocol.md)")


class Ended(StrEnum):
    """Why a connection was ended that somebody had made."""

    NOT_ADMITTED = "not_admitted"
    """Their network connects too often."""
    NO_PLACE = "no_place"
    SILENT = "silent"
    TOO_MUCH = "too_much"
    """That was no request."""
    PROTOCOL = "protocol"
    """They speak another."""


def _why(error: MeshError) -> Ended:
    if isinstance(error, TooSlow):
        return Ended.SILENT
    if isinstance(error, SlowDown):
        return Ended.TOO_MUCH
    return Ended.NO_PLACE if isinstance(error, Unavailable) else Ended.PROTOCOL


class SeedService(Service):
    """Effects of the core, carried out. `clock`: what timers and the limits of connections go by; it does not step, or
    all guests would be silent for too long at once. `now`: the wall clock, s since 1970 UTC. Its time is what the core
    is given, because seeds tell each other times; that it steps the core is told (:meth:`now`). `turns`: those that the
    links take, and what watchers are told. `ended`: connections, counted by why."""

    log = Logger()

    def __init__(
        self,
        core: Seed,
        store: SeedStore,
        clock: IReactorTime,
        connect: Callable[[str], IStreamClientEndpoint],
        now: Callable[[], float],
        turns: Turns | None = None,
        sharing: "Sharing | None" = None,
        bringing: "Bringing | None" = None,
    ) -> None:
        self._core = core
        self._store = store
        self._clock = clock
        self._wall = now
        self._ahead_s = now() - clock.seconds()
        self._links: dict[int, Lines] = {}
        self._news = News(turns or Turns(clock), self._tell)
        self._numbers = itertools.count(1)
        self._sharing = sharing
        if sharing is not None:
            sharing.carry_out, sharing.share = self.carry_out, core.peering.share
        self._bringing = bringing
        if bringing is not None:
            bringing.take = lambda some, last: self.carry_out(core.bring(some, self.now(), complete=last))
        self._guests = Guests()
        self._notes = Notes()
        self._peers = Links(clock, connect, self._greet, self._lost, wire.GOSSIP_SEEDS_MAX)
        self.ended: Counter[Ended] = Counter()
        self._answered_bytes = 0
        self._asked_bytes = 0
        self._exchanging: set[str] = set()
        self._troubled: dict[str, str] = {}
        self._timer: IDelayedCall | None = None
        self._sweeping: IDelayedCall | None = None

    def now(self) -> float:
        """The time of day, s since 1970 UTC. When it was set the core is told before it is given the new time: what
        waits there goes on waiting for as long as it would have, and nobody is judged by time that did not go by."""
        wall = self._wall()
        step_s = wall - self._clock.seconds() - self._ahead_s
        if not -STEP_S < step_s < STEP_S:
            self._ahead_s += step_s
            self._core.stepped(step_s)
            self.log.warn("the time of day was set by {seconds} s", seconds=round(step_s, 3))
        return wall

    def found(self, nearby: list[str]) -> None:
        """See :meth:`Seed.found`."""
        self._core.found(nearby)

    def moved(self, address: str) -> None:
        """See :meth:`Seed.moved`."""
        self._core.moved(address, self.now())
        self._arm()

    def link(self, network: str) -> LineHandler | None:
        """For a connection that comes in; None: it may not, and is to cost no more."""
        if self._guests.admits(network, self._clock.seconds()):
            return _Link(self)
        self.ended[Ended.NOT_ADMITTED] += 1
        return None

    def startService(self) -> None:
        super().startService()
        if self._sharing is not None:
            self._sharing.start()
        if self._bringing is not None:
            self._bringing.start()
        self._tick()
        self._sweep()

    def stopService(self) -> "Deferred[None]":
        super().stopService()
        for timer in (self._timer, self._sweeping):
            if timer is not None:
                timer.cancel()
        self._timer = self._sweeping = None
        self._peers.close()
        for number, lines in list(self._links.items()):
            self.closed(number)  # that its users are away is saved before the disk is closed
            lines.abort()
        return ensureDeferred(self._close())

    async def _close(self) -> None:
        if self._sharing is not None:
            await self._sharing.stop()
        if self._bringing is not None:
            await self._bringing.stop()
        await self._store.close()

    @property
    def problem(self) -> str | None:
        """Why the disk does not take anything, while it does not."""
        return self._store.problem

    @property
    def gossip_sent_bytes(self) -> int:
        return self._peers.traffic()[0] + self._answered_bytes

    @property
    def gossip_received_bytes(self) -> int:
        return self._peers.traffic()[1] + self._asked_bytes

    def directory_metrics(self) -> "list[Family]":
        """Of the directory that is shared, if one is."""
        if self._sharing is None:
            return []
        from meshproto.net.directory_metrics import of_directory  # noqa: PLC0415 - with the client it counts

        return of_directory(self._sharing.store.counters)

    # -- links ---------------------------------------------------------------------------------------------------

    def opened(self, lines: Lines) -> int | None:
        """A connection came in: its number, or None when there is no place for it."""
        number, now = next(self._numbers), self._clock.seconds()
        goes = self._guests.enter(number, lines, now)
        self._links[number] = lines
        self._core.opened(number, lines.host)
        if goes is not None:
            self._end(*goes)
        return number if number in self._links else None

    def heard(self, number: int, lines: Lines, data: bytes) -> None:
        """What came over a link, before it is cut into lines, as long as nothing that was asked over it was right."""
        if self._core.is_welcome(number):
            lines.received = None
        elif lines.received_bytes == len(data) and HTTP.match(data):
            self._no_http(number, lines)
        else:
            try:
                self._guests.heard(number, data, self._clock.seconds())
            except MeshError as error:
                self._end(number, error)

    def quick(self, number: int) -> Quick:
        """The short way of a link: see :meth:`meshproto.core.seed.Seed.answers`."""
        asked, answers, now = self._guests.asked, self._core.answers, self.now

        def quick(lines: list[bytes]) -> list[bytes]:
            asked(number)
            return answers(number, lines, now())

        return quick

    def answers_each(self, links: "Sequence[_Link]", lines: list[bytes]) -> list[bytes]:
        """The same for a line of each of several links: see :meth:`meshproto.core.seed.Seed.answers_each`."""
        numbers = [link.number for link in links]
        for number in numbers:
            self._guests.asked(number)
        return self._core.answers_each(numbers, lines, self.now())

    def line(self, number: int, lines: Lines, line: bytes) -> None:
        try:
            request = wire.decode_request(line)
        except wire.LineError as wrong:
            lines.send(wire.encode_error(wrong.request_id, wrong.error))
            return
        effects = self._core.receive(number, request, self.now())
        if isinstance(request, wire.Gossip):
            self._asked_bytes += len(line) + 1
            self._answered_bytes += sum(len(effect.line) for effect in effects if isinstance(effect, Send))
        elif type(request) in STANDING:
            (self._guests.be_guest_again if self._core.is_guest(number) else self._guests.stay)(number)
        self._carry_out(effects)
        self._arm()

    def closed(self, number: int) -> None:
        if self._links.pop(number, None) is None:
            return
        self._guests.leave(number)
        self._carry_out(self._core.closed(number, self.now()))
        self._arm()

    def _end(self, number: int, error: MeshError) -> None:
        """Send somebody away."""
        self.ended[_why(error)] += 1
        lines = self._links[number]
        self._note(lines, error.detail)
        self.closed(number)
        lines.refuse(error)

    def _no_http(self, number: int, lines: Lines) -> None:
        """In the words of who asked; the rest of what they say is not read."""
        self.ended[Ended.PROTOCOL] += 1
        self._note(lines, "it speaks HTTP")
        self.closed(number)
        lines.send(last_answer(NO_HTTP))
        lines.end()

    def _note(self, lines: Lines, what: str) -> None:
        text = f"a connection from {called(lines.network)} was ended: {what}"
        line = self._notes.line(lines.network, text, self._clock.seconds())
        if line is not None:
            self.log.warn("{line}", line=line)

    def _sweep(self) -> None:
        self._sweeping = self._clock.callLater(SWEEP_S, self._sweep)
        for number in self._guests.staying():
            if self._core.is_guest(number):  # the name has moved to another link, say
                self._guests.be_guest_again(number)
        for number, error in self._guests.silent(self._clock.seconds()):
            self._end(number, error)

    # -- effects -------------------------------------------------------------------------------------------------

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    lines = self._links.get(effect.link)
                    if lines is not None:
                        lines.send(effect.line)
                case Tell():
                    self._news.spread(effect.name, effect.line, effect.links)
                case Save():
                    self._save(effect)
                case Exchange():
                    self._run(self._exchange(effect))
                case Push():
                    self._push(effect)
                case SavePeer():
                    saved = self._store.save_peer(effect.address, int(self.now() * 1000))
                    saved.addErrback(self._not_saved)
                case Log():
                    self.log.warn("{text}", text=effect.text)
                case Ask():
                    self._ask(effect)

    def _tell(self, link: int, name: str, line: bytes) -> None:
        if self._core.watches(link, name):
            self._links[link].send(line)

    def carry_out(self, effects: Iterable[Effect]) -> None:
        """What a directory wants that seeds share."""
        if self.running:
            self._carry_out(effects)
            self._arm()
            return
        for effect in effects:
            if isinstance(effect, Ask):
                effect.work.close()  # it will not be run

    def _ask(self, effect: Ask) -> None:
        lines = None if effect.link is None else self._links.get(effect.link)
        if lines is not None:
            lines.hold()

        def over(result: list[Effect] | Failure) -> None:
            if lines is not None:
                lines.release()
            if isinstance(result, Failure):
                self.log.failure("a bug", failure=result)
            else:
                self.carry_out(result)

        ensureDeferred(effect.work).addBoth(over)

    def _save(self, effect: Save) -> None:
        held = [lines for send in effect.then if (lines := self._links.get(send.link))]
        for lines in held:
            lines.hold()

        def saved(_: None) -> None:
            self._carry_out(effect.then)

        def failed(failure: Failure) -> None:
            self._not_saved(failure)
            self._carry_out(effect.otherwise)

        def release(_: None) -> None:
            for lines in held:
                lines.release()

        self._store.save(effect.rows).addCallbacks(saved, failed).addCallback(release)

    def _not_saved(self, failure: Failure) -> None:
        failure.trap(MeshError)
        self.log.error("not saved: {reason}", reason=failure.getErrorMessage())

    async def _greet(self, address: str, calls: Calls) -> None:
        self._core.greeted(address, await say_hello(calls, address, self._core.gate))

    def _lost(self, address: str) -> None:
        self._core.lost(address, self.now())
        self._arm()

    def _push(self, effect: Push) -> None:
        peer = self._peers.ready(effect.address)
        if peer is not None:
            peer.tell("gossip", effect.params)
        elif effect.address not in self._exchanging:
            # Not connected yet: an exchange brings the news, and the connection for those that follow.
            self._run(self._exchange(Exchange(effect.address, effect.params)))

    async def _exchange(self, effect: Exchange) -> None:
        address = effect.address
        if address in self._exchanging:
            return
        self._exchanging.add(address)
        try:
            peer = await self._peers.get(address)
            result = await peer.call("gossip", effect.params, wire.GossipResult)
        except MeshError as error:
            if self.running and self._troubled.get(address) != error.detail:
                self._troubled[address] = error.detail
                self.log.warn("seed {address} does not answer: {reason}", address=address, reason=error.detail)
            refused = isinstance(error, NobodyListens)
            effects = self._core.unreachable(address, self.now(), refused=refused)
        else:
            if self._troubled.pop(address, None) is not None:
                self.log.info("seed {address} answers again", address=address)
            effects = self._core.exchanged(address, result, self.now())
        finally:
            self._exchanging.discard(address)
        if self.running:
            self._carry_out(effects)
            self._arm()

    def _run(self, work: Any) -> None:
        ensureDeferred(work).addErrback(lambda failure: self.log.failure("a bug", failure=failure))

    # -- time ----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = None
        try:
            self._carry_out(self._core.tick(self.now()))
        finally:
            self._arm()

    def _arm(self) -> None:
        """Have :meth:`_tick` called when the core wants it."""
        if not self.running:
            return
        now = self.now()
        delay_s = min(TICK_S_MAX, max(0.0, self._core.wake_at - now))
        if self._timer is None:
            self._timer = self._clock.callLater(delay_s, self._tick)
        elif self._timer.getTime() > self._clock.seconds() + delay_s:
            self._timer.reset(delay_s)


class _Link:
    """A :class:`meshproto.net.lines.LineHandler`: one connection, as the service knows it."""

    def __init__(self, service: SeedService) -> None:
        self._service = service
        self.number = 0  # those that have a place have another

    def opened(self, lines: Lines) -> None:
        number = self._service.opened(lines)
        if number is not None:
            self.number = number
            lines.received = partial(self._service.heard, number, lines)
            lines.quick = self._service.quick(number)

    def line(self, lines: Lines, line: bytes) -> None:
        if self.number:
            self._service.line(self.number, lines, line)

    def closed(self, lines: Lines, reason: str) -> None:
        if self.number:
            self._service.closed(self.number)
