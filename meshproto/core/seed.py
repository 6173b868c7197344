"""A seed: what it does with a message, and as time goes by.

Puts together what seeds tell each other (:mod:`meshproto.core.peering`) and the index of all users
(:mod:`meshproto.core.directory`). A call returns effects (:mod:`meshproto.core.effects`).

Presence is the connection: whoever registered over a link is online while that link lives and is heard from within
the lease. A registration is known at once, and answered when it is on disk.
"""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from msgspec import UNSET, Struct, UnsetType

from meshproto import wire
from meshproto.core.directory import CLAIM_TTL_S, Directory, Entry, entry_of, read_entry
from meshproto.core.effects import Effect, Log, Save, Send
from meshproto.core.gossip import Change
from meshproto.core.identity import Entropy, verify
from meshproto.core.meshkey import NO_KEYS, Gate, Handshake, Keyring
from meshproto.core.peering import Peering, SeedView
from meshproto.errors import (
    BadParams,
    CallerError,
    Forbidden,
    MeshError,
    SlowDown,
    StaleRecord,
    TooLarge,
    Unauthorized,
    UserNotFound,
)
from meshproto.wire import AnyRequest, EntryValue, GossipResult, Id, LookupResult, fold

LEASE_S: Final = 30.0
"""Three pings may be late before a user counts as away."""
REGISTRATIONS_PER_LINK_MAX: Final = 100
"""A node registers itself; a gateway may register a few dozen names."""
WATCHES_PER_LINK_MAX: Final = 10_000
"""A name costs about 200 bytes to watch: 2 MB for one link."""
NOT_FOUND_RETRY_S: Final = 5.0
"""What a 404 says about when to ask again."""
SWEEP_NAMES: Final = 500
"""Names looked at each round for claims that ran out: a million in half an hour."""


@dataclass(frozen=True)
class Settings:
    lease_s: float = LEASE_S
    claim_ttl_s: float = CLAIM_TTL_S
    list_names: bool = True
    mesh_keys: Keyring = NO_KEYS
    version: str = ""


@dataclass
class _Session:
    """One link. `trusted`: may gossip where no mesh key is asked for (a private address). `handshake`: what it has to
    prove. `seed`: the name of the seed that gossips over it."""

    trusted: bool
    handshake: Handshake | None = None
    seed: str | None = None
    names: set[str] = field(default_factory=set)
    watched: set[str] = field(default_factory=set)


