"""A configuration file, from outside: real processes that are started with one, and told to read it again."""

import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from meshproto.cli.processes import Child, Children, until
from meshproto.client.node import Node
from meshproto.seed_tap import Options as SeedOptions
from meshproto.tap import NodeOptions
from meshproto.user_tap import Options as UserOptions

DEPLOY = Path(__file__).parent.parent / "deploy"
PROGRAMS: dict[str, type[NodeOptions]] = {"meshseed": SeedOptions, "meshuser": UserOptions}
TIMEOUT_S = 30.0
KEY, OTHER_KEY = "k" * 32, "o" * 32


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as children:
        yield children
        for child in children.all.values():
            assert "Traceback" not in child.log.read_text(), child.log.read_text()


def checked(program: str, *arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """`twistd PROGRAM --check`."""
    command = [str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile=", program, *arguments, "--check"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), **environ}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=TIMEOUT_S, check=False
    )


def secret(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def hang_up(child: Child, says: str) -> str:
    """SIGHUP, and what it has logged from there on once it says so."""
    before = child.log.stat().st_size
    child.process.send_signal(signal.SIGHUP)

    def said() -> str | None:
        text = child.log.read_bytes()[before:].decode()
        return text if says in text else None

    return until(said, f"{child.name} says {says}", TIMEOUT_S)


# -- the examples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_example_has_every_option(program: str, tmp_path: Path) -> None:
    """Each option stands in the example, commented out, once; and with the comment taken away all of it is good but for
    the files that are not there. What it says can be reloaded is what can be."""
    options = PROGRAMS[program]
    text = (DEPLOY / f"{program}.toml").read_text()
    assert tomllib.loads(text) == {}
    blocks = text.split("\n\n")
    named = {block: re.findall(r"^# ([a-z-]+) = ", block, re.MULTILINE) for block in blocks}
    everything = [option for block in blocks for option in named[block]]
    assert sorted(everything) == sorted(options.kinds)
    assert set(options.twins) - {"config"} == set(options.kinds)
    reloads = {option for block in blocks if "(reload)" in block for option in named[block]}
    assert reloads == options.reloads
    file = tmp_path / "all.toml"
    file.write_text(re.sub(r"^# (?=[a-z-]+ = )", "", text, flags=re.MULTILINE))
    for name in ("mesh.key", "register-token"):
        secret(tmp_path / name, KEY)
    for name in ("friends.txt", "names.txt"):
        (tmp_path / name).write_text("Bobby\n")
    (tmp_path / "on-message").write_text("#!/bin/sh\n")
    (tmp_path / "on-message").chmod(0o700)
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    said = checked(program, "--config", str(file), cwd=Path("/"))
    assert (said.returncode, said.stdout, said.stderr) == (0, f"{program}: the configuration is good\n", "")


# -- which counts -------------------------------------------------------------------------------------------------


def test_order(tmp_path: Path) -> None:
    """The command line counts before the environment, that before the file, and the file before the default."""
    file = tmp_path / "mesh.toml"
    file.write_text('name = "File"\nport = 1\nkeep-messages = 1\nadvertise = "http://file:1/"\n')

    class Options(UserOptions):
        environ = {"MESH_CONFIG": str(file), "PORT": "2", "MESH_KEEP_MESSAGES": "2", "MESH_SEEDS": "a:1,b:2"}  # noqa: RUF012

    options = Options()
    options.parse(["--keep-messages", "3"])
    found = [options[option] for option in ("name", "port", "keep-messages", "advertise", "seed", "accept")]
    assert found == ["File", 2, 3, "http://file:1", ["a:1", "b:2"], "anyone"]


def test_from_another_folder(tmp_path: Path) -> None:
    """Relative paths are relative to the file, whose own path is relative to where the program is started."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "mesh.toml").write_text('name = "UserX"\nstate = "state"\naccept = "friends.txt"\n')
    (tmp_path / "etc" / "friends.txt").write_text("Bobby\n")
    assert checked("meshuser", "-c", "etc/mesh.toml", cwd=tmp_path).returncode == 0
    options = UserOptions()
    options.parse(["-c", str(tmp_path / "etc" / "mesh.toml")])
    assert options["state"] == tmp_path / "etc" / "state"


@pytest.mark.parametrize(
    ("program", "text", "says"),
    [
        ("meshuser", "prot = 3000", "FILE: line 1: prot: there is no such setting: did you mean port?"),
        ("meshuser", "check = true", "FILE: line 1: check: there is no such setting"),
        ("meshuser", 'name = "a b"', "FILE: line 1: name: 'a b' is not a name: "),
        ("meshuser", "port = 70000", "FILE: line 1: port: '70000' is not a port: "),
        ("meshuser", "port = 3000.5", "FILE: line 1: port: '3000.5' is not a port: "),
        ("meshuser", "keep-days = nan", "FILE: line 1: keep-days: 'nan' is no number of days"),
        ("meshuser", '\n\nseed = ["a:1", "b"]', "FILE: line 3: seed: 'b' is not HOST:PORT"),
        ("meshuser", 'listen = "ssl:0:privateKey=k:certKey=c"', "FILE: line 1: listen: FOLDER/c: No such file"),
        ("meshuser", 'listen = "tcp:3000"', "tcp:3000 does not say what others should dial: give --advertise too"),
        ("meshuser", 'accept = "friends.txt"', "FOLDER/friends.txt cannot be read: No such file or directory"),
        ("meshuser", 'register-token = "token"', "FOLDER/token cannot be used: No such file or directory"),
        ("meshuser", 'ca = "ca.pem"', "FOLDER/ca.pem cannot be read: No such file or directory"),
        ("meshseed", 'mesh-key = "mesh.key"', "FOLDER/mesh.key cannot be used: No such file or directory"),
        ("meshseed", 'register = "names.txt"', "FOLDER/names.txt cannot be read: No such file or directory"),
        ("meshseed", "names = maybe", "FILE: it is no TOML: Invalid value (at line 1, column 9)"),
        ("meshseed", 'http = "systemd:name=x"', "FILE: line 1: http: a socket of systemd's is written systemd:domain="),
        ("meshseed", None, "FILE cannot be read: No such file or directory"),
    ],
)
def test_check(program: str, text: str | None, says: str, tmp_path: Path) -> None:
    """What is wrong is said in one line and nothing else, on standard error, with exit code 1."""
    file = tmp_path / "mesh.toml"
    if text is not None:
        file.write_text(text)
    more = {"USER_NAME": "UserX"} if program == "meshuser" and "name" not in (text or "") else {}
    said = checked(program, "--config", str(file), cwd=tmp_path, **more)
    assert (said.returncode, said.stdout) == (1, "")
    line = f"{program}: {says}".replace("FILE", str(file)).replace("FOLDER", str(tmp_path))
    assert said.stderr.startswith(line), said.stderr
    assert said.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == ([file] if text is not None else [])  # nothing is made


# -- SIGHUP -------------------------------------------------------------------------------------------------------


def test_reloaded_without_dropping_anybody(children: Children, tmp_path: Path) -> None:
    """The list of seeds, who may write, and what is kept are taken up; the rest is named; the connection to the seed
    stays; and a file that does not read changes nothing."""
    seed = children.start("meshseed", "seedX")
    file = tmp_path / "mesh.toml"
    file.write_text(f'seed = ["{seed}"]\n')
    url = children.start("meshuser", "UserX", "--config", str(file))
    bobs = children.start("meshuser", "Bobby", "--seed", seed)
    node, child = Node(url, timeout_s=TIMEOUT_S), children.all["UserX"]
    for one in (node, Node(bobs, timeout_s=TIMEOUT_S)):
        until(lambda one=one: one.status().document["registered"] or None, "it is registered", TIMEOUT_S)  # type: ignore[misc]
    (tmp_path / "friends.txt").write_text("Eve\n")
    changed = f'seed = ["{seed}", "localhost:1"]\naccept = "friends.txt"\nkeep-messages = 5\nlisten = "tcp:1"\n'
    file.write_text(changed)
    log = hang_up(child, "needs a restart")
    assert "reloaded: seed, keep-messages, accept, the files that the options name" in log
    assert "listen has changed: that needs a restart" in log
    assert "lost the home seed" not in child.log.read_text()
    assert child.log.read_text().count("is registered at") == 1
    answer = Node(bobs, timeout_s=TIMEOUT_S).send("UserX", "may I?", wait_s=5).document
    assert (answer["status"], "may not write" in answer["reason"]) == ("queued", True)
    file.write_text(changed.replace("accept", "acept"))
    log = hang_up(child, "nothing is reloaded")
    assert f"{file}: line 2: acept: there is no such setting: did you mean accept?" in log
    file.write_text(f'seed = ["{seed}"]\naccept = "nowhere.txt"\n')
    assert "nowhere.txt cannot be read" in hang_up(child, "nothing is reloaded")
    file.write_text(f'seed = ["{seed}"]\nport = "x"\n')
    assert "line 2: port: it is a number" in hang_up(child, "nothing is reloaded")
    file.write_text(f'seed = ["{seed}"]\n')
    hang_up(child, "reloaded: seed, keep-messages, accept")
    assert node.status().document["registered"]
    Node(bobs, timeout_s=TIMEOUT_S).send("UserX", "now?", wait_s=5)
    came = until(lambda: node.inbox().document["messages"][1:] or None, "what waited has come, too", TIMEOUT_S)
    assert [message["message"] for message in came] == ["now?"]


def test_the_mesh_key_is_changed_without_a_restart(children: Children, tmp_path: Path) -> None:
    """A key that is added counts at once; a file that others can read does not; and that there is a key at all is not
    changed in passing."""
    mine, theirs = secret(tmp_path / "x.key", KEY), secret(tmp_path / "y.key", OTHER_KEY)
    (tmp_path / "x.toml").write_text('mesh-key = "x.key"\nnames = true\n')
    seed_x = children.start("meshseed", "seedX", "--config", str(tmp_path / "x.toml"))
    children.start("meshseed", "seedY", "--mesh-key", str(theirs), "--peer", seed_x)
    until(lambda: "does not prove" in children.all["seedY"].log.read_text() or None, "the keys differ", TIMEOUT_S)
    secret(mine, f"{OTHER_KEY}\n{KEY}\n")
    hang_up(children.all["seedX"], "reloaded")
    until(lambda: "answers again" in children.all["seedY"].log.read_text() or None, "they have met", TIMEOUT_S)
    mine.chmod(0o644)
    assert "others can read" in hang_up(children.all["seedX"], "nothing is reloaded")
    mine.chmod(0o600)
    (tmp_path / "x.toml").write_text("names = false\n")
    assert "reloaded: names" in hang_up(children.all["seedX"], "mesh-key has changed: that needs a restart")


def test_another_certificate(children: Children, tmp_path: Path) -> None:
    """A seed takes up a renewed certificate at once; a node whose `ca` is another file then registers there."""
    old, new = trustme.CA(), trustme.CA()

    def issue(authority: trustme.CA) -> None:
        issued = authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(tmp_path / "key.pem")
        issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")

    issue(old)
    new.cert_pem.write_to_path(tmp_path / "ca.pem")
    listen = f"ssl:0:interface=127.0.0.1:privateKey={tmp_path}/key.pem:certKey={tmp_path}/cert.pem"
    where = children.start("meshseed", "seedX", "--listen", listen)
    port = where.rpartition(":")[2]
    (tmp_path / "u.toml").write_text(f'seed = ["tls:localhost:{port}"]\nca = "ca.pem"\n')
    url = children.start("meshuser", "UserX", "--config", str(tmp_path / "u.toml"))

    def problem() -> Any:
        return Node(url, timeout_s=TIMEOUT_S).status().document["problem"]

    until(lambda: "nobody who is trusted" in (problem() or "") or None, "it does not trust the seed", TIMEOUT_S)
    issue(new)
    hang_up(children.all["seedX"], "reloaded")
    until(lambda: Node(url, timeout_s=TIMEOUT_S).status().document["registered"] or None, "it does", TIMEOUT_S)
    old.cert_pem.write_to_path(tmp_path / "ca.pem")
    hang_up(children.all["UserX"], "reloaded")
    (tmp_path / "cert.pem").write_text("nonsense")
    assert "cert.pem does not read" in hang_up(children.all["seedX"], "nothing is reloaded")
    assert Node(url, timeout_s=TIMEOUT_S).status().document["registered"]  # who is there stays
    children.stop("UserX")
    url = children.start("meshuser", "UserX", "--config", str(tmp_path / "u.toml"))
    until(lambda: "nobody who is trusted" in (problem() or "") or None, "it trusts the other alone", TIMEOUT_S)


def test_the_register_token(children: Children, tmp_path: Path) -> None:
    """A seed that has made a new one, and a node that is given it, register without a restart."""
    where = children.start("meshseed", "seedX", "--register", "token")
    made = children.all["seedX"].state / "register-token"
    mine = secret(tmp_path / "token", OTHER_KEY)
    url = children.start("meshuser", "UserX", "--seed", where, "--register-token", str(mine))

    def status() -> Any:
        return Node(url, timeout_s=TIMEOUT_S).status().document

    until(lambda: "another register token" in (status()["problem"] or "") or None, "it has the wrong one", TIMEOUT_S)
    made.unlink()
    hang_up(children.all["seedX"], "reloaded")
    secret(mine, made.read_text())
    hang_up(children.all["UserX"], "reloaded")
    until(lambda: status()["registered"] or None, "it is registered", TIMEOUT_S)
