"""The network under the fake world: machines with reactors and clocks of their own, and connections between them that
carry bytes when they are told to, slowly, in one direction, or not at all.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionLost, ConnectionRefusedError, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport
from twisted.web.client import URI
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from meshproto import wire

EPOCH_S = 1_795_000_000.0
"""When the world begins: seconds since 1970 UTC."""
ROUNDS_MAX = 20_000
"""Rounds in which bytes may move without time going by; more is a loop."""


class HeapClock(Clock):
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

    def now(self) -> float:
        """What the machine takes for the time of day: `ahead_s` of the world's."""
        return self.seconds() + self.ahead_s

    def now_ms(self) -> int:
        return int(self.now() * 1000)

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


class _TurnedAway(Protocol):
    """In place of a protocol that a factory did not build."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()


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


class Network:
    """Hosts, their connections, and the time they live in. `seed`: what to tell of when it does not come to rest;
    `latency_s`: how long bytes take from one host to another."""

    def __init__(self, seed: int = 0, latency_s: float = 0.0) -> None:
        self.seed = seed
        self.latency_s = latency_s
        self.clock = HeapClock()
        self.clock.advance(EPOCH_S)
        self.hosts: dict[str, Host] = {}
        self.connections = 0
        self._wires: list[Wire] = []
        self._mute: set[tuple[str, str]] = set()
        self._ports = itertools.count(40_000)

    def add_host(self, name: str) -> Host:
        number = len(self.hosts) + 1
        self.hosts[name] = Host(name, f"10.0.{number // 250}.{number % 250 + 1}", self.clock)
        return self.hosts[name]

    def vanish(self, name: str) -> list[object]:
        """A host's process is gone with its connections, which are reset. What was running is held by what is
        returned."""
        held = self.hosts[name].die()
        for wire_ in [wire_ for wire_ in self._wires if name in wire_.ends]:
            mine = wire_.end_at(name)
            mine.disconnecting = mine.disconnected = True
            mine.stream = []
            held.append(mine)
            other = wire_.client if mine is wire_.server else wire_.server
            other.disconnectReason = ConnectionLost()  # type: ignore[assignment]
        return held

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

    def wait(self, pending: "Deferred[Any]", seconds_max: float = 60.0) -> Any:
        """The result, after as much time as it takes."""
        results: list[Any] = []
        pending.addBoth(results.append)
        self.run_until(lambda: bool(results), seconds_max)
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    # -- inside --------------------------------------------------------------------------------------------------

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
        server = servers[0][1].buildProtocol(_address(host.ip, ports[0])) or _TurnedAway()
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
    return IPv4Address("TCP", ip, port)


def dial_from(host: Host) -> Callable[[str], IStreamClientEndpoint]:
    def dial(address: str) -> IStreamClientEndpoint:
        return TCP4ClientEndpoint(host, *wire.split_address(address), timeout=5)

    return dial


@implementer(IAgentEndpointFactory)
class Endpoints:
    """Agent's way to an endpoint, without name resolution."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        return TCP4ClientEndpoint(self._host, uri.host.decode("ascii"), uri.port, timeout=5)
