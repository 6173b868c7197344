"""The course of :mod:`bench.million` with a few names; what it takes is not asserted."""

import contextlib
import sqlite3
from pathlib import Path

import msgspec
import pytest

from bench import million

NAMES = 300


def test_every_figure_is_there_and_the_two_seeds_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All steps run, the fresh seed gets every record, and a small run is held to no target but these."""
    file = tmp_path / "rows.json"
    arguments = ["--names", str(NAMES), "--seconds", "0.1", "--state", str(tmp_path / "kept"), "--json", str(file)]
    assert million.main(arguments) == 0
    rows = {row.what: row for row in msgspec.json.decode(file.read_bytes(), type=list[million.Measured])}
    assert [row.value for row in rows.values() if row.target == 0] == [0, 0, 0, 0]
    assert {row.target for row in rows.values()} == {0, None}
    assert len(rows) == len(capsys.readouterr().out.splitlines()) - 4  # a headline, a blank one, the table's head
    assert all(row.value >= 0 for row in rows.values())
    assert rows["memory of the new seed, each name"].value > 0
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [million.OLD]


def test_a_state_is_taken_again_when_it_fits(tmp_path: Path) -> None:
    """With as many names as are asked for, and not with others, nor when another version wrote it."""
    path = tmp_path / million.OLD / "seed.db"
    assert not million.is_fresh(path, 2)
    million.write(path, 2)
    assert million.is_fresh(path, 2)
    assert not million.is_fresh(path, 3)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=0x7fff")
    assert not million.is_fresh(path, 2)


def test_a_missed_target_is_shown() -> None:
    """Beside its value; what the machine allows comes last."""
    rows = [
        million.Measured("a loop", 1.5, "s", limit=True),
        million.Measured("a fresh seed joins", 181.0, "s", 180.0),
        million.Measured("names", 0, target=0),
    ]
    assert million.table(rows).splitlines()[2:] == [
        "| a fresh seed joins | 181 s | 180 MISSED |",
        "| names | 0 | 0 |",
        "| *limit:* a loop | 1.5 s |  |",
    ]
