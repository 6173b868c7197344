"""Several seed cores against each other, on one fake clock: no sockets, but every line as it goes over the wire."""

import math
import random
from collections import deque
from collections.abc import Collection, Coroutine, Iterable
from typing import Any, TypeVar

from msgspec import UNSET, Struct

from meshproto.core.effects import Ask, Effect, Exchange, Log, Push, Save, SavePeer, Send, Tell
from meshproto.core.names import MakeNames, Names, Parts
from meshproto.core.seed import Seed, Settings
from meshproto.core.shared import Shared
from meshproto.wire import (
    LINE_BYTES_MAX,
    Answer,
    ChangedParams,
    EntryValue,
    GossipParams,
    GossipResult,
    HelloParams,
    LookupResult,
    NameParams,
    Nothing,
    RegisterResult,
    RpcError,
    decode_answer,
    decode_request,
    decode_value,
    encode_request,
)
from tests.core.fake_store import FakeStore
from tests.core.users import signed

START_S = 1_700_000_000.0
EXCHANGES_AT_ONCE_MAX = 500
T = TypeVar("T")


class Host:
    """What stays when a seed is restarted: its disk; and what it had to say."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = f"{name}:5001"
        self.core: Seed | None = None
        self.names: Shared | None = None
        self.disk: dict[str, EntryValue] = {}
        self.disk_is_full = False
        self.peers: set[str] = set()
        self.lines: dict[int, list[Answer]] = {}
        self.logs: list[str] = []
        self.saves: list[Save] = []

    @property
    def seed(self) -> Seed:
        assert self.core is not None
        return self.core


class SeedMesh:
    """`cut`: pairs of seeds that do not reach each other. `sharing`: those that share a directory, :attr:`store`;
    the others have one of their own."""

    def __init__(self, *names: str, settings: Settings | None = None, sharing: Collection[str] = ()) -> None:
        self.now = START_S
        self.rng = random.Random(1)
        self.settings = settings or Settings()
        self.hosts = {name: Host(name) for name in names}
        self.cut: set[frozenset[str]] = set()
        self.sharing = set(sharing)
        self.store = FakeStore(lambda: self.now)
        self.exchanges = 0
        self.pushes: list[tuple[str, Push]] = []
        self._link = 0
        self._peer_links: dict[tuple[str, str], int] = {}
        for name in names:
            self.start(name)

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    # -- seeds come and go ----------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Every seed knows the first one as its bootstrap."""
        host = self.hosts[name]
        first = next(iter(self.hosts.values())).address
        host.core = Seed(
            name,
            host.address,
            now=self.now,
            rng=self.rng,
            entropy=self.rng.randbytes,
            settings=self.settings,
            entries=list(host.disk.items()),
            peers=sorted({first, *host.peers}),
            make_names=self._share(host) if name in self.sharing else None,
        )
        if name in self.sharing:
            host.core.peering.share("one")

    def _share(self, host: Host) -> MakeNames:
        def changed(key: str) -> None:
            if host.core is not None and host.names is not None:
                self.carry_out(host, host.names.changed(key))

        def make(parts: Parts, _: float) -> Names:
            host.names = Shared(parts, self.store.seat(changed), lambda: self.now, host.disk.items())
            return host.names

        return make

    def stop(self, name: str) -> None:
        """As `kill -9` does it."""
        self.hosts[name].core = None
        self._peer_links = {pair: link for pair, link in self._peer_links.items() if name not in pair}

    def open(self, name: str, *, trusted: bool = True) -> int:
        self._link += 1
        self.hosts[name].lines[self._link] = []
        self.hosts[name].seed.opened(self._link, "127.0.0.1" if trusted else "8.8.8.8")
        return self._link

    def kept(self, seed: str, key: str) -> EntryValue:
        """What stands of a name where it outlives a restart of the seed."""
        return self.store.value_of(key) if seed in self.sharing else self.hosts[seed].disk[key]

    def writes(self, seed: str) -> int:
        """How often something was written there."""
        return self.store.swaps if seed in self.sharing else len(self.hosts[seed].saves)

    def refuse_writes(self, seed: str) -> None:
        """From now on nothing is."""
        self.hosts[seed].disk_is_full = self.store.gone = True

    # -- time -----------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Tick every seed whenever it wants to, as a shell does."""
        end, ticks = self.now + seconds, 0
        while True:
            ticks += 1
            assert ticks < 100 + 100 * len(self.hosts) * max(1.0, seconds), "a seed is never done"
            running = [host for host in self.hosts.values() if host.core]
            due = min((host.seed.wake_at for host in running), default=math.inf)
            if due > end:
                break
            self.now = max(self.now, due)
            for host in running:
                if host.seed.wake_at <= self.now:
                    self.carry_out(host, host.seed.tick(self.now))
        self.now = end

    # -- effects --------------------------------------------------------------------------------------------------

    def receive(self, name: str, link: int, line: bytes) -> None:
        assert len(line) <= LINE_BYTES_MAX, f"a line of {len(line)} bytes"
        host = self.hosts[name]
        self.carry_out(host, host.seed.receive(link, decode_request(line), self.now))

    def carry_out(self, host: Host, effects: Iterable[Effect]) -> None:
        waiting: deque[Effect] = deque(effects)
        exchanges = 0
        while waiting:
            match waiting.popleft():
                case Send(link, line):
                    assert len(line) <= LINE_BYTES_MAX, f"a line of {len(line)} bytes"
                    host.lines[link].append(decode_answer(line))
                case Tell(_, line, links):
                    waiting.extendleft(Send(link, line) for link in reversed(links))
                case Save() as save:
                    waiting.extendleft(reversed(self._save(host, save)))
                case SavePeer(address):
                    host.peers.add(address)
                case Exchange() as exchange:
                    exchanges += 1
                    assert exchanges <= EXCHANGES_AT_ONCE_MAX, "the exchanges do not end"
                    waiting.extend(self._exchange(host, exchange))
                case Push() as push:
                    self.pushes.append((host.name, push))
                    self._tell(host, push.address, push.params, None)
                case Log(text):
                    host.logs.append(text)
                case Ask(work):
                    waiting.extendleft(reversed(_done(work)))

    def _save(self, host: Host, save: Save) -> tuple[Send, ...]:
        host.saves.append(save)
        if host.disk_is_full:
            return save.otherwise
        for key, value in save.rows:
            if value is None:
                host.disk.pop(key, None)
            else:
                host.disk[key] = value
        return save.then

    def _exchange(self, host: Host, exchange: Exchange) -> list[Effect]:
        self.exchanges += 1
        answer = self._tell(host, exchange.address, exchange.params, 1)
        if answer is None or answer.error is not UNSET:
            return host.seed.unreachable(exchange.address, self.now)
        assert answer.result is not UNSET
        return host.seed.exchanged(exchange.address, decode_value(answer.result, GossipResult), self.now)

    def _tell(self, host: Host, address: str, params: GossipParams, request_id: int | None) -> Answer | None:
        """What the seed at the address answers; None when it is not reached."""
        peer = next((each for each in self.hosts.values() if each.address == address and each.core), None)
        if peer is None or frozenset((host.name, peer.name)) in self.cut:
            return None
        pair = host.name, peer.name
        if pair not in self._peer_links:
            self._peer_links[pair] = self.open(peer.name)
            hello = encode_request("hello", HelloParams(1, "seed", host.name), 0)
            self.receive(peer.name, self._peer_links[pair], hello)
        link = self._peer_links[pair]
        self.receive(peer.name, link, encode_request("gossip", params, request_id))
        return peer.lines[link][-1] if request_id is not None else None


