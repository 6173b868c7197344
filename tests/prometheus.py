"""Prometheus's text format, read strictly."""

import re
from typing import NamedTuple

_LABELS = r'\{((?:[a-z_]+="(?:[^"\\\n]|\\[\\n"])*",?)*)\}'
_SAMPLE = re.compile(rf"([a-z][a-z0-9_]*)(?:{_LABELS})? (-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)")
PARTS = ("_bucket", "_sum", "_count")
"""Of a histogram."""


class Page(NamedTuple):
    """`kinds`: of each metric; `values`: of each series, as it is written."""

    kinds: dict[str, str]
    values: dict[str, float]


def read(text: str) -> Page:
    """HELP and TYPE once and in front of each family, its samples together, counters named so, no series twice, and
    histograms that add up."""
    assert text.endswith("\n")
    page = Page({}, {})
    lines = text.splitlines()
    while lines:
        name, help_ = re.fullmatch(r"# HELP ([a-z0-9_]+) (\S.*)", lines.pop(0)).groups()  # type: ignore[union-attr]
        kind = re.fullmatch(rf"# TYPE {name} (counter|gauge|histogram)", lines.pop(0))
        assert kind is not None and "\\" not in help_
        assert name.startswith(("meshproto_user_", "meshproto_seed_", "process_")) and name not in page.kinds
        assert name.endswith("_total") == (kind[1] == "counter")
        page.kinds[name] = kind[1]
        own = [name + part for part in PARTS] if kind[1] == "histogram" else [name]
        before = len(page.values)
        while lines and not lines[0].startswith("#"):
            line = lines.pop(0)
            sample = _SAMPLE.fullmatch(line)
            assert sample is not None and sample[1] in own, line
            series = line.rpartition(" ")[0]
            assert series not in page.values
            page.values[series] = float(sample[3])
        if kind[1] == "histogram":
            _check(name, list(page.values.items())[before:])
    return page


def _check(name: str, samples: list[tuple[str, float]]) -> None:
    """One without labels of its own: its buckets rise, and the last has all."""
    *buckets, (of_sum, _), (of_count, count) = samples
    ends = [float(re.fullmatch(rf'{name}_bucket{{le="(.*)"}}', series)[1]) for series, _ in buckets]  # type: ignore[index]
    totals = [total for _, total in buckets]
    assert ends == sorted(set(ends)) and ends[-1] == float("inf")
    assert totals == sorted(totals) and totals[-1] == count
    assert (of_sum, of_count) == (f"{name}_sum", f"{name}_count")
