"""Runs the commands that a document shows, with real processes, and compares what they print.

A ```console block holds commands (`$ ` in front of each) and below each what it prints. `...` in what is printed stands
for anything within a line, and for any number of lines where it stands alone. Standard error counts as printed.

- A command that begins with `twistd`, after assignments, runs on in the background; it is up when it has written its
  state directory's `address` file, a user when it is registered and every other user can be found from it. What stands
  below such a command must come up in its log.
- The documented ports are taken by whatever else runs on the machine: a node gets a free one, and every later command
  and expectation is read with that one in place of the documented one.
- A ```python block that begins with `# NAME.py` is a file, which the reader saves under that name. `python NAME.py`
  runs on in the background, and is ended with the nodes; what stands below it, it must print.
- `redis-server --port PORT` runs on too. Where it is not installed the document is not run.
- A command that only reads is repeated until it prints what is expected, or the time is over.
- What a reader does by other means, or elsewhere, is a directive: `<!-- test: stop NAME -->` (Ctrl-C),
  `<!-- test: kill NAME -->` (kill -9), `<!-- test: run COMMAND -->` (a node that was started in another document),
  `<!-- test: on MACHINE -->` (in :data:`ON_TWO_MACHINES`).
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from meshproto.cli.processes import Failed, until
from meshproto.net.state import ADDRESS_FILE, default_path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/howto").glob("*.md"))]
ON_TWO_MACHINES = ROOT / "docs/howto/local-network.md"
"""Its commands need networks of their own, which `tests/test_lan_mesh.py` makes."""

PORTS = ("5001", "5002", "3000", "5012", "5013", "5080", "6379")
SEED_PORT, USER_PORT = "5001", "3000"  # the defaults of the two plugins
SEED_HTTP_PORT = "5080"
DEADLINE_S = 60.0
COMMAND_S = 60.0

_FENCE = re.compile(r"^```(\S*)")
_DIRECTIVE = re.compile(r"^<!-- test: (\w+) (.+) -->$")
_TWISTD = re.compile(r"^(?:[A-Z_]+=\S* )*twistd (?!.* --check$)")
_PROGRAM = re.compile(r"^(?:[A-Z_]+=\S* )*python (\w+\.py)$")
_STORE = re.compile(r"^redis-server --port (\d+)\b")
_CHANGES = re.compile(r" -d | --data| (send|chat|export|import|backup) | -X ")
_SETUP = re.compile(r"^(make|\.|python3 -m venv|\S+/bin/pip) ")
"""What sets up the very thing under test; :func:`setup_commands` hands these out to be checked in another way."""

_OPTIONAL = frozenset({"curl", "nc"})
"""What a machine may lack: then the commands with it are left out."""


@dataclass(frozen=True)
class Step:
    """A command or a directive, and what is printed. `verb`: `show` for a command, else the directive's."""

    where: str
    verb: str
    text: str
    expected: tuple[str, ...] = ()


