"""The directory as a seed asks it, wherever it is: in this seed's memory and on its disk (:class:`Embedded`), or in a
store that several seeds share (:mod:`meshproto.core.shared`)."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple, Protocol

from meshproto import wire
from meshproto.core.directory import Directory
from meshproto.core.effects import Effect, Reply, Row, Save
from meshproto.core.gossip import Change
from meshproto.core.identity import verify
from meshproto.core.peering import Peering
from meshproto.core.quick import not_found
from meshproto.core.rates import Rates
from meshproto.core.registry import InOwnSpace, MayRegister, Registry
from meshproto.core.seed_tally import SeedTally
from meshproto.core.sessions import Sessions
from meshproto.errors import MeshError, Unavailable
from meshproto.wire import EntryValue, Nothing, RegisterResult, SignedRecord

TAKING_OVER_S: Final = 5.0
"""When to ask again for a name that may come yet: a million take some minutes."""


class Parts(NamedTuple):
    """What a seed has besides its directory."""

    seed: str
    peering: Peering
    sessions: Sessions
    rates: Rates
    lease_s: float
    claim_ttl_s: float
    may_register: MayRegister | None
    tally: SeedTally


class Names(Protocol):
    """All that takes a :class:`Reply` answers there, sooner or later, and raises :class:`MeshError` for what is wrong
    with the request at once. `quick`: whether lookups may be answered from :attr:`directory` alone
    (:mod:`meshproto.core.quick`). `complete`: whether a name that is not known here is nobody's; not so while another
    directory is taken over."""

    quick: bool
    complete: bool

    @property
    def directory(self) -> Directory:
        """What is known here without asking anybody."""

    @property
    def names(self) -> int:
        """How many there are."""

    @property
    def dropped(self) -> int:
        """So often other seeds told what was forged or did not read."""

    @property
    def users(self) -> Mapping[str, int]:
        """How many are registered with each seed."""

    def online(self, alive: Collection[str]) -> int:
        """How many are, when so many seeds are alive."""

    def lookup(self, reply: Reply, name: str, now: float) -> list[Effect]: ...

    def register(self, reply: Reply, signed: SignedRecord, now: float) -> list[Effect]: ...

    def unregister(self, reply: Reply, signed: SignedRecord, now: float) -> list[Effect]: ...

    def page(self, wanted: wire.NamesParams, now: float) -> wire.NamesResult: ...

    def renew(self, link: int, now: float) -> list[Effect]:
        """A sign of life from a link over which somebody registered."""

    def mark(self, link: int, online: bool, now: float) -> list[Effect]:
        """The users of a link are here, or away."""

    def take(self, changes: list[Change], now: float) -> list[Effect]:
        """What other seeds have written."""

    def sweep(self, now: float) -> list[Effect]:
        """Look after what stands here, once each round."""

    def bring(self, entries: Iterable[tuple[str, EntryValue]], now: float) -> list[Effect]:
        """Take over what another directory had."""


MakeNames = Callable[[Parts, float], Names]
"""Of a seed that starts at that time, s since 1970 UTC."""


def embedded(entries: Iterable[tuple[str, EntryValue]]) -> MakeNames:
    """In this seed's memory, and on its disk: `entries`. Raises :class:`meshproto.errors.BadState`."""

    def make(parts: Parts, now: float) -> Embedded:
        names = Embedded(parts)
        names.registry.remember(entries, now)
        return names

    return make


class Embedded:
    """A registration is known at once, and answered when it is on disk."""

    quick = True

    def __init__(self, parts: Parts) -> None:
        self.complete = True
        self._seed = parts.seed
        self._sessions = parts.sessions
        self._lease_s = parts.lease_s
        self.registry = registry = Registry(
            parts.seed,
            InOwnSpace(parts.seed, parts.peering),
            parts.peering,
            parts.sessions,
            parts.rates,
            claim_ttl_s=parts.claim_ttl_s,
            may_register=parts.may_register,
        )
        self._tally = parts.tally
        self.renew = registry.renew
        self.mark = registry.mark
        self.take = registry.take
        self.sweep = registry.sweep
        self.bring = registry.bring

    @property
    def directory(self) -> Directory:
        return self.registry.directory

    @property
    def names(self) -> int:
        return len(self.registry.directory)

    @property
    def dropped(self) -> int:
        return self.registry.dropped

    @property
    def users(self) -> Mapping[str, int]:
        return self.registry.directory.users_by_home

    def online(self, alive: Collection[str]) -> int:
        return sum(users for home, users in self.registry.directory.online_by_home.items() if home in alive)

    def lookup(self, reply: Reply, name: str, now: float) -> list[Effect]:
        found, effects = self.registry.find(name, now)
        self._sessions[reply.link].welcome = True  # it is a request, whoever it is for
        if found is None and not self.complete:
            return [
                *effects,
                *reply.error(Unavailable("names are still being taken over", retry_after_s=TAKING_OVER_S)),
            ]
        if found is None:
            self._tally.missed += 1
            return [*effects, *reply.error(not_found(name))]
        return [*effects, *reply.result(found)]

    def register(self, reply: Reply, signed: SignedRecord, now: float) -> list[Effect]:
        (key, value), effects = self.registry.register(reply.link, signed, verify(signed), now)
        effects += self.registry.registered(reply.link, key, now)
        self._tally.registrations += 1
        return [*effects, self._save_then(reply, (key, value), RegisterResult(self._seed, value.since, self._lease_s))]

    def unregister(self, reply: Reply, signed: SignedRecord, now: float) -> list[Effect]:
        row, effects = self.registry.unregister(signed, verify(signed), now)
        return [*effects, self._save_then(reply, row, Nothing())]

    def page(self, wanted: wire.NamesParams, now: float) -> wire.NamesResult:
        found = self.registry.directory.page(wanted.prefix, wanted.after, wanted.limit, int(now * 1000))
        return wire.NamesResult(*found)

    def _save_then(self, reply: Reply, row: Row, result: RegisterResult | Nothing) -> Save:
        self._sessions[reply.link].welcome = True
        failed = reply.error(NotSaved("the seed cannot write to its disk", retry_after_s=5.0))
        return Save((row,), tuple(reply.result(result)), tuple(failed))


class NotSaved(MeshError):
    code = 503
    title = "unavailable"
