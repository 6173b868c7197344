"""The load generator, `load.c`, from Python: what it is to send, how, and what it found."""

import struct
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from bench.compiled import program

Protocol = Literal["line", "redis", "http"]
EXTRA_S_MAX: Final = 60.0
"""What a run may take longer than it was asked for: connecting, the last answers."""


class LoadFailed(Exception):
    """The load generator gave up; the text says why."""


class Plan(Struct, frozen=True):
    """See the head of `load.c`. `count` takes the place of the two times. `core`: the one that the load generator keeps
    to, so that it does not take the server's."""

    connections: int = 1
    depth: int = 1
    sources: int = 0
    warmup: float = 0.2
    seconds: float = 1.0
    count: int = 0
    core: int | None = None


class Load(Struct, frozen=True):
    """One run. `answers` are those that were what was expected, and the rates and times are those of these alone;
    `wrong` is the first of the others. `server_cpu_s`: in the order of the processes given."""

    answers: int
    errors: int
    seconds: float
    per_s: float
    p50_us: float
    p99_us: float
    max_us: float
    bytes_in: int
    load_cpu_s: float
    server_cpu_s: list[float]
    wrong: str

    @property
    def load_us(self) -> float:
        """CPU time of the load generator for a request."""
        return 1e6 * self.load_cpu_s / max(1, self.answers + self.errors)

    def server_us(self, process: int = 0) -> float:
        """CPU time of a server for a request, all its threads."""
        return 1e6 * self.server_cpu_s[process] / max(1, self.answers + self.errors)


def write_requests(path: Path, requests: Iterable[bytes]) -> None:
    """Each with its length before it, as `load.c` reads them."""
    with path.open("wb") as file:
        for request in requests:
            file.write(struct.pack("<I", len(request)) + request)


def run(protocol: Protocol, address: str, requests: Path, expected: str, plan: Plan, pids: Sequence[int] = ()) -> Load:
    """Raises :class:`LoadFailed`, and :class:`bench.compiled.NoCompiler`."""
    options = [("connections", plan.connections), ("depth", plan.depth), ("sources", plan.sources)]
    options += [("count", plan.count)] if plan.count else [("warmup", plan.warmup), ("seconds", plan.seconds)]  # type: ignore[list-item]
    options += [("pid", pid) for pid in pids]
    command = [] if plan.core is None else ["taskset", "--cpu-list", str(plan.core)]
    command += [str(program("load")), protocol, address, str(requests), expected]
    command += [str(word) for option in options for word in option]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=plan.warmup + plan.seconds + EXTRA_S_MAX
    )
    if ended.returncode:
        raise LoadFailed(ended.stderr.strip())
    return msgspec.json.decode(ended.stdout, type=Load)


# -- requests -----------------------------------------------------------------------------------------------------


def redis_request(*words: bytes) -> bytes:
    """A command as RESP has it: an array of bulk strings."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def http_request(target: str, body: bytes, host: str = "127.0.0.1", method: str = "POST") -> bytes:
    """As a client sends it that keeps its connection."""
    head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + body
