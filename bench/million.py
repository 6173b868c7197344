"""A million names in one seed, with real processes: `python -m bench.million`.

Signs and writes a seed's state, starts that seed, asks it at a steady rate, lets a fresh seed join it while the asking
goes on, and compares what the two answer. Beside each figure stands what the machine allows at best: the same asking of
a server that echoes lines, and a loop that does nothing but copy the rows.

The one who asks is a process of its own with blocking sockets: its pauses are not the seeds'. It is an open loop on one
connection: what is due while the seed stalls is counted from the moment it was due, as it would be for a thousand users
who do not know of each other.
"""

import argparse
import contextlib
import gc
import math
import multiprocessing
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from socket import create_connection
from typing import Any, Final, Self, TypeVar

import msgspec
from msgspec import Struct
from twisted.internet.task import Clock

from meshproto.cli.processes import Children, Failed, until
from meshproto.core.effects import Row
from meshproto.core.identity import Identity
from meshproto.errors import BadState
from meshproto.net.database_file import connect
from meshproto.net.seed_store import SCHEMA, SCHEMA_VERSION, SeedStore
from meshproto.net.store import SQLiteDatabase
from meshproto.wire import EntryValue, encode_value, split_address

OLD: Final = "old"
NEW: Final = "new"
"""The seeds' names, and those of their state directories."""
NAMES: Final = 1_000_000
NAMES_QUICK: Final = 20_000
MEMORY_TARGET_BYTES: Final = 600.0
"""Of resident memory for each name, with all that the process needs besides."""
JOIN_TARGET_S: Final = 180.0
LOOKUP_TARGET_MS: Final = 20.0
"""The 99th percentile at the old seed while the fresh one joins."""
JOIN_S_MAX: Final = 900.0
START_S_MAX: Final = 300.0
ANSWER_S_MAX: Final = 120.0
"""A stall is to be measured, not to end the measurement."""
POLL_S: Final = 0.1
REPORT_S: Final = 10.0
COMPARED: Final = 1000
SIGNED_AT_A_TIME: Final = 5000
PORTIONS_IN_A_COMMIT: Final = 20
WRITE_CACHE_KBYTES: Final = 400_000
"""Each commit touches most pages, because names come in any order: few commits, and no page is written twice in one."""
STATE_AGE_S_MAX: Final = 7 * 86400.0
"""A seed lets go of names that were not seen for a month: a state that is reused must be younger by far."""
RANDOM_SEED: Final = 1

# A plain fork would take the parent's memory, threads and signals along, and spawn imports everything ten times.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["meshproto.cli.processes", "meshproto.net.seed_store"])

T = TypeVar("T")


class Measured(Struct, frozen=True):
    """A line of the table. `limit`: what the machine allows at best, not a property of the seeds."""

    what: str
    value: float
    unit: str = ""
    target: float | None = None
    limit: bool = False

    @property
    def missed(self) -> bool:
        return self.target is not None and self.value > self.target


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    names = options.names or (NAMES_QUICK if options.quick else NAMES)
    started = time.monotonic()
    with _directory(options.state) as directory, Seeds(directory) as seeds:
        try:
            measured = list(Bench(seeds, directory, names, options.rate, options.seconds).rows())
        except Failed:
            for child in seeds.all.values():
                _say(f"--- the end of {child.name}'s log\n{child.last_words()}")
            raise
    if names < NAMES:
        measured = [row if row.target == 0 else msgspec.structs.replace(row, target=None) for row in measured]
    print(f"{names:,} names, in {time.monotonic() - started:.0f} s\n")
    print(table(measured))
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(measured)) + b"\n")
    return 1 if any(row.missed for row in measured) else 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.million", description=__doc__)
    options.add_argument("--names", type=int, help=f"how many names ({NAMES:,})")
    options.add_argument("--quick", action="store_true", help=f"{NAMES_QUICK:,} names, to see that it works")
    options.add_argument("--rate", type=float, default=200.0, help="lookups a second of each who asks (%(default)g)")
    options.add_argument("--seconds", type=float, default=10.0, help="how long is asked undisturbed (%(default)g)")
    options.add_argument("--state", type=Path, metavar="DIR", help="keep the signed names there, for the next run")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    return options


