"""A directory that several seeds share, in Redis or Valkey: a cluster, or a single server.

Nothing takes longer than :data:`OPERATION_S`. Until then what no node has carried out is asked again, of whichever node
has that part of the keys by then; afterwards a part that nobody has is refused at once, until somebody has it. What may
have been carried out is not asked again: whoever swaps looks what there is now.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from twisted.internet.defer import Deferred, FirstError, fail, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from meshproto.errors import BadState, MeshError, Unavailable
from meshproto.net import redis_script
from meshproto.net.clocks import Alarm
from meshproto.net.redis_address import RedisAddress
from meshproto.net.redis_connection import Connecting, failure_words
from meshproto.net.redis_counters import Counters
from meshproto.net.redis_lane import PROBE, Ask, Lane, packed
from meshproto.net.redis_news import News
from meshproto.net.redis_places import NoPlace, Places

OPERATION_S: Final = 2.0
"""For an answer, whatever happens meanwhile: who looks a name up waits no longer for one of several seeds."""
UNDER_WAY_MAX: Final = 20_000
"""Operations: what a node answers in a tenth of a second, and 20 MB."""
RETRY_AFTER_S: Final = 1.0
"""When to come back: a cluster takes some seconds to find out that a node is lost."""
AGAIN_S: Final = 0.05
"""Until what was not carried out is tried again; twice as long each time,"""
AGAIN_S_MAX: Final = 0.5
"""up to a quarter of what an operation may take."""
HOPS_MAX: Final = 5
"""A question is sent elsewhere at once; then the cluster is not of one mind, and it waits like one that was not
answered."""
PAGE_KEYS: Final = 500
"""Looked at in one go where all are read: a millisecond or two of the node's time."""
PREFIX: Final = b"mesh:"
IDENTITY_KEY: Final = b"mesh-directory"
"""No name's: those have a colon before them."""
IDENTITY_BYTES: Final = 16


