"""A seed: what it does with a message, and as time goes by.

Puts together what seeds tell each other (:mod:`meshproto.core.peering`), the index of all users
(:mod:`meshproto.core.directory`) and who is connected (:mod:`meshproto.core.sessions`). A call returns effects
(:mod:`meshproto.core.effects`). A registration is known at once, and answered when it is on disk.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from msgspec import UNSET, Struct, UnsetType

from meshproto import wire
from meshproto.core.directory import CLAIM_TTL_S, Directory
from meshproto.core.effects import Effect, Log, Save, Send
from meshproto.core.entry import Entry, pack_own, read_entry
from meshproto.core.gossip import Change, content
from meshproto.core.identity import Entropy, Record, verify
from meshproto.core.meshkey import NO_KEYS, Gate, Handshake, Keyring
from meshproto.core.peering import Peering, SeedView
from meshproto.core.sessions import WATCHES_PER_LINK_MAX, Session, Sessions
from meshproto.errors import (
    BadParams,
    BadState,
    CallerError,
    Forbidden,
    MeshError,
    StaleRecord,
    TooLarge,
    Unauthorized,
    UserNotFound,
)
from meshproto.wire import AnyRequest, EntryValue, GossipResult, Id, LookupResult, fold

LEASE_S: Final = 30.0
"""Three pings may be late before a user counts as away."""
NOT_FOUND_RETRY_S: Final = 5.0
"""What a 404 says about when to ask again."""
SWEEP_NAMES: Final = 500
"""Names looked at each round for claims that ran out: a million in half an hour."""
RENEWALS_PER_CLAIM: Final = 10
"""How often a home says anew, in the time after which a claim runs out, that it sees a user who is online."""


@dataclass(frozen=True)
class Settings:
    lease_s: float = LEASE_S
    claim_ttl_s: float = CLAIM_TTL_S
    list_names: bool = True
    mesh_keys: Keyring = NO_KEYS
    version: str = ""


class Seed:
    """`entries`: what :class:`Save` wrote before, `peers`: bootstrap addresses and those of :class:`SavePeer`. Raises
    :class:`BadState` when an entry does not read: a seed must not forget claims."""

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
    ) -> None:
        self.name = name
        self.address = address
        self._rng = rng
        self._settings = settings or Settings()
        self.gate = Gate(name, self._settings.mesh_keys, entropy)
        self._started = now
        forget_s = self._settings.claim_ttl_s
        self.peering = Peering(name, address, now=now, rng=rng, bootstrap=peers, forget_s=forget_s)
        self.gossip = self.peering.gossip
        self.directory = Directory(self._settings.claim_ttl_s)
        self._sessions = Sessions(self._settings.lease_s)
        self._renew_ms = int(self._settings.claim_ttl_s * 1000) // RENEWALS_PER_CLAIM
        self._sweep_after = ""
        self.dropped = 0
        self._lookups = 0
        self._registrations = 0
        for key, value in entries:
            self._remember(key, value, _ms(now))
        self.peering.begin()

    # -- what the shell calls ------------------------------------------------------------------------------------

    @property
    def wake_at(self) -> float:
        """When :meth:`tick` wants to be called next."""
        return min(self.peering.wake_at, self._sessions.wake_at)

    def opened(self, link: int, *, trusted: bool) -> None:
        self._sessions.opened(link, trusted=trusted)

    def receive(self, link: int, request: AnyRequest, now: float) -> list[Effect]:
        """A request from a link. Never raises: what the caller did wrong goes back as an error line."""
        session = self._sessions[link]
        renewed = self._renew(link, now) if session.names else []
        try:
            return renewed + self._serve(link, session, request, now)
        except MeshError as error:
            return renewed + self._refuse(link, request.id, error)

    def _serve(self, link: int, session: Session, request: AnyRequest, now: float) -> list[Effect]:
        match request:
            case wire.Lookup():
                return self._lookup(link, request.id, request.params.name, now)
            case wire.Register():
                return self._register(link, session, request, now)
            case wire.Unregister():
                return self._unregister(link, request, now)
            case wire.Gossip():
                return self._gossip(link, session, request, now)
            case _:
                return self._answer(link, request.id, self._ask(link, session, request, now))

    def closed(self, link: int, now: float) -> list[Effect]:
        """The link is gone: its users are away."""
        session = self._sessions[link]
        if session.seed is not None and session.seed in self.peering.addresses:
            self.peering.lost(self.peering.addresses[session.seed], now)
        effects = self._mark(link, False, now)
        self._sessions.closed(link)
        return effects

    def greeted(self, address: str, seed: str) -> None:
        """The seed that answered hello at the address, which may be another than the one it tells of itself."""
        self.peering.greeted(address, seed)

    def lost(self, address: str, now: float) -> None:
        """A connection that this seed had opened to another has ended."""
        self.peering.lost(address, now)

    def tick(self, now: float) -> list[Effect]:
        """Do what is due: leases, claims that ran out, pushes, gossip rounds."""
        effects: list[Effect] = []
        for link in self._sessions.lapse(now):
            effects += self._mark(link, False, now)
        if now >= self.peering.next_round:
            effects += self._take_all(self.peering.forget(now), now)
            effects += self._sweep(now)
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

    def picture(self, now: float) -> list[SeedView]:
        """The mesh as this seed sees it, itself first."""
        return self.peering.views(now, self.directory.users_by_home)

    # -- requests ------------------------------------------------------------------------------------------------

    def _lookup(self, link: int, request_id: Id | UnsetType, name: str, now: float) -> list[Effect]:
        self._lookups += 1
        entry, dropped = self.directory.verified(name, _ms(now))
        effects: list[Effect] = [self._forged(fold(name), bad) for bad in dropped]
        if entry is None:
            missing = UserNotFound(f"no user {name} is known here", retry_after_s=NOT_FOUND_RETRY_S)
            return [*effects, *self._refuse(link, request_id, missing)]
        return [*effects, *self._answer(link, request_id, self._result(entry, now))]

    def _register(self, link: int, session: Session, request: wire.Register, now: float) -> list[Effect]:
        record = verify(request.params)
        if not record.uris:
            raise BadParams("a registration needs at least one uri; to leave, use unregister")
        key = fold(record.name)
        self._sessions.check_room(session, key)
        _, dropped = self.directory.verified(key, _ms(now))
        since = self.directory.claim(record, _ms(now))
        self._check_fresh(link, key, record)
        value = EntryValue(
            request.params.record, request.params.sig, since, True, _ms(now), self.directory.farewells(key, record.key)
        )
        if len(wire.encode_value(value)) > wire.CELL_BYTES_MAX:
            raise TooLarge(f"the record is larger than seeds pass on: {wire.CELL_BYTES_MAX} bytes with its signature")
        effects: list[Effect] = [self._forged(key, bad) for bad in dropped]
        effects += self._enter(key, value, record, now)
        self._sessions.register(link, key)
        effects += self._renew(link, now)
        self._registrations += 1
        result = wire.RegisterResult(self.name, since, self._settings.lease_s)
        return [*effects, self._save_then(link, request.id, ((key, value),), result)]

    def _check_fresh(self, link: int, key: str, record: Record) -> None:
        """Anybody can look a record up and send it again: over another connection only a newer one counts."""
        known = self.directory.at_home(key, self.name)
        if known is None or self._sessions.link_of(key) == link:
            return
        if known.key == record.key and known.seq >= record.seq:
            raise StaleRecord(f"this record of {record.name} was registered already: sign one with a higher seq")

    def _unregister(self, link: int, request: wire.Unregister, now: float) -> list[Effect]:
        record = verify(request.params)
        if record.uris:
            raise BadParams('a record that unregisters has "uris": []')
        key = fold(record.name)
        if self.directory.verified(key, _ms(now))[0] is None:
            raise UserNotFound(f"no user {record.name} is known here")
        since = self.directory.claim(record, _ms(now))
        before = self.directory.farewells(key, record.key)
        value = EntryValue(request.params.record, request.params.sig, since, False, _ms(now), before)
        self._sessions.unregister(key)
        effects = self._enter(key, value, record, now)
        return [*effects, self._save_then(link, request.id, ((key, value),), wire.Nothing())]

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
                return wire.NamesResult(*self.directory.page(wanted.prefix, wanted.after, wanted.limit, _ms(now)))
            case wire.Watch():
                self._sessions.watch(link, {fold(name) for name in request.params.names})
                return wire.Nothing()
            case wire.Unwatch():
                self._sessions.unwatch(link, session, {fold(name) for name in request.params.names})
                return wire.Nothing()
            case _:
                return self.status(now)

    def _hello(self, session: Session, params: wire.HelloParams) -> wire.HelloResult:
        if params.version != wire.PROTOCOL_VERSION:
            raise BadParams(f"this seed speaks version {wire.PROTOCOL_VERSION} of the protocol, not {params.version}")
        handshake = self._admit(session, params) if params.role == "seed" else None
        limits = {"line_bytes": wire.LINE_BYTES_MAX, "watches": WATCHES_PER_LINK_MAX, "names_page": wire.NAMES_PAGE_MAX}
        return self.gate.greeting(limits, handshake)

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
                view.name, view.address, view.alive, view.users, _ms(view.since), round(view.phi, 3), view.lag
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
            names=len(self.directory),
            online=sum(users for home, users in self.directory.online_by_home.items() if home in alive),
            seeds=1 + len(self.peering.addresses),
            alive=len(alive),
            links=len(self._sessions),
            lookups=self._lookups,
            registrations=self._registrations,
        )

    # -- entries and presence ------------------------------------------------------------------------------------

    def _renew(self, link: int, now: float) -> list[Effect]:
        """A sign of life from a link over which somebody registered."""
        return self._mark(link, True, now) if self._sessions.renew(link, now) else []

    def _mark(self, link: int, online: bool, now: float) -> list[Effect]:
        """The users of a link are here, or away."""
        changed = []
        for key in self._sessions.names_of(link):
            entry = self.directory.at_home(key, self.name)
            if entry is not None and not entry.gone and entry.online != online:
                changed.append((key, entry))
        return self._tell_presence(changed, online, now)

    def _tell_presence(self, users: list[tuple[str, Entry]], online: bool, now: float) -> list[Effect]:
        """Own entries say anew whether their users are here, and that they were seen now."""
        effects: list[Effect] = []
        rows: list[tuple[str, EntryValue | None]] = []
        for key, entry in users:
            value = _with_presence(entry.value, online, _ms(now))
            rows.append((key, value))
            effects += self._enter(key, value, entry.record, now)
        return [*effects, Save(tuple(rows))] if rows else effects

    def _enter(self, key: str, value: EntryValue, record: Record, now: float) -> list[Effect]:
        """Write an own entry, of which all signatures were checked, and tell whoever wants to know."""
        self._write(key, value, record, verified=True)
        self.peering.push_soon(now)
        return self._changed({key}, now)

    def _write(self, key: str, value: EntryValue, record: Record, *, verified: bool) -> None:
        stored = self.gossip.put(key, pack_own(value, record))
        self.directory.put(key, Entry(stored, self.name, verified))

    def _remember(self, key: str, value: EntryValue, now_ms: int) -> None:
        """An entry from disk. Whoever was online when this seed stopped may have been seen for some time after it was
        last written that they were. Raises :class:`BadState`."""
        try:
            record = wire.decode_value(value.record, Record)
            seen = min(now_ms, value.seen + self._renew_ms) if value.online else value.seen
            self._write(key, _with_presence(value, False, seen), record, verified=False)
        except MeshError as reason:
            raise BadState(f"the entry of {key} is damaged ({reason.detail}): restore a backup") from None

    def _drop(self, key: str, now: float) -> None:
        self.directory.remove(key, self.name)
        self.gossip.delete(key, now)
        self.peering.push_soon(now)

    def _result(self, entry: Entry, now: float) -> LookupResult:
        value = entry.value
        online = value.online and self.peering.alive(entry.home, now)
        seen = _ms(now) if online else value.seen
        return LookupResult(value.record, value.sig, value.since, entry.home, online, seen)

    def _changed(self, keys: set[str], now: float) -> list[Effect]:
        """Notifications for those who watch the names."""
        effects: list[Effect] = []
        for key in self._sessions.watched(keys):
            entry, dropped = self.directory.verified(key, _ms(now))
            effects += [self._forged(key, bad) for bad in dropped]
            told = wire.ChangedParams(entry.name if entry else key, self._result(entry, now) if entry else None)
            line = wire.encode_request("changed", told)
            effects += [Send(link, line) for link in self._sessions.watchers(key)]
        return effects

    def _sweep(self, now: float) -> list[Effect]:
        """Look after some own entries: let go of claims that ran out, say anew who is online."""
        keys, self._sweep_after = self.directory.window(self._sweep_after, SWEEP_NAMES)
        own = [(key, entry) for key in keys if (entry := self.directory.at_home(key, self.name))]
        here = [(key, entry) for key, entry in own if entry.online and entry.seen + self._renew_ms <= _ms(now)]
        effects = self._tell_presence(here, True, now)
        over = [key for key, entry in own if not entry.online and self.directory.ran_out(entry, _ms(now))]
        for key in over:
            self._drop(key, now)
        if over:
            effects += [*self._changed(set(over), now), Save(tuple((key, None) for key in over))]
        return effects

    # -- gossip --------------------------------------------------------------------------------------------------

    def _gossip(self, link: int, session: Session, request: wire.Gossip, now: float) -> list[Effect]:
        asker, digest = session.seed, request.params.digest
        if asker is None and self.gate.keyed:
            raise Unauthorized("this seed gossips with those that prove its mesh key: start both with one --mesh-key")
        if asker is None:
            raise Forbidden("gossip is for seeds: say hello with role seed first")
        pushed = request.id is UNSET
        effects = self._hear(digest, request.params.delta, now, teller=asker, pushed=pushed)
        return effects if pushed else effects + self._answer(link, request.id, self.peering.answer(asker, digest, now))

    def _hear(
        self, digest: wire.Digest, deltas: list[wire.Delta], now: float, *, teller: str | None, pushed: bool
    ) -> list[Effect]:
        changes, effects = self.peering.hear(digest, deltas, now, teller=teller, pushed=pushed)
        return effects + self._take_all(changes, now)

    def _take_all(self, changes: list[Change], now: float) -> list[Effect]:
        effects: list[Effect] = []
        if not changes:
            return effects
        news = {change.key for change in changes if self._take(change, now, effects)}
        return effects + self._changed(news, now)

    def _take(self, change: Change, now: float, effects: list[Effect]) -> bool:
        """Another seed has written something of a user; whether it is something else than before."""
        if change.stored is None:
            self.directory.remove(change.key, change.seed)
            return True
        try:
            entry = read_entry(change.seed, change.key, change.stored)
        except MeshError as error:
            self.directory.remove(change.key, change.seed)
            self.dropped += 1
            effects.append(Log(f"dropped what seed {change.seed} says of {change.key}: {error.detail}"))
            return True
        before = self.directory.at_home(change.key, change.seed)
        entry.verified = before is not None and before.verified and before.signs_the_same(entry)
        self.directory.put(change.key, entry)
        own = self.directory.at_home(change.key, self.name)
        if own is not None:
            effects += self._compare(change.key, own, entry, now)
        return before is None or content(before.stored) != content(entry.stored)

    def _compare(self, key: str, own: Entry, told: Entry, now: float) -> list[Effect]:
        """What another home has told may end the entry here, or show that the claim is older than was known here.
        Only with the user's own signature under it."""
        older = own.key == told.key and told.since < own.since and not (own.gone or told.gone)
        if not (older or self._superseded(own, told, now)):
            return []
        if not self.directory.check(key, told):
            return [self._forged(key, told)]
        if self._superseded(own, told, now):
            self._drop(key, now)
            lost = [] if own.key == told.key else self._tell_loser(key, own, told)
            return [*lost, Save(((key, None),))]
        return self._backdate(key, own, told.since, now) if older else []

    def _backdate(self, key: str, own: Entry, since: int, now: float) -> list[Effect]:
        """The user claimed the name earlier elsewhere. That home lets go of its entry only when it stands here too."""
        before = own.value
        value = EntryValue(before.record, before.sig, since, before.online, before.seen, before.farewells)
        return [*self._enter(key, value, own.record, now), Save(((key, value),))]

    def _superseded(self, own: Entry, told: Entry, now: float) -> bool:
        """Whether what another home has told ends the entry here: the user has moved on, or left there (else the old
        entry would own the name again as soon as the farewell is overwritten), or lost the claim. A farewell claims
        nothing, and stays: it may be all that speaks against an older entry on the disk of a seed that is down."""
        if any(record.key == own.key and record.seq > own.seq for record in told.farewells):
            return True
        if told.key == own.key:
            return told.seq > own.seq and (told.gone or told.since <= own.since)
        if own.gone:
            return False
        best = self.directory.best(own.name, _ms(now))
        return best is not None and best.key != own.key

    def _tell_loser(self, key: str, own: Entry, winner: Entry) -> list[Effect]:
        """Two keys had claimed the name on two sides of a split; the one that is registered here has lost it."""
        lost = Log(f"{own.name} has lost the name to a key that claimed it earlier, at seed {winner.home}")
        link = self._sessions.unregister(key)
        if link is None:
            return [lost]
        return [lost, Send(link, wire.encode_request("conflict", wire.ConflictParams(own.name, winner.key)))]

    def _forged(self, key: str, entry: Entry) -> Log:
        self.dropped += 1
        return Log(f"dropped a record of {key} that seed {entry.home} passed on: its signature does not fit")

    # -- answers -------------------------------------------------------------------------------------------------

    def _answer(self, link: int, request_id: Id | UnsetType, result: Struct) -> list[Effect]:
        return [] if request_id is UNSET else [Send(link, wire.encode_result(request_id, result))]

    def _refuse(self, link: int, request_id: Id | UnsetType, error: MeshError) -> list[Effect]:
        return [] if request_id is UNSET else [Send(link, wire.encode_error(request_id, error))]

    def _save_then(
        self, link: int, request_id: Id | UnsetType, rows: tuple[tuple[str, EntryValue | None], ...], result: Struct
    ) -> Save:
        if request_id is UNSET:
            return Save(rows)
        failed = wire.encode_error(request_id, NotSaved("the seed cannot write to its disk", retry_after_s=5.0))
        return Save(rows, (Send(link, wire.encode_result(request_id, result)),), (Send(link, failed),))


class SameName(CallerError):
    code = 409
    title = "same seed name"


class NotSaved(MeshError):
    code = 503
    title = "unavailable"


def _ms(now: float) -> int:
    return int(now * 1000)


def _with_presence(value: EntryValue, online: bool, seen_ms: int) -> EntryValue:
    return EntryValue(value.record, value.sig, value.since, online, seen_ms, value.farewells)
