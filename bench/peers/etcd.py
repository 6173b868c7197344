"""etcd: Range for lookups, over gRPC, as its own clients ask."""

import base64
import http.client
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.figures import Sample
from bench.peers.contest import LOOKUPS, Load, Peer, Setting, shuffled, value, version_of
from bench.peers.exchange import CONNECT_S_MAX, sample
from bench.peers.machine import Unavailable, children_cpu_s, free_port
from meshproto.cli.processes import Failed

KEYS_MAX: Final = 100_000
"""A million take minutes to put there; one name out of them is asked for, so that it is all the same."""
FILL_AT_A_TIME: Final = 5000
REQUEST_BYTES_MAX: Final = 32 * 1024 * 1024
FILL_S_MAX: Final = 60.0
EXTRA_S_MAX: Final = 30.0
_RATE: Final = re.compile(r"finished in [\d.]+m?s, ([\d.]+) req/s")
_DONE: Final = re.compile(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout")
_DATA: Final = re.compile(r"\((\d+)\) data")


def range_request(key: bytes) -> bytes:
    """A gRPC message: a RangeRequest with key (1) and serializable (7), uncompressed."""
    text = b"\x0a%c%b\x38\x01" % (len(key), key)
    return b"\0" + len(text).to_bytes(4, "big") + text


class Range(Peer):
    key = "etcd"
    title = "etcd Range, serializable"
    acknowledged = "from memory, maybe not the newest"
    work = "lookup"
    loads = LOOKUPS
    packages = ("etcd-server", "nghttp2-client")

    def start(self, setting: Setting) -> None:
        binary = shutil.which("etcd")
        if binary is None or shutil.which("h2load") is None:
            raise Unavailable("etcd or h2load is not installed")
        self.version = version_of(binary, "--version")
        self._port, peer = free_port(), free_port()
        place = setting.servers.place("etcd")
        options = {
            "data-dir": str(place / "data"),
            "listen-client-urls": f"http://127.0.0.1:{self._port}",
            "advertise-client-urls": f"http://127.0.0.1:{self._port}",
            "listen-peer-urls": f"http://127.0.0.1:{peer}",
            "initial-advertise-peer-urls": f"http://127.0.0.1:{peer}",
            "initial-cluster": f"default=http://127.0.0.1:{peer}",
            "max-txn-ops": str(FILL_AT_A_TIME),
            "max-request-bytes": str(REQUEST_BYTES_MAX),
            "log-level": "error",
        }
        words = [f"--{name}={word}" for name, word in options.items()]
        child = setting.servers.serve("etcd", self._port, binary, *words)
        self._roots = (child.process.pid,)
        names = [setting.name(number) for number in shuffled(min(setting.names, KEYS_MAX))]
        for at in range(0, len(names), FILL_AT_A_TIME):
            self._fill(names[at : at + FILL_AT_A_TIME])
        self._request = place / "request"
        self._request.write_bytes(range_request(names[0].encode()))
        self._expected_bytes = len(value())
        self._log = place / "times"

    def _fill(self, names: list[str]) -> None:
        text = base64.b64encode(value()).decode()
        puts = [{"requestPut": {"key": base64.b64encode(name.encode()).decode(), "value": text}} for name in names]
        self._call("/v3/kv/txn", {"success": puts})

    def _call(self, path: str, question: Any) -> Any:
        """Over its JSON gateway, which is slower: only to fill it."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=FILL_S_MAX)
        try:
            connection.request("POST", path, msgspec.json.encode(question))
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise Failed(f"etcd answered {response.status} {body[:300]!r}")
        return msgspec.json.decode(body)

    def measure(self, load: Load, seconds: float) -> Sample:
        """By h2load, which sends one request again and again: the same name each time, in etcd's favour."""
        command = ["h2load", "--clients", str(load.connections), "--max-concurrent-streams", str(load.depth)]
        command += [
            "--duration",
            str(max(1, round(seconds))),
            "--data",
            str(self._request),
            "--log-file",
            str(self._log),
        ]
        command += ["--header", "content-type: application/grpc", "--header", "te: trailers"]
        command.append(f"http://127.0.0.1:{self._port}/etcdserverpb.KV/Range")
        self._log.unlink(missing_ok=True)
        server_s, load_s = self.usage(), children_cpu_s()
        ended = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds + CONNECT_S_MAX + EXTRA_S_MAX
        )
        server_s, load_s = self.usage() - server_s, children_cpu_s() - load_s
        rate, done, data = (pattern.search(ended.stdout) for pattern in (_RATE, _DONE, _DATA))
        if ended.returncode or not (rate and done and data):
            raise Failed(f"h2load: {ended.stdout[-500:]}{ended.stderr[-500:]}")
        answers = int(done[1])
        if int(data[1]) < answers * self._expected_bytes:
            raise Failed(f"{answers} answers had {data[1]} bytes: not all of them had the value")
        per_s = float(rate[1])
        return sample(per_s, server_s, load_s, answers / per_s, times_ms(self._log))


def times_ms(log: Path) -> list[float]:
    """How long each request took: the third column, in microseconds; the second is its status."""
    lines = (line.split("\t") for line in log.read_text(encoding="ascii").splitlines())
    took = [int(line[2]) / 1000 for line in lines if line[1] == "200"]
    if len(took) < 2:
        raise Failed(f"{len(took)} requests were answered")
    return took
