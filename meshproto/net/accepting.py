"""From `/send` to the outbox.

The recipient is looked up (a name nobody has is refused and nothing kept), and the message is committed to the outbox.
From then on it belongs to the outbox alone. Whoever asked may wait for a while and hears how far it came; whether they
wait, or hang up, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from msgspec import Struct
from twisted.internet.defer import Deferred, DeferredSemaphore, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from meshproto.core.identity import parse_address
from meshproto.core.lookup import Located
from meshproto.core.queue import Message, Status
from meshproto.errors import MeshError, SlowDown
from meshproto.net.causes import cause_of
from meshproto.net.contacts import Contacts
from meshproto.net.deferred import Soon, shield, together
from meshproto.net.outbox_table import Accepted, Draft, OutboxTable, Verdict
from meshproto.net.seeds import Seeds
from meshproto.net.sending import End, Follower, Sending

LOOKUPS_MAX: Final = 64
"""Names of one request that are looked up at a time."""


class Order(NamedTuple):
    """A message to be sent. `to` as the owner wrote it; `wait_s`: how long they want to wait for its end."""

    to: str
    draft: Draft
    wait_s: float


class Outcome(Struct, frozen=True, omit_defaults=True):
    """How far a message has come, as it is shown to its sender. `reason`: why it is not further."""

    id: str
    to: str
    status: Status
    reason: str | None = None


class Taken(NamedTuple):
    """An accepted message, on disk under `row`. `wait_s`: how long its sender wants to wait for its end; 0: there is
    nothing to wait for."""

    recipient: str
    row: int
    id: str
    to: str
    status: Status
    reason: str | None
    wait_s: float


class _Asked(Soon[Outcome]):
    """A message that is accepted at the end of this turn. It is over when the message has come to its end, or the
    waiting for that has; to cancel it is to hear no more of it."""

    __slots__ = ("_accepting", "_clock", "_taken", "_timer", "order")

    def __init__(self, accepting: Accepting, clock: IReactorTime, order: Order) -> None:
        super().__init__()
        self.order = order
        self._accepting = accepting
        self._clock = clock
        self._taken: Taken | None = None
        self._timer: IDelayedCall | None = None

    def accepted(self, taken: Taken | MeshError) -> None:
        """Or not."""
        if self.over:
            return
        if isinstance(taken, MeshError):
            self.tell(Failure(taken))
        elif taken.wait_s and self._accepting.follow(taken, self):
            self._taken = taken
            self._timer = self._clock.callLater(taken.wait_s, self._overdue)
        else:
            self.tell(Outcome(taken.id, taken.to, taken.status, taken.reason))

    def told(self, end: End) -> None:
        if self._taken is not None and self._timer is not None:
            self._timer.cancel()
            self.tell(Outcome(self._taken.id, self._taken.to, *end))

    def _overdue(self) -> None:
        if self._taken is not None:
            taken = self._taken
            self._accepting.unfollow(taken, self)
            self.tell(Outcome(taken.id, taken.to, taken.status, self._accepting.why(taken)))

    def cancel(self) -> None:
        if not self.over and self._taken is not None and self._timer is not None:
            self._timer.cancel()
            self._accepting.unfollow(self._taken, self)
        super().cancel()


class Accepting:
    def __init__(
        self, seeds: Seeds, contacts: Contacts, table: OutboxTable, sending: Sending, clock: IReactorTime
    ) -> None:
        self._seeds = seeds
        self._contacts = contacts
        self._table = table
        self._sending = sending
        self._clock = clock
        self._asked: list[_Asked] = []
        self._found: dict[str, Located | MeshError] = {}  # whom they are for

    async def send(self, order: Order) -> Outcome:
        """Accept a message and wait for its end. Raises :class:`meshproto.errors.UserNotFound`, :class:`KeyChanged`,
        :class:`meshproto.errors.IdReused`, :class:`meshproto.errors.SlowDown` (outbox full),
        :class:`meshproto.errors.Unavailable` (no seed and no known address, or the disk); then nothing was kept."""
        located = self._found.get(order.to) or await self._find_one(order.to)
        if isinstance(located, MeshError):
            self._sending.tally.refused[cause_of(located)] += 1
            raise located
        if not self._asked:
            self._clock.callLater(0, self._keep_asked)
        self._found[order.to] = located
        asked = _Asked(self, self._clock, order)
        self._asked.append(asked)
        return await asked

    def _keep_asked(self) -> None:
        """What was asked for within one turn is accepted together: it costs each half as much."""
        asked, self._asked = self._asked, []
        found, self._found = self._found, {}

        def tell(results: list[Taken | MeshError]) -> None:
            for one, result in zip(asked, results, strict=True):
                one.accepted(result)

        def fail(failure: Failure) -> None:
            for one in asked:
                one.tell(failure)

        self._keep([one.order for one in asked], found, patient=True).addCallbacks(tell, fail)

    async def take(self, orders: Sequence[Order], *, patient: bool = True) -> list[Taken | MeshError]:
        """Accept messages, in this order, in one commit; for each it is told what came of it. Not `patient`: nobody
        waits for those whose recipient is known to be away."""
        found = await self._find(dict.fromkeys(order.to for order in orders))
        return await shield(self._keep(orders, found, patient=patient))

    async def outcome(self, taken: Taken) -> Outcome:
        """What an accepted message has come to when the waiting is over: its end, or it is queued."""
        end = self._sending.end_of(taken.row, taken.wait_s) if taken.wait_s else None
        if end is None:
            return Outcome(taken.id, taken.to, taken.status, taken.reason)
        status, reason = await end or (taken.status, self.why(taken))
        return Outcome(taken.id, taken.to, status, reason)

    def follow(self, taken: Taken, follower: Follower) -> bool:
        """See :meth:`Sending.follow`."""
        return self._sending.follow(taken.row, follower)

    def unfollow(self, taken: Taken, follower: Follower) -> None:
        self._sending.unfollow(taken.row, follower)

    def why(self, taken: Taken) -> str | None:
        """Why a message that waits is not further."""
        return self._sending.why(taken.recipient)

    def is_served(self, recipient: str) -> bool:
        """Whether the recipient takes messages, as far as anybody knows: when there is no room there soon will be."""
        return not self._sending.is_failing(recipient)

    async def _find(self, addresses: Iterable[str]) -> dict[str, Located | MeshError]:
        names = list(addresses)
        if len(names) == 1:
            return {names[0]: await self._find_one(names[0])}
        limit = DeferredSemaphore(LOOKUPS_MAX)
        found = [limit.run(self._find_one, name) for name in names]
        return dict(zip(names, await together(found), strict=True))

    async def _find_one(self, address: str) -> Located | MeshError:
        try:
            name, print_ = parse_address(address)
            located = await self._seeds.locate(name, print_=print_)
            await self._contacts.check(located, print_)
        except MeshError as error:
            return error
        return located

    def _keep(
        self, orders: Sequence[Order], found: dict[str, Located | MeshError], *, patient: bool
    ) -> Deferred[list[Taken | MeshError]]:
        """Whoever waits for it does not cancel it: what is being written is written, and sent."""
        verdicts: dict[int, Verdict] = {
            number: located for number, order in enumerate(orders) if isinstance(located := found[order.to], MeshError)
        }
        reserved = self._reserve(orders, verdicts)
        going = [number for number in range(len(orders)) if number not in verdicts]

        def release() -> None:
            for recipient, room in reserved.items():
                self._sending.release(recipient, room)

        def written(taken: Sequence[Verdict]) -> list[Taken | MeshError]:
            release()
            verdicts.update(zip(going, taken, strict=True))
            return self._accepted(orders, verdicts, found, patient)

        def not_written(failure: Failure) -> Failure | list[Taken | MeshError]:
            release()
            error = failure.value
            if not isinstance(error, MeshError):
                return failure
            verdicts.update(dict.fromkeys(going, error))
            return self._accepted(orders, verdicts, found, patient)

        if not going:
            return succeed(written([]))
        return self._table.accept([orders[number].draft for number in going]).addCallbacks(written, not_written)

    def _reserve(self, orders: Sequence[Order], verdicts: dict[int, Verdict]) -> dict[str, int]:
        """Room in the outbox for those without a verdict, by recipient; those that are too many get one."""
        wanted: dict[str, list[int]] = {}
        for number, order in enumerate(orders):
            if number not in verdicts:
                wanted.setdefault(order.draft.recipient, []).append(number)
        reserved: dict[str, int] = {}
        for recipient, numbers in wanted.items():
            room = 0
            try:
                while room < len(numbers):
                    to = orders[numbers[room]].draft.to
                    room += self._sending.reserve(recipient, to, len(numbers) - room)
            except SlowDown as full:
                verdicts.update(dict.fromkeys(numbers[room:], full))
            if room:
                reserved[recipient] = room
        return reserved

    def _accepted(
        self,
        orders: Sequence[Order],
        verdicts: dict[int, Verdict],
        found: dict[str, Located | MeshError],
        patient: bool,
    ) -> list[Taken | MeshError]:
        """What is on disk goes into the outbox."""
        results: list[Taken | MeshError] = []
        fresh: dict[str, list[Message]] = {}
        away: set[str] = set()
        for number, order in enumerate(orders):
            verdict, recipient = verdicts[number], order.draft.recipient
            if isinstance(verdict, MeshError):
                self._sending.tally.refused[cause_of(verdict)] += 1
                results.append(verdict)
                continue
            results.append(self._taken(order, verdict, patient))
            if verdict.fresh:
                fresh.setdefault(recipient, []).append(verdict.message)
            if _is_away(found[order.to]):
                away.add(recipient)
        for recipient, messages in fresh.items():
            self._sending.add(recipient, messages, doubtful=recipient in away)
        return results

    def _taken(self, order: Order, accepted: Accepted, patient: bool) -> Taken:
        recipient, message = order.draft.recipient, accepted.message
        if accepted.status.final:
            return Taken(recipient, message.row, message.id, message.to, accepted.status, accepted.reason, 0.0)
        wait_s = order.wait_s if patient or not self._sending.is_failing(recipient) else 0.0
        reason = self._sending.why(recipient)
        return Taken(recipient, message.row, message.id, message.to, Status.QUEUED, reason, wait_s)


def _is_away(located: Located | MeshError) -> bool:
    """Whether a seed says so."""
    return isinstance(located, Located) and located.said is not None and not located.said.online
