"""The systemd units: their command lines and environment as they stand, with a real notify socket and real sockets."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshproto.cli.processes import Children, until
from meshproto.client.node import Node
from meshproto.seed_tap import Options as SeedOptions
from meshproto.user_tap import Options as UserOptions
from tests.systemd import PROGRAMS, TIMEOUT_S, UNITS, Manager, Unit

PROGRAM = str(Path(sys.executable).parent / "twistd")
SEED, USER = "meshseed.service", "meshuser@.service"
EXPOSURE_MAX = 20
"""Of `systemd-analyze security`, tenths: below it says OK."""


def configure(root: Path, name: str, *lines: str) -> None:
    (root / "etc" / "meshproto").mkdir(parents=True, exist_ok=True)
    (root / "etc" / "meshproto" / f"{name}.toml").write_text("\n".join(lines))


def address(manager: Manager, state: str) -> str:
    return (manager.root / "var/lib/meshproto" / state / "address").read_text().strip()


@pytest.mark.parametrize("abstract", [False, True])
def test_a_users_node(tmp_path: Path, abstract: bool) -> None:
    """It says that it is ready when it serves, how it is, that it lives; it reloads by ExecReload, and says so with the
    monotonic time; SIGTERM stops it, which it says first."""
    with Children(tmp_path) as children, Manager(tmp_path, Unit(USER, "UserX"), abstract=abstract) as manager:
        seed = children.start("meshseed", "seedX")
        configure(tmp_path, "user-UserX", "port = 0", f'seed = ["{seed}"]')
        manager.start()
        manager.until("READY", "1")
        assert urllib.request.urlopen(address(manager, "user-UserX") + "/healthz", timeout=TIMEOUT_S).status == 200
        manager.until("WATCHDOG", "1")
        manager.until("STATUS", "registered at seedX, 0 waiting")
        configure(tmp_path, "user-UserX", "port = 0", f'seed = ["{seed}"]', "keep-days = 7")
        manager.reload()
        assert int(manager.until("MONOTONIC_USEC", r"\d+")) > 0
        assert manager.heard[-1]["RELOADING"] == "1"
        manager.until("READY", "1")
        assert "reloaded: keep-days, the files" in manager.log.read_text()
        assert manager.stop() == -signal.SIGTERM
        manager.until("STOPPING", "1")


def test_a_seed(tmp_path: Path) -> None:
    """Likewise; what it says of itself counts names and seeds."""
    with Manager(tmp_path, Unit(SEED)) as manager:
        configure(tmp_path, "seed", 'name = "seedX"', "port = 0")
        manager.start()
        manager.until("READY", "1")
        manager.until("STATUS", "0 of 0 names online, 1 of 1 seeds alive")
        manager.until("WATCHDOG", "1")
        manager.reload()
        manager.until("RELOADING", "1")
        manager.until("READY", "1")
        assert manager.stop() == -signal.SIGTERM
        manager.until("STOPPING", "1")


def test_it_goes_on_to_say_that_it_lives(tmp_path: Path) -> None:
    """As often as it is asked for, and to nobody when the watchdog is another process's."""
    with Manager(tmp_path, Unit(SEED)) as manager:
        configure(tmp_path, "seed", 'name = "seedX"', "port = 0")
        manager.start(WATCHDOG_USEC="100000")
        for _ in range(5):
            manager.until("WATCHDOG", "1")
        manager.stop()
        manager.until("STOPPING", "1")
        manager.heard.clear()
        manager.start(WATCHDOG_USEC="100000", WATCHDOG_PID="1")
        manager.until("STATUS")
        manager.stop()
        manager.until("STOPPING", "1")
        assert not any("WATCHDOG" in said for said in manager.heard)


