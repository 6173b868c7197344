"""Prometheus's text format, as it is written."""

from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproto.net.exposition import Family, Histogram, counted, each, one, text
from tests.prometheus import read


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


def test_one_of_each_kind() -> None:
    """To the byte as Prometheus documents it."""
    took = Histogram((0.5, 1.0, 10.0))
    took.observe(0.5)
    took.observe(0.75, 3)
    took.observe(99)
    families = [
        one("meshproto_user_waiting", "gauge", "What waits.", 3),
        each("meshproto_user_program_behind", "gauge", "Behind.", "kind", [("a", 1.5), ("b", 0)]),
        counted("meshproto_user_failures_total", "Failures.", "cause", Colour, {Colour.RED: 2}),
        one("meshproto_user_delivery_seconds", "histogram", "Took.", took),
    ]
    assert text(families) == (
        "# HELP meshproto_user_waiting What waits.\n"
        "# TYPE meshproto_user_waiting gauge\n"
        "meshproto_user_waiting 3\n"
        "# HELP meshproto_user_program_behind Behind.\n"
        "# TYPE meshproto_user_program_behind gauge\n"
        'meshproto_user_program_behind{kind="a"} 1.5\n'
        'meshproto_user_program_behind{kind="b"} 0\n'
        "# HELP meshproto_user_failures_total Failures.\n"
        "# TYPE meshproto_user_failures_total counter\n"
        'meshproto_user_failures_total{cause="red"} 2\n'
        'meshproto_user_failures_total{cause="blue"} 0\n'
        "# HELP meshproto_user_delivery_seconds Took.\n"
        "# TYPE meshproto_user_delivery_seconds histogram\n"
        'meshproto_user_delivery_seconds_bucket{le="0.5"} 1\n'
        'meshproto_user_delivery_seconds_bucket{le="1"} 4\n'
        'meshproto_user_delivery_seconds_bucket{le="10"} 4\n'
        'meshproto_user_delivery_seconds_bucket{le="+Inf"} 5\n'
        "meshproto_user_delivery_seconds_sum 101.75\n"
        "meshproto_user_delivery_seconds_count 5\n"
    )


@pytest.mark.parametrize("value", [0, 12345678901234567, 2**53 + 1, 0.1, 1e-9, -2.5])
def test_numbers_are_not_rounded(value: float) -> None:
    """What is written is what was counted, however large a counter of bytes gets."""
    written = text([one("meshproto_user_waiting", "gauge", "W.", value)])
    assert read(written).values == {"meshproto_user_waiting": float(value)}
    assert type(value)(written.split()[-1]) == value


@given(st.text())
def test_no_text_gets_out_of_its_label(said: str) -> None:
    """One sample, whatever the label says."""
    page = text([Family("meshproto_seed_known_users", "gauge", "U.", [({"seed": said}, 1)])])
    assert page.count("\n") == 3
    inside = page.split('{seed="', 1)[1].removesuffix('"} 1\n')
    unescaped = inside.replace("\\\\", "\0").replace('\\"', '"').replace("\\n", "\n").replace("\0", "\\")
    assert unescaped == said.replace("\0", "\\")


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 5))))
def test_a_histogram_adds_up(observed: list[tuple[float, int]]) -> None:
    """Each bucket has what is no larger than its bound."""
    bounds = (0.001, 0.5, 7.0, 3600.0)
    histogram = Histogram(bounds)
    for value, times in observed:
        histogram.observe(value, times)
    values = read(text([one("meshproto_user_delivery_seconds", "histogram", "Took.", histogram)])).values
    for bound in bounds:
        wanted = sum(times for value, times in observed if value <= bound)
        assert values[f'meshproto_user_delivery_seconds_bucket{{le="{bound:g}"}}'] == wanted
    assert values["meshproto_user_delivery_seconds_count"] == sum(times for _, times in observed) == histogram.count
    assert values["meshproto_user_delivery_seconds_sum"] == pytest.approx(sum(v * t for v, t in observed))