def _done(work: Coroutine[Any, Any, list[Effect]]) -> list[Effect]:
    """Of what waits for nothing here."""
    try:
        work.send(None)
    except StopIteration as end:
        effects: list[Effect] = end.value
        return effects
    raise AssertionError("the store lets nobody wait")


class Client:
    """A connection to a seed."""

    def __init__(self, mesh: SeedMesh, seed: str, *, trusted: bool = True) -> None:
        self.mesh = mesh
        self.seed = seed
        self.link = mesh.open(seed, trusted=trusted)
        self._id = 0

    def say(self, method: str, params: Struct) -> list[Answer]:
        """A request; the lines that come back at once."""
        self._id += 1
        del self.mesh[self.seed].lines[self.link][:]
        self.mesh.receive(self.seed, self.link, encode_request(method, params, self._id))
        return self.mesh[self.seed].lines[self.link]

    def tell(self, method: str, params: Struct) -> None:
        """A notification."""
        self.mesh.receive(self.seed, self.link, encode_request(method, params))

    def call(self, method: str, params: Struct, kind: type[T]) -> T:
        """A request and its result."""
        (answer,) = (line for line in self.say(method, params) if line.id == self._id)
        assert answer.error is UNSET, answer.error
        assert answer.result is not UNSET
        return decode_value(answer.result, kind)

    def refused(self, method: str, params: Struct) -> RpcError:
        """A request and its error."""
        (answer,) = (line for line in self.say(method, params) if line.id == self._id)
        assert answer.error is not UNSET, answer.result
        return answer.error

    def told(self) -> list[ChangedParams]:
        """The `changed` notifications since the last request or the last call of this."""
        lines = self.mesh[self.seed].lines[self.link]
        found = [decode_value(line.params, ChangedParams) for line in lines if line.params is not UNSET]
        del lines[:]
        return found

    def close(self) -> None:
        host = self.mesh[self.seed]
        self.mesh.carry_out(host, host.seed.closed(self.link, self.mesh.now))

    # -- what is asked most ---------------------------------------------------------------------------------------

    def register(self, name: str, seq: int = 1, **fields: Any) -> RegisterResult:
        return self.call("register", signed(name, seq, **fields), RegisterResult)

    def unregister(self, name: str, seq: int = 2, **fields: Any) -> None:
        self.call("unregister", signed(name, seq, gone=True, **fields), Nothing)

    def lookup(self, name: str) -> LookupResult:
        return self.call("lookup", NameParams(name), LookupResult)

    def knows(self, name: str) -> bool:
        """Whether a lookup finds the name; the other answer is 404."""
        (answer,) = self.say("lookup", NameParams(name))
        assert answer.error is UNSET or answer.error.code == 404
        return answer.error is UNSET
