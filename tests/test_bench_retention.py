"""The course of :mod:`bench.retention` in little; what it takes is not asserted."""

from pathlib import Path

import msgspec
import pytest

from bench import retention
from bench.backlog import Sent
from bench.million import Measured, table
from bench.retention import DELETES, KEEPS, Progress, figures


def test_every_figure_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few thousand messages are deleted, everything is measured, printed and written, and nothing is left."""
    file, directory = tmp_path / "rows.json", tmp_path / "nodes"
    directory.mkdir()
    arguments = ["--messages", "4000", "--kept", "10", "--seconds", "0.1"]
    assert retention.main([*arguments, "--state", str(directory), "--json", str(file)]) == 0
    rows = msgspec.json.decode(file.read_bytes(), type=list[Measured])
    assert table(rows) in capsys.readouterr().out
    values = {row.what: row.value for row in rows}
    assert len(values) == len(rows)
    assert [row.what for row in rows if row.target == 0] == ["messages that should be gone and are not"]
    assert min(values[f"before, to Emil by {name}: longest"] for name in (DELETES, KEEPS)) > 0
    assert values["messages deleted a second"] > 0
    assert 0 < values["the database once it has shrunk"] < values["the database before it deletes"]
    assert list(directory.iterdir()) == []


def test_each_message_counts_in_its_phase(tmp_path: Path) -> None:
    """What was sent before, while messages were deleted, while the file shrank, and afterwards."""
    progress = Progress(tmp_path / "none", 0)
    progress.began, progress.deleted, progress.over = 10.0, 20.0, 30.0
    sent = [Sent(DELETES, at_s, at_s) for at_s in (9.9, 10.0, 19.9, 20.0, 31.0)] + [Sent(KEEPS, 15.0, 1.0)]
    rows = {row.what: row for row in figures(sent, progress)}
    whole = [rows[f"{phase}, to Emil by Anna: messages"].value for phase in retention.PHASES]
    assert whole == [1, 2, 1, 1]
    assert rows["while it deletes, to Emil by Anna: longest"].value == 19.9
    assert rows["while it deletes, to Emil by Bert: p50"].limit
    assert "before, to Emil by Bert: p50" not in rows
