"""Two machines on one network, and no address typed anywhere: real nodes, real multicast, in network namespaces of
their own."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest

from meshproto.cli.processes import TWISTD, until
from tests.docs_support import ON_TWO_MACHINES, matches, steps

ROOT = Path(__file__).parent.parent
DEADLINE_S = 60.0
SETTINGS = ("USER_NAME", "PORT", "MESH_", "XDG_STATE_HOME")


class Machine:
    """A network and a host name of its own, for as long as a process in it lives."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._directory = directory / name
        self._directory.mkdir()
        self._holder = subprocess.Popen(
            ["unshare", "-n", "-u", "sh", "-c", f"hostname {name} && ip link set lo up && echo up && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        assert self._holder.stdout is not None
        self.works = self._holder.stdout.readline() == b"up\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._nodes.values():
            node.terminate()
        self._holder.communicate()
        for kind, node in self._nodes.items():  # all of them are told to end before one is found wanting
            self._ends(kind, node)

    @property
    def network(self) -> str:
        return str(self._holder.pid)

    def run(self, *command: str) -> str:
        done = subprocess.run(self._inside(*command), capture_output=True, text=True, timeout=DEADLINE_S, check=True)
        return done.stdout

    def curl(self, path: str, *more: str, host: str = "localhost") -> Any:
        """What the node of this machine answers, None when it does not."""
        command = self._inside("curl", "-sS", "--noproxy", "*", f"http://{host}:3000{path}", *more)
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def has_both_seeds(self) -> bool:
        """Whether the seed of this machine knows the other one, and finds it alive."""
        asked = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "seeds"})
        answer = json.loads(self.run("sh", "-c", f"echo '{asked}' | nc -w 1 localhost 5001"))
        alive = {seed["name"] for seed in answer["result"]["seeds"] if seed["alive"]}
        return alive == {"seed-here-5001", "seed-there-5001"}

    def start(self, kind: str, *options: str) -> None:
        environ = {key: text for key, text in os.environ.items() if not key.startswith(SETTINGS)}
        environ |= {"HOME": str(self._directory), "PYTHONPATH": str(ROOT)}
        command = self._inside(*TWISTD, "-n", "--pidfile=", kind, *options)
        with self.log(kind).open("wb") as log:
            self._nodes[kind] = subprocess.Popen(command, cwd=self._directory, env=environ, stdout=log, stderr=log)

    def stop(self, kind: str) -> None:
        node = self._nodes.pop(kind)
        node.terminate()
        self._ends(kind, node)

    def _ends(self, kind: str, node: "subprocess.Popen[bytes]") -> None:
        node.wait(DEADLINE_S)
        assert "Traceback" not in self.log(kind).read_text()

    def log(self, kind: str) -> Path:
        return self._directory / f"{kind}.log"

    def says(self, kind: str, text: str) -> bool:
        return text in self.log(kind).read_text()

    def logs(self, kind: str, line: str) -> bool:
        """Whether a line of the log is as a document shows it."""
        return any(matches((line,), said) for said in self.log(kind).read_text().splitlines())

    def is_at(self, host: str) -> bool:
        """Whether its user is registered, and advertises this address."""
        status = self.curl("/status") or {}
        return bool(status.get("registered")) and status["uris"] == [f"http://{host}:3000"]

    def send(self, to: str, text: str) -> str:
        sent = self.curl("/send", "-d", json.dumps({"to": to, "message": text, "wait": 20}))
        return str(sent.get("status") or sent)

    def _inside(self, *command: str) -> list[str]:
        return ["nsenter", "-t", self.network, "-n", "-u", "--", *command]


