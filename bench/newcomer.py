"""A newcomer's way, timed: `python -m bench.newcomer` clones the repository, and types what docs/tutorial.md says.

Setting up is done for real, in the clone; what follows runs as the tests of the documents run it, with the clone's own
programs. Each command is typed when what stands below the one before has been printed. With --write the table in
docs/tutorial.md is written anew.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
DOCUMENT: Final = ROOT / "docs" / "tutorial.md"
_TABLE = re.compile(r"(?<=<!-- newcomer -->\n).*?(?=<!-- /newcomer -->)", re.DOTALL)


class Typed(NamedTuple):
    """`seconds`: until it was done, or up."""

    command: str
    seconds: float


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.newcomer", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/tutorial.md")
    parser.add_argument("--steps", metavar="DIR", type=Path, help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.steps is not None:
        for typed in walked(options.steps):
            print(f"{typed.seconds} {typed.command}", flush=True)
        return 0
    table = as_table(all_of_it())
    print(table, end="")
    if options.write:
        DOCUMENT.write_text(_TABLE.sub(lambda _: table, DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def all_of_it() -> list[Typed]:
    """From nothing to the last command of the tutorial."""
    with tempfile.TemporaryDirectory(prefix="mesh-newcomer-") as directory:
        clone = Path(directory) / "meshproto"
        typed = [
            _timed("git clone URL meshproto; cd meshproto", ["git", "clone", "-q", str(ROOT), str(clone)], directory)
        ]
        typed.append(_timed("make demo ONCE=1", ["make", "demo", "ONCE=1"], str(clone)))
        typed.append(Typed(". .venv/bin/activate", 0.0))
        home = Path(directory) / "home"
        home.mkdir()
        python = clone / ".venv" / "bin" / "python"
        told = subprocess.run(
            [str(python), "-m", "bench.newcomer", "--steps", str(home)],
            cwd=clone,
            env={**os.environ, "HOME": str(home)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        pairs = (line.split(" ", 1) for line in told.stdout.splitlines())
        return [*typed, *(Typed(command, float(seconds)) for seconds, command in pairs)]


def walked(home: Path) -> list[Typed]:
    """What follows after setting up, with the programs of this interpreter."""
    from tests.docs_support import Session, is_setup, steps  # noqa: PLC0415 - with what a newcomer has by then

    typed = []
    with Session(home, settles=False) as session:
        for step in steps(DOCUMENT):
            began = time.monotonic()
            session.carry_out(step)
            if step.verb == "show" and not is_setup(step):
                typed.append(Typed(step.text, time.monotonic() - began))
    return typed


def as_table(typed: list[Typed]) -> str:
    """In the style of the documents, with the first message and all of it summed up."""
    rows, total = ["| typed | seconds |", "|---|---|"], 0.0
    for number, one in enumerate(typed, 1):
        total += one.seconds
        rows.append(f"| `{one.command}` | {one.seconds:.1f} |")
        if "-d 'Hello" in one.command:
            rows.append(f"| **the first message is delivered, after {number} commands** | **{total:.0f}** |")
    rows.append(f"| **all {len(typed)} commands, two machines' worth of processes** | **{total:.0f}** |")
    return "\n".join(rows) + "\n"


def _timed(shown: str, command: list[str], directory: str) -> Typed:
    began = time.monotonic()
    subprocess.run(command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return Typed(shown, time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
