"""Brings what was measured into docs/benchmarks.md: `python -m bench.report`.

In the document a table stands between `<!-- bench: NAME -->` and `<!-- end -->`; what is between them is written anew
from `bench/results/NAME.json`. Where there is no such file, it stays as it is. The plots are drawn anew as well.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from bench import million, plot, store
from bench.figures import Machine, Result, head, say, text
from bench.peers import told
from bench.servers import ROOT

RESULTS: Final = ROOT / "bench" / "results"
RUNS: Final = "suite.json"
"""Among the results: when each program was run."""
DOCUMENT: Final = ROOT / "docs" / "benchmarks.md"
MARKED: Final = re.compile(r"(<!-- bench: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

_OTHERS: Final[dict[str, tuple[type, Callable[[Any], str]]]] = {
    "million": (million.Measured, million.table),
    "backlog": (million.Measured, million.table),
    "store": (store.Row, store.table),
}
"""Programs whose tables are of another kind: lists of such rows."""


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    document = options.document.read_text(encoding="utf-8")
    options.document.write_text(filled(document, options.results), encoding="utf-8")
    for name, (draw, _) in plot.RESULTS.items():
        file = options.results / f"{name}.json"
        if file.exists():
            draw(msgspec.json.decode(file.read_bytes(), type=Result), options.document.parent / f"{name}.svg")
    return 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    options.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the figures are")
    options.add_argument("--document", type=Path, default=DOCUMENT, metavar="FILE", help="what they are brought into")
    return options


def filled(document: str, results: Path) -> str:
    """The document with all tables as they were measured last."""

    def fill(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        file = results / f"{name}.json"
        if not file.exists():
            say(f"{name} has not been measured")
            return found[0]
        return f"{begin}{rendered(name, file)}\n{end}"

    return MARKED.sub(fill, document)


def rendered(name: str, file: Path) -> str:
    if name == told.PROGRAM:
        return told.text(msgspec.json.decode(file.read_bytes(), type=told.Told))
    if name not in _OTHERS:
        picture = f"\n\n![{plot.RESULTS[name][1]}]({name}.svg)" if name in plot.RESULTS else ""
        return text(msgspec.json.decode(file.read_bytes(), type=Result)) + picture
    kind, table = _OTHERS[name]
    rows: Any = msgspec.json.decode(file.read_bytes(), type=list[kind])  # type: ignore[valid-type]
    return f"{_taken(name, file.parent)}\n\n{table(rows)}"


def _taken(name: str, results: Path) -> str:
    """When a program was run, and on what, which these do not say themselves."""
    run = msgspec.json.decode((results / RUNS).read_bytes())[name]
    return head(run["date"], msgspec.convert(run["machine"], Machine)) + "."


if __name__ == "__main__":
    sys.exit(main())
