"""Who is registered where: the entries of this home, what other homes say of theirs, and who has to be told of it.

Every seed follows the same rules (:mod:`meshproto.core.directory`), so all come to the same answers. Here is what a
home does about its own entries: it says whether their users are here, lets go of a user who has moved on, left or lost
the name, and of a claim that ran out. Whatever changes goes into the own key space, from where gossip carries it on.
"""

import math
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec

from meshproto import wire
from meshproto.core.directory import Directory
from meshproto.core.effects import Effect, Log, Row, Save, Send, Tell
from meshproto.core.entry import Entry, pack_own, read_entry
from meshproto.core.gossip import VERSION_BYTES, Change, content
from meshproto.core.identity import Record
from meshproto.core.peering import Peering
from meshproto.core.rates import Rates
from meshproto.core.reach import check_origin
from meshproto.core.sessions import Sessions
from meshproto.errors import BadParams, BadState, Forbidden, MeshError, StaleRecord, TooLarge, UserNotFound
from meshproto.wire import EntryValue, LookupResult, SignedRecord, fold

SWEEP_NAMES: Final = 500
"""Names looked at each round for claims that ran out: a million in half an hour."""
SWEEP_HOLD_S: Final = 60.0
"""A clock that is wrong when a machine starts is set right in less."""
RENEWALS_PER_CLAIM: Final = 10
"""How often a home says anew, in the time after which a claim runs out, that it sees a user who is online."""

_GIVEN_UP: Final = ""
"""The home of what another directory had; no seed is called so."""

MayRegister = Callable[[str, bytes], bool]
"""Whether a name with an identity key may be registered here."""


class Own(Protocol):
    """Where a home's own entries stand for others to read; what is known here of them is in the directory as well."""

    def write(self, key: str, value: EntryValue) -> bytes:
        """The entry as it is stored."""

    def drop(self, key: str, now: float) -> None:
        """There is none any more."""

    def tell_soon(self, now: float) -> None:
        """Something was written that others do not know."""

    def then(self, call: Callable[[], object]) -> None:
        """What follows for the links once it is so."""


class InOwnSpace:
    """They are what this seed gossips."""

    def __init__(self, name: str, peering: Peering) -> None:
        self._name = name
        self._peering = peering

    def write(self, key: str, value: EntryValue) -> bytes:
        return self._peering.gossip.put(key, pack_own(self._name, value))

    def drop(self, key: str, now: float) -> None:
        self._peering.gossip.delete(key, now)

    def tell_soon(self, now: float) -> None:
        self._peering.push_soon(now)

    def then(self, call: Callable[[], object]) -> None:
        call()


