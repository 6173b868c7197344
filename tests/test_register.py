"""Who may register at a seed, with real processes; and what a seed says to those who speak otherwise."""

import socket
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from meshproto.cli.processes import Children, until
from meshproto.client.node import Node
from meshproto.errors import BadState
from meshproto.net.names_file import LOOK_S, NamesFile
from tests.test_plugin import TIMEOUT_S, twistd


def problem(url: str) -> str | None:
    """Why the node is not registered; None while it is not known."""
    told = Node(url, timeout_s=TIMEOUT_S).status().document
    return "registered" if told["registered"] else told["problem"]


def test_a_token(tmp_path: Path) -> None:
    """The seed makes a token that its owner alone can read; a node with it is registered, one without is told what is
    missing, and no log has it."""
    with Children(tmp_path) as children:
        seed = children.start("meshseed", "seedX", "--register", "token")
        token = children.all["seedX"].state / "register-token"
        assert token.stat().st_mode & 0o777 == 0o600
        known = children.start("meshuser", "UserX", "--seed", seed, "--register-token", str(token))
        stranger = children.start("meshuser", "Eve", "--seed", seed)
        assert until(lambda: problem(known), "UserX is registered") == "registered"
        assert "--register-token" in str(until(lambda: problem(stranger), "Eve is not"))
        secret = token.read_text().strip()
        assert not [child.name for child in children.all.values() if secret in child.log.read_text()]


def test_a_list(tmp_path: Path) -> None:
    """Who is on it is registered, others are not."""
    names = tmp_path / "names"
    names.write_text("UserX  # and nobody else\n")
    with Children(tmp_path) as children:
        seed = children.start("meshseed", "seedX", "--register", str(names))
        known = children.start("meshuser", "UserX", "--seed", seed)
        stranger = children.start("meshuser", "Eve", "--seed", seed)
        assert until(lambda: problem(known), "UserX is registered") == "registered"
        assert "not on this seed's list" in str(until(lambda: problem(stranger), "Eve is not"))


def test_a_list_that_does_not_read(tmp_path: Path) -> None:
    """One clear line with the number of the line, and exit code 1."""
    names = tmp_path / "names"
    names.write_text("UserX\na b\n")
    ended = twistd("meshseed", "--port", "0", "--state", str(tmp_path / "s"), "--register", str(names), cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"meshseed: {names}: line 2:")


def test_a_list_that_changes(tmp_path: Path) -> None:
    """It is read again when it has changed, after LOOK_S; a broken one, or none, changes nothing."""
    names, clock = tmp_path / "names", Clock()
    with pytest.raises(BadState, match="No such file"):
        NamesFile(names, clock)
    names.write_text("UserX\n")
    listed = NamesFile(names, clock)
    names.write_text("Bobby\n# longer\n")
    assert listed.allow("UserX", b"")
    clock.advance(LOOK_S)
    assert (listed.allow("UserX", b""), listed.allow("Bobby", b"")) == (False, True)
    names.write_text("not a name\n")
    clock.advance(LOOK_S)
    assert listed.allow("Bobby", b"")
    names.unlink()
    clock.advance(LOOK_S)
    assert listed.allow("Bobby", b"")
    names.write_text("UserX\n")
    clock.advance(LOOK_S)
    assert listed.allow("UserX", b"")


@pytest.mark.parametrize(
    ("says", "hears"),
    [(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"), (b"\x16\x03\x01", b'{"jsonrpc"')],
    ids=["http", "tls"],
)
def test_another_protocol(says: bytes, hears: bytes, tmp_path: Path) -> None:
    """Over a real socket: an answer that its sender's user can read, and the end of the connection."""
    with Children(tmp_path) as children:
        host, port = children.start("meshseed", "seedX").rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
            connection.sendall(says)
            with connection.makefile("rb") as answer:
                assert answer.read().startswith(hears)
