"""The course of :mod:`bench.store` in little; what it takes is not asserted."""

import subprocess
import sys
from pathlib import Path

import msgspec

from bench import store

ROOT = Path(__file__).parent.parent


def test_every_figure_is_there(tmp_path: Path) -> None:
    """One short round measures everything, prints a row for each number of senders, writes the same as JSON, and leaves
    nothing behind."""
    file, directory = tmp_path / "rows.json", tmp_path / "disk"
    directory.mkdir()
    arguments = ["--rounds", "1", "--seconds", "0.02", "--directory", str(directory), "--json", str(file)]
    command = [sys.executable, "-m", "bench.store", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    rows = msgspec.json.decode(file.read_bytes(), type=list[store.Row])
    assert [row.in_flight for row in rows] == list(store.IN_FLIGHT)
    assert store.table(rows) in ended.stdout
    for row in rows:
        assert row.commit_bytes > store.MESSAGE_BYTES
        assert min(row.bare_per_s.least, row.commits_per_s.least, row.ratio.least, row.p50_ms.least) > 0
        assert row.messages_per_s.least >= row.commits_per_s.least
    assert list(directory.iterdir()) == []
