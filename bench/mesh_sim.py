"""Many seeds in one process: the real :class:`meshproto.core.seed.Seed` on a fake clock and a fake network.

Links have latency; exchanges are lost, seeds stall, die, are cut off and come back, all drawn from one seed, so a run
can be repeated. Bytes are counted as they would go over the wire (lines; TCP and IP come on top). There is no Twisted
here: an effect of a core becomes an event in a heap. Connections between seeds are there already, as they are in a mesh
that has run for a while.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from msgspec import UNSET

from meshproto import wire
from meshproto.core.effects import Effect, Exchange, Push, Save, SavePeer, Send, Tell
from meshproto.core.identity import Identity
from meshproto.core.seed import Seed
from meshproto.wire import AnyRequest, EntryValue, GossipParams, GossipResult, LookupResult, SignedRecord

EPOCH_S: Final = 1_795_000_000.0
CALL_TIMEOUT_S: Final = 5.0
USER_LINK: Final = 1
"""A link that every simulated seed has, for questions; other links have higher numbers."""
URI: Final = "http://192.0.2.7:3000"


@dataclass
class Node:
    """One seed of the simulation. `dead`: its process does not run; `stalled_until`: its reactor does nothing.
    `links`: what other seeds have opened to it, by their names; `users`: the lines it has sent to each user's link;
    `asking`: exchanges without an answer yet, by address."""

    name: str
    address: str
    core: Seed
    peers: list[str]
    disk: dict[str, EntryValue] = field(default_factory=dict)
    met: set[str] = field(default_factory=set)
    links: dict[str, int] = field(default_factory=dict)
    users: dict[int, list[bytes]] = field(default_factory=dict)
    asking: dict[str, object] = field(default_factory=dict)
    dead: bool = False
    life: int = 0
    stalled_until: float = 0.0
    wake_at: float = float("inf")
    sent_bytes: int = 0
    received_bytes: int = 0


class Mesh:
    """`after_event` is called with each seed to which something has happened."""

    def __init__(self, seed: int, *, latency_s: float = 0.01, loss: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.now = EPOCH_S
        self.latency_s = latency_s
        self.loss = loss
        self.nodes: dict[str, Node] = {}
        self.cuts: set[frozenset[str]] = set()
        self.after_event: Callable[[Node], None] | None = None
        self._sides: dict[str, int] = {}
        self._by_address: dict[str, Node] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count(USER_LINK + 1)

    # -- what happens to the mesh --------------------------------------------------------------------------------

    def add(self, name: str, peers: Iterable[str]) -> Node:
        address = f"10.0.0.0:{len(self.nodes) + 1}"
        addresses = [self.nodes[peer].address for peer in peers]
        node = Node(name, address, self._core(name, address, addresses, {}), addresses)
        self.nodes[name] = self._by_address[address] = node
        self._open_users(node)
        self._arm(node)
        return node

    def kill(self, name: str) -> None:
        """The process ends: its connections end with it, as far as word of that gets through."""
        node = self.nodes[name]
        node.dead = True
        node.life += 1
        for other in self.live:
            if not self._reachable(node, other):
                continue
            if other.name in node.links:
                self._after(self.latency_s, other, partial(self._lost, other, node))
            link = other.links.pop(name, None)
            if link is not None:
                self._after(self.latency_s, other, partial(self._closed, other, link))
        node.links.clear()
        node.users.clear()
        node.asking.clear()

    def restart(self, name: str) -> None:
        """On what it had on disk."""
        node = self.nodes[name]
        node.dead = False
        node.wake_at = float("inf")
        node.core = self._core(name, node.address, sorted({*node.peers, *node.met}), node.disk)
        self._open_users(node)
        self._arm(node)

    def split(self, sides: dict[str, int]) -> None:
        """Seeds on different sides do not hear each other, and are not told so."""
        self._sides = sides

    def heal(self) -> None:
        self._sides = {}
        self.cuts.clear()

    # -- users ---------------------------------------------------------------------------------------------------

    def connect(self, name: str) -> int:
        """A user connects to a seed: the number of the link."""
        link = next(self._numbers)
        self.nodes[name].users[link] = []
        self.nodes[name].core.opened(link, "")
        return link

    def hang_up(self, name: str, link: int) -> None:
        node = self.nodes[name]
        del node.users[link]
        self._closed(node, link)
        self._arm(node)

    def say(self, name: str, link: int, request: AnyRequest) -> wire.Answer | None:
        """A user's request and the seed's answer to it; what else was sent to the link stays in `users`."""
        node = self.nodes[name]
        heard = node.users[link]
        before = len(heard)
        self._carry_out(node, node.core.receive(link, request, self.now))
        self._arm(node)
        answers = [answer for answer in map(wire.decode_answer, heard[before:]) if answer.id == request.id]
        return answers[-1] if answers else None

    def register(self, name: str, identity: Identity, user: str, seq: int, link: int = USER_LINK) -> wire.Answer:
        answer = self.say(name, link, _register(identity.sign(user, [URI], seq)))
        assert answer is not None
        return answer

    def lookup(self, name: str, user: str) -> LookupResult | None:
        """What a seed answers; None: 404."""
        answer = self.say(name, USER_LINK, wire.Lookup(jsonrpc="2.0", id=1, params=wire.NameParams(user)))
        assert answer is not None
        return wire.decode_value(answer.result, LookupResult) if answer.result is not UNSET else None

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

    def _core(self, name: str, address: str, peers: list[str], disk: dict[str, EntryValue]) -> Seed:
        rng = random.Random(self.rng.random())
        entries = list(disk.items())
        return Seed(name, address, now=self.now, rng=rng, entropy=rng.randbytes, entries=entries, peers=peers)

    def _open_users(self, node: Node) -> None:
        node.core.opened(USER_LINK, "")
        node.users[USER_LINK] = []

    def _after(self, delay_s: float, node: Node, work: Callable[[], None]) -> None:
        """Do something at a node, unless it has died meanwhile; when its reactor stalls it is done afterwards."""
        self.at(delay_s, partial(self._due, node, node.life, work))

    def _due(self, node: Node, life: int, work: Callable[[], None]) -> None:
        if node.life != life or node.dead:
            return
        if node.stalled_until > self.now:
            self.at(node.stalled_until - self.now, partial(self._due, node, life, work))
            return
        work()
        self._arm(node)
        if self.after_event is not None:
            self.after_event(node)

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
        for effect in effects:
            match effect:
                case Exchange():
                    self._exchange(node, effect)
                case Push():
                    self._push(node, effect)
                case Save():
                    self._save(node, effect)
                case SavePeer():
                    node.met.add(effect.address)
                case Send():
                    if effect.link in node.users:
                        node.users[effect.link].append(effect.line)
                case Tell():
                    self._carry_out(node, [Send(link, effect.line) for link in effect.links])
                case _:
                    pass

    def _save(self, node: Node, effect: Save) -> None:
        for key, value in effect.rows:
            if value is None:
                node.disk.pop(key, None)
            else:
                node.disk[key] = value
        self._carry_out(node, effect.then)

    # -- the network ---------------------------------------------------------------------------------------------

    def _reachable(self, one: Node, other: Node) -> bool:
        if self._sides.get(one.name) != self._sides.get(other.name):
            return False
        return not self.cuts or frozenset((one.name, other.name)) not in self.cuts

    def _exchange(self, source: Node, effect: Exchange) -> None:
        """As the service does it: one at a time to each address, and an answer that comes too late does not count."""
        if effect.address in source.asking:
            return
        token = source.asking[effect.address] = object()
        target = self._by_address.get(effect.address)

        def failed(refused: bool) -> None:
            if source.asking.get(effect.address) is token:
                del source.asking[effect.address]
                self._carry_out(source, source.core.unreachable(effect.address, self.now, refused=refused))

        if target is None or (target.dead and self._reachable(source, target)):
            self._after(2 * self.latency_s, source, lambda: failed(True))
            return
        self._after(CALL_TIMEOUT_S, source, lambda: failed(False))
        if self._reachable(source, target) and self.rng.random() >= self.loss:
            self._count(source, target, wire.encode_request("gossip", effect.params, 1))
            self._after(self.latency_s, target, lambda: self._asked(source, target, effect.params, token))

    def _asked(self, source: Node, target: Node, params: GossipParams, token: object) -> None:
        link = self._link(target, source)
        effects = target.core.receive(link, wire.Gossip(jsonrpc="2.0", id=1, params=params), self.now)
        lines = [effect.line for effect in effects if isinstance(effect, Send) and effect.link == link]
        self._carry_out(target, effects)
        if not self._reachable(source, target):
            return
        answer = wire.decode_answer(lines[-1])
        assert answer.result is not UNSET, answer.error
        self._count(target, source, lines[-1])
        result = wire.decode_value(answer.result, GossipResult)
        self._after(self.latency_s, source, lambda: self._answered(source, target, result, token))

    def _answered(self, source: Node, target: Node, result: GossipResult, token: object) -> None:
        if source.asking.get(target.address) is token:
            del source.asking[target.address]
            self._carry_out(source, source.core.exchanged(target.address, result, self.now))

    def _push(self, source: Node, effect: Push) -> None:
        target = self._by_address.get(effect.address)
        if target is None or target.dead or not self._reachable(source, target) or self.rng.random() < self.loss:
            return
        self._count(source, target, wire.encode_request("gossip", effect.params))
        self._after(self.latency_s, target, lambda: self._pushed(source, target, effect.params))

    def _pushed(self, source: Node, target: Node, params: GossipParams) -> None:
        request = wire.Gossip(jsonrpc="2.0", id=UNSET, params=params)
        self._carry_out(target, target.core.receive(self._link(target, source), request, self.now))

    def _link(self, target: Node, source: Node) -> int:
        """The number of the connection that `source` has opened to `target`."""
        link = target.links.get(source.name)
        if link is None:
            link = target.links[source.name] = next(self._numbers)
            target.core.opened(link, "127.0.0.1")
            hello = wire.HelloParams(wire.PROTOCOL_VERSION, "seed", source.name)
            target.core.receive(link, wire.Hello(jsonrpc="2.0", id=1, params=hello), self.now)
            source.core.greeted(target.address, target.name)
        return link

    def _lost(self, node: Node, dead: Node) -> None:
        """What was asked over the connection is not answered any more."""
        if node.asking.pop(dead.address, None) is not None:
            self._carry_out(node, node.core.unreachable(dead.address, self.now))
        node.core.lost(dead.address, self.now)

    def _closed(self, node: Node, link: int) -> None:
        self._carry_out(node, node.core.closed(link, self.now))

    def _count(self, source: Node, target: Node, line: bytes) -> None:
        assert len(line) <= wire.LINE_BYTES_MAX, f"a line of {len(line)} bytes"
        source.sent_bytes += len(line)
        target.received_bytes += len(line)


def _register(signed: SignedRecord) -> wire.Register:
    return wire.Register(jsonrpc="2.0", id=1, params=signed)
