"""A seed: what it does with a message, and as time goes by.

Composes the key spaces (:mod:`gossip`), the failure detector (:mod:`liveness`) and the index (:mod:`directory`). A call
returns effects, frozen values that the shell carries out in order. A *link* is a number that the shell gave to a
connection; an *address* is a HOST:PORT where another seed listens.

Presence is the connection: whoever registered over a link is online while that link lives and is heard from within
the lease. A registration is known at once, and answered when it is on disk.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from msgspec import UNSET, Struct, UnsetType

from meshproto import wire
from meshproto.core.directory import CLAIM_TTL_S, Directory, Entry, entry_of, read_entry
from meshproto.core.gossip import Change, Gossip
from meshproto.core.identity import verify
from meshproto.core.liveness import Liveness
from meshproto.errors import BadParams, CallerError, Forbidden, MeshError, SlowDown, UserNotFound
from meshproto.wire import AnyRequest, EntryValue, GossipParams, GossipResult, Id, LookupResult, fold

LEASE_S: Final = 30.0
"""Three pings may be late before a user counts as away."""
GOSSIP_INTERVAL_S: Final = 1.0
GOSSIP_PEERS: Final = 3
"""Live peers asked each round: news reaches N seeds in about log4(N) rounds even if every push is lost."""
GOSSIP_BYTES_MAX: Final = wire.LINE_BYTES_MAX - 2048
"""Digest and deltas of one line; the rest is for the request around them."""
PUSH_DELAY_S: Final = 0.02
"""Changes within this time travel together."""
PUSH_PEERS: Final = 6
"""Peers that hear of news at once from each seed it reaches; what they all miss the rounds repair."""
REDIAL_DEAD_S: Final = 5.0
"""A dead seed or a bootstrap address is tried about this often, for ever, so that splits heal."""
REGISTRATIONS_PER_LINK_MAX: Final = 100
"""A node registers itself; a gateway may register a few dozen names."""
WATCHES_PER_LINK_MAX: Final = 10_000
"""A name costs about 200 bytes to watch: 2 MB for one link."""
NOT_FOUND_RETRY_S: Final = 5.0
"""What a 404 says about when to ask again."""
SWEEP_NAMES: Final = 500
"""Names looked at each round for claims that ran out: a million in half an hour."""
FACTS_KEY: Final = "@"
"""No name contains it: where a seed writes about itself."""


# -- effects ------------------------------------------------------------------------------------------------------


class Send(Struct, frozen=True):
    """Write the line to the link."""

    link: int
    line: bytes


class Save(Struct, frozen=True):
    """Write the rows (None: delete); when they are on disk carry out `then`, if that fails `otherwise`."""

    rows: tuple[tuple[str, EntryValue | None], ...]
    then: tuple[Send, ...] = ()
    otherwise: tuple[Send, ...] = ()


class SavePeer(Struct, frozen=True):
    """Remember the address for the next start."""

    address: str


class Exchange(Struct, frozen=True):
    """Ask the seed at the address for a gossip exchange and bring the answer to :meth:`Seed.exchanged`, its absence to
    :meth:`Seed.unreachable`."""

    address: str
    params: GossipParams


class Push(Struct, frozen=True):
    """Tell the seed at the address without waiting for an answer; nothing is lost if it is not reached."""

    address: str
    params: GossipParams


class Log(Struct, frozen=True):
    """Something the operator should read."""

    text: str


Effect = Send | Save | SavePeer | Exchange | Push | Log


@dataclass(frozen=True)
class Settings:
    lease_s: float = LEASE_S
    claim_ttl_s: float = CLAIM_TTL_S
    list_names: bool = True
    version: str = ""


@dataclass
class _Session:
    """One link. `trusted`: may gossip (a private address, for as long as no mesh key is asked for)."""

    trusted: bool
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
        settings: Settings | None = None,
        entries: Iterable[tuple[str, EntryValue]] = (),
        peers: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.address = address
        self._rng = rng
        self._settings = settings or Settings()
        self._started = now
        self.gossip = Gossip(name, _ms(now))
        self.liveness = Liveness()
        self.directory = Directory(self._settings.claim_ttl_s)
        self._sessions: dict[int, _Session] = {}
        self._leases: dict[int, float] = {}  # link -> deadline, earliest first
        self._link_of: dict[str, int] = {}
        self._watchers: dict[str, set[int]] = {}
        self._bootstrap = [peer for peer in peers if peer != address]
        self._addresses: dict[str, str] = {}  # other seeds: name -> address
        self._redial: dict[str, float] = {}  # addresses that do not answer -> when to try again
        self._next_round = now
        self._push_at: float | None = None
        self._pushed = 0
        self._relay: list[wire.Delta] = []
        self._sweep_after = ""
        self._lookups = 0
        self._registrations = 0
        self.gossip.put(FACTS_KEY, wire.encode_value(wire.SeedFacts(address)))
        for key, value in entries:
            # Whoever was online when this seed stopped was seen until now, as far as anybody can know.
            seen = _ms(now) if value.online else value.seen
            self._write(read_entry(name, key, wire.encode_value(_away(value, seen))))
        self._pushed = self.gossip.own.version

    # -- what the shell calls ------------------------------------------------------------------------------------

    @property
    def wake_at(self) -> float:
        """When :meth:`tick` wants to be called next."""
        times = [self._next_round]
        if self._push_at is not None:
            times.append(self._push_at)
        if self._leases:
            times.append(next(iter(self._leases.values())))
        return min(times)

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
        effects = self._mark(link, session, False, now)
        for key in session.names:
            if self._link_of.get(key) == link:
                del self._link_of[key]
        return effects

    def tick(self, now: float) -> list[Effect]:
        """Do what is due: leases, pushes, gossip rounds."""
        effects: list[Effect] = []
        while self._leases and next(iter(self._leases.values())) <= now:
            link = next(iter(self._leases))
            del self._leases[link]
            effects += self._mark(link, self._sessions[link], False, now)
        if now >= self._next_round:
            self._next_round = now + GOSSIP_INTERVAL_S * self._rng.uniform(0.8, 1.2)
            effects += self._round(now)
        if self._push_at is not None and now >= self._push_at:
            effects += self._push(now)
        return effects

    def exchanged(self, address: str, result: GossipResult, now: float) -> list[Effect]:
        """The answer to an :class:`Exchange`."""
        self._redial.pop(address, None)
        effects = self._hear(result.digest, result.delta, now, relay=False)
        delta, more = self.gossip.delta(result.digest, self._delta_budget())
        if delta or more or result.more:
            effects.append(Exchange(address, GossipParams(self.gossip.digest(), delta)))
        return effects

    def unreachable(self, address: str, now: float) -> list[Effect]:
        """The seed at the address did not answer an :class:`Exchange`."""
        self._redial[address] = now + REDIAL_DEAD_S * self._rng.uniform(0.75, 1.25)
        return []

    # -- requests ------------------------------------------------------------------------------------------------

    def _lookup(self, link: int, request_id: Id | UnsetType, name: str, now: float) -> list[Effect]:
        self._lookups += 1
        entry, dropped = self.directory.verified(name, _ms(now))
        effects: list[Effect] = [_forged(bad) for bad in dropped]
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
        value = EntryValue(request.params.record, request.params.sig, since, True, _ms(now))
        effects: list[Effect] = [_forged(bad) for bad in dropped]
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
        if params.role == "seed":
            if not session.trusted:
                raise Forbidden("without a mesh key, gossip is accepted from loopback and private addresses only")
            if params.name is None:
                raise BadParams("a seed says its name")
            if params.name == self.name:
                raise SameName(f"this seed is called {self.name} too: give each seed a name of its own with --name")
            session.seed = params.name
        limits = {"line_bytes": wire.LINE_BYTES_MAX, "watches": WATCHES_PER_LINK_MAX, "names_page": wire.NAMES_PAGE_MAX}
        return wire.HelloResult(wire.PROTOCOL_VERSION, self.name, "", limits)

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
        users = self.directory.users_by_home
        own = wire.SeedInfo(self.name, self.address, True, users[self.name])
        others = [
            wire.SeedInfo(name, address, self.liveness.alive(name, now), users[name])
            for name, address in sorted(self._addresses.items())
        ]
        return [own, *others]

    def status(self, now: float) -> wire.StatusResult:
        alive = sum(self.liveness.alive(name, now) for name in self._addresses)
        return wire.StatusResult(
            seed=self.name,
            version=self._settings.version,
            uptime=round(now - self._started, 3),
            names=len(self.directory),
            online=self.directory.online,
            seeds=1 + len(self._addresses),
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
            if entry is None or entry.gone or not ours or entry.value.online == online:
                continue
            marked = _with_presence(entry, online, _ms(now))
            rows.append((key, marked.value))
            effects += self._enter(marked, now)
        return [*effects, Save(tuple(rows))] if rows else effects

    def _enter(self, entry: Entry, now: float) -> list[Effect]:
        """Write an own entry and tell whoever wants to know."""
        self._write(entry)
        self._push_soon(now)
        return self._changed({fold(entry.name)}, now)

    def _write(self, entry: Entry) -> None:
        self.directory.put(entry)
        self.gossip.put(fold(entry.name), wire.encode_value(entry.value))

    def _drop(self, key: str, now: float) -> None:
        self.directory.remove(key, self.name)
        self.gossip.delete(key, now)
        self._push_soon(now)

    def _result(self, entry: Entry, now: float) -> LookupResult:
        value = entry.value
        online = value.online and (entry.home == self.name or self.liveness.alive(entry.home, now))
        seen = _ms(now) if online else value.seen
        return LookupResult(value.record, value.sig, value.since, entry.home, online, seen)

    def _changed(self, keys: set[str], now: float) -> list[Effect]:
        """Notifications for those who watch the names."""
        effects: list[Effect] = []
        for key in sorted(keys & self._watchers.keys()):
            entry, dropped = self.directory.verified(key, _ms(now))
            effects += [_forged(bad) for bad in dropped]
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
        if session.seed is None:
            raise Forbidden("gossip is for seeds: say hello with role seed first")
        pushed = request.id is UNSET
        effects = self._hear(request.params.digest, request.params.delta, now, relay=pushed)
        if pushed:
            return effects
        delta, more = self.gossip.delta(request.params.digest, self._delta_budget())
        answer = GossipResult(self.gossip.digest(), delta, more)
        return [*effects, *self._answer(link, request.id, answer)]

    def _delta_budget(self) -> int:
        return GOSSIP_BYTES_MAX - len(wire.encode_value(self.gossip.digest()))

    def _hear(self, digest: wire.Digest, deltas: list[wire.Delta], now: float, *, relay: bool) -> list[Effect]:
        """`relay`: pass on what is new. Only pushed news is: what a round brings is old to most."""
        for seed in self.gossip.heard(digest):
            self.liveness.heard(seed, now)
        effects: list[Effect] = []
        changed: set[str] = set()
        for delta in deltas:
            changes = self.gossip.merge(delta)
            if changes and relay:
                self._relay.append(delta)
                self._push_soon(now)
            for change in changes:
                effects += self._take(change, now)
                changed.add(change.key)
        return [*effects, *self._changed(changed, now)]

    def _take(self, change: Change, now: float) -> list[Effect]:
        """Another seed's key space has changed."""
        if change.key == FACTS_KEY:
            return self._meet(change)
        if change.value is None:
            self.directory.remove(change.key, change.seed)
            return []
        try:
            entry = read_entry(change.seed, change.key, change.value)
        except MeshError as error:
            self.directory.remove(change.key, change.seed)
            return [Log(f"dropped what seed {change.seed} says of {change.key}: {error.detail}")]
        self.directory.put(entry)
        own = self.directory.at_home(change.key, self.name)
        if own is not None and own.key == entry.key and own.seq < entry.seq:
            if not self.directory.check(entry):
                return [_forged(entry)]
            # The user has moved on: the entry here is history.
            self._drop(change.key, now)
            return [Save(((change.key, None),))]
        return []

    def _meet(self, change: Change) -> list[Effect]:
        """A seed says where it listens."""
        if change.value is None:
            self._addresses.pop(change.seed, None)
            return []
        try:
            facts = wire.decode_value(change.value, wire.SeedFacts)
        except MeshError as error:
            return [Log(f"dropped what seed {change.seed} says of itself: {error.detail}")]
        if facts.address == self.address:
            return [Log(f"seed {change.seed} says that it listens at this seed's own address {self.address}")]
        self._addresses[change.seed] = facts.address
        return [SavePeer(facts.address)]

    def _round(self, now: float) -> list[Effect]:
        """One gossip round: some live peers, and now and then one that is silent or was only heard of."""
        self.gossip.beat()
        self.gossip.collect(now)
        effects = self._sweep(now)
        live = [self._addresses[name] for name in sorted(self._addresses) if self.liveness.alive(name, now)]
        silent = sorted({*self._bootstrap, *self._addresses.values()} - set(live))
        due = [address for address in silent if self._redial.get(address, now) <= now]
        chosen = self._rng.sample(live, min(GOSSIP_PEERS, len(live)))
        chosen += self._rng.sample(due, min(1 if live else GOSSIP_PEERS, len(due)))
        digest = self.gossip.digest()
        return effects + [Exchange(address, GossipParams(digest)) for address in chosen]

    def _push_soon(self, now: float) -> None:
        if self._push_at is None:
            self._push_at = now + PUSH_DELAY_S

    def _push(self, now: float) -> list[Effect]:
        """Tell some live peers what is new: own writes, and what was heard from others."""
        self._push_at = None
        deltas = self._relay
        self._relay = []
        if self.gossip.own.version > self._pushed:
            deltas.append(self.gossip.news(self._pushed, GOSSIP_BYTES_MAX // 2))
            self._pushed = self.gossip.own.version
        live = [self._addresses[name] for name in sorted(self._addresses) if self.liveness.alive(name, now)]
        peers = self._rng.sample(live, min(PUSH_PEERS, len(live)))
        own = {self.name: self.gossip.own.summary}
        return [Push(peer, GossipParams(own, [delta])) for peer in peers for delta in deltas]

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
    value = EntryValue(entry.value.record, entry.value.sig, entry.value.since, online, now_ms)
    return Entry(entry.name, entry.key, entry.seq, entry.gone, value, entry.home, entry.verified)


def _forged(entry: Entry) -> Log:
    return Log(f"dropped a record of {entry.name} that seed {entry.home} passed on: its signature does not fit")
