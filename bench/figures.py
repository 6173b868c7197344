"""What measurements have in common: everything has its turn in each round, each figure is a median with its spread, and
stands beside what the machine allows at that moment; a table of them, and the same as JSON."""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Final, Self

import msgspec
from msgspec import Struct

ROUNDS: Final = 5
ROUNDS_QUICK: Final = 1
SECONDS_QUICK: Final = 0.05

Sample = Mapping[str, float]
"""One run: figures by their names, which are the keys of :data:`HEADINGS`."""

HEADINGS: Final = {
    "per_s": "a second",
    "delivered_per_s": "delivered a second",
    "to_redis": "to redis",
    "to_echo": "to the Twisted echo",
    "to_commit": "p50 to a commit's",
    "to_quiet": "p99 to quiet",
    "to_smallest": "cost to the smallest",
    "to_bare": "CPU to the bare one",
    "p50_us": "p50, µs",
    "p99_us": "p99, µs",
    "seconds": "s",
    "bytes": "memory, bytes each",
    "disk_bytes": "disk, bytes each",
    "changes_per_s": "changes a second",
    "server_us": "CPU, µs",
    "sender_us": "sender's CPU, µs",
    "recipient_us": "recipient's CPU, µs",
    "seed_us": "seed's CPU, µs",
    "load_us": "load's CPU, µs",
    "sender_mb": "sender's memory, MB",
    "recipient_mb": "recipient's memory, MB",
    "errors": "errors",
}
"""What each figure is called in a table, in the order of the columns; what is not here is in the JSON only. CPU times
and latencies are those of one request."""
SPREAD: Final = {"per_s", "p50_us", "p99_us", "seconds", "bytes", "errors"} | {
    name for name in HEADINGS if name.startswith("to_")
}
"""Of these a table shows the spread too; JSON has it of all."""


class Figure(Struct, frozen=True):
    """Median, least and most of the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        found = list(values)
        return cls(median(found), min(found), max(found))

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.least)} to {short(self.most)})"


class Row(Struct, frozen=True):
    """What was measured in one case. `limit`: what the machine allows, or somebody else's server: nothing of ours."""

    case: str
    what: str
    figures: dict[str, Figure]
    limit: bool = False


class Machine(Struct, frozen=True):
    """`load`: how many processes wanted a core before this began."""

    processor: str
    cores: int
    python: str
    load: float


class Result(Struct, frozen=True):
    """What one program has measured. `notes`: what could not be measured, and why."""

    program: str
    date: str
    machine: Machine
    rounds: int
    rows: list[Row]
    notes: list[str] = []

    @property
    def errors(self) -> float:
        return sum(row.figures["errors"].most for row in self.rows if "errors" in row.figures)


# -- measuring ----------------------------------------------------------------------------------------------------


def alternate(rounds: int, entrants: Mapping[str, Callable[[], Sample]]) -> dict[str, list[Sample]]:
    """Everybody in turn, and every other round the other way round, so that whatever else the machine does meets
    everybody alike."""
    samples: dict[str, list[Sample]] = {what: [] for what in entrants}
    for number in range(rounds):
        for what in list(entrants)[:: -1 if number % 2 else 1]:
            samples[what].append(entrants[what]())
    return samples


def compare(samples: dict[str, list[Sample]], what: str, other: str, key: str, name: str) -> None:
    """Give each of one's samples its ratio, as `name`, to the other's of the same round."""
    if other in samples:
        pairs = zip(samples[what], samples[other], strict=True)
        samples[what] = [{**own, name: own[key] / max(beside[key], 1e-9)} for own, beside in pairs]


def rows(case: str, samples: Mapping[str, list[Sample]], limits: Iterable[str] = ()) -> list[Row]:
    """A row for each, those of ours first."""
    found = [
        Row(case, what, {key: Figure.of(sample[key] for sample in taken) for key in taken[0]}, what in limits)
        for what, taken in samples.items()
    ]
    return sorted(found, key=lambda row: row.limit)


# -- telling ------------------------------------------------------------------------------------------------------


def parser(program: str, about: str | None, seconds: float, rounds: int = ROUNDS) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog=f"python -m {program}", description=about)
    options.add_argument("--rounds", type=int, default=rounds, help="of everything, in turn (%(default)s)")
    options.add_argument("--seconds", type=float, default=seconds, help="of each measurement (%(default)g)")
    options.add_argument("--quick", action="store_true", help="a little of everything, to see that it works")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return options


def parse(options: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """`--quick` takes the place of rounds and seconds."""
    given = options.parse_args(arguments)
    if given.quick:
        given.rounds, given.seconds = ROUNDS_QUICK, SECONDS_QUICK
    return given


def machine() -> Machine:
    about = Path("/proc/cpuinfo")
    models = (
        [line for line in about.read_text().splitlines() if line.startswith("model name")] if about.exists() else []
    )
    processor = models[0].partition(":")[2].strip() if models else platform.machine()
    return Machine(processor, len(os.sched_getaffinity(0)), platform.python_version(), round(os.getloadavg()[0], 2))


def tell(
    program: str, before: Machine, options: argparse.Namespace, found: list[Row], notes: Iterable[str] = ()
) -> int:
    """Print the table and write the JSON; the exit code."""
    date = time.strftime("%Y-%m-%d", time.gmtime())
    result = Result(program, date, before, options.rounds, found, list(notes))
    print(text(result))
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    return 1 if result.errors else 0


def say(what: str) -> None:
    """What goes on, for whoever waits; the table alone goes to stdout."""
    print(what, file=sys.stderr, flush=True)


def text(result: Result) -> str:
    """In the style of docs/benchmarks.md."""
    rounds = "one round" if result.rounds == 1 else f"median of {result.rounds} rounds (least to most)"
    about = f"{head(result.date, result.machine)}; {rounds}."
    return "\n".join([about, "", *table(result.rows), *[f"\n{note}" for note in result.notes]])


def head(date: str, machine_: Machine) -> str:
    """What every table begins with."""
    cores = f"{machine_.cores} cores ({machine_.processor})"
    return f"On {date}, {cores}, Python {machine_.python}, load average {machine_.load:g} before"


def table(found: list[Row]) -> list[str]:
    """Only columns that have something in them; of errors only where there were some."""
    used = {key for row in found for key, figure in row.figures.items() if key != "errors" or figure.most}
    keys = [key for key in HEADINGS if key in used]
    lines = ["| | | " + " | ".join(HEADINGS[key] for key in keys) + " |", "|---" * (2 + len(keys)) + "|"]
    case = None
    for row in found:
        cells = [_cell(key, row.figures.get(key)) for key in keys]
        what = f"*limit:* {row.what}" if row.limit else row.what
        lines.append(f"| {'' if row.case == case else row.case} | {what} | {' | '.join(cells)} |")
        case = row.case
    return lines


def _cell(key: str, figure: Figure | None) -> str:
    if figure is None:
        return ""
    return str(figure) if key in SPREAD and figure.least != figure.most else short(figure.median)


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
