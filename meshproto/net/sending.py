"""Runs :class:`meshproto.core.outbox.Outbox`: from `/send` to the recipient's disk.

A message's way: the recipient is looked up (a name nobody has is refused and nothing kept), the message is committed to
the outbox, and from then on it belongs to the outbox alone. Whoever asked may wait for a while and hears how far it
came; whether they wait, or hang up, changes nothing.

A batch that fails is looked up again at once, since the recipient may have moved; then the recipient is watched, and
what is tried after that is the outbox's decision.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from msgspec import Raw
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, ensureDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from meshproto.core.envelope import Letter, Receipt, open_receipt, seal
from meshproto.core.identity import Entropy, Identity, Record, fingerprint, parse_address, unb64
from meshproto.core.lookup import Located
from meshproto.core.outbox import Attempt, Effect, Finish, Load, Message, Outbox, Status
from meshproto.errors import KeyChanged, MeshError, PeerError, Unreachable
from meshproto.net.clocks import NowMs
from meshproto.net.courier import Courier
from meshproto.net.deferred import Waiters, shield
from meshproto.net.seeds import Seeds
from meshproto.net.user_store import Draft, Kept, UserStore, Waiting
from meshproto.wire import fold

WAITERS_MAX: Final = 10_000
"""Requests that wait for their message's acknowledgement."""
DRAIN_S: Final = 5.0
"""How long deliveries that are under way may take to end when the node stops."""
PINS_MAX: Final = 10_000
"""Contacts whose keys are kept in memory; the others are read from disk."""


class Outcome(NamedTuple):
    """How far a message has come. `reason`: why it is not further."""

    id: str
    to: str
    status: Status
    reason: str | None


class _End(NamedTuple):
    status: Status
    reason: str | None


class _Pin(NamedTuple):
    key: str
    seq: int


