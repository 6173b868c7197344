"""A directory that several seeds share, in a store that others have proven: Redis Cluster, say.

The seeds of a site then keep no users themselves. What the directory has of a name is one value of the store, and
counts as the entry of one home (:mod:`meshproto.core.directory`), beside those that seeds with a directory of their own
gossip. So the rules are the same (:mod:`meshproto.core.registry`); but what they decide on is read first, and what they
decided is written by compare-and-set: if somebody else was quicker it is decided anew.

Who is online is not written every few seconds: a value names the seed where the user is, and that seed's life; they are
there as long as that seed is (:mod:`meshproto.core.liveness`), and lives the same life. A user who has been away for as
long as a claim lasts is forgotten by the store itself, whose values expire.

A store that fails over may lose what it had acknowledged last, so each seed looks after the users who are connected to
it: what is missing is written again, and of two keys the one with the older claim keeps the name.

Lookups go on while the store is gone, as far as the seed remembers: the answer says that it is `stale`.
"""

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from typing import Any, Final, Protocol, TypeVar

import msgspec

from meshproto import wire
from meshproto.core.directory import Directory
from meshproto.core.effects import Ask, Effect, Log, Reply, Save, Tell
from meshproto.core.entry import Entry, pack_own
from meshproto.core.gossip import Change, content
from meshproto.core.identity import Record, verify
from meshproto.core.names import Parts
from meshproto.core.quick import not_found
from meshproto.core.registry import as_seen
from meshproto.core.shared_rules import HOME, Draft, Place, Rules, stored
from meshproto.errors import Forbidden, MeshError, NameTaken, Unavailable
from meshproto.wire import EntryValue, LookupResult, SignedRecord, fold

TRIES_MAX: Final = 8
"""How often a name is decided anew because somebody else was quicker; then something is wrong."""
BUSY_RETRY_S: Final = 1.0
KNOWN_NAMES_MAX: Final = 100_000
"""What was read last is remembered for when the store is gone: 50 MB."""
CARE_S: Final = 60.0
"""How often a seed looks whether the store still has a user who is connected to it: so long a name that a fail-over has
lost may be unknown, or somebody else's."""
CARE_NAMES: Final = 1000
"""Looked after at a time, each round of gossip, while there are so many: 60,000 users a minute."""
WORKERS_MAX: Final = 64
"""Names that are brought along, or compared with what gossip has told, at a time: several thousand a second, and not so
many that those who ask meanwhile wait for them."""
WORK_EFFECTS_MAX: Final = 100
"""Then they are carried out; the rest goes on with the next round."""
CONTESTED_NAMES_MAX: Final = 10_000
"""Names that seeds with directories of their own are told of, since they had them too; those for longest are not told
of any more when there are more. A move from such directories to this one has as many as users move within the time that
a seed takes to be asked."""

T = TypeVar("T")


class SharedStore(Protocol):
    """One value a key, in a store that several seeds share. Whatever is awaited raises :class:`Unavailable` when the
    store does not answer in time, or has nobody for these keys."""

    def get(self, key: str) -> Awaitable[bytes | None]: ...

    def swap(self, key: str, before: bytes | None, after: bytes | None, ttl_ms: int) -> Awaitable[bool]:
        """Compare and set: write `after` (None: delete), which expires after `ttl_ms`, if the value is still `before`
        (None: there is none); tell all who watch the key. Whether it was so."""

    def watch(self, keys: Iterable[str]) -> None:
        """Say when one of them is written, by whomever."""

    def unwatch(self, keys: Iterable[str]) -> None: ...

    def count(self) -> Awaitable[int]:
        """How many keys there are, roughly."""

    def identity(self) -> Awaitable[str]:
        """Which directory it is: the same for all who share it, and for nobody else."""


