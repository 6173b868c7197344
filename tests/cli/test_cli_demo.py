"""The demo, with fake nodes as separate processes: its steps, its failures, and that it leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meshproto.cli import processes
from meshproto.cli.demo import demonstrate
from meshproto.cli.exits import Exit
from meshproto.cli.processes import Children, Failed, until
from meshproto.cli.render import Screen

FAKE = (sys.executable, str(Path(__file__).with_name("fake_twistd.py")))
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the demo leaves behind would be seen in tmp_path."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def is_running(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_five_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All five happen, in order, and nothing is left of them."""
    assert demonstrate(Screen(False), once=True, command=FAKE) == Exit.DONE
    shown = capsys.readouterr().out
    assert re.findall(r"^(\d)\.", shown, re.M) == ["1", "2", "3", "4", "5"]
    for fact in ("send: 200 delivered", "Bobby: 'Hello UserX'", "404 User Not Found", "202 queued"):
        assert fact in shown
    assert re.search(r"'Are you there, UserX\?' arrived \d+\.\d\d s after the return", shown)
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_fails_shows_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was answered is shown, not what should have been."""
    monkeypatch.setenv("FAKE_FAULT", "never delivers")
    assert demonstrate(Screen(False), once=True, command=FAKE) == Exit.FAILED
    assert re.search(r"failed: POST http://127.0.0.1:\d+/send: 202 queued", capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_dies_shows_its_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its last lines, made harmless."""
    monkeypatch.setenv("FAKE_FAULT", "dies")
    assert demonstrate(Screen(False), once=True, command=FAKE) == Exit.FAILED
    shown = capsys.readouterr().out
    assert "failed: seedX ended with exit code 1 before it listened" in shown
    assert r"the fake cannot listen\x1b" in shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_the_demo_and_its_nodes(number: signal.Signals, tmp_path: Path) -> None:
    """The demo stays until it is told to end; then its nodes and its directory are gone. (The signals mean what they
    usually do: whoever runs the tests in the background of a shell has some ignored.)"""
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); signal.signal(signal.SIGHUP, signal.SIG_DFL);"
        "import sys; from meshproto.cli.demo import demonstrate; from meshproto.cli.render import Screen;"
        "sys.exit(demonstrate(Screen(False), once=False, command=tuple(sys.argv[1:])))"
    )
    demo = subprocess.Popen(
        [sys.executable, "-u", "-c", program, *FAKE], stdout=subprocess.PIPE, text=True, cwd=ROOT, process_group=0
    )
    assert demo.stdout is not None
    with demo, demo.stdout:
        try:
            for line in demo.stdout:
                if "| nc -w 1" in line:
                    break
            nodes = _children(demo.pid)
            demo.send_signal(number)
            assert demo.stdout.read() == "\nEnding the nodes.\n"
            assert demo.wait() == Exit.DONE
        finally:
            demo.kill()
    assert len(nodes) == 4
    assert not any(map(is_running, nodes))
    assert list(tmp_path.iterdir()) == []


def _children(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=True)
    return [int(pid) for pid in listed.stdout.split()]


def test_a_node_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM first, SIGKILL when it is of no use."""
    monkeypatch.setenv("FAKE_FAULT", "ignores SIGTERM")
    monkeypatch.setattr(processes, "STOP_TIMEOUT_S", 0.05)
    with Children(tmp_path, FAKE) as children:
        children.start("meshseed", "seedX")
    assert children.all["seedX"].process.returncode == -signal.SIGKILL


def test_nodes_do_not_see_settings_for_other_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MESH_SEEDS in the shell of the reader must not draw the demo into another mesh."""
    monkeypatch.setenv("MESH_SEEDS", "elsewhere:5001")
    monkeypatch.setenv("PORT", "1")
    with Children(tmp_path, (sys.executable, "-c", "import os; print(*sorted(os.environ))")) as children:
        with pytest.raises(Failed):
            children.start("meshseed", "seedX")
        shown = children.all["seedX"].last_words().split()
    assert "PATH" in shown
    assert not {"PORT", "MESH_SEEDS"} & set(shown)


def test_handlers_are_put_back(tmp_path: Path) -> None:
    """Whoever calls the demo gets its signals back."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Children(tmp_path, FAKE):
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_waiting_ends() -> None:
    """What does not come true is said."""
    with pytest.raises(Failed, match="after 0 s it is still not so that pigs fly"):
        until(lambda: None, "pigs fly", timeout_s=0)
