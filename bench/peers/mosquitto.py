"""Mosquitto: MQTT 3.1.1, QoS 1 from end to end, a subscriber whose session is kept."""

import shutil
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from bench.figures import Sample
from bench.peers.contest import EACH_SYNCED, MESSAGES, Load, Peer, Setting, version_of
from bench.peers.exchange import NUMBER_DIGITS, Exchange, connect, message
from bench.peers.machine import Unavailable, free_port
from meshproto.cli.processes import Failed

TOPIC: Final = b"box/UserX"
PACKET_IDS: Final = 65535
CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 0x10, 0x20, 0x30, 0x40, 0x82, 0x90
QOS_1: Final = 0x02
CLEAN_SESSION: Final = 0x02
CONFIGURATION: Final = """\
listener {port} 127.0.0.1
allow_anonymous true
user root
set_tcp_nodelay true
max_inflight_messages 0
max_queued_messages 0
persistence true
persistence_location {place}/
"""


def packet(kind: int, body: bytes) -> bytes:
    """With its length before it, seven bits a byte."""
    length, head = len(body), bytearray([kind])
    while True:
        length, low = length >> 7, length & 0x7F
        head.append(low | (0x80 if length else 0))
        if not length:
            return bytes(head) + body


def text(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


class Packets:
    """What a connection says, packet by packet."""

    def __init__(self) -> None:
        self._rest = b""

    def receive(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The first byte and the body of each that is whole."""
        data, at = self._rest + data, 0
        while (found := self._end(data, at)) is not None:
            begin, end = found
            yield data[at], data[begin:end]
            at = end
        self._rest = data[at:]

    @staticmethod
    def _end(data: bytes, at: int) -> tuple[int, int] | None:
        length = shift = 0
        for begin in range(at + 1, min(len(data), at + 5)):
            length |= (data[begin] & 0x7F) << shift
            shift += 7
            if data[begin] < 0x80:
                end = begin + 1 + length
                return (begin + 1, end) if end <= len(data) else None
        return None


def dial(port: int, name: bytes, *, clean: bool) -> socket.socket:
    connection = connect(port)
    flags = CLEAN_SESSION if clean else 0
    connection.sendall(packet(CONNECT, text(b"MQTT") + bytes([4, flags, 0, 0]) + text(name)))
    expect(connection, CONNACK)
    return connection


def expect(connection: socket.socket, kind: int) -> None:
    packets = Packets()
    while not (got := list(packets.receive(connection.recv(4096)))):
        pass
    if got[0][0] != kind or got[0][1][-1] & 0x80 or (kind == CONNACK and got[0][1][1]):
        raise Failed(f"Mosquitto answered {got}")


class Publish:
    """Each message has a packet id, which is free again when it is acknowledged."""

    def __init__(self) -> None:
        self._packets = Packets()
        self._numbers: dict[bytes, int] = {}

    def send(self, numbers: Sequence[int]) -> bytes:
        return b"".join(map(self._one, numbers))

    def _one(self, number: int) -> bytes:
        packet_id = (number % PACKET_IDS + 1).to_bytes(2, "big")
        self._numbers[packet_id] = number
        return packet(PUBLISH | QOS_1, text(TOPIC) + packet_id + message(number))

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        return [self._numbers.pop(body) for kind, body in self._packets.receive(data) if kind == PUBACK], b""


class Subscriber:
    """The reader: acknowledges each."""

    def __init__(self) -> None:
        self._packets = Packets()

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        at = 2 + len(TOPIC)  # where the packet id is, and after it the message
        bodies = [body for kind, body in self._packets.receive(data) if kind & 0xF0 == PUBLISH]
        numbers = [int(body[at + 2 : at + 2 + NUMBER_DIGITS]) for body in bodies]
        return numbers, b"".join(packet(PUBACK, body[at : at + 2]) for body in bodies)


class Mosquitto(Peer):
    """As it comes, with a store on disk: written every half hour, and at the end."""

    key = "mosquitto"
    title = "Mosquitto QoS 1, default"
    acknowledged = "in memory; saved every 30 minutes"
    work = "message"
    loads = MESSAGES
    packages = ("mosquitto",)
    _more = ""

    def start(self, setting: Setting) -> None:
        binary = shutil.which("mosquitto", path="/usr/sbin:/usr/bin")
        if binary is None:
            raise Unavailable("mosquitto is not installed")
        self.version = version_of(binary, "-h")
        self._port = free_port()
        place = setting.servers.place(type(self).__name__)
        text_ = CONFIGURATION.format(port=self._port, place=place) + self._more
        (place / "mosquitto.conf").write_text(text_, encoding="ascii")
        child = setting.servers.serve(place.name, self._port, binary, "-c", place / "mosquitto.conf")
        self._roots = (child.process.pid,)

    def measure(self, load: Load, seconds: float) -> Sample:
        dial(self._port, b"reader", clean=True).close()  # forget what an earlier one has left
        reading = dial(self._port, b"reader", clean=False)
        reading.sendall(packet(SUBSCRIBE, b"\0\1" + text(TOPIC) + b"\1"))
        expect(reading, SUBACK)
        names = [b"sender%d" % number for number in range(load.connections)]
        senders = [(dial(self._port, name, clean=True), Publish()) for name in names]
        return Exchange(senders, (reading, Subscriber())).run(load.in_flight, seconds, self.usage)


class Autosave(Mosquitto):
    title = "Mosquitto QoS 1, saved at every change"
    acknowledged = "in memory; saved soon after, the whole store at a time"
    loads = EACH_SYNCED
    _more = "autosave_on_changes true\nautosave_interval 1\n"
