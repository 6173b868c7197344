"""What systemd does with a unit, for one process: reads its file, opens its sockets, starts its command line with its
environment, and listens to what it says."""

import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Self

UNITS = Path(__file__).resolve().parents[1] / "deploy" / "systemd"
PROGRAMS = "/opt/meshproto/bin"
TIMEOUT_S = 30.0
SIGNS_S = {"min": 60.0, "": 1.0}

_LAUNCH = """
import fcntl, os, sys
count = int(sys.argv[1])
given = [fcntl.fcntl(int(number), fcntl.F_DUPFD_CLOEXEC, 100) for number in sys.argv[2:2 + count]]
for place, number in enumerate(given):
    os.dup2(number, 3 + place)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2 + count], sys.argv[2 + count:])
"""


class Unit:
    """A unit file: every value of each key."""

    def __init__(self, name: str, instance: str = "") -> None:
        self.file = UNITS / name
        self.values: dict[str, list[str]] = defaultdict(list)
        for line in self.file.read_text(encoding="utf-8").splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                self.values[key].append(value.replace("%i", instance))

    def one(self, key: str) -> str:
        (value,) = self.values[key]
        return value

    def seconds(self, key: str) -> float:
        number, unit = re.fullmatch(r"(\d+)(min|)", self.one(key)).groups()  # type: ignore[union-attr]
        return int(number) * SIGNS_S[unit]


class Manager:
    """`root`: what stands for the machine's own root. `abstract`: the notify socket has a name without a file."""

    def __init__(self, root: Path, service: Unit, sockets: tuple[Unit, ...] = (), *, abstract: bool = False) -> None:
        self.root = root
        self._service = service
        self.sockets = {unit.one("FileDescriptorName"): self._listen(unit) for unit in sockets}
        name = f"@{root}/notify" if abstract else str(root / "notify")
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(f"\0{name[1:]}" if abstract else name)
        self._notify.settimeout(TIMEOUT_S)
        self._notify_name = name
        self.heard: list[dict[str, str]] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.log = root / "journal"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _e: BaseException | None, _at: TracebackType | None) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for opened in (self._notify, *self.sockets.values()):
            opened.close()

    def here(self, text: str) -> str:
        """With this machine's programs, and paths below :attr:`root`."""
        text = text.replace(PROGRAMS, str(Path(sys.executable).parent))
        return re.sub(r"(?<![\w.])/(etc|var|run)/", f"{self.root}/\\1/", text)

    def _listen(self, unit: Unit) -> socket.socket:
        where = self.here(unit.one("ListenStream"))
        if where.startswith("/"):
            Path(where).parent.mkdir(parents=True, exist_ok=True)
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(where)
            Path(where).chmod(int(unit.values.get("SocketMode", ["0666"])[0], 8))
        else:
            listening = socket.socket(socket.AF_INET)
            listening.bind(("127.0.0.1", 0))  # of the tests nobody else may notice
        listening.listen(int(unit.one("Backlog")))
        return listening

    def start(self, **more: str) -> None:
        """As the unit says it is started; `more`: what else is in the environment."""
        for directory in self._service.values["StateDirectory"]:
            state = self.root / "var" / "lib" / directory
            state.mkdir(parents=True, exist_ok=True)
            state.chmod(int(self._service.one("StateDirectoryMode"), 8))
        words = [word for line in self._service.values["Environment"] for word in shlex.split(self.here(line))]
        environment = {
            "PATH": os.environ["PATH"],
            "NOTIFY_SOCKET": self._notify_name,
            **dict(w.split("=", 1) for w in words),
        }
        environment["WATCHDOG_USEC"] = str(int(self._service.seconds("WatchdogSec") * 1e6))
        if self.sockets:
            environment |= {"LISTEN_FDS": str(len(self.sockets)), "LISTEN_FDNAMES": ":".join(self.sockets)}
        numbers = [opened.fileno() for opened in self.sockets.values()]
        command = shlex.split(self.here(self._service.one("ExecStart")))
        with self.log.open("ab") as journal:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, str(len(numbers)), *map(str, numbers), *command],
                cwd="/",
                env=environment | more,
                pass_fds=numbers,
                stdin=subprocess.DEVNULL,
                stdout=journal,
                stderr=subprocess.STDOUT,
                umask=int(self._service.one("UMask"), 8),
            )

    def until(self, fact: str, pattern: str = ".*") -> str:
        """Hear what it says until it is this; what was said of it."""
        while True:
            try:
                text = self._notify.recv(4096).decode()
            except TimeoutError:
                raise AssertionError(f"never {fact}={pattern}: {self.heard}\n{self.log.read_text()}") from None
            said = dict(line.split("=", 1) for line in text.splitlines())
            self.heard.append(said)
            if re.fullmatch(pattern, said.get(fact, "\n")):
                return said[fact]

    def reload(self) -> None:
        """As the unit says."""
        assert self.process is not None
        environment = {"PATH": os.environ["PATH"], "MAINPID": str(self.process.pid)}
        words = [
            word.replace("$MAINPID", environment["MAINPID"]) for word in shlex.split(self._service.one("ExecReload"))
        ]
        subprocess.run(words, check=True, timeout=TIMEOUT_S)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_S)

    def mode(self, path: str) -> int:
        return stat.S_IMODE((self.root / path.lstrip("/")).stat().st_mode)
