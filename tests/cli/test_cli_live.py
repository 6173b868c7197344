"""The command on the files of a real node that is busy."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

from meshproto.cli.processes import Children, until
from meshproto.client.errors import Problem
from meshproto.client.node import Node
from meshproto.net.backup import findings, read_database

MESH = str(Path(sys.executable).parent / "mesh")
SOME = 200  # messages at a time
WAIT_S = 120.0


def node_of(nodes: Children, name: str) -> Node:
    address = nodes.all[name].address()
    assert address is not None
    return Node(address)


def is_online(node: Node, name: str) -> bool | None:
    """Whether the node finds them."""
    try:
        return node.lookup(name).document["online"] or None
    except Problem:
        return None


def received(node: Node) -> int:
    return int(node.status().document["inbox"]["messages"])


def mesh(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MESH, *arguments], capture_output=True, text=True, check=True, timeout=WAIT_S)


def is_prefix(texts: list[object]) -> bool:
    """What was sent first, in order, without a gap: one moment of the inbox."""
    return texts == [f"line {number}" for number in range(len(texts))]


class Sender:
    """Has one node send to UserX for as long as it is in use, some messages at a time."""

    def __init__(self, bobby: Node, userx: Node) -> None:
        self._userx = userx
        command = [MESH, "--node", bobby.url, "send", "--bulk", "-", "--to", "UserX"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        self._enough.set()
        self._thread.join(WAIT_S)
        assert self._process.wait(WAIT_S) == 0

    def _send(self) -> None:
        assert self._process.stdin is not None
        with self._process.stdin as pipe:
            sent = 0
            while not self._enough.is_set():
                pipe.write(b"".join(b'{"message":"line %d"}\n' % number for number in range(sent, sent + SOME)))
                pipe.flush()
                sent += SOME
                until(partial(self._came, sent), "they come in", WAIT_S)

    def _came(self, sent: int) -> bool | None:
        return received(self._userx) >= sent or None


def test_copies_of_a_busy_node(nodes: Children, tmp_path: Path) -> None:
    """Each backup and each export is of one moment, whole, and made while messages come in; a backup that is put in the
    state directory's place is that node again."""
    userx, bobby = node_of(nodes, "UserX"), node_of(nodes, "Bobby")
    until(lambda: userx.status().document["registered"] or None, "UserX is registered", WAIT_S)
    until(partial(is_online, bobby, "UserX"), "Bobby finds UserX", WAIT_S)
    state = nodes.all["UserX"].state
    held = []
    with Sender(bobby, userx):
        until(lambda: received(userx) >= SOME or None, "messages come in", WAIT_S)
        for number in range(3):
            mesh("backup", str(tmp_path / f"copy{number}"), "--state", str(state))
            mesh("export", str(tmp_path / f"export{number}"), "--state", str(state), "--identity")
            held.append(received(userx))
    assert held[0] < held[1] < held[2], "the node was not busy"
    for number in range(3):
        database = tmp_path / f"copy{number}" / "user.db"
        assert findings(database) == []
        with closing(read_database(database)) as connection:
            texts = [json.loads(text) for (text,) in connection.execute("SELECT message FROM inbox ORDER BY cursor")]
        assert is_prefix(texts)
        exported = [json.loads(line) for line in (tmp_path / f"export{number}").read_text().splitlines()]
        assert exported[-1] == {"kind": "end", "lines": len(exported)}
        assert is_prefix([line["message"] for line in exported if line["kind"] == "in"])
        assert len(texts) >= SOME

    nodes.stop("UserX")
    state.rename(tmp_path / "away")
    shutil.copytree(tmp_path / "copy0", state)  # keeps the modes
    nodes.start("meshuser", "UserX", "--seed", str(nodes.all["seedX"].address()))
    again = node_of(nodes, "UserX")
    assert again.status().document["fingerprint"] == userx_print(tmp_path / "export0", again)
    assert received(again) >= SOME
    until(partial(is_online, bobby, "UserX"), "UserX is back", WAIT_S)
    assert bobby.send("UserX", "after the restore").document["status"] == "delivered"


def userx_print(export: Path, node: Node) -> str:
    """The fingerprint of the keys in an export, as a node that takes it over has it."""
    state = export.with_name("taken-over")
    mesh("import", str(export), "--state", str(state))
    found = mesh("--node", node.url, "doctor", "--state", str(state), "--json").stdout.splitlines()
    (keys,) = [line for line in map(json.loads, found) if line["about"] == "keys"]
    assert keys["level"] == "ok"
    return str(keys["text"]).removeprefix("those of ")


def test_following_a_node_that_is_killed(nodes: Children, tmp_path: Path) -> None:
    """What `mesh inbox --follow` prints over a kill -9 and a restart is every message, once, in order."""
    userx, bobby = node_of(nodes, "UserX"), node_of(nodes, "Bobby")
    until(partial(is_online, bobby, "UserX"), "Bobby finds UserX", WAIT_S)
    shown, port = tmp_path / "shown.ndjson", int(userx.url.rpartition(":")[2])
    with shown.open("wb") as output:
        command = [MESH, "--node", userx.url, "inbox", "--follow", "--json"]
        following = subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE)

        def has_shown(count: int) -> bool | None:
            return shown.read_bytes().count(b"\n") >= count or None

        for number in range(SOME):
            bobby.send("UserX", number, wait_s=0)
            if number == SOME // 2:
                until(partial(has_shown, 1), "some of it is shown", WAIT_S)
                nodes.all["UserX"].process.kill()
                nodes.all["UserX"].process.wait(WAIT_S)
        nodes.start("meshuser", "UserX", "--seed", str(nodes.all["seedX"].address()), port=port)
        until(partial(has_shown, SOME), "all of it is shown", WAIT_S)
        following.send_signal(signal.SIGINT)
        _, notices = following.communicate(timeout=WAIT_S)
    messages = [json.loads(line) for line in shown.read_text().splitlines()]
    assert [message["message"] for message in messages] == list(range(SOME))
    assert [message["cursor"] for message in messages] == list(range(1, SOME + 1))
    assert notices.count(b"Trying again") == notices.count(b"The node is back") == 1
