"""How fast messages get onto the disk, beside what the disk can do: `python -m bench.store`.

The real :class:`SQLiteDatabase` and :meth:`OutboxTable.accept`, on a file, with 200-byte messages: one at a time, and
with many in flight, so that they share commits. Beside each stands the bare limit: how often a loop of nothing else
can append as many bytes as such a commit writes, and sync them. All of it in turn, round after round, so that whatever
else the machine does meets everything alike.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

import msgspec
from msgspec import Struct
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.internet.task import react

from bench.figures import Figure
from meshproto.net.database_file import connect
from meshproto.net.outbox_table import Draft
from meshproto.net.process_metrics import Commits
from meshproto.net.store import CHECKPOINT_FRAMES, SQLiteDatabase
from meshproto.net.syncing import SyncThread
from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION, UserStore

IN_FLIGHT: Final = (1, 16, 64, 256, 1000)
ROUNDS: Final = 5
SECONDS: Final = 2.0
MESSAGE_BYTES: Final = 200
RECIPIENTS: Final = 100
CALIBRATION_MESSAGES: Final = 2000
"""Before the rounds, to learn how much a commit writes."""
SENT_AT_MS: Final = 1_795_343_300_000


class Row(Struct, frozen=True):
    """`ratio`: commits a second for each bare sync a second. Latencies are those of one message; `cpu_us` is what one
    takes of a core, in all threads, with what the benchmark itself does: it hardly depends on what else the machine
    does."""

    in_flight: int
    commit_bytes: int
    bare_per_s: Figure
    bare_p50_ms: Figure
    bare_p99_ms: Figure
    commits_per_s: Figure
    messages_per_s: Figure
    ratio: Figure
    p50_ms: Figure
    p99_ms: Figure
    cpu_us: Figure


class Sample(Struct, frozen=True):
    """One measurement: how many a second, and how long each took, in ms. `messages`: a second, where there are such."""

    per_s: float
    p50_ms: float
    p99_ms: float
    messages_per_s: float = 0.0
    bytes_each: float = 0.0
    cpu_us: float = 0.0


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    rows: list[Row] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="store-", dir=options.directory) as directory:

        async def run(reactor: Any) -> None:
            rows.extend(await measure(reactor, Path(directory), options.rounds, options.seconds))

        try:
            react(lambda reactor: ensureDeferred(run(reactor)))
        except SystemExit as end:
            if end.code:
                raise
    print(f"{options.rounds} rounds in {time.monotonic() - began:.0f} s: median (least to most)\n")
    print(table(rows))
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)) + b"\n")
    return 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.store", description=__doc__)
    options.add_argument("--rounds", type=int, default=ROUNDS, help="of everything, in turn (%(default)s)")
    options.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement (%(default)s)")
    options.add_argument(
        "--directory", type=Path, metavar="DIR", help="on the disk to measure (the system's for files)"
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    return options


async def measure(reactor: Any, directory: Path, rounds: int, seconds: float) -> list[Row]:
    commit_bytes = {}
    for in_flight in IN_FLIGHT:
        load = Load(reactor, directory / "calibration.db", in_flight, calibrating=True)
        commit_bytes[in_flight] = int((await load.run(seconds, CALIBRATION_MESSAGES)).bytes_each)
    ours: dict[int, list[Sample]] = {in_flight: [] for in_flight in IN_FLIGHT}
    bare: dict[int, list[Sample]] = {in_flight: [] for in_flight in IN_FLIGHT}
    for _ in range(rounds):
        for in_flight in IN_FLIGHT:
            bare[in_flight].append(append(directory / "bare", commit_bytes[in_flight], seconds))
            ours[in_flight].append(await Load(reactor, directory / "ours.db", in_flight).run(seconds))
    return [_row(in_flight, commit_bytes[in_flight], bare[in_flight], ours[in_flight]) for in_flight in IN_FLIGHT]


def append(path: Path, block_bytes: int, seconds: float) -> Sample:
    """Append and sync, again and again: what the disk itself allows."""
    block = os.urandom(block_bytes)
    took: list[float] = []
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        began = time.perf_counter()
        end = began
        while end < began + seconds:
            start = end
            os.write(file, block)
            os.fdatasync(file)
            end = time.perf_counter()
            took.append(end - start)
    finally:
        os.close(file)
        path.unlink()
    return _sample(took, len(took) / (end - began))


class _Growing(SyncThread):
    """Nothing is carried over from the WAL, so that its length tells how much was written."""

    @property
    def frames(self) -> int:
        return min(super().frames, CHECKPOINT_FRAMES - 1)


class Load:
    """So many senders, each of which sends its next message when the last one is on disk; a fresh database.
    `calibrating`: it is to learn how much a commit writes."""

    def __init__(self, reactor: Any, path: Path, in_flight: int, *, calibrating: bool = False) -> None:
        self._path = path
        self._calibrating = calibrating
        self._in_flight = in_flight
        self._commits = Commits()
        self._connection = connect(path, SCHEMA, SCHEMA_VERSION)
        syncing = (_Growing if calibrating else SyncThread)(self._connection, reactor)
        self._store = UserStore(SQLiteDatabase(self._connection, reactor, syncing, self._commits))
        self._rng = random.Random(in_flight)
        self._took: list[float] = []
        self._end = 0.0
        self._left = 0

    async def run(self, seconds: float, messages_max: int = sys.maxsize) -> Sample:
        """`bytes_each`: of a commit, if it is for that."""
        began, cpu_began = time.perf_counter(), time.process_time()
        self._end, self._left = began + seconds, messages_max
        await DeferredList([self._sender() for _ in range(self._in_flight)], fireOnOneErrback=True)
        took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        commits = self._commits.took.count
        wal = Path(f"{self._path}-wal")
        wal_bytes = wal.stat().st_size if self._calibrating else 0
        await self._store.close()
        self._path.unlink()
        sent = len(self._took)
        return _sample(self._took, commits / took_s, sent / took_s, wal_bytes / commits, 1e6 * cpu_s / sent)

    def _sender(self) -> "Deferred[None]":
        done: Deferred[None] = Deferred()
        start = 0.0

        def send() -> None:
            nonlocal start
            start = time.perf_counter()
            self._left -= 1
            self._store.outbox.accept([self._draft()]).addCallbacks(sent, done.errback)

        def sent(_: object) -> None:
            now = time.perf_counter()
            self._took.append(now - start)
            if now < self._end and self._left > 0:
                send()
            else:
                done.callback(None)

        send()
        return done

    def _draft(self) -> Draft:
        to = f"user{self._rng.randrange(RECIPIENTS)}"
        text = b'"' + b"x" * (MESSAGE_BYTES - 2) + b'"'
        return Draft(to, self._rng.randbytes(16).hex(), to, "text", text, SENT_AT_MS, SENT_AT_MS + 1)


def _sample(took: list[float], per_s: float, *of_ours: float) -> Sample:
    cuts = quantiles(took, n=100) if len(took) > 1 else took * 99
    return Sample(per_s, 1000 * cuts[49], 1000 * cuts[98], *of_ours)


def _row(in_flight: int, commit_bytes: int, bare: list[Sample], ours: list[Sample]) -> Row:
    return Row(
        in_flight,
        commit_bytes,
        Figure.of([sample.per_s for sample in bare]),
        Figure.of([sample.p50_ms for sample in bare]),
        Figure.of([sample.p99_ms for sample in bare]),
        Figure.of([sample.per_s for sample in ours]),
        Figure.of([sample.messages_per_s for sample in ours]),
        Figure.of([own.per_s / limit.per_s for own, limit in zip(ours, bare, strict=True)]),
        Figure.of([sample.p50_ms for sample in ours]),
        Figure.of([sample.p99_ms for sample in ours]),
        Figure.of([sample.cpu_us for sample in ours]),
    )


def table(rows: list[Row]) -> str:
    """In the style of docs/benchmarks.md."""
    lines = [
        "| in flight | messages/s | commits/s | *limit:* syncs/s | of bytes | ratio | p50, ms | p99, ms | CPU, µs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row.in_flight,
            row.messages_per_s,
            row.commits_per_s,
            row.bare_per_s,
            f"{row.commit_bytes:,}",
            row.ratio,
            row.p50_ms,
            row.p99_ms,
            row.cpu_us,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lone = rows[0]
    lines += ["", f"A bare sync of {lone.commit_bytes:,} bytes: p50 {lone.bare_p50_ms} ms, p99 {lone.bare_p99_ms} ms"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
