"""Redis: GET for lookups, streams for messages."""

import shutil
import socket
from collections.abc import Iterable, Sequence
from typing import Any, Final

from bench.figures import Sample
from bench.load import redis_request, write_requests
from bench.peers.asking import ASKED, ask
from bench.peers.contest import LOOKUPS, MESSAGES, Load, Peer, Setting, shuffled, value, version_of
from bench.peers.exchange import NUMBER_DIGITS, RECEIVE_BYTES, Exchange, InOrder, connect, message
from bench.peers.machine import Unavailable, free_port
from meshproto.cli.processes import Failed

Reply = Any
"""Bytes, a number, None, or a list of replies."""

STREAM: Final = b"box"
GROUP: Final = b"UserX"
READ_AT_A_TIME: Final = b"500"
KEPT: Final = b"100000"
"""A stream is cut to about so many messages: Redis has them in memory."""
FILL_AT_A_TIME: Final = 1000


class _Incomplete(Exception):
    """The reply is not all there."""


def decode(data: bytes, at: int) -> tuple[Reply, int]:
    """The reply that begins there, and where it ends (RESP 2). Raises :class:`_Incomplete`."""
    end = data.find(b"\r\n", at)
    if end < 0:
        raise _Incomplete
    kind, text, at = data[at : at + 1], data[at + 1 : end], end + 2
    if kind == b"-":
        raise Failed(f"Redis said {text!r}")
    if kind == b"+":
        return text, at
    number = int(text)
    if kind == b":":
        return number, at
    if number < 0:
        return None, at
    if kind == b"$":
        if at + number + 2 > len(data):
            raise _Incomplete
        return data[at : at + number], at + number + 2
    items: list[Reply] = []
    for _ in range(number):
        item, at = decode(data, at)
        items.append(item)
    return items, at


class Replies:
    """What a connection says, reply by reply."""

    def __init__(self) -> None:
        self._rest = b""

    def receive(self, data: bytes) -> list[Reply]:
        data = self._rest + data
        at, replies = 0, []
        while at < len(data):
            try:
                reply, at = decode(data, at)
            except _Incomplete:
                break
            replies.append(reply)
        self._rest = data[at:]
        return replies


def call(connection: socket.socket, *words: bytes) -> Reply:
    connection.sendall(redis_request(*words))
    return replies_to(connection, 1)[0]


def replies_to(connection: socket.socket, count: int) -> list[Reply]:
    """So many replies, to what has been sent."""
    stream, replies = Replies(), list[Reply]()
    while len(replies) < count:
        data = connection.recv(RECEIVE_BYTES)
        if not data:
            raise Failed("Redis hung up")
        replies += stream.receive(data)
    return replies


class Add:
    """Sends to the stream; replies come in order."""

    def __init__(self) -> None:
        self._replies = Replies()
        self._order = InOrder()

    def send(self, numbers: Sequence[int]) -> bytes:
        self._order.sent(numbers)
        words = (b"XADD", STREAM, b"MAXLEN", b"~", KEPT, b"*", b"m")
        return b"".join(redis_request(*words, message(number)) for number in numbers)

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        return self._order.first(len(self._replies.receive(data))), b""


class Take:
    """The reader, one of a group: acknowledges what it was given and asks for more."""

    MORE: Final = redis_request(
        b"XREADGROUP", b"GROUP", GROUP, b"reader", b"COUNT", READ_AT_A_TIME, b"BLOCK", b"0", b"STREAMS", STREAM, b">"
    )

    def __init__(self) -> None:
        self._replies = Replies()

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        numbers: list[int] = []
        answer = b""
        for reply in self._replies.receive(data):
            if not isinstance(reply, list):
                continue  # how many were acknowledged
            entries = reply[0][1]  # of the one stream: [id, [field, value]] each
            numbers += [int(entry[1][1][:NUMBER_DIGITS]) for entry in entries]
            answer += redis_request(b"XACK", STREAM, GROUP, *(entry[0] for entry in entries)) + self.MORE
        return numbers, answer


class Redis(Peer):
    key = "redis"
    packages = ("redis-server",)

    def _launch(self, setting: Setting, name: str, *options: str) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            raise Unavailable("redis-server is not installed")
        self.version = version_of(binary, "--version")
        self.port = free_port()
        words = ["--bind", "127.0.0.1", "--protected-mode", "no", "--save", "", *options]
        words += ["--port", str(self.port), "--dir", str(setting.servers.place(name))]
        child = setting.servers.serve(name, self.port, binary, *words)
        self._roots = (child.process.pid,)


class Get(Redis):
    title = "Redis GET"
    acknowledged = "from memory"
    work = "lookup"
    loads = LOOKUPS

    def start(self, setting: Setting) -> None:
        self._launch(setting, "redis-get", "--appendonly", "no")
        names = [setting.name(number).encode() for number in shuffled(setting.names)]
        with connect(self.port) as connection:
            for at in range(0, len(names), FILL_AT_A_TIME):
                some = names[at : at + FILL_AT_A_TIME]
                connection.sendall(b"".join(redis_request(b"SET", name, value()) for name in some))
                replies_to(connection, len(some))
        self._requests = setting.servers.place("redis-get") / "requests"
        write_requests(self._requests, (redis_request(b"GET", name) for name in names[:ASKED]))

    def measure(self, load: Load, seconds: float) -> Sample:
        return ask("redis", self.port, self._requests, value().decode(), load, seconds, self._roots)


class Streams(Redis):
    title = "Redis streams, `appendfsync always`"
    acknowledged = "fsynced, once for all that came together"
    durable = True
    work = "message"
    loads = MESSAGES

    def start(self, setting: Setting) -> None:
        self._launch(setting, "redis-streams", "--appendonly", "yes", "--appendfsync", "always")

    def measure(self, load: Load, seconds: float) -> Sample:
        with connect(self.port) as connection:
            call(connection, b"FLUSHALL")
            call(connection, b"XGROUP", b"CREATE", STREAM, GROUP, b"$", b"MKSTREAM")
        reading = connect(self.port)
        reading.sendall(Take.MORE)
        senders = [(connect(self.port), Add()) for _ in range(load.connections)]
        return Exchange(senders, (reading, Take())).run(load.in_flight, seconds, self.usage)
