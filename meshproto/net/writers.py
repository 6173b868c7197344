"""Who may write to this node: what the owner has said (`--accept`), and that a name is written under by its owner.

A batch proves the key of its sender, not the name. The name of somebody new is taken on the word of the seeds, which
are asked before the key is pinned; else whoever comes first could write, for ever, under the name of another.
"""

from collections import OrderedDict
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, Final, NamedTuple, Protocol

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.interfaces import IReactorTime

from meshproto.core.identity import Record
from meshproto.core.lookup import MISSING_TTL_S, Located
from meshproto.core.waiting import WaitingRoom
from meshproto.errors import Forbidden, NotOwner, SlowDown, Unavailable, UserNotFound
from meshproto.net.contacts import Contacts
from meshproto.wire import fold

LOOKUPS_MAX: Final = 128
"""Strangers looked up at a time. A lookup takes milliseconds where a seed knows the name, and up to five seconds where
none does and one is silent: so it is invented names that take long, and they make room when others want it. So many
that names invented as fast as a node can read them push nobody out within these milliseconds."""
LOOKUPS_PER_NETWORK_MAX: Final = 4
"""Of these."""
LOOKUPS_BYTES_MAX: Final = 16 * 1024 * 1024
"""Batches of strangers that wait for these, four of the largest: they take room that others' requests need
(:data:`meshproto.core.bodies.BODIES_BYTES_MAX`), and cannot be pushed out of it."""
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
    node's. `accept` may be changed while it runs."""

    def __init__(
        self,
        accept: Accept,
        own_name: str,
        own_key: str,
        contacts: Contacts,
        locate: Callable[[str], Coroutine[Any, Any, Located]],
        clock: IReactorTime,
    ) -> None:
        self.accept = accept
        self._own_name = fold(own_name)
        self._own_key = own_key
        self._contacts = contacts
        self._locate = locate
        self._clock = clock
        self._said: OrderedDict[str, _Said] = OrderedDict()
        self._waiting = WaitingRoom(LOOKUPS_MAX, LOOKUPS_PER_NETWORK_MAX, LOOKUPS_BYTES_MAX)
        self._numbers = count()
        self._asking: dict[int, Deferred[Located]] = {}

    async def check(self, sender: Record, network: str, batch_bytes: int) -> None:
        """Whether the verified record's user may write, who does so from the network, so much. Raises
        :class:`Forbidden`, :class:`NotOwner`, :class:`SlowDown`, and :class:`Unavailable` when no seed knows the name,
        or none can be asked. The key of a contact is compared where the batch is kept."""
        if sender.key == self._own_key:
            return
        if fold(sender.name) == self._own_name:
            raise NotOwner("that is this node's own name")
        names = self.accept.names
        if names is not None and not names.allow(sender.name, sender.key_bytes):
            raise _may_not(sender)
        if await self._contacts.knows(sender.name):
            return
        if not self.accept.strangers:
            raise _may_not(sender)
        if await self._owner(sender.name, network, batch_bytes) != sender.key:
            raise NotOwner(f"the name {sender.name} belongs to another key")

    async def _owner(self, name: str, network: str, batch_bytes: int) -> str:
        said = self._said.get(fold(name))
        if said is None or said.until <= self._clock.seconds():
            said = await self._ask(name, network, batch_bytes)
            self._said[fold(name)] = said
            self._said.move_to_end(fold(name))
            if len(self._said) > OWNERS_MAX:
                self._said.popitem(last=False)
        if said.key is None:
            raise Unavailable(f"no seed knows {name} yet: register, and try again", retry_after_s=MISSING_TTL_S)
        return said.key

    async def _ask(self, name: str, network: str, batch_bytes: int) -> _Said:
        """When there is no room left somebody who has waited longer gives theirs: who is really known has been told so
        by then."""
        number = next(self._numbers)
        asking = self._asking[number] = ensureDeferred(self._locate(name))
        for goes in self._waiting.enter(number, network, batch_bytes):
            self._asking.pop(goes).cancel()
        try:
            located = await asking
        except UserNotFound:
            return _Said(self._clock.seconds() + MISSING_TTL_S, None)
        except CancelledError:
            if number in self._asking:
                raise  # whoever wanted to write is gone
            raise SlowDown(f"to look {name} up takes long, and others want the room", retry_after_s=1.0) from None
        finally:
            self._asking.pop(number, None)
            self._waiting.leave(number)
        return _Said(self._clock.seconds() + OWNER_TTL_S, located.record.key)


def _may_not(sender: Record) -> Forbidden:
    return Forbidden(f"{sender.name} may not write to this node")
