"""The owner's part on a listener of its own, and what another account on the machine gets to see: real processes, under
the most careless umask there is."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from meshproto.cli.main import mesh
from meshproto.cli.processes import Children, until
from meshproto.client.asking import Request
from meshproto.client.errors import Problem, Unreachable
from meshproto.client.node import Node
from meshproto.net.state import StateDir
from tests.net.test_front import OWNERS
from tests.test_plugin import TIMEOUT_S, twistd

MESH = (sys.executable, "-c", "from meshproto.cli.main import main; main()")


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    before = os.umask(0)
    try:
        with Children(tmp_path) as children:
            yield children
            for child in children.all.values():
                assert "Traceback" not in child.log.read_text(), child.last_words()
    finally:
        os.umask(before)


def start(children: Children, name: str, *options: str) -> Node:
    """A node at a seed of its own, asked where its address file says."""
    if "seedX" not in children.all:
        children.start("meshseed", "seedX")
    seed = children.all["seedX"].address() or ""
    return Node(children.start("meshuser", name, "--seed", seed, *options), timeout_s=TIMEOUT_S)


def run(*arguments: str, given: str = "") -> tuple[int, str]:
    """`mesh`: its exit code and what it prints."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [*MESH, *arguments],
        input=given,
        capture_output=True,
        text=True,
        env=environment,
        timeout=TIMEOUT_S,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_unix_socket_is_the_owners_door(children: Children, tmp_path: Path) -> None:
    """With `--api unix:PATH` the socket, which only its owner can open, has the owner's routes, the other listener has
    those for peers; the address file, curl and every command of mesh agree."""
    path = tmp_path / "api.sock"
    node = start(children, "UserX", "--api", f"unix:{path}")
    assert node.url == f"unix:{path}"
    until(lambda: node.status().document["registered"] or None, "it is registered")
    assert mode(path) == 0o600
    outside = Node(node.status().document["uris"][0], timeout_s=TIMEOUT_S)
    for method, route in OWNERS:
        with pytest.raises(Problem) as refused:
            outside.ask(Request(method, route, {"to": "UserX", "message": "x"}))
        assert (refused.value.status, refused.value.title) == (404, "Not Found")
    assert outside.ask(Request("GET", "/healthz")).document == {"status": "ok"}
    assert node.send("UserX", "over the socket, delivered over TCP").document["status"] == "delivered"

    url = f"unix:{path}"
    assert run("--node", url, "send", "UserX", "by mesh")[0] == 0
    code, said = run("--node", url, "send", "--bulk", "-", "--to", "UserX", given='{"message":1}\n{"message":2}\n')
    assert (code, "2 delivered" in said) == (0, True)
    code, said = run("--node", url, "inbox", "--follow", "--limit", "4")
    assert (code, "over the socket" in said, "by mesh" in said) == (0, True, True)
    for command in (["status"], ["inbox"], ["seeds"], ["lookup", "UserX"], ["queue"], ["sent"], ["retry"]):
        assert run("--node", url, *command)[0] == 0, command
    if shutil.which("curl"):
        body = '{"to": "UserX", "message": "by curl"}'
        curl = ["curl", "-sS", "--unix-socket", str(path), "http://localhost/send", "-d", body]
        ended = subprocess.run(curl, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        assert json.loads(ended.stdout)["status"] == "delivered"

    children.stop("UserX")
    assert not path.exists()
    with pytest.raises(Unreachable, match="no such file"):
        node.status()


def test_a_killed_nodes_socket_is_taken_over(children: Children, tmp_path: Path) -> None:
    """After kill -9 the node starts again on the same path; while it runs no other node can."""
    path = tmp_path / "api.sock"
    start(children, "UserX", "--api", f"unix:{path}")
    killed = children.all["UserX"].process
    killed.kill()
    killed.wait()
    assert path.exists()
    again = start(children, "UserX", "--api", f"unix:{path}")
    other = ["meshuser", "--name", "Other", "--port", "0", "--state", str(tmp_path / "other"), "--api", f"unix:{path}"]
    ended = twistd(*other, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1] == (
        f"meshuser: --api (or MESH_API): cannot listen on unix:{path}: "
        "another process listens there: stop it, or give another path"
    )
    assert again.status().document["name"] == "UserX"


@pytest.mark.parametrize(("interface", "asks"), [("127.0.0.2", False), ("", True)])
def test_a_tcp_listener_asks_for_the_token_beyond_loopback(children: Children, interface: str, asks: bool) -> None:
    """Whether the owner needs the token goes by the listener that is the owner's, not by the one for peers. The token
    is in its file, and neither in the log nor in what `ps` shows."""
    node = start(
        children, "UserX", "--api", f"tcp:0:interface={interface}", "--listen", "tcp:0", "--advertise", "http://h:1"
    )
    child = children.all["UserX"]
    if not asks:
        assert node.url.startswith("http://127.0.0.2:")
        assert node.status().document["uris"] == ["http://h:1"]
        assert not (child.state / "token").exists()
        return
    token = (child.state / "token").read_text().strip()
    for given in (None, "wrong", token[:-1]):
        with pytest.raises(Problem) as refused:
            Node(node.url, given, TIMEOUT_S).status()
        assert refused.value.status == 401
        assert token not in refused.value.text
    assert Node(node.url, token, TIMEOUT_S).status().document["name"] == "UserX"
    code, _ = run("--node", node.url, "--token-file", str(child.state / "token"), "status")
    assert code == 0
    assert token not in child.log.read_text()
    for shown in ("cmdline", "environ"):
        told = Path(f"/proc/{child.process.pid}/{shown}")
        assert not told.exists() or token.encode() not in told.read_bytes()


def test_mesh_takes_no_token_on_its_command_line() -> None:
    """Only a file: what stands on a command line everybody can read."""
    for command in (mesh, *mesh.commands.values()):
        for option in command.params:
            if isinstance(option, click.Option) and any("token" in flag for flag in option.opts):
                assert option.opts == ["--token-file"]


def test_what_another_account_can_read(children: Children, tmp_path: Path) -> None:
    """Under umask 0 nothing but the word where it listens, in a directory that others cannot enter, is theirs to
    read."""
    path = tmp_path / "api.sock"
    start(children, "UserX", "--api", f"unix:{path}")
    start(children, "Open", "--listen", "tcp:0", "--advertise", "http://localhost:1")
    for name in ("seedX", "UserX", "Open"):
        state = children.all[name].state
        assert mode(state) == 0o700
        modes = {file.name: mode(file) for file in state.iterdir()}
        modes.pop("address")
        assert set(modes.values()) == {0o600}, modes
    assert {"keys.json", "token", "user.db", "user.db-wal", "user.db-shm", "lock"} <= modes.keys()


@pytest.mark.parametrize("name", ["keys.json", "token"])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, name: str) -> None:
    """The node does not start with it, and says the command that mends it; which does."""
    state_path = tmp_path / "state"
    state = StateDir(state_path)
    state.identity(os.urandom, 0)
    state.token(os.urandom)
    state.close()
    (state_path / name).chmod(0o644)
    options = ["meshuser", "--name", "U", "--state", str(state_path), "--listen", "tcp:0", "--advertise", "http://h:1"]
    ended = twistd(*options, cwd=tmp_path)
    assert ended.returncode == 1
    said = ended.stderr.strip().splitlines()[-1]
    assert said == f"meshuser: others can read {state_path / name}: chmod 600 {state_path / name}"
    subprocess.run(said.rpartition(": ")[2].split(), check=True, timeout=TIMEOUT_S)
    assert mode(state_path / name) == 0o600


def test_a_state_directory_that_others_can_enter(tmp_path: Path) -> None:
    """One with files in it is refused with the command that mends it, since it may be somebody's home."""
    tmp_path.chmod(0o755)
    (tmp_path / "diary").touch()
    ended = twistd("meshuser", "--name", "U", "--port", "0", "--state", str(tmp_path), cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1] == (
        f"meshuser: others can enter the state directory {tmp_path}: chmod 700 {tmp_path}"
    )
    assert mode(tmp_path) == 0o755


def test_a_path_in_the_way(tmp_path: Path) -> None:
    """A socket path that cannot be used ends the start in one clear line."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        options = ["--name", "U", "--port", "0", "--state", str(tmp_path / "state"), "--api"]
        for path, reason in (("s", "another process listens there"), ("no/s", "No such file or directory")):
            ended = twistd("meshuser", *options, f"unix:{tmp_path / path}", cwd=tmp_path)
            assert ended.returncode == 1
            assert f"cannot listen on unix:{tmp_path / path}: {reason}" in ended.stderr.strip().splitlines()[-1]
            assert "Traceback" not in ended.stderr + ended.stdout
