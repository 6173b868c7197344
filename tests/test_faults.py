"""A sample of the random runs of :mod:`bench.faults`; `make faults` has more of them."""

import random
import sqlite3

import pytest

from bench import faults
from bench.faults_mutants import MUTANTS
from bench.mutants import Mutant
from tests.disk import Trouble, TroubledConnection, bring_to_light

RUNS = 500
"""A good minute on two cores."""
REPLAYED = 7


def test_what_was_promised_is_kept() -> None:
    """Whatever happens to nodes, network, disks and clocks: each message that was accepted arrives once and in order,
    or its sender is told what became of it."""
    assert [found for _, found in faults.failed_of(range(1, RUNS + 1))] == []


def test_a_run_is_repeated_to_the_letter() -> None:
    """The same number twice, in processes with hashes of their own, is the same history."""
    first, second = faults.histories([REPLAYED, REPLAYED])
    assert first == second


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_mutant_fits_the_code(mutant: Mutant) -> None:
    """What :mod:`bench.faults_mutants` breaks is still there to be broken."""
    assert mutant.fits, f"{mutant.file} has not exactly once {mutant.was!r}"


@pytest.mark.parametrize(("trouble", "left"), [("refuses", 0), ("doubts", 1), ("haunts", 1)])
def test_a_commit_that_fails(trouble: str, left: int) -> None:
    """After the process has died there is nothing of a commit that was refused, and all of one that was in doubt."""
    keeper = sqlite3.connect("file:test_a_commit_that_fails?mode=memory&cache=shared", uri=True)
    disk = Trouble(random.Random(1))
    setattr(disk, trouble, 1.0)
    with sqlite3.connect("file:test_a_commit_that_fails?mode=memory&cache=shared", uri=True) as inner:
        inner.isolation_level = None
        connection = TroubledConnection(inner, disk)
        connection.execute("CREATE TABLE messages (id INTEGER)")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO messages VALUES (?)", (7,))
        with pytest.raises(sqlite3.OperationalError):
            connection.execute("COMMIT")
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    connection.close()
    bring_to_light(disk, keeper)
    assert keeper.execute("SELECT count(*) FROM messages").fetchone() == (left,)
    keeper.close()
