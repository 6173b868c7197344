"""What names, connections and messages cost in memory and on disk, and how long nodes with many of them take to start:
`python -m bench.footprint`.

Each node is a process of its own on one core. Memory is the resident memory of its process: what it is more with so
many names, connections or messages, for each of them.
"""

import argparse
import contextlib
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from bench import backlog, figures, inboxes, million, names, retention, servers
from bench.figures import Row, Sample, say
from bench.million import memory_bytes
from bench.sends import RECIPIENT, SEED, SENDER, started
from meshproto.cli.processes import Children
from meshproto.wire import split_address

NAMES: Final = 1_000_000
MESSAGES: Final = 1_000_000
QUEUED: Final = 50_000
CONNECTIONS: Final = 5_000
HOSTS: Final = 50
"""Addresses that the connections come from: a node bounds what one may have."""
QUICK: Final = 200
"""In place of each of these."""
ROUNDS: Final = 3
ANSWER_S_MAX: Final = 30.0
PING: Final = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'
GET: Final = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def main(arguments: list[str] | None = None) -> int:
    options = figures.parse(parser(), arguments)
    before = figures.machine()
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # all the connections are of this process
    try:
        with tempfile.TemporaryDirectory(prefix="mesh-footprint-", ignore_cleanup_errors=True) as made:
            bench = Bench(Path(made), options.rounds, options.seconds)
            many = (QUICK,) * 4 if options.quick else (NAMES, MESSAGES, CONNECTIONS, QUEUED)
            rows = list(bench.rows(*many))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, most))
    return figures.tell("footprint", before, options, rows)


def parser() -> argparse.ArgumentParser:
    return figures.parser("bench.footprint", __doc__, 1.0, ROUNDS)


class Bench:
    def __init__(self, directory: Path, rounds: int, seconds: float) -> None:
        self._directory = directory
        self._rounds = rounds
        self._seconds = seconds
        self._runs = 0

    def rows(self, known: int, messages: int, connections: int, queued: int) -> Iterator[Row]:
        yield from self._seed(known)
        yield from self._inbox(messages)
        yield from self._idle(connections)
        yield from self._queued(queued)

    @contextlib.contextmanager
    def _nodes(self) -> Iterator[tuple[Children, Path]]:
        """With states of their own."""
        self._runs += 1
        directory = self._directory / str(self._runs)
        directory.mkdir()
        with Children(directory, servers.NODE) as children:
            yield children, directory

    def _seed(self, known: int) -> Iterator[Row]:
        """How long a seed with so many names takes to start, and what each takes."""
        file = names.state(known) / "seed.db"

        def start() -> Sample:
            with self._nodes() as (children, directory):
                empty = children.start("meshseed", "empty")
                with million.Client(empty) as client:
                    client.ask("status")
                bare_bytes = memory_bytes(children.all["empty"].process.pid)[0]
                children.stop("empty")
                began = time.monotonic()
                address, child = names.start(children, directory, known)
                with million.Client(address) as client:
                    client.ask("status")
                took_s = time.monotonic() - began
                grown = memory_bytes(child.process.pid)[0] - bare_bytes
            return {"seconds": took_s, "bytes": grown / known, "disk_bytes": file.stat().st_size / known}

        what, limit = "a seed starts; each name", "a loop that reads and copies the rows"
        say(f"a seed starts on {known:,} names")
        samples = figures.alternate(self._rounds, {what: start, limit: partial(_copied, file)})
        yield from figures.rows(f"{known:,} names", samples, {limit})

    def _inbox(self, messages: int) -> Iterator[Row]:
        """How long a user's node takes to start with so many messages in its inbox."""
        file = inboxes.database(messages)

        def start() -> Sample:
            with self._nodes() as (children, directory):
                inboxes.copy(messages, directory / RECIPIENT)
                seed = children.start("meshseed", SEED)
                empty = started(children, SENDER, seed)
                bare_bytes = memory_bytes(children.all[SENDER].process.pid)[0]
                began = time.monotonic()
                started(children, RECIPIENT, seed)
                took_s = time.monotonic() - began
                grown = memory_bytes(children.all[RECIPIENT].process.pid)[0] - bare_bytes
                assert empty.status().document["registered"]
            return {"seconds": took_s, "bytes": grown / messages, "disk_bytes": file.stat().st_size / messages}

        what, limit = "a user's node starts; each message", "SQLite looks whether the file is whole"
        say(f"a user's node starts with {messages:,} messages in its inbox")
        samples = figures.alternate(self._rounds, {what: start, limit: partial(_looked_at, file)})
        yield from figures.rows(f"{messages:,} messages in the inbox", samples, {limit})

    def _idle(self, connections: int) -> Iterator[Row]:
        """Connections that have asked once and stay."""
        say(f"{connections:,} connections are held")
        entrants = {
            "a connection to a seed": partial(self._held, connections, "meshseed", PING, b"\n"),
            "a connection to a user's node": partial(self._held, connections, "meshuser", GET, b"\r\n\r\n"),
        }
        yield from figures.rows(f"{connections:,} idle connections", figures.alternate(self._rounds, entrants))

    def _held(self, connections: int, service: str, request: bytes, answered: bytes) -> Sample:
        with self._nodes() as (children, _), contextlib.ExitStack() as held:
            address = children.start("meshseed", SEED)
            name = SEED
            if service == "meshuser":
                name, address = SENDER, started(children, SENDER, address).url.removeprefix("http://")
            pid = children.all[name].process.pid
            before = memory_bytes(pid)[0]
            for number in range(connections):
                source = (f"127.7.{number % HOSTS // 250}.{number % HOSTS % 250 + 1}", 0)
                link = held.enter_context(socket.create_connection(split_address(address), ANSWER_S_MAX, source))
                link.sendall(request)
                if answered not in link.recv(65536):
                    raise ConnectionError(f"connection {number} was not answered")
            return {"bytes": (memory_bytes(pid)[0] - before) / connections}

    def _queued(self, queued: int) -> Iterator[Row]:
        """Messages that wait for somebody who is away."""
        say(f"{queued:,} messages wait")
        samples = figures.alternate(self._rounds, {"a message that waits": partial(self._waiting, queued)})
        yield from figures.rows(f"{queued:,} messages in the outbox", samples)

    def _waiting(self, queued: int) -> Sample:
        with self._nodes() as (children, directory):
            seed = children.start("meshseed", SEED)
            sender = started(children, SENDER, seed)
            started(children, backlog.RECIPIENT, seed)
            sender.send(backlog.RECIPIENT, "here you are")
            children.stop(backlog.RECIPIENT)
            pid, state = children.all[SENDER].process.pid, directory / SENDER
            before, disk_before = memory_bytes(pid)[0], _size(state)
            told = [result["status"] for result in sender.send_lines(backlog.Lines(queued))]
            return {
                "bytes": (memory_bytes(pid)[0] - before) / queued,
                "disk_bytes": (_size(state) - disk_before) / queued,
                "errors": queued - told.count("queued"),
            }


def _size(state: Path) -> int:
    """Of the database, with what has not been moved from its journal yet."""
    return sum(file.stat().st_size for file in state.glob(f"{retention.DATABASE}*"))


def _copied(file: Path) -> Sample:
    return {"seconds": million.copy(file)[0]}


def _looked_at(file: Path) -> Sample:
    began = time.monotonic()
    inboxes.look_at_all(file)
    return {"seconds": time.monotonic() - began}


if __name__ == "__main__":
    sys.exit(main())