@contextlib.contextmanager
def _directory(kept: Path | None) -> Iterator[Path]:
    """Where all files go; only those of the old seed outlive the run, and only in a directory that was asked for."""
    if kept is not None:
        (kept / OLD).mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mesh-million-", dir=kept, ignore_cleanup_errors=True) as scratch:
        if kept is not None:
            (Path(scratch) / OLD).symlink_to((kept / OLD).resolve())
        yield Path(scratch)


def _say(text: str) -> None:
    """What goes on, for whoever waits; the table alone goes to stdout."""
    print(text, file=sys.stderr, flush=True)


# -- the course of it ---------------------------------------------------------------------------------------------


class Bench:
    """The steps in their order; each yields what it has measured."""

    def __init__(self, seeds: "Seeds", directory: Path, names: int, rate: float, seconds: float) -> None:
        self._seeds = seeds
        self._state = directory / OLD
        self._names = names
        self._rate = rate
        self._seconds = seconds
        self._old = ""
        self._new = ""

    def rows(self) -> Iterator[Measured]:
        yield from self._write()
        yield from self._copy()
        yield from self._start()
        yield from self._alone()
        yield from self._join()
        yield from self._compare()
        yield from self._echo()

    def _write(self) -> Iterator[Measured]:
        path = self._state / "seed.db"
        if is_fresh(path, self._names):
            _say(f"{path} has {self._names:,} names already")
        else:
            took_s = _timed(write, path, self._names)
            _say(f"signed and written in {took_s:.0f} s")
        yield Measured("the seed's database, each name", path.stat().st_size / self._names, "bytes")

    def _copy(self) -> Iterator[Measured]:
        took_s, peak_bytes = _apart(copy, self._state / "seed.db")
        yield Measured("a loop that copies the rows", took_s, "s", limit=True)
        yield Measured("a dict of the rows as JSON, each name", peak_bytes / self._names, "bytes", limit=True)

    def _start(self) -> Iterator[Measured]:
        began = time.monotonic()
        self._old = self._seeds.begin(OLD)
        with Client(self._old) as client:
            self._expect(client.ask("status")["names"])
        yield Measured("start of the old seed, until it answers", time.monotonic() - began, "s")
        yield Measured("its CPU time", cpu_s(self._seeds.pid(OLD)), "s")

    def _expect(self, names: int) -> None:
        if names != self._names:
            raise Failed(f"the old seed knows {names:,} names, not {self._names:,}")

    def _alone(self) -> Iterator[Measured]:
        _say("the old seed is asked, undisturbed")
        yield from self._asked("lookups at the old seed, undisturbed", self._ask_for_a_while(self._old), all_there=True)
        yield from self._memory(OLD, "old seed")

    def _join(self) -> Iterator[Measured]:
        with Asking(self._old, self._names, self._rate, 2) as at_old:
            old_before_s, all_before_s = cpu_s(self._seeds.pid(OLD)), machine_s()
            waited_before_s = waited_s(self._seeds.pid(OLD))
            began = time.monotonic()
            self._new = self._seeds.begin(NEW, "--peer", self._old)
            with Asking(self._new, self._names, self._rate, 3) as at_new:
                got = self._wait(began)
                took_s = time.monotonic() - began
                asked_new = at_new.stop()
            old_s, new_s = cpu_s(self._seeds.pid(OLD)) - old_before_s, cpu_s(self._seeds.pid(NEW))
            others_s = machine_s() - all_before_s - old_s - new_s
            waited = waited_s(self._seeds.pid(OLD)) - waited_before_s
            asked_old = at_old.stop()
        yield Measured("a fresh seed joins and has them all", took_s, "s", JOIN_TARGET_S)
        yield Measured("names that it lacks then", self._names - got, target=0)
        yield Measured("CPU time of the old seed meanwhile", old_s, "s")
        yield Measured("CPU time of the new seed meanwhile", new_s, "s")
        yield Measured("cores that all else on the machine took meanwhile", others_s / took_s, limit=True)
        yield Measured("what the old seed waited for a core meanwhile", waited, "s", limit=True)
        yield from self._asked("lookups at the old seed meanwhile", asked_old, LOOKUP_TARGET_MS, all_there=True)
        yield from self._asked("lookups at the new seed meanwhile", asked_new)
        yield from self._memory(OLD, "old seed, after the join")
        yield from self._memory(NEW, "new seed")

    def _wait(self, began: float) -> int:
        """How many names the new seed has when it has them all, or when there was time enough."""
        report_at = began + REPORT_S
        with Client(self._new) as client:
            while True:
                names = int(client.ask("status")["names"])
                now = time.monotonic()
                if names >= self._names or now - began > JOIN_S_MAX:
                    return names
                if now > report_at:
                    report_at = now + REPORT_S
                    _say(f"{now - began:.0f} s: the new seed has {names:,} names")
                time.sleep(POLL_S)

    def _compare(self) -> Iterator[Measured]:
        count = min(COMPARED, self._names)
        with Client(self._old) as old, Client(self._new) as new:
            wanted = map(name_of, random.Random(RANDOM_SEED).sample(range(self._names), count))
            differ = sum(signed(old, name) != signed(new, name) for name in wanted)
        yield Measured(f"records that differ at the new seed, of {count}", differ, target=0)

    def _echo(self) -> Iterator[Measured]:
        """What the machine does to a server that does nothing: alone, and beside two that take all they can get."""
        for name in (OLD, NEW):
            self._seeds.stop(name)
        with Echo() as address:
            yield from self._asked("a bare echo, undisturbed", self._ask_for_a_while(address), limit=True)
            with contextlib.ExitStack() as busy:
                for _ in range(2):
                    busy.enter_context(_running(spin))
                yield from self._asked("a bare echo beside two busy loops", self._ask_for_a_while(address), limit=True)

    def _ask_for_a_while(self, address: str) -> "Asked":
        with Asking(address, self._names, self._rate, 1) as asking:
            time.sleep(self._seconds)
            return asking.stop()

    def _asked(
        self, what: str, asked: "Asked", target: float | None = None, *, all_there: bool = False, limit: bool = False
    ) -> Iterator[Measured]:
        """Percentiles of the latency; `all_there`: every name asked for had to be found."""
        latencies = sorted(latency for _, latency in asked.latencies)
        for label, part, wanted in (("p50", 0.5, None), ("p99", 0.99, target), ("longest", 1.0, None)):
            latency_ms = 1000 * latencies[math.ceil(part * len(latencies)) - 1]
            yield Measured(f"{what}: {label}", latency_ms, "ms", wanted, limit)
        if all_there:
            yield Measured(f"{what}: not found, of {len(latencies):,}", len(latencies) - asked.found, target=0)
        slowest = sorted(asked.latencies, key=lambda one: -one[1])[:5]
        _say(f"{what}, the slowest: " + ", ".join(f"{1000 * took:.0f} ms at {at:.1f} s" for at, took in slowest))

    def _memory(self, seed: str, what: str) -> Iterator[Measured]:
        resident, peak = memory_bytes(self._seeds.pid(seed))
        yield Measured(f"memory of the {what}, each name", resident / self._names, "bytes", MEMORY_TARGET_BYTES)
        yield Measured(f"memory of the {what}, each name: peak", peak / self._names, "bytes")