class Sending(Service):
    log = Logger()

    def __init__(
        self,
        identity: Identity,
        core: Outbox,
        store: UserStore,
        seeds: Seeds,
        courier: Courier,
        clock: IReactorTime,
        now_ms: NowMs,
        entropy: Entropy,
    ) -> None:
        self._identity = identity
        self._core = core
        self._store = store
        self._seeds = seeds
        self._courier = courier
        self._clock = clock
        self._now_ms = now_ms
        self._entropy = entropy
        self._timer: IDelayedCall | None = None
        self._attempts: set[Deferred[None]] = set()
        self._effects: deque[Effect] = deque()
        self._carrying_out = False
        self._ends: Waiters[int, _End] = Waiters(clock, WAITERS_MAX)
        self._pins: OrderedDict[str, _Pin] = OrderedDict()

    # -- the service ---------------------------------------------------------------------------------------------

    def restore(self, waiting: Iterable[Waiting]) -> None:
        """What waits on disk from before; call it when the service runs."""
        now = self._clock.seconds()
        for queue in waiting:
            self._carry_out(self._core.restore(queue.recipient, queue.to, queue.messages, queue.oldest_at, now))

    def stopService(self) -> "Deferred[object]":
        """Ends when the deliveries under way have ended, or after :data:`DRAIN_S`. The rest stays on disk."""
        super().stopService()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._ends.tell_all(_End(Status.QUEUED, "this node is shutting down"))
        under_way = list(self._attempts)

        def cut() -> None:
            for attempt in under_way:
                attempt.cancel()

        timer = self._clock.callLater(DRAIN_S, cut)

        def drained(_: object) -> None:
            if timer.active():
                timer.cancel()

        return DeferredList(under_way).addCallback(drained)

    # -- for the front -------------------------------------------------------------------------------------------

    async def send(self, to: str, draft: Draft, wait_s: float) -> Outcome:
        """Accept a message and wait up to `wait_s` for its end. Raises :class:`meshproto.errors.UserNotFound`,
        :class:`KeyChanged`, :class:`meshproto.errors.IdReused`, :class:`meshproto.errors.SlowDown` (outbox full),
        :class:`meshproto.errors.Unavailable` (no seed and no known address, or the disk); then nothing was kept."""
        name, print_ = parse_address(to)
        self._core.check_room(fold(name))
        located = await self._seeds.locate(name)
        await self._check_key(located, print_)
        return await shield(ensureDeferred(self._keep(draft, wait_s)))

    async def _keep(self, draft: Draft, wait_s: float) -> Outcome:
        accepted = await self._store.accept(draft)
        message = accepted.message
        if accepted.status.final:
            return Outcome(message.id, message.to, accepted.status, accepted.reason)
        waits = wait_s > 0 and self.running and not self._ends.full
        end = self._ends.wait(message.row, wait_s) if waits else None
        if accepted.fresh:
            self._carry_out(self._core.add(draft.recipient, [message], self._clock.seconds()))
        status, reason = (await end if end is not None else None) or (Status.QUEUED, self._why(draft.recipient))
        return Outcome(message.id, message.to, status, reason)

    def wake(self, name: str) -> None:
        """A sign of life from the user."""
        self._carry_out(self._core.wake(fold(name), self._clock.seconds()))

    async def trust(self, name: str, wanted: str) -> Record:
        """Pin the key that the name answers with now, if its fingerprint is `wanted`. Raises :class:`KeyChanged` when
        it is not."""
        located = await self._seeds.locate(name, fresh=True)
        if fingerprint(located.record.key_bytes) != wanted.lower():
            found = fingerprint(located.record.key_bytes)
            raise KeyChanged(f"{name} answers with the key {found}, not {wanted}: nothing was trusted")
        await self._store.trust(located.record, located.signed, self._now_ms())
        self._pins.pop(fold(name), None)
        self.wake(name)
        return located.record

    def status_of(self, kept: Kept) -> Status:
        """How far a message of the outbox has come at this moment."""
        queue = self._core.queues.get(kept.recipient)
        return kept.status if kept.status.final or queue is None else queue.status_of(kept.row)

    @property
    def outbox(self) -> Outbox:
        """To look at; not to change."""
        return self._core

    # -- effects -------------------------------------------------------------------------------------------------

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        """In order. What an effect brings about at once comes after those before it, not within it: a thousand
        attempts that fail at once must not be a thousand calls deep."""
        self._effects.extend(effects)
        if self._carrying_out:
            return
        self._carrying_out = True
        try:
            while self._effects:
                self._carry_out_one(self._effects.popleft())
        finally:
            self._carrying_out = False
        self._arm()

    def _carry_out_one(self, effect: Effect) -> None:
        match effect:
            case Attempt():
                if self.running:
                    self._start(effect)
            case Load():
                loading = self._store.waiting_after(effect.key, effect.row)
                loading.addCallbacks(
                    self._loaded, self._not_loaded, callbackArgs=(effect.key,), errbackArgs=(effect.key,)
                )
            case Finish():
                rows = [message.row for message in effect.messages]
                marked = self._store.finish(rows, effect.status, effect.reason, self._now_ms())
                marked.addErrback(self._not_written)
                for row in rows:
                    self._ends.tell(row, _End(effect.status, effect.reason))

    def _loaded(self, messages: list[Message], key: str) -> None:
        self._carry_out(self._core.loaded(key, messages, self._clock.seconds()))

    def _not_loaded(self, failure: Failure, key: str) -> None:
        self._not_written(failure)
        self._carry_out(self._core.not_loaded(key, failure.getErrorMessage(), self._clock.seconds()))

    def _not_written(self, failure: Failure) -> None:
        failure.trap(MeshError)
        self.log.error("outbox: {reason}", reason=failure.getErrorMessage())

    def _start(self, attempt: Attempt) -> None:
        work = ensureDeferred(self._attempt(attempt))
        self._attempts.add(work)

        work.addBoth(lambda _: self._attempts.discard(work))

    async def _attempt(self, attempt: Attempt) -> None:
        try:
            receipt = await self._locate_and_deliver(attempt)
        except MeshError as error:
            if error.detail != self._why(attempt.key):
                self.log.info("{to}: {reason}", to=attempt.to, reason=error.detail)
            self._failed(attempt, error.detail)
        except CancelledError:
            self._failed(attempt, "the node was stopped")  # the messages stay on disk
        except Exception:
            # A bug must not hold a place among the deliveries for ever, nor its messages.
            self.log.failure("a bug in a delivery to {to}", to=attempt.to)
            self._failed(attempt, "internal error: the node's log says more")
        else:
            now = self._clock.seconds()
            self._carry_out(self._core.answered(attempt.key, set(receipt.ids), receipt.refused, now))
            await self._seeds.unwatch(attempt.to)

    def _failed(self, attempt: Attempt, reason: str) -> None:
        self._carry_out(self._core.failed(attempt.key, reason, self._clock.seconds()))

    async def _locate_and_deliver(self, attempt: Attempt) -> Receipt:
        located = await self._seeds.locate(attempt.to)
        try:
            return await self._deliver(attempt, located)
        except PeerError:
            self._seeds.forget(attempt.to)
            # Watch first, then look: whoever comes back in between is seen by the one or by the other.
            await self._seeds.watch(attempt.to)
            again = await self._seeds.locate(attempt.to, fresh=True)
            if again.record.seq <= located.record.seq:
                raise
        return await self._deliver(attempt, again)

    async def _deliver(self, attempt: Attempt, located: Located) -> Receipt:
        await self._check_key(located, None)
        self._core.found(attempt.key)
        letters = [Letter(message.id, Raw(message.message), message.sent_at, message.type) for message in attempt.batch]
        pending = seal(letters, self._identity, self._seeds.own_record(), located.record, self._entropy)
        failed = Unreachable(f"{attempt.to} has no address")
        for uri in located.record.uris:
            try:
                return open_receipt(await self._courier.deliver(uri, pending.body), pending)
            except Unreachable as error:
                failed = error
        raise failed

    # -- keys ----------------------------------------------------------------------------------------------------

    async def _check_key(self, located: Located, print_: str | None) -> None:
        """Raises :class:`KeyChanged` unless the key is the one asked for and the one that was pinned; a new contact's
        key is pinned."""
        record = located.record
        found = fingerprint(record.key_bytes)
        if print_ is not None and print_ != found:
            raise KeyChanged(f"{record.name} has the key {found}, not {print_}")
        pin = await self._pin(record.name)
        if pin is not None and pin.key != record.key:
            known = fingerprint(unb64(pin.key))
            raise KeyChanged(
                f"{record.name} answers with the key {found}, but you have exchanged messages with the key {known}. "
                f'If you know why, trust the new key: PUT /contacts/{record.name} {{"fingerprint": "{found}"}}'
            )
        if pin is None or pin.seq < record.seq:
            await self._store.save_contact(record, located.signed, self._now_ms())
            self._pins[fold(record.name)] = _Pin(record.key, record.seq)
            if len(self._pins) > PINS_MAX:
                self._pins.popitem(last=False)

    async def _pin(self, name: str) -> _Pin | None:
        pin = self._pins.get(fold(name))
        if pin is not None:
            return pin
        contact = await self._store.contact(name)
        return _Pin(contact.key, 0) if contact is not None else None

    # -- time ----------------------------------------------------------------------------------------------------

    def _why(self, key: str) -> str | None:
        queue = self._core.queues.get(key)
        return queue.reason if queue is not None else None

    def _tick(self) -> None:
        self._timer = None
        self._carry_out(self._core.tick(self._clock.seconds()))

    def _arm(self) -> None:
        at = self._core.wake_at
        if at is None or not self.running:
            return
        delay_s = max(0.0, at - self._clock.seconds())
        if self._timer is None:
            self._timer = self._clock.callLater(delay_s, self._tick)
        elif self._timer.getTime() > self._clock.seconds() + delay_s:
            self._timer.reset(delay_s)
