"""The plots of docs/benchmarks.md."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from matplotlib import rc_context
from matplotlib.figure import Figure

from bench import figures, lookups, sends
from bench.figures import Result

MEMBERLIST_S: Final = {30: 0.9, 100: 1.1, 1000: 1.7}
"""memberlist with its default parameters, simulated: all nodes informed."""
CHITCHAT_KBYTE_S: Final = {10: 15, 20: 25, 40: 50, 100: 120}
"""The bounds of chitchat's own performance test."""


class Row(Protocol):
    @property
    def what(self) -> str: ...
    @property
    def seeds(self) -> int: ...
    @property
    def median(self) -> float: ...
    @property
    def worst(self) -> float: ...


def draw(rows: Sequence[Row], file: Path) -> None:
    """Time until news is everywhere, and idle traffic, over the number of seeds, beside the published figures."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    spread, idle = figure.subplots(1, 2)
    _curve(spread, rows, "a registration is known everywhere")
    spread.plot(list(MEMBERLIST_S), list(MEMBERLIST_S.values()), "s:", color="0.5", label="memberlist, simulated")
    spread.set(title="A registration is known to every seed", ylabel="seconds", ylim=(0, None))
    _curve(idle, rows, "idle, sent by a seed")
    idle.plot(list(CHITCHAT_KBYTE_S), list(CHITCHAT_KBYTE_S.values()), "s:", color="0.5", label="chitchat, CI bound")
    idle.set(title="Idle traffic, sent by each seed", ylabel="kB/s", yscale="log")
    for axes in (spread, idle):
        axes.set(xlabel="seeds", xscale="log")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    _save(figure, file, "meshproto's gossip: speed and cost")


def _save(figure: Figure, file: Path, title: str) -> None:
    """The same figures give the same file."""
    with rc_context({"svg.hashsalt": "meshproto", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Title": title, "Date": None})


def _curve(axes: Any, rows: Sequence[Row], what: str) -> None:
    found = sorted((row for row in rows if row.what == what), key=lambda row: row.seeds)
    sizes = [row.seeds for row in found]
    axes.plot(sizes, [row.median for row in found], "o-", color="C0", label="meshproto, median")
    axes.plot(sizes, [row.worst for row in found], "^--", color="C1", label="meshproto, worst")


# -- of what others measure ---------------------------------------------------------------------------------------


def draw_lookups(result: Result, file: Path) -> None:
    """A group of bars for each number of connections and depth: ours, redis, what Python allows, and the two echoes."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    shown = (lookups.OURS, lookups.MISSED, lookups.REDIS, lookups.BARE, lookups.TWISTED, lookups.ECHO)
    _bars(figure.subplots(), result, shown, "per_s", "lookups a second")
    _save(figure, file, "meshproto's lookups beside what the machine allows")


def draw_sends(result: Result, file: Path) -> None:
    """How many single messages, and how long one takes, beside a commit and what Python allows."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    rate, latency = figure.subplots(2, 1)
    shown = (sends.DELIVERED, sends.QUEUED, sends.BARE, sends.COMMIT)
    _bars(rate, result, shown, "per_s", "a second")
    _bars(latency, result, shown, "p50_us", "p50, µs")
    _save(figure, file, "meshproto's single messages beside what the disk allows")


def draw_growth(result: Result, file: Path) -> None:
    """The cost of a request over the size of what grows."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots()
    for case in dict.fromkeys(row.case for row in result.rows):
        costs = [row.figures.get("to_smallest") for row in result.rows if row.case == case]
        sizes = [10**number for number in range(len(costs))]
        values = [1.0 if cost is None else cost.median for cost in costs]
        spread = [[value - (cost.least if cost else value) for value, cost in zip(values, costs, strict=True)]]
        spread.append([(cost.most if cost else value) - value for value, cost in zip(values, costs, strict=True)])
        axes.errorbar(sizes, values, spread, fmt="o-", capsize=3, label=case)
        axes.set(xscale="log", xticks=sizes, xticklabels=sizes)
    axes.axhline(1.2, color="0.5", linestyle=":", label="1.2 times")
    axes.set(xlabel="times the size", ylabel="CPU of a request, to the smallest", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="lower left")
    _save(figure, file, "what meshproto's requests cost as the mesh grows")


def _bars(axes: Any, result: Result, shown: Sequence[str], key: str, label: str) -> None:
    """Medians, with a line from the least to the most."""
    cases = [case for case in dict.fromkeys(row.case for row in result.rows) if _of(result, case, shown[-1])]
    width = 0.8 / len(shown)
    for number, what in enumerate(shown):
        found = [(at, row.figures[key]) for at, case in enumerate(cases) if (row := _of(result, case, what))]
        places = [at + (number - len(shown) / 2 + 0.5) * width for at, _ in found]
        medians = [one.median for _, one in found]
        spread = [[one.median - one.least for _, one in found], [one.most - one.median for _, one in found]]
        axes.bar(places, medians, width, yerr=spread, capsize=2, label=what, error_kw={"lw": 0.8})
    names = [case.replace(", ", "\n") for case in cases]
    axes.set(yscale="log", ylabel=label, xticks=range(len(cases)), xticklabels=names)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize="small", ncols=len(shown), loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _of(result: Result, case: str, what: str) -> figures.Row | None:
    return next((row for row in result.rows if (row.case, row.what) == (case, what)), None)


RESULTS: Final[dict[str, tuple[Callable[[Result, Path], None], str]]] = {
    "lookups": (draw_lookups, "Lookups a second, beside redis-server, a bare loop in Python and two echoes"),
    "sends": (
        draw_sends,
        "Single messages a second and their latency, beside bare loops in Python and a durable commit",
    ),
    "growth": (draw_growth, "What a request costs, over the size of what grows"),
}
"""What is drawn of each program's results, and what it is called where it cannot be seen."""
