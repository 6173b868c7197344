"""The course of :mod:`bench.wear` in little; what it takes is not asserted."""

import json
import subprocess
import sys
from pathlib import Path
from socket import create_server

import pytest

from bench import wear

ROOT = Path(__file__).parents[1]


def test_a_crowd_that_only_holds_connections(capsys: pytest.CaptureFixture[str]) -> None:
    """It is there, at the seed and at the node, those who are served go on being served, and all is told."""
    wear.main(["--idle", "40", "--slow", "20", "--hosts", "3", "--seconds", "0.5"])
    cells = [
        [cell.strip() for cell in row.split("|")[1:4]] for row in capsys.readouterr().out.splitlines() if "|" in row
    ]
    values = {what: value for what, value, _ in cells}
    failed = {what: value for what, value in values.items() if what.endswith(": failed")}
    assert set(failed.values()) == {"0"}
    assert len(failed) == 4
    assert values["of the crowd at seedX at a time, at most"] == "60"
    assert values["of the crowd at UserX at a time, at most"] == "60"
    assert min(int(values[what]) for what in values if what.endswith("how many")) > 0


@pytest.mark.parametrize(("kind", "beginning"), [("lines", b'{"jsonrpc"'), ("http", b"POST /deliver")])
def test_the_crowd_does_what_it_says(kind: str, beginning: bytes) -> None:
    """The slow ones begin and do not end, the idle ones say nothing."""
    with create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-m", "bench.crowd", f"127.0.0.1:{server.getsockname()[1]}", kind]
        command += ["--idle=2", "--slow=2", "--hosts=2", "--seconds=2.2"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as crowd:
            accepted = [server.accept() for _ in range(4)]
            said, _ = crowd.communicate()
        assert {host for _, (host, _) in accepted} == {"127.7.0.1", "127.7.0.2"}
        heard = []
        for connection, _ in accepted:
            with connection:
                heard.append(connection.recv(1000))
        assert sorted(data.startswith(beginning) for data in heard) == [False, False, True, True]
        assert sorted(heard)[:2] == [b"", b""]
    here, told = map(json.loads, said.splitlines())
    assert here == {"here": 4}
    assert told == {"connected": 4, "ended": 0, "answered": 0, "failed": 0, "most": 4}
