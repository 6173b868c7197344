"""RabbitMQ: AMQP 0-9-1, durable queues, persistent messages, publisher confirms, a consumer that acknowledges each."""

import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from bench.figures import Sample
from bench.peers.contest import MESSAGES, Load, Peer, Setting
from bench.peers.exchange import NUMBER_DIGITS, RECEIVE_BYTES, Exchange, connect, message
from bench.peers.machine import Unavailable, free_port
from meshproto.cli.processes import Failed

SCRIPTS: Final = Path("/usr/lib/rabbitmq/bin")
"""Debian's own wrapper around them changes to another user."""
QUEUE: Final = b"UserX"
METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END: Final = b"\xce"
HEAD_BYTES: Final = 7
FRAME_BYTES_MAX: Final = 131072
BASIC: Final = 60
CONNECTION_START, START_OK, TUNE, TUNE_OK = (10, 10), (10, 11), (10, 30), (10, 31)
OPEN, OPEN_OK, CHANNEL_OPEN, CHANNEL_OPEN_OK = (10, 40), (10, 41), (20, 10), (20, 11)
QUEUE_DECLARE, QUEUE_DECLARE_OK, QUEUE_DELETE, QUEUE_DELETE_OK = (50, 10), (50, 11), (50, 40), (50, 41)
CONFIRM_SELECT, CONFIRM_SELECT_OK, CONSUME, CONSUME_OK = (85, 10), (85, 11), (60, 20), (60, 21)
PUBLISH, DELIVER, ACK = (60, 40), (60, 60), (60, 80)
DURABLE: Final = 2
PERSISTENT: Final = b"\x10\x00\x02"
"""Of a message's properties the delivery mode alone, which is 2."""


def frame(kind: int, channel: int, body: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(body)) + body + FRAME_END


def method(name: tuple[int, int], arguments: bytes = b"", channel: int = 1) -> bytes:
    return frame(METHOD, channel, struct.pack(">HH", *name) + arguments)


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def table(**values: bytes) -> bytes:
    """Of strings."""
    rows = (short(name.replace("_", "-").encode()) + b"S" + len(v).to_bytes(4, "big") + v for name, v in values.items())
    text = b"".join(rows)
    return len(text).to_bytes(4, "big") + text


