"""What a run has found: tables in the style of docs/benchmarks.md, and JSON with rows like those of the others."""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from bench.figures import Figure, Result, short
from bench.peers.contest import Work

TITLES: Final[dict[Work, str]] = {
    "lookup": "Lookups a second",
    "message": "Messages of 256 bytes a second, each sent, acknowledged, and received by the other side",
}
CASE: Final[dict[Work, str]] = {"lookup": "64c d1", "message": "1 in flight"}
"""Whose p50 is shown."""

PROGRAM: Final = "peers"

Figures = Mapping[str, Figure]


class System(Struct, frozen=True):
    """Who was measured. `ratio`: what the figure is called, in others' rows, that says how many times as many this one
    of ours does; empty for all others. `missing`: why not, or why not to the end."""

    what: str
    key: str
    work: Work
    acknowledged: str
    durable: bool
    ratio: str = ""
    version: str = ""
    missing: str = ""

    @property
    def ours(self) -> bool:
        return self.key == "ours"


class Told(Result, frozen=True, kw_only=True):
    """A result whose rows' `what` are the systems'; a row's `case` is the load."""

    systems: list[System]


def text(told: Told) -> str:
    machine = told.machine
    lines = [
        f"On {told.date}, {machine.cores} cores ({machine.processor}), load average {machine.load:g} before. Servers "
        f"on one core, load on the other; median of {told.rounds} rounds in turn."
    ]
    found = {(row.what, row.case): row.figures for row in told.rows}
    for work in TITLES:
        if systems := [system for system in told.systems if system.work == work]:
            lines += ["", *_section(work, systems, found)]
    for note in told.notes:
        lines += ["", note]
    return "\n".join(lines)


def _section(work: Work, systems: Sequence[System], found: Mapping[tuple[str, str], Figures]) -> list[str]:
    wanted = {system.what for system in systems}
    cases = list(dict.fromkeys(case for what, case in found if what in wanted))
    heads = ["", *cases, f"p50 of {CASE[work]}, ms", "CPU, µs", "load", "on disk", "an answer says"]
    lines = [f"**{TITLES[work]}**", "", *_head(heads)]
    for system in systems:
        figures = [found.get((system.what, case), {}) for case in cases]
        name = f"**{system.what}**" if system.ours else f"{system.what} {system.version}".rstrip()
        if any(figures):
            cells = [_rate(one) for one in figures]
            cells += [_milliseconds(found.get((system.what, CASE[work]), {})), _cpu(figures), _load(figures)]
            cells += ["yes" if system.durable else "no", _says(system)]
        else:
            cells = [""] * (len(cases) + 4) + [_says(system)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, *_ratios(systems, cases, found)]


def _head(cells: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(cells)} |", "|---" * len(cells) + "|"]


def _ratios(systems: Sequence[System], cases: Sequence[str], found: Mapping[tuple[str, str], Figures]) -> list[str]:
    """Those of ours in the columns, the others in the rows."""
    others = [other for other in systems if not other.ours and any((other.what, case) in found for case in cases)]
    ours = [
        (own, case)
        for own in systems
        for case in cases
        if any(own.ratio in found.get((other.what, case), {}) for other in others)
    ]
    if not ours:
        return []
    lines = ["", "How many times as many we do, in the same round; in bold where they do more:", ""]
    lines += _head(["beside", *(f"{own.what.removeprefix('meshproto, ')}: {case}" for own, case in ours)])
    for other in others:
        ratios = [found.get((other.what, case), {}).get(own.ratio) for own, case in ours]
        cells = [_ratio(ratio.median) if ratio else "" for ratio in ratios]
        lines.append(f"| {other.what} | {' | '.join(cells)} |")
    return lines


def _ratio(value: float) -> str:
    return f"**{short(value)}**" if value < 1 else short(value)


def _rate(figures: Figures) -> str:
    return short(figures["per_s"].median) if figures else ""


def _milliseconds(figures: Figures) -> str:
    return short(figures["p50_us"].median / 1000) if "p50_us" in figures else ""


def _cpu(figures: Sequence[Figures]) -> str:
    """In the order of the cases."""
    return " / ".join(short(one["server_us"].median) for one in figures if one)


def _load(figures: Sequence[Figures]) -> str:
    """Of the load's core, at most."""
    return f"{max(100 * one['load_share'].median for one in figures if one):.0f} %"


def _says(system: System) -> str:
    return "; ".join(filter(None, (system.acknowledged, system.missing and f"not measured: {system.missing}")))