class Seeds(Children):
    """Seeds that may take long to start: reading a million names takes more than a cold start."""

    def begin(self, name: str, *options: str) -> str:
        """Start a seed, wait until it listens, and return its address."""
        child = self.launch("meshseed", name, *options)
        return until(child.address, f"{name} listens", START_S_MAX)

    def pid(self, name: str) -> int:
        return self.all[name].process.pid


# -- the old seed's state -----------------------------------------------------------------------------------------


def name_of(number: int) -> str:
    return f"user{number:07}"


def is_fresh(path: Path, names: int) -> bool:
    """Whether the database is there from an earlier run; if so it forgets the seed that it met in that run."""
    if not path.exists():
        return False
    try:
        opened = connect(path, SCHEMA, SCHEMA_VERSION)
    except BadState as reason:
        _say(f"written anew: {reason.detail}")
        return False
    with contextlib.closing(opened) as connection:
        found, seen = connection.execute("SELECT count(*), min(seen) FROM entries").fetchone()
        connection.execute("DELETE FROM peers")
    return bool(found == names and seen > (time.time() - STATE_AGE_S_MAX) * 1000)


def write(path: Path, names: int) -> None:
    """Fill a new database through the seed's own store, in an order that is not that of the names."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    clock = Clock()
    connection = connect(path, SCHEMA, SCHEMA_VERSION)
    connection.execute(f"PRAGMA cache_size=-{WRITE_CACHE_KBYTES}")
    store = SeedStore(SQLiteDatabase(connection, clock))
    numbers = list(range(names))
    random.Random(RANDOM_SEED).shuffle(numbers)
    portions = [numbers[at : at + SIGNED_AT_A_TIME] for at in range(0, names, SIGNED_AT_A_TIME)]
    with ProcessPoolExecutor(mp_context=_processes) as pool:
        for number, rows in enumerate(pool.map(sign, portions), start=1):
            store.save(rows)
            if number % PORTIONS_IN_A_COMMIT == 0:
                clock.advance(0)
    store.close()
    if not is_fresh(path, names):
        raise Failed(f"{path} could not be written")


def sign(numbers: list[int]) -> tuple[Row, ...]:
    """Entries as their users would send them. Each has keys and an address of its own: what a seed saves by sharing
    those of many, or by compressing, would not be saved in a real mesh."""
    rng = random.Random(numbers[0])
    return tuple((name_of(number), entry_of(number, rng)) for number in numbers)


def entry_of(number: int, rng: random.Random) -> EntryValue:
    seen_ms = int(time.time() * 1000)
    since_ms = seen_ms - rng.randrange(86_400_000)
    identity = Identity.create(rng.randbytes, since_ms)
    record = identity.sign(name_of(number), [f"http://192.0.2.{rng.randrange(256)}:3000"], since_ms)
    return EntryValue(record=record.record, sig=record.sig, since=since_ms, online=False, seen=seen_ms)


# -- who asks -----------------------------------------------------------------------------------------------------


class Client:
    """A blocking socket to a seed: a request a time."""

    def __init__(self, address: str) -> None:
        self._socket = create_connection(split_address(address), timeout=ANSWER_S_MAX)
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def call(self, method: str, params: dict[str, Any]) -> Any:
        """The whole answer: a result, or an error."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        self._socket.sendall(encode_value(request) + b"\n")
        line = self._lines.readline()
        if not line:
            raise Failed(f"the connection was ended instead of answering {method}")
        return msgspec.json.decode(line)

    def ask(self, method: str) -> Any:
        answer = self.call(method, {})
        if "result" not in answer:
            raise Failed(f"{method} was answered with {answer}")
        return answer["result"]


