"""All of the benchmarks of speed, one after the other: `python -m bench.suite`, or `make bench`.

Each program writes its figures into `bench/results/`, from where `python -m bench.report` brings them into
docs/benchmarks.md and draws the plots, which is done at the end. The figures are kept in git beside the programs, so
that a figure that has changed shows when, and that the tables can be drawn in another way without measuring anew.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from bench import figures, lookups, names, report
from bench.figures import Machine, say
from bench.servers import ROOT

RESULTS: Final = report.RESULTS

_JOIN: Final = ("--state", str(names.STATES / str(lookups.NAMES)))
PROGRAMS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "lookups": ((), ("--quick",)),
    "sends": ((), ("--quick",)),
    "bulk": ((), ("--quick",)),
    "registrations": ((), ("--quick",)),
    "posts": ((), ("--quick",)),
    "footprint": ((), ("--quick",)),
    "growth": ((), ("--quick",)),
    "store": (("--rounds", "5", "--seconds", "0.3"), ("--rounds", "1", "--seconds", "0.05")),
    "backlog": (("--sends", "200"), ("--messages", "300", "--sends", "2")),
    "million": (("--seconds", "5", *_JOIN), ("--names", "300", "--seconds", "0.1")),
}
"""What each is given, and with `--quick`. What is simulated (`make bench-gossip`) depends on no machine, and takes
hours for its own table."""

ALONE: Final = ("directory",)
"""What is run on its own, and has its place in the document too: it takes most of a machine's memory."""


class Run(Struct, frozen=True):
    """When a program was run, on what, and for how long."""

    date: str
    machine: Machine
    took_s: float


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    only = options.only.split(",") if options.only else list(PROGRAMS)
    if unknown := set(only) - set(PROGRAMS):
        parser().error(f"--only {','.join(sorted(unknown))}: there are {', '.join(PROGRAMS)}")
    with tempfile.TemporaryDirectory(prefix="mesh-suite-") as scratch:
        directory = options.results or (Path(scratch) if options.quick else RESULTS)
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / report.RUNS
        runs = msgspec.json.decode(file.read_bytes(), type=dict[str, Run]) if file.exists() else {}
        started, failed = time.monotonic(), []
        for name in only:
            before, began = figures.machine(), time.monotonic()
            if not _run(name, directory, options.quick):
                failed.append(name)
            took_s = round(time.monotonic() - began, 1)
            runs[name] = Run(time.strftime("%Y-%m-%d", time.gmtime()), before, took_s)
            say(f"--- {name} took {took_s:.0f} s")
            file.write_bytes(msgspec.json.format(msgspec.json.encode(runs)) + b"\n")
        notes = f"; not well: {', '.join(failed)}" if failed else ""
        say(f"--- all took {time.monotonic() - started:.0f} s{notes}")
    if not (options.quick or options.results):
        report.main([])
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.suite", description=__doc__)
    options.add_argument("--quick", action="store_true", help="a little of everything, to see that it works")
    options.add_argument("--only", metavar="PROGRAMS", help=f"some of {','.join(PROGRAMS)}")
    options.add_argument("--results", type=Path, metavar="DIR", help="write the figures there, and no report")
    return options


def _run(name: str, directory: Path, quick: bool) -> bool:
    """Whether all went well; what went wrong, or missed its target, has been said by then."""
    say(f"--- {name}")
    command = [sys.executable, "-m", f"bench.{name}", *PROGRAMS[name][quick], "--json", str(directory / f"{name}.json")]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