def fences(document: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Line number, language and lines of each fenced block."""
    language: str | None = None
    start, block = 0, list[str]()
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if fence and language is None:
            start, language, block = number, fence[1], []
        elif fence:
            assert language is not None
            yield start, language, block
            language = None
        elif language is not None:
            block.append(line)
    assert language is None, f"{document.name}: the block that begins in line {start} does not end"


def steps(document: Path) -> list[Step]:
    """Everything there is to do, in order."""
    found: list[tuple[int, Step]] = []
    for start, language, block in fences(document):
        if language == "console":
            found += _commands(document, start, block)
        elif language == "python" and block[0].startswith("# "):
            found.append((start, Step(f"{document.name}:{start}", "save", block[0][2:], tuple(block))))
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), start=1):
        directive = _DIRECTIVE.match(line)
        if directive:
            found.append((number, Step(f"{document.name}:{number}", directive[1], directive[2])))
    return [step for _, step in sorted(found, key=lambda pair: pair[0])]


def _commands(document: Path, start: int, block: list[str]) -> Iterator[tuple[int, Step]]:
    at = 0
    while at < len(block):
        number = start + 1 + at
        where = f"{document.name}:{number}"
        assert block[at].startswith("$ "), f"{where}: a console block begins with a command"
        command = block[at][2:]
        at += 1
        while command.endswith("\\"):
            command, at = command[:-1] + block[at].strip(), at + 1
        expected = []
        while at < len(block) and not block[at].startswith("$ "):
            expected.append(block[at])
            at += 1
        yield number, Step(where, "show", command, tuple(expected))


def is_setup(step: Step) -> bool:
    return step.verb == "show" and _SETUP.match(step.text) is not None


def setup_commands() -> list[Step]:
    """Commands that are not run: what is true of them is for the caller to check."""
    return [step for document in DOCUMENTS for step in steps(document) if is_setup(step)]


def matches(expected: tuple[str, ...], printed: str) -> bool:
    """Columns may be of another width: ports differ in length."""
    lines = [
        r"[\s\S]*?" if line == "..." else "[^\n]*".join(map(re.escape, _even(line).split("..."))) for line in expected
    ]
    return re.fullmatch("\n".join(lines), _even(printed)) is not None


def _even(text: str) -> str:
    return re.sub("  +", "  ", text.replace("\r", "")).rstrip()


@dataclass
class _Node:
    process: subprocess.Popen[bytes]
    log: Path
    url: str | None  # of a user's node


class Session:
    """One reader in front of one document. Leaving it ends every process it has started. `settles`: whether the reader
    waits until all nodes know each other before they read on."""

    def __init__(self, directory: Path, *, settles: bool = True) -> None:
        self._settles = settles
        self.missing: set[str] = set()
        self._directory = directory
        self._nodes: dict[str, _Node] = {}
        self._programs: list[subprocess.Popen[bytes]] = []
        self._ports: dict[str, int] = {}
        self._reserved: dict[str, socket.socket] = {}
        (directory / ".curlrc").write_text("silent\nshow-error\n")  # as on a terminal: no progress in between

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _e: BaseException | None, _at: TracebackType | None) -> None:
        for name in list(self._nodes):
            self._end(name, signal.SIGKILL)
        for program in self._programs:
            program.kill()
            program.wait(DEADLINE_S)
        for reserved in self._reserved.values():
            reserved.close()

    def carry_out(self, step: Step) -> None:
        match step.verb:
            case "stop":
                self._end(step.text, signal.SIGINT)
            case "kill":
                self._end(step.text, signal.SIGKILL)
            case "show" | "run" if _TWISTD.match(step.text):
                self._start(step)
            case "save":
                (self._directory / step.text).write_text("\n".join(step.expected) + "\n")
            case "show" if program := _PROGRAM.match(step.text):
                log = self._directory / f"{program[1]}.log"
                self._programs.append(self._run_on(step.text, log))
                self._expect(step, program[1], log)
            case "show" if store := _STORE.match(step.text):
                if shutil.which("redis-server") is None:
                    pytest.skip("redis-server is not installed: apt-get install redis-server")
                self._take(store[1])
                log = self._directory / "redis-server.log"
                self._programs.append(self._run_on(step.text, log))
                self._expect(step, "redis-server", log)
            case "show" if not is_setup(step):
                self._run(step)
            case "show":
                pass
            case _:
                raise AssertionError(f"{step.where}: unknown directive {step.verb}")

    # -- commands that end ---------------------------------------------------------------------------------------

    def _run(self, step: Step) -> None:
        absent = {tool for tool in _tools(step.text) & _OPTIONAL if shutil.which(tool) is None}
        if absent:
            self.missing |= absent
            return
        expected = tuple(self._with_ports(line) for line in step.expected)
        said: list[str] = []

        def printed() -> bool | None:
            said[:] = [self._printed(self._with_ports(step.text))]
            return matches(expected, said[0]) or None

        try:
            until(printed, step.text, 0 if _CHANGES.search(step.text) else DEADLINE_S)
        except Failed:
            shown = "\n".join(expected)
            raise AssertionError(f"{step.where}: $ {step.text}\nprints\n{said[0]}\nnot\n{shown}") from None

    def _printed(self, command: str) -> str:
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self._directory,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_S,
            check=False,
        )
        return done.stdout.decode("utf-8", "replace")

    # -- nodes ---------------------------------------------------------------------------------------------------

    def _start(self, step: Step) -> None:
        kind = "user" if " meshuser" in step.text else "seed"
        name = _given(step.text, r"USER_NAME=(\S+)|--name[ =](\S+)") or f"seed-{SEED_PORT}"
        asked = _given(step.text, r"\bPORT=(\d+)|--port[ =](\d+)|--listen (?:ssl|tcp):(\d+)")
        documented = asked or (USER_PORT if kind == "user" else SEED_PORT)
        if "--listen" in step.text or documented in self._reserved:
            self._take(documented)
        state = _given(step.text, r"--state[ =](\S+)")
        path = self._directory / state if state else default_path(kind, name)
        (path / ADDRESS_FILE).unlink(missing_ok=True)  # one that was killed leaves it behind
        port = str(self._ports.get(documented, 0))
        command = re.sub(rf"(\bPORT=|--port[ =]){documented}\b", rf"\g<1>{port}", step.text)
        command = command.replace(f"tcp:{SEED_HTTP_PORT}:", "tcp:0:")
        log = self._directory / f"{name}.log"
        node = self._nodes[name] = _Node(self._run_on(command, log), log, None)
        address = until(lambda: self._address(name, node, path), f"{name} listens", DEADLINE_S)
        self._ports[documented] = int(address.rpartition(":")[2])
        if "tcp:0:" in command:
            seen = until(partial(_seen, log), f"{name} says where it can be seen", DEADLINE_S)
            self._ports[SEED_HTTP_PORT] = int(seen)
        if kind == "user":
            node.url = address
            if self._settles:
                self._settle()
        self._expect(step, name, log)

    def _run_on(self, command: str, log: Path) -> "subprocess.Popen[bytes]":
        with log.open("wb") as output:
            return subprocess.Popen(
                ["sh", "-c", f"exec env {self._with_ports(command)}"],
                cwd=self._directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _expect(self, step: Step, name: str, log: Path) -> None:
        expected = [tuple(self._with_ports(line).splitlines()) for line in step.expected]
        for line in expected:
            until(partial(_says, log, line), f"{step.where}: {name} logs {line}", DEADLINE_S)

    def _address(self, name: str, node: _Node, path: Path) -> str | None:
        if node.process.poll() is not None:
            raise Failed(f"{name} ended before it listened:\n{node.log.read_text()}")
        file = path / ADDRESS_FILE
        return file.read_text().strip() if file.exists() else None

    def _settle(self) -> None:
        """Wait until every user is registered, knows every seed, and can be found from every other."""
        urls = {name: node.url for name, node in self._nodes.items() if node.url}
        seeds = len(self._nodes) - len(urls)
        for name, url in urls.items():
            until(partial(_is, f"{url}/status", "registered"), f"{name} is registered", DEADLINE_S)
            until(partial(_knows, url, seeds), f"{name} knows {seeds} seeds", DEADLINE_S)
        for url in urls.values():
            for name in urls:
                until(partial(_is, f"{url}/lookup/{name}", "online"), f"{name} is found by {url}", DEADLINE_S)

    def _end(self, name: str, how: signal.Signals) -> None:
        node = self._nodes.pop(name)
        node.process.send_signal(how)
        node.process.wait(DEADLINE_S)

    # -- the machine ---------------------------------------------------------------------------------------------

    def _environment(self) -> Mapping[str, str]:
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
        return {
            **os.environ,
            "PATH": path,
            "TZ": "UTC",
            "MESH_NODE": f"http://127.0.0.1:{self._port(USER_PORT)}",
            "MESH_SEEDS": f"localhost:{self._port(SEED_PORT)}",
        }

    def _port(self, documented: str) -> int:
        """The real port; of a node that was not started yet one where nobody will listen."""
        if documented in self._ports:
            return self._ports[documented]
        if documented not in self._reserved:
            reserved = self._reserved[documented] = socket.socket()
            reserved.bind(("127.0.0.1", 0))
        return int(self._reserved[documented].getsockname()[1])

    def _take(self, documented: str) -> None:
        """A free port is the documented one's from now on: the node is told so in its endpoint, or another command was
        told before."""
        self._ports[documented] = self._port(documented)
        if documented in self._reserved:
            self._reserved.pop(documented).close()

    def _with_ports(self, text: str) -> str:
        return re.sub(rf"\b({'|'.join(PORTS)})\b", lambda found: str(self._port(found[0])), text)


def _tools(command: str) -> set[str]:
    """The programs of a pipeline or list."""
    words = list(shlex.shlex(command, posix=True, punctuation_chars="|;&"))
    return {word for before, word in zip(["|", *words], words, strict=False) if set(before) <= set("|;&")} - {"cd"}


def _given(command: str, pattern: str) -> str | None:
    found = re.search(pattern, command)
    return next((group for group in found.groups() if group), None) if found else None


def _says(log: Path, line: tuple[str, ...]) -> bool | None:
    return any(matches(line, said) for said in log.read_text().splitlines()) or None


def _seen(log: Path) -> str | None:
    return _given(log.read_text(), r"can be seen at http://[^/]*:(\d+)/")


def _is(url: str, fact: str) -> bool | None:
    return bool(_get(url).get(fact)) or None


def _knows(url: str, seeds: int) -> bool | None:
    return len(_get(f"{url}/seeds").get("seeds", ())) >= seeds or None


def _get(url: str) -> dict[str, Any]:
    """The JSON at the URL; {} while there is none."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=DEADLINE_S) as answer:
            document: dict[str, Any] = json.load(answer)
            return document
    except (urllib.error.URLError, ConnectionError):
        return {}
