"""Does each line of the threat model have a test that can fail? `python -m bench.guards` takes away one guard at a time
in a copy of the code, and runs the test that docs/security.md names for it: it has to fail.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from bench.mutants import ROOT, Mutant, broken

TEST_FAILED: Final = 1
"""What pytest's exit code has to be; others say that there was no such test, or that it could not be run."""
TIMEOUT_S: Final = 300.0


class Guard(NamedTuple):
    """The test that watches over it, and how it is taken away."""

    test: str
    mutant: Mutant


def guard(test: str, name: str, file: str, was: str, becomes: str) -> Guard:
    return Guard(f"tests/{test}", Mutant(name, file, was, becomes))


GUARDS: Final[list[Guard]] = []


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.guards", description=__doc__)
    parser.add_argument("--only", metavar="WORD", default="", help="those whose name or test has it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at a time (%(default)s)")
    options = parser.parse_args(arguments)
    chosen = [one for one in GUARDS if options.only in one.mutant.name or options.only in one.test]
    missed = 0
    print("| without | its test |\n|---|---|", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        for one, verdict in zip(chosen, pool.map(judged, chosen), strict=True):
            print(f"| {one.mutant.name} | {verdict or 'fails'} |", flush=True)
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
