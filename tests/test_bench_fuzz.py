"""A sample of :mod:`bench.fuzz`; `make fuzz` throws millions."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench import fuzz
from bench.fuzz_input import Bodies, Lines, users
from meshproto import wire
from meshproto.cli.processes import Failed
from meshproto.core.envelope import open_batch
from meshproto.core.identity import verify
from meshproto.errors import MeshError

ROOT = Path(__file__).parents[1]
LINES = 6000
BODIES = 800
GUIDED = 3000
"""Together about eight seconds, half of it the start of processes."""


def test_a_seed_and_a_node_withstand_what_nobody_should_send(capsys: pytest.CaptureFixture[str]) -> None:
    """Every line and every body is answered as the protocol says or the connection is ended with a reason, no error of
    ours is in a log, and both nodes do their work afterwards."""
    assert fuzz.main(["--lines", str(LINES), "--bodies", str(BODIES)]) == 0
    rows = {row.split("|")[1].strip(): row for row in capsys.readouterr().out.splitlines() if row.startswith("| ")}
    assert rows["lines"].split("|")[2].strip() == f"{LINES:,}"
    assert {"answered ok", "answered -32700", "answered 400", "answered 413", "answered 200"} <= rows.keys()


def test_what_is_thrown_reaches_every_part() -> None:
    """Each method, right and wrong, and what is no line; batches that open and those that do not."""
    rng = random.Random(1)
    people = users(rng)
    seen: Counter[str] = Counter()
    lines = Lines(rng, people)
    for _ in range(4000):
        try:
            seen[type(wire.decode_request(lines.next())).__name__] += 1
        except wire.LineError as wrong:
            seen[str(wrong.error.code)] += 1
    assert {kind.__name__ for kind in wire.Request.__subclasses__()} <= seen.keys()
    assert {"400", "-32700", "-32600", "-32601"} <= seen.keys()
    recipient = people[0].identity
    bodies = Bodies(rng, people, verify(recipient.sign("Fuzz0", ["http://127.0.0.1:9"], 1)))
    for _ in range(400):
        try:
            open_batch(bodies.next(), recipient)
            seen["opened"] += 1
        except MeshError as error:
            seen[type(error).__name__] += 1
    assert min(seen[name] for name in ("opened", "BadParams", "Forbidden")) > 3


@pytest.mark.parametrize("target", ["lines", "deliver", "http"])
def test_a_fuzzer_that_watches_the_code_finds_nothing(target: str, tmp_path: Path) -> None:
    """A short sample of `make fuzz-guided`."""
    pytest.importorskip("atheris", reason="atheris comes ready-made for Linux on x86_64 only")
    command = [sys.executable, "-m", "bench.fuzz_guided", target, f"-runs={GUIDED}", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {GUIDED} runs" in done.stderr


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b'{"jsonrpc":"2.0","id":1}', b'{"jsonrpc":"2.0","error":{}}'])
def test_an_answer_that_is_none_is_seen(line: bytes) -> None:
    with pytest.raises(Failed):
        fuzz._judged(line)


def test_an_error_of_ours_is_seen_in_a_log() -> None:
    for line in (b"Traceback (most recent call last):", b"[-] Unhandled error in Deferred:", b"#critical] a bug in"):
        assert fuzz.WRONG_IN_A_LOG.search(line)
    assert not fuzz.WRONG_IN_A_LOG.search(b"[meshproto.net.seeding#warn] dropped what seed fuzz1 says")


def test_growth_is_counted_from_when_it_was_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([50_000_000, 60_000_000, 66_000_001, 66_000_001])
    monkeypatch.setattr(fuzz, "memory_bytes", lambda pid: (next(sizes), 0))
    memory = fuzz.Memory(1, 1_000_000)
    memory.look(10)
    memory.look(100_000 - 1)
    memory._report_at = 2_000_000
    memory.look(100_000)
    growth = list(memory.rows("seedX"))[-1]
    assert growth.missed
    assert growth.value == pytest.approx(0.1, abs=1e-6)


def test_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fuzz.main(["--lines", "10", "--bodies", "2"])
    assert list(tmp_path.iterdir()) == []
