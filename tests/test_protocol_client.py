"""docs/protocol.md is enough to write a client: docs/clients/client.mjs was written from it, and takes part."""

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from meshproto.cli.processes import Children, until
from meshproto.client import Client

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "docs" / "clients" / "client.mjs"
LINES_MAX = 60
LINE_CHARS_MAX = 120
NODE = shutil.which("node")
NAME = "Nora"
TIMEOUT_S = 10.0


class Program:
    """`node client.mjs`, which is started and killed as one likes; what it printed is in a file."""

    def __init__(self, directory: Path, seed: str) -> None:
        with socket.socket() as probe:  # it takes no port 0: a record has to say where one is
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._directory, self._log = directory, directory / "printed"
        self._command = [str(NODE), str(PROGRAM), NAME, str(self.port), *seed.split(":")]
        self.start()

    def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self._directory)
        until(lambda: "is registered with seedX" in self.printed() or None, f"{NAME} is registered: {self.printed()}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def printed(self) -> str:
        return self._log.read_text("utf-8")


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as children:
        seed = children.start("meshseed", "seedX")
        children.start("meshuser", "Bobby", "--seed", seed)
        yield children


@pytest.fixture
def bobby(mesh: Children) -> Client:
    client = Client(mesh.all["Bobby"].address())
    until(lambda: client.status().registered or None, "Bobby is registered")
    return client


@pytest.fixture
def program(mesh: Children, tmp_path: Path) -> Iterator[Program]:
    if NODE is None:
        pytest.skip("no node on this machine, which runs docs/clients/client.mjs")
    (tmp_path / "nora").mkdir()
    program = Program(tmp_path / "nora", str(mesh.all["seedX"].address()))
    yield program
    program.kill()


def test_it_is_as_short_as_it_says() -> None:
    """Sixty lines, none of them longer than ours."""
    text = PROGRAM.read_text("utf-8")
    assert text.count("\n") <= LINES_MAX
    for file in PROGRAM.parent.glob("*.mjs"):
        assert max(map(len, file.read_text("utf-8").splitlines())) <= LINE_CHARS_MAX


def test_it_registers_is_found_and_gets_messages(bobby: Client, program: Program) -> None:
    """Sent by name, delivered, and printed: any JSON, each once."""
    assert bobby.lookup(NAME).online
    assert bobby.send(NAME, "Hello Nora", id="1").is_delivered
    assert bobby.send(NAME, {"disk": ["/", "ü"], "full": 0.97}).is_delivered
    assert bobby.send(NAME, "x" * 200_000).is_delivered
    lines = program.printed().splitlines()[1:]
    assert lines[:2] == ['Bobby: "Hello Nora"', 'Bobby: {"disk":["/","ü"],"full":0.97}']
    assert len(lines[2]) == len("Bobby: ") + 200_002


def test_what_it_keeps(bobby: Client, program: Program) -> None:
    """After kill -9 it has the same keys, and shows no message twice; what was sent meanwhile comes."""
    before = bobby.lookup(NAME).fingerprint
    assert bobby.send(NAME, "one").is_delivered
    program.kill()
    assert bobby.send(NAME, "two", id="2", wait_s=0).status == "queued"
    program.start()
    until(lambda: bobby.state("2", NAME).status == "delivered" or None, "the second message is delivered")
    assert program.printed().splitlines()[1:] == ['Bobby: "two"']
    assert bobby.lookup(NAME).fingerprint == before


def test_what_it_refuses(program: Program) -> None:
    """With problem documents, as docs/protocol.md says."""
    for path, body, status, title in (
        ("/deliver", b"no batch", 400, "bad params"),
        ("/other", b"", 404, "Not Found"),
        ("/deliver", batch(), 421, "not for this node"),
        ("/deliver", batch().replace(b"Bobby", b"Bubby"), 403, "bad signature"),
    ):
        code, document = post(program.port, path, body)
        assert (code, document["title"]) == (status, title)


def batch() -> bytes:
    """The one of the test vectors, which is for somebody else."""
    lines = (ROOT / "docs" / "protocol.md").read_text("utf-8").splitlines()
    return next(line.encode() for line in lines if line.startswith('{"sender":{"record":'))


def post(port: int, path: str, body: bytes) -> tuple[int, dict[str, object]]:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", body, timeout=TIMEOUT_S) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)
