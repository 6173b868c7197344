"""The fake world: any number of seeds and user nodes, with their real services, on one fake clock and a network in
memory. What happens in it depends on its seed alone.

    world = World(seed=1)
    world.add_seed("seedX")
    world.add_seed("seedY", peers=["seedX"])
    world.add_user("UserX", seeds=["seedX"])
    world.run(2)
    answer = world.post("Bobby", "/send", {"to": "UserX", "message": "Hello"})

Each node lives on a host of its own, with an address of its own and the ports 5001 (seeds) and 3000 (users). A call of
:meth:`World.settle` carries bytes until nothing moves any more, without time going by; :meth:`World.run` lets time go
by from one timer to the next.
"""

import heapq
import itertools
import json
import random
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import treq
from msgspec import UNSET
from nacl.public import PrivateKey
from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionLost, ConnectionRefusedError, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport
from twisted.web.client import URI
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from meshproto import wire
from meshproto.core.identity import KEY_BYTES, MAIL_KEYS_KEPT, Identity
from meshproto.core.seed import Seed, Settings
from meshproto.net import seed_store, user_store
from meshproto.net.courier import http_client, http_pool
from meshproto.net.database_file import connect
from meshproto.net.lines import LinesFactory
from meshproto.net.node import UserNode
from meshproto.net.seeding import SeedService
from meshproto.net.store import ClockedDatabase, Database
from tests.disk import SlowDatabase, Trouble, TroubledConnection, bring_to_light

SEED_PORT = 5001
USER_PORT = 3000
EPOCH_S = 1_795_000_000.0
"""When the world begins: seconds since 1970 UTC."""
ROUNDS_MAX = 20_000
"""Rounds in which bytes may move without time going by; more is a loop."""

_worlds = itertools.count(1)


class Answer(NamedTuple):
    """An HTTP answer; `json` is what the body reads as."""

    code: int
    headers: dict[str, str]
    json: Any


class _Clock(Clock):
    """Twisted's sorts all its calls each time it is looked at; this one keeps them in a heap. A call that was put off
    or cancelled stays in its place until that is reached."""

    def __init__(self) -> None:
        super().__init__()
        self._heap: list[tuple[float, int, DelayedCall]] = []
        self._order = itertools.count()

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kwargs: object) -> DelayedCall:
        call = DelayedCall(self.rightNow + delay, callable, args, kwargs, lambda _: None, self._push, self.seconds)
        self._push(call)
        return call

    def getDelayedCalls(self) -> list[DelayedCall]:
        return list({id(call): call for _, _, call in self._heap if call.active()}.values())

    @property
    def next_at(self) -> float | None:
        """When the next call is due, if there is one."""
        while self._heap:
            at, _, call = self._heap[0]
            if call.active() and call.getTime() <= at:
                return at
            heapq.heappop(self._heap)
            if call.active():
                self._push(call)
        return None

    def advance(self, amount: float) -> None:
        self.rightNow += amount
        while (at := self.next_at) is not None and at <= self.rightNow:
            _, _, call = heapq.heappop(self._heap)
            call.called = 1
            call.func(*call.args, **call.kw)

    def _push(self, call: DelayedCall) -> None:
        heapq.heappush(self._heap, (call.getTime(), next(self._order), call))


@implementer(IReactorTime)
class Host(MemoryReactor):
    """One machine: a reactor whose sockets the world connects and whose timers end with it."""

    def __init__(self, name: str, ip: str, clock: Clock) -> None:
        super().__init__()
        self.name = name
        self.ip = ip
        self._clock = clock
        self._calls: list[IDelayedCall] = []
        self._calls_max = 10  # past that those that are over are thrown away
        self.ahead_s = 0.0

    def seconds(self) -> float:
        return float(self._clock.seconds())

    def now_ms(self) -> int:
        """What the machine takes for the time of day: `ahead_s` of the world's."""
        return int((self.seconds() + self.ahead_s) * 1000)

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object) -> IDelayedCall:
        if len(self._calls) > self._calls_max:
            self._calls = self.getDelayedCalls()
            self._calls_max = 2 * len(self._calls) + 10
        made: IDelayedCall = self._clock.callLater(delay, callable, *args, **kwargs)
        self._calls.append(made)
        return made

    def getDelayedCalls(self) -> list[IDelayedCall]:
        return [call for call in self._calls if call.active()]

    def die(self) -> list[object]:
        """What was running is held by what is returned: whoever waits in it must not be woken by being collected."""
        calls = [call for call in self.getDelayedCalls() if isinstance(call, DelayedCall)]
        held: list[object] = [*self.tcpClients, *self.tcpServers, *((call.func, call.args, call.kw) for call in calls)]
        for call in calls:
            call.cancel()
        self.tcpClients.clear()
        self.connectors.clear()
        self.tcpServers.clear()
        return held


