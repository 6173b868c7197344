"""The demo's nodes: separate processes of this machine that end with the demo, whatever happens."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self, TypeVar

from meshproto.cli.render import harmless

# The `twistd` script, without having to find it: this works in every kind of installation.
TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")

START_TIMEOUT_S = 15.0  # a cold start on a busy machine takes a few seconds
STOP_TIMEOUT_S = 5.0  # what a node may take to end what is in flight
POLL_S = 0.02
ADDRESS_FILE = "address"  # in its state directory: written by the node when it listens
LOG_LINES = 12
LOG_BYTES_MAX = 8192

# The nodes' own options come from here when they are set; the demo must be the same on every machine.
_FOREIGN_SETTINGS = frozenset({"USER_NAME", "PORT"})
_FOREIGN_PREFIX = "MESH_"

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

T = TypeVar("T")


class Failed(Exception):
    """Something was not what it has to be; the text is the truth about it."""


@dataclass(frozen=True)
class Child:
    """One node: a process, the directory of its state, and the file of what it says."""

    name: str
    state: Path
    log: Path
    process: subprocess.Popen[bytes]

    def address(self) -> str | None:
        """Where it listens, once it does. Raises :class:`Failed` when it has ended before."""
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended with exit code {self.process.returncode} before it listened")
        file = self.state / ADDRESS_FILE
        return file.read_text(encoding="utf-8").strip() if file.exists() else None

    def last_words(self) -> str:
        """The end of its log."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - LOG_BYTES_MAX))
            lines = harmless(file.read().decode("utf-8", "replace")).splitlines()
        return "\n".join(lines[-LOG_LINES:])


class Children:
    """The nodes, as a context manager: leaving it ends them all, also by Ctrl-C and SIGTERM.

    Both arrive as KeyboardInterrupt, but never between the birth of a process and our having written it down.
    """

    def __init__(self, directory: Path, command: tuple[str, ...] = TWISTD) -> None:
        self.all: dict[str, Child] = {}
        self._directory = directory
        self._command = command
        self._handlers: dict[int, signal.Handlers | Callable[[int, FrameType | None], object] | int | None] = {}
        self._starting = self._interrupted = False

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
                self._handlers[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)
        self._end([child.process for child in self.all.values()])
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def start(self, service: str, name: str, *options: str, port: int = 0) -> str:
        """Start a node, wait until it listens, and return its address. The same name finds the same state again."""
        return until(self.launch(service, name, *options, port=port).address, f"{name} listens")

    def launch(self, service: str, name: str, *options: str, port: int = 0) -> Child:
        """Start a node without waiting for it."""
        state, log = self._directory / name, self._directory / f"{name}.log"
        state.mkdir(mode=0o700, exist_ok=True)
        (state / ADDRESS_FILE).unlink(missing_ok=True)
        arguments = ("-n", "--pidfile=", service, "--name", name, "--port", str(port), "--state", str(state), *options)
        return self._spawn(name, state, log, arguments)

    def stop(self, name: str) -> None:
        """End a node as an operator would, with SIGTERM."""
        self._end([self.all[name].process])

    def _spawn(self, name: str, state: Path, log: Path, arguments: tuple[str, ...]) -> Child:
        self._starting = True
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 -- our own interpreter with our own arguments
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env=_environment(),
                process_group=0,  # Ctrl-C is for the demo, which then ends the nodes in its own way
            )
        child = self.all[name] = Child(name, state, log, process)
        self._starting = False
        if self._interrupted:
            raise KeyboardInterrupt
        return child

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupted = True
        if not self._starting:
            raise KeyboardInterrupt

    @staticmethod
    def _end(processes: list[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()  # does nothing to one that has ended
            process.wait()


def until(probe: Callable[[], T | None], what: str, timeout_s: float = START_TIMEOUT_S) -> T:
    """Ask again and again until the probe gives something; `what` is the sentence that did not come true."""
    deadline = time.monotonic() + timeout_s
    while (value := probe()) is None:
        if time.monotonic() > deadline:
            raise Failed(f"after {timeout_s:g} s it is still not so that {what}")
        time.sleep(POLL_S)
    return value


def _environment() -> dict[str, str]:
    """Ours, without settings for other nodes, and such that this very copy of meshproto is found from anywhere."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _FOREIGN_SETTINGS and not name.startswith(_FOREIGN_PREFIX)
    }
    root = str(Path(__file__).resolve().parents[2])
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, (root, kept.get("PYTHONPATH"))))
    return kept
