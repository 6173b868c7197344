"""How fast seeds learn, what their gossip costs, and how well they know who is dead: `python -m bench.gossip`.

Runs the real core on the fake network of :mod:`bench.mesh_sim` with links of 10 ms, and prints a table.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec
from msgspec import Struct

from bench import measures

SEEDS: Final = (10, 20, 40, 100, 300)
RUNS: Final = 2
KINDS: Final = ("spread", "idle", "killed", "cut_off", "lossy_hour", "stalls", "split")
"""The functions of :mod:`bench.measures`, in the order of the table."""
SEEDS_FAILING: Final = 100
SEEDS_HOUR: Final = 100
"""Such an hour takes about ten minutes of one core."""
REGISTRATIONS: Final = 20
DEATHS: Final = 3
IDLE_MEASURED_S: Final = 30.0
IDLE_MEASURED_S_BIG: Final = 5.0
BIG: Final = 300
"""From this many seeds on a run is kept shorter."""
SPREAD_TARGET_S: Final = {100: 0.3, 1000: 0.5}
IDLE_TARGET_KBYTE_S: Final = {10: 8.0, 20: 12.0, 40: 25.0, 100: 60.0}
KILLED_TARGET_S: Final = 2.0
CUT_OFF_TARGET_S: Final = 10.0
HEAL_TARGET_S: Final = 5.0


class Task(Struct, frozen=True):
    """One run: a function of :mod:`bench.measures`, the number of seeds, the random seed, and its last argument."""

    what: str
    seeds: int
    seed: int
    size: float

    def __str__(self) -> str:
        return f"measures.{self.what}({self.seeds}, {self.seed}, {self.size:g})"


class Row(Struct, frozen=True):
    """`worst` is the largest of all values, `count` how many there are."""

    what: str
    seeds: int
    unit: str
    median: float
    worst: float
    count: int
    target: float | None

    @property
    def missed(self) -> bool:
        """A target of none is for every run, any other for the median."""
        return self.target is not None and (self.median if self.target else self.worst) > self.target


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    sizes = [int(size) for size in options.seeds.split(",")]
    started = time.monotonic()
    only = options.only.split(",") if options.only else KINDS
    if unknown := set(only) - set(KINDS):
        parser().error(f"--only {','.join(sorted(unknown))}: there are {', '.join(KINDS)}")
    tasks = [task for task in _tasks(sizes, options.runs, options.first, options.quick) if task.what in only]
    with ProcessPoolExecutor(options.jobs) as pool:
        results = list(zip(tasks, pool.map(_carry_out, tasks), strict=True))
    rows = list(_rows(results))
    print(f"{options.runs} runs from random seed {options.first}, in {time.monotonic() - started:.0f} s\n")
    print(table(rows))
    for task, result in results:
        for wrong in _faults(result):
            print(f"wrong: {wrong} in {task}", file=sys.stderr)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)) + b"\n")
    if options.plot:
        from bench import plot  # noqa: PLC0415 -- takes a second to import

        plot.draw(rows, options.plot)
    return 1 if any(row.missed for row in rows) else 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.gossip", description=__doc__)
    options.add_argument("--quick", action="store_true", help="short runs with few seeds, to see that it works")
    options.add_argument("--runs", type=int, default=RUNS, help="runs of each measurement (%(default)s)")
    options.add_argument("--first", type=int, default=1, help="random seed of the first run (%(default)s)")
    options.add_argument("--jobs", type=int, default=2, help="processes at a time (%(default)s)")
    options.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="sizes of the mesh (%(default)s)")
    options.add_argument("--only", metavar="KINDS", help=f"some of {','.join(KINDS)}")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    options.add_argument("--plot", type=Path, metavar="FILE", help="draw the first two figures")
    return options


# -- what is run --------------------------------------------------------------------------------------------------


def _tasks(sizes: list[int], runs: int, first: int, quick: bool) -> Iterator[Task]:
    failing, hourly = (20, 10) if quick else (SEEDS_FAILING, SEEDS_HOUR)
    hour_s, split_s = (120.0, 60.0) if quick else (measures.HOUR_S, measures.SPLIT_S)
    if quick:
        sizes = [size for size in sizes if size <= 40]
    for seed in range(first, first + runs):
        for size in sizes:
            big = size >= BIG
            yield Task("spread", size, seed, 5 if big or quick else REGISTRATIONS)
            yield Task("idle", size, seed, IDLE_MEASURED_S_BIG if big else IDLE_MEASURED_S)
        yield Task("killed", failing, seed, 1 if quick else DEATHS)
        yield Task("cut_off", failing, seed, 1 if quick else DEATHS)
        yield Task("lossy_hour", hourly, seed, hour_s)
        yield Task("stalls", hourly, seed, hour_s)
        yield Task("split", failing, seed, split_s)


def _carry_out(task: Task) -> Any:
    measure: Callable[[int, int, Any], Any] = getattr(measures, task.what)
    started = time.monotonic()
    gc.collect()
    gc.disable()  # a fifth of the time would go into looking at what never forms a cycle
    try:
        result = measure(
            task.seeds, task.seed, int(task.size) if task.what in {"spread", "killed", "cut_off"} else task.size
        )
    except measures.Failed as failed:
        raise measures.Failed(f"{failed}; it was {task}") from None
    print(f"{task} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return result


# -- what is shown ------------------------------------------------------------------------------------------------


def _rows(results: list[tuple[Task, Any]]) -> Iterator[Row]:
    def of(what: str, seeds: int) -> list[Any]:
        return [result for task, result in results if (task.what, task.seeds) == (what, seeds)]

    kinds = list(dict.fromkeys((task.what, task.seeds) for task, _ in results))
    for what, seeds in sorted(kinds, key=lambda kind: KINDS.index(kind[0])):
        found = of(what, seeds)
        match what:
            case "spread":
                yield _row("a registration is known everywhere", seeds, "s", _flat(found), SPREAD_TARGET_S.get(seeds))
            case "idle":
                target = IDLE_TARGET_KBYTE_S.get(seeds)
                yield _row("idle, sent by a seed", seeds, "kB/s", _flat(one.sent for one in found), target)
                yield _row("idle, received by a seed", seeds, "kB/s", _flat(one.received for one in found), target)
            case "killed":
                yield _row("a killed seed is known dead to all", seeds, "s", _flat(found), KILLED_TARGET_S)
            case "cut_off":
                yield _row("a silent seed is known dead to all", seeds, "s", _flat(found), CUT_OFF_TARGET_S)
            case "lossy_hour":
                yield _row("wrong accusations, 5 % lost", seeds, "", list(map(len, found)), 0)
            case "stalls":
                yield _row("wrong accusations, one stalls", seeds, "", list(map(len, found)), 0)
            case _:
                yield _row("split healed: all equal", seeds, "s", [one.heal_s for one in found], HEAL_TARGET_S)
                wrong = [len(one.wrong) for one in found]
                yield _row(f"wrong winners of {found[0].conflicts}", seeds, "", wrong, 0)


def _row(what: str, seeds: int, unit: str, values: Sequence[float], target: float | None) -> Row:
    return Row(what, seeds, unit, round(median(values), 3), round(max(values), 3), len(values), target)


def _flat(lists: Iterable[list[float]]) -> list[float]:
    return [value for values in lists for value in values]


def _faults(result: Any) -> list[str]:
    """Wrong accusations and wrong winners."""
    if isinstance(result, measures.Split):
        return result.wrong
    return [value for value in result if isinstance(value, str)] if isinstance(result, list) else []


def table(rows: list[Row]) -> str:
    lines = ["| what | seeds | median | worst | values | target |", "|---|---|---|---|---|---|"]
    for row in rows:
        target = "" if row.target is None else f"{row.target:g}{' MISSED' if row.missed else ''}"
        middle, worst = (f"{value:.3g} {row.unit}".rstrip() for value in (row.median, row.worst))
        lines.append(f"| {row.what} | {row.seeds} | {middle} | {worst} | {row.count} | {target} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