class _Transport(FakeTransport):
    """An abort loses what was not sent yet, as a reset does."""

    def abortConnection(self) -> None:
        self.stream = []
        self.disconnecting = True


class Wire:
    """One connection between two hosts. Bytes take `latency_s` from one end to the other; to connect, and to learn that
    the other end has closed, takes no time."""

    def __init__(
        self,
        dialler: Host,
        listener: Host,
        client: Any,
        server: Any,
        ports: tuple[int, int],
        clock: Clock,
        latency_s: float,
    ) -> None:
        self._clock = clock
        self._latency_s = latency_s
        self.ends = (dialler.name, listener.name)
        here, there = _address(dialler.ip, ports[0]), _address(listener.ip, ports[1])
        self.client = _Transport(client, False, here, there)
        self.server = _Transport(server, True, there, here)
        self._coming: dict[FakeTransport, deque[tuple[float, bytes]]] = {self.client: deque(), self.server: deque()}
        server.makeConnection(self.server)
        client.makeConnection(self.client)

    def carry(self, sends: bool, answers: bool) -> bool:
        """Move what is there to move once; whether anything moved. `sends`: the network carries what the client's side
        sends, `answers`: what the server's does. Bytes and the news that a side has closed need the network; a side
        that closes knows it by itself."""
        moved = False
        now = self._clock.seconds()
        ways = ((self.client, self.server, sends, answers), (self.server, self.client, answers, sends))
        for source, target, there, _ in ways:
            coming = self._coming[target]
            if there and source.stream and (data := source.getOutBuffer()):
                moved = True
                coming.append((now + self._latency_s, data))
                if self._latency_s:
                    self._clock.callLater(self._latency_s, _arrives)
            while coming and coming[0][0] <= now:
                moved = True
                _, data = coming.popleft()
                if not target.disconnected:
                    target.bufferReceived(data)
        if moved:
            return True
        for source, target, _, back in ways:
            learns = target.disconnected and back and not self._coming[source]
            if not source.disconnected and (source.disconnecting or learns):
                source.disconnecting = source.disconnected = True
                source.reportDisconnect()
                return True
        return False

    def reset(self, share: float) -> None:
        """The connection breaks, for both sides: this share of the bytes under way still arrives."""
        for source, target in ((self.client, self.server), (self.server, self.client)):
            data = source.getOutBuffer() or b""
            arrives = data[: int(len(data) * share)]
            if arrives and not target.disconnected:
                target.bufferReceived(arrives)
        for end in (self.client, self.server):
            end.stream = []
            end.disconnecting = True
            end.disconnectReason = ConnectionLost()  # type: ignore[assignment]

    @property
    def busy(self) -> bool:
        """There is something to carry, or to tell a side."""
        one, other = self.client, self.server
        moving = one.stream or other.stream or self._coming[one] or self._coming[other]
        return bool(moving or one.disconnecting or other.disconnecting)

    def end_at(self, name: str) -> FakeTransport:
        return self.client if self.ends[0] == name else self.server

    @property
    def over(self) -> bool:
        return bool(self.client.disconnected and self.server.disconnected)


class _SeedPlan(NamedTuple):
    peers: list[str]
    settings: Settings


class _UserPlan(NamedTuple):
    seeds: list[str]


