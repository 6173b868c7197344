"""Does each line of the threat model have a test that can fail? `python -m bench.guards` takes away one guard at a time
in a copy of the code, and runs the test that docs/security.md names for it: it has to fail.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from bench.mutants import ROOT, Mutant, broken

TEST_FAILED: Final = 1
"""What pytest's exit code has to be; others say that there was no such test, or that it could not be run."""
TIMEOUT_S: Final = 300.0


class Guard(NamedTuple):
    """`who` cannot do what the mutant's name says; `test` watches over it."""

    who: str
    test: str
    mutant: Mutant


def guards() -> list[Guard]:
    """Those of `guards.toml`, in its order."""
    told = tomllib.loads((Path(__file__).parent / "guards.toml").read_text(encoding="utf-8"))["guard"]
    return [
        Guard(one["who"], one["test"], Mutant(one["cannot"], one["file"], one["was"], one["becomes"])) for one in told
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.guards", description=__doc__)
    parser.add_argument("--only", metavar="WORD", default="", help="those whose name or test has it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at a time (%(default)s)")
    options = parser.parse_args(arguments)
    chosen = [one for one in guards() if options.only in one.mutant.name or options.only in one.test]
    missed = 0
    print("| who could | without its guard, the test |\n|---|---|", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        for one, verdict in zip(chosen, pool.map(judged, chosen), strict=True):
            print(f"| {one.who}: {one.mutant.name} | {verdict or 'fails'} |", flush=True)
            missed += verdict is not None
    print(f"{len(chosen)} guards, {missed} that no test would miss")
    return bool(missed)


def judged(one: Guard) -> str | None:
    """None when the test notices; else what happens instead."""
    with tempfile.TemporaryDirectory(prefix="mesh-guards-") as directory:
        if not broken(one.mutant, directory):
            return "DOES NOT FIT the code any more: write it anew"
        environment = {**os.environ, "PYTHONPATH": directory, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", one.test]
        try:
            done = subprocess.run(
                command,
                cwd=directory,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                check=False,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return None  # it waits for what does not come
        if done.returncode == TEST_FAILED:
            return None
        last = done.stdout.strip().splitlines()[-1:] or [""]
        return f"PASSES all the same ({last[0]})" if done.returncode == 0 else f"CANNOT BE RUN ({last[0]})"


def exists(test: str) -> bool:
    """Whether the tree has the test: `tests/FILE::Class::function`."""
    file, *names = test.split("::")
    path = ROOT / file
    if not names or not path.exists():
        return False
    text = path.read_text(encoding="utf-8")
    kinds = ["class"] * (len(names) - 1) + ["def"]
    return all(f"{kind} {name.partition('[')[0]}" in text for kind, name in zip(kinds, names, strict=True))


if __name__ == "__main__":
    sys.exit(main())
