"""What Prometheus reads: the text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/), and the
histogram that it knows.

This is the one place that writes it. `prometheus_client`, the usual library, counts behind a lock in a registry of the
process, which a message would pay for, and of which a process with several nodes, as the tests have, has one. What is
wanted of it here is this page of text.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import accumulate
from typing import Final, Literal, NamedTuple, TypeVar

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"

Kind = Literal["counter", "gauge", "histogram"]
Labels = Mapping[str, str]
E = TypeVar("E", bound=StrEnum)


class Histogram:
    """How often something was how large. `bounds`: the upper ends of the buckets, rising; there is one more without
    an end."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)


Value = float | Histogram


class Family(NamedTuple):
    """One metric: whose labels have which values. Every label has a bounded number of texts: those of an enum, or the
    names of the seeds of a mesh."""

    name: str
    kind: Kind
    help: str
    samples: Sequence[tuple[Labels, Value]]


def one(name: str, kind: Kind, help_: str, value: Value) -> Family:
    """Without labels."""
    return Family(name, kind, help_, [({}, value)])


def each(name: str, kind: Kind, help_: str, label: str, values: Iterable[tuple[str, Value]]) -> Family:
    """With one label."""
    return Family(name, kind, help_, [({label: text}, value) for text, value in values])


def counted(name: str, help_: str, label: str, every: type[E], counts: Mapping[E, int]) -> Family:
    """A counter for each member of an enum. Those that are 0 are told too, so that the first is seen to be one more."""
    return each(name, "counter", help_, label, [(member.value, counts.get(member, 0)) for member in every])


def text(families: Iterable[Family]) -> str:
    return "".join(map(_text, families))


def _text(family: Family) -> str:
    lines = [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
    for labels, value in family.samples:
        if isinstance(value, Histogram):
            lines += _buckets(family.name, labels, value)
        else:
            lines.append(_sample(family.name, labels, value))
    return "\n".join(lines) + "\n"


def _buckets(name: str, labels: Labels, histogram: Histogram) -> Iterable[str]:
    """Each counts what is in the smaller ones too."""
    ends = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
    totals = list(accumulate(histogram.counts))
    for end, total in zip(ends, totals, strict=True):
        yield _sample(f"{name}_bucket", {**labels, "le": end}, total)
    yield _sample(f"{name}_sum", labels, histogram.sum)
    yield _sample(f"{name}_count", labels, totals[-1])


def _sample(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{label}="{_escaped(said)}"' for label, said in labels.items())
    return f"{name}{{{inside}}} {_number(value)}" if labels else f"{name} {_number(value)}"


def _escaped(said: str) -> str:
    return said.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    """Whole numbers in full: a byte counter must not be rounded."""
    return str(int(value)) if value == int(value) else repr(float(value))
