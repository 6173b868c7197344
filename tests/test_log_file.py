"""The log file: moved away by a tool, opened anew, bounded by itself, with real processes and the real logrotate."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from meshproto.cli.processes import until
from meshproto.net import log_file
from meshproto.net.log_file import open_log

CONFIGURATION = Path(__file__).parent.parent / "deploy" / "logrotate" / "meshproto"
TWISTD = str(Path(sys.executable).parent / "twistd")
TIMEOUT_S = 30.0


def start(directory: Path, *options: str) -> subprocess.Popen[bytes]:
    arguments = ["meshseed", "--name", "seedX", "--port", "0", "--state", str(directory / "state")]
    process = subprocess.Popen([TWISTD, *options, *arguments], cwd=directory, stdout=subprocess.DEVNULL)
    until(lambda: (directory / "state" / "address").exists() or None, "it listens", TIMEOUT_S)
    return process


def says(log: Path, words: str) -> None:
    until(lambda: (log.exists() and words in log.read_text()) or None, f"{log.name} says {words}", TIMEOUT_S)


@pytest.mark.skipif(shutil.which("logrotate") is None, reason="no logrotate on this machine")
def test_logrotate(tmp_path: Path) -> None:
    """What deploy/logrotate does: the log goes elsewhere, and the node writes on where it was, time after time; nothing
    is lost in between."""
    for directory in ("log", "run"):
        (tmp_path / directory).mkdir(mode=0o755)
    log, pid = tmp_path / "log" / "seedX.log", tmp_path / "run" / "seedX.pid"
    process = start(tmp_path, "-n", f"--logfile={log}", f"--pidfile={pid}")
    try:
        text = CONFIGURATION.read_text()
        for kind in ("log", "run"):
            text = text.replace(f"/var/{kind}/meshproto/", f"{tmp_path}/{kind}/").replace(
                f"/{kind}/meshproto/", f"{tmp_path}/{kind}/"
            )
        rotate = tmp_path / "logrotate.conf"
        rotate.write_text(text)
        rotate.chmod(0o644)
        command = ["logrotate", "--force", "--state", str(tmp_path / "status"), str(rotate)]
        assert log.stat().st_mode & 0o777 == log_file.MODE
        for rotation in range(1, 4):
            subprocess.run(command, check=True, timeout=TIMEOUT_S)
            until(lambda: log.exists() or None, "it is opened anew", TIMEOUT_S)
            process.send_signal(signal.SIGHUP)
            says(log, "reloaded")
            assert log.read_text().count("reloaded") == 1
            assert len(list((tmp_path / "log").iterdir())) == rotation + 1
        assert "listens" in subprocess.check_output(["zcat", f"{log}.3.gz"], text=True)
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


def test_a_daemon(tmp_path: Path) -> None:
    """Without -n the log is twistd.log in the current directory, as twistd has it; SIGUSR1 opens it anew and renames
    nothing."""
    start(tmp_path, "--pidfile=mesh.pid").wait(TIMEOUT_S)
    pid, log = int((tmp_path / "mesh.pid").read_text()), tmp_path / "twistd.log"
    says(log, "seedX listens")
    log.rename(tmp_path / "moved")
    os.kill(pid, signal.SIGUSR1)
    until(lambda: log.exists() or None, "it is opened anew", TIMEOUT_S)
    os.kill(pid, signal.SIGUSR1)
    os.kill(pid, signal.SIGTERM)
    says(log, "Server Shut Down.")
    assert {path.name for path in tmp_path.iterdir()} >= {"moved", "twistd.log"}
    assert not list(tmp_path.glob("twistd.log.*"))


def test_where_it_cannot_be_opened(tmp_path: Path) -> None:
    """What is logged goes where it went, and that it is so is logged, too."""
    (tmp_path / "logs").mkdir()
    log = open_log(tmp_path / "logs" / "mesh.log")
    (tmp_path / "logs").rename(tmp_path / "moved")
    heard = Heard()
    globalLogPublisher.addObserver(heard)
    log.reopen()
    globalLogPublisher.removeObserver(heard)
    log.write("still here\n")
    log.close()
    assert (tmp_path / "moved" / "mesh.log").read_text() == "still here\n"
    assert [event["log_format"] for event in heard.events] == ["{path} cannot be opened anew: {reason}"]


@implementer(ILogObserver)
class Heard:
    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        self.events.append(event)


def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody moves it away it is cut at ROTATE_BYTES, and ROTATED_FILES_MAX former ones stay."""
    monkeypatch.setattr(log_file, "ROTATE_BYTES", 100)
    log = open_log(tmp_path / "mesh.log")
    for _ in range(100):
        log.write("x" * 49 + "\n")
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [
        "mesh.log",
        *(f"mesh.log.{n + 1}" for n in range(log_file.ROTATED_FILES_MAX)),
    ]
    assert all(file.stat().st_size <= 100 for file in files)
