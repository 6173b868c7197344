"""The servers that are measured, each a process of its own that keeps to one core; the load generator and whatever else
has work meanwhile keep to the other."""

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bench.compiled import program
from bench.load import redis_request
from meshproto.cli.processes import TWISTD, Failed, until

_CORES: Final = sorted(os.sched_getaffinity(0))
SERVER_CORE: Final = _CORES[0]
LOAD_CORE: Final = _CORES[-1]
ROOT: Final = Path(__file__).parent.parent
REDIS: Final = "redis-server"
REDIS_KEYS_AT_A_TIME: Final = 2000
REDIS_START_S_MAX: Final = 15.0


class Server(NamedTuple):
    """HOST:PORT, and the process."""

    address: str
    pid: int


def on_core(core: int, command: Sequence[str], niceness: int = 0) -> tuple[str, ...]:
    nice = ("nice", "--adjustment", str(niceness)) if niceness else ()
    return ("taskset", "--cpu-list", str(core), *nice, *command)


NODE: Final = on_core(SERVER_CORE, TWISTD)
"""For :class:`meshproto.cli.processes.Children`: nodes that are measured,"""
BESIDE: Final = on_core(LOAD_CORE, TWISTD)
"""and those that share the load generator's core,"""
BEHIND: Final = on_core(LOAD_CORE, TWISTD, niceness=19)
"""giving way to it."""


@contextlib.contextmanager
def echo() -> Iterator[Server]:
    """What the machine allows: a server in C that gives back what it gets."""
    with _serving([str(program("echo"))]) as server:
        yield server


@contextlib.contextmanager
def twisted_echo() -> Iterator[Server]:
    """What Twisted allows: the same in it, see :mod:`bench.direct_echo`."""
    with _serving([sys.executable, "-m", "bench.direct_echo"]) as server:
        yield server


@contextlib.contextmanager
def bare_lookups(known: int) -> Iterator[Server]:
    """What Python allows: see :mod:`bench.bare_lookup`."""
    with _serving([sys.executable, "-m", "bench.bare_lookup", str(known)]) as server:
        yield server


@contextlib.contextmanager
def bare_sends(directory: Path) -> Iterator[tuple[Server, Server]]:
    """What Python allows, and the disk: a sender, and beside the load generator its recipient (see
    :mod:`bench.bare_send`)."""
    program = [sys.executable, "-m", "bench.bare_send"]
    with _serving([*program, str(directory / "recipient.db")], LOAD_CORE) as recipient:
        port = recipient.address.rpartition(":")[2]
        with _serving([*program, str(directory / "sender.db"), port]) as sender:
            yield sender, recipient


def redis_is_there() -> bool:
    return shutil.which(REDIS) is not None


@contextlib.contextmanager
def redis(pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[Server]:
    """redis-server as it comes, but that it writes nothing to disk; with these keys and values in it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    settings = (
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--appendonly",
        "no",
    )
    with _running([REDIS, *settings]) as process:
        with until(lambda: _dialled(port), "redis listens", REDIS_START_S_MAX) as connection:
            _fill(connection, iter(pairs))
        yield Server(f"127.0.0.1:{port}", process.pid)


@contextlib.contextmanager
def many(kind: str, count: int, directory: Path, seed: str, niceness: int = 0) -> Iterator[int]:
    """So many nodes in one process (:mod:`bench.many`), beside the load generator: its id, once all are there."""
    command = [sys.executable, "-m", "bench.many", kind, str(count), str(directory), seed]
    with _running(command, LOAD_CORE, niceness) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise Failed(f"the {count} {kind} did not start")
        yield process.pid


@contextlib.contextmanager
def _serving(command: list[str], core: int = SERVER_CORE) -> Iterator[Server]:
    """A program whose first line is the port that it listens on."""
    with _running(command, core) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise Failed(f"{' '.join(command)} did not start")
        yield Server(f"127.0.0.1:{port}", process.pid)


@contextlib.contextmanager
def _running(command: list[str], core: int = SERVER_CORE, niceness: int = 0) -> Iterator["subprocess.Popen[str]"]:
    pinned = on_core(core, command, niceness)
    with subprocess.Popen(pinned, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def _dialled(port: int) -> socket.socket | None:
    try:
        return socket.create_connection(("127.0.0.1", port), timeout=REDIS_START_S_MAX)
    except ConnectionRefusedError:
        return None


def _fill(connection: socket.socket, pairs: Iterator[tuple[bytes, bytes]]) -> None:
    done = b"+OK\r\n"
    while portion := [redis_request(b"SET", *pair) for pair in itertools.islice(pairs, REDIS_KEYS_AT_A_TIME)]:
        connection.sendall(b"".join(portion))
        left = len(done) * len(portion)
        while left:
            got = connection.recv(left)
            if not got or got.strip(done):
                raise Failed(f"redis answered {got[:100]!r}")
            left -= len(got)
