"""Servers as processes that end with the benchmark, the cores that they and their load keep to, and what they use."""

import contextlib
import gc
import itertools
import os
import random
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from bench.servers import LOAD_CORE, SERVER_CORE, on_core
from meshproto.cli.processes import TWISTD, Child, Children, Failed, until

START_S_MAX: Final = 120.0
"""A seed reads a million names first, an Erlang system starts for many seconds on one core."""
ORPHAN_S_MAX: Final = 3.0
"""What a server's own processes may take to notice that it has ended."""
PORTS: Final = range(20_000, 32_000)
"""Below those that the system gives to connections: none of them takes a server's port before it listens."""
DEVICELESS: Final = frozenset({"tmpfs", "ramfs"})
TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


T = TypeVar("T")


class Unavailable(Exception):
    """A peer that cannot be measured here; the text says why, and stands in its row."""


class Servers(Children):
    """Servers of every kind, each in a process group of its own. Leaving ends them all, their own children too."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, command=())
        self.directory = directory
        self._shared: dict[str, Any] = {}

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        members = []
        for pid in family(*(child.process.pid for child in self.all.values())):
            with contextlib.suppress(ProcessLookupError):
                members.append(os.pidfd_open(pid))
        try:
            super().__exit__(type_, error, at)
        finally:
            _end(members)

    def place(self, name: str) -> Path:
        """A directory for a server's configuration and data."""
        place = self.directory / name
        place.mkdir(mode=0o700, exist_ok=True)
        return place

    def run(self, name: str, *command: str | Path, env: dict[str, str] | None = None) -> Child:
        """Start a server on the servers' core."""
        words = [f"{key}={value}" for key, value in (env or {}).items()]
        place = self.place(name)
        return self._spawn(name, place, self._log(name), on_core(SERVER_CORE, ["env", *words, *map(str, command)]))

    def serve(self, name: str, port: int, *command: str | Path, env: dict[str, str] | None = None) -> Child:
        """The same, and wait until it takes connections."""
        child = self.run(name, *command, env=env)
        self.wait_for_port(child, port)
        return child

    def twistd(self, service: str, name: str, *options: str) -> tuple[str, Child]:
        """One of our own: its address, and the process."""
        place = self.place(name)
        words = ("-n", "--pidfile=", service, "--name", name, "--port", "0", "--state", str(place), *options)
        child = self._spawn(name, place, self._log(name), on_core(SERVER_CORE, [*TWISTD, *words]))
        return until(child.address, f"{name} listens", START_S_MAX), child

    def shared(self, name: str, start: Callable[[], T]) -> T:
        """What several have in common: started when the first of them asks for it."""
        if name not in self._shared:
            self._shared[name] = start()
        return self._shared[name]  # type: ignore[no-any-return]

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    @staticmethod
    def wait_for_port(child: Child, port: int) -> None:
        def listens() -> bool | None:
            if child.process.poll() is not None:
                raise Failed(f"{child.name} ended with exit code {child.process.returncode}: {child.last_words()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
                return True
            return None

        until(listens, f"{child.name} takes connections", START_S_MAX)


def _end(members: list[int]) -> None:
    """Those that have not ended with their server; by descriptors, since a number may be somebody else's by now."""
    deadline = time.monotonic() + ORPHAN_S_MAX
    for member in members:
        if not select.select([member], [], [], max(0.0, deadline - time.monotonic()))[0]:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(member, signal.SIGKILL)
            select.select([member], [], [], ORPHAN_S_MAX)
        os.close(member)


_ports: Final = itertools.cycle(random.sample(PORTS, len(PORTS)))


def free_port() -> int:
    """One that nobody has at the moment, and that this gives once only: not every server can take port 0 and tell which
    one that became."""
    for port in itertools.islice(_ports, len(PORTS)):
        with contextlib.suppress(OSError), socket.socket() as tried:
            tried.bind(("127.0.0.1", port))
            return port
    raise Failed("no port is free")


@contextlib.contextmanager
def as_load() -> Iterator[None]:
    """Meanwhile this process, and what it starts without saying otherwise, leaves the servers' core alone, and does not
    stop to look for garbage."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {LOAD_CORE})
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        os.sched_setaffinity(0, cores)


def real_disk(directory: Path) -> str:
    """The kind of file system there. Raises :class:`Failed` where fsync means nothing."""
    mounts = (line.split()[:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines())
    above = [(Path(at), kind) for _, at, kind in mounts if directory.resolve().is_relative_to(at)]
    kind = max(above, key=lambda mount: len(mount[0].parts))[1]
    if kind in DEVICELESS:
        raise Failed(f"{directory} is on {kind}, where fsync costs nothing: name a directory on a disk with --state")
    return kind


# -- what processes use -------------------------------------------------------------------------------------------


def _stat(pid: int) -> list[str]:
    """The fields after the name, which is in brackets and may hold anything (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def family(*roots: int) -> set[int]:
    """The processes and all their descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found: set[int] = set()
    wanted = list(roots)
    while wanted:
        pid = wanted.pop()
        found.add(pid)
        wanted += children.get(pid, [])
    return found


def cpu_s(*roots: int) -> float:
    """What the processes and their descendants have used so far, with those that have ended."""

    def used() -> Iterator[int]:
        for pid in family(*roots):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                yield sum(map(int, _stat(pid)[11:15]))

    return TICK_S * sum(used())


def children_cpu_s() -> float:
    """What programs that we ran and waited for have used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
