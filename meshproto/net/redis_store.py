"""A directory that several seeds share, in Redis or Valkey: a cluster, or a single server. Which node has what, and who
takes over when one is lost, is the business of redis-py.

Look-ups that come within one turn of the reactor go out together, a pipeline a node: each then costs a third.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.exceptions import AuthenticationError, AuthorizationError, RedisClusterException, RedisError
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.logger import Logger
from twisted.python.failure import Failure

from meshproto.errors import BadState, MeshError, Unavailable, quoted
from meshproto.net.clocks import Alarm
from meshproto.net.redis_address import RedisAddress
from meshproto.net.redis_counters import Counters

OPERATION_S: Final = 2.0
"""For an answer, whatever happens meanwhile: who looks a name up does not wait longer for one of several seeds."""
TOGETHER_MAX: Final = 256
"""Look-ups in one pipeline: some milliseconds of work, for the nodes and for this process."""
PIPELINES_MAX: Final = 8
"""Under way at a time to one node. While they are, others gather."""
COMMANDS_MAX: Final = 64
"""Others under way at a time, each on a connection of its own."""
WAITING_MAX: Final = 20_000
"""Operations that were not answered: a second's, and 20 MB."""
RETRY_AFTER_S: Final = 1.0
"""When to come back: a cluster takes some seconds to find out that a node is lost."""
CALM_S: Final = 1.0
"""So long nothing has to have failed for an outage to be over."""
AGAIN_S: Final = 0.5
"""Until a node is asked again to tell of changes."""
PREFIX: Final = b"mesh:"
IDENTITY_KEY: Final = b"mesh-directory"
"""No name's: those have a colon before them."""
REASON_CHARS_MAX: Final = 300
SWAP: Final = """\
local now = redis.call('GET', KEYS[1])
if (now and '=' .. now or '') ~= ARGV[1] then return 0 end
if ARGV[2] == '' then
    redis.call('DEL', KEYS[1])
else
    redis.call('SET', KEYS[1], string.sub(ARGV[2], 2), 'PX', ARGV[3])
end
redis.call('PUBLISH', KEYS[1], '')
return 1
"""
"""Compare, set, tell. A value stands behind an equals sign, no value is nothing at all."""

_WRONG: Final = (AuthenticationError, AuthorizationError)
"""What no waiting mends."""


_Wanted = tuple[bytes, "Deferred[bytes | None]"]


class _Lane:
    """What is wanted of one node, and how many pipelines are under way to it."""

    def __init__(self) -> None:
        self.wanted: deque[_Wanted] = deque()
        self.pipelines = 0


