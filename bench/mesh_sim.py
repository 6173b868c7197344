"""Many seeds in one process: the real :class:`meshproto.core.seed.Seed` on a fake clock and a fake network.

Links have latency; exchanges are lost, seeds stall, die, are cut off and come back, all drawn from one seed, so a run
can be repeated. Bytes are counted as they would go over the wire. There is no Twisted here: an effect of a core becomes
an event in a heap.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from msgspec import UNSET

from meshproto import wire
from meshproto.core.identity import Identity
from meshproto.core.seed import Effect, Exchange, Push, Save, Seed, Send
from meshproto.wire import EntryValue, GossipParams, GossipResult

EPOCH_S: Final = 1_795_000_000.0
CALL_TIMEOUT_S: Final = 5.0
USER_LINK: Final = 1
"""The link over which a simulated seed's users register; links of other seeds have higher numbers."""


@dataclass
class Node:
    """One seed of the simulation. `dead`: its process does not run; `stalled_until`: its reactor does nothing."""

    name: str
    address: str
    core: Seed
    disk: dict[str, EntryValue] = field(default_factory=dict)
    links: dict[str, int] = field(default_factory=dict)
    dead: bool = False
    life: int = 0
    stalled_until: float = 0.0
    wake_at: float = float("inf")
    sent_bytes: int = 0
    received_bytes: int = 0