def wait(what: str, true: Callable[[], bool]) -> None:
    until(lambda: true() or None, what, DEADLINE_S)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two with a cable between them."""
    missing = [tool for tool in ("unshare", "nsenter", "ip", "curl", "nc") if shutil.which(tool) is None]
    if missing or sys.platform != "linux":
        pytest.skip(f"no network of one's own can be made here: {', '.join(missing) or 'this is not Linux'}")
    with Machine("here", tmp_path) as here, Machine("there", tmp_path) as there:
        if not (here.works and there.works):
            pytest.skip("no network of one's own can be made here: unshare is not permitted")
        here.run("ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", there.network)
        for machine, address in ((here, "192.168.77.1/24"), (there, "192.168.77.2/24")):
            machine.run("ip", "addr", "add", address, "dev", "cable")
            machine.run("ip", "link", "set", "cable", "up")
        yield here, there


def test_two_machines_find_each_other(machines: tuple[Machine, Machine]) -> None:
    """A seed and a user on each, started with --lan and a name. Each user is registered, and advertises the address at
    which the other machine reaches it, where the owner's part is not. When a seed is stopped, its user moves to the
    other one; when a machine gets another address, its user is found there."""
    here, there = machines
    for machine, user in ((here, "UserX"), (there, "Bobby")):
        machine.start("meshseed", "--lan")
        machine.start("meshuser", "--lan", "--name", user)
    wait("UserX is registered", partial(here.is_at, "192.168.77.1"))
    wait("Bobby is registered", partial(there.is_at, "192.168.77.2"))
    for machine in machines:
        wait("the seeds know each other", machine.has_both_seeds)
    assert here.send("Bobby", "Hello Bobby") == "delivered"
    assert there.send("UserX", "Hello UserX") == "delivered"
    assert there.curl("/inbox", host="192.168.77.1")["status"] == 404
    assert there.curl("/healthz", host="192.168.77.1") is not None

    there.stop("meshseed")
    wait("it has taken its leave", lambda: here.says("meshseed", "seeds on the local network: none"))
    wait("Bobby is at the other seed", lambda: (there.curl("/status")["home"] or {}).get("name") == "seed-here-5001")
    assert here.send("Bobby", "Still there?") == "delivered"

    there.run("ip", "addr", "del", "192.168.77.2/24", "dev", "cable")
    there.run("ip", "addr", "add", "192.168.77.3/24", "dev", "cable")
    wait(
        "Bobby is found at the new address", lambda: here.curl("/lookup/Bobby")["uris"] == ["http://192.168.77.3:3000"]
    )
    assert here.send("Bobby", "And there?") == "delivered"
    texts = [message["message"] for message in there.curl("/inbox")["messages"]]
    assert texts == ["Hello Bobby", "Still there?", "And there?"]


def test_the_how_to(machines: tuple[Machine, Machine]) -> None:
    """What docs/howto/local-network.md shows, typed on two machines as it says."""
    named = {machine.name: machine for machine in machines}
    machine = machines[0]
    for step in steps(ON_TWO_MACHINES):
        if step.verb == "on":
            machine = named[step.text]
        elif step.text.startswith("twistd "):
            kind, *options = step.text.removeprefix("twistd -n --pidfile= ").split()
            machine.start(kind, *options)
            for line in step.expected:
                wait(f"{step.where}: {kind} logs {line}", partial(machine.logs, kind, line))
        else:
            printed = machine.run(*shlex.split(step.text), "--no-progress-meter")
            assert matches(step.expected, printed), f"{step.where}: {printed}"


def test_a_mesh_key_keeps_others_out(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    """A seed without the key is found by users, and gossips with nobody: the seeds do not even try each other."""
    here, there = machines
    key = tmp_path / "mesh.key"
    key.write_text("a key of sixteen characters\n")
    key.chmod(0o600)
    here.start("meshseed", "--lan", "--mesh-key", str(key))
    there.start("meshseed", "--lan", "--name", "liar")
    here.start("meshuser", "--lan", "--name", "UserX")
    wait("UserX finds both", lambda: here.says("meshuser", "192.168.77.1:5001") and here.says("meshuser", ".2:5001"))
    wait("UserX is registered", partial(here.is_at, "192.168.77.1"))
    for machine in machines:
        assert not machine.says("meshseed", "seeds on the local network")
        assert not machine.says("meshseed", "does not answer")
