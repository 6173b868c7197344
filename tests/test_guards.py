"""The threat model is what is tested: docs/security.md, the guards in bench/guards.toml, and their tests."""

import re
import subprocess
from pathlib import Path

import pytest

from bench import guards
from bench.guards import Guard, exists

ROOT = Path(__file__).parents[1]
ALL = guards.guards()
HEADINGS = {
    "page": "### A web page in the owner's browser",
    "stranger": "### A stranger who reaches a port",
    "account": "### Another account on the machine",
    "user": "### Another user of the mesh",
    "seed": "### A seed",
    "lan": "### Whoever announces seeds on the local network",
    "network": "### Whoever is on the network between",
}


def rows(heading: str) -> list[tuple[str, str]]:
    """What cannot be done, and the test, as the document has them."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    part = re.split(r"\n##+ ", text.partition(f"\n{heading}\n")[2], maxsplit=1)[0]
    found = re.findall(r"^\| (.+?) \| `(.+?)` \|$", part, re.MULTILINE)
    return [(cannot, f"tests/{test}") for cannot, test in found]


@pytest.mark.parametrize("who", HEADINGS)
def test_every_line_of_the_threat_model_has_its_guard(who: str) -> None:
    assert rows(HEADINGS[who]) == [(one.mutant.name, one.test) for one in ALL if one.who == who]


def test_nobody_is_left_out() -> None:
    assert {one.who for one in ALL} == HEADINGS.keys()


@pytest.mark.parametrize("one", ALL, ids=lambda one: f"{one.who} {one.mutant.name}")
def test_a_guard_can_be_taken_away_and_has_its_test(one: Guard) -> None:
    """`make guards` does it, and looks whether the test fails."""
    assert one.mutant.fits
    assert exists(one.test)


def test_what_the_bench_finds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A test that fails without the guard, one that passes all the same, and one that is not there."""
    codes = iter([1, 0, 4])
    made: list[list[str]] = []

    def run(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        made.append(command)
        return subprocess.CompletedProcess(command, next(codes), "the last line\n")

    monkeypatch.setattr(guards, "guards", lambda: ALL[:3])
    monkeypatch.setattr("subprocess.run", run)
    assert guards.main(["--jobs", "1"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[1] for row in said[2:5]] == [
        "fails |",
        "PASSES all the same (the last line) |",
        "CANNOT BE RUN (the last line) |",
    ]
    assert [command[-1] for command in made] == [one.test for one in ALL[:3]]


def test_the_code_is_broken_in_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only there."""
    one = ALL[0]
    file = ROOT / "meshproto" / one.mutant.file
    before = file.read_text(encoding="utf-8")

    def run(command: list[str], *, cwd: str, **_: object) -> "subprocess.CompletedProcess[str]":
        broken = (Path(cwd) / "meshproto" / one.mutant.file).read_text(encoding="utf-8")
        assert one.mutant.was not in broken
        assert broken != before
        return subprocess.CompletedProcess(command, 1, "")

    monkeypatch.setattr("subprocess.run", run)
    assert guards.judged(one) is None
    assert file.read_text(encoding="utf-8") == before
