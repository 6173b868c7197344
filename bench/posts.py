"""What a POST costs the one who sends it: `python -m bench.posts`.

The client under deliveries, beside the bare limit (a protocol that writes a request and waits until as many bytes have
come as the answer has) and beside Twisted's agent and treq, to the same server on another processor. Rounds take turns,
each in a process of its own. The figures are processor time of the client.
"""

import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, NamedTuple

from httptools import HttpRequestParser
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.web.client import Agent, readBody
from twisted.web.http_headers import Headers

from bench import figures
from bench.figures import Sample
from meshproto.core.reach import FAR, Kind
from meshproto.net import direct
from meshproto.net.courier import CONNECT_TIMEOUT_S, peers
from meshproto.net.http_client import LARGE_BODY_BYTES
from meshproto.net.tls import Endpoints, Trust
from meshproto.net.treq_client import Body, treq_client, treq_pool

RECEIPT: Final = b'{"box":"' + b"x" * 180 + b'"}\n'
ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\nServer: TwistedWeb/26.10.0\r\nDate: Sun, 22 Nov 2026 10:00:00 GMT\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(RECEIPT), RECEIPT)
)
HEADERS: Final = {"content-type": "application/json", "accept-encoding": "identity"}
RECIPIENTS: Final = 500


class Load(NamedTuple):
    """`at_a_time`: requests under way. `body_bytes`: 600 are a batch of one short message, sealed. `first`: each is the
    first to its recipient, and makes a connection."""

    case: str
    recipients: int
    at_a_time: int
    posts: int
    body_bytes: int = 600
    first: bool = False


LOADS: Final = (
    Load("one recipient, one at a time", 1, 1, 3000),
    Load("16 recipients, 16 at a time", 16, 16, 8000),
    Load(f"{RECIPIENTS} recipients, 16 at a time", RECIPIENTS, 16, 8000),
    Load("the first to a recipient, 16 at a time", RECIPIENTS, 16, RECIPIENTS // 17 * 16, first=True),
    Load("a megabyte to one recipient", 1, 1, 200, body_bytes=1_400_000),
)
QUICK: Final = 100
"""How many times fewer."""


def main(arguments: list[str] | None = None) -> int:
    options = figures.parse(figures.parser("bench.posts", __doc__, 0.0), arguments)
    before = figures.machine()
    context = multiprocessing.get_context("spawn")  # each with a reactor of its own
    ports: Any = context.SimpleQueue()
    server = context.Process(target=_serve, args=(ports,), daemon=True)
    server.start()
    listening = ports.get()

    def measured(client: str, load: Load) -> Sample:
        results: Any = context.SimpleQueue()
        process = context.Process(target=_measure, args=(results, client, load, listening), daemon=True)
        process.start()
        took_us: float = results.get()
        process.join()
        return {"sender_us": took_us}

    rows = []
    for load in LOADS:
        figures.say(load.case)
        less = load._replace(posts=max(load.at_a_time, load.posts // QUICK)) if options.quick else load
        samples = figures.alternate(options.rounds, {name: partial(measured, name, less) for name in CLIENTS})
        for name in CLIENTS:
            figures.compare(samples, name, BARE, "sender_us", "to_bare")
        rows += figures.rows(load.case, samples, {BARE})
    server.terminate()
    server.join()
    return figures.tell("posts", before, options, rows)


def _reactor(core: int) -> Any:
    """That of this process, which is to stay on one of the machine's cores."""
    from twisted.internet import reactor  # noqa: PLC0415 - not in the process that starts the others

    os.sched_setaffinity(0, {core % (os.cpu_count() or 1)})
    return reactor


# -- the server ---------------------------------------------------------------------------------------------------


class _Recipient(Protocol):
    def connectionMade(self) -> None:
        self._parser = HttpRequestParser(self)

    def dataReceived(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        assert self.transport is not None
        direct.write(self.transport, ANSWER)


def _serve(ports: Any) -> None:
    reactor = _reactor(1)
    factory = Factory.forProtocol(_Recipient)
    factory.noisy = False
    listening = [reactor.listenTCP(0, factory, 1024, "127.0.0.1") for _ in range(RECIPIENTS)]
    ports.put([port.getHost().port for port in listening])
    reactor.run()


# -- the clients --------------------------------------------------------------------------------------------------

Post = Callable[[int, bytes], Awaitable[object]]
"""A port of this machine and a body -> when it is answered."""


def _measure(results: Any, name: str, load: Load, ports: list[int]) -> None:
    reactor = _reactor(0)
    post = CLIENTS[name](reactor)
    turn = itertools.cycle(ports[: load.recipients])
    body = b"x" * load.body_bytes

    async def one_after_the_other(posts: int) -> None:
        for _ in range(posts):
            await post(next(turn), body)

    def all_of(posts: int) -> "Deferred[list[None]]":
        each = -(-posts // load.at_a_time)
        return gatherResults([ensureDeferred(one_after_the_other(each)) for _ in range(load.at_a_time)])

    async def run() -> None:
        await all_of(1 if load.first else load.recipients)
        began_s = time.process_time()
        await all_of(load.posts)
        results.put(1e6 * (time.process_time() - began_s) / load.posts)

    def over(outcome: object) -> object:
        reactor.stop()
        return outcome

    reactor.callWhenRunning(lambda: ensureDeferred(run()).addBoth(over))
    reactor.run()


class _Bare(Protocol):
    transport: Any

    def post(self, body: bytes) -> "Deferred[None]":
        self._left = len(ANSWER)
        self._done: Deferred[None] = Deferred()
        head = b"POST /deliver HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        if len(body) < LARGE_BODY_BYTES:
            direct.write(self.transport, head + body)
        else:
            direct.write(self.transport, head)
            self.transport.write(body)
        return self._done

    def dataReceived(self, data: bytes) -> None:
        self._left -= len(data)
        if not self._left:
            self._done.callback(None)


def _bare(reactor: Any) -> Post:
    kept: dict[int, list[_Bare]] = {}

    async def post(port: int, body: bytes) -> None:
        idle = kept.setdefault(port, [])
        bare = idle.pop() if idle else await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), _Bare())
        await bare.post(body)
        idle.append(bare)

    return post


def _ours(reactor: Any) -> Post:
    client, reach = peers(reactor, Trust()), FAR | {Kind.LOOPBACK}
    return lambda port, body: client.post(f"http://127.0.0.1:{port}/deliver", body, reach)


def _agent(reactor: Any) -> Post:
    agent = Agent(reactor, pool=treq_pool(reactor))
    headers = {name.encode(): [value.encode()] for name, value in HEADERS.items()}

    async def post(port: int, body: bytes) -> None:
        url = b"http://127.0.0.1:%d/deliver" % port
        await readBody(await agent.request(b"POST", url, Headers(headers), Body(body)))

    return post


def _treq(reactor: Any) -> Post:
    client = treq_client(reactor, treq_pool(reactor), Endpoints(reactor, Trust()).http(CONNECT_TIMEOUT_S))

    async def post(port: int, body: bytes) -> None:
        url = f"http://127.0.0.1:{port}/deliver"
        response = await client.post(url, data=body, headers=HEADERS, reactor=reactor, unbuffered=True)
        await readBody(response)

    return post


BARE: Final = "a bare protocol"
CLIENTS: Final = {"a delivery's client": _ours, "Twisted's agent": _agent, "treq": _treq, BARE: _bare}


if __name__ == "__main__":
    sys.exit(main())