class RedisStore:
    """A :class:`meshproto.core.shared.SharedStore`, from when it is opened. `reactor`: one on an asyncio loop.
    `changed(key)`: a watched key was written, by whomever; also once when a key begins to be heard. `resumed()`: after
    an outage, of commands or of the subscription: what was watched may have changed unheard."""

    log = Logger()

    def __init__(
        self,
        address: RedisAddress,
        reactor: Any,
        changed: Callable[[str], None],
        resumed: Callable[[], None],
        ca: Path | None = None,
    ) -> None:
        self.counters = Counters()
        self._address = address
        self._reactor = reactor
        self._resumed = resumed
        self._places = Places(address, Connecting(address, ca), self._told, self._lost)
        self._news = News(self._places, PREFIX, changed, resumed)
        self._alarm = Alarm(reactor, self._too_late)
        self._timeline: deque[Ask] = deque()
        self._under_way = 0
        self._again: list[Ask] = []
        self._mending: asyncio.Task[None] | None = None
        self._mend_since: float | None = None
        self._is_outage = False
        self._why = "it was not asked yet"
        self._opening: tuple[Deferred[None], IDelayedCall] | None = None
        self._closed = False

    def open(self) -> "Deferred[None]":
        """Fires when it is known which node has what. Fails with :class:`BadState` for what waiting does not mend, a
        wrong password say; with :class:`Unavailable` when nobody has answered in time: the store goes on trying."""
        opened: Deferred[None] = Deferred()
        self._reactor.callWhenRunning(self._open, opened)
        return opened

    def _open(self, opened: "Deferred[None]") -> None:
        def too_late() -> None:
            self._end_opening(Failure(self._unavailable(self._why)))

        self._opening = opened, self._reactor.callLater(OPERATION_S, too_late)
        self._mend()

    def _end_opening(self, result: Any) -> None:
        if self._opening is not None:
            (opened, timer), self._opening = self._opening, None
            if timer.active():
                timer.cancel()
            opened.callback(result)

    # -- what it is asked ----------------------------------------------------------------------------------------

    def get(self, key: str) -> "Deferred[bytes | None]":
        name = PREFIX + key.encode()
        return self._ask("get", name, packed(b"GET", name), repeatable=True)

    def swap(self, key: str, before: bytes | None, after: bytes | None, ttl_ms: int) -> "Deferred[bool]":
        name = PREFIX + key.encode()
        command = redis_script.swap(name, before, after, ttl_ms)
        return self._ask("swap", name, command, repeatable=False).addCallback(bool)

    def watch(self, keys: Iterable[str]) -> None:
        self._news.watch(keys)

    def unwatch(self, keys: Iterable[str]) -> None:
        self._news.unwatch(keys)

    def count(self) -> "Deferred[int]":
        """Of the whole store: it is the directory's alone."""
        shards = self._places.shards()
        if not shards:
            return fail(self._unavailable(self._why))
        asked = [self._ask("count", b"", packed(b"DBSIZE"), repeatable=True, slot=slot) for slot in shards]
        return gatherResults(asked, consumeErrors=True).addCallbacks(sum, _first)

    async def read_all(self, take: Callable[[list[tuple[str, bytes]]], None]) -> None:
        """All that stands there, a page at a time, in no order; what is written meanwhile may be among it or not.
        Raises :class:`Unavailable`."""
        for slot in self._places.shards():
            cursor = b"0"
            while True:
                page = packed(b"SCAN", cursor, b"MATCH", PREFIX + b"*", b"COUNT", b"%d" % PAGE_KEYS)
                cursor, names = await self._ask("scan", b"", page, repeatable=True, slot=slot)
                keys = [name.removeprefix(PREFIX).decode() for name in names]
                values = await gatherResults([self.get(key) for key in keys], consumeErrors=True).addErrback(_first)
                take([(key, value) for key, value in zip(keys, values, strict=True) if value is not None])
                if cursor == b"0":
                    break

    def identity(self) -> "Deferred[str]":
        made = os.urandom(IDENTITY_BYTES).hex().encode()
        kept = self._ask("identity", IDENTITY_KEY, packed(b"SET", IDENTITY_KEY, made, b"NX"), repeatable=True)
        kept.addCallback(lambda _: self._ask("identity", IDENTITY_KEY, packed(b"GET", IDENTITY_KEY), repeatable=True))
        return kept.addCallback(_text)

    def close(self) -> "Deferred[None]":
        self._closed = True
        self._alarm.stop()
        self._end_opening(Failure(self._unavailable("it is closed")))
        for ask in list(self._timeline):
            self._refuse(ask, "gone", "it is closed")
        self._timeline.clear()
        return Deferred.fromFuture(asyncio.ensure_future(self._close()))

    async def _close(self) -> None:
        if self._mending is not None:
            self._mending.cancel()
            await asyncio.wait([self._mending])
        await self._news.close()
        await self._places.close()

    # -- one question --------------------------------------------------------------------------------------------

    def _ask(self, kind: str, key: bytes, command: bytes, repeatable: bool, slot: int | None = None) -> "Deferred[Any]":
        self.counters.operations[kind] += 1
        if self._closed or self._under_way >= UNDER_WAY_MAX:
            self.counters.errors["busy"] += 1
            return fail(
                self._unavailable("it is closed" if self._closed else f"{UNDER_WAY_MAX} operations wait for it")
            )
        now = self._reactor.seconds()
        answer: Deferred[Any] = Deferred()
        ask = Ask(kind, key, command, key_slot(key) if slot is None else slot, repeatable, now, answer)
        self._under_way += 1
        timeline = self._timeline
        while timeline and timeline[0].answer is None:
            timeline.popleft()
        if not timeline:
            self._alarm.at(now + OPERATION_S)
        timeline.append(ask)
        self._place(ask, now)
        return answer

    def _place(self, ask: Ask, now: float) -> None:
        """To the node that has its part of the keys, now or when one has."""
        lane = self._places.of_slot[ask.slot]
        since = self._mend_since if lane is None else lane.broken_since
        if since is not None and now - since >= OPERATION_S:
            self._refuse(ask, "gone", self._why)
        elif lane is None:
            self._later(ask)
        else:
            lane.add(ask)

    def _elsewhere(self, ask: Ask, lane: Lane) -> None:
        ask.hops += 1
        if ask.hops <= HOPS_MAX:
            lane.add(ask)
        else:
            self._later(ask)

    def _later(self, ask: Ask) -> None:
        ask.hops = 0
        self._again.append(ask)
        self._mend()

    def _settle(self, ask: Ask, result: Any) -> None:
        answer, ask.answer = ask.answer, None
        if answer is not None:
            self._under_way -= 1
            answer.callback(result)

    def _refuse(self, ask: Ask, kind: str, why: str) -> None:
        if ask.answer is not None:
            self.counters.errors[kind] += 1
            self._settle(ask, Failure(self._unavailable(why)))

    def _unavailable(self, why: str) -> MeshError:
        return Unavailable(f"the directory at {self._address}: {why}", retry_after_s=RETRY_AFTER_S)

    def _too_late(self) -> None:
        now, timeline = self._reactor.seconds(), self._timeline
        while timeline and (timeline[0].answer is None or timeline[0].asked_at + OPERATION_S <= now):
            self._refuse(timeline.popleft(), "slow", f"no answer within {OPERATION_S:g} s; {self._why}")
        if timeline:
            self._alarm.at(timeline[0].asked_at + OPERATION_S)

    # -- what comes of it ----------------------------------------------------------------------------------------

    def _told(self, lane: Lane, ask: Ask, reply: Any) -> None:
        ask.asking = False
        if isinstance(reply, ClusterDownError):
            self._break(lane, ask, reply)
            self._later(ask)
            return
        lane.broken_since = None
        if not isinstance(reply, ResponseError):
            if ask.answer is not None:
                self.counters.took(self._reactor.seconds() - ask.asked_at)
                self._settle(ask, reply)
        elif isinstance(reply, AskError):  # of which MovedError is one
            self._redirected(lane, ask, reply)
        elif isinstance(reply, NoScriptError):
            ask.command = redis_script.whole(ask.command)
            lane.add(ask)
        elif isinstance(reply, (TryAgainError, ReadOnlyError)):
            self._why = failure_words(lane.host, lane.port, reply)
            self._later(ask)
        else:
            self._refuse(ask, "refused", failure_words(lane.host, lane.port, reply))

    def _redirected(self, lane: Lane, ask: Ask, to: AskError) -> None:
        host = (to.host or lane.host, int(to.port))
        if isinstance(to, MovedError):
            self._elsewhere(ask, self._places.moved(int(to.slot_id), host))
            self._mend()  # more than one slot will have
        else:
            ask.asking = True
            self._elsewhere(ask, self._places.lane(host))

    def _lost(self, lane: Lane, asks: list[Ask], error: BaseException, sent: bool) -> None:
        if not asks:
            return
        self._break(lane, asks[0], error)
        is_known = not sent or isinstance(error, BusyLoadingError)
        for ask in asks:
            if ask.answer is None:
                continue
            if is_known or ask.repeatable:
                self._later(ask)
            else:
                self._refuse(ask, "unknown", f"whether it was done nobody knows: {self._why}")

    def _break(self, lane: Lane, ask: Ask, error: BaseException) -> None:
        """Nothing comes of it for now; `ask` is what it did not answer."""
        self._why = failure_words(lane.host, lane.port, error)
        if lane.broken_since is None:
            lane.broken_since = self._reactor.seconds()
            self.counters.outages += 1
        lane.probe = (ask.key, ask.slot)
        self._mend(outage=True)

    # -- outages -------------------------------------------------------------------------------------------------

    def _mend(self, outage: bool = False) -> None:
        if outage and not self._is_outage:
            self._is_outage = True
            self.log.warn("the directory at {address}: {why}", address=self._address, why=self._why)
        if self._mending is None and not self._closed:
            self._mend_since = self._reactor.seconds()
            self._mending = self._begin_task(self._mend_all())

    async def _mend_all(self) -> None:
        """Until every part of the keys has somebody who answers."""
        wait_s = AGAIN_S
        while True:
            is_known = await self._refreshed()
            again, self._again = self._again, []
            now = self._reactor.seconds()
            for ask in again:
                if ask.answer is not None:
                    self._place(ask, now)
            for lane in self._places.broken():
                lane.add(self._probe(lane))
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, AGAIN_S_MAX)
            if is_known and not self._again and not self._places.broken():
                break
        self._mending = self._mend_since = None
        if self._is_outage:
            self._is_outage = False
            self.log.info("the directory at {address} answers again", address=self._address)
            self._resumed()

    async def _refreshed(self) -> bool:
        try:
            await self._places.refresh()
        except NoPlace as nobody:
            self._why = str(nobody)
            self._mend(outage=True)
            return False
        except BadState as error:  # nobody was known yet, and whoever answers does not want us
            self._why = error.detail
            self._end_opening(Failure(error))
            return False
        self._end_opening(None)
        return True

    def _probe(self, lane: Lane) -> Ask:
        """A question of which only that is of interest that it is answered."""
        key, slot = lane.probe
        return Ask(PROBE, key, packed(b"GET", key), slot, False, self._reactor.seconds(), None)

    def _begin_task(self, work: Any) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.log.failure("the directory is not looked after any more", Failure(error))


def _text(value: bytes | None) -> str:
    if value is None:
        raise Unavailable("the directory has lost its id", retry_after_s=RETRY_AFTER_S)
    return value.decode("ascii")


def _first(failure: Failure) -> Failure:
    """Of several that failed."""
    assert isinstance(failure.value, FirstError)  # noqa: S101
    return failure.value.subFailure
