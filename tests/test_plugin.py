"""The real thing: a wheel in an empty environment, twistd processes, sockets, SQLite on a disk, SIGKILL."""

import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from meshproto.cli.processes import TWISTD, Children, until
from meshproto.client.node import Node
from meshproto.core.identity import verify
from meshproto.wire import LINE_BYTES_MAX, SignedRecord

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 20.0


class Mesh:
    """Two seeds, UserX at the one and Bobby at the other, each a process."""

    def __init__(self, children: Children) -> None:
        self.children = children
        self.seed_x = children.start("meshseed", "seedX")
        self.seed_y = children.start("meshseed", "seedY", "--peer", self.seed_x)
        self.seeds = {"UserX": self.seed_x, "Bobby": self.seed_y}
        self.urls = {name: self.start(name) for name in ("UserX", "Bobby")}
        for name in self.urls:
            until(lambda name=name: self.live_seeds(name) >= 2 or None, f"{name} knows both seeds")  # type: ignore[misc]

    def start(self, name: str, port: int = 0) -> str:
        url = self.children.start("meshuser", name, "--seed", self.seeds[name], port=port)
        until(lambda: self.node(url).status().document["registered"] or None, f"{name} is registered")
        return url

    def node(self, url: str) -> Node:
        return Node(url, timeout_s=TIMEOUT_S)

    def status(self, name: str) -> Any:
        return self.node(self.urls[name]).status().document

    def send(self, sender: str, to: str, text: str, wait_s: float = 5) -> str:
        """What /send says of the message."""
        return str(self.node(self.urls[sender]).send(to, text, wait_s=wait_s).document["status"])

    def live_seeds(self, name: str) -> int:
        return sum(seed["alive"] for seed in self.node(self.urls[name]).seeds().document["seeds"])

    def port(self, name: str) -> int:
        return urlsplit(self.urls[name]).port or 0

    def kill(self, name: str) -> None:
        process = self.children.all[name].process
        process.kill()
        process.wait()

    def texts(self, name: str) -> list[Any]:
        texts: list[Any] = []
        after = 0
        while page := (answer := self.node(self.urls[name]).inbox(after=after, limit=1000).document)["messages"]:
            texts += [message["message"] for message in page]
            after = answer["next"]
        return texts


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with Children(tmp_path) as children:
        yield Mesh(children)
        for child in children.all.values():
            log = child.log.read_text()
            assert "Traceback" not in log and "Unhandled" not in log, f"{child.name}:\n{log}"


def keep_alive(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)


