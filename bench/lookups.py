"""How many lookups a seed with a million names answers, beside what the machine allows: `python -m bench.lookups`.

The seed on one core, the load generator on the other. Asked for are random names, each of which the seed has looked up
once before, or none has; and names that it has not looked up since it started, whose signatures it checks then. In the
same rounds the same is asked of redis-server (GET, the same keys and texts), of a bare loop in Python that does nothing
else, of a Twisted server that gives back what it gets, and of one in C. Then the same while changes come from another
seed by gossip, a thousand a second.
"""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bench import figures, load, million, names, servers
from bench.changes import Changes
from bench.figures import Row, Sample, say
from bench.load import Plan
from bench.servers import Server
from meshproto.cli.processes import Children, until

NAMES: Final = 1_000_000
NAMES_QUICK: Final = 2_000
ASKED: Final = 100_000
"""Different names in a measurement; no cache of a processor holds their records."""
SECONDS: Final = 0.5
WARMUP_S: Final = 0.2
PLANS: Final = tuple((connections, depth) for connections in (1, 64) for depth in (1, 16, 64))
GOSSIP_PLANS: Final = ((1, 1), (64, 1))
CHANGES_PER_S: Final = 1000
MARGIN_S: Final = 5.0
"""So many more changes are signed: a run takes longer than it measures."""
FIRST_ASKED: Final = 5_000
FIRST_PLAN: Final = (64, 16)

OURS: Final = "a lookup, found"
MISSED: Final = "a lookup, not found"
FIRST: Final = "a lookup, found, the first of that name"
QUIET: Final = "a lookup, quiet"
BUSY: Final = "a lookup, changes coming by gossip"
REDIS: Final = "redis-server GET"
TWISTED: Final = "Twisted echo"
ECHO: Final = "echo in C"
BARE: Final = "bare loop in Python"
LIMITS: Final = (REDIS, BARE, TWISTED, ECHO)


def main(arguments: list[str] | None = None) -> int:
    parser = figures.parser("bench.lookups", __doc__, SECONDS)
    parser.add_argument("--names", type=int, help=f"that the seed knows ({NAMES:,})")
    options = figures.parse(parser, arguments)
    known = options.names or (NAMES_QUICK if options.quick else NAMES)
    before = figures.machine()
    with contextlib.ExitStack() as stack:
        bench = Bench(stack, known, options.rounds, options.seconds)
        rows = [*bench.answered(), *bench.first(), *bench.during_gossip()]
    return figures.tell("lookups", before, options, rows, bench.notes)


