"""A real Redis Cluster of six processes, or a single server (Debian's redis-server), on free ports in a folder.

Nothing here sleeps for a time that is hoped to be long enough: what is waited for is asked for.
"""

import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self

from bench.load import redis_request
from bench.peers.machine import free_port
from bench.peers.redis import replies_to
from meshproto.cli.processes import Failed, until

NODE_TIMEOUT_MS: Final = 500
"""Until the others take a node for lost; the cluster then needs about a second more for a new master."""
START_S_MAX: Final = 30.0
CLUSTER: Final = 6
BUS_OFFSET: Final = 10_000
SERVER: Final = shutil.which("redis-server")
MISSING: Final = None if SERVER else "redis-server is not installed: apt-get install redis-server"


class RedisServer:
    """One process. It has nothing on disk that outlives it, but a cluster's node its place in the cluster."""

    def __init__(self, folder: Path, *options: str, port: int | None = None, plain: bool = True) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.options = options
        self.plain = plain
        self.password = ""
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> Self:
        assert SERVER is not None
        place = ("--port", str(self.port)) if self.plain else ("--port", "0", "--tls-port", str(self.port))
        common = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self.folder))
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([SERVER, *place, *common, *self.options], stdout=log, stderr=log)
        until(self._listens, f"redis-server at {self.port} listens", START_S_MAX)
        return self

    def _listens(self) -> bool | None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise Failed((self.folder / "log").read_text())
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
            return True
        return None

    def kill(self) -> None:
        """As if the machine had failed; also one that is frozen."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ask(self, *words: str) -> Any:
        """Raises OSError while it does not answer, :class:`Failed` for an error."""
        with socket.create_connection(("127.0.0.1", self.port), 2.0) as connection:
            connection.settimeout(2.0)
            connection.sendall(redis_request(*(word.encode() for word in words)))
            return replies_to(connection, 1)[0]


class Cluster:
    """Three masters, a replica each."""

    def __init__(self, folder: Path) -> None:
        options = (
            *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"),
            *("--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
            # What one part of the keys has lost does not stop the others,
            *("--cluster-require-full-coverage", "no"),
            # a replica that was cut off for a moment may still stand in,
            *("--cluster-replica-validity-factor", "0"),
            # gets what it lacks at once,
            *("--repl-diskless-sync-delay", "0"),
            # which is known once it has heard its master.
            *("--repl-ping-replica-period", "1"),
        )
        self.servers: list[RedisServer] = []
        for number in range(CLUSTER):
            self.servers.append(RedisServer(folder / str(number), *options, port=_with_bus()))

    def start(self) -> Self:
        for server in self.servers:
            server.start()
        command = ["redis-cli", "--cluster", "create", *(server.address for server in self.servers)]
        made = subprocess.run(
            [*command, "--cluster-replicas", "1", "--cluster-yes"], capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise Failed(made.stdout + made.stderr)
        self.wait_until_whole()
        return self

    def stop(self) -> None:
        for server in self.servers:
            server.kill()

    def addresses(self) -> str:
        return ",".join(server.address for server in self.servers)

    def master(self, key: str) -> RedisServer:
        """Whoever has it now."""
        slot = self._any("CLUSTER", "KEYSLOT", key)
        for first, last, (_, port, *_rest), *_ in self._any("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return self._at(port)
        raise Failed(f"nobody has {key}")

    def masters(self) -> list[RedisServer]:
        return [self._at(row[2][1]) for row in self._any("CLUSTER", "SLOTS")]

    def subscribed(self, channel: str) -> RedisServer:
        """Where somebody listens to it."""
        return next(server for server in self.servers if server.ask("PUBSUB", "NUMSUB", channel)[1])

    def replica_of(self, master: RedisServer) -> RedisServer:
        row = next(row for row in self._any("CLUSTER", "SLOTS") if row[2][1] == master.port)
        return self._at(row[3][1])

    @contextlib.contextmanager
    def moving(self, key: str) -> Iterator[Callable[[list[str]], None]]:
        """Meanwhile its slot is on its way from one master to another: moves the keys it is given. Then it is there."""
        source = self.master(key)
        target = next(master for master in self.masters() if master is not source)
        slot = str(source.ask("CLUSTER", "KEYSLOT", key))
        ids = {server: server.ask("CLUSTER", "MYID").decode() for server in (source, target)}
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])

        def move(keys: list[str]) -> None:
            source.ask("MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", *keys)

        yield move
        for server in (target, source):
            server.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target])

    def kill_master(self, key: str) -> RedisServer:
        """Whose it was."""
        server = self.master(key)
        server.kill()
        return server

    def wait_for_failover(self, lost: RedisServer) -> None:
        """Until every slot has a master that is not the lost one, and all who live know that."""
        until(lambda: self._agree(lost) or None, "another master stands in", START_S_MAX)

    def wait_until_whole(self) -> None:
        """Until all live, are in step with their masters, and know each other."""
        until(lambda: self._is_whole() or None, "the cluster is whole", START_S_MAX)

    def restart(self, server: RedisServer) -> None:
        server.start()
        self.wait_until_whole()

    def _is_whole(self) -> bool:
        try:
            return all(self._knows_all(server) for server in self.servers)
        except (OSError, Failed):
            return False

    def _knows_all(self, server: RedisServer) -> bool:
        rows = server.ask("CLUSTER", "SLOTS")
        replication = server.ask("INFO", "replication")
        in_step = b"master_link_status:up" in replication or b"state=online" in replication
        covered = sum(last + 1 - first for first, last, *_ in rows) == 16384
        known = len({node[1] for row in rows for node in row[2:]}) == CLUSTER
        return covered and known and in_step and b"cluster_state:ok" in server.ask("CLUSTER", "INFO")

    def _agree(self, lost: RedisServer) -> bool:
        try:
            views = [server.ask("CLUSTER", "SLOTS") for server in self.servers if server is not lost]
        except (OSError, Failed):
            return False
        owners = [{(row[0], row[1]): row[2][1] for row in rows} for rows in views]
        return all(view == owners[0] for view in owners) and lost.port not in owners[0].values()

    def _any(self, *words: str) -> Any:
        for server in self.servers:
            with contextlib.suppress(OSError):
                return server.ask(*words)
        raise Failed("nobody in the cluster answers")

    def _at(self, port: int) -> RedisServer:
        return next(server for server in self.servers if server.port == port)


def _with_bus() -> int:
    """A port whose companion, where the nodes of a cluster talk to each other, is free too."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError), socket.socket() as tried:
            tried.bind(("127.0.0.1", port + BUS_OFFSET))
            return port


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    made = Cluster(folder)
    try:
        yield made.start()
    finally:
        made.stop()


@contextlib.contextmanager
def single(folder: Path, *options: str, plain: bool = True) -> Iterator[RedisServer]:
    server = RedisServer(folder, *options, plain=plain)
    try:
        yield server.start()
    finally:
        server.kill()
