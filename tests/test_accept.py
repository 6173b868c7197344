"""Real nodes: the list of those who may write, edited while the node runs; and keys that are old at the start."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshproto.cli.processes import TWISTD, Children, until
from meshproto.client.node import Node
from meshproto.core.identity import Identity
from meshproto.net.names_file import LOOK_S
from meshproto.net.state import KEY_FILE

TIMEOUT_S = 20.0
DAY_MS = 86_400_000


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as children:
        yield children


def start(children: Children, name: str, seed: str, *options: str) -> Node:
    node = Node(children.start("meshuser", name, "--seed", seed, *options), timeout_s=TIMEOUT_S)
    until(lambda: node.status().document["registered"] or None, f"{name} is registered")
    return node


def texts(node: Node) -> list[Any]:
    return [message["message"] for message in node.inbox(after=0, limit=1000).document["messages"]]


def test_the_list_is_edited_while_the_node_runs(children: Children, tmp_path: Path) -> None:
    """Whoever is not on it is told so, verbatim, and what they sent arrives when they are on it."""
    friends = tmp_path / "friends.txt"
    friends.write_text("# nobody yet\n")
    seed = children.start("meshseed", "seedX")
    userx, bobby = start(children, "UserX", seed, "--accept", str(friends)), start(children, "Bobby", seed)
    refused = bobby.send("UserX", "let me in", wait_s=2).document
    assert refused["status"] == "queued"
    assert "Bobby may not write to this node" in refused["reason"]
    assert texts(userx) == []
    friends.write_text("Bobby\n")
    until(lambda: texts(userx) or None, "Bobby's message is there", TIMEOUT_S + LOOK_S)
    assert texts(userx) == ["let me in"]


def test_a_list_that_does_not_read_ends_the_start(tmp_path: Path) -> None:
    """One line says which file, and which line of it."""
    friends = tmp_path / "friends.txt"
    friends.write_text("Bobby\nno name\n")
    command = [*TWISTD, "-n", "--pidfile=", "meshuser", "--name", "UserX", "--port", "0"]
    options = ["--state", str(tmp_path / "state"), "--accept", str(friends)]
    ended = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"meshuser: {friends}: line 2: 'no name' is neither a name nor NAME~FINGERPRINT")
    assert ended.stderr.count("\n") == 1


def test_keys_that_are_old_at_the_start(children: Children, tmp_path: Path) -> None:
    """They get one new mail key, which is on disk, readable by the owner alone, and what the seed tells."""
    seed = children.start("meshseed", "seedX")
    start(children, "UserX", seed)
    children.stop("UserX")
    path = tmp_path / "UserX" / KEY_FILE
    before = Identity.load(path.read_bytes())
    path.write_bytes(Identity(before.signing, before.mail_keys, (before.made_at_ms[0] - 7 * DAY_MS,)).dump())
    node = start(children, "UserX", seed)
    after = Identity.load(path.read_bytes())
    assert after.key == before.key
    assert after.mail_keys[1:] == before.mail_keys
    assert path.stat().st_mode & 0o777 == 0o600
    record = json.loads(node.lookup("UserX").document["record"])
    assert record["seq"] > 0
    assert record["mail"] == after.sign("UserX", [], 0).record.partition('"mail":"')[2].partition('"')[0]
    assert node.send("UserX", "to myself").document["status"] == "delivered"