def test_sockets(tmp_path: Path) -> None:
    """Both are systemd's: whoever connects while the node is stopped is served by the next one; the owner's socket has
    the mode it was given and asks for no token, and its file outlives the node."""
    units = (Unit("meshuser@.socket", "UserX"), Unit("meshuser-api@.socket", "UserX"))
    assert units[1].one("Service") == "meshuser@UserX.service"
    with Manager(tmp_path, Unit(USER, "UserX"), units) as manager:
        port = manager.sockets["mesh"].getsockname()[1]
        inherit = ['listen = "systemd:domain=INET:name=mesh"', 'api = "systemd:domain=UNIX:name=api"']
        configure(tmp_path, "user-UserX", *inherit, 'seed = ["localhost:1"]')
        manager.start()
        manager.until("READY", "1")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=TIMEOUT_S) as answer:
            assert json.load(answer) == {"status": "ok"}
        api = tmp_path / "run/meshproto/UserX.sock"
        assert address(manager, "user-UserX") == f"unix:{api}"
        status = Node(f"unix:{api}", timeout_s=TIMEOUT_S).status().document
        assert status["uris"] == [f"http://127.0.0.1:{port}"]
        assert manager.mode("run/meshproto/UserX.sock") == 0o660
        assert manager.stop() == -signal.SIGTERM
        assert api.exists()
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as early:
            early.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            manager.start()
            with early.makefile("rb") as answer:
                assert answer.readline().startswith(b"HTTP/1.1 200 ")
        assert Node(f"unix:{api}", timeout_s=TIMEOUT_S).status().document["name"] == "UserX"