def signed(client: Client, name: str) -> tuple[str, str]:
    """What the user has signed; an answer that is none is its own text, so that it equals no record."""
    answer = client.call("lookup", {"name": name})
    result = answer.get("result")
    return (result["record"], result["sig"]) if result else (name, f"{client}: {answer}")


class Asked(Struct, frozen=True):
    """When each was due (seconds since the first) and how long it took; how many got a result."""

    latencies: list[tuple[float, float]]
    found: int


class Asking:
    """Asks for random names at a steady rate, in a process of its own, until :meth:`stop`."""

    def __init__(self, address: str, names: int, rate: float, seed: int) -> None:
        self._results, theirs = _processes.Pipe(duplex=False)
        self._over = _processes.Event()
        self._process = _running(_ask, theirs, self._over, address, names, rate, seed)

    def __enter__(self) -> Self:
        self._process.__enter__()
        self._receive()  # it is ready
        return self

    def __exit__(self, *_: object) -> None:
        self._process.__exit__(None, None, None)

    def stop(self) -> Asked:
        self._over.set()
        return msgspec.convert(self._receive(), Asked)

    def _receive(self) -> Any:
        if not self._results.poll(2 * ANSWER_S_MAX):
            raise Failed("who asks does not answer")
        return self._results.recv()


