"""Runs :class:`meshproto.core.outbox.Outbox`: from the outbox to the recipient's disk.

A batch that fails is looked up again at once, since the recipient may have moved; then the recipient is watched, and
what is tried after that is the outbox's decision. An end is told to those who wait for it when it is on disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from typing import Final, NamedTuple, Protocol

from msgspec import Raw
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from meshproto.core.envelope import Letter, Receipt, open_receipt, seal
from meshproto.core.identity import Entropy, fingerprint
from meshproto.core.lookup import Located
from meshproto.core.notes import Notes
from meshproto.core.outbox import Attempt, Effect, Finish, Load, Outbox
from meshproto.core.queue import Message, Queue, Status
from meshproto.errors import MeshError, NoAnswer, NotFound, PeerError, PeerRefused, Unavailable, Unreachable, quoted
from meshproto.net.causes import Cause, cause_of
from meshproto.net.clocks import Alarm, NowMs
from meshproto.net.contacts import Contacts
from meshproto.net.courier import REASON_CHARS_MAX, Courier
from meshproto.net.deferred import Task
from meshproto.net.message_log import MessageLog
from meshproto.net.outbox_table import FIRST, Kept, OutboxTable, Overdue, Place, Waiting
from meshproto.net.seeds import Seeds
from meshproto.net.store import RETRY_S
from meshproto.net.tallies import SentTally
from meshproto.wire import fold

FOLLOWERS_MAX: Final = 50_000
"""Who waits for a message's end: requests, and lines of streams, of which each has some thousand under way. About 200
bytes each."""
DRAIN_S: Final = 5.0
"""How long deliveries that are under way may take to end when the node stops."""
EXPIRY_LOOK_S: Final = 60.0
"""How long an expiry may go unnoticed when the wall clock was set forward."""
EXPIRY_AGAIN_S: Final = 1.0
"""When to look again for what was over and could not end, since it was under way."""
LINES_MAX: Final = 5
"""Lines of the log a minute about one recipient: the steps of what usually fails, and no more."""
LINES_IN_ALL_MAX: Final = 600
"""The same about all of them: 200 MB a day at worst."""

Listener = Callable[[str | None, Iterable[int]], None]


class _ForAnotherKey(Exception):
    """Rows of a batch that must not be sent to the key the recipient has now, with the reason for each. `for_good`: it
    is the owner who has said that this is the recipient's key."""

    def __init__(self, reasons: dict[int, str], *, for_good: bool) -> None:
        super().__init__(reasons)
        self.reasons = reasons
        self.for_good = for_good


class End(NamedTuple):
    status: Status
    reason: str | None


class Follower(Protocol):
    """Somebody who waits for a message's end."""

    def told(self, end: End) -> None:
        """It is on disk."""


class _Waiting:
    """A Deferred that fires with a message's end, or None when the time is over."""

    def __init__(self, sending: Sending, row: int, clock: IReactorTime, wait_s: float) -> None:
        self.done: Deferred[End | None] = Deferred(lambda _: self._leave())
        self._sending = sending
        self._row = row
        self._timer = clock.callLater(wait_s, self._over)

    def told(self, end: End) -> None:
        self._timer.cancel()
        self.done.callback(end)

    def _over(self) -> None:
        self._sending.unfollow(self._row, self)
        self.done.callback(None)

    def _leave(self) -> None:
        self._timer.cancel()
        self._sending.unfollow(self._row, self)


