"""What the store tells of keys that are watched: a subscription to a channel each, at any one node.

A cluster passes what is published to all its nodes. When the node is lost another is subscribed to; what was published
meanwhile nobody has heard, and that is said.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Any, Final

from redis.asyncio.connection import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure

from meshproto.net.redis_connection import CONNECT_S, FAILURES, failure_words
from meshproto.net.redis_lane import packed
from meshproto.net.redis_places import Places

QUIET_S: Final = 2.0
"""Without a word from the node it is asked for one; a second such time without an answer, and it is lost."""
AGAIN_S: Final = 0.1
AGAIN_S_MAX: Final = 2.0
AT_A_TIME: Final = 1000
"""Channels in one command: some 20 KiB."""


class News:
    """`changed(key)`: it was written; also once when a key begins to be heard, since it may have been written between
    the last look at it and that. `resumed()`: keys were not heard for a while."""

    log = Logger()

    def __init__(
        self, places: Places, prefix: bytes, changed: Callable[[str], None], resumed: Callable[[], None]
    ) -> None:
        self._places = places
        self._prefix = prefix
        self._changed = changed
        self._resumed = resumed
        self._keys: set[str] = set()
        self._wanted: dict[str, bool] = {}  # what the node has yet to be told: to begin, or to end
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._heard_before = False

    def watch(self, keys: Iterable[str]) -> None:
        self._want([key for key in keys if key not in self._keys], True)

    def unwatch(self, keys: Iterable[str]) -> None:
        self._want([key for key in keys if key in self._keys], False)

    def _want(self, keys: list[str], begin: bool) -> None:
        (self._keys.update if begin else self._keys.difference_update)(keys)
        self._wanted.update(dict.fromkeys(keys, begin))
        self._wake.set()
        if self._task is None and self._keys:
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(self._ended)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _ended(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.log.failure("the subscription to the directory failed", Failure(error))

    async def _run(self) -> None:
        wait_s = AGAIN_S
        while True:
            connection = self._places.connection()
            try:
                async with asyncio.timeout(CONNECT_S):
                    await connection.connect()
                wait_s = AGAIN_S
                await self._listen(connection)
            except* FAILURES as lost:
                words = failure_words(connection.host, connection.port, lost.exceptions[0])
                self.log.info("the directory's changes are not heard for a moment: {words}", words=words)
            finally:
                await connection.disconnect(nowait=True)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, AGAIN_S_MAX)

    async def _listen(self, connection: Connection) -> None:
        """Until the connection is lost."""
        self._wanted = dict.fromkeys(self._keys, True)
        again = set(self._keys) if self._heard_before else set[str]()
        if self._heard_before and not again:
            self._resumed()
        self._heard_before = True
        self._wake.set()
        async with asyncio.TaskGroup() as both:
            both.create_task(self._tell(connection))
            both.create_task(self._hear(connection, again))

    async def _tell(self, connection: Connection) -> None:
        """Which channels are wanted, as that changes."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            wanted, self._wanted = self._wanted, {}
            for begin, command in ((True, b"SUBSCRIBE"), (False, b"UNSUBSCRIBE")):
                keys = iter([self._prefix + key.encode() for key, how in wanted.items() if how is begin])
                while portion := list(itertools.islice(keys, AT_A_TIME)):
                    await connection.send_packed_command(packed(command, *portion), check_health=False)

    async def _hear(self, connection: Connection, again: set[str]) -> None:
        """`again`: what was heard before, over another connection."""
        asked = False
        while True:
            message: list[Any] | None = await connection.read_response(disable_decoding=True, timeout=QUIET_S)
            if message is None:
                if asked:
                    raise TimeoutError
                asked = True
                await connection.send_packed_command(packed(b"PING"), check_health=False)
                continue
            asked = False
            kind, channel = bytes(message[0]), message[1]
            key = bytes(channel or b"").removeprefix(self._prefix).decode()
            if kind == b"subscribe" and key in again:
                again.discard(key)
                if not again:
                    self._resumed()
            elif kind in (b"subscribe", b"message") and key in self._keys:
                self._changed(key)
