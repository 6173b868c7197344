"""What a bulk run remembers: which lines are left, and the file that says so."""

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshproto.cli import ledger as ledger_module
from meshproto.cli.ledger import AGAIN_PIECES_MAX, BulkFile, BulkRefused, Ledger, progressed

LINES = 30
Outcomes = dict[int, bool]  # whether the line has to be sent again


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.integers(1, LINES), st.booleans()), max_size=5))
def test_what_is_left_is_exactly_what_was_not_settled(runs: list[Outcomes]) -> None:
    """Run after run, each answered up to a point only, the lines wanted are those that no run has settled."""
    left = set(range(1, LINES + 1))
    ledger = Ledger()
    for outcomes in runs:
        wanted = [number for number in range(1, LINES + 1) if ledger.wants(number)]
        assert set(wanted) == left
        for number in wanted[: len(outcomes)]:
            again = outcomes.get(number, False)
            ledger.answered(number, again=again)
            left -= set() if again else {number}
        ledger = Ledger(ledger.done, ledger.again)
    assert {number for number in range(1, LINES + 1) if ledger.wants(number)} == left


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), max_size=LINES), max_size=4))
def test_too_many_pieces_lose_no_line(runs: list[list[bool]]) -> None:
    """Past the bound more is wanted than is left, but never less, and the bound holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_module, "AGAIN_PIECES_MAX", 2)
        left = set(range(1, LINES + 1))
        ledger = Ledger()
        for outcomes in runs:
            wanted = [number for number in range(1, LINES + 1) if ledger.wants(number)]
            assert left <= set(wanted)
            for number, again in zip(wanted, outcomes, strict=False):
                ledger.answered(number, again=again)
                left -= set() if again else {number}
                assert len(ledger.again) <= 2
            ledger = Ledger(ledger.done, ledger.again)
        assert left <= {number for number in range(1, LINES + 1) if ledger.wants(number)}


def test_the_bound_of_pieces_is_reached() -> None:
    """Every second line again: `done` stands still where the pieces are full."""
    ledger = Ledger()
    for number in range(1, 3 * AGAIN_PIECES_MAX):
        ledger.answered(number, again=number % 2 == 1)
    assert (len(ledger.again), ledger.done) == (AGAIN_PIECES_MAX, 2 * AGAIN_PIECES_MAX)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of three lines, the last without its newline."""
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"1\n2\n3")
    return path


def test_a_run_goes_on(path: Path) -> None:
    """The next opening finds the same run, as far as it was written down; nobody else can read it."""
    file = BulkFile(path)
    run, new = file.begin("node", "UserX")
    assert (new, file.lines, run.done) == (True, 3, 0)
    assert stat.S_IMODE(file.state_path.stat().st_mode) == 0o600
    file.save(progressed(run, Ledger(3, [(1, 2)])))
    file.close()
    file = BulkFile(path)
    again, new = file.begin("node", "UserX")
    assert (new, again.run, again.done, again.again) == (False, run.run, 3, ((1, 2),))
    file.finish()
    file.close()
    file = BulkFile(path)
    assert file.begin("node", "UserX")[0].run != run.run
    file.close()


def test_the_state_is_on_disk_before_the_run_begins(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is synced before it takes the state's name, and the name itself is synced too."""
    order: list[str] = []
    state = path.with_name("a.ndjson.sending")
    sync = os.fsync

    def fsync(fd: int) -> None:
        order.append(f"{'directory' if stat.S_ISDIR(os.fstat(fd).st_mode) else 'file'} {state.exists()}")
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    file = BulkFile(path)
    file.begin("node", None)
    file.close()
    assert order == ["file False", "directory True"]


@pytest.mark.parametrize(
    ("content", "node", "to", "says"),
    [
        (b"1\n2\n4", "node", None, "has changed since"),
        (b"1\n2\n3\n", "node", None, "has changed since"),
        (b"1\n2\n3", "other", None, "through another node, node:"),
        (b"1\n2\n3", "node", "UserX", "was sent without --to"),
    ],
)
def test_another_run_is_refused(path: Path, content: bytes, node: str, to: str | None, says: str) -> None:
    """Another content, node or recipient under the same ids would lose or double messages."""
    file = BulkFile(path)
    file.begin("node", None)
    file.close()
    path.write_bytes(content)
    file = BulkFile(path)
    with pytest.raises(BulkRefused, match=rf"{says}.* or delete .*a\.ndjson\.sending to begin anew"):
        file.begin(node, to)
    file.close()


GOOD = {"run": "r", "sha256": "s", "size": 1, "node": "n", "to": None, "done": 9, "again": [[1, 2], [4, 4]]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        json.dumps({**GOOD, "more": 1}),
        json.dumps({**GOOD, "run": ""}),
        json.dumps({**GOOD, "done": -1}),
        json.dumps({**GOOD, "done": 3}),
        json.dumps({**GOOD, "done": "9"}),
        json.dumps({**GOOD, "again": [[2, 1]]}),
        json.dumps({**GOOD, "again": [1]}),
    ],
)
def test_a_damaged_state_is_not_believed(path: Path, text: str) -> None:
    """What no run has written is an error, not a reason to send all of it anew."""
    path.with_name("a.ndjson.sending").write_text(text)
    with pytest.raises(BulkRefused, match="is damaged: delete it"):
        BulkFile(path)


def test_two_runs_at_once(path: Path) -> None:
    """The second is refused while the first has the file."""
    first = BulkFile(path)
    with pytest.raises(BulkRefused, match="being sent already"):
        BulkFile(path)
    first.close()
    BulkFile(path).close()


def test_what_is_not_a_file(tmp_path: Path) -> None:
    """A directory, a pipe and nothing at all each get a sentence, at once."""
    os.mkfifo(tmp_path / "pipe")
    for name, says in (("pipe", "is not a file"), (".", "is not a file"), ("none", "cannot be read: No such file")):
        with pytest.raises(BulkRefused, match=says):
            BulkFile(tmp_path / name)


def test_a_state_that_cannot_be_written(path: Path) -> None:
    """It is said before anything is sent."""
    path.with_name("a.ndjson.sending.new").mkdir()  # in the way; whoever runs the tests may write everywhere
    file = BulkFile(path)
    with pytest.raises(BulkRefused, match="cannot be written"):
        file.begin("node", None)
    file.close()