class Shared:
    """The :class:`meshproto.core.names.Names` of a seed `name` whose directory is in a store. `clock`: s since 1970
    UTC, read whenever the store has answered. `entries`: what this seed had on its own disk before; it goes into the
    store, and until then is known from here. `names`: how many the store has, as far as anybody has counted."""

    quick = False
    complete = True

    def __init__(
        self,
        parts: Parts,
        store: SharedStore,
        clock: Callable[[], float],
        entries: Iterable[tuple[str, EntryValue]] = (),
    ) -> None:
        now = clock()
        self.names = 0
        self._tally = parts.tally
        self._name = parts.seed
        self._store = store
        self._peering = parts.peering
        self._sessions = parts.sessions
        self._clock = clock
        self._lease_s = parts.lease_s
        self._rules = Rules(parts)
        self._ttl_ms = self._rules.kept_ms
        self._known: OrderedDict[str, bytes] = OrderedDict()
        self._mine: OrderedDict[str, tuple[EntryValue, float]] = OrderedDict()  # who is here, and when to look again
        self._untold: OrderedDict[str, None] = OrderedDict()  # names whose watchers are to be told how they stand
        self._told: OrderedDict[tuple[str, str], None] = OrderedDict()  # names and homes that gossip has told of
        self._contested: OrderedDict[str, None] = OrderedDict()
        self._moving: deque[tuple[str, EntryValue]] = deque()
        self._workers = 0
        self._trouble = ""  # why something of that waits, as it was logged
        self._bring(entries, now)
        self._sessions.followed, self._sessions.left = store.watch, self._leave

    @property
    def directory(self) -> Directory:
        """What gossip tells of users with other directories."""
        return self._rules.directory

    @property
    def dropped(self) -> int:
        return self._rules.dropped

    @property
    def settled(self) -> bool:
        """Whether all that this seed has brought along stands in the store: until then it knows more than others who
        share it, and must not be taken for one of them."""
        return not self._moving and not self._workers

    @property
    def users(self) -> dict[str, int]:
        """By seed, as far as that is known here."""
        return {self._name: len(self._mine)}

    def online(self, _alive: Collection[str]) -> int:
        return len(self._mine)

    # -- asked by users ------------------------------------------------------------------------------------------

    def lookup(self, reply: Reply, name: str, now: float) -> list[Effect]:
        self._sessions[reply.link].welcome = True  # it is a request, whoever it is for
        return [Ask(self._answered(reply, self._look_up(reply, name)), reply.link)]

    def register(self, reply: Reply, signed: SignedRecord, now: float) -> list[Effect]:
        work = self._register(reply, signed, verify(signed))
        return [Ask(self._answered(reply, work), reply.link)]

    def unregister(self, reply: Reply, signed: SignedRecord, now: float) -> list[Effect]:
        work = self._unregister(reply, signed, verify(signed))
        return [Ask(self._answered(reply, work), reply.link)]

    def page(self, wanted: wire.NamesParams, now: float) -> wire.NamesResult:
        raise Forbidden("this seed does not list names: it shares a directory, which has them in no order")

    @staticmethod
    async def _answered(reply: Reply, work: Coroutine[Any, Any, list[Effect]]) -> list[Effect]:
        try:
            return await work
        except MeshError as error:
            return [*reply.error(error)]

    async def _look_up(self, reply: Reply, name: str) -> list[Effect]:
        found, effects = await self._find(name)
        if found is None:
            self._tally.missed += 1
            return [*effects, *reply.error(not_found(name))]
        return [*effects, *reply.result(found)]

    async def _find(self, name: str) -> tuple[LookupResult | None, list[Effect]]:
        """Raises :class:`Unavailable` for what is not remembered while the store is gone."""
        key, stale = fold(name), False
        try:
            kept = self._remember(key, await self._store.get(key))
        except Unavailable:
            kept, stale = self._known.get(key), True
            if kept is None and not self._rules.directory.knows(key):
                raise
        now, draft = self._clock(), Draft(kept)
        found: LookupResult | None
        effects: list[Effect] = []
        if self._rules.directory.knows(key):
            with self._rules.loaded(key, draft, now):
                found, effects = self._rules.find(key, now)
        else:
            found = self._rules.find_alone(draft, now)
        if found is not None and stale:
            found = msgspec.structs.replace(found, online=False, stale=True)
        return found, effects

    async def _register(self, reply: Reply, signed: SignedRecord, record: Record) -> list[Effect]:
        link, key = reply.link, fold(record.name)

        def decide(now: float) -> tuple[EntryValue, list[Effect]]:
            if link not in self._sessions:
                raise Unavailable("the connection has ended")
            self._check_lost(key, record)
            (_, value), effects = self._rules.register(link, signed, record, now)
            return value, effects

        try:
            value, effects = await self._decide(key, decide, here=True)
        except MeshError as error:
            self._tally.refused_to_register(error)
            raise
        now = self._clock()
        self._tally.registrations += 1
        self._mine[key] = value, now + CARE_S
        if link not in self._sessions:
            return effects + await self._mark(key, False)
        self._sessions.register(link, key)
        self._sessions[link].welcome = True
        result = wire.RegisterResult(self._name, value.since, self._lease_s)
        return [*effects, *self.renew(link, now), *reply.result(result)]

    def _check_lost(self, key: str, record: Record) -> None:
        """What the store has lost of somebody who is connected here is theirs all the same. Raises
        :class:`NameTaken`."""
        if key not in self._mine:
            return
        mine, entry = self._mine[key][0], self._rules.shared(key)
        own = wire.decode_value(mine.record, Record)
        moved = entry is not None and entry.key == own.key and entry.seq > own.seq
        lost = entry is not None and entry.key != own.key and (entry.since, entry.key) < (mine.since, own.key)
        if own.key != record.key and not (moved or lost):
            raise NameTaken(f"{record.name} belongs to another key: choose another name")

    async def _unregister(self, reply: Reply, signed: SignedRecord, record: Record) -> list[Effect]:
        key = fold(record.name)
        _, effects = await self._decide(key, lambda now: self._rules.unregister(signed, record, now))
        self._mine.pop(key, None)
        if reply.link in self._sessions:
            self._sessions[reply.link].welcome = True
        return [*effects, *reply.result(wire.Nothing())]

    # -- presence ------------------------------------------------------------------------------------------------

    def renew(self, link: int, now: float) -> list[Effect]:
        return self.mark(link, True, now) if self._sessions.renew(link, now) else []

    def mark(self, link: int, online: bool, now: float) -> list[Effect]:
        return [Ask(self._quietly(key, self._mark(key, online))) for key in self._sessions.names_of(link)]

    async def _mark(self, key: str, online: bool) -> list[Effect]:
        """The user is here, or was until now: as long as the store, too, has them here and nowhere else."""

        def decide(now: float) -> tuple[None, list[Effect]]:
            entry, draft = self._rules.shared(key), self._rules.draft
            link = self._sessions.link_of(key)
            here = link is not None and self._sessions.leased(link)
            if entry is None and key in self._mine and not (online or here):  # the store has lost it meanwhile
                mine = self._mine[key][0]
                record = wire.decode_value(mine.record, Record)
                return None, self._rules.enter(key, as_seen(mine, False, now), record, now)
            if entry is None or entry.gone or entry.online == online or draft.at != self._place or here != online:
                return None, []
            return None, self._rules.tell_presence([(key, entry)], online, now)

        _, effects = await self._decide(key, decide, here=True)
        if not online and self._sessions.link_of(key) is None:
            self._mine.pop(key, None)
        return effects

    @property
    def _place(self) -> Place:
        return Place(self._name, self._peering.gossip.own.generation)

    # -- as time goes by -----------------------------------------------------------------------------------------

    def sweep(self, now: float) -> list[Effect]:
        """Look after some who are connected here."""
        asks: list[Effect] = []
        for key, (_, at) in self._mine.items():
            if at > now or len(asks) >= CARE_NAMES:
                break
            asks.append(Ask(self._quietly(key, self._care(key))))
        for _ in asks:
            key = next(iter(self._mine))
            self._mine[key] = self._mine.pop(key)[0], now + CARE_S
        return asks + self._work_on()

    async def _care(self, key: str) -> list[Effect]:
        """See that the store has a user who is connected here as they have registered, and that it knows of one who has
        gone."""
        if key not in self._mine:
            return []
        mine, link = self._mine[key][0], self._sessions.link_of(key)
        if link is None or not self._sessions.leased(link):
            return await self._mark(key, False)
        return (await self._decide(key, lambda now: (None, self._look_after(key, mine, now)), here=True))[1]

    def _look_after(self, key: str, mine: EntryValue, now: float) -> list[Effect]:
        rules = self._rules
        record = wire.decode_value(mine.record, Record)
        entry = rules.shared(key) or rules.directory.best(key, _ms(now))
        if entry is None or (entry.key != record.key and (mine.since, record.key) < (entry.since, entry.key)):
            lost = Log(f"what the shared directory had of {record.name} was lost, and is written again")
            return [lost, *rules.enter(key, as_seen(mine, True, now), record, now)]
        if entry.key != record.key:
            rules.draft.calls.append(lambda: self._mine.pop(key, None))
            return rules.tell_loser(key, record.name, entry.key, entry.home or "the shared directory")
        if entry.seq > record.seq:  # the user has moved on, or left
            rules.draft.calls += [lambda: self._sessions.unregister(key), lambda: self._mine.pop(key, None)]
            return []
        if entry.home != HOME or entry.seq < record.seq or rules.draft.at != self._place:
            return rules.enter(key, as_seen(mine, True, now), record, now)
        fresh = entry.online and entry.seen + rules.renew_ms > _ms(now)
        return [] if fresh else rules.tell_presence([(key, entry)], True, now)

    def resumed(self) -> list[Effect]:
        """The store was gone, and what it did meanwhile was not heard: those who watch are told how things stand, seeds
        with directories of their own too; and all who are connected are looked after."""
        self._mine = OrderedDict((key, (value, 0.0)) for key, (value, _) in self._mine.items())
        self._untold.update(dict.fromkeys(self._sessions.watched_names()))
        self._told.update(dict.fromkeys((key, HOME) for key in self._contested))
        return self._work_on()

    def changed(self, key: str) -> list[Effect]:
        """A value of the store was written."""
        if key in self._contested:
            self._told[key, HOME] = None
        if self._sessions.watched({key}):
            self._untold[key] = None
        return self._work_on()

    # -- heard from seeds with a directory of their own ------------------------------------------------------------

    def take(self, changes: list[Change], now: float) -> list[Effect]:
        effects: list[Effect] = []
        directories = self._peering.directories
        mine = directories.get(self._name)
        for change in changes:
            if mine is not None and directories.get(change.seed) == mine:
                self._rules.directory.remove(change.key, change.seed)  # what they tell others stands in the store
                continue
            if self._rules.take_one(change, effects) and self._sessions.watched({change.key}):
                self._untold[change.key] = None
            self._told[change.key, change.seed] = None
        return effects + self._work_on()

    def bring(self, entries: Iterable[tuple[str, EntryValue]], now: float) -> list[Effect]:
        self._bring(entries, now)
        return self._work_on()

    def _bring(self, entries: Iterable[tuple[str, EntryValue]], now: float) -> None:
        for key, value in entries:
            value = self._rules.away(value, now)  # noqa: PLW2901
            self._moving.append((key, value))
            self._rules.directory.put(key, Entry(stored(pack_own(self._name, value)), self._name))

    def _work_on(self) -> list[Effect]:
        """Some names at a time, in the background: those whose watchers are to be told, what this seed brings along,
        and what gossip has told."""
        wanted = min(WORKERS_MAX, len(self._untold) + len(self._moving) + len(self._told)) - self._workers
        self._workers += max(0, wanted)
        return [Ask(self._work()) for _ in range(wanted)]

    async def _work(self) -> list[Effect]:
        effects: list[Effect] = []
        try:
            while len(effects) < WORK_EFFECTS_MAX and (work := self._next_work()) is not None:
                effects += await work
        except Unavailable as gone:
            if gone.detail != self._trouble:
                self._trouble = gone.detail
                effects.append(Log(f"names wait for the shared directory: {gone.detail}"))
        else:
            self._trouble = ""
        finally:
            self._workers -= 1
        return effects

    def _next_work(self) -> Coroutine[Any, Any, list[Effect]] | None:
        if self._untold:
            return self._tell_one(self._untold.popitem(last=False)[0])
        if self._moving:
            return self._bring_one(*self._moving.popleft())
        return self._compare_one(*self._told.popitem(last=False)[0]) if self._told else None

    async def _tell_one(self, key: str) -> list[Effect]:
        try:
            found, effects = await self._find(key)
        except Unavailable:
            self._untold[key] = None
            raise
        name = wire.decode_value(found.record, Record).name if found else key
        line = wire.encode_request("changed", wire.ChangedParams(name, found))
        return [*effects, Tell(key, line, self._sessions.watchers(key))]

    async def _bring_one(self, key: str, value: EntryValue) -> list[Effect]:
        try:
            _, effects = await self._decide(key, self._bringing(key, value))
        except Unavailable:
            self._moving.append((key, value))
            raise
        except MeshError as wrong:
            return [Log(f"{key} is not brought along, and stays on this seed's disk: {wrong.detail}")]
        self._rules.directory.remove(key, self._name)
        return [*effects, Save(((key, None),))]

    async def _compare_one(self, key: str, home: str) -> list[Effect]:
        try:
            return (await self._decide(key, self._comparing(key, home)))[1]
        except Unavailable:
            self._told[key, home] = None
            raise
        except MeshError as wrong:
            return [Log(f"what {home} tells of {key} is not compared: {wrong.detail}")]

    def _bringing(self, key: str, value: EntryValue) -> Callable[[float], tuple[None, list[Effect]]]:
        """What stood on this seed's disk counts as what any other seed tells of its users; and stands in the store from
        now on, unless that has more."""

        def decide(now: float) -> tuple[None, list[Effect]]:
            effects = self._rules.compare(key, self._name, now)
            if self._rules.shared(key) is None:
                record = wire.decode_value(value.record, Record)
                effects += self._rules.enter(key, msgspec.structs.replace(value, online=False), record, now)
            return None, effects

        return decide

    def _comparing(self, key: str, home: str) -> Callable[[float], tuple[None, list[Effect]]]:
        def decide(now: float) -> tuple[None, list[Effect]]:
            rules = self._rules
            effects = [] if home == HOME else rules.compare(key, home, now)
            own = rules.shared(key)
            if key in self._contested or rules.directory.homes(key) - {HOME}:
                rules.draft.calls.append(lambda: self._contest(key, own))
            return None, effects

        return decide

    def _contest(self, key: str, own: Entry | None) -> None:
        """A seed with a directory of its own has, or had, the name too. It cannot ask this one, so it is told what
        stands here, and of each change, and draws the conclusions."""
        gossip, now = self._peering.gossip, self._clock()
        if own is not None:
            self._contested[key] = None
            self._store.watch([key])
            told = pack_own(self._name, own.value)
            if content(gossip.own.values.get(key, b"")) == told:
                return
            gossip.put(key, told)
            if len(self._contested) > CONTESTED_NAMES_MAX:
                self._contest(next(iter(self._contested)), None)
        elif key in self._contested:
            del self._contested[key]
            self._leave([key])
            gossip.delete(key, now)
        self._peering.push_soon(now)

    def _leave(self, keys: Iterable[str]) -> None:
        """Who has watched them does so no more."""
        self._store.unwatch([key for key in keys if key not in self._contested and not self._sessions.watched({key})])

    # -- read, decide, compare and set, try again --------------------------------------------------------------------

    async def _decide(
        self, key: str, decide: Callable[[float], tuple[T, list[Effect]]], *, here: bool = False
    ) -> tuple[T, list[Effect]]:
        """`decide` is given the time, and the rules have what stands in the store; what they write goes there. `here`:
        its user is connected to this seed. Raises what `decide` raises, and :class:`Unavailable`."""
        for _ in range(TRIES_MAX):
            before = self._remember(key, await self._store.get(key))
            draft = Draft(before, self._place if here else None)
            now = self._clock()
            with self._rules.loaded(key, draft, now):
                result, effects = decide(now)
            if draft.after == before or await self._store.swap(key, before, draft.after, self._ttl_ms):
                self._remember(key, draft.after)
                if draft.after != before and self._rules.directory.knows(key):
                    self._told[key, HOME] = None
                for call in draft.calls:
                    call()
                return result, [effect for effect in effects if not isinstance(effect, Save)]
        raise Unavailable("the shared directory was written by others each time", retry_after_s=BUSY_RETRY_S)

    async def _quietly(self, key: str, work: Coroutine[Any, Any, list[Effect]]) -> list[Effect]:
        try:
            return await work
        except MeshError:
            return []  # it is looked after again

    def _remember(self, key: str, kept: bytes | None) -> bytes | None:
        if kept is None:
            self._known.pop(key, None)
        else:
            self._known[key] = kept
            self._known.move_to_end(key)
            if len(self._known) > KNOWN_NAMES_MAX:
                self._known.popitem(last=False)
        return kept


def _ms(now: float) -> int:
    return int(now * 1000)
