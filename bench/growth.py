"""What grows with the mesh, and how: `python -m bench.growth`.

The main figures at a size, at ten times and at a hundred times that size, each size a server of its own, asked in turns
in the same rounds: lookups by the names that a seed knows, and by the seeds that it gossips with; sends by the messages
in the recipient's inbox, and by the recipients that a node writes to in turns. The *cost* that is compared is the CPU
time of a request, of all nodes that take part: it hardly depends on what else the machine does.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from bench import figures, inboxes, load, many, names, servers
from bench.figures import Row, Sample, say
from bench.load import Plan
from bench.sends import TEXT_CHARS, TEXTS, started
from bench.servers import Server
from meshproto.cli.processes import Children, Failed

TIMES: Final = (1, 10, 100)
NAMES: Final = 10_000
MESSAGES: Final = 10_000
RECIPIENTS: Final = 5
SEEDS: Final = 1
NAMES_QUICK: Final = 20
MESSAGES_QUICK: Final = 20
TIMES_QUICK: Final = (1, 2)
SECONDS: Final = 0.5
ASKED: Final = 100_000
"""Different names in a measurement, where there are so many."""
LOOKUP_PLANS: Final = ((64, 1), (1, 64))
SEND_CONNECTIONS: Final = 16
SENDER: Final = "Anna"
SEED: Final = "seedX"


def main(arguments: list[str] | None = None) -> int:
    options = figures.parse(parser(), arguments)
    before = figures.machine()
    sizes = (NAMES_QUICK, MESSAGES_QUICK) if options.quick else (NAMES, MESSAGES)
    times = TIMES_QUICK if options.quick else TIMES
    with tempfile.TemporaryDirectory(prefix="mesh-growth-", ignore_cleanup_errors=True) as made:
        bench = Bench(Path(made), options.rounds, options.seconds)
        rows = [
            *bench.by_names([time * sizes[0] for time in times]),
            *bench.by_seeds([time * SEEDS for time in times], sizes[0]),
            *bench.by_messages([time * sizes[1] for time in times]),
            *bench.by_recipients([time * RECIPIENTS for time in times]),
        ]
    return figures.tell("growth", before, options, rows)


def parser() -> argparse.ArgumentParser:
    return figures.parser("bench.growth", __doc__, SECONDS)


class Bench:
    def __init__(self, directory: Path, rounds: int, seconds: float) -> None:
        self._directory = directory
        self._rounds = rounds
        self._seconds = seconds

    # -- lookups -------------------------------------------------------------------------------------------------

    def by_names(self, sizes: list[int]) -> Iterator[Row]:
        with self._children("names", servers.NODE) as (children, directory):
            asking = {}
            for size in sizes:
                say(f"a seed starts on {size:,} names")
                address, child = names.start(children, directory, size)
                asked = names.shuffled(size)[:ASKED]
                asking[f"{size:,} names"] = self._asking(Server(address, child.process.pid), asked)
            yield from self._lookups("names", asking)

    def by_seeds(self, sizes: list[int], known: int) -> Iterator[Row]:
        """Each a mesh of its own, of a seed that is asked and others, in a process together, that it gossips with."""
        with self._children("seeds", servers.NODE) as (children, directory), contextlib.ExitStack() as stack:
            asking = {}
            for size in sizes:
                say(f"a mesh of {size} starts")
                name = f"of{size}"
                names.copy(known, directory / name)
                address = children.start("meshseed", name)
                if size > 1:
                    (directory / f"beside{size}").mkdir()
                    stack.enter_context(
                        servers.many("seeds", size - 1, directory / f"beside{size}", address, niceness=19)
                    )
                server = Server(address, children.all[name].process.pid)
                asking[f"{size} seed{'s' * (size > 1)}"] = self._asking(server, names.shuffled(known)[:ASKED])
            yield from self._lookups("seeds", asking)

    def _asking(self, server: Server, asked: list[str]) -> Callable[[Plan], Sample]:
        """Asks for the names, after each was looked up once."""
        path = self._path("lookups", len(asked))
        if not path.exists():
            load.write_requests(path, names.lookups(asked))
        ask = partial(load.run, "line", server.address, path, names.HIT, pids=[server.pid])
        ask(Plan(connections=16, depth=16, sources=16, count=len(asked), core=servers.LOAD_CORE))
        return lambda plan: self._sample(ask(plan), ("server_us",))

    def _lookups(self, what: str, asking: Mapping[str, Callable[[Plan], Sample]]) -> Iterator[Row]:
        for connections, depth in LOOKUP_PLANS:
            plan = self._plan(connections, depth)
            case = f"lookups by {what}, {connections} connection{'s' * (connections > 1)}, {depth} deep"
            say(case)
            yield from self._compared(case, {size: partial(ask, plan) for size, ask in asking.items()})

    # -- sends ---------------------------------------------------------------------------------------------------

    def by_messages(self, sizes: list[int]) -> Iterator[Row]:
        with (
            self._children("messages", servers.NODE) as (senders, _),
            self._children("inboxes", servers.BESIDE) as (children, directory),
        ):
            seed = children.start("meshseed", SEED)
            sender = started(senders, SENDER, seed).url.removeprefix("http://")
            sending = {}
            for size in sizes:
                name = f"has{size}"
                inboxes.copy(size, directory / name)
                say(f"a node starts with {size:,} messages in its inbox")
                started(children, name, seed)
                pids = [senders.all[SENDER].process.pid, children.all[name].process.pid]
                sending[f"{size:,} messages"] = self._sending(sender, [name], pids)
            yield from self._sends("messages in the inbox", sending)

    def by_recipients(self, sizes: list[int]) -> Iterator[Row]:
        most = max(sizes)
        say(f"{most} recipients start")
        with (
            self._children("recipients", servers.NODE) as (senders, _),
            self._children("others", servers.BESIDE) as (children, directory),
        ):
            seed = children.start("meshseed", SEED)
            sender = started(senders, SENDER, seed).url.removeprefix("http://")
            with servers.many("users", most, directory, seed) as pid:
                pids = [senders.all[SENDER].process.pid, pid]
                known = [many.name_of("users", number) for number in range(most)]
                sending = {f"{size} recipients": self._sending(sender, known[:size], pids) for size in sizes}
                yield from self._sends("recipients", sending)

    def _sending(self, sender: str, to: list[str], pids: list[int]) -> Callable[[Plan], Sample]:
        """Writes to them in turns, after each was written to once."""
        path = self._path(f"to-{to[0]}", len(to))
        bodies = (
            msgspec.json.encode({"to": to[number % len(to)], "message": f"{number:06}".ljust(TEXT_CHARS, ".")})
            for number in range(max(TEXTS, len(to)))
        )
        load.write_requests(path, (load.http_request("/send", body) for body in bodies))
        ask = partial(load.run, "http", sender, path, '"status":"delivered"', pids=pids)
        ask(Plan(count=len(to), core=servers.LOAD_CORE))
        return lambda plan: self._sample(ask(plan), ("sender_us", "recipient_us"))

    def _sends(self, what: str, sending: Mapping[str, Callable[[Plan], Sample]]) -> Iterator[Row]:
        plan = self._plan(SEND_CONNECTIONS, 1)
        case = f"sends by {what}, {SEND_CONNECTIONS} connections"
        say(case)
        yield from self._compared(case, {size: partial(send, plan) for size, send in sending.items()})

    # -- both ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _children(self, name: str, command: tuple[str, ...]) -> Iterator[tuple[Children, Path]]:
        directory = self._directory / name
        directory.mkdir()
        with Children(directory, command) as children:
            yield children, directory

    def _path(self, what: str, size: int) -> Path:
        return self._directory / f"{what}-{size}.requests"

    def _plan(self, connections: int, depth: int) -> Plan:
        return Plan(
            connections,
            depth,
            sources=connections,
            warmup=min(0.2, self._seconds / 4),
            seconds=self._seconds,
            core=servers.LOAD_CORE,
        )

    @staticmethod
    def _sample(found: load.Load, nodes: tuple[str, ...]) -> Sample:
        if found.errors or not found.answers:
            raise Failed(f"{found.errors} requests were answered otherwise, such as {found.wrong}")
        cost = {node: found.server_us(number) for number, node in enumerate(nodes)}
        return {
            "per_s": found.per_s,
            "p50_us": found.p50_us,
            "p99_us": found.p99_us,
            **cost,
            "cost_us": sum(cost.values()),
        }

    def _compared(self, case: str, entrants: Mapping[str, Callable[[], Sample]]) -> Iterator[Row]:
        samples = figures.alternate(self._rounds, entrants)
        smallest, *larger = samples
        for what in larger:
            figures.compare(samples, what, smallest, "cost_us", "to_smallest")
        yield from figures.rows(case, samples)


if __name__ == "__main__":
    sys.exit(main())
