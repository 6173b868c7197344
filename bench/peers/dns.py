"""A DNS server, NSD: TXT records as long as what the others store, over UDP and TCP."""

import contextlib
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

from bench.figures import Sample
from bench.peers.asking import ASKED
from bench.peers.contest import LOOKUPS, Load, Peer, Setting, shuffled, value, version_of
from bench.peers.exchange import CONNECT_S_MAX, Exchange, connect, sample
from bench.peers.machine import START_S_MAX, Unavailable, children_cpu_s, free_port
from meshproto.cli.processes import Failed, until

ZONE: Final = "mesh.test"
STRING_BYTES_MAX: Final = 255
"""A TXT record is made of strings of at most so much."""
EXTRA_S_MAX: Final = 30.0
PATIENCE_S: Final = 0.2
DATAGRAM_BYTES: Final = 4096
ID_MASK: Final = 0xFFFF
RCODE_MASK: Final = 0x020F
"""Whether it was cut off, and what went wrong."""
ELSEWHERE: Final = 7919
"""So far apart in the names the connections begin."""
CONFIGURATION: Final = """\
server:
    ip-address: 127.0.0.1@{port}
    username: ""
    zonesdir: "{place}"
    zonelistfile: "{place}/zone.list"
    xfrdfile: "{place}/xfrd.state"
    xfrdir: "{place}"
    pidfile: "{place}/nsd.pid"
    database: ""
    server-count: 1
    tcp-count: 200
    tcp-query-count: 0
    rrl-ratelimit: 0
    rrl-whitelist-ratelimit: 0
remote-control:
    control-enable: no
zone:
    name: {zone}
    zonefile: zone
"""
HEAD: Final = f"$ORIGIN {ZONE}.\n$TTL 3600\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\n"
_FIGURES: Final = {
    "completed": re.compile(r"Queries completed: +(\d+)"),
    "per_s": re.compile(r"Queries per second: +([\d.]+)"),
    "found": re.compile(r"NOERROR (\d+)"),
}


def record(name: str) -> str:
    text = value().decode()
    strings = (text[at : at + STRING_BYTES_MAX] for at in range(0, len(text), STRING_BYTES_MAX))
    return f"{name} TXT {' '.join(strings)}\n"


def query(number: int, name: str) -> bytes:
    """For the TXT record (16) of class IN (1), with the number's low bits as its id; recursion is not desired."""
    labels = b"".join(bytes([len(label)]) + label for label in f"{name}.{ZONE}".encode().split(b"."))
    return struct.pack(">6H", number & ID_MASK, 0, 1, 0, 0, 0) + labels + b"\0\0\x10\0\x01"


class Questions:
    """Queries on one connection, each after its length; answers may come in any order."""

    def __init__(self, link: int, names: Sequence[str]) -> None:
        self._names = names
        self._first = link * ELSEWHERE
        self._numbers: dict[int, int] = {}
        self._rest = b""

    def send(self, numbers: Sequence[int]) -> bytes:
        return b"".join(map(self._one, numbers))

    def _one(self, number: int) -> bytes:
        self._numbers[number & ID_MASK] = number
        asked = query(number, self._names[(self._first + number) % len(self._names)])
        return len(asked).to_bytes(2, "big") + asked

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        data, at, numbers = self._rest + data, 0, []
        while (begin := at + 2) <= len(data) and (end := begin + int.from_bytes(data[at:begin], "big")) <= len(data):
            number, flags, _, answers = struct.unpack_from(">4H", data, begin)
            if flags & RCODE_MASK or not answers:
                raise Failed(f"a query was answered {data[begin:end][:80]!r}")
            numbers.append(self._numbers.pop(number))
            at = end
        self._rest = data[at:]
        return numbers, b""


class Zone(NamedTuple):
    """A server with all the names. `asked`: those that are asked for, and the file of them for dnsperf."""

    port: int
    pid: int
    asked: list[str]
    queries: Path

    @classmethod
    def start(cls, setting: Setting, binary: str) -> Self:
        port, place = free_port(), setting.servers.place("nsd")
        (place / "nsd.conf").write_text(CONFIGURATION.format(port=port, place=place, zone=ZONE), encoding="ascii")
        names = [setting.name(number) for number in shuffled(setting.names)]
        with (place / "zone").open("w", encoding="ascii") as zone:
            zone.write(HEAD)
            zone.writelines(map(record, names))
        asked = names[:ASKED]
        (place / "queries").write_text("".join(f"{name}.{ZONE} TXT\n" for name in asked), encoding="ascii")
        child = setting.servers.serve("nsd", port, binary, "-d", "-c", place / "nsd.conf")
        started = cls(port, child.process.pid, asked, place / "queries")
        until(started.answers, "NSD has read its zone", START_S_MAX)
        return started

    def answers(self) -> bool | None:
        """It takes connections before it has read its zone."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(PATIENCE_S)
            asking.sendto(query(1, self.asked[0]), ("127.0.0.1", self.port))
            with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                return value()[:STRING_BYTES_MAX] in asking.recv(DATAGRAM_BYTES) or None
        return None


class _Nsd(Peer):
    key = "dns"
    work = "lookup"
    loads = LOOKUPS
    acknowledged = "from memory"
    packages = ("nsd", "dnsperf")

    def start(self, setting: Setting) -> None:
        binary = shutil.which("nsd", path="/usr/sbin:/usr/bin")
        if binary is None or shutil.which("dnsperf") is None:
            raise Unavailable("nsd or dnsperf is not installed")
        self.version = version_of(binary, "-v")
        self._zone = setting.servers.shared("nsd", lambda: Zone.start(setting, binary))
        self._roots = (self._zone.pid,)


class Udp(_Nsd):
    """By dnsperf, which keeps so many queries under way in all, and tells no percentiles."""

    title = "DNS (NSD), UDP"

    def measure(self, load: Load, seconds: float) -> Sample:
        command = ["dnsperf", "-s", "127.0.0.1", "-p", str(self._zone.port), "-d", str(self._zone.queries)]
        command += ["-c", str(load.connections), "-q", str(load.in_flight), "-l", str(max(1, round(seconds)))]
        server_s, load_s = self.usage(), children_cpu_s()
        ended = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds + CONNECT_S_MAX + EXTRA_S_MAX
        )
        server_s, load_s = self.usage() - server_s, children_cpu_s() - load_s
        found = {name: match[1] for name, pattern in _FIGURES.items() if (match := pattern.search(ended.stdout))}
        if ended.returncode or found.keys() != _FIGURES.keys() or found["found"] != found["completed"]:
            raise Failed(f"dnsperf: {ended.stdout[-800:]}{ended.stderr[-300:]}")
        answers, per_s = int(found["completed"]), float(found["per_s"])
        return sample(per_s, server_s, load_s, answers / per_s)


class Tcp(_Nsd):
    """By our own load: with one TCP connection dnsperf leaves both cores idle for most of the time."""

    title = "DNS (NSD), TCP"

    def measure(self, load: Load, seconds: float) -> Sample:
        senders = [
            (connect(self._zone.port), Questions(number, self._zone.asked)) for number in range(load.connections)
        ]
        return Exchange(senders).run(load.in_flight, seconds, self.usage)