def post(connection: http.client.HTTPConnection, body: Any) -> tuple[int, Any]:
    connection.request("POST", "/send", json.dumps(body), {"Content-Type": "application/x-www-form-urlencoded"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def ask_seed(address: str, line: bytes) -> Any:
    """One line to a seed, as nc would send it, and the first line of its answer."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
        connection.sendall(line)
        with connection.makefile("rb") as answers:
            return json.loads(answers.readline())


def twistd(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """A twistd that is expected to end by itself."""
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(cwd), **environ}
    return subprocess.run(
        [*TWISTD, "-n", "--pidfile=", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=kept,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_sent_found_and_delivered(mesh: Mesh) -> None:
    """The main job over real sockets: delivered, read, User Not Found."""
    with closing(keep_alive(mesh.urls["Bobby"])) as sender:
        status, answer = post(sender, {"message": "Hello UserX, It is nice to meet you", "to": "UserX"})
        assert (status, answer["status"]) == (200, "delivered")
        assert mesh.texts("UserX") == ["Hello UserX, It is nice to meet you"]
        status, answer = post(sender, {"message": "?", "to": "Nobody"})
        assert (status, answer["title"]) == (404, "User Not Found")


def test_nc_is_a_client(mesh: Mesh) -> None:
    """A line typed at a seed is answered with the signed record; nonsense is answered too, and an over-long line ends
    the connection with 413."""
    line = b'{"jsonrpc":"2.0","id":1,"method":"lookup","params":{"name":"UserX"}}\n'
    found = ask_seed(mesh.seed_x, line)["result"]
    record = verify(SignedRecord(found["record"], found["sig"]))
    assert (record.name, record.uris) == ("UserX", [mesh.urls["UserX"]])
    assert ask_seed(mesh.seed_x, b"hello?\n")["error"]["code"] == -32700
    assert ask_seed(mesh.seed_x, b"x" * (2 * LINE_BYTES_MAX))["error"]["code"] == 413


def test_killed_nodes_keep_what_was_delivered(mesh: Mesh) -> None:
    """A message that was answered delivered is in the inbox after SIGKILL of both nodes."""
    assert mesh.send("Bobby", "UserX", "kept") == "delivered"
    mesh.kill("UserX")
    mesh.kill("Bobby")
    mesh.urls = {name: mesh.start(name) for name in mesh.urls}
    assert mesh.texts("UserX") == ["kept"]


def test_a_node_that_is_told_to_end(mesh: Mesh) -> None:
    """SIGTERM amid many requests: whoever was answered was told the truth, and what was accepted is delivered, once."""
    body = {"to": "UserX", "wait": 30}
    answers: dict[str, str] = {}
    mesh.send("Bobby", "UserX", "known")

    def send(worker: int) -> None:
        with closing(keep_alive(mesh.urls["Bobby"])) as sender, suppress(OSError, http.client.HTTPException):
            for number in itertools.count():
                message_id = f"{worker}-{number}"
                status, answer = post(sender, {**body, "message": message_id, "id": message_id})
                if status in (200, 202):
                    answers[message_id] = answer["status"]

    with ThreadPoolExecutor(16) as pool:
        working = [pool.submit(send, worker) for worker in range(16)]
        while len(answers) < 200:
            wait(working, timeout=0.01)
        process = mesh.children.all["Bobby"].process
        process.terminate()
        assert process.wait(TIMEOUT_S) == -signal.SIGTERM  # twistd ends by the signal, when all is done
    delivered = {message_id for message_id, status in answers.items() if status == "delivered"}
    assert delivered <= set(mesh.texts("UserX"))
    mesh.urls["Bobby"] = mesh.start("Bobby")
    until(lambda: not mesh.node(mesh.urls["Bobby"]).status().document["outbox"]["waiting"] or None, "all is delivered")
    texts = mesh.texts("UserX")
    assert set(answers) <= set(texts)
    assert len(texts) == len(set(texts))


def test_away_and_back(mesh: Mesh) -> None:
    """A message for someone who was killed is queued, survives the death of its sender's node, and arrives within two
    seconds of the recipient's return."""
    assert mesh.send("Bobby", "UserX", "first") == "delivered"
    mesh.kill("UserX")
    assert mesh.send("Bobby", "UserX", "second", wait_s=0) == "queued"
    mesh.kill("Bobby")
    mesh.urls["Bobby"] = mesh.start("Bobby")
    assert mesh.send("Bobby", "UserX", "third", wait_s=1) == "queued"
    mesh.urls["UserX"] = mesh.start("UserX")
    until(lambda: mesh.texts("UserX") == ["first", "second", "third"] or None, "all have arrived", timeout_s=2.0)


def test_a_killed_seed_hides_nobody(mesh: Mesh) -> None:
    """With UserX's home seed killed everything still works, and UserX is registered at the other."""
    lookup = b'{"jsonrpc":"2.0","id":1,"method":"lookup","params":{"name":"UserX"}}\n'
    until(lambda: ask_seed(mesh.seed_y, lookup).get("result"), "gossip has told seedY of UserX")
    mesh.kill("seedX")
    assert mesh.send("Bobby", "UserX", "at once") == "delivered"

    def moved() -> bool | None:
        home = mesh.status("UserX")["home"]
        return (home is not None and home["name"] == "seedY") or None

    until(moved, "UserX has moved")
    assert mesh.send("Bobby", "UserX", "and later") == "delivered"
    assert mesh.send("UserX", "Bobby", "and back") == "delivered"


def test_a_thousand_messages(mesh: Mesh) -> None:
    """A thousand messages sent one after another over a kept-alive connection all arrive, once, in order."""
    with closing(keep_alive(mesh.urls["Bobby"])) as sender:
        assert {post(sender, {"to": "UserX", "message": number})[0] for number in range(1000)} == {200}
    assert mesh.texts("UserX") == list(range(1000))


def test_sigterm_ends_in_good_order(mesh: Mesh) -> None:
    """SIGTERM ends each node in good order (twistd then ends by that very signal), and the file that says where it
    listened is gone."""
    for name in ("Bobby", "UserX", "seedY", "seedX"):
        child = mesh.children.all[name]
        assert (child.state / "address").exists()
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(TIMEOUT_S) == -signal.SIGTERM, child.last_words()
        assert "Server Shut Down." in child.last_words()
        assert not (child.state / "address").exists()


def test_what_the_owner_alone_may_read(mesh: Mesh) -> None:
    """Keys and databases have mode 0600, also under a lax umask."""
    state = mesh.children.all["UserX"].state
    for name in ("keys.json", "user.db", "user.db-wal"):
        assert (state / name).stat().st_mode & 0o777 == 0o600, name


def test_a_second_process_in_the_same_state(mesh: Mesh, tmp_path: Path) -> None:
    """A second node on a state directory in use ends with one clear line and exit code 1."""
    state = mesh.children.all["UserX"].state
    ended = twistd("meshuser", "--name", "UserX", "--port", "0", "--state", str(state), cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1] == (
        f"meshuser: the state directory {state} is in use by another process: stop it, or give --state"
    )


@pytest.mark.parametrize("service", ["meshseed", "meshuser"])
def test_a_port_in_use(service: str, tmp_path: Path) -> None:
    """A port that is taken is named in one clear line, with exit code 1; the environment twins say which."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = twistd(service, cwd=tmp_path, USER_NAME="Bobby", PORT=str(port), MESH_STATE=str(tmp_path / "state"))
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1] == (
        f"{service}: --port (or PORT): cannot listen on tcp:{port}:interface=127.0.0.1: Address already in use"
    )


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        (["meshuser"], {}, "--name (or USER_NAME): a name is needed"),
        (["meshuser", "--name", "a b"], {}, "--name (or USER_NAME): 'a b' is not a name"),
        (["meshuser"], {"USER_NAME": "Bobby", "PORT": "many"}, "--port (or PORT): 'many' is not a port"),
        (["meshuser", "--name", "B", "--port", "65536"], {}, "--port (or PORT): '65536' is not a port"),
        (["meshuser", "--name", "B", "--seed", "nowhere"], {}, "--seed (or MESH_SEEDS): 'nowhere' is not HOST:PORT"),
        (["meshuser", "--name", "B"], {"MESH_SEEDS": "a:1,b"}, "--seed (or MESH_SEEDS): 'b' is not HOST:PORT"),
        (["meshuser", "--name", "B", "--advertise", "ftp://x"], {}, "--advertise (or MESH_ADVERTISE): bad uri"),
        (["meshuser", "--name", "B", "--listen", "nonsense:1"], {}, "--listen (or MESH_LISTEN)"),
        (["meshuser", "--name", "B", "--api", "nonsense:1"], {}, "--api (or MESH_API)"),
        (["meshuser", "--name", "B"], {"MESH_API": "unix"}, "--api (or MESH_API)"),
        (["meshuser", "--name", "B", "--nonsense"], {}, "--nonsense not recognized (twistd meshuser --help shows"),
        (["meshuser", "--name", "B", "userx.toml"], {}, "'userx.toml' is no option: they begin with --"),
        (["meshuser", "--name", "B", "--log-format", "xml"], {}, "--log-format (or MESH_LOG_FORMAT): 'xml' is neither"),
        (["meshuser", "--name", "B"], {"MESH_LOG_MESSAGES": "all"}, "--log-messages (or MESH_LOG_MESSAGES)"),
        (["meshseed", "--peer", "nowhere"], {}, "--peer (or MESH_PEERS): 'nowhere' is not HOST:PORT"),
        (["meshseed", "--names", "maybe"], {}, "--names (or MESH_NAMES)"),
        (["meshseed", "--directory", "localhost:6379"], {}, "--directory (or MESH_DIRECTORY): this is no address"),
        (
            ["meshseed"],
            {"MESH_DIRECTORY": "redis://:secret@x"},
            "--directory (or MESH_DIRECTORY): 'x' is not HOST:PORT",
        ),
        (
            ["--reactor=select", "meshseed", "--directory", "redis://localhost:6379"],
            {},
            "this is SelectReactor: leave twistd's --reactor out",
        ),
        (["meshseed"], {"PORT": "-1"}, "--port (or PORT): '-1' is not a port"),
        (["meshseed", "--port", "0", "--listen", "tcp:0"], {}, "give --advertise"),
    ],
)
def test_wrong_options(arguments: list[str], environ: dict[str, str], says: str, tmp_path: Path) -> None:
    """What is wrong with an option is the last line on standard error, and the only one where nothing was begun; the
    exit code is 1."""
    ended = twistd(*arguments, cwd=tmp_path, **environ)
    assert ended.returncode == 1
    assert says in ended.stderr.strip().splitlines()[-1]
    assert ended.stderr.count("\n") == 1
    assert "Options:" not in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr


def test_a_token_guards_an_open_listener(tmp_path: Path) -> None:
    """A node that listens on more than loopback makes a token that only its owner can read, and asks for it."""
    with Children(tmp_path) as children:
        seed = children.start("meshseed", "seedX")
        loop = children.start("meshuser", "Loop", "--listen", "tcp:0:interface=127.0.0.2", "--seed", seed)
        assert "127.0.0.2" in loop
        assert not (children.all["Loop"].state / "token").exists()
        url = children.start(
            "meshuser", "Open", "--listen", "tcp:0", "--advertise", "http://localhost:1", "--seed", seed
        )
        token = children.all["Open"].state / "token"
        assert token.stat().st_mode & 0o777 == 0o600
        with closing(keep_alive(url)) as connection:
            connection.request("GET", "/status")
            assert connection.getresponse().status == 401
        opened = Node(url, token=token.read_text().strip(), timeout_s=TIMEOUT_S).status().document
        assert opened["name"] == "Open"


def test_the_demo() -> None:
    """`mesh demo --once` shows its five steps and ends with exit code 0."""
    ended = subprocess.run(
        [sys.executable, "-c", "from meshproto.cli.main import main; main()", "demo", "--once"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for step in ("1. ", "2. ", "3. ", "4. ", "5. ", "200 delivered", "404 User Not Found", "202 queued"):
        assert step in ended.stdout


def test_a_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    """A wheel built from the tree and installed into a fresh environment makes `twistd --help` list both plugins and
    `mesh` run, from any folder. (The packages it needs are lent by this environment: no network.)"""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--prefix", str(home)]
    subprocess.run([*install, "--ignore-installed", str(wheel)], check=True, capture_output=True, timeout=120)
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert (site / "meshproto" / "web" / "seed" / "index.html").is_file()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = {"capture_output": True, "text": True, "cwd": elsewhere, "timeout": 60, "env": {"HOME": str(tmp_path)}}
    listed = subprocess.run([home / "bin" / "python", *TWISTD[1:], "--help"], check=True, **run)  # type: ignore[call-overload]
    assert "meshseed" in listed.stdout and "meshuser" in listed.stdout
    where = [home / "bin" / "python", "-c", "import meshproto; print(meshproto.__file__)"]
    assert str(home) in subprocess.run(where, check=True, **run).stdout  # type: ignore[call-overload]
    said = subprocess.run([home / "bin" / "mesh", "--version"], check=True, **run)  # type: ignore[call-overload]
    assert "0.1.0" in said.stdout
