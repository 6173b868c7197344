"""A sample of the random runs of :mod:`bench.soak`; `make soak` has more of them."""

from itertools import chain

from bench import soak

RUNS = 60
"""About eight seconds."""


def test_seeds_come_to_agree_and_are_right() -> None:
    """After whatever happened to the mesh, all seeds that live give the same answers, and those the rules demand."""
    assert list(chain.from_iterable(map(soak.failures, range(1, RUNS + 1)))) == []
