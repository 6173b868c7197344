"""How many single messages a user's node sends, each delivered: `python -m bench.sends`.

By `POST /send` over kept-alive connections, one message a request. *Delivered*: answered when the message is on disk at
the recipient's node too; *queued*: `"wait": 0`, answered when it is on the sender's. First to one recipient, then to
five hundred in turns. Sender, recipients and seed are what `twistd` runs, each with SQLite on a real disk: the sender
on one core; recipients, seed and load generator on the other. The five hundred share a process (:mod:`bench.many`);
each has its own keys, port, connection to the seed, and database. Beside it what the same disk allows in the same
rounds: a durable commit of SQLite's, alone, and a bare sync; and what Python allows, two loops that do nothing but
write a message to one disk, hand it on, write it to the other, and answer (:mod:`bench.bare_send`).
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from bench import disk, figures, load, many, servers
from bench.figures import Row, Sample, say
from bench.load import Load, Plan
from meshproto.cli.processes import Children, until
from meshproto.client.node import Node as Client

SECONDS: Final = 1.0
WARMUP_S: Final = 0.2
CONNECTIONS: Final = (1, 16, 64)
SUSTAINED: Final = (1, 64)
SUSTAINED_TIMES: Final = 3
RECIPIENTS: Final = 500
RECIPIENTS_QUICK: Final = 5
TEXT_CHARS: Final = 256
TEXTS: Final = 2000
REGISTERED_S_MAX: Final = 60.0
DRAINED_S_MAX: Final = 60.0

SEED: Final = "seedX"
SENDER: Final = "Anna"
RECIPIENT: Final = "Bert"
DELIVERED: Final = "a message, delivered"
LONGER: Final = "a message, delivered, three times as long"
"""A recipient bounds what one network may ask of it in the long run, and lets it have more for a moment."""
QUEUED: Final = 'a message, queued ("wait": 0)'
BARE: Final = "two bare loops in Python"
COMMIT: Final = "a durable SQLite commit, alone"
SYNC: Final = "a sync of 4 kB, alone"
LIMITS: Final = (BARE, COMMIT, SYNC)
WARM_UP_EACH: Final = 24
"""Messages that each of many recipients has had before: a node tries how quick its disk is as it goes along, and knows
it after some."""


def main(arguments: list[str] | None = None) -> int:
    options = figures.parse(parser(), arguments)
    recipients = options.recipients or (RECIPIENTS_QUICK if options.quick else RECIPIENTS)
    before = figures.machine()
    with (
        tempfile.TemporaryDirectory(prefix="mesh-sends-", dir=options.directory, ignore_cleanup_errors=True) as made,
        contextlib.ExitStack() as stack,
    ):
        bench = Bench(stack, Path(made), options.rounds, options.seconds)
        rows = [*bench.to_one(), *bench.to_many(recipients)]
    return figures.tell("sends", before, options, rows)


def parser() -> argparse.ArgumentParser:
    options = figures.parser("bench.sends", __doc__, SECONDS)
    options.add_argument("--recipients", type=int, help=f"that share a process ({RECIPIENTS})")
    options.add_argument(
        "--directory", type=Path, metavar="DIR", help="on the disk to measure (the system's for temporary files)"
    )
    return options


class Pair:
    """A sender on a core of its own; a recipient and a seed on the other. `client`: of the sender; `seed`: its address;
    `pids`: of sender, recipient, seed."""

    def __init__(self, stack: contextlib.ExitStack, directory: Path) -> None:
        sender = stack.enter_context(Children(directory, servers.NODE))
        beside = stack.enter_context(Children(directory, servers.BESIDE))
        self.seed = beside.start("meshseed", SEED)
        self.client = started(sender, SENDER, self.seed)
        started(beside, RECIPIENT, self.seed)
        self.pids = [
            sender.all[SENDER].process.pid,
            beside.all[RECIPIENT].process.pid,
            beside.all[SEED].process.pid,
        ]


class Bench:
    def __init__(self, stack: contextlib.ExitStack, directory: Path, rounds: int, seconds: float) -> None:
        pair = Pair(stack, directory)
        self._client, self._seed, self._pids = pair.client, pair.seed, pair.pids
        self._bare = stack.enter_context(servers.bare_sends(directory))
        self._directory = directory
        self._rounds = rounds
        self._seconds = seconds

    def to_one(self) -> Iterator[Row]:
        for what, more in ((DELIVERED, {}), (QUEUED, {"wait": 0})):
            self._write(what, [RECIPIENT], more)
        self._ask(DELIVERED, "delivered", Plan(count=10), self._pids)  # from here on they know each other
        for connections in CONNECTIONS:
            say(f"to one recipient, {_called(connections)}")
            plan = self._plan(connections)
            entrants = {
                DELIVERED: partial(self._delivered, DELIVERED, plan, self._pids),
                QUEUED: partial(self._queued, plan),
                BARE: partial(self._handed_on, plan),
                COMMIT: partial(disk.commits, self._directory, self._seconds / 2),
                SYNC: partial(disk.syncs, self._directory, self._seconds / 2),
            }
            if connections in SUSTAINED:
                longer = msgspec.structs.replace(plan, seconds=SUSTAINED_TIMES * plan.seconds)
                entrants[LONGER] = partial(self._delivered, DELIVERED, longer, self._pids)
            samples = figures.alternate(self._rounds, entrants)
            for what in {DELIVERED, LONGER, BARE} & samples.keys():
                figures.compare(samples, what, COMMIT, "p50_us", "to_commit")
            yield from figures.rows(f"to one, {_called(connections)}", samples, LIMITS)

    def to_many(self, recipients: int) -> Iterator[Row]:
        say(f"{recipients} recipients start")
        names = [many.name_of("users", number) for number in range(recipients)]
        what = f"{DELIVERED}: {recipients} recipients"
        self._write(what, names, {})
        with servers.many("users", recipients, self._directory, self._seed) as pid:
            pids = [self._pids[0], pid, self._pids[2]]
            self._ask(what, "delivered", Plan(connections=16, count=WARM_UP_EACH * recipients), pids)
            for connections in CONNECTIONS:
                say(f"to {recipients}, {_called(connections)}")
                plan = self._plan(connections)
                entrants = {
                    DELIVERED: partial(self._delivered, what, plan, pids),
                    COMMIT: partial(disk.commits, self._directory, self._seconds / 2),
                }
                samples = figures.alternate(self._rounds, entrants)
                figures.compare(samples, DELIVERED, COMMIT, "p50_us", "to_commit")
                yield from figures.rows(f"to {recipients} in turns, {_called(connections)}", samples, LIMITS)

    def _plan(self, connections: int) -> Plan:
        warmup = min(WARMUP_S, self._seconds / 4)
        return Plan(connections, warmup=warmup, seconds=self._seconds, core=servers.LOAD_CORE)

    def _write(self, what: str, names: Sequence[str], more: dict[str, int]) -> None:
        """Requests to all the names in turns, each with a text of its own."""

        def bodies() -> Iterator[bytes]:
            for number in range(max(TEXTS, len(names))):
                text = f"{number:06}".ljust(TEXT_CHARS, ".")
                yield msgspec.json.encode({"to": names[number % len(names)], "message": text, **more})

        load.write_requests(self._path(what), (load.http_request("/send", body) for body in bodies()))

    def _path(self, what: str) -> Path:
        return self._directory / f"{what.replace('/', '')}.requests"

    def _ask(self, what: str, status: str, plan: Plan, pids: Sequence[int], address: str = "") -> Load:
        address = address or self._client.url.removeprefix("http://")
        return load.run("http", address, self._path(what), f'"status":"{status}"', plan, pids)

    def _delivered(self, what: str, plan: Plan, pids: Sequence[int]) -> Sample:
        return self._sample(self._ask(what, "delivered", plan, pids))

    def _handed_on(self, plan: Plan) -> Sample:
        sender, recipient = self._bare
        pids = [sender.pid, recipient.pid, self._pids[2]]
        return self._sample(self._ask(DELIVERED, "delivered", plan, pids, sender.address))

    def _queued(self, plan: Plan) -> Sample:
        """How many were taken, and how many a second had gone out when all had."""
        began = time.monotonic()
        found = self._ask(QUEUED, "queued", plan, self._pids)
        until(lambda: not self._client.status().document["outbox"]["waiting"] or None, "all is out", DRAINED_S_MAX)
        return {**self._sample(found), "delivered_per_s": found.answers / (time.monotonic() - began)}

    @staticmethod
    def _sample(found: Load) -> Sample:
        if found.errors:
            say(f"{found.errors} of {found.answers + found.errors} were answered otherwise: {found.wrong}")
        return {
            "per_s": found.per_s,
            "p50_us": found.p50_us,
            "p99_us": found.p99_us,
            "max_us": found.max_us,
            "sender_us": found.server_us(0),
            "recipient_us": found.server_us(1),
            "seed_us": found.server_us(2),
            "load_us": found.load_us,
            "errors": found.errors,
        }


def started(children: Children, name: str, seed: str) -> Client:
    """A user's node, once it is registered."""
    client = Client(children.start("meshuser", name, "--seed", seed))
    until(lambda: client.status().document["registered"] or None, f"{name} is registered", REGISTERED_S_MAX)
    return client


def _called(connections: int) -> str:
    return f"{connections} connection{'s' * (connections > 1)}"


if __name__ == "__main__":
    sys.exit(main())
