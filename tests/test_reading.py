"""Real nodes, and how they read from those who are connected."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKS = 5


@contextmanager
def running(plugin: str, *options: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "tests.reading_rig", plugin, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: "subprocess.Popen[str]") -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


@pytest.mark.parametrize("plugin", ["meshseed", "meshuser"])
def test_connections_are_read_from_together(plugin: str, tmp_path: Path) -> None:
    with running(plugin, "--name", "X", "--port", "0", "--state", str(tmp_path / "state")) as process:
        assert said(process)[1] == "True"


def test_a_seed_answers_all_in_one_go(tmp_path: Path) -> None:
    """What has come over several links by the time that it looks."""
    with (
        running("meshseed", "--name", "seedX", "--port", "0", "--state", str(tmp_path / "state")) as process,
        ExitStack() as stack,
    ):
        port = int(said(process)[0])
        links = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(LINKS)]
        answers = [stack.enter_context(link.makefile("rb")) for link in links]

        def ask(number: int, method: str, **params: str) -> None:
            request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            links[number].sendall(json.dumps(request).encode() + b"\n")

        for turn in ("it is made welcome", "and seen to be"):
            for number in range(LINKS):
                ask(number, "ping")
                assert json.loads(answers[number].readline())["id"] == number, turn
        process.send_signal(signal.SIGSTOP)
        for number in range(LINKS):
            ask(number, "lookup", name="nobody")
        process.send_signal(signal.SIGCONT)
        for number in range(LINKS):
            answer = json.loads(answers[number].readline())
            assert (answer["id"], answer["error"]["code"]) == (number, 404)
        assert said(process) == [str(LINKS), str(LINKS)]