class World:
    """`latency_s`: how long bytes take from one host to another."""

    def __init__(self, seed: int = 0, latency_s: float = 0.0) -> None:
        self.seed = seed
        self.latency_s = latency_s
        self.rng = random.Random(seed)
        self.clock = _Clock()
        self.clock.advance(EPOCH_S)
        self.hosts: dict[str, Host] = {}
        self.seeds: dict[str, SeedService] = {}
        self.cores: dict[str, Seed] = {}
        self.users: dict[str, UserNode] = {}
        self.identities: dict[str, Identity] = {}
        self._plans: dict[str, _SeedPlan | _UserPlan] = {}
        self._wires: list[Wire] = []
        self._mute: set[tuple[str, str]] = set()
        self.troubles: dict[str, Trouble] = {}
        self._databases: dict[str, sqlite3.Connection] = {}
        self._open: dict[str, sqlite3.Connection] = {}
        self._crashed: list[object] = []
        self._number = next(_worlds)
        self._ports = itertools.count(40_000)
        self.connections = 0
        self.laptop = self._host("laptop")
        self._client = http_client(self.laptop, http_pool(self.laptop), _Endpoints(self.laptop))

    # -- who is there --------------------------------------------------------------------------------------------

    def add_seed(self, name: str, peers: Iterable[str] = (), settings: Settings | None = None) -> None:
        self._plans[name] = _SeedPlan(list(peers), settings or Settings())
        self._host(name)
        self._start_seed(name)

    def add_user(self, name: str, seeds: Iterable[str]) -> None:
        self._plans[name] = _UserPlan(list(seeds))
        self._host(name)
        self.identities[name] = Identity.create(self.rng.randbytes, int(self.clock.seconds() * 1000))
        self._start_user(name)

    def address(self, name: str) -> str:
        """HOST:PORT of a seed."""
        return f"{self.hosts[name].ip}:{SEED_PORT}"

    def crash(self, name: str) -> None:
        """The process dies between two steps: what was not committed is gone, its connections are reset."""
        self._crashed.append(self.seeds.pop(name, None) or self.users.pop(name, None))
        self._crashed += self.hosts[name].die()
        self._open.pop(name).close()
        bring_to_light(self.troubles[name], self._databases[name])
        for wire_ in [wire_ for wire_ in self._wires if name in wire_.ends]:
            mine = wire_.end_at(name)
            mine.disconnecting = mine.disconnected = True
            mine.stream = []
            self._crashed.append(mine)
            other = wire_.client if mine is wire_.server else wire_.server
            other.disconnectReason = ConnectionLost()  # type: ignore[assignment]

    def stop(self, name: str) -> None:
        """The process ends in good order (SIGTERM)."""
        node = self.users.get(name) or self.seeds[name]
        self.hosts[name].tcpServers.clear()
        self.wait(node.stopService())
        self.crash(name)

    def restart(self, name: str, settings: Settings | None = None) -> None:
        """The process starts again, on its disk, after the others have learnt that its connections are gone. A seed may
        be given other settings."""
        self.settle()
        plan = self._plans[name]
        if isinstance(plan, _SeedPlan):
            self._plans[name] = _SeedPlan(plan.peers, settings or plan.settings)
        self.start(name)

    def start(self, name: str) -> None:
        """The process starts again, at once: others may still take its connections for alive."""
        (self._start_seed if isinstance(self._plans[name], _SeedPlan) else self._start_user)(name)

    def runs(self, name: str) -> bool:
        return name in self.users or name in self.seeds

    def rotate(self, name: str) -> None:
        """A user who is down gets a new mail key; those before are kept as long as a node keeps them."""
        former = self.identities[name]
        keys = (PrivateKey(self.rng.randbytes(KEY_BYTES)), *former.mail_keys)[:MAIL_KEYS_KEPT]
        made_at_ms = (self.hosts[name].now_ms(), *former.made_at_ms)[:MAIL_KEYS_KEPT]
        self.identities[name] = Identity(former.signing, keys, made_at_ms)

    def forget_disk(self, *names: str) -> None:
        """The disks of nodes that are down are lost."""
        for name in names:
            self._databases.pop(name).close()

    def cut(self, one: str, other: str) -> None:
        """Nothing gets through between the two any more, and nobody is told."""
        self._mute |= {(one, other), (other, one)}

    def mute(self, speaker: str, hearer: str) -> None:
        """What one host sends does not reach the other any more, and nobody is told; what comes back does."""
        self._mute.add((speaker, hearer))

    def reset(self, one: str, other: str, share: float = 0.0) -> None:
        """The connections between the two break, after this share of the bytes under way has arrived."""
        for wire_ in [wire_ for wire_ in self._wires if set(wire_.ends) == {one, other}]:
            wire_.reset(share)

    def heal(self) -> None:
        """Everything gets through again; connections whose sides have given up are gone."""
        self._mute.clear()

    def close(self) -> None:
        """The world ends: nothing is left of its disks."""
        for connection in (*self._open.values(), *self._databases.values()):
            connection.close()

    # -- as time goes by -----------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Carry bytes until nothing moves, without time going by."""
        self.step_until(lambda: False)

    def step_until(self, condition: Callable[[], bool]) -> None:
        """Like :meth:`settle`, but stop between two steps when the condition holds."""
        for _ in range(ROUNDS_MAX):
            self.clock.advance(0)
            if condition() or not self._move():
                return
        raise AssertionError(f"the world with seed {self.seed} does not come to rest")

    def step(self) -> bool:
        """One step, without time going by; False: there was nothing to do."""
        self.clock.advance(0)
        return self._move()

    def run(self, seconds: float) -> None:
        """Let time go by, from one timer to the next."""
        end = self.clock.seconds() + seconds
        self.settle()
        while (now := self.clock.seconds()) < end:
            upcoming = self.clock.next_at
            self.clock.advance(max(0.0, (end if upcoming is None else min(upcoming, end)) - now))
            self.settle()

    def run_until(self, condition: Callable[[], bool], seconds_max: float = 60.0) -> float:
        """Let time go by until the condition holds; how many seconds that took."""
        start = self.clock.seconds()
        self.settle()
        while not condition():
            upcoming = self.clock.next_at
            assert upcoming is not None, "nothing will happen any more"
            self.clock.advance(max(0.0, upcoming - self.clock.seconds()))
            self.settle()
            took = self.clock.seconds() - start
            assert took <= seconds_max, f"not within {seconds_max} s (world seed {self.seed})"
        return float(self.clock.seconds() - start)

    # -- talking to nodes ----------------------------------------------------------------------------------------

    def request(self, method: str, user: str, path: str, body: Any = None, **headers: str) -> "Deferred[Answer]":
        """An HTTP request from the laptop; `body`: bytes as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        url = f"http://{self.hosts[user].ip}:{USER_PORT}{path}"
        sent = self._client.request(method, url, data=data, headers=headers, reactor=self.laptop)  # type: ignore[attr-defined]

        def read(response: Any) -> Deferred[Answer]:
            answered: Deferred[bytes] = treq.content(response)
            named = {name.decode().lower(): values[0].decode() for name, values in response.headers.getAllRawHeaders()}
            return answered.addCallback(lambda text: Answer(response.code, named, json.loads(text) if text else None))

        return sent.addCallback(read)  # type: ignore[no-any-return]

    def ask(self, method: str, user: str, path: str, body: Any = None, **headers: str) -> Answer:
        answer: Answer = self.wait(self.request(method, user, path, body, **headers))
        return answer

    def get(self, user: str, path: str, **headers: str) -> Answer:
        return self.ask("GET", user, path, **headers)

    def post(self, user: str, path: str, body: Any, **headers: str) -> Answer:
        return self.ask("POST", user, path, body, **headers)

    def send(self, sender: str, to: str, message: Any, **more: Any) -> Answer:
        return self.post(sender, "/send", {"to": to, "message": message, **more})

    def inbox(self, user: str) -> list[Any]:
        """The texts in a user's inbox, oldest first."""
        return [message["message"] for message in self._messages(user)]

    def wait(self, pending: "Deferred[Any]", seconds_max: float = 60.0) -> Any:
        """The result, after as much time as it takes."""
        results: list[Any] = []
        pending.addBoth(results.append)
        self.run_until(lambda: bool(results), seconds_max)
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    def registered(self) -> bool:
        """Whether every user that runs is at home somewhere."""
        return all(user.seeds.home is not None for user in self.users.values())

    def lookup(self, seed: str, name: str) -> wire.LookupResult | None:
        """What a seed answers, asked without a connection."""
        core = self.cores[seed]
        link = -1
        core.opened(link, "")
        request = wire.Lookup(jsonrpc="2.0", id=1, params=wire.NameParams(name))
        effects = core.receive(link, request, self.clock.seconds())
        core.closed(link, self.clock.seconds())
        answer = wire.decode_answer(effects[-1].line)  # type: ignore[union-attr]
        return None if answer.result is UNSET else wire.decode_value(answer.result, wire.LookupResult)

    def on_disk(self, name: str, query: str) -> Any:
        """The first value that a query of a node's database gives: what would survive a crash."""
        return self._databases[name].execute(query).fetchone()[0]

    def _messages(self, user: str) -> Iterator[Any]:
        after = 0
        while page := self.get(user, f"/inbox?after={after}&limit=1000").json["messages"]:
            yield from page
            after = page[-1]["cursor"]

    # -- inside --------------------------------------------------------------------------------------------------

    def _host(self, name: str) -> Host:
        number = len(self.hosts) + 1
        self.hosts[name] = Host(name, f"10.0.{number // 250}.{number % 250 + 1}", self.clock)
        self.troubles[name] = Trouble(random.Random(f"{self.seed} {name}'s disk"))
        return self.hosts[name]

    def _connection(self, name: str, schema: str, version: int) -> sqlite3.Connection:
        where = f"file:world{self._number}-{name}?mode=memory&cache=shared"
        self._databases.setdefault(name, sqlite3.connect(where, uri=True))  # keeps the disk while the node is down
        self._open[name] = connect(where, schema, version)
        return self._open[name]

    def _database(self, name: str, connection: sqlite3.Connection) -> Database:
        host, trouble = self.hosts[name], self.troubles[name]
        troubled = cast(sqlite3.Connection, TroubledConnection(connection, trouble))
        return SlowDatabase(ClockedDatabase(troubled, host), host, trouble)

    def _start_seed(self, name: str) -> None:
        host, plan = self.hosts[name], self._plans[name]
        assert isinstance(plan, _SeedPlan)
        connection = self._connection(name, seed_store.SCHEMA, seed_store.SCHEMA_VERSION)
        core = Seed(
            name,
            self.address(name),
            now=self.clock.seconds(),
            rng=random.Random(self.rng.random()),
            entropy=self.rng.randbytes,
            settings=plan.settings,
            entries=seed_store.read_entries(connection),
            peers=[*(self.address(peer) for peer in plan.peers), *seed_store.read_peers(connection)],
        )
        store = seed_store.SeedStore(self._database(name, connection))
        service = SeedService(core, store, host, _dial(host))
        host.listenTCP(SEED_PORT, LinesFactory(service.link, host))
        self.seeds[name], self.cores[name] = service, core
        service.startService()

    def _start_user(self, name: str) -> None:
        host, plan = self.hosts[name], self._plans[name]
        assert isinstance(plan, _UserPlan)
        connection = self._connection(name, user_store.SCHEMA, user_store.SCHEMA_VERSION)
        node = UserNode(
            name,
            self.identities[name],
            uris=lambda: [f"http://{host.ip}:{USER_PORT}"],
            seeds=[self.address(seed) for seed in plan.seeds],
            store=user_store.UserStore(self._database(name, connection)),
            start=user_store.read_start(connection),
            client=http_client(host, http_pool(host), _Endpoints(host)),
            connect=_dial(host),
            reactor=host,
            now_ms=host.now_ms,
            rng=random.Random(self.rng.random()),
            entropy=self.rng.randbytes,
        )
        host.listenTCP(USER_PORT, node.site)
        self.users[name] = node
        node.startService()

    def _move(self) -> bool:
        return self._connect_one() or self._carry_all() or self._due()

    def _hears(self, hearer: str, speaker: str) -> bool:
        return (speaker, hearer) not in self._mute

    def _connect_one(self) -> bool:
        for host in self.hosts.values():
            if host.tcpClients:
                ip, port, factory, timeout_s, _ = host.tcpClients.pop(0)
                connector = host.connectors.pop(0)
                if not connector.stoppedConnecting:
                    self._connect(host, connector, ip, port, factory, timeout_s)
                return True
        return False

    def _connect(self, host: Host, connector: Any, ip: str, port: int, factory: Any, timeout_s: float) -> None:
        there = [other for other in self.hosts.values() if other.ip == ip]  # who is down may have lost the address
        target = next((other for other in there if other.tcpServers), there[0] if there else None)
        if target is not None and {(host.name, target.name), (target.name, host.name)} & self._mute:
            host.callLater(timeout_s, factory.clientConnectionFailed, connector, Failure(TimeoutError()))
            return
        wanted = getattr(factory, "wanted", None)  # a client that means this node, and nobody who came to live there
        if target is not None and wanted not in (None, target.name):
            target = None
        servers = [server for server in target.tcpServers if server[0] == port] if target else []
        if target is None or not servers:
            factory.clientConnectionFailed(connector, Failure(ConnectionRefusedError()))
            return
        client = factory.buildProtocol(_address(ip, port))
        ports = (next(self._ports), port)
        server = servers[0][1].buildProtocol(_address(host.ip, ports[0]))
        if client is not None:
            self.connections += 1
            self._wires.append(Wire(host, target, client, server, ports, self.clock, self.latency_s))

    def _carry_all(self) -> bool:
        moved = False
        for wire_ in list(self._wires):
            if wire_.busy:
                dialler, listener = wire_.ends
                moved = wire_.carry(self._hears(listener, dialler), self._hears(dialler, listener)) or moved
        self._wires = [wire_ for wire_ in self._wires if not wire_.over]
        return moved

    def _due(self) -> bool:
        upcoming = self.clock.next_at
        return upcoming is not None and upcoming <= self.clock.seconds()


def _arrives() -> None:
    """A moment at which time must stop, since bytes are there."""


def _address(ip: str, port: int) -> Any:
    from twisted.internet.address import IPv4Address

    return IPv4Address("TCP", ip, port)


def _dial(host: Host) -> Callable[[str], IStreamClientEndpoint]:
    def dial(address: str) -> IStreamClientEndpoint:
        return TCP4ClientEndpoint(host, *wire.split_address(address), timeout=5)

    return dial


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Agent's way to an endpoint, without name resolution."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        return TCP4ClientEndpoint(self._host, uri.host.decode("ascii"), uri.port, timeout=5)