class Frames:
    """What a connection says, frame by frame."""

    def __init__(self) -> None:
        self._rest = b""

    def receive(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The kind and the body of each that is whole."""
        data, at = self._rest + data, 0
        while at + HEAD_BYTES < len(data):
            end = at + HEAD_BYTES + int.from_bytes(data[at + 3 : at + HEAD_BYTES], "big")
            if end >= len(data):
                break
            yield data[at], data[at + HEAD_BYTES : end]
            at = end + 1
        self._rest = data[at:]


def _is(body: bytes, name: tuple[int, int]) -> bool:
    return body.startswith(struct.pack(">HH", *name))


def call(connection: socket.socket, request: bytes, answer: tuple[int, int]) -> None:
    connection.sendall(request)
    frames = Frames()
    while not (got := [body for kind, body in frames.receive(connection.recv(RECEIVE_BYTES)) if kind == METHOD]):
        pass
    if not _is(got[0], answer):
        raise Failed(f"RabbitMQ answered {got[0]!r} instead of {answer}")


def dial(port: int) -> socket.socket:
    """A connection with a channel."""
    connection = connect(port)
    call(connection, b"AMQP\0\0\x09\x01", CONNECTION_START)
    plain = b"\0guest\0guest"
    login = table() + short(b"PLAIN") + len(plain).to_bytes(4, "big") + plain + short(b"en_US")
    call(connection, method(START_OK, login, 0), TUNE)
    connection.sendall(method(TUNE_OK, struct.pack(">HIH", 1, FRAME_BYTES_MAX, 0), 0))
    call(connection, method(OPEN, short(b"/") + b"\0\0", 0), OPEN_OK)
    call(connection, method(CHANNEL_OPEN, short(b"")), CHANNEL_OPEN_OK)
    return connection


class Publisher:
    """Counts what it sends, as the broker does: confirms name that count, and may mean all up to it."""

    HEAD: Final = method(PUBLISH, b"\0\0" + short(b"") + short(QUEUE) + b"\0")

    def __init__(self) -> None:
        self._frames = Frames()
        self._sent = 0
        self._numbers: dict[int, int] = {}

    def send(self, numbers: Sequence[int]) -> bytes:
        return b"".join(map(self._one, numbers))

    def _one(self, number: int) -> bytes:
        self._sent += 1
        self._numbers[self._sent] = number
        text = message(number)
        header = struct.pack(">HHQ", BASIC, 0, len(text)) + PERSISTENT
        return self.HEAD + frame(HEADER, 1, header) + frame(BODY, 1, text)

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        numbers: list[int] = []
        for kind, body in self._frames.receive(data):
            if kind == HEARTBEAT:
                continue
            if not _is(body, ACK):
                raise Failed(f"RabbitMQ said {body!r}")
            tag, several = struct.unpack(">QB", body[4:13])
            if several:
                tags = [before for before in self._numbers if before <= tag]
                numbers += [self._numbers.pop(before) for before in tags]
            else:
                numbers.append(self._numbers.pop(tag))
        return numbers, b""


class Consumer:
    """The reader: acknowledges each."""

    def __init__(self) -> None:
        self._frames = Frames()

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        numbers, answer = [], b""
        for kind, body in self._frames.receive(data):
            if kind == BODY:
                numbers.append(int(body[:NUMBER_DIGITS]))
            elif kind == METHOD and _is(body, DELIVER):
                tag_at = 5 + body[4]  # after the consumer's own tag
                answer += method(ACK, body[tag_at : tag_at + 8] + b"\0")
        return numbers, answer


class Classic(Peer):
    key = "rabbitmq"
    title = "RabbitMQ classic queue, persistent, confirms"
    acknowledged = "fsynced, or taken by the consumer before that"
    durable = True
    work = "message"
    loads = MESSAGES
    packages = ("rabbitmq-server",)
    kind = b"classic"

    def start(self, setting: Setting) -> None:
        server = SCRIPTS / "rabbitmq-server"
        if not server.exists():
            raise Unavailable("rabbitmq-server is not installed")
        self.version = _version()
        self._port, mapper, nodes = free_port(), free_port(), free_port()
        place = setting.servers.place(f"rabbitmq-{self.kind.decode()}")
        (place / "plugins").write_text("[].\n", encoding="ascii")
        (place / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self._port}\nloopback_users = none\nlog.console.level = error\n",
            encoding="ascii",
        )
        env = {
            "HOME": str(place),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(mapper),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(place / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(place / "plugins"),
            "RABBITMQ_NODENAME": f"bench-{self.kind.decode()}@localhost",
            "RABBITMQ_DIST_PORT": str(nodes),
            "RABBITMQ_MNESIA_BASE": str(place / "data"),
            "RABBITMQ_LOG_BASE": str(place / "log"),
            "RABBITMQ_PID_FILE": str(place / "pid"),
        }
        # Else the server starts a port mapper that outlives it.
        setting.servers.serve(f"{place.name}-epmd", mapper, "epmd", env=env)
        child = setting.servers.serve(place.name, self._port, server, env=env)
        self._roots = (child.process.pid,)

    def measure(self, load: Load, seconds: float) -> Sample:
        reading, *senders = (dial(self._port) for _ in range(1 + load.connections))
        call(reading, method(QUEUE_DELETE, b"\0\0" + short(QUEUE) + b"\0"), QUEUE_DELETE_OK)
        declare = b"\0\0" + short(QUEUE) + bytes([DURABLE]) + table(x_queue_type=self.kind)
        call(reading, method(QUEUE_DECLARE, declare), QUEUE_DECLARE_OK)
        for sending in senders:
            call(sending, method(CONFIRM_SELECT, b"\0"), CONFIRM_SELECT_OK)
        call(reading, method(CONSUME, b"\0\0" + short(QUEUE) + short(b"reader") + b"\0" + table()), CONSUME_OK)
        exchange = Exchange([(sending, Publisher()) for sending in senders], (reading, Consumer()))
        return exchange.run(load.in_flight, seconds, self.usage)


class Quorum(Classic):
    """Of one member: the log and its sync without the network."""

    title = "RabbitMQ quorum queue of one, confirms"
    acknowledged = "fsynced"
    kind = b"quorum"


def _version() -> str:
    """Of the library's directory: the program itself takes seconds to say it."""
    found = sorted(SCRIPTS.parent.glob("lib/rabbitmq_server-*"))
    return found[-1].name.rpartition("-")[2] if found else "?"