def test_a_seeds_socket(tmp_path: Path) -> None:
    """A seed listens on systemd's, and says where it is: what the socket is bound to."""
    with Manager(tmp_path, Unit(SEED), (Unit("meshseed.socket"),)) as manager:
        configure(tmp_path, "seed", 'name = "seedX"', 'listen = "systemd:domain=INET:name=mesh"')
        manager.start()
        manager.until("READY", "1")
        host, port = manager.sockets["mesh"].getsockname()
        assert address(manager, "seed") == f"{host}:{port}"
        with socket.create_connection((host, port), timeout=TIMEOUT_S) as connection:
            connection.sendall(b'{"jsonrpc":"2.0","id":1,"method":"status"}\n')
            with connection.makefile("rb") as answers:
                assert json.loads(answers.readline())["result"]["seed"] == "seedX"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_systemd_takes_them(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say about any of them, and `security` says OK."""
    names = []
    for file in UNITS.glob("*.s[eo][rc]*"):
        name = file.name.replace("@", "@UserX")
        (tmp_path / name).write_text(file.read_text().replace(PROGRAMS, "/bin").replace("/bin/twistd", "/bin/true"))
        names.append(f"./{name}")
    assert len(names) == len(list(UNITS.iterdir())) - 1  # all but the user
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 60}
    said = subprocess.run(["systemd-analyze", "verify", *names], check=False, **run)  # type: ignore[call-overload]
    assert (said.returncode, said.stdout + said.stderr) == (0, "")
    for name in (name for name in names if name.endswith(".service")):
        judge = ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE_MAX}", name]
        said = subprocess.run(judge, check=False, **run)  # type: ignore[call-overload]
        assert said.returncode == 0, said.stdout


def test_what_they_set_exists() -> None:
    """Each variable that a unit sets is one that its program has, and the state directory is the one that is told."""
    for name, options in ((SEED, SeedOptions), (USER, UserOptions)):
        unit = Unit(name, "UserX")
        variables = dict(word.split("=", 1) for line in unit.values["Environment"] for word in line.split())
        assert variables.keys() <= set(options.twins.values())
        assert variables["MESH_STATE"] == f"/var/lib/{unit.one('StateDirectory')}"


def test_a_terminal_that_is_gone(tmp_path: Path) -> None:
    """SIGHUP ends a node in good order when it is because its terminal was closed; else it reloads."""
    pid, terminal = os.forkpty()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv(
            Path(PROGRAM),
            [PROGRAM, "-n", "--pidfile=", "meshseed", "--name", "seedX", "--port", "0", "--state", str(tmp_path / "s")],
        )
    until(lambda: (tmp_path / "s" / "address").exists() or None, "it listens", TIMEOUT_S)
    os.kill(pid, signal.SIGHUP)
    heard = b""
    while b"reloaded" not in heard:
        heard += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not (tmp_path / "s" / "address").exists()


# -- sockets that are not what they should be ---------------------------------------------------------------------


def listening(family: socket.AddressFamily, where: Any, mode: int = 0o600) -> socket.socket:
    opened = socket.socket(family)
    opened.bind(where)
    opened.listen()
    if isinstance(where, str) and where.startswith("/"):
        Path(where).chmod(mode)
    return opened


def no_socket() -> Any:
    """A descriptor all the same."""
    return tempfile.TemporaryFile()


LOOPBACK = ("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("make", "lines", "says"),
    [
        (
            lambda root: listening(socket.AF_UNIX, f"{root}/s", 0o666),
            ["port = 0", 'api = "systemd:domain=UNIX:name=given"'],
            "everybody may open the socket ROOT/s: give it a path, and SocketMode=0600",
        ),
        (
            lambda root: listening(socket.AF_UNIX, f"\0{root}/s"),
            ["port = 0", 'api = "systemd:domain=UNIX:name=given"'],
            "everybody may open the socket ROOT/s: give it a path, and SocketMode=0600",
        ),
        (
            lambda root: listening(socket.AF_UNIX, f"{root}/s"),
            ['listen = "systemd:domain=INET:name=given"'],
            "the socket that systemd hands over is of UNIX",
        ),
        (
            lambda _: listening(socket.AF_INET, LOOPBACK),
            ["port = 0", 'api = "systemd:domain=UNIX:name=given"'],
            "the socket that systemd hands over is of INET",
        ),
        (
            lambda _: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            ['listen = "systemd:domain=INET:name=given"'],
            "the socket that systemd hands over does not listen: ListenStream=, and Accept=no",
        ),
        (
            lambda _: no_socket(),
            ['listen = "systemd:domain=INET:name=given"'],
            "what is handed over as name given cannot be used as a socket: Socket operation on non-socket",
        ),
        (
            lambda _: listening(socket.AF_INET, LOOPBACK),
            ['listen = "systemd:domain=INET:name=other"'],
            "systemd has handed over no socket of name other: is its .socket unit started?",
        ),
        (
            lambda _: listening(socket.AF_INET, LOOPBACK),
            ['listen = "systemd:domain=INET:index=1"'],
            "systemd has handed over no socket of index 1: is its .socket unit started?",
        ),
        (
            lambda _: listening(socket.AF_INET6, ("::", 0)),
            ['listen = "systemd:domain=INET:name=given"'],
            "systemd:domain=INET:name=given does not say what others should dial: give --advertise too",
        ),
        (
            lambda root: listening(socket.AF_UNIX, f"{root}/s"),
            ['listen = "systemd:domain=UNIX:name=given"'],
            "systemd:domain=UNIX:name=given does not say what others should dial: give --advertise too",
        ),
    ],
)
def test_a_socket_that_is_another(
    make: Callable[[Path], socket.socket], lines: list[str], says: str, tmp_path: Path
) -> None:
    """What is wrong with a socket that is handed over is said in one line, and the node does not start."""
    with Manager(tmp_path, Unit(USER, "UserX")) as manager:
        manager.sockets["given"] = make(tmp_path)
        configure(tmp_path, "user-UserX", *lines)
        manager.start()
        assert manager.process is not None
        assert manager.process.wait(TIMEOUT_S) == 1
        assert f"meshuser: {says.replace('ROOT', str(tmp_path))}\n" in manager.log.read_text()
        assert "Traceback" not in manager.log.read_text()


def test_who_comes_by_an_open_socket_is_not_the_owner(tmp_path: Path) -> None:
    """A socket on every interface, which is IPv6 although INET was said, as systemd makes it of a port alone: the
    owner's part asks for the token, also those who come by IPv4 from this machine; the rest is answered."""
    with Manager(tmp_path, Unit(USER, "UserX")) as manager:
        manager.sockets["mesh"] = listening(socket.AF_INET6, ("::", 0))
        port = manager.sockets["mesh"].getsockname()[1]
        listen = 'listen = "systemd:domain=INET:name=mesh"'
        configure(tmp_path, "user-UserX", listen, 'advertise = "http://localhost:1"', 'seed = ["localhost:1"]')
        manager.start()
        manager.until("READY", "1")
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=TIMEOUT_S).status == 200
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=TIMEOUT_S)
        refused.value.close()
        token = (tmp_path / "var/lib/meshproto/user-UserX/token").read_text().strip()
        assert Node(f"http://127.0.0.1:{port}", token=token, timeout_s=TIMEOUT_S).status().document["name"] == "UserX"
