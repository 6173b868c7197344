"""Who may write to this node: what the owner has said (`--accept`), and that a name is written under by its owner.

A batch proves the key of its sender, not the name. The name of somebody new is taken on the word of the seeds, which
are asked before the key is pinned; else whoever comes first could write, for ever, under the name of another.
"""

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Protocol

from twisted.internet.interfaces import IReactorTime

from meshproto.core.identity import Record
from meshproto.core.limits import called
from meshproto.core.lookup import MISSING_TTL_S, Located
from meshproto.errors import Forbidden, NotOwner, SlowDown, Unavailable, UserNotFound
from meshproto.net.contacts import Contacts
from meshproto.wire import fold

LOOKUPS_MAX: Final = 32
"""Strangers looked up at a time. A lookup takes milliseconds where a seed answers; while none does it
takes five seconds, and then this many requests wait at most."""
LOOKUPS_PER_NETWORK_MAX: Final = 4
"""Of these: whoever invents names from one address leaves the others to those who have one."""
OWNER_TTL_S: Final = 10.0
"""How long the seeds' word on a name counts: whoever writes under a name that is not theirs, again and again, costs the
seeds a lookup every ten seconds."""
OWNERS_MAX: Final = 10_000
"""Names whose owners are remembered so long: four megabytes at most."""


class Allowed(Protocol):
    """A list of who may write."""

    def allow(self, name: str, key: bytes) -> bool:
        """See :meth:`meshproto.core.policy.Names.allow`."""


class Accept(NamedTuple):
    """What `--accept` says. `strangers`: not only contacts may write. `names`: only who is on it, contact or not."""

    strangers: bool
    names: Allowed | None


ANYONE: Final = Accept(strangers=True, names=None)
CONTACTS: Final = Accept(strangers=False, names=None)


class _Said(NamedTuple):
    """The key that owns a name; None: no seed knows the name."""

    until: float
    key: str | None


class Writers:
    """`locate` asks the seeds anew where a user is (:meth:`meshproto.net.finding.Finding.locate`); `own_key`: this
    node's."""

    def __init__(
        self,
        accept: Accept,
        own_name: str,
        own_key: str,
        contacts: Contacts,
        locate: Callable[[str], Awaitable[Located]],
        clock: IReactorTime,
    ) -> None:
        self._accept = accept
        self._own_name = fold(own_name)
        self._own_key = own_key
        self._contacts = contacts
        self._locate = locate
        self._clock = clock
        self._said: OrderedDict[str, _Said] = OrderedDict()
        self._lookups: Counter[str] = Counter()

    async def check(self, sender: Record, network: str) -> None:
        """Whether the verified record's user may write, who does so from the network. Raises :class:`Forbidden`,
        :class:`NotOwner`, :class:`SlowDown`, and :class:`Unavailable` when no seed knows the name, or none can be
        asked. The key of a contact is compared where the batch is kept."""
        if sender.key == self._own_key:
            return
        if fold(sender.name) == self._own_name:
            raise NotOwner("that is this node's own name")
        names = self._accept.names
        if names is not None and not names.allow(sender.name, sender.key_bytes):
            raise _may_not(sender)
        if await self._contacts.knows(sender.name):
            return
        if not self._accept.strangers:
            raise _may_not(sender)
        if await self._owner(sender.name, network) != sender.key:
            raise NotOwner(f"the name {sender.name} belongs to another key")

    async def _owner(self, name: str, network: str) -> str:
        said = self._said.get(fold(name))
        if said is None or said.until <= self._clock.seconds():
            said = await self._ask(name, network)
            self._said[fold(name)] = said
            self._said.move_to_end(fold(name))
            if len(self._said) > OWNERS_MAX:
                self._said.popitem(last=False)
        if said.key is None:
            raise Unavailable(f"no seed knows {name} yet: register, and try again", retry_after_s=MISSING_TTL_S)
        return said.key

    async def _ask(self, name: str, network: str) -> _Said:
        if self._lookups.total() >= LOOKUPS_MAX:
            raise SlowDown(f"{LOOKUPS_MAX} strangers are looked up already", retry_after_s=1.0)
        if self._lookups[network] >= LOOKUPS_PER_NETWORK_MAX:
            who = f"{LOOKUPS_PER_NETWORK_MAX} strangers from {called(network)}"
            raise SlowDown(f"{who} are looked up already", retry_after_s=1.0)
        self._lookups[network] += 1
        try:
            located = await self._locate(name)
        except UserNotFound:
            return _Said(self._clock.seconds() + MISSING_TTL_S, None)
        finally:
            self._lookups[network] -= 1
            self._lookups += Counter()  # without those that have none
        return _Said(self._clock.seconds() + OWNER_TTL_S, located.record.key)


def _may_not(sender: Record) -> Forbidden:
    return Forbidden(f"{sender.name} may not write to this node")
