"""The way to one node of a store and back: one connection, one batch on it at a time, while the next one gathers.

What is asked within one turn of the reactor goes out together, and under load a batch is whatever came while the one
before travelled. redis-py's own pipelines cost twice as much (of 64 GETs each takes 25 us of CPU through a
RedisCluster's, 12 through a store on these lanes, Deferreds and all), with them a node that does not answer makes the
questions to all others wait, and they ask again what may have been carried out.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final

from redis.asyncio.connection import Connection
from redis.exceptions import ResponseError
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from meshproto.net.redis_connection import CONNECT_S, FAILURES

BATCH_MAX: Final = 1000
"""Questions that go out together: about a millisecond of the node's time, and 64 KiB."""
ANSWER_S: Final = 1.0
"""A node that has not answered a batch by then is taken for lost: half of what an operation may take, so that there is
time to ask the one that stands in for it."""
PROBE: Final = "probe"
ASKING: Final = b"*1\r\n$6\r\nASKING\r\n"


def packed(*words: bytes) -> bytes:
    """A command as Redis takes it (RESP); a third of the time that redis-py needs, which takes words of any kind."""
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


class Ask:
    """One question. `repeatable`: it may be asked again when nobody knows whether it was carried out. `answer`: None
    once it has one, and for a probe. `asking`: to the node that a part of the keys is on its way to. `hops`: how often
    it was sent elsewhere."""

    __slots__ = ("answer", "asked_at", "asking", "command", "hops", "key", "kind", "repeatable", "slot")

    def __init__(
        self,
        kind: str,
        key: bytes,
        command: bytes,
        slot: int,
        repeatable: bool,
        asked_at: float,
        answer: "Deferred[Any] | None",
    ) -> None:
        self.kind = kind
        self.key = key
        self.command = command
        self.slot = slot
        self.repeatable = repeatable
        self.asked_at = asked_at
        self.answer = answer
        self.asking = False
        self.hops = 0


Told = Callable[["Lane", Ask, Any], None]
Lost = Callable[["Lane", list[Ask], BaseException, bool], None]


class Lane:
    """`told(lane, ask, reply)`: an answer, which may be a :class:`ResponseError`. `lost(lane, asks, error, sent)`: no
    answer will come. `broken_since`: when it was found that nothing comes of it, until something does; `probe`: key and
    slot that it was asked for then."""

    log = Logger()

    def __init__(self, host: str, port: int, connection: Connection, told: Told, lost: Lost) -> None:
        self.host = host
        self.port = port
        self.broken_since: float | None = None
        self.probe = (b"", 0)
        self._leaves = False
        self._is_busy = False
        self._connection = connection
        self._told = told
        self._lost = lost
        self._waiting: list[Ask] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, ask: Ask) -> None:
        self._waiting.append(ask)
        self._start()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._connection.disconnect(nowait=True)

    def leave(self) -> None:
        """What is under way ends, and then the connection."""
        self._leaves = True
        self._start()

    def _start(self) -> None:
        if not self._is_busy:
            self._is_busy = True
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(self._ended)

    async def _run(self) -> None:
        try:
            while True:
                if self._waiting:
                    batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
                    await self._exchange([ask for ask in batch if ask.answer is not None or ask.kind == PROBE])
                elif self._leaves and self._connection.is_connected:
                    await self._connection.disconnect(nowait=True)
                else:
                    break
        finally:
            self._is_busy = False

    def _ended(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.log.failure("the exchange with a node of the directory failed", Failure(error))

    async def _exchange(self, batch: list[Ask]) -> None:
        connection, answered = self._connection, 0
        if not connection.is_connected:
            try:
                async with asyncio.timeout(CONNECT_S):
                    await connection.connect()
            except FAILURES as error:
                self._lost(self, batch, error, False)
                return
        try:
            async with asyncio.timeout(ANSWER_S):
                commands = [ASKING + ask.command if ask.asking else ask.command for ask in batch]
                await connection.send_packed_command(b"".join(commands), check_health=False)
                for ask in batch:
                    if ask.asking:
                        await self._reply()
                    reply = await self._reply()
                    answered += 1
                    self._told(self, ask, reply)
        except FAILURES as error:
            await connection.disconnect(nowait=True)
            self._lost(self, batch[answered:], error, True)

    async def _reply(self) -> Any:
        try:
            return await self._connection.read_response(disable_decoding=True, timeout=math.inf)
        except ResponseError as refused:
            return refused