def _ask(results: "Connection[Any, Any]", over: Event, address: str, names: int, rate: float, seed: int) -> None:
    """Latency counts from when a request was due, if it had to wait for the answer before; if who asks has overslept
    it is no fault of the seed's."""
    rng = random.Random(seed)
    gc.disable()
    latencies: list[tuple[float, float]] = []
    found = 0
    with Client(address) as client:
        results.send(None)
        began = due = time.monotonic()
        while not (over.is_set() and latencies):
            ahead_s = due - time.monotonic()
            if ahead_s > 0:
                time.sleep(ahead_s)
            sent = time.monotonic() if ahead_s > 0 else due
            answer = client.call("lookup", {"name": name_of(rng.randrange(names))})
            latencies.append((due - began, time.monotonic() - sent))
            found += "result" in answer
            due += 1 / rate
    results.send({"latencies": latencies, "found": found})


# -- what the machine allows --------------------------------------------------------------------------------------


def copy(path: Path) -> tuple[float, int]:
    """Read all rows, encode, decode, and keep each: seconds, and the most memory that this took."""
    began = time.monotonic()
    kept: dict[str, bytes] = {}
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name, record, sig, since, online, seen FROM entries")
        for name, record, sig, since, online, seen in rows:
            text = encode_value(EntryValue(record=record, sig=sig, since=since, online=bool(online), seen=seen))
            msgspec.json.decode(text, type=EntryValue)
            kept[name] = text
    return time.monotonic() - began, memory_bytes(os.getpid())[1]


class Echo:
    """A server that does nothing but give each line back."""

    def __enter__(self) -> str:
        results, theirs = _processes.Pipe(duplex=False)
        self._process = _running(echo, theirs)
        self._process.__enter__()
        return f"127.0.0.1:{results.recv()}"

    def __exit__(self, *_: object) -> None:
        self._process.__exit__(None, None, None)


def echo(results: "Connection[Any, Any]") -> None:
    from twisted.internet import reactor as started  # noqa: PLC0415 -- in this process alone
    from twisted.internet.protocol import ServerFactory  # noqa: PLC0415
    from twisted.protocols.basic import LineOnlyReceiver  # noqa: PLC0415

    reactor: Any = started

    class Lines(LineOnlyReceiver):
        delimiter = b"\n"

        def lineReceived(self, line: bytes) -> None:
            self.sendLine(line)

    port = reactor.listenTCP(0, ServerFactory.forProtocol(Lines), interface="127.0.0.1")
    results.send(port.getHost().port)
    reactor.run(installSignalHandlers=False)


def spin() -> None:
    """A process that always has something to do."""
    while True:
        sum(range(1000))


# -- processes ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _running(work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    process = _processes.Process(target=work, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _apart(work: Callable[..., T], *arguments: Any) -> T:
    """Call it in a fresh process, whose memory is then its own alone."""
    with ProcessPoolExecutor(1, mp_context=_processes) as pool:
        return pool.submit(work, *arguments).result()


def _timed(work: Callable[..., object], *arguments: Any) -> float:
    began = time.monotonic()
    work(*arguments)
    return time.monotonic() - began


def memory_bytes(pid: int) -> tuple[int, int]:
    """Resident now, and at most so far."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines())
    sizes = {line[0]: int(line[1]) * 1024 for line in lines if line and line[0] in ("VmRSS:", "VmHWM:")}
    return sizes["VmRSS:"], sizes["VmHWM:"]


def cpu_s(pid: int) -> float:
    """User and system time so far (proc(5): fields 14 and 15; the second, in brackets, may hold spaces)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waited_s(pid: int) -> float:
    """How long its main thread was able to run while others had the cores; 0 where the kernel does not count it."""
    with contextlib.suppress(FileNotFoundError):
        return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    return 0.0


def machine_s() -> float:
    """What all processes have used of all cores so far (proc(5): user, nice and system)."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=4)
    return sum(map(int, fields[1:4])) / os.sysconf("SC_CLK_TCK")


# -- what is shown ------------------------------------------------------------------------------------------------


def table(rows: list[Measured]) -> str:
    """What was measured, then what the machine allows at best."""
    lines = ["| what | value | target |", "|---|---|---|"]
    for row in sorted(rows, key=lambda row: row.limit):
        target = "" if row.target is None else f"{row.target:g}{' MISSED' if row.missed else ''}"
        value = f"{row.value:,.0f}" if row.value >= 100 or row.value == int(row.value) else f"{row.value:.3g}"
        lines.append(f"| {'*limit:* ' if row.limit else ''}{row.what} | {value} {row.unit}".rstrip() + f" | {target} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
