"""Every program of docs/clients.md, as it stands there, does what is said of it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshproto import client as package
from meshproto.cli.processes import Children, until
from meshproto.client import Client, errors
from tests.docs_support import ROOT, fences

DOCUMENT = ROOT / "docs" / "clients.md"
PROGRAMS = {block[0].removeprefix("# "): "\n".join(block) for _, kind, block in fences(DOCUMENT) if kind == "python"}
LINES_MAX = 20
TIMEOUT_S = 60.0


class Programs:
    """Each runs in a directory of its own, with the node of `MESH_NODE`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for name, text in PROGRAMS.items():
            (directory / name).write_text(text)
        self.running: list[subprocess.Popen[str]] = []

    def start(self, name: str, node: str, stdin: str = "") -> "subprocess.Popen[str]":
        (self._directory / "stdin").write_text(stdin)
        with (self._directory / "stdin").open() as given:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", name],
                cwd=self._directory,
                env={**os.environ, "MESH_NODE": node, "PYTHONPATH": str(ROOT)},
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        self.running.append(process)
        return process

    def run(self, name: str, node: str, stdin: str = "") -> str:
        process = self.start(name, node, stdin)
        printed, complaints = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, complaints) == (0, "")
        return printed


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    started = Programs(tmp_path)
    yield started
    for process in started.running:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with Children(tmp_path_factory.mktemp("mesh")) as children:
        seed = children.start("meshseed", "seedX")
        found = {name: children.start("meshuser", name, "--seed", seed) for name in ("UserX", "Bobby", "Echo", "Echo2")}
        for url in found.values():
            until(lambda url=url: Client(url).status().registered or None, f"{url} is registered")  # type: ignore[misc]
        yield found


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_is_short(name: str) -> None:
    assert PROGRAMS[name].count("\n") < LINES_MAX


def test_sending(programs: Programs, urls: dict[str, str]) -> None:
    assert programs.run("send.py", urls["Bobby"]).splitlines() == [
        "UserX delivered ",
        "UserX delivered ",
        "Nobody failed 404 User Not Found: no seed knows Nobody",
    ]


def test_many_messages(programs: Programs, urls: dict[str, str]) -> None:
    """Only what failed is told; run again, nothing is sent twice."""
    after = Client(urls["UserX"]).status().next
    lines = "".join(f"{number},UserX,text {number}\n" for number in range(500)) + "500,Nobody,x\n"
    for _ in range(2):
        assert programs.run("many.py", urls["Bobby"], lines).startswith("invoice-500 Nobody 404 User Not Found")
    page = Client(urls["UserX"]).inbox(after=after, limit=1000)
    assert [one.message for one in page.messages] == [f"text {number}" for number in range(500)]


@pytest.mark.parametrize(("program", "service"), [("echo.py", "Echo"), ("echo_twisted.py", "Echo2")])
def test_a_service_that_answers(programs: Programs, urls: dict[str, str], program: str, service: str) -> None:
    """Also after it was killed: what came meanwhile is answered, nothing twice, and another's answer not at all."""
    bobby = Client(urls["Bobby"])
    answers = bobby.follow(after=bobby.status().next, sender=service)
    running = programs.start(program, urls[service])
    bobby.send(service, "Hello")
    assert next(answers).message == {"you said": "Hello"}
    running.kill()
    running.wait()
    bobby.send(service, [1, 2])
    programs.start(program, urls[service])
    assert next(answers).message == {"you said": [1, 2]}
    bobby.send(service, "your answer", type="answer")
    bobby.send(service, "the end")
    assert next(answers).message == {"you said": "the end"}
    answers.close()


def test_the_errors_that_are_told() -> None:
    """Each there is, and each that there is; every name in the text is one of the package's."""
    text = DOCUMENT.read_text("utf-8")
    kinds = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, errors.NodeError)}
    assert set(re.findall(r"^\| `(\w+)` \| (?:\d+|any) \|", text, re.MULTILINE)) == {
        name for name in kinds if issubclass(getattr(errors, name), errors.Problem)
    }
    assert kinds < set(re.findall(r"`(\w+)`", text))
    assert kinds <= set(package.__all__)
