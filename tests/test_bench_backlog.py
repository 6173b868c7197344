"""The course of :mod:`bench.backlog` in little; what it takes is not asserted."""

from pathlib import Path

import msgspec
import pytest

from bench import backlog
from bench.backlog import text_of
from bench.million import Measured, table


def test_every_figure_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few hundred messages wait and arrive, everything is measured, printed and written, and nothing is left."""
    file, directory = tmp_path / "rows.json", tmp_path / "nodes"
    directory.mkdir()
    arguments = ["--messages", "300", "--sends", "2", "--state", str(directory), "--json", str(file)]
    assert backlog.main(arguments) == 0
    rows = msgspec.json.decode(file.read_bytes(), type=list[Measured])
    assert table(rows) in capsys.readouterr().out
    values = {row.what: row.value for row in rows}
    assert len(values) == len(rows)
    assert values["before, to Emil by Anna: messages"] >= 2
    assert min(values["before, to Emil by Anna: p99"], values["messages delivered a second"]) > 0
    start = "from Dora's start until"
    assert min(values[f"{start} it listens"], values[f"{start} it is registered"]) > 0
    assert 0 < values[f"{start} the first is delivered"] <= values[f"{start} the last is delivered"]
    assert min(values[f"memory of {name} while they are delivered, at most"] for name in ("Anna", "Dora")) > 1
    assert [row.what for row in rows if row.target == 0] == ["refused", "lost", "doubled", "out of order", "not sent"]
    assert list(directory.iterdir()) == []


def test_what_is_wrong_is_seen() -> None:
    """A message that is lost, doubled, too late, or that nobody sent."""
    texts = [text_of(number) for number in range(4)]
    assert backlog.verdict(texts, 4) == (0, 0, 0, 0)
    assert backlog.verdict([*texts[:2], texts[3]], 4) == (1, 0, 0, 0)
    assert backlog.verdict([*texts, texts[1]], 4) == (0, 1, 0, 0)
    assert backlog.verdict([texts[0], texts[2], texts[1], texts[3]], 4) == (0, 0, 1, 0)
    assert backlog.verdict([*texts, "?"], 4) == (0, 0, 0, 1)


def test_percentiles() -> None:
    """The value that so many percent do not exceed."""
    assert backlog.percentile([3.0, 1.0, 2.0, 4.0], 50) == 2.0
    assert backlog.percentile([float(number) for number in range(1, 201)], 99) == 198.0
    assert backlog.percentile([7.0], 99) == 7.0