class Mesh:
    def __init__(self, seed: int, *, latency_s: float = 0.01, loss: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.now = EPOCH_S
        self.latency_s = latency_s
        self.loss = loss
        self.nodes: dict[str, Node] = {}
        self._by_address: dict[str, Node] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count(2)
        self._cuts: set[frozenset[str]] = set()
        self.sides: dict[str, int] = {}
        self.changed: Callable[[Node], None] = lambda _: None

    # -- what happens to the mesh --------------------------------------------------------------------------------

    def add(self, name: str, peers: Iterable[str]) -> Node:
        address = f"10.0.0.0:{len(self.nodes) + 1}"
        node = Node(name, address, self._core(name, address, peers, {}))
        self.nodes[name] = self._by_address[address] = node
        self._arm(node)
        return node

    def kill(self, name: str) -> None:
        """The process ends: its connections end with it."""
        node = self.nodes[name]
        node.dead = True
        node.life += 1
        node.links.clear()
        for other in self.nodes.values():
            link = other.links.pop(name, None)
            if link is not None and not other.dead:
                self._after(self.latency_s, other, lambda other=other, link=link: self._closed(other, link))  # type: ignore[misc]

    def restart(self, name: str, peers: Iterable[str]) -> None:
        node = self.nodes[name]
        node.dead = False
        node.core = self._core(name, node.address, peers, node.disk)
        self._arm(node)

    def split(self, sides: dict[str, int]) -> None:
        """Seeds on different sides do not hear each other, and are not told so."""
        self.sides = sides

    def heal(self) -> None:
        self.sides = {}

    def register(self, name: str, identity: Identity, user: str, seq: int) -> wire.Answer | None:
        """A user registers at a seed; the seed's answer."""
        node = self.nodes[name]
        signed = identity.sign(user, ["http://192.0.2.7:3000"], seq)
        request = wire.Register(jsonrpc="2.0", id=1, params=signed)
        effects = node.core.receive(USER_LINK, request, self.now)
        saves = [effect for effect in effects if isinstance(effect, Save) and effect.then]
        self._carry_out(node, effects)
        self._arm(node)
        lines = [send.line for save in saves for send in save.then]
        lines += [effect.line for effect in effects if isinstance(effect, Send) and effect.link == USER_LINK]
        return wire.decode_answer(lines[-1]) if lines else None

    # -- as time goes by -----------------------------------------------------------------------------------------

    def at(self, delay_s: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._numbers), work))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time go by; ends early, with True, when `until` holds after an event."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, work = heapq.heappop(self._events)
            work()
            if until is not None and until():
                return True
        self.now = end
        return False

    @property
    def live(self) -> list[Node]:
        return [node for node in self.nodes.values() if not node.dead]

    # -- inside --------------------------------------------------------------------------------------------------

    def _core(self, name: str, address: str, peers: Iterable[str], disk: dict[str, EntryValue]) -> Seed:
        addresses = [self.nodes[peer].address for peer in peers if peer in self.nodes]
        rng = random.Random(self.rng.random())
        core = Seed(name, address, now=self.now, rng=rng, entries=list(disk.items()), peers=addresses)
        core.opened(USER_LINK, trusted=False)
        return core

    def _after(self, delay_s: float, node: Node, work: Callable[[], None]) -> None:
        """Do something at a node, unless it has died meanwhile; when its reactor stalls it is done afterwards."""
        life = node.life

        def due() -> None:
            if node.life != life or node.dead:
                return
            if node.stalled_until > self.now:
                self.at(node.stalled_until - self.now, due)
                return
            work()
            self._arm(node)

        self.at(delay_s, due)

    def _arm(self, node: Node) -> None:
        wake_at = max(self.now, node.core.wake_at)
        if wake_at < node.wake_at:
            node.wake_at = wake_at
            self._after(wake_at - self.now, node, lambda: self._tick(node, wake_at))

    def _tick(self, node: Node, wake_at: float) -> None:
        if node.wake_at == wake_at:
            node.wake_at = float("inf")
            self._carry_out(node, node.core.tick(self.now))

    def _carry_out(self, node: Node, effects: Iterable[Effect]) -> None:
        news = False
        for effect in effects:
            match effect:
                case Exchange():
                    self._exchange(node, effect)
                case Push():
                    self._push(node, effect)
                case Save():
                    news = True
                    for key, value in effect.rows:
                        if value is None:
                            node.disk.pop(key, None)
                        else:
                            node.disk[key] = value
                case _:
                    news = True
        if news or effects:
            self.changed(node)

    def _reachable(self, one: Node, other: Node) -> bool:
        return self.sides.get(one.name) == self.sides.get(other.name)

    def _exchange(self, source: Node, effect: Exchange) -> None:
        target = self._by_address.get(effect.address)
        failed = lambda: self._carry_out(source, source.core.unreachable(effect.address, self.now))  # noqa: E731
        if target is None or (target.dead and self._reachable(source, target)):
            self._after(2 * self.latency_s, source, failed)  # connection refused
            return
        if not self._reachable(source, target) or self.rng.random() < self.loss:
            self._after(CALL_TIMEOUT_S, source, failed)
            return
        self._count(source, target, wire.encode_request("gossip", effect.params, 1))
        self._after(self.latency_s, target, lambda: self._asked(source, target, effect.params))

    def _asked(self, source: Node, target: Node, params: GossipParams) -> None:
        link = self._link(target, source)
        effects = target.core.receive(link, wire.Gossip(jsonrpc="2.0", id=1, params=params), self.now)
        lines = [effect.line for effect in effects if isinstance(effect, Send) and effect.link == link]
        self._carry_out(target, [effect for effect in effects if not isinstance(effect, Send)])
        if not lines or not self._reachable(source, target):
            return
        answer = wire.decode_answer(lines[-1])
        if answer.result is not UNSET:
            self._count(target, source, lines[-1])
            result = wire.decode_value(answer.result, GossipResult)
            self._after(self.latency_s, source, lambda: self._answered(source, target, result))

    def _answered(self, source: Node, target: Node, result: GossipResult) -> None:
        self._carry_out(source, source.core.exchanged(target.address, result, self.now))

    def _push(self, source: Node, effect: Push) -> None:
        target = self._by_address.get(effect.address)
        if target is None or target.dead or not self._reachable(source, target) or self.rng.random() < self.loss:
            return
        self._count(source, target, wire.encode_request("gossip", effect.params))
        request = wire.Gossip(jsonrpc="2.0", id=UNSET, params=effect.params)
        self._after(
            self.latency_s,
            target,
            lambda: self._carry_out(target, target.core.receive(self._link(target, source), request, self.now)),
        )

    def _link(self, target: Node, source: Node) -> int:
        """The number of the connection that `source` has opened to `target`."""
        link = target.links.get(source.name)
        if link is None:
            link = target.links[source.name] = next(self._numbers)
            target.core.opened(link, trusted=True)
            hello = wire.HelloParams(wire.PROTOCOL_VERSION, "seed", source.name)
            target.core.receive(link, wire.Hello(jsonrpc="2.0", id=1, params=hello), self.now)
        return link

    def _closed(self, node: Node, link: int) -> None:
        self._carry_out(node, node.core.closed(link, self.now))

    def _count(self, source: Node, target: Node, line: bytes) -> None:
        source.sent_bytes += len(line)
        target.received_bytes += len(line)