class Sending(Service):
    """`listeners` are called with a recipient, folded, whose queue has changed, or None; and with the rows of messages
    that were taken in, or whose end is on disk. `message_log`: None where messages are not
    in the log."""

    log = Logger()

    def __init__(
        self,
        core: Outbox,
        table: OutboxTable,
        seeds: Seeds,
        contacts: Contacts,
        courier: Courier,
        clock: IReactorTime,
        now_ms: NowMs,
        entropy: Entropy,
        message_log: MessageLog | None = None,
    ) -> None:
        self._outbox = core
        self.tally = SentTally()
        self._message_log = message_log
        self._fresh: dict[tuple[str, bool], list[Message]] = {}
        self._table = table
        self._seeds = seeds
        self._contacts = contacts
        self._courier = courier
        self._clock = clock
        self._now_ms = now_ms
        self._entropy = entropy
        self._attempts: dict[int, Task[None]] = {}  # under way
        self._numbers = count()
        self._marks = 0  # under way
        self._drained: Deferred[None] = Deferred()  # for whoever waits until nothing is under way
        self._effects: deque[Effect] = deque()
        self._carrying_out = False
        self._notes = Notes(lines_max=LINES_MAX)
        self._notes_in_all = Notes(lines_max=LINES_IN_ALL_MAX)
        self._followers: dict[int, list[Follower]] = {}  # row -> who waits for its end
        self._followers_count = 0
        self.listeners: set[Listener] = set()
        self._next_tick = Alarm(clock, self._tick)
        self._next_expiry = Alarm(clock, self._look_for_overdue)

    # -- the service ---------------------------------------------------------------------------------------------

    def restore(self, waiting: Iterable[Waiting]) -> None:
        """What waits on disk from before; call it when the service runs."""
        self._look_for_overdue()
        for queue in waiting:
            self._carry_out(
                self._core.restore(
                    queue.recipient, queue.to, queue.messages, queue.oldest_at, queue.last_row, self._now()
                )
            )

    def stopService(self) -> Deferred[None]:
        """Ends when the deliveries under way have ended and are marked so, or after :data:`DRAIN_S`. The rest stays on
        disk."""
        super().stopService()
        self._next_tick.stop()
        self._next_expiry.stop()
        return ensureDeferred(self._drain())

    async def _drain(self) -> None:
        def cut() -> None:
            for attempt in list(self._attempts.values()):
                attempt.cancel()

        timer = self._clock.callLater(DRAIN_S, cut)
        while self._attempts or self._marks:
            self._drained = Deferred()
            await self._drained
        if timer.active():
            timer.cancel()
        self._tell(list(self._followers), End(Status.QUEUED, "this node is shutting down"))

    # -- for those who send --------------------------------------------------------------------------------------

    def reserve(self, recipient: str, to: str, wanted: int) -> int:
        """Room for messages that are being written; see :meth:`Outbox.reserve`."""
        return self._core.reserve(recipient, to, wanted)

    def release(self, recipient: str, reserved: int) -> None:
        self._core.release(recipient, reserved)

    def add(self, recipient: str, messages: Sequence[Message], *, doubtful: bool) -> None:
        """Messages that are on disk now. `doubtful`: the recipient is said to be away. What one commit has brought
        enters the outbox together, so that it travels together."""
        if not self._fresh:
            self._clock.callLater(0, self._let_in)
        self._fresh.setdefault((recipient, doubtful), []).extend(messages)
        self.tally.accepted += len(messages)
        if self._message_log is not None:
            self._message_log.accepted(messages)

    def _let_in(self) -> None:
        fresh, self._fresh = self._fresh, {}
        if fresh and self.running:
            ahead_s = self._clock.seconds() - self._now_ms() / 1000
            first_ms = min(message.expires_at for messages in fresh.values() for message in messages)
            self._next_expiry.at(first_ms / 1000 + ahead_s)
        for (recipient, doubtful), messages in fresh.items():
            self._carry_out(self._outbox.add(recipient, messages, self._now(), doubtful=doubtful))
            if self.listeners:
                self._notify(recipient, [message.row for message in messages])

    @property
    def _core(self) -> Outbox:
        """With all that is on disk."""
        if self._fresh:
            self._let_in()
        return self._outbox

    def follow(self, row: int, follower: Follower) -> bool:
        """Have the message's end told to somebody, when it is on disk, unless they :meth:`unfollow` before. Whether
        there was room for them."""
        if not self._has_room:
            return False
        self._followers.setdefault(row, []).append(follower)
        self._followers_count += 1
        return True

    def unfollow(self, row: int, follower: Follower) -> None:
        """They wait no longer."""
        followers = self._followers[row]
        followers.remove(follower)
        self._followers_count -= 1
        if not followers:
            del self._followers[row]

    def end_of(self, row: int, wait_s: float) -> Deferred[End | None] | None:
        """Fires with the message's end when it is on disk, or None after `wait_s`; None: too many wait."""
        if not self._has_room:
            return None
        waiting = _Waiting(self, row, self._clock, wait_s)
        self.follow(row, waiting)
        return waiting.done

    @property
    def _has_room(self) -> bool:
        """For one more who waits."""
        return bool(self.running) and self._followers_count < FOLLOWERS_MAX

    def _tell(self, rows: Iterable[int], end: End) -> None:
        for row in rows:
            followers = self._followers.pop(row, None)
            if followers is not None:
                self._followers_count -= len(followers)
                for follower in followers:
                    follower.told(end)

    def _notify(self, recipient: str | None, rows: Iterable[int]) -> None:
        for listener in list(self.listeners):
            listener(recipient, rows)

    # -- for the owner -------------------------------------------------------------------------------------------

    def wake(self, name: str, *, alive: bool = True) -> None:
        """Try the user at once. `alive`: this was a sign of life from them."""
        self._carry_out(self._core.wake(fold(name), self._now(), alive=alive))

    def hint(self, name: str, *, alive: bool) -> None:
        """A seed says that the user is back. See :meth:`Outbox.hint`."""
        self._carry_out(self._core.hint(fold(name), self._now(), alive=alive))

    def retry(self, name: str | None) -> list[Queue]:
        """Try at once what waits, of all or of one, who are returned. Raises :class:`NotFound` when nothing waits for
        the one."""
        keys = list(self._core.queues) if name is None else [fold(name)]
        queues = [self._core.queues[key] for key in keys if key in self._core.queues]
        if name is not None and not queues:
            raise NotFound(f"nothing waits for {name}")
        for key in keys:
            self._carry_out(self._core.wake(key, self._now(), alive=False))
        return queues

    async def cancel(self, kept: Kept, wait_s: float) -> End:
        """Give up a message that waits. One that is under way at this moment is cancelled if it is not delivered now;
        when that is not known after `wait_s` it is told how far it is. Raises :class:`Unavailable` when the disk does
        not take the cancelling; it is cancelled as soon as it does."""
        if kept.status.final:
            return End(kept.status, kept.reason)
        end = self.end_of(kept.row, wait_s)
        self._end(kept.recipient, [kept.row], Status.CANCELLED, "cancelled by its sender")
        told = await end if end is not None else None
        if told is not None and told.status.final:
            return told
        if self._core.has_ended(kept.row):
            raise Unavailable(self._table.problem or "the disk is slow: ask again", retry_after_s=RETRY_S)
        status = self.status_of(kept.recipient, kept.row, kept.status)
        return End(status, "it is being delivered at this moment, and cancelled if that fails")

    def _end(self, recipient: str, rows: Sequence[int], status: Status, reason: str) -> None:
        if self._message_log is not None:
            self._message_log.ending(recipient, rows)
        self._carry_out(self._core.end(recipient, rows, status, reason, self._now()))
        self._unwatch_if_done(recipient)

    def _unwatch_if_done(self, recipient: str) -> None:
        if recipient not in self._core.queues:
            if self._message_log is not None:
                self._message_log.reached(recipient)
            ensureDeferred(self._seeds.unwatch(recipient))

    def status_of(self, recipient: str, row: int, on_disk: Status) -> Status:
        """How far a message has come at this moment."""
        return on_disk if on_disk.final else self._core.status_of(recipient, row)

    def why(self, recipient: str) -> str | None:
        """What happened when the recipient was last tried."""
        queue = self._core.queues.get(recipient)
        return queue.why if queue is not None else None

    def is_failing(self, recipient: str) -> bool:
        """Whether the last attempt failed."""
        queue = self._core.queues.get(recipient)
        return queue is not None and queue.attempts > 0

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
        if self.running and self._core.wake_at is not None:
            self._next_tick.at(self._core.wake_at)

    def _carry_out_one(self, effect: Effect) -> None:
        match effect:
            case Attempt():
                if self.running:
                    self._begin(effect)
            case Load():
                loading = self._table.waiting_after(effect.key, effect.row)
                loading.addCallbacks(
                    self._loaded, self._not_loaded, callbackArgs=(effect.key,), errbackArgs=(effect.key,)
                )
            case Finish():
                self._marks += 1
                marking = self._table.finish(effect.rows, effect.status, effect.reason, self._now_ms())
                marking.addCallbacks(self._marked, self._not_marked, callbackArgs=(effect,), errbackArgs=(effect,))

    def _tick(self) -> None:
        self._carry_out(self._core.tick(self._now()))

    def _now(self) -> float:
        return float(self._clock.seconds())

    def _loaded(self, messages: list[Message], key: str) -> None:
        self._carry_out(self._core.loaded(key, messages, self._now()))

    def _not_loaded(self, failure: Failure, key: str) -> None:
        self._not_from_disk(failure)
        self._carry_out(self._core.not_loaded(key, failure.getErrorMessage(), self._now()))

    def _marked(self, _: None, finish: Finish) -> None:
        self._marks -= 1
        self.tally.ended[finish.status] += len(finish.rows)
        if self._message_log is not None:
            self._table.by_rows(finish.rows).addCallbacks(self._message_log.ended, self._not_from_disk)
        self._tell(finish.rows, End(finish.status, finish.reason))
        self._carry_out(self._core.marked(finish.rows, self._now()))
        if self.listeners:
            self._notify(None, finish.rows)
        self._look_whether_drained()

    def _not_marked(self, failure: Failure, finish: Finish) -> None:
        self._marks -= 1
        self._look_whether_drained()
        self._not_from_disk(failure)
        self._core.not_marked(finish, self._now())
        self._carry_out([])

    def _look_whether_drained(self) -> None:
        if not (self.running or self._attempts or self._marks or self._drained.called):
            self._drained.callback(None)

    def _not_from_disk(self, failure: Failure) -> None:
        failure.trap(MeshError)
        self.log.debug("outbox: {reason}", reason=failure.getErrorMessage())

    # -- expiry --------------------------------------------------------------------------------------------------

    def _look_for_overdue(self, after: Place = FIRST) -> None:
        self._table.overdue(self._now_ms(), after).addCallbacks(self._expire, self._look_later)

    def _expire(self, overdue: Overdue) -> None:
        for recipient, rows in overdue.rows.items():
            self._end(recipient, rows, Status.EXPIRED, self.why(recipient) or "not delivered in time")
        if not self.running:
            return
        if overdue.more is not None:
            self._look_for_overdue(overdue.more)
            return
        delay_s = EXPIRY_LOOK_S
        if overdue.rows:
            delay_s = EXPIRY_AGAIN_S
        elif overdue.next_at is not None:
            delay_s = min(delay_s, (overdue.next_at - self._now_ms()) / 1000)
        self._next_expiry.at(self._clock.seconds() + delay_s)

    def _look_later(self, failure: Failure) -> None:
        self._not_from_disk(failure)
        if self.running:
            self._next_expiry.at(self._clock.seconds() + EXPIRY_LOOK_S)

    # -- attempts ------------------------------------------------------------------------------------------------

    def _begin(self, attempt: Attempt) -> None:
        number = next(self._numbers)
        task = Task(self._attempt(attempt), partial(self._attempted, number), partial(self._attempt_broke, number))
        if not task.over:
            self._attempts[number] = task

    def _attempted(self, number: int, _: None = None) -> None:
        self._attempts.pop(number, None)
        self._look_whether_drained()

    def _attempt_broke(self, number: int, error: BaseException) -> None:
        self.log.failure("a bug after a delivery", failure=Failure(error))
        self._attempted(number)

    async def _attempt(self, attempt: Attempt) -> None:
        self.tally.attempts += 1
        if self._message_log is not None:
            self._message_log.attempt(attempt.key)
        try:
            receipt = await self._locate_and_deliver(attempt)
        except MeshError as error:
            if error.detail != self.why(attempt.key):
                self._note(attempt.key, f"{attempt.to}: {error.detail}")
            # What a seed says about a name is no reason to leave a peer alone.
            wait_s = error.retry_after_s if isinstance(error, PeerRefused) else None
            self._failed(attempt, cause_of(error), error.detail, wait_s or 0.0)
        except _ForAnotherKey as strict:
            self.tally.failures[Cause.KEY_CHANGED] += 1
            if self._message_log is not None:
                self._message_log.ending(attempt.key, strict.reasons)
            withheld = self._core.withheld(attempt.key, strict.reasons, self._now(), for_good=strict.for_good)
            self._carry_out(withheld)
            self._unwatch_if_done(attempt.key)
            self._notify(attempt.key, ())
        except CancelledError:
            self._failed(attempt, Cause.STOPPED, "the node was stopped")  # the messages stay on disk
        except Exception:
            # A bug must not hold a place among the deliveries for ever, nor its messages.
            self.log.failure("a bug in a delivery to {to}", to=attempt.to)
            self._failed(attempt, Cause.OTHER, "internal error: the node's log says more")
        else:
            refused = {each: quoted(reason, REASON_CHARS_MAX) for each, reason in receipt.refused.items()}
            ids = set(receipt.ids)
            self._arrived(attempt, ids)
            self._carry_out(self._core.answered(attempt.key, ids, refused, self._now()))
            await self._seeds.unwatch(attempt.to)

    def _note(self, recipient: str, text: str) -> None:
        """Into the log, unless it was told much of the recipient, or of all: a seed may have another reason each
        time."""
        line = self._notes.line(recipient, text, self._now())
        line = line and self._notes_in_all.line("", line, self._now())
        if line is not None:
            self.log.info("{line}", line=line)

    def _arrived(self, attempt: Attempt, ids: set[str]) -> None:
        """The recipient has some of a batch on disk; nearly always all."""
        batch = attempt.batch
        if len(ids) < len(batch):
            batch = tuple(message for message in batch if message.id in ids)
        self.tally.arrived(batch, self._now_ms())
        if self._message_log is not None:
            self._message_log.ending(attempt.key, [message.row for message in attempt.batch])
            self._message_log.reached(attempt.key)

    def _failed(self, attempt: Attempt, cause: Cause, reason: str, retry_after_s: float = 0.0) -> None:
        self.tally.failures[cause] += 1
        self._carry_out(self._core.failed(attempt.key, reason, self._now(), retry_after_s))
        self._unwatch_if_done(attempt.key)
        self._notify(attempt.key, ())

    async def _locate_and_deliver(self, attempt: Attempt) -> Receipt:
        print_ = _only_key(attempt.batch)
        located = await self._seeds.locate(attempt.to, print_=print_)
        try:
            return await self._deliver(attempt, located)
        except PeerError:
            self._seeds.forget(attempt.to)
            # Watch first, then look: whoever comes back in between is seen by the one or by the other.
            await self._seeds.watch(attempt.to)
            again = await self._seeds.locate(attempt.to, fresh=True, print_=print_)
            if again.record.seq <= located.record.seq:
                raise
        return await self._deliver(attempt, again)

    async def _deliver(self, attempt: Attempt, located: Located) -> Receipt:
        await self._check_keys(attempt, located)
        letters = [Letter(message.id, Raw(message.message), message.sent_at, message.type) for message in attempt.batch]
        own = self._seeds.own()
        pending = seal(letters, own.identity, own.signed, located.record, self._entropy)
        failed: MeshError | None = None
        for uri in located.record.uris:
            reach = self._seeds.reach(located, uri)
            try:
                return open_receipt(await self._courier.deliver(uri, pending.body, reach), pending)
            except MeshError as error:
                if _may_have_arrived(error):
                    self._core.may_have_arrived(attempt.key)
                if not isinstance(error, Unreachable):
                    raise
                failed = error
            except Exception:
                self._core.may_have_arrived(attempt.key)
                raise
        raise failed or Unreachable(f"{attempt.to} has no address")

    async def _check_keys(self, attempt: Attempt, located: Located) -> None:
        """What was sent to NAME~FINGERPRINT goes to that key or to nobody. Seeds may say that the name has another one
        now; that is no reason to pin that one, if nothing else goes there, nor to end what is not for it. Raises
        :class:`KeyChanged` and :class:`_ForAnotherKey`."""
        record = located.record
        reasons = {}
        if _prints(attempt.batch) != {""}:
            found = fingerprint(record.key_bytes)
            reasons = {
                message.row: f"it is for {message.to} alone, and {record.name} has the key {found} now"
                for message in attempt.batch
                if not message.is_for(found)
            }
        if len(reasons) == len(attempt.batch):
            await self._contacts.notice(located)
        else:
            await self._contacts.check(located)
        for_good = bool(reasons) and await self._contacts.is_trusted(record)
        if not reasons or for_good:
            self._core.found(attempt.key)
        if reasons:
            raise _ForAnotherKey(reasons, for_good=for_good)


def _prints(batch: Sequence[Message]) -> set[str]:
    """The fingerprints of the keys that messages of a batch are for; `""`: whichever key the recipient has."""
    return {address.partition("~")[2] for address in {message.to for message in batch}}


def _only_key(batch: Sequence[Message]) -> str | None:
    """The fingerprint of the key that all of a batch is for, if there is one."""
    prints = _prints(batch)
    return (prints.pop() or None) if len(prints) == 1 else None


def _may_have_arrived(error: MeshError) -> bool:
    """Whether the recipient may have the batch on disk, though it was not acknowledged."""
    if isinstance(error, PeerRefused):
        return error.status >= 500
    return isinstance(error, NoAnswer) or (isinstance(error, PeerError) and not isinstance(error, Unreachable))
