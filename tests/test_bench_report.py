"""What was measured comes into the document as it is, and all programs are run."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from bench import figures, million, report, suite
from bench.figures import Figure, Machine, Result, Row
from bench.peers import told

MACHINE = Machine("a processor", 2, "3.11.7", 0.25)
ROWS = [
    Row("1 connection", "a lookup", {"per_s": Figure(2e4, 1e4, 3e4), "errors": Figure(0, 0, 0)}),
    Row("1 connection", "echo", {"per_s": Figure(5e4, 5e4, 5e4), "p50_us": Figure(1.5, 1, 2)}, limit=True),
]


def test_rounds_alternate() -> None:
    """Everybody in turn, every other round the other way round; each has its samples in the order of the rounds."""
    turns: list[str] = []

    def entrant(name: str) -> figures.Sample:
        turns.append(name)
        return {"per_s": len(turns)}

    samples = figures.alternate(3, {name: lambda name=name: entrant(name) for name in "abc"})  # type: ignore[misc]
    assert "".join(turns) == "abccbaabc"
    assert [sample["per_s"] for sample in samples["a"]] == [1, 6, 7]


def test_ratios_are_those_of_a_round() -> None:
    """The median of the rounds' ratios, not the ratio of the medians; whoever is not there is not compared with."""
    samples: dict[str, list[figures.Sample]]
    samples = {"ours": [{"per_s": 10.0}, {"per_s": 90.0}], "limit": [{"per_s": 20.0}, {"per_s": 100.0}]}
    figures.compare(samples, "ours", "limit", "per_s", "to_redis")
    figures.compare(samples, "ours", "nobody", "per_s", "to_echo")
    ours, limit = figures.rows("a case", samples, {"limit"})
    assert ours.figures["to_redis"] == Figure(0.7, 0.5, 0.9)
    assert "to_echo" not in ours.figures
    assert (ours.limit, limit.limit) == (False, True)


def test_a_table() -> None:
    """Columns that have something in them, the spread of what is measured first of all, and errors where there are."""
    assert figures.table(ROWS) == [
        "| | | a second | p50, µs |",
        "|---|---|---|---|",
        "| 1 connection | a lookup | 20,000 (10,000 to 30,000) |  |",
        "|  | *limit:* echo | 50,000 | 1.5 (1 to 2) |",
    ]
    wrong = msgspec.structs.replace(ROWS[0], figures={"per_s": Figure(1, 1, 1), "errors": Figure(0, 0, 7)})
    assert figures.table([wrong])[-1] == "| 1 connection | a lookup | 1 | 0 (0 to 7) |"


def test_errors_end_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run in which anything was answered otherwise is no success; its figures are written all the same."""
    options = figures.parse(figures.parser("bench.x", "", 1.0), ["--quick", "--json", str(tmp_path / "x.json")])
    assert (options.rounds, options.seconds) == (figures.ROUNDS_QUICK, figures.SECONDS_QUICK)
    assert figures.tell("x", MACHINE, options, ROWS) == 0
    assert figures.tell("x", MACHINE, options, [Row("", "", {"errors": Figure(0, 0, 1)})], ["A note."]) == 1
    result = msgspec.json.decode((tmp_path / "x.json").read_bytes(), type=Result)
    assert capsys.readouterr().out.endswith(figures.text(result) + "\n")
    assert result.notes == ["A note."]


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Path]:
    """Figures of two programs."""
    results = tmp_path / "results"
    results.mkdir()
    lookups = Result("lookups", "2026-11-28", MACHINE, 5, ROWS)
    (results / "lookups.json").write_bytes(msgspec.json.encode(lookups))
    (results / "million.json").write_bytes(msgspec.json.encode([million.Measured("a join", 60, "s", 180)]))
    runs = {"million": suite.Run("2026-11-27", MACHINE, 1.0)}
    (results / report.RUNS).write_bytes(msgspec.json.encode(runs))
    yield results


def test_figures_come_into_the_document(results: Path, tmp_path: Path) -> None:
    """What stands between the marks is written anew, what has not been measured stays, and so does all else."""
    document = tmp_path / "benchmarks.md"
    marks = "<!-- bench: {} -->\nold\n<!-- end -->\n"
    document.write_text("# Head\n" + "".join(map(marks.format, ("lookups", "million", "sends"))) + "tail\n")
    assert report.main(["--results", str(results), "--document", str(document)]) == 0
    text = document.read_text()
    assert text.startswith(
        "# Head\n<!-- bench: lookups -->\nOn 2026-11-28, 2 cores (a processor), Python 3.11.7, load average 0.25 before"
    )
    assert text.endswith(marks.format("sends") + "tail\n")
    assert "On 2026-11-27, 2 cores (a processor), Python 3.11.7, load average 0.25 before.\n\n| what |" in text
    assert "| a join | 60 s | 180 |" in text
    assert "(lookups.svg)\n<!-- end -->" in text
    assert (tmp_path / "lookups.svg").read_text().startswith("<?xml")
    report.main(["--results", str(results), "--document", str(document)])
    assert document.read_text() == text


def test_every_program_has_its_place_in_the_document() -> None:
    """And nothing else has."""
    marks = re.findall(report.MARKED, report.DOCUMENT.read_text(encoding="utf-8"))
    assert sorted(name for _, name, _ in marks) == sorted([*suite.PROGRAMS, *suite.ALONE, told.PROGRAM])


def test_all_are_run_and_the_first_that_fails_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with what it is given and a file of its own; what went wrong is in the exit code."""
    ran: list[tuple[str, bool]] = []

    def run(name: str, directory: Path, quick: bool) -> bool:
        ran.append((name, quick))
        (directory / f"{name}.json").touch()
        return name != "sends"

    monkeypatch.setattr(suite, "_run", run)
    assert suite.main(["--quick", "--results", str(tmp_path)]) == 1
    assert ran == [(name, True) for name in suite.PROGRAMS]
    assert suite.main(["--only", "lookups", "--results", str(tmp_path)]) == 0
    told = msgspec.json.decode((tmp_path / report.RUNS).read_bytes(), type=dict[str, suite.Run])
    assert list(told) == list(suite.PROGRAMS)
    with pytest.raises(SystemExit):
        suite.main(["--only", "nothing"])


def test_a_program_is_called_as_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the options of a quick run, or of a whole one."""
    called: list[list[str]] = []

    class Ended:
        returncode = 0

    def run(command: list[str], **_: object) -> Ended:
        called.append(command)
        return Ended()

    monkeypatch.setattr(subprocess, "run", run)
    assert suite._run("store", tmp_path, True)
    expected = ["-m", "bench.store", "--rounds", "1", "--seconds", "0.05", "--json", str(tmp_path / "store.json")]
    assert called == [[sys.executable, *expected]]
