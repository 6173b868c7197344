"""The course of the programs that `make bench` runs, in little; what they find is not asserted."""

import importlib
from pathlib import Path

import msgspec
import pytest

from bench import compiled
from bench.figures import Result, Row

try:
    compiled.compiler()
except compiled.NoCompiler as reason:
    pytestmark = pytest.mark.skip(reason=str(reason))

OWN_KEYS = {
    "lookups": {"per_s", "p50_us", "p99_us", "server_us", "load_us", "errors"},
    "sends": {"per_s", "p50_us", "p99_us", "sender_us", "recipient_us", "seed_us", "load_us", "to_commit", "errors"},
    "bulk": {"per_s", "sender_us", "recipient_us", "seed_us", "load_us", "sender_mb", "recipient_mb", "errors"},
    "registrations": {"per_s", "p50_us", "p99_us", "server_us", "load_us", "to_commit", "errors"},
    "posts": {"sender_us", "to_bare"},
    "footprint": {"bytes"},
    "growth": {"per_s", "p50_us", "p99_us", "cost_us"},
}
"""What every row of ours has, but for those that say so below."""


def of_ours(rows: list[Row]) -> list[Row]:
    return [row for row in rows if not row.limit and "queued" not in row.what]


@pytest.mark.parametrize("program", OWN_KEYS)
def test_every_figure_is_there(program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One short round of everything; nothing was answered otherwise than was wanted."""
    module = importlib.import_module(f"bench.{program}")
    file = tmp_path / "figures.json"
    assert module.main(["--quick", "--json", str(file)]) == 0
    result = msgspec.json.decode(file.read_bytes(), type=Result)
    assert result.program == program
    assert capsys.readouterr().out.count("\n") >= len(result.rows) + 4
    assert of_ours(result.rows)
    for row in of_ours(result.rows):
        assert OWN_KEYS[program] <= row.figures.keys(), row
    for row in result.rows:
        assert row.figures
        assert all(figure.least <= figure.median <= figure.most for figure in row.figures.values()), row
