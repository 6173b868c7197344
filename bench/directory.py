"""What a directory in a Redis Cluster takes, and how fast it answers: `python -m bench.directory`.

Six processes of this machine, three masters and a replica each, with so many names in them; two seeds that share them;
and a seed that has a million names of its own. Asked for are random names. Beside them GET at one of the masters, of
the names that it has, with the same load generator. Everything shares the machine's cores, the cluster too: what a seed
takes of them is told as its CPU time.
"""

import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Final

from redis.crc import key_slot

from bench import figures, load, names, registrations, servers
from bench.figures import Row, Sample, say
from bench.load import Load, Plan, redis_request
from bench.million import memory_bytes
from bench.peers.exchange import connect
from bench.peers.redis import replies_to
from meshproto.cli.processes import Child, Children, until
from meshproto.core.entry import pack_own
from meshproto.core.shared_rules import HOME
from meshproto.net.redis_store import PREFIX
from meshproto.wire import EntryValue
from tests.redis_rig import MISSING, Cluster, RedisServer, cluster

NAMES: Final = 10_000_000
NAMES_QUICK: Final = 20_000
OWN_NAMES: Final = 1_000_000
OWN_NAMES_QUICK: Final = 2_000
SECONDS: Final = 2.0
ROUNDS: Final = 3
ASKED: Final = 100_000
REGISTRATIONS: Final = 2000
REGISTRATIONS_QUICK: Final = 100
TTL_S: Final = 30 * 86400
FILL_AT_A_TIME: Final = 1000
SLOTS: Final = 16384
SINCE_MS: Final = 1_790_000_000_000
LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_TEXT: Final = "".join(random.Random(1).choices(LETTERS, k=1_000_081))
"""What keys and signatures are cut from."""
PLANS: Final = ((1, 1), (64, 1), (64, 16), (1, 64))

Seed = tuple[str, Child]
"""Its address, and its process."""

SHARED: Final = "a seed, a directory in a cluster"
BOTH: Final = "two seeds, a directory in a cluster"
OWN: Final = "a seed, a directory of its own"
GET: Final = "a master of the cluster, GET"


def main(arguments: list[str] | None = None) -> int:
    parser = figures.parser("bench.directory", __doc__, SECONDS, ROUNDS)
    parser.add_argument("--names", type=int, help=f"in the cluster ({NAMES:,})")
    options = figures.parse(parser, arguments)
    if MISSING:
        sys.exit(MISSING)
    many = options.names or (NAMES_QUICK if options.quick else NAMES)
    own = OWN_NAMES_QUICK if options.quick else OWN_NAMES
    before = figures.machine()
    with tempfile.TemporaryDirectory(prefix="mesh-directory-") as made, contextlib.ExitStack() as stack:
        running = stack.enter_context(cluster(Path(made)))
        rows = list(filled(running, many))
        children = stack.enter_context(Children(Path(made)))
        bench = Bench(children, running, Path(made), many, own, options.rounds, options.seconds)
        taken = REGISTRATIONS_QUICK if options.quick else REGISTRATIONS
        rows += [*bench.memory(), *bench.lookups(), *bench.registrations(taken)]
    return figures.tell("directory", before, options, rows, [])


# -- what stands in the cluster -----------------------------------------------------------------------------------


def name_of(number: int) -> str:
    return f"user{number:09}"


def value_of(number: int) -> bytes:
    """What a seed writes for a user with one address. Nothing has signed it: a seed does not look at that again."""
    at = number * 172 % (len(_TEXT) - 172)
    key, mail, sig = _TEXT[at : at + 43], _TEXT[at + 43 : at + 86], _TEXT[at + 86 : at + 172]
    record = f'{{"name":"{name_of(number)}","uris":["http://192.0.2.7:3000"],"key":"{key}","mail":"{mail}","seq":{SINCE_MS}}}'
    now_ms = int(time.time() * 1000)
    return b"seedA 1\n" + pack_own(HOME, EntryValue(record, sig, SINCE_MS, False, now_ms))


def filled(running: Cluster, many: int) -> Iterator[Row]:
    """Each master by pipelines of its own. What a name takes on both sides."""
    masters = running.masters()
    replicas = [server for server in running.servers if server not in masters]
    before = [used_bytes(masters), used_bytes(replicas)]
    owners: list[RedisServer] = [running.servers[0]] * SLOTS
    for first, last, (_, port, *_rest), *_ in running.servers[0].ask("CLUSTER", "SLOTS"):
        owners[first : last + 1] = [next(s for s in running.servers if s.port == port)] * (last + 1 - first)
    links = {server: connect(server.port) for server in set(owners)}
    waiting: dict[RedisServer, list[bytes]] = {server: [] for server in links}
    for number in range(many):
        key = PREFIX + name_of(number).encode()
        server = owners[key_slot(key)]
        waiting[server].append(redis_request(b"SET", key, value_of(number), b"EX", b"%d" % TTL_S))
        if len(waiting[server]) == FILL_AT_A_TIME:
            _send(links[server], waiting[server])
        if number % 1_000_000 == 0:
            say(f"{number:,} names are in the cluster")
    for server, link in links.items():
        _send(link, waiting[server])
        link.close()
    running.wait_until_whole()
    for what, of, empty in (("masters", masters, before[0]), ("replicas", replicas, before[1])):
        taken = {"bytes": (used_bytes(of) - empty) / many}
        yield from figures.rows(f"{many:,} names", {f"memory of the {what}, a name": [taken]})