class Bench:
    """All servers, running; whoever is not asked has nothing to do."""

    def __init__(self, stack: contextlib.ExitStack, known: int, rounds: int, seconds: float) -> None:
        self.notes: list[str] = []
        self._rounds = rounds
        self._seconds = seconds
        self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-lookups-")))
        self._names = names.shuffled(known)
        asked = min(ASKED, known // 2)
        self._requests("found", names.lookups(self._names[:asked]))
        self._requests("missed", names.lookups(names.strangers(asked)))
        self._requests("get", (load.redis_request(b"GET", name.encode()) for name in self._names[:asked]))
        children = stack.enter_context(Children(self._directory, servers.NODE))
        say(f"a seed starts on {known:,} names")
        address, child = names.start(children, self._directory, known)
        self._seed = Server(address, child.process.pid)
        self._asked(self._seed, "found", names.HIT, Plan(connections=16, depth=64, count=asked))
        self._behind = stack.enter_context(Children(self._directory, servers.BEHIND))
        self._servers = {
            ECHO: stack.enter_context(servers.echo()),
            TWISTED: stack.enter_context(servers.twisted_echo()),
            BARE: stack.enter_context(servers.bare_lookups(known)),
        }
        if servers.redis_is_there():
            say("redis-server is filled")
            self._servers[REDIS] = stack.enter_context(servers.redis(names.pairs(known)))
        else:
            self.notes.append("There was no redis-server to compare with: `apt-get install redis-server`.")
        self._known = known
        self._asked_first = asked

    def answered(self) -> Iterator[Row]:
        """Found and not found, at each number of connections and depth."""
        for connections, depth in PLANS:
            plan = self._plan(connections, depth)
            say(f"{_called(plan)}")
            samples = figures.alternate(self._rounds, dict(self._entrants(plan)))
            for what in (OURS, MISSED):
                figures.compare(samples, what, REDIS, "per_s", "to_redis")
                figures.compare(samples, what, TWISTED, "per_s", "to_echo")
            yield from figures.rows(_called(plan), samples, LIMITS)

    def _entrants(self, plan: Plan) -> Iterator[tuple[str, Callable[[], Sample]]]:
        yield OURS, lambda: self._asked(self._seed, "found", names.HIT, plan)
        yield MISSED, lambda: self._asked(self._seed, "missed", names.MISS, plan)
        if REDIS in self._servers:
            yield REDIS, lambda: self._asked(self._servers[REDIS], "get", names.HIT, plan, "redis")
        yield BARE, lambda: self._asked(self._servers[BARE], "found", names.HIT, plan)
        for what in (TWISTED, ECHO):
            yield what, lambda what=what: self._asked(self._servers[what], "found", "lookup", plan)  # type: ignore[misc]

    def first(self) -> Iterator[Row]:
        """Names that were not asked for since the seed started."""
        connections, depth = FIRST_PLAN
        count = min(FIRST_ASKED, (len(self._names) - self._asked_first) // self._rounds)
        left = iter(range(self._asked_first, len(self._names), count))

        def ask() -> Sample:
            at = next(left)
            self._requests("first", names.lookups(self._names[at : at + count]))
            plan = Plan(connections, depth, sources=connections, count=count, core=servers.LOAD_CORE)
            return self._asked(self._seed, "first", names.HIT, plan)

        samples = figures.alternate(self._rounds, {FIRST: ask})
        yield from figures.rows(_called(self._plan(connections, depth)), samples)

    def during_gossip(self) -> Iterator[Row]:
        """The same lookups with nothing else to do, and while another seed tells of changes."""
        neighbour = self._behind.launch("meshseed", "neighbour", "--peer", self._seed.address)
        # It gives way to everybody, so it may take its time.
        address = until(neighbour.address, "the neighbour listens", million.START_S_MAX)
        plans = [self._plan(connections, depth) for connections, depth in GOSSIP_PLANS]
        seconds = self._rounds * sum(plan.warmup + plan.seconds for plan in plans) + MARGIN_S
        with Changes(address, self._seed.address, CHANGES_PER_S, seconds) as changes:
            for plan in plans:
                say(f"{_called(plan)}, quiet and during gossip")

                def quiet(plan: Plan = plan) -> Sample:
                    return self._asked(self._seed, "found", names.HIT, plan)

                def busy(plan: Plan = plan) -> Sample:
                    with changes.coming():
                        sample = quiet(plan)
                    return {**sample, "changes_per_s": changes.arrived_per_s}

                samples = figures.alternate(self._rounds, {QUIET: quiet, BUSY: busy})
                figures.compare(samples, BUSY, QUIET, "p99_us", "to_quiet")
                yield from figures.rows(_called(plan), samples)

    def _plan(self, connections: int, depth: int) -> Plan:
        """What a seed allows one address, and that its links take turns, is not what is measured."""
        warmup = min(WARMUP_S, self._seconds / 4)
        return Plan(connections, depth, connections, warmup, self._seconds, core=servers.LOAD_CORE)

    def _requests(self, name: str, requests: Iterator[bytes]) -> None:
        load.write_requests(self._directory / f"{name}.requests", requests)

    def _asked(
        self, server: Server, requests: str, expected: str, plan: Plan, protocol: load.Protocol = "line"
    ) -> Sample:
        path = self._directory / f"{requests}.requests"
        found = load.run(protocol, server.address, path, expected, plan, [server.pid])
        if found.errors:
            say(f"{found.errors} of {found.answers + found.errors} were answered otherwise: {found.wrong}")
        return {
            "per_s": found.per_s,
            "p50_us": found.p50_us,
            "p99_us": found.p99_us,
            "max_us": found.max_us,
            "server_us": found.server_us(),
            "load_us": found.load_us,
            "errors": found.errors,
        }


def _called(plan: Plan) -> str:
    return f"{plan.connections} connection{'s' * (plan.connections > 1)}, {plan.depth} deep"


if __name__ == "__main__":
    sys.exit(main())
