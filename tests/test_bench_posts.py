"""The benchmark of what a POST costs, with little to do."""

import re

import pytest

from bench.posts import CLIENTS, LOADS, main


def test_each_client_posts(capsys: pytest.CaptureFixture[str]) -> None:
    """A row for the load, a figure for each client, the bare one's being the measure."""
    (load,) = [load for load in LOADS if load.first]
    assert main(["--rounds", "1", "--only", load.name]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert " | ".join(rows[0][1:]) == " | ".join(CLIENTS) + " |"
    (row,) = rows[1:]
    assert row[0] == f"| {load.name}" and row[1].endswith("; 1.0")
    assert all(re.match(r"\d+ \(\d+-\d+\); \d+\.\d", figure) for figure in row[1:])
