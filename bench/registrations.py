"""How many registrations a seed takes, each on disk before it is answered: `python -m bench.registrations`.

New names, signed before, over a hundred connections from a hundred addresses, since a seed bounds what one address may
register; and one after the other. The seed on one core, the load generator on the other. Beside it, in the same rounds,
what each of them needs at least: the check of one signature, and a durable commit of SQLite's, alone.
"""

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from bench import disk, figures, load, servers
from bench.figures import Row, Sample, say
from bench.load import Plan
from bench.servers import Server
from meshproto.cli.processes import Children
from meshproto.core.identity import Identity, verify
from meshproto.wire import SignedRecord, encode_value

CONNECTIONS: Final = 100
COUNT: Final = 5000
"""In a measurement; a link may hold a hundred names, and each has half of those in mind."""
COUNT_LONE: Final = 90
COUNT_QUICK: Final = 100
SECONDS: Final = 0.5
MANY: Final = "a registration, on disk"
VERIFY: Final = "a signature checked"
COMMIT: Final = "a durable SQLite commit, alone"


def main(arguments: list[str] | None = None) -> int:
    options = figures.parse(figures.parser("bench.registrations", __doc__, SECONDS), arguments)
    before = figures.machine()
    with tempfile.TemporaryDirectory(prefix="mesh-register-", ignore_cleanup_errors=True) as made:
        directory = Path(made)
        with Children(directory, servers.NODE) as children:
            seed = Server(children.start("meshseed", "seedX"), children.all["seedX"].process.pid)
            bench = Bench(seed, directory, options.rounds, options.seconds)
            rows = list(bench.rows(COUNT_QUICK if options.quick else COUNT))
    return figures.tell("registrations", before, options, rows)


class Bench:
    def __init__(self, seed: Server, directory: Path, rounds: int, seconds: float, called: str = "user") -> None:
        self._seed = seed
        self._called = called
        self._directory = directory
        self._rounds = rounds
        self._seconds = seconds
        self._rng = random.Random(1)
        self._names = 0

    def rows(self, count: int) -> Iterator[Row]:
        for connections, registered in ((CONNECTIONS, count), (1, min(count, COUNT_LONE))):
            case = f"{connections} connection{'s' * (connections > 1)}"
            say(case)
            samples = figures.alternate(
                self._rounds,
                {
                    MANY: partial(self.register, connections, registered),
                    VERIFY: partial(_verified, self._signed(1)[0], self._seconds),
                    COMMIT: partial(disk.commits, self._directory, self._seconds),
                },
            )
            figures.compare(samples, MANY, COMMIT, "p50_us", "to_commit")
            yield from figures.rows(case, samples, {VERIFY, COMMIT})

    def register(self, connections: int, count: int) -> Sample:
        """Twice as many requests as are sent: a connection that is quicker than others stays within its share."""
        path = self._directory / "registrations.requests"
        load.write_requests(path, (_request(signed) for signed in self._signed(2 * count)))
        plan = Plan(connections, sources=connections, count=count, core=servers.LOAD_CORE)
        found = load.run("line", self._seed.address, path, '"lease":', plan, [self._seed.pid])
        if found.errors:
            say(f"{found.errors} of {count} were answered otherwise: {found.wrong}")
        return {
            "per_s": found.per_s,
            "p50_us": found.p50_us,
            "p99_us": found.p99_us,
            "server_us": found.server_us(),
            "load_us": found.load_us,
            "errors": found.errors,
        }

    def _signed(self, count: int) -> list[SignedRecord]:
        """Of users whom nobody has heard of."""
        now_ms = int(time.time() * 1000)
        signed = []
        for _ in range(count):
            self._names += 1
            identity = Identity.create(self._rng.randbytes, now_ms)
            signed.append(identity.sign(f"{self._called}{self._names:07}", ["http://192.0.2.7:3000"], now_ms))
        return signed


def _request(signed: SignedRecord) -> bytes:
    params = {"record": signed.record, "sig": signed.sig}
    return encode_value({"jsonrpc": "2.0", "id": 1, "method": "register", "params": params}) + b"\n"


def _verified(signed: SignedRecord, seconds: float) -> Sample:
    began, cpu_began, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() < began + seconds:
        verify(signed)
        count += 1
    took_s = time.perf_counter() - began
    return {"per_s": count / took_s, "server_us": 1e6 * (time.process_time() - cpu_began) / count}


if __name__ == "__main__":
    sys.exit(main())