class Seed:
    """`entries`: what :class:`Save` wrote before, `peers`: bootstrap addresses and those of :class:`SavePeer`."""

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
        self.peering = Peering(name, address, now=now, rng=rng, bootstrap=peers)
        self.gossip = self.peering.gossip
        self.directory = Directory(self._settings.claim_ttl_s)
        self._sessions: dict[int, _Session] = {}
        self._leases: dict[int, float] = {}  # link -> deadline, earliest first
        self._link_of: dict[str, int] = {}
        self._watchers: dict[str, set[int]] = {}
        self._sweep_after = ""
        self.dropped = 0
        self._lookups = 0
        self._registrations = 0
        for key, value in entries:
            # Whoever was online when this seed stopped was seen until now, as far as anybody can know.
            seen = _ms(now) if value.online else value.seen
            self._write(read_entry(name, key, wire.encode_value(_away(value, seen))))
        self.peering.begin()

    # -- what the shell calls ------------------------------------------------------------------------------------

    @property
    def wake_at(self) -> float:
        """When :meth:`tick` wants to be called next."""
        lease = next(iter(self._leases.values()), math.inf)
        return min(self.peering.wake_at, lease)

    def opened(self, link: int, *, trusted: bool) -> None:
        self._sessions[link] = _Session(trusted)

    def receive(self, link: int, request: AnyRequest, now: float) -> list[Effect]:
        """A request from a link. Never raises: what the caller did wrong goes back as an error line."""
        session = self._sessions[link]
        renewed = self._renew(link, session, now) if session.names else []
        return renewed + self._serve(link, session, request, now)

    def _serve(self, link: int, session: _Session, request: AnyRequest, now: float) -> list[Effect]:
        try:
            match request:
                case wire.Lookup():
                    return self._lookup(link, request.id, request.params.name, now)
                case wire.Register():
                    return self._register(link, session, request, now)
                case wire.Unregister():
                    return self._unregister(link, session, request, now)
                case wire.Gossip():
                    return self._gossip(link, session, request, now)
                case _:
                    return self._answer(link, request.id, self._ask(link, session, request, now))
        except MeshError as error:
            return self._refuse(link, request.id, error)

    def closed(self, link: int, now: float) -> list[Effect]:
        """The link is gone: its users are away."""
        session = self._sessions.pop(link)
        self._leases.pop(link, None)
        self._unwatch(link, session, list(session.watched))
        if session.seed is not None and session.seed in self.peering.addresses:
            self.peering.lost(self.peering.addresses[session.seed], now)
        effects = self._mark(link, session, False, now)
        for key in session.names:
            if self._link_of.get(key) == link:
                del self._link_of[key]
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
        while self._leases and next(iter(self._leases.values())) <= now:
            link = next(iter(self._leases))
            del self._leases[link]
            effects += self._mark(link, self._sessions[link], False, now)
        if now >= self.peering.next_round:
            effects += self._sweep(now)
        return effects + self.peering.tick(now)

    def exchanged(self, address: str, result: GossipResult, now: float) -> list[Effect]:
        """The answer to an :class:`meshproto.core.effects.Exchange`."""
        teller = self.peering.name_at(address)
        effects = self._hear(result.digest, result.delta, now, teller=teller, pushed=False)
        return effects + self.peering.exchanged(address, result)

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
        effects: list[Effect] = [self._forged(bad) for bad in dropped]
        if entry is None:
            missing = UserNotFound(f"no user {name} is known here", retry_after_s=NOT_FOUND_RETRY_S)
            return [*effects, *self._refuse(link, request_id, missing)]
        return [*effects, *self._answer(link, request_id, self._result(entry, now))]

    def _register(self, link: int, session: _Session, request: wire.Register, now: float) -> list[Effect]:
        record = verify(request.params)
        if not record.uris:
            raise BadParams("a registration needs at least one uri; to leave, use unregister")
        key = fold(record.name)
        if key not in session.names and len(session.names) >= REGISTRATIONS_PER_LINK_MAX:
            raise SlowDown(f"at most {REGISTRATIONS_PER_LINK_MAX} names may be registered over one connection")
        _, dropped = self.directory.verified(key, _ms(now))
        since = self.directory.claim(record, _ms(now))
        known = self.directory.at_home(key, self.name)
        if known is not None and known.key == record.key and known.seq >= record.seq and self._link_of.get(key) != link:
            # Anybody can look a record up and send it again: over another connection only a newer one counts.
            raise StaleRecord(f"this record of {record.name} was registered already: sign one with a higher seq")
        value = EntryValue(request.params.record, request.params.sig, since, True, _ms(now))
        if len(wire.encode_value(value)) > wire.CELL_BYTES_MAX:
            raise TooLarge(f"the record is larger than seeds pass on: {wire.CELL_BYTES_MAX} bytes with its signature")
        effects: list[Effect] = [self._forged(bad) for bad in dropped]
        effects += self._enter(entry_of(record, value, self.name, verified=True), now)
        session.names.add(key)
        self._link_of[key] = link
        effects += self._renew(link, session, now)
        self._registrations += 1
        result = wire.RegisterResult(self.name, since, self._settings.lease_s)
        return [*effects, self._save_then(link, request.id, ((key, value),), result)]

    def _unregister(self, link: int, session: _Session, request: wire.Unregister, now: float) -> list[Effect]:
        record = verify(request.params)
        if record.uris:
            raise BadParams('a record that unregisters has "uris": []')
        key = fold(record.name)
        if self.directory.verified(key, _ms(now))[0] is None:
            raise UserNotFound(f"no user {record.name} is known here")
        since = self.directory.claim(record, _ms(now))
        value = EntryValue(request.params.record, request.params.sig, since, False, _ms(now))
        session.names.discard(key)
        self._link_of.pop(key, None)
        effects = self._enter(entry_of(record, value, self.name, verified=True), now)
        return [*effects, self._save_then(link, request.id, ((key, value),), wire.Nothing())]

    def _ask(self, link: int, session: _Session, request: AnyRequest, now: float) -> Struct:
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
                return self._watch(link, session, request.params.names)
            case wire.Unwatch():
                self._unwatch(link, session, [fold(name) for name in request.params.names])
                return wire.Nothing()
            case _:
                return self.status(now)

    def _hello(self, session: _Session, params: wire.HelloParams) -> wire.HelloResult:
        if params.version != wire.PROTOCOL_VERSION:
            raise BadParams(f"this seed speaks version {wire.PROTOCOL_VERSION} of the protocol, not {params.version}")
        handshake = self._admit(session, params) if params.role == "seed" else None
        limits = {"line_bytes": wire.LINE_BYTES_MAX, "watches": WATCHES_PER_LINK_MAX, "names_page": wire.NAMES_PAGE_MAX}
        return self.gate.greeting(limits, handshake)

    def _admit(self, session: _Session, params: wire.HelloParams) -> Handshake | None:
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

    def _watch(self, link: int, session: _Session, names: list[str]) -> wire.Nothing:
        keys = {fold(name) for name in names}
        if len(session.watched | keys) > WATCHES_PER_LINK_MAX:
            raise SlowDown(f"at most {WATCHES_PER_LINK_MAX} names may be watched over one connection")
        session.watched |= keys
        for key in keys:
            self._watchers.setdefault(key, set()).add(link)
        return wire.Nothing()

    def _unwatch(self, link: int, session: _Session, keys: list[str]) -> None:
        for key in keys:
            session.watched.discard(key)
            watchers = self._watchers.get(key, set())
            watchers.discard(link)
            if not watchers:
                self._watchers.pop(key, None)

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
        alive = sum(self.peering.alive(name, now) for name in self.peering.addresses)
        return wire.StatusResult(
            seed=self.name,
            version=self._settings.version,
            uptime=round(now - self._started, 3),
            names=len(self.directory),
            online=self.directory.online,
            seeds=1 + len(self.peering.addresses),
            alive=1 + alive,
            links=len(self._sessions),
            lookups=self._lookups,
            registrations=self._registrations,
        )

    # -- entries and presence ------------------------------------------------------------------------------------

    def _renew(self, link: int, session: _Session, now: float) -> list[Effect]:
        """A sign of life; the mapping stays in the order of the deadlines because every lease is equally long."""
        lapsed = self._leases.pop(link, None) is None
        self._leases[link] = now + self._settings.lease_s
        return self._mark(link, session, True, now) if lapsed else []

    def _mark(self, link: int, session: _Session, online: bool, now: float) -> list[Effect]:
        """The users of a link are here, or away."""
        effects: list[Effect] = []
        rows: list[tuple[str, EntryValue | None]] = []
        for key in sorted(session.names):
            entry = self.directory.at_home(key, self.name)
            ours = self._link_of.get(key) == link
            if entry is None or entry.gone or not ours or entry.online == online:
                continue
            marked = _with_presence(entry, online, _ms(now))
            rows.append((key, marked.value))
            effects += self._enter(marked, now)
        return [*effects, Save(tuple(rows))] if rows else effects

    def _enter(self, entry: Entry, now: float) -> list[Effect]:
        """Write an own entry and tell whoever wants to know."""
        self._write(entry)
        self.peering.push_soon(now)
        return self._changed({fold(entry.name)}, now)

    def _write(self, entry: Entry) -> None:
        key = fold(entry.name)
        self.directory.put(entry, key)
        self.gossip.put(key, entry.text)

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
        for key in sorted(keys & self._watchers.keys()):
            entry, dropped = self.directory.verified(key, _ms(now))
            effects += [self._forged(bad) for bad in dropped]
            told = wire.ChangedParams(entry.name if entry else key, self._result(entry, now) if entry else None)
            line = wire.encode_request("changed", told)
            effects += [Send(link, line) for link in sorted(self._watchers[key])]
        return effects

    def _sweep(self, now: float) -> list[Effect]:
        """Let go of own claims that ran out, a few names at a time."""
        over, self._sweep_after = self.directory.lapsed(self.name, self._sweep_after, SWEEP_NAMES, _ms(now))
        for key in over:
            self._drop(key, now)
        return [*self._changed(set(over), now), Save(tuple((key, None) for key in over))] if over else []

    # -- gossip --------------------------------------------------------------------------------------------------

    def _gossip(self, link: int, session: _Session, request: wire.Gossip, now: float) -> list[Effect]:
        if session.seed is None and self.gate.keyed:
            raise Unauthorized("this seed gossips with those that prove its mesh key: start both with one --mesh-key")
        if session.seed is None:
            raise Forbidden("gossip is for seeds: say hello with role seed first")
        pushed = request.id is UNSET
        effects = self._hear(request.params.digest, request.params.delta, now, teller=session.seed, pushed=pushed)
        return (
            effects if pushed else effects + self._answer(link, request.id, self.peering.answer(request.params.digest))
        )

    def _hear(
        self, digest: wire.Digest, deltas: list[wire.Delta], now: float, *, teller: str | None, pushed: bool
    ) -> list[Effect]:
        changes, effects = self.peering.hear(digest, deltas, now, teller=teller, pushed=pushed)
        for change in changes:
            effects += self._take(change, now)
        return effects + self._changed({change.key for change in changes}, now)

    def _take(self, change: Change, now: float) -> list[Effect]:
        """Another seed says something else of a user."""
        if change.value is None:
            self.directory.remove(change.key, change.seed)
            return []
        try:
            entry = read_entry(change.seed, change.key, change.value)
        except MeshError as error:
            self.directory.remove(change.key, change.seed)
            self.dropped += 1
            return [Log(f"dropped what seed {change.seed} says of {change.key}: {error.detail}")]
        self.directory.put(entry, change.key)
        own = self.directory.at_home(change.key, self.name)
        if own is None or not self._superseded(own, entry, now):
            return []
        # Another seed's word ends an entry here only when the user's own signature is under it.
        if not self.directory.check(entry):
            return [self._forged(entry)]
        if not self._superseded(own, entry, now):
            return []
        self._drop(change.key, now)
        told = [] if own.key == entry.key else self._tell_loser(own, entry)
        return [*told, Save(((change.key, None),))]

    def _superseded(self, own: Entry, told: Entry, now: float) -> bool:
        """Whether what another home has told ends the entry here: the user has moved on, or left there (else the old
        entry would own the name again as soon as the farewell is overwritten), or lost the claim. A farewell claims
        nothing, and stays: it may be all that speaks against an older entry on the disk of a seed that is down."""
        if told.key == own.key:
            return told.seq > own.seq
        if own.gone:
            return False
        best = self.directory.best(own.name, _ms(now))
        return best is not None and best.key != own.key

    def _tell_loser(self, own: Entry, winner: Entry) -> list[Effect]:
        """Two keys had claimed the name on two sides of a split; the one that is registered here has lost it."""
        key = fold(own.name)
        lost = Log(f"{own.name} has lost the name to a key that claimed it earlier, at seed {winner.home}")
        link = self._link_of.pop(key, None)
        if link is None:
            return [lost]
        self._sessions[link].names.discard(key)
        return [lost, Send(link, wire.encode_request("conflict", wire.ConflictParams(own.name, winner.key)))]

    def _forged(self, entry: Entry) -> Log:
        self.dropped += 1
        return Log(f"dropped a record of {entry.name} that seed {entry.home} passed on: its signature does not fit")

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


def _away(value: EntryValue, seen_ms: int) -> EntryValue:
    return EntryValue(value.record, value.sig, value.since, False, seen_ms)


def _with_presence(entry: Entry, online: bool, now_ms: int) -> Entry:
    before = entry.value
    value = EntryValue(before.record, before.sig, before.since, online, now_ms)
    return Entry(wire.encode_value(value), entry.home, online, entry.gone, entry.verified)
