"""Ours: a seed that knows all the names; a seed and two users' nodes that write to each other."""

import re
import shutil
import socket
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Self

from bench import million, names
from bench.figures import Sample
from bench.load import http_request, write_requests
from bench.peers.asking import ASKED, ask, ask_each
from bench.peers.contest import LOOKUPS, SINGLES, STREAMED, Load, Peer, Setting, shuffled
from bench.peers.exchange import NUMBER_DIGITS, Exchange, InOrder, connect, message
from bench.peers.http import HEAD_END, Chunks, Responses
from bench.peers.machine import Servers
from meshproto import __version__
from meshproto.cli.processes import Failed, until
from meshproto.client.node import Node
from meshproto.core.inbox import PAGE_MESSAGES_MAX
from meshproto.wire import split_address

SEED: Final = "seedX"
SENDER: Final = "Bobby"
RECIPIENT: Final = "UserX"
WAIT_S: Final = 30
FOUND: Final = '"result":{"record"'
_DELIVERED: Final = b'"status":"delivered"'
_TEXT: Final = re.compile(rb'"message":"(\d{%d})' % NUMBER_DIGITS)
_NEXT: Final = re.compile(rb'"next":(\d+)\}$')


class Mesh(Peer):
    key = "ours"
    version = __version__


class Seed(Mesh):
    title = "meshproto, a seed"
    ratio = "seed_to"
    acknowledged = "from memory: a record that its user has signed"
    work = "lookup"
    loads = LOOKUPS

    def start(self, setting: Setting) -> None:
        place = setting.servers.place(million.OLD)
        shutil.copyfile(names.state(setting.names) / "seed.db", place / "seed.db")
        address, child = setting.servers.twistd("meshseed", million.OLD)
        self._port = split_address(address)[1]
        self._roots = (child.process.pid,)
        self._requests = place / "requests"
        write_requests(self._requests, map(_lookup, map(setting.name, shuffled(setting.names)[:ASKED])))
        ask_each("line", self._port, self._requests, FOUND)

    def measure(self, load: Load, seconds: float) -> Sample:
        return ask("line", self._port, self._requests, FOUND, load, seconds, self._roots)


def _lookup(name: str) -> bytes:
    return b'{"jsonrpc":"2.0","id":1,"method":"lookup","params":{"name":"%b"}}\n' % name.encode()


# -- messages -----------------------------------------------------------------------------------------------------


def _body(number: int) -> bytes:
    return b'{"to":"%b","message":"%b"}' % (RECIPIENT.encode(), message(number))


class Post:
    """One connection on which one `POST /send` follows the other."""

    def __init__(self) -> None:
        self._responses = Responses()
        self._number = -1

    def send(self, numbers: Sequence[int]) -> bytes:
        (self._number,) = numbers
        return http_request("/send", _body(self._number))

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        bodies = self._responses.receive(data)
        for body in bodies:
            _check(body)
        return [self._number] * len(bodies), b""


class Lines:
    """One `POST /send` whose body is a stream of lines; results come in the lines' order."""

    HEAD: Final = (
        b"POST /send HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-ndjson\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )

    def __init__(self) -> None:
        self._head: bytes | None = b""
        self._chunks = Chunks()
        self._line = b""
        self._order = InOrder()

    def send(self, numbers: Sequence[int]) -> bytes:
        self._order.sent(numbers)
        lines = b"".join(_body(number) + b"\n" for number in numbers)
        return b"%x\r\n%b\r\n" % (len(lines), lines)

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        if self._head is not None:
            self._head, end, data = (self._head + data).partition(HEAD_END)
            if not end:
                return (), b""
            self._head = None
        *lines, self._line = (self._line + self._chunks.receive(data)).split(b"\n")
        for line in lines:
            _check(line)
        return self._order.first(len(lines)), b""


def _check(result: bytes) -> None:
    if _DELIVERED not in result:
        raise Failed(f"a message was answered {result[:300]!r}")


class Inbox:
    """The recipient's program: asks for what is new, and waits for it."""

    def __init__(self) -> None:
        self._responses = Responses()

    @staticmethod
    def more(after: int) -> bytes:
        return http_request(f"/inbox?after={after}&limit={PAGE_MESSAGES_MAX}&wait={WAIT_S}", b"", method="GET")

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        numbers: list[int] = []
        answer = b""
        for body in self._responses.receive(data):
            after = _NEXT.search(body, max(0, len(body) - 40))
            if after is None:
                raise Failed(f"the inbox was answered {body[:300]!r}")
            numbers += map(int, _TEXT.findall(body))
            answer = self.more(int(after[1]))
        return numbers, answer


class Nodes(NamedTuple):
    """A seed and two nodes, for all of ours that carry messages: all on the servers' core, and what all three take is
    counted."""

    pids: tuple[int, ...]
    sender_port: int
    recipient: Node
    recipient_port: int

    @classmethod
    def start(cls, servers: Servers) -> Self:
        seed, child = servers.twistd("meshseed", SEED)
        pids, urls = [child.process.pid], []
        for name in (SENDER, RECIPIENT):
            url, child = servers.twistd("meshuser", name, "--seed", seed)
            node = Node(url)
            until(lambda node=node: node.status().document["registered"] or None, f"{name} is registered")  # type: ignore[misc]
            pids.append(child.process.pid)
            urls.append(url)
        sender, recipient = urls
        Node(sender).send(RECIPIENT, "hello")
        return cls(tuple(pids), _port(sender), Node(recipient), _port(recipient))


def _port(url: str) -> int:
    return split_address(url.removeprefix("http://"))[1]


class _Messages(Mesh):
    work = "message"
    durable = True
    read = False

    def start(self, setting: Setting) -> None:
        self._nodes = setting.servers.shared("nodes", lambda: Nodes.start(setting.servers))
        self._roots = self._nodes.pids

    def _connect(self) -> socket.socket:
        return connect(self._nodes.sender_port)

    def _exchange(self, senders: Sequence[tuple[socket.socket, Post | Lines]]) -> Exchange:
        if not self.read:
            return Exchange(senders)
        so_far = self._nodes.recipient.status().document["inbox"]["next"]
        reading = connect(self._nodes.recipient_port)
        reading.sendall(Inbox.more(so_far))
        return Exchange(senders, (reading, Inbox()))


class Singles(_Messages):
    """One message a request, from as many connections as messages are under way."""

    title = "meshproto, `POST /send`"
    ratio = "singles_to"
    acknowledged = "fsynced at both ends, sealed on the way"
    loads = SINGLES

    def measure(self, load: Load, seconds: float) -> Sample:
        senders = [(self._connect(), Post()) for _ in range(load.connections)]
        return self._exchange(senders).run(load.in_flight, seconds, self.usage)


class SinglesRead(Singles):
    title = "meshproto, `POST /send`, and read"
    ratio = ""
    acknowledged = "the same, and a program has read it from the inbox"
    read = True


class Stream(_Messages):
    """All on one connection, as brokers' clients do it."""

    title = "meshproto, `POST /send`, streamed"
    ratio = "stream_to"
    acknowledged = "fsynced at both ends, sealed on the way"
    loads = STREAMED

    def measure(self, load: Load, seconds: float) -> Sample:
        connection = self._connect()
        connection.sendall(Lines.HEAD)
        return self._exchange([(connection, Lines())]).run(load.in_flight, seconds, self.usage)


class StreamRead(Stream):
    title = "meshproto, `POST /send`, streamed, and read"
    ratio = ""
    acknowledged = "the same, and a program has read it from the inbox"
    read = True
