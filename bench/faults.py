"""The delivery promise under faults, again and again: `python -m bench.faults --runs 1000`.

Real nodes on a fake clock, with a network and disks in memory (:mod:`tests.world`), are asked to send a few dozen
messages while whatever can go wrong does: processes die between any two steps and come back, elsewhere, with other
keys; the network loses one direction or both, or breaks in the middle of a body; disks are slow, refuse, cannot be
read, or do not know what they have written; clocks are set; clients hang up, ask again, and mix up their ids.
Afterwards everything is healed, and :mod:`bench.faults_model` judges what was answered against what has arrived.

A run is drawn from its number alone; one that fails is repeated, with all that happened in it, by `python -m
bench.faults --seed NUMBER`. Each run has only some of the kinds of faults, since some hide others (swarm testing, Groce
et al. 2012). The pattern is FoundationDB's (Zhou et al. 2021, section 4) and TigerBeetle's VOPR.
"""

import argparse
import gc
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Final

from twisted.logger import globalLogBeginner

from bench.faults_run import Run

JOBS: Final = 2


def failures(number: int) -> list[str]:
    """What is wrong at the end of a run, and how to see it again."""
    problems = Run(number).carry_out()
    while gc.collect():
        """What was still going on in that world ends unheard, and not in the next one: some of it wakes others."""
    return [f"{problem} (python -m bench.faults --seed {number})" for problem in problems]


def quiet() -> None:
    """For a process that does nothing else: what Twisted logs goes to those who ask, and what was imported is left
    out of the collections after each run."""
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    gc.collect()
    gc.freeze()
    gc.disable()


def failed_of(numbers: Iterable[int], jobs: int = JOBS) -> Iterator[tuple[int, list[str]]]:
    """The runs that have problems, and which, in order."""
    with _pool(jobs) as pool:
        for number, found in zip(numbers, pool.map(failures, numbers, chunksize=20), strict=True):
            if found:
                yield number, found


def history(number: int) -> str:
    run = Run(number)
    run.carry_out()
    return run.history


def histories(numbers: Iterable[int]) -> list[str]:
    """Of each run, in a process of its own."""
    found = []
    for number in numbers:
        with _pool(1) as pool:
            found.append(pool.submit(history, number).result())
    return found


def _pool(jobs: int) -> ProcessPoolExecutor:
    """A fork would take along whatever threads and reactor there are."""
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=quiet)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="how many runs (%(default)s)")
    parser.add_argument("--first", type=int, default=1, help="the number of the first (%(default)s)")
    parser.add_argument("--jobs", type=int, default=JOBS, help="processes at a time (%(default)s)")
    parser.add_argument("--seed", type=int, metavar="NUMBER", help="only this run, with all that happens")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        quiet()
        run = Run(options.seed, print)
        problems = run.carry_out()
        print(f"history {run.history}")
        print("\n".join(problems) or "all is well")
        return bool(problems)
    started = time.monotonic()
    failed = 0
    for _, found in failed_of(range(options.first, options.first + options.runs), options.jobs):
        failed += 1
        print("\n".join(found), flush=True)
    print(f"{options.runs} runs, {failed} failed, in {time.monotonic() - started:.0f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
