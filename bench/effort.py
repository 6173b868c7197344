"""Speed without a clock: `python -m bench.effort` counts what common operations make the interpreter, SQLite and the
network do, and shows how that differs from what `bench/effort.json` has on record.

A test (tests/test_effort.py) fails where a count has become more than 20 % larger, so that nothing gets much slower
unseen; and where one has become more than 20 % smaller, so that what was gained goes on record, and to lose it again is
seen too. `--write` records what is meant. A small step passes, but many small steps do not: the record stays.

The operations happen in the fake world (:mod:`tests.world`), with files for disks: real nodes and seeds, from the bytes
of a request to the bytes of its answer. Two runs count the same to the unit, on a busy machine too. What a sender does
is told apart from what its recipient does, so that neither hides behind the other.

What is not seen: system calls and what waits for them, the processor's caches, threads, the reactor (a fake one),
sockets, TLS, and how long a function written in C takes: to copy a megabyte counts as much as to copy a byte. Only the
dearest of those have counts of their own: JSON, cryptography, SQL. All this is what the other benchmarks are for.

Bytecodes are those of one minor version of CPython (:data:`PYTHON`); with another one they are not compared, and all
else is. The libraries are those of requirements.lock: to take up newer ones may mean to record anew. Memory differs by
some percent with the hashes of strings, which are others in each process.
"""

import argparse
import functools
import gc
import random
import secrets
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple
from unittest.mock import patch

import msgspec
from msgspec import Struct
from twisted.logger import globalLogBeginner

from bench.effort_count import Counts
from bench.effort_operations import OPERATIONS, Operation
from bench.effort_world import EffortWorld

RECORD: Final = Path(__file__).with_suffix(".json")
PYTHON: Final = "3.11"
"""That of the record: what CI runs."""
PYTHON_HERE: Final = ".".join(map(str, sys.version_info[:2]))
TOLERANCE: Final = 0.2
FUNCTIONS_SHOWN: Final = 25
WORTH: Final = {
    "bytecodes": 1.0,
    "c_calls": 1.0,
    "json": 15.0,
    "crypto": 1500.0,
    "statements": 60.0,
    "steps": 1.0,
    "commits": 700.0,
    "synced": 7000.0,
    "pages": 75.0,
    "timers": 100.0,
    "writes": 200.0,
    "sent_bytes": 0.01,
    "kept_bytes": 1.0,
}
"""About how many bytecodes (some 40 ns each) take as long as one of these."""
NEGLIGIBLE: Final = 0.01
"""A difference of less than this part of the whole operation, by worth, is not complained of: one more timer for a
thousand messages is 50 % more timers, and nothing."""


class Record(Struct, frozen=True):
    """`python`, `sqlite`: the versions that were counted."""

    python: str
    sqlite: str
    operations: dict[str, Counts]


class Difference(NamedTuple):
    """Of one operation, each time that it is done."""

    operation: str
    kind: str
    was: float
    now: float

    def __str__(self) -> str:
        percent = f"{100 * (self.now / self.was - 1):+.0f} %" if self.was else "none on record"
        return f"{self.operation}: {_number(self.now)} {self.kind}, on record {_number(self.was)} ({percent})"


def measured(operations: Iterable[Operation] = OPERATIONS) -> Record:
    """Each in a world of its own."""
    counts: dict[str, Counts] = {}
    for operation in operations:
        _forget()
        counts.update(_done(operation).counts)
    return Record(PYTHON_HERE, sqlite3.sqlite_version, counts)


def _forget() -> None:
    """What functions remember from one call to the next, so that what went before makes no difference."""
    for one in gc.get_objects():
        if isinstance(one, functools._lru_cache_wrapper) and one.__module__.startswith("meshproto"):
            one.cache_clear()


def differences(record: Record, now: Record) -> list[Difference]:
    """All that there are, however small, of what both have."""
    kinds = [kind for kind in WORTH if record.python == now.python or kind != "bytecodes"]
    found = []
    for operation, counts in now.operations.items():
        if operation in record.operations:
            was = record.operations[operation]
            found += [Difference(operation, kind, _each(was, kind), _each(counts, kind)) for kind in kinds]
    return [one for one in found if one.now != one.was]


