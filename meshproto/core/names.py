"""The directory as a seed asks it, wherever it is: in this seed's memory and on its disk (:class:`Embedded`), or in a
store that several seeds share (:mod:`meshproto.core.shared`)."""

from typing import Protocol

from meshproto import wire
from meshproto.core.effects import Effect, Reply, Row, Save
from meshproto.core.gossip import Change
from meshproto.core.quick import not_found
from meshproto.core.registry import Registry
from meshproto.core.sessions import Sessions
from meshproto.errors import MeshError
from meshproto.wire import Nothing, RegisterResult, SignedRecord


class Names(Protocol):
    """All that takes a :class:`Reply` answers there, sooner or later, and raises :class:`MeshError` for what is wrong
    with the request at once. `registrations`: so many were accepted."""

    registrations: int

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


class Embedded:
    """A registration is known at once, and answered when it is on disk. `lease_s`: what its user is told."""

    def __init__(self, seed: str, registry: Registry, sessions: Sessions, lease_s: float) -> None:
        self._seed = seed
        self._registry = registry
        self._sessions = sessions
        self._lease_s = lease_s
        self.registrations = 0
        self.renew = registry.renew
        self.mark = registry.mark
        self.take = registry.take
        self.sweep = registry.sweep

    def lookup(self, reply: Reply, name: str, now: float) -> list[Effect]:
        found, effects = self._registry.find(name, now)
        self._sessions[reply.link].welcome = True  # it is a request, whoever it is for
        return [*effects, *(reply.error(not_found(name)) if found is None else reply.result(found))]

    def register(self, reply: Reply, signed: SignedRecord, now: float) -> list[Effect]:
        (key, value), effects = self._registry.register(reply.link, signed, now)
        effects += self._registry.registered(reply.link, key, now)
        self.registrations += 1
        return [*effects, self._save_then(reply, (key, value), RegisterResult(self._seed, value.since, self._lease_s))]

    def unregister(self, reply: Reply, signed: SignedRecord, now: float) -> list[Effect]:
        row, effects = self._registry.unregister(signed, now)
        return [*effects, self._save_then(reply, row, Nothing())]

    def page(self, wanted: wire.NamesParams, now: float) -> wire.NamesResult:
        found = self._registry.directory.page(wanted.prefix, wanted.after, wanted.limit, int(now * 1000))
        return wire.NamesResult(*found)

    def _save_then(self, reply: Reply, row: Row, result: RegisterResult | Nothing) -> Save:
        self._sessions[reply.link].welcome = True
        failed = reply.error(NotSaved("the seed cannot write to its disk", retry_after_s=5.0))
        return Save((row,), tuple(reply.result(result)), tuple(failed))


class NotSaved(MeshError):
    code = 503
    title = "unavailable"