class RedisStore:
    """A :class:`meshproto.core.shared.SharedStore`. `reactor`: one on an asyncio loop, which runs when it is opened.
    `changed(key)`: a watched key was written, by whomever; also once when it begins to be watched. `resumed()`: after
    an outage, of commands or of what it is told: what was watched may have changed unheard. `ca`: who is trusted with
    TLS, in place of the system's."""

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
        self._options: dict[str, Any] = {
            "username": address.user,
            "password": address.password,
            "socket_timeout": OPERATION_S / 3,
            "socket_connect_timeout": OPERATION_S / 3,
        }
        if address.tls:
            self._options |= {"ssl": True, "ssl_ca_certs": None if ca is None else str(ca)}
        self._client: Redis | RedisCluster | None = None
        self._opening: asyncio.Task[None] | None = None
        self._swap: Any = None
        self._lanes: dict[str, _Lane] = {}
        self._is_gathering = False
        self._waiting = 0
        self._turns = DeferredSemaphore(COMMANDS_MAX)
        self._trouble: str | None = None
        self._failed_at = 0.0
        self._calm = Alarm(reactor, self._is_it_over)
        self._news = _News(self._connect_to_one, changed, self._heard_again)

    async def _open(self) -> None:
        """Find out who has what, once for all who ask meanwhile."""
        if self._client is not None:
            return
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._connect())
        opening = self._opening
        try:
            await asyncio.shield(opening)
        finally:
            if opening.done():
                self._opening = None

    async def _connect(self) -> None:
        nodes = [ClusterNode(host, port) for host, port in self._address.hosts]
        cluster = RedisCluster(startup_nodes=nodes, **self._options)
        client: Redis | RedisCluster = cluster
        try:
            await cluster.initialize()
        except RedisClusterException as reason:
            await cluster.aclose()
            if "cluster mode is not enabled" not in str(reason).lower():
                raise
            host, port = self._address.hosts[0]
            client = Redis(host=host, port=port, **self._options)
            await client.ping()
        except BaseException:
            await cluster.aclose()
            raise
        self._client, self._swap = client, client.register_script(SWAP)
        self._news.start()

    async def open(self) -> None:
        """Find out who has what; whoever asks something would do so too. Raises :class:`BadState` for what waiting does
        not mend, a wrong password say, and :class:`Unavailable` while nobody answers."""
        await self._run(self._open())

    # -- what it is asked ----------------------------------------------------------------------------------------

    def get(self, key: str) -> "Deferred[bytes | None]":
        self.counters.operations["get"] += 1
        found: Deferred[bytes | None] = Deferred()
        if self._waiting >= WAITING_MAX:
            found.errback(self._too_many())
            return found
        self._waiting += 1
        name = PREFIX + key.encode()
        self._lane_of(name).wanted.append((name, found))
        self._gather()
        return found

    def swap(self, key: str, before: bytes | None, after: bytes | None, ttl_ms: int) -> "Deferred[bool]":
        arguments = [_argument(before), _argument(after), ttl_ms]
        return self._ask("swap", lambda: self._swap(keys=[PREFIX + key.encode()], args=arguments)).addCallback(bool)

    def watch(self, keys: Iterable[str]) -> None:
        self._news.watch(keys)

    def unwatch(self, keys: Iterable[str]) -> None:
        self._news.unwatch(keys)

    def count(self) -> "Deferred[int]":
        """Of the whole store: it is the directory's alone."""

        async def counted() -> int:
            client: Any = self._client
            if isinstance(client, Redis):
                return int(await client.dbsize())
            return int(await client.dbsize(target_nodes=RedisCluster.PRIMARIES))

        return self._ask("count", counted)

    def read_all(self, take: Callable[[list[tuple[str, bytes]]], None]) -> "Deferred[None]":
        """All that stands there, a page at a time, in no order; what is written meanwhile may be among it or not."""

        async def read() -> None:
            await self._in_time(self._open())
            client: Any = self._client
            names: list[bytes] = []
            async for name in client.scan_iter(match=PREFIX + b"*", count=TOGETHER_MAX):
                names.append(name)
                if len(names) >= TOGETHER_MAX:
                    take(await self._page(names))
                    names = []
            take(await self._page(names))

        return Deferred.fromFuture(asyncio.ensure_future(read()))

    async def _page(self, names: list[bytes]) -> list[tuple[str, bytes]]:
        found = await self._in_time(self._get(names)) if names else []
        for value in found:
            if isinstance(value, Exception):
                raise self._troubled(_words(value))
        pairs = zip(names, found, strict=True)
        return [(name.removeprefix(PREFIX).decode(), value) for name, value in pairs if value is not None]

    def identity(self) -> "Deferred[str]":
        async def identified() -> str:
            client: Any = self._client
            await client.set(IDENTITY_KEY, os.urandom(16).hex(), nx=True)
            return str((await client.get(IDENTITY_KEY)).decode("ascii"))

        return self._ask("identity", identified)

    async def close(self) -> None:
        self._news.stop()
        self._calm.stop()
        if self._opening is not None:
            self._opening.cancel()
        if self._client is not None:
            await Deferred.fromFuture(asyncio.ensure_future(self._client.aclose()))

    # -- how it goes ---------------------------------------------------------------------------------------------

    def _lane_of(self, name: bytes) -> "_Lane":
        """To the node that has the name, as far as that is known: one that does not answer holds up nobody else."""
        node, client = "", self._client
        if isinstance(client, RedisCluster):
            slot = client.keyslot(name)
            with suppress(RedisError):  # nobody has that part; the client finds out who does
                node = client.nodes_manager.get_node_from_slot(slot).name
        return self._lanes.setdefault(node, _Lane())

    def _gather(self) -> None:
        if not self._is_gathering:
            self._is_gathering = True
            self._reactor.callLater(0, self._look_up)

    def _look_up(self) -> None:
        """All that is wanted by now, as long as not too much is under way."""
        self._is_gathering = False
        for node, lane in list(self._lanes.items()):
            while lane.wanted and lane.pipelines < PIPELINES_MAX:
                some = [lane.wanted.popleft() for _ in range(min(TOGETHER_MAX, len(lane.wanted)))]
                lane.pipelines += 1
                work = self._run(self._get([name for name, _ in some]))
                work.addCallbacks(self._looked_up, self._not_looked_up, callbackArgs=(some,), errbackArgs=(some,))
                work.addBoth(self._looked, lane, len(some))
            if not (lane.wanted or lane.pipelines):
                del self._lanes[node]

    async def _get(self, names: list[bytes]) -> list[Any]:
        await self._open()
        client: Any = self._client
        if len(names) == 1:  # a pipeline costs three times as much as what is alone in it
            return [await client.get(names[0])]
        pipeline = client.pipeline(transaction=False) if isinstance(client, Redis) else client.pipeline()
        for name in names:
            pipeline.get(name)
        return list(await pipeline.execute(raise_on_error=False))

    def _looked_up(self, values: list[Any], some: "list[_Wanted]") -> None:
        wrong = next((value for value in values if isinstance(value, Exception)), None)
        if wrong is not None:
            self._troubled(_words(wrong))
        for (_, found), value in zip(some, values, strict=True):
            found.callback(Failure(self._unavailable(_words(value))) if isinstance(value, Exception) else value)

    def _not_looked_up(self, failure: Failure, some: "list[_Wanted]") -> None:
        for _, found in some:
            found.errback(failure.value)

    def _looked(self, _: None, lane: "_Lane", many: int) -> None:
        self._waiting -= many
        lane.pipelines -= 1
        self._gather()

    def _ask(self, kind: str, command: Callable[[], Coroutine[Any, Any, Any]]) -> "Deferred[Any]":
        self.counters.operations[kind] += 1
        if self._waiting >= WAITING_MAX:
            refused: Deferred[Any] = Deferred()
            refused.errback(self._too_many())
            return refused

        async def asked() -> Any:
            await self._open()
            return await command()

        def over(result: Any) -> Any:
            self._waiting -= 1
            return result

        self._waiting += 1
        return self._turns.run(self._run_later, asked).addBoth(over)

    def _run_later(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> "Deferred[Any]":
        return self._run(work())

    def _run(self, work: Coroutine[Any, Any, Any]) -> "Deferred[Any]":
        """Fails with :class:`Unavailable` when it takes too long, or does not work; with :class:`BadState` for what no
        waiting mends."""
        return Deferred.fromFuture(asyncio.ensure_future(self._in_time(work)))

    async def _in_time(self, work: Coroutine[Any, Any, Any]) -> Any:
        began = self._reactor.seconds()
        try:
            result = await asyncio.wait_for(work, OPERATION_S)
        except _WRONG as wrong:
            raise BadState(f"the directory at {self._address}: {_words(wrong)}") from None
        except TimeoutError:
            self.counters.errors["slow"] += 1
            raise self._troubled(f"no answer within {OPERATION_S:g} s") from None
        except (RedisError, OSError) as error:
            self.counters.errors["gone"] += 1
            raise self._troubled(_words(error)) from None
        self.counters.took(self._reactor.seconds() - began)
        return result

    def _troubled(self, why: str) -> MeshError:
        if self._trouble is None:
            self.counters.outages += 1
            self.log.warn("the directory at {address}: {why}", address=self._address, why=why)
        self._trouble = why
        self._failed_at = self._reactor.seconds()
        self._calm.at(self._failed_at + CALM_S)
        return self._unavailable(why)

    def _is_it_over(self) -> None:
        """Nothing has failed for a while; perhaps because nothing was asked. Of a cluster that lost a node one part may
        answer all the time, and another not."""
        calm_at = self._failed_at + CALM_S
        if calm_at > self._reactor.seconds():
            self._calm.at(calm_at)
        else:
            self.count().addCallbacks(self._is_over, lambda failure: failure.trap(MeshError))

    def _is_over(self, _: int) -> None:
        if self._failed_at + CALM_S > self._reactor.seconds():
            return  # something has failed meanwhile, and is looked after
        self.log.info("the directory at {address} answers again", address=self._address)
        self._trouble = None
        self._resumed()

    def _too_many(self) -> MeshError:
        self.counters.errors["busy"] += 1
        return self._unavailable(f"{WAITING_MAX} operations wait for it")

    def _unavailable(self, why: str) -> MeshError:
        return Unavailable(f"the directory at {self._address}: {why}", retry_after_s=RETRY_AFTER_S)

    # -- what it is told -----------------------------------------------------------------------------------------

    def _connect_to_one(self, number: int) -> Redis:
        """A connection of its own to some node, another one each time: all nodes tell of what was published at one."""
        client = self._client
        places = list(self._address.hosts)
        if isinstance(client, RedisCluster):
            places = [(str(node.host), int(node.port)) for node in client.get_nodes()] or places
        host, port = places[number % len(places)]
        options = {**self._options, "socket_timeout": None}  # it may be silent for long
        return Redis(host=host, port=port, health_check_interval=ceil(OPERATION_S), **options)

    def _heard_again(self) -> None:
        self._reactor.callLater(0, self._resumed)


class _News:
    """What nodes tell of names that were written: from one of them, and from another when that is gone."""

    log = Logger()

    def __init__(
        self, connect: Callable[[int], Redis], changed: Callable[[str], None], resumed: Callable[[], None]
    ) -> None:
        self._connect = connect
        self._changed = changed
        self._resumed = resumed
        self._watched: set[bytes] = set()
        self._to_tell: deque[tuple[str, list[bytes]]] = deque()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        if not self._tasks:
            self._tasks = [asyncio.ensure_future(self._listen())]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def watch(self, keys: Iterable[str]) -> None:
        self._say("subscribe", [PREFIX + key.encode() for key in keys])

    def unwatch(self, keys: Iterable[str]) -> None:
        self._say("unsubscribe", [PREFIX + key.encode() for key in keys])

    def _say(self, what: str, names: list[bytes]) -> None:
        if not names:
            return
        (self._watched.update if what == "subscribe" else self._watched.difference_update)(names)
        self._to_tell.append((what, names))
        self._wake.set()

    async def _listen(self) -> None:
        number, began = 0, False
        while True:
            client = self._connect(number)
            pubsub = client.pubsub(ignore_subscribe_messages=False)
            talking: asyncio.Task[None] | None = None
            try:
                self._to_tell.clear()
                await pubsub.subscribe(IDENTITY_KEY, *self._watched)
                talking = asyncio.ensure_future(self._talk(pubsub))
                if began:
                    self._resumed()
                began = True
                async for message in pubsub.listen():
                    if message["type"] in ("message", "subscribe") and message["channel"] != IDENTITY_KEY:
                        self._changed(message["channel"].removeprefix(PREFIX).decode())
            except (RedisError, OSError) as error:
                self.log.info("nobody tells of changes: {why}", why=_words(error))
            finally:
                if talking is not None:
                    talking.cancel()
                await pubsub.aclose()
                await client.aclose()
            number += 1
            await asyncio.sleep(AGAIN_S)

    async def _talk(self, pubsub: Any) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._to_tell:
                what, names = self._to_tell.popleft()
                await getattr(pubsub, what)(*names)


def _argument(value: bytes | None) -> bytes:
    return b"" if value is None else b"=" + value


def _words(error: BaseException) -> str:
    return quoted(f"{error}" or type(error).__name__, REASON_CHARS_MAX)
