"""The plot of `python -m bench.gossip --plot`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from matplotlib import rc_context
from matplotlib.figure import Figure

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
    with rc_context({"svg.hashsalt": "meshproto", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Title": "meshproto's gossip: speed and cost", "Date": None})


def _curve(axes: Any, rows: Sequence[Row], what: str) -> None:
    found = sorted((row for row in rows if row.what == what), key=lambda row: row.seeds)
    sizes = [row.seeds for row in found]
    axes.plot(sizes, [row.median for row in found], "o-", color="C0", label="meshproto, median")
    axes.plot(sizes, [row.worst for row in found], "^--", color="C1", label="meshproto, worst")