def complaints(record: Record, now: Record) -> list[str]:
    """What must not stay as it is."""
    added = [f"{operation}: not on record" for operation in now.operations if operation not in record.operations]
    gone = [f"{operation}: only on record" for operation in record.operations if operation not in now.operations]
    return added + gone + [str(one) for one in differences(record, now) if _matters(one, record)]


def _matters(one: Difference, record: Record) -> bool:
    if (1 - TOLERANCE) * one.was <= one.now <= (1 + TOLERANCE) * one.was:
        return False
    was = record.operations[one.operation]
    whole = sum(_each(was, kind) * worth for kind, worth in WORTH.items())
    return abs(one.now - one.was) * WORTH[one.kind] >= NEGLIGIBLE * whole


def advice(record: Record, now: Record) -> str:
    """What to do about complaints."""
    other = "" if record.sqlite == now.sqlite else f"SQLite is {now.sqlite} here, and was {record.sqlite}. "
    return f"{other}Where it comes from: python -m bench.effort --functions OPERATION. If it is meant: --write"


def table(now: Record, record: Record | None = None) -> str:
    """Each time that an operation is done, and what is different from the record."""
    changed = {(one.operation, one.kind): one for one in (differences(record, now) if record else [])}
    rows = [["operation", *(kind.replace("_", " ") for kind in WORTH)], ["---"] * (1 + len(WORTH))]
    for operation, counts in now.operations.items():
        row = [operation]
        for kind in WORTH:
            difference = changed.get((operation, kind))
            value = _each(counts, kind)
            percent = f" ({100 * (value / difference.was - 1):+.0f} %)" if difference and difference.was else ""
            row.append(f"{_number(value)}{percent}" if value or difference else "")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def dearest(part: str) -> Iterator[str]:
    """Which functions do most in the operations whose name has `part`, without what they call."""
    for operation in OPERATIONS:
        world = _done(operation)
        for name, tallies in world.functions.items():
            if part in name:
                of = world.counts[name].of
                yield f"{name}: bytecodes, C calls, calls"
                for tally in sorted(tallies, key=lambda tally: -tally.bytecodes)[:FUNCTIONS_SHOWN]:
                    counts = (tally.bytecodes, tally.c_calls, tally.calls)
                    figures = " ".join(f"{_number(count / of):>9}" for count in counts)
                    code = tally.code
                    yield f"{figures}  {code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"


def read_record() -> Record:
    return msgspec.json.decode(RECORD.read_bytes(), type=Record)


def written(record: Record) -> str:
    """A line for each operation, so that one sees what a change has changed."""
    lines = [f"  {_text(name)}: {_text(counts)}" for name, counts in record.operations.items()]
    head = f'"python": {_text(record.python)}, "sqlite": {_text(record.sqlite)}'
    return "{" + head + ', "operations": {\n' + ",\n".join(lines) + "\n}}\n"


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _done(operation: Operation) -> EffortWorld:
    """What an operation has counted. Nothing in it comes by chance, and nothing of it is left for the next one."""
    with (
        tempfile.TemporaryDirectory(prefix="mesh-effort-") as directory,
        patch.object(secrets, "randbits", random.Random(1).getrandbits),
    ):
        world = EffortWorld(Path(directory))
        try:
            operation(world)
        finally:
            world.close()
    while gc.collect():
        """What was going on in that world ends; some of it wakes others."""
    return world


def _each(counts: Counts, kind: str) -> float:
    return float(getattr(counts, kind)) / counts.of


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.effort", description=__doc__)
    what = made.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help=f"record in bench/{RECORD.name} what is counted now")
    what.add_argument("--json", action="store_true", help="print what would be recorded")
    what.add_argument("--functions", metavar="OPERATION", help="where it goes, by function; part of a name will do")
    return made


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.write and PYTHON_HERE != PYTHON:
        parser().error(f"the record is of Python {PYTHON}, this is {PYTHON_HERE}")
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    if options.functions is not None:
        for line in dearest(options.functions):
            print(line)
        return 0
    now = measured()
    if options.json:
        print(written(now), end="")
        return 0
    record = read_record() if RECORD.exists() else None
    print(table(now, record))
    if options.write:
        RECORD.write_text(written(now), encoding="utf-8")
        return 0
    if record is None:
        return 0
    found = complaints(record, now)
    print(
        "\n".join([*found, advice(record, now)] if found else ["nothing has become much more or less than on record"])
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
