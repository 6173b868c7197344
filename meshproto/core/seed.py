"""A seed: what it does with a message, and as time goes by.

Puts together what seeds tell each other (:mod:`meshproto.core.peering`), who is registered
(:mod:`meshproto.core.registry`) and who is connected (:mod:`meshproto.core.sessions`). A call returns effects
(:mod:`meshproto.core.effects`). A registration is known at once, and answered when it is on disk.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from msgspec import UNSET, Struct, structs

from meshproto import wire
from meshproto.core import quick
from meshproto.core.directory import CLAIM_TTL_S, Directory
from meshproto.core.effects import Effect, Reply
from meshproto.core.identity import Entropy
from meshproto.core.meshkey import NO_KEYS, Gate, Handshake, Keyring
from meshproto.core.names import MakeNames, Parts, embedded
from meshproto.core.peering import Peering, SeedView
from meshproto.core.rates import COSTS, REQUESTS_AT_ONCE, Rates
from meshproto.core.registry import MayRegister
from meshproto.core.seed_tally import SeedTally
from meshproto.core.sessions import WATCHES_PER_LINK_MAX, Role, Session, Sessions
from meshproto.errors import (
    BadParams,
    CallerError,
    Forbidden,
    MeshError,
    SlowDown,
    Unauthorized,
)
from meshproto.wire import AnyRequest, EntryValue, GossipResult, SignedRecord, fold

LEASE_S: Final = 30.0
"""Three pings may be late before a user counts as away."""


@dataclass(frozen=True)
class Settings:
    lease_s: float = LEASE_S
    claim_ttl_s: float = CLAIM_TTL_S
    list_names: bool = True
    mesh_keys: Keyring = NO_KEYS
    register_tokens: Keyring = NO_KEYS
    may_register: MayRegister | None = None
    version: str = ""


class Seed:
    """`entries`: what :class:`Save` wrote before, `peers`: bootstrap addresses and those of :class:`SavePeer`;
    `make_names`: the directory, if it is none of this seed's own. Raises :class:`BadState` when an entry does not read:
    a seed must not forget claims."""

    def __init__(
        self,
        name: str,
        address: str,
        *,
        now: float,
        rng: random.Random,
        entropy: Entropy,
        settings: Settings | None = None,
        entries: Iterable[tuple[str, EntryValue]] = (),
        peers: Iterable[str] = (),
        make_names: MakeNames | None = None,
    ) -> None:
        self.name = name
        self.address = address
        self._rng = rng
        self._settings = settings or Settings()
        self.gate = Gate(name, self._settings.mesh_keys, entropy, self._settings.register_tokens)
        self._started = now
        forget_s = self._settings.claim_ttl_s
        self.peering = Peering(name, address, now=now, rng=rng, bootstrap=peers, forget_s=forget_s)
        self.gossip = self.peering.gossip
        self._sessions = Sessions(self._settings.lease_s)
        self._rates = Rates()
        self.tally = SeedTally()
        parts = Parts(
            name,
            self.peering,
            self._sessions,
            self._rates,
            self._settings.lease_s,
            self._settings.claim_ttl_s,
            self._settings.may_register,
            self.tally,
        )
        self._names = (make_names or embedded(entries))(parts, now)
        self.peering.begin()

    # -- what the shell calls ------------------------------------------------------------------------------------

    @property
    def directory(self) -> Directory:
        """What is known here without asking anybody."""
        return self._names.directory

    @property
    def dropped(self) -> int:
        return self._names.dropped

    def reconfigure(self, *, list_names: bool, mesh_keys: Keyring, register_tokens: Keyring) -> None:
        """What may change while it runs. There are mesh keys, or tokens, if and only if there were before: else some
        would stay who have proven nothing."""
        self._settings = replace(
            self._settings, list_names=list_names, mesh_keys=mesh_keys, register_tokens=register_tokens
        )
        self.gate.rekey(mesh_keys, register_tokens)

    @property
    def wake_at(self) -> float:
        """When :meth:`tick` wants to be called next."""
        return min(self.peering.wake_at, self._sessions.wake_at)

    def stepped(self, by_s: float) -> None:
        """The clock that `now` is read from was set: from here on it shows so much more. All that waits or is measured
        here goes with it. What was told to others, or is on disk, is a time of day and stays as it was."""
        self._started += by_s
        self._sessions.stepped(by_s)
        self.peering.stepped(by_s)

    def opened(self, link: int, host: str) -> None:
        """A link from an IP address; `""` when it has none."""
        self._sessions.opened(link, host)

    def answers(self, link: int, lines: list[bytes], now: float) -> list[bytes]:
        """The answers to the first of the lines that came over a link, as many as there are that ask nothing unusual
        (:mod:`meshproto.core.quick`). The line after those is one for :meth:`receive`."""
        session = self._sessions[link]
        if not self._may_ask(link, session, len(lines), now):
            return []
        # "Not found" is what a link's welcome is not made of.
        found = self._quick(lines, now, misses=session.welcome and self._names.complete)
        if found:
            session.credit -= len(found)
            session.welcome = True
            if session.names:
                self._sessions.renew(link, now)
        return found

    def answers_each(self, links: Sequence[int], lines: Sequence[bytes], now: float) -> list[bytes]:
        """The same for one line of each of several links: the answers to the first of them. They end at a link over
        which nothing was right yet, too."""
        sessions: list[Session] = []
        for link in links:
            session = self._sessions[link]
            if not session.welcome or not self._may_ask(link, session, 1, now):
                break
            sessions.append(session)
        found = self._quick(lines[: len(sessions)], now, misses=self._names.complete)
        for link, session, _ in zip(links, sessions, found, strict=False):
            session.credit -= 1
            if session.names:
                self._sessions.renew(link, now)
        return found

    def _may_ask(self, link: int, session: Session, lines: int, now: float) -> bool:
        """Whether so many lines may be answered on the short way."""
        if not self._names.quick or (session.names and not self._sessions.leased(link)):
            return False
        if session.credit < lines:
            try:
                self._count(session, lines, now)
            except SlowDown:
                return False
        return True

    def _quick(self, lines: Sequence[bytes], now: float, *, misses: bool) -> list[bytes]:
        found, missed = quick.answers(lines, self._names.directory, now, self.peering.alive, misses=misses)
        self.tally.lookups += len(found)
        self.tally.missed += missed
        return found

    def receive(self, link: int, request: AnyRequest, now: float) -> list[Effect]:
        """A request from a link. Never raises: what the caller did wrong goes back as an error line."""
        session = self._sessions[link]
        renewed = self._names.renew(link, now) if session.names else []
        try:
            cost = COSTS.get(type(request), 1)
            if session.credit < cost:
                self._count(session, cost, now)
            session.credit -= cost
            return renewed + self._serve(link, session, request, now)
        except MeshError as error:
            self._count_refusal(request, error)
            return [*renewed, *Reply(link, request.id).error(error)]

    def _count_refusal(self, request: AnyRequest, error: MeshError) -> None:
        if isinstance(error, SlowDown):
            self.tally.slowed += 1
        if isinstance(request, wire.Register):
            self.tally.refused_to_register(error)

    def _count(self, session: Session, cost: int, now: float) -> None:
        """Count what a link asks as far as it is not counted already, and some more in advance. Raises
        :class:`SlowDown`."""
        self._rates.ask(session.network, cost - session.credit + REQUESTS_AT_ONCE, now)
        session.credit = cost + REQUESTS_AT_ONCE

    def _serve(self, link: int, session: Session, request: AnyRequest, now: float) -> list[Effect]:
        reply = Reply(link, request.id)
        match request:
            case wire.Lookup():
                return self._lookup(reply, request.params.name, now)
            case wire.Register():
                return self._register(reply, session, request.params, now)
            case wire.Unregister():
                return self._unregister(reply, session, request.params, now)
            case wire.Gossip():
                return self._gossip(link, session, request, now)
            case _:
                return self._answer(reply, self._ask(link, session, request, now))

    def links(self) -> Counter[Role]:
        """How many there are, by what they are for."""
        return Counter(session.role for session in self._sessions.values())

    def is_guest(self, link: int) -> bool:
        """Whether nobody is registered over the link, watches or gossips."""
        return self._sessions[link].guest

    def is_welcome(self, link: int) -> bool:
        """Whether something was asked over the link that got a result."""
        return self._sessions[link].welcome

    def watches(self, link: int, name: str) -> bool:
        """Whether the link is there and wants to know when the folded name changes."""
        return link in self._sessions and name in self._sessions[link].watched

    def closed(self, link: int, now: float) -> list[Effect]:
        """The link is gone: its users are away."""
        session = self._sessions[link]
        if session.seed is not None and session.seed in self.peering.addresses:
            self.peering.lost(self.peering.addresses[session.seed], now)
        effects = self._names.mark(link, False, now)
        self._sessions.closed(link)
        return effects

    def greeted(self, address: str, seed: str) -> None:
        """The seed that answered hello at the address, which may be another than the one it tells of itself."""
        self.peering.greeted(address, seed)

    def found(self, nearby: Iterable[str]) -> None:
        """Where seeds announce themselves on the local network, all of them."""
        self.peering.found(nearby)

    def moved(self, address: str, now: float) -> None:
        """This seed is dialled at another address from now on."""
        self.address = address
        self.peering.moved(address, now)

    def lost(self, address: str, now: float) -> None:
        """A connection that this seed had opened to another has ended."""
        self.peering.lost(address, now)

    def tick(self, now: float) -> list[Effect]:
        """Do what is due: leases, claims that ran out, pushes, gossip rounds."""
        effects: list[Effect] = []
        for link in self._sessions.lapse(now):
            effects += self._names.mark(link, False, now)
        if now >= self.peering.next_round:
            effects += self._names.take(self.peering.forget(now), now)
            effects += self._names.sweep(now)
        return effects + self.peering.tick(now)

    def exchanged(self, address: str, result: GossipResult, now: float) -> list[Effect]:
        """The answer to an :class:`meshproto.core.effects.Exchange`."""
        teller = self.peering.name_at(address)
        effects = self._hear(result.digest, result.delta, now, teller=teller, pushed=False)
        return effects + self.peering.exchanged(address, result, now)

    def unreachable(self, address: str, now: float, *, refused: bool = False) -> list[Effect]:
        """The seed at the address did not answer an :class:`meshproto.core.effects.Exchange`; `refused`: nobody listens
        there."""
        self.peering.unreachable(address, now, refused=refused)
        return []

    def bring(self, entries: Iterable[tuple[str, EntryValue]], now: float, *, complete: bool = True) -> list[Effect]:
        """Take over what another directory had; `complete`: that was all."""
        self._names.complete = complete
        return self._names.bring(entries, now)

    def picture(self, now: float) -> list[SeedView]:
        """The mesh as this seed sees it, itself first."""
        return self.peering.views(now, self._names.users)

    # -- requests ------------------------------------------------------------------------------------------------

    def _lookup(self, reply: Reply, name: str, now: float) -> list[Effect]:
        self.tally.lookups += 1
        return self._names.lookup(reply, name, now)

    def _register(self, reply: Reply, session: Session, signed: SignedRecord, now: float) -> list[Effect]:
        if self.gate.asks_for_token and not session.proven:
            raise Unauthorized("this seed registers those who prove its token: start the node with --register-token")
        self._rates.register(session.network, now)
        return self._names.register(reply, signed, now)

    def _unregister(self, reply: Reply, session: Session, signed: SignedRecord, now: float) -> list[Effect]:
        self._rates.register(session.network, now)
        return self._names.unregister(reply, signed, now)

    def _ask(self, link: int, session: Session, request: AnyRequest, now: float) -> Struct:
        match request:
            case wire.Ping():
                return wire.Nothing()
            case wire.Hello():
                return self._hello(session, request.params)
            case wire.Seeds():
                return wire.SeedsResult(self._seeds(now))
            case wire.Names(params=wanted):
                if not self._settings.list_names:
                    raise Forbidden("this seed does not list names")
                return self._names.page(wanted, now)
            case wire.Watch():
                self._sessions.watch(link, {fold(name) for name in request.params.names})
                return wire.Nothing()
            case wire.Unwatch():
                self._sessions.unwatch(link, session, {fold(name) for name in request.params.names})
                return wire.Nothing()
            case _:
                return structs.replace(self.status(now), caller=session.host)

    def _hello(self, session: Session, params: wire.HelloParams) -> wire.HelloResult:
        if params.version != wire.PROTOCOL_VERSION:
            raise BadParams(f"this seed speaks version {wire.PROTOCOL_VERSION} of the protocol, not {params.version}")
        handshake = self._admit(session, params) if params.role == "seed" else self._meet(session, params)
        limits = {"line_bytes": wire.LINE_BYTES_MAX, "watches": WATCHES_PER_LINK_MAX, "names_page": wire.NAMES_PAGE_MAX}
        return self.gate.greeting(limits, handshake)

    def _meet(self, session: Session, params: wire.HelloParams) -> Handshake | None:
        """A user: they may register when they have proven the token in this handshake, if there is one."""
        asked, session.handshake = session.handshake, None
        if not self.gate.asks_for_token or params.name is None:
            return None
        if params.proof is not None:
            self.gate.check(asked, params.name, params.proof, "register")
            session.proven = True
        elif params.nonce is not None:
            session.handshake = self.gate.challenge(params.name, params.nonce, "register")
        return session.handshake

    def _admit(self, session: Session, params: wire.HelloParams) -> Handshake | None:
        """Another seed: its gossip session begins at once, or when it has proven the mesh key in this handshake."""
        if not (session.trusted or self.gate.keyed):
            raise Forbidden("without a mesh key, gossip is accepted from loopback and private addresses only")
        if params.name is None:
            raise BadParams("a seed says its name")
        if params.name == self.name:
            raise SameName(f"this seed is called {self.name} too: give each seed a name of its own with --name")
        asked, session.handshake, session.seed = session.handshake, None, None  # each nonce is good for one proof
        if not self.gate.keyed:
            session.seed = params.name
        elif params.proof is not None:
            self.gate.check(asked, params.name, params.proof)
            session.seed = params.name
        elif params.nonce is not None:
            session.handshake = self.gate.challenge(params.name, params.nonce)
        return session.handshake

    def _seeds(self, now: float) -> list[wire.SeedInfo]:
        """This seed and as many others as fit in a line, those that are alive first."""
        room, fit = wire.SEEDS_BYTES_MAX, []
        for view in sorted(self.picture(now), key=lambda view: (not view.itself, not view.alive)):
            info = wire.SeedInfo(
                view.name,
                view.address,
                view.alive,
                view.users,
                _ms(view.since),
                round(view.phi, 3),
                view.lag,
                view.directory or UNSET,
            )
            room -= len(wire.encode_value(info)) + 1
            if room < 0:
                break
            fit.append(info)
        return fit

    def status(self, now: float) -> wire.StatusResult:
        alive = {name for name in (self.name, *self.peering.addresses) if self.peering.alive(name, now)}
        return wire.StatusResult(
            seed=self.name,
            version=self._settings.version,
            uptime=round(now - self._started, 3),
            names=self._names.names,
            online=self._names.online(alive),
            seeds=1 + len(self.peering.addresses),
            alive=len(alive),
            links=len(self._sessions),
            lookups=self.tally.lookups,
            registrations=self.tally.registrations,
        )

    # -- gossip --------------------------------------------------------------------------------------------------

    def _gossip(self, link: int, session: Session, request: wire.Gossip, now: float) -> list[Effect]:
        asker, digest = session.seed, request.params.digest
        if asker is None and self.gate.keyed:
            raise Unauthorized("this seed gossips with those that prove its mesh key: start both with one --mesh-key")
        if asker is None:
            raise Forbidden("gossip is for seeds: say hello with role seed first")
        pushed = request.id is UNSET
        effects = self._hear(digest, request.params.delta, now, teller=asker, pushed=pushed)
        if pushed:
            return effects
        return effects + self._answer(Reply(link, request.id), self.peering.answer(asker, digest, now))

    def _hear(
        self, digest: wire.Digest, deltas: list[wire.Delta], now: float, *, teller: str | None, pushed: bool
    ) -> list[Effect]:
        changes, effects = self.peering.hear(digest, deltas, now, teller=teller, pushed=pushed)
        return effects + self._names.take(changes, now)

    # -- answers -------------------------------------------------------------------------------------------------

    def _answer(self, reply: Reply, result: Struct) -> list[Effect]:
        self._sessions[reply.link].welcome = True
        return [*reply.result(result)]


class SameName(CallerError):
    code = 409
    title = "same seed name"


def _ms(now: float) -> int:
    return int(now * 1000)
