"""`twistd meshseed --http`: the real process, a real socket."""

import http.client
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshproto.cli.processes import TWISTD, Children, until
from tests.prometheus import read

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 20.0


@pytest.fixture
def seed(tmp_path: Path) -> Iterator[tuple[Children, int]]:
    """A seed, and the port of its HTTP endpoint, which its log tells."""
    with Children(tmp_path) as children:
        children.start("meshseed", "seedX", "--http", "tcp:0:interface=127.0.0.1")
        log = children.all["seedX"].log

        def told() -> re.Match[str] | None:
            return re.search(r"can be seen at http://127\.0\.0\.1:(\d+)/", log.read_text())

        yield children, int(until(told, "the seed says where it can be seen")[1])
        said = log.read_text()
        assert "Traceback" not in said and "Unhandled" not in said, said


def test_every_route(seed: tuple[Children, int]) -> None:
    """Over one connection: the page and its files, health, status, the mesh, metrics; and each in its own type."""
    connection = http.client.HTTPConnection("127.0.0.1", seed[1], timeout=TIMEOUT_S)
    bodies: dict[str, bytes] = {}
    for path, kind in {
        "/": "text/html; charset=utf-8",
        "/style.css": "text/css; charset=utf-8",
        "/mesh.js": "text/javascript; charset=utf-8",
        "/icon.svg": "image/svg+xml",
        "/healthz": "application/json",
        "/status": "application/json",
        "/mesh": "application/json",
        "/metrics": "text/plain; version=0.0.4; charset=utf-8",
    }.items():
        connection.request("GET", path)
        answer = connection.getresponse()
        bodies[path] = answer.read()
        assert (answer.status, answer.headers["Content-Type"]) == (200, kind), path
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "Access-Control-Allow-Origin" not in answer.headers
    connection.request("GET", "/", headers={"Host": "evil.example"})
    assert connection.getresponse().status == 403
    connection.close()
    assert json.loads(bodies["/healthz"]) == {"status": "ok"}
    assert json.loads(bodies["/status"])["seed"] == "seedX"
    assert [one["name"] for one in json.loads(bodies["/mesh"])["seeds"]] == ["seedX"]
    assert read(bodies["/metrics"].decode()).values['meshproto_seed_known_alive{seed="seedX"}'] == 1


def test_it_ends_with_the_seed(seed: tuple[Children, int]) -> None:
    """SIGTERM ends the seed in good order while a browser is connected, and nobody listens any more."""
    children, port = seed
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S):
        children.stop("seedX")
    assert "Server Shut Down." in children.all["seedX"].last_words()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)


def _twistd(directory: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A seed that is expected to end by itself."""
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(directory), **environ}
    command = [*TWISTD, "-n", "--pidfile=", "meshseed", "--port", "0", "--state", str(directory / "state"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=directory, env=kept, timeout=TIMEOUT_S, check=False
    )


def test_a_taken_port(tmp_path: Path) -> None:
    """A port that is taken, named by the environment twin, is one clear line and exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        ended = _twistd(tmp_path, MESH_HTTP=endpoint)
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines() == [
        f"meshseed: --http (or MESH_HTTP): cannot listen on {endpoint}: Address already in use"
    ]
    assert not (tmp_path / "state" / "address").exists()


def test_a_wrong_endpoint(tmp_path: Path) -> None:
    """What is no endpoint is refused under the usage text."""
    ended = _twistd(tmp_path, "--http", "nonsense:1")
    assert ended.returncode == 1
    assert "--http (or MESH_HTTP): " in (ended.stdout + ended.stderr).strip().splitlines()[-1]
