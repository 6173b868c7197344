"""From `/send` to the outbox.

The recipient is looked up (a name nobody has is refused and nothing kept), and the message is committed to the outbox.
From then on it belongs to the outbox alone. Whoever asked may wait for a while and hears how far it came; whether they
wait, or hang up, changes nothing.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from twisted.internet.defer import Deferred, DeferredSemaphore, ensureDeferred

from meshproto.core.identity import parse_address
from meshproto.core.lookup import Located
from meshproto.core.queue import Message, Status
from meshproto.errors import MeshError
from meshproto.net.contacts import Contacts
from meshproto.net.deferred import shield, together
from meshproto.net.outbox_table import Accepted, Draft, OutboxTable
from meshproto.net.seeds import Seeds
from meshproto.net.sending import End, Sending

LOOKUPS_MAX: Final = 64
"""Names of one request that are looked up at a time."""


class Order(NamedTuple):
    """A message to be sent. `to` as the owner wrote it; `wait_s`: how long they want to wait for its end."""

    to: str
    draft: Draft
    wait_s: float


class Outcome(NamedTuple):
    """How far a message has come. `reason`: why it is not further."""

    id: str
    to: str
    status: Status
    reason: str | None


class Taken(NamedTuple):
    """An accepted message. `end` fires with its end, or None when the waiting is over; None: nobody waits."""

    recipient: str
    id: str
    to: str
    status: Status
    reason: str | None
    end: "Deferred[End | None] | None"


class Accepting:
    def __init__(self, seeds: Seeds, contacts: Contacts, table: OutboxTable, sending: Sending) -> None:
        self._seeds = seeds
        self._contacts = contacts
        self._table = table
        self._sending = sending

    async def send(self, order: Order) -> Outcome:
        """Accept a message and wait for its end. Raises :class:`meshproto.errors.UserNotFound`, :class:`KeyChanged`,
        :class:`meshproto.errors.IdReused`, :class:`meshproto.errors.SlowDown` (outbox full),
        :class:`meshproto.errors.Unavailable` (no seed and no known address, or the disk); then nothing was kept."""
        (taken,) = await self.take([order])
        if isinstance(taken, MeshError):
            raise taken
        return await self.outcome(taken)

    async def take(self, orders: Sequence[Order], *, patient: bool = True) -> list[Taken | MeshError]:
        """Accept messages, in this order, in one commit; for each it is told what came of it. Not `patient`: nobody
        waits for those whose recipient is known to be away."""
        found = await self._find(dict.fromkeys(order.to for order in orders))
        return await shield(ensureDeferred(self._keep(orders, found, patient)))

    async def outcome(self, taken: Taken) -> Outcome:
        """What an accepted message has come to when the waiting is over: its end, or it is queued."""
        status, reason = taken.status, taken.reason
        if taken.end is not None:
            status, reason = await taken.end or (status, self._sending.why(taken.recipient))
        return Outcome(taken.id, taken.to, status, reason)

    def is_served(self, recipient: str) -> bool:
        """Whether the recipient takes messages, as far as anybody knows: when there is no room there soon will be."""
        return not self._sending.is_failing(recipient)

    async def _find(self, addresses: Iterable[str]) -> dict[str, Located | MeshError]:
        limit = DeferredSemaphore(LOOKUPS_MAX)
        names = list(addresses)
        found = [limit.run(self._find_one, name) for name in names]
        return dict(zip(names, await together(found), strict=True))

    async def _find_one(self, address: str) -> Located | MeshError:
        try:
            name, print_ = parse_address(address)
            located = await self._seeds.locate(name)
            await self._contacts.check(located, print_)
        except MeshError as error:
            return error
        return located

    async def _keep(
        self, orders: Sequence[Order], found: dict[str, Located | MeshError], patient: bool
    ) -> list[Taken | MeshError]:
        results: dict[int, Taken | MeshError] = {}
        room: list[int] = []
        for number, order in enumerate(orders):
            located = found[order.to]
            try:
                if isinstance(located, MeshError):
                    raise located
                self._sending.reserve(order.draft.recipient, order.draft.to)
                room.append(number)
            except MeshError as error:
                results[number] = error
        try:
            drafts = [orders[number].draft for number in room]
            accepted = await self._table.accept(drafts) if drafts else []
        except MeshError as error:
            results |= dict.fromkeys(room, error)
            accepted = []
        finally:
            for number in room:
                self._sending.release(orders[number].draft.recipient)
        fresh: dict[str, list[Message]] = {}
        away: set[str] = set()
        for number, one in zip(room, accepted, strict=False):
            if isinstance(one, MeshError):
                results[number] = one
                continue
            order = orders[number]
            results[number] = self._taken(order, one, patient)
            if one.fresh:
                fresh.setdefault(order.draft.recipient, []).append(one.message)
            if _is_away(found[order.to]):
                away.add(order.draft.recipient)
        for recipient, messages in fresh.items():
            self._sending.add(recipient, messages, doubtful=recipient in away)
        return [results[number] for number in range(len(orders))]

    def _taken(self, order: Order, accepted: Accepted, patient: bool) -> Taken:
        recipient, message = order.draft.recipient, accepted.message
        if accepted.status.final:
            return Taken(recipient, message.id, message.to, accepted.status, accepted.reason, None)
        waits = order.wait_s > 0 and (patient or not self._sending.is_failing(recipient))
        end = self._sending.end_of(message.row, order.wait_s) if waits else None
        return Taken(recipient, message.id, message.to, Status.QUEUED, self._sending.why(recipient), end)


def _is_away(located: Located | MeshError) -> bool:
    """Whether a seed says so."""
    return isinstance(located, Located) and located.said is not None and not located.said.online