def _send(link: Any, requests: list[bytes]) -> None:
    if requests:
        link.sendall(b"".join(requests))
        replies_to(link, len(requests))
        requests.clear()


def used_bytes(of: list[RedisServer]) -> int:
    told = [server.ask("INFO", "memory").partition(b"used_memory:")[2] for server in of]
    return sum(int(text.partition(b"\r")[0]) for text in told)


# -- who answers --------------------------------------------------------------------------------------------------


class Bench:
    def __init__(
        self, children: Children, running: Cluster, directory: Path, many: int, own: int, rounds: int, seconds: float
    ) -> None:
        self._directory = directory
        self._rounds = rounds
        self._seconds = seconds
        self._many, self._own_names = many, own
        shared = ("--directory", f"redis://{running.addresses()}")
        self._seeds: list[Seed] = []
        for seed in ("seedA", "seedB"):
            peers = [f"--peer={address}" for address, _ in self._seeds]
            child = children.launch("meshseed", seed, *peers, *shared)
            self._seeds.append((until(child.address, f"{seed} listens", 60.0), child))
        self._own = names.start(children, directory, own)
        asked = [name_of(number) for number in random.Random(1).sample(range(many), min(ASKED, many))]
        self._master = running.masters()[0]
        self._requests("shared", names.lookups(asked))
        self._requests("own", names.lookups(names.shuffled(own)[:ASKED]))
        self._requests("get", (redis_request(b"GET", f"mesh:{name}".encode()) for name in self._at_master(asked)))

    def _at_master(self, asked: list[str]) -> list[str]:
        ranges = [
            range(first, last + 1)
            for first, last, (_, port, *_rest), *_ in self._master.ask("CLUSTER", "SLOTS")
            if port == self._master.port
        ]
        return [name for name in asked if any(key_slot(f"mesh:{name}".encode()) in slots for slots in ranges)]

    def memory(self) -> Iterator[Row]:
        """Of a seed that keeps no names, and of one that keeps its own."""
        shared = {"bytes": memory_bytes(self._seeds[0][1].process.pid)[0]}
        yield from figures.rows("a seed's memory in all", {SHARED: [shared]})
        own = {"bytes": memory_bytes(self._own[1].process.pid)[0]}
        yield from figures.rows(f"a seed's memory in all, {self._own_names:,} names", {OWN: [own]})

    def lookups(self) -> Iterator[Row]:
        self._asked("own", Plan(connections=16, depth=64, count=min(ASKED, self._own_names)), [self._own])
        for connections, depth in PLANS:
            say(f"{connections} connections, {depth} deep")
            plan = Plan(connections, depth, warmup=min(0.3, self._seconds / 4), seconds=self._seconds)
            samples = figures.alternate(
                self._rounds,
                {
                    SHARED: partial(self._asked, "shared", plan, self._seeds[:1]),
                    BOTH: partial(self._asked, "shared", plan, self._seeds),
                    OWN: partial(self._asked, "own", plan, [self._own]),
                    GET: partial(self._get, plan),
                },
            )
            yield from figures.rows(f"{connections} connections, {depth} deep", samples, [GET])

    def registrations(self, count: int) -> Iterator[Row]:
        """Of users whom nobody has heard of, as `bench.registrations` has them."""
        case = f"{registrations.CONNECTIONS} connections that register"
        say(case)
        entrants = {}
        for what, (address, child) in ((SHARED, self._seeds[0]), (OWN, self._own)):
            folder = self._directory / f"registrations of {child.name}"
            folder.mkdir()
            server = servers.Server(address, child.process.pid)
            one = registrations.Bench(server, folder, self._rounds, self._seconds, called=f"new-{time.time_ns():x}-")
            entrants[what] = partial(one.register, registrations.CONNECTIONS, count)
        yield from figures.rows(case, figures.alternate(self._rounds, entrants))

    def _asked(self, what: str, plan: Plan, seeds: Sequence[Seed]) -> Sample:
        """All of them at the same time."""
        found: list[Load] = []

        def ask(address: str, child: Child) -> None:
            found.append(load.run("line", address, self._directory / what, names.HIT, plan, [child.process.pid]))

        threads = [Thread(target=ask, args=seed) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self._sample(found)

    def _get(self, plan: Plan) -> Sample:
        master = self._master
        return self._sample(
            [load.run("redis", master.address, self._directory / "get", "seedA 1", plan, [master.process.pid])]
        )

    def _requests(self, what: str, requests: Iterator[bytes]) -> None:
        load.write_requests(self._directory / what, requests)

    @staticmethod
    def _sample(found: list[Load]) -> Sample:
        for one in found:
            if one.errors:
                say(f"{one.errors} of {one.answers + one.errors} were answered otherwise: {one.wrong}")
        return {
            "per_s": sum(one.per_s for one in found),
            "p50_us": max(one.p50_us for one in found),
            "p99_us": max(one.p99_us for one in found),
            "server_us": sum(one.server_us() for one in found) / len(found),
            "load_us": found[0].load_us,
            "errors": sum(one.errors for one in found),
        }


if __name__ == "__main__":
    sys.exit(main())
