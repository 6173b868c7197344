"""The fake world (:mod:`tests.world`), with files for disks and with nodes whose work is counted
(:mod:`bench.effort_count`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import time
from typing import Any, Final

import httptools
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IDelayedCall, ITransport
from twisted.internet.protocol import Factory, Protocol

from bench.effort_count import Counts, Disk, Meter, Tally, keeping
from meshproto.net import http_request
from tests.network import Host
from tests.world import SEED_PORT, USER_PORT, World

PIECE_BYTES: Final = 64 * 1024
"""What a socket gives at a time: Twisted reads as much."""
PAGE_BYTES: Final = 4096
WAL_HEAD_BYTES: Final = 32
WAL_PAGE_HEAD_BYTES: Final = 24
WAL_PAGES_MAX: Final = 1000
"""Past that a checkpoint may let the file begin anew, and its size does not tell any more how much was written."""


class CountedHost(Host):
    """What is called here, by the network or by a timer, is this host's work. `listening`: what it listens with, and
    the protocols of those who have come, by port."""

    def __init__(self, host: Host, clock: Any, meter: Meter) -> None:
        super().__init__(host.name, host.ip, clock)
        self._meter = meter
        self.listening: dict[int, tuple[Any, list[Any]]] = {}

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object) -> IDelayedCall:
        self._meter.count(self.name, "timers")
        return super().callLater(delay, partial(self._meter.run, self.name, callable), *args, **kwargs)

    def listenTCP(self, port: int, factory: Any, *args: Any, **kwargs: Any) -> Any:
        came: list[Any] = []
        self._builds(factory, came)
        self.listening[port] = factory, came
        return super().listenTCP(port, factory, *args, **kwargs)

    def connectTCP(self, host: str, port: int, factory: Any, *args: Any, **kwargs: Any) -> Any:
        self._builds(factory, [])
        self._enters(factory, "clientConnectionFailed")
        return super().connectTCP(host, port, factory, *args, **kwargs)

    def _builds(self, factory: Any, built: list[Any]) -> None:
        build = partial(self._meter.run, self.name, factory.buildProtocol)

        def build_protocol(address: object) -> Any:
            protocol = build(address)
            self._enters(protocol, "makeConnection", "dataReceived", "connectionLost")
            built.append(protocol)
            return protocol

        factory.buildProtocol = build_protocol

    def _enters(self, part: Any, *methods: str) -> None:
        for name in methods:
            setattr(part, name, partial(self._meter.run, self.name, getattr(part, name)))


class Client(Protocol):
    """Sends bytes that were made before, and counts the answers: whole HTTP responses, or lines; `errors` of them."""

    transport: ITransport

    def __init__(self) -> None:
        self.answers = self.errors = 0
        self._http: httptools.HttpResponseParser | None = None

    def dataReceived(self, data: bytes) -> None:
        if not self.answers and data.startswith(b"HTTP"):
            self._http = httptools.HttpResponseParser(self)
        if self._http is not None:
            self._http.feed_data(data)
        else:
            self.answers += data.count(b"\n")
            self.errors += data.count(b'"error"')

    # for the parser

    def on_body(self, piece: bytes) -> None:
        self.errors += piece.count(b'"failed"')

    def on_message_complete(self) -> None:
        assert self._http is not None
        self.answers += 1
        self.errors += self._http.get_status_code() >= 400


@contextmanager
def _a_moment() -> Iterator[None]:
    """The Date of answers is written once a second of real time, which would be now and then."""
    real, http_request.time = time, lambda: 0.0  # type: ignore[attr-defined]
    try:
        yield
    finally:
        http_request.time = real  # type: ignore[attr-defined]


class EffortWorld(World):
    """`counts`: by operation and side, what :meth:`counted` found; `functions`: how much each function had to do with
    it."""

    def __init__(self, directory: Path) -> None:
        self.meter = Meter()
        self.counts: dict[str, Counts] = {}
        self.functions: dict[str, list[Tally]] = {}
        self._disks: dict[str, Disk] = {}
        self._files = directory
        super().__init__(seed=1, directory=directory)

    def add_host(self, name: str) -> Host:
        self.hosts[name] = CountedHost(super().add_host(name), self.clock, self.meter)
        return self.hosts[name]

    def _connection(self, name: str, *layout: Any) -> Any:
        connection = super()._connection(name, *layout)
        self._disks[name] = Disk(connection)
        return connection

    # -- who asks ------------------------------------------------------------------------------------------------

    def client(self, node: str) -> Client:
        """A connection from the laptop."""
        port = USER_PORT if node in self.users else SEED_PORT
        made: list[Any] = []
        endpoint = TCP4ClientEndpoint(self.laptop, self.hosts[node].ip, port)
        endpoint.connect(Factory.forProtocol(Client)).addCallback(made.append)
        self.settle()
        (client,) = made
        assert isinstance(client, Client)
        return client

    def exchange(self, data: bytes, *clients: Client, answers: int = 1, errors: int = 0) -> None:
        """All send the same, in pieces as sockets give them, and have so many answers each, of which so many are
        errors; and what is to be done after them is done."""
        wanted = [client.answers + answers for client in clients]
        errors_before = sum(client.errors for client in clients)
        for start in range(0, len(data), PIECE_BYTES):
            for client in clients:
                client.transport.write(data[start : start + PIECE_BYTES])
            self.settle()
        self.run_until(lambda: all(one.answers >= those for one, those in zip(clients, wanted, strict=True)))
        assert sum(client.errors for client in clients) - errors_before == errors

    def ask_together(self, seed: str, line: bytes, clients: list[Client]) -> None:
        """A line over each link, of those that came last; all are there when the seed reads. See
        :mod:`meshproto.net.together`."""
        host = self.hosts[seed]
        assert isinstance(host, CountedHost)
        factory, links = host.listening[SEED_PORT]
        came = [(link, line) for link in links[-len(clients) :]]
        before = [client.answers for client in clients]
        assert self.meter.run(seed, factory.at_once, came) == []
        self.settle()
        assert [client.answers - were for client, were in zip(clients, before, strict=True)] == [1] * len(clients)

    def at(self, node: str, work: Callable[..., object], *args: Any) -> None:
        """What no byte and no timer begins: to start a process, say."""
        self.meter.run(node, work, *args)
        self.settle()

    # -- what it takes -------------------------------------------------------------------------------------------

    @contextmanager
    def counted(self, operation: str, of: int, **sides: str | Iterable[str]) -> Iterator[None]:
        """Count what each side does, which are these nodes."""
        nodes = {side: [who] if isinstance(who, str) else list(who) for side, who in sides.items()}
        everybody = [node for side in nodes.values() for node in side]
        for node in everybody:
            self._empty_wal(node)
        before = dict(self._disks)
        done = {node: disk.counted() for node, disk in before.items()}
        with self.meter.counting(), _a_moment():
            yield
        for side, those in nodes.items():
            total: Counter[str] = Counter()
            for node in those:
                total.update(self.meter.of(node))
                total.update(self._disks[node].counted())
                if self._disks[node] is before[node]:
                    total.subtract(done[node])
                total["pages"] += self._pages(node)
            self.counts[f"{operation}: {side}"] = Counts(of=of, **total)
            self.functions[f"{operation}: {side}"] = [t for t in self.meter.tallies.values() if t.node in those]

    @contextmanager
    def kept(self, operation: str, of: int) -> Iterator[None]:
        """Count the memory that is taken afterwards."""
        with keeping() as kept:
            yield
        self.counts[operation] = Counts(of=of, kept_bytes=kept.bytes)

    def _empty_wal(self, node: str) -> None:
        assert self.on_disk(node, "PRAGMA wal_checkpoint(TRUNCATE)") == 0, f"{node}'s database is being read"

    def _pages(self, node: str) -> int:
        """Written since :meth:`_empty_wal`."""
        wal = self._files / f"{node}.db-wal"
        pages = max(0, wal.stat().st_size - WAL_HEAD_BYTES) // (PAGE_BYTES + WAL_PAGE_HEAD_BYTES)
        assert pages < WAL_PAGES_MAX, f"{node} writes too much at once to be counted"
        return pages


def request(method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> bytes:
    """As curl would send it."""
    head = [f"{method} {path} HTTP/1.1", "Host: localhost:3000", "User-Agent: curl/8.5.0", "Accept: */*"]
    if body:
        head += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    return "\r\n".join((*head, "", "")).encode() + body