class Registry:
    """`home`: under which the own entries stand in the directory. `dropped` counts what other seeds told that was
    forged or did not read."""

    def __init__(
        self,
        home: str,
        own: Own,
        peering: Peering,
        sessions: Sessions,
        rates: Rates,
        *,
        claim_ttl_s: float,
        may_register: MayRegister | None = None,
    ) -> None:
        self.home = home
        self.directory = Directory(claim_ttl_s)
        self.dropped = 0
        self._own = own
        self._peering = peering
        self._sessions = sessions
        self._rates = rates
        self._may_register = may_register
        self.renew_ms = int(claim_ttl_s * 1000) // RENEWALS_PER_CLAIM
        self._sweep_after = ""
        self._swept_at = -math.inf
        self._hold_until = 0.0

    def remember(self, entries: Iterable[tuple[str, EntryValue]], now: float) -> None:
        """Own entries from disk. Raises :class:`BadState`."""
        for key, value in entries:
            try:
                record = wire.decode_value(value.record, Record)
                if fold(record.name) != key:
                    raise BadParams(f"it holds a record of {record.name}")
                self._write(key, self.away(value, now), record, verified=False)
            except MeshError as reason:
                raise BadState(f"the entry of {key} is damaged ({reason.detail}): restore a backup") from None

    def bring(self, entries: Iterable[tuple[str, EntryValue]], now: float) -> list[Effect]:
        """Entries of a directory that is given up: each counts as what another seed tells of a user of its own, and
        stands here from now on, as of somebody who is away."""
        effects: list[Effect] = []
        rows: list[Row] = []
        for key, value in entries:
            told = Entry(bytes(VERSION_BYTES) + pack_own(_GIVEN_UP, self.away(value, now)), _GIVEN_UP)
            if not told.check():
                effects.append(self._forged(key, told))
                continue
            self.directory.put(key, told)
            effects += self.compare(key, _GIVEN_UP, now)
            self.directory.remove(key, _GIVEN_UP)
            if self.directory.at_home(key, self.home) is None:
                rows.append((key, told.value))
                effects += self.enter(key, told.value, told.record, now)
        return [*effects, Save(tuple(rows))] if rows else effects

    def away(self, value: EntryValue, now: float) -> EntryValue:
        """The entry of a user whose home stopped: if they were online then, they may have been seen for some time after
        that was last written."""
        seen = min(_ms(now), value.seen + self.renew_ms) if value.online else value.seen
        return msgspec.structs.replace(value, online=False, seen=seen)

    # -- asked by users ------------------------------------------------------------------------------------------

    def find(self, name: str, now: float) -> tuple[LookupResult | None, list[Effect]]:
        """What there is to answer for a name, its signature checked."""
        entry, dropped = self.directory.verified(name, _ms(now))
        effects: list[Effect] = [self._forged(fold(name), bad) for bad in dropped]
        return self._result(entry, now) if entry else None, effects

    def register(
        self, link: int, signed: SignedRecord, record: Record, now: float
    ) -> tuple[tuple[str, EntryValue], list[Effect]]:
        """The entry that is to be saved. `record`: what was signed, verified. Raises :class:`MeshError`."""
        if not record.uris:
            raise BadParams("a registration needs at least one uri; to leave, use unregister")
        if self._may_register is not None and not self._may_register(record.name, record.key_bytes):
            raise Forbidden(f"{record.name} is not on this seed's list of those who may register")
        check_origin(record.uris, self._sessions[link].host)
        key = fold(record.name)
        self._sessions.check_room(link, key)
        _, dropped = self.directory.verified(key, _ms(now))
        since = self.directory.claim(record, _ms(now))
        self._check_fresh(link, key, record)
        session = self._sessions[link]
        if not (session.local or self.directory.knows(key)):
            self._rates.new_name(session.network, now)
        value = self._fitting(EntryValue(signed.record, signed.sig, since, True, _ms(now)), key, record)
        effects: list[Effect] = [self._forged(key, bad) for bad in dropped]
        return (key, value), effects + self.enter(key, value, record, now)

    def registered(self, link: int, key: str, now: float) -> list[Effect]:
        """What :meth:`register` has written stands: the user is at the other end of the link."""
        self._sessions.register(link, key)
        return self.renew(link, now)

    def unregister(
        self, signed: SignedRecord, record: Record, now: float
    ) -> tuple[tuple[str, EntryValue], list[Effect]]:
        """The farewell that is to be saved. `record`: as for :meth:`register`. Raises :class:`MeshError`."""
        if record.uris:
            raise BadParams('a record that unregisters has "uris": []')
        key = fold(record.name)
        if self.directory.verified(key, _ms(now))[0] is None:
            raise UserNotFound(f"no user {record.name} is known here")
        since = self.directory.claim(record, _ms(now))
        value = self._fitting(EntryValue(signed.record, signed.sig, since, False, _ms(now)), key, record)
        self._own.then(lambda: self._sessions.unregister(key))
        return (key, value), self.enter(key, value, record, now)

    def _fitting(self, value: EntryValue, key: str, record: Record) -> EntryValue:
        """The entry with as many farewells as fit into a cell beside it, the latest first: larger ones nobody takes.
        Raises :class:`TooLarge`."""
        if not _fits(value):
            raise TooLarge(f"the record is larger than seeds pass on: {wire.CELL_BYTES_MAX} bytes with its signature")
        for farewell in self.directory.farewells(key, record.key):
            longer = msgspec.structs.replace(value, farewells=(*value.farewells, farewell))
            value = longer if _fits(longer) else value
        return value

    def _check_fresh(self, link: int, key: str, record: Record) -> None:
        """Anybody can look a record up and send it again: over another connection, here or at another seed, only a
        newer one counts."""
        if self._sessions.link_of(key) != link and self.directory.has(record):
            raise StaleRecord(f"this record of {record.name} was registered already: sign one with a higher seq")

    # -- presence ------------------------------------------------------------------------------------------------

    def renew(self, link: int, now: float) -> list[Effect]:
        """A sign of life from a link over which somebody registered."""
        return self.mark(link, True, now) if self._sessions.renew(link, now) else []

    def mark(self, link: int, online: bool, now: float) -> list[Effect]:
        """The users of a link are here, or away."""
        changed = []
        for key in self._sessions.names_of(link):
            entry = self.directory.at_home(key, self.home)
            if entry is not None and not entry.gone and entry.online != online:
                changed.append((key, entry))
        return self.tell_presence(changed, online, now)

    def tell_presence(self, users: list[tuple[str, Entry]], online: bool, now: float) -> list[Effect]:
        """Own entries say anew whether their users are here, and that they were seen now."""
        effects: list[Effect] = []
        rows: list[Row] = []
        for key, entry in users:
            value = as_seen(entry.value, online, now)
            rows.append((key, value))
            effects += self.enter(key, value, entry.record, now)
        return [*effects, Save(tuple(rows))] if rows else effects

    def sweep(self, now: float) -> list[Effect]:
        """Look after some own entries: let go of claims that ran out, say anew who is online. Not at once after a start
        or a jump of the clock, which may be wrong for a moment."""
        if not 0 <= now - self._swept_at < SWEEP_HOLD_S:
            self._hold_until = now + SWEEP_HOLD_S
        self._swept_at = now
        if now < self._hold_until:
            return []
        keys, self._sweep_after = self.directory.window(self._sweep_after, SWEEP_NAMES)
        own = [(key, entry) for key in keys if (entry := self.directory.at_home(key, self.home))]
        here = [(key, entry) for key, entry in own if entry.online and entry.seen + self.renew_ms <= _ms(now)]
        effects = self.tell_presence(here, True, now)
        # A farewell outlives what it speaks against: whose home went down is counted as seen until a renewal later.
        late = {False: _ms(now), True: _ms(now) - self.renew_ms}
        over = [key for key, entry in own if not entry.online and self.directory.ran_out(entry, late[entry.gone])]
        for key in over:
            self._drop(key, now)
        if over:
            effects += [*self._changed(set(over), now), Save(tuple((key, None) for key in over))]
        return effects

    # -- heard from other seeds ----------------------------------------------------------------------------------

    def take(self, changes: list[Change], now: float) -> list[Effect]:
        """What other seeds have written."""
        effects: list[Effect] = []
        if not changes:
            return effects
        news = {change.key for change in changes if self.take_one(change, effects)}
        for change in changes:  # all are known before anything is decided
            effects += self.compare(change.key, change.seed, now)
        return effects + self._changed(news, now)

    def take_one(self, change: Change, effects: list[Effect]) -> bool:
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
        return before is None or content(before.stored) != content(entry.stored)

    def compare(self, key: str, home: str, now: float) -> list[Effect]:
        """What another home has told may end the entry here, or say more of the user's claim than was known here. Only
        with the users' own signatures under all that is known of the name."""
        if not self._concerned(key, home, now):
            return []
        _, dropped = self.directory.verified(key, _ms(now))
        effects: list[Effect] = [self._forged(key, bad) for bad in dropped]
        own, told = self.directory.at_home(key, self.home), self.directory.at_home(key, home)
        if own is None or told is None:
            return effects
        if self._superseded(own, told, now):
            self._drop(key, now)
            lost = [] if own.key == told.key else self.tell_loser(key, own.name, told.key, f"seed {told.home}")
            return [*effects, *lost, Save(((key, None),))]
        return effects + self._adopt(key, own, told, now) if self._says_more(own, told, now) else effects

    def _concerned(self, key: str, home: str, now: float) -> bool:
        own, told = self.directory.at_home(key, self.home), self.directory.at_home(key, home)
        if own is None or told is None:
            return False
        return self._superseded(own, told, now) or self._says_more(own, told, now)

    def _superseded(self, own: Entry, told: Entry, now: float) -> bool:
        """Whether what another home has told ends the entry here: the user has moved on, or left there (else the old
        entry would own the name again as soon as the farewell is overwritten), or lost the claim. Not before all that
        stands here of the claim stands there too. A farewell claims nothing, and stays: it may be all that speaks
        against an older entry on the disk of a seed that is down."""
        if any(record.key == own.key and record.seq > own.seq for record in told.farewells):
            return True
        if told.key == own.key:
            return told.seq > own.seq and not self._says_more(told, own, now)
        if own.gone:
            return False
        best = self.directory.best(own.name, _ms(now))
        return best is not None and best.key != own.key

    def _says_more(self, entry: Entry, other: Entry, now: float) -> bool:
        """Whether `other`, of the same user, has an earlier `since` or farewells that `entry` lacks."""
        if entry.key != other.key:
            return False
        left = {record.key: record.seq for record in entry.farewells}
        lacking = any(record.seq > left.get(record.key, -1) for record in other.farewells)
        return self._earlier(entry, other, now) or (lacking and len(left) < wire.FAREWELLS_MAX)

    def _earlier(self, entry: Entry, other: Entry, now: float) -> bool:
        """Whether the user's claim, which both hold, is older by `other`."""
        return other.since < entry.since and not (entry.gone or other.gone or self.directory.ran_out(other, _ms(now)))

    def _adopt(self, key: str, own: Entry, told: Entry, now: float) -> list[Effect]:
        """Take over what another home knows of the user's claim: it lets go of its entry when it all stands here."""
        since = told.since if self._earlier(own, told, now) else own.since
        before = own.value
        value = self._fitting(msgspec.structs.replace(before, since=since, farewells=()), key, own.record)
        if value == before:
            return []  # what it lacks has no room
        return [*self.enter(key, value, own.record, now), Save(((key, value),))]

    def tell_loser(self, key: str, name: str, winner: str, where: str) -> list[Effect]:
        """Two keys had claimed the name on two sides of a split; the one that is registered here has lost it."""
        lost = Log(f"{name} has lost the name to a key that claimed it earlier, at {where}")
        link = self._sessions.link_of(key)
        self._own.then(lambda: self._sessions.unregister(key))
        if link is None:
            return [lost]
        return [lost, Send(link, wire.encode_request("conflict", wire.ConflictParams(name, winner)))]

    def _forged(self, key: str, entry: Entry) -> Log:
        self.dropped += 1
        return Log(f"dropped a record of {key} that seed {entry.home} passed on: its signature does not fit")

    # -- own entries ---------------------------------------------------------------------------------------------

    def enter(self, key: str, value: EntryValue, record: Record, now: float) -> list[Effect]:
        """Write an own entry, of which all signatures were checked, and tell whoever wants to know."""
        self._write(key, value, record, verified=True)
        self._own.tell_soon(now)
        return self._changed({key}, now)

    def _write(self, key: str, value: EntryValue, record: Record, *, verified: bool) -> None:
        self.directory.put(key, Entry(self._own.write(key, value), self.home, verified))

    def _drop(self, key: str, now: float) -> None:
        self.directory.remove(key, self.home)
        self._own.drop(key, now)
        self._own.tell_soon(now)

    def _result(self, entry: Entry, now: float) -> LookupResult:
        value = entry.value
        online = value.online and self._peering.alive(entry.home, now)
        seen = _ms(now) if online else value.seen
        return LookupResult(value.record, value.sig, value.since, entry.home, online, seen)

    def _changed(self, keys: set[str], now: float) -> list[Effect]:
        """Notifications for those who watch the names."""
        effects: list[Effect] = []
        for key in self._sessions.watched(keys):
            entry, forged = self.find(key, now)
            name = wire.decode_value(entry.record, Record).name if entry else key
            line = wire.encode_request("changed", wire.ChangedParams(name, entry))
            effects += forged
            effects.append(Tell(key, line, self._sessions.watchers(key)))
        return effects


def _fits(value: EntryValue) -> bool:
    """Whether others take it, also when its user is away: `false` is longer than `true`."""
    return len(wire.encode_value(msgspec.structs.replace(value, online=False))) <= wire.CELL_BYTES_MAX


def _ms(now: float) -> int:
    return int(now * 1000)


def as_seen(value: EntryValue, online: bool, now: float) -> EntryValue:
    """The same user, who is here or has just left."""
    return msgspec.structs.replace(value, online=online, seen=_ms(now))
