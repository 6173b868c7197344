"""What the logs say: with real processes, in both formats, from the first line to the last."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import LogEvent, formatEventAsClassicLogText, globalLogPublisher

from meshproto.cli.processes import TWISTD, Children, until
from meshproto.client.node import Node
from meshproto.net.json_log import json_line
from tests.world import World

TEXT = "the-text-of-a-message-that-nobody-else-may-read"
BROKEN = "a-text-in-json-that-is-none"
GUESSED = "a-token-that-somebody-has-guessed"
FORGED = "2026-11-28T00:00:00+0000 [-] FORGED"
HOSTILE = f"\r\n{FORGED}\x1b[2J\u2028\u202e"
FORMATS = ["text", "json"]
_CLASSIC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[[^\]]+\] ")


def ask(url: str, body: bytes | None = None, **headers: str) -> int:
    """The status of whatever is answered."""
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def check_lines(log: str, form: str) -> list[dict[str, Any]]:
    """Each is of its format, and none is forged."""
    if form == "json":
        lines = [json.loads(line) for line in log.splitlines()]
        assert log.isascii() and all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
        return lines
    for line in log.split("\n")[:-1]:
        assert _CLASSIC.match(line) or line.startswith("\t"), line
        assert line.replace("\t", "").isprintable(), line
        assert not line.startswith(FORGED)
    return []


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as children:
        yield children


@pytest.mark.parametrize("form", FORMATS)
def test_no_secret_is_in_a_log(children: Children, tmp_path: Path, form: str) -> None:
    """Neither what messages say, nor tokens, nor keys: when all goes well, when requests are broken, when strangers
    try, and when a node is away; every message's way is there, by its id, at both nodes."""
    mesh_key = tmp_path / "mesh.key"
    mesh_key.write_text(secrets.token_urlsafe(24))
    mesh_key.chmod(0o600)
    shown = ("--log-format", form)
    seed = children.start("meshseed", "seedX", "--register", "token", "--mesh-key", str(mesh_key), *shown)
    token = tmp_path / "seedX" / "register-token"
    user = ("--seed", seed, "--register-token", str(token), "--log-messages", "yes", *shown)
    open_ = ("--listen", "tcp:0", "--advertise", "http://127.0.0.1:1")
    url = children.start("meshuser", "UserX", *user)
    bobby = children.start("meshuser", "Bobby", *user)
    guarded = children.start("meshuser", "Carla", *open_, *user)
    for one in (url, bobby):
        until(lambda one=one: Node(one).status().document["registered"] or None, "it is registered")  # type: ignore[misc]
    assert Node(url).send("Bobby", TEXT, message_id="way-1").document["status"] == "delivered"
    owners = (tmp_path / "Carla" / "token").read_text().strip()
    assert ask(f"{guarded}/send", json.dumps({"to": "Carla", "message": TEXT, "wait": 0}).encode()) == 401
    assert ask(f"{guarded}/status", Authorization=f"Bearer {GUESSED}") == 401
    assert ask(f"{guarded}/metrics", Authorization=f"Bearer {owners}") == 200
    for body in (
        f'{{"to": "Bobby", "message": "{BROKEN}',
        f'{{"to": 7, "message": "{BROKEN}"}}',
        BROKEN,
        f'["{BROKEN}"]',
    ):
        assert ask(f"{url}/send", body.encode()) == 400
        assert ask(f"{url}/deliver", body.encode()) == 400
    assert ask(f"{url}/send/Bobby", BROKEN.encode() + b"\xff") == 400
    assert ask(f"{url}/send/{BROKEN.upper()}~x", TEXT.encode()) == 400
    children.stop("Bobby")
    assert Node(url).send("Bobby", TEXT, message_id="way-2", wait_s=0).document["status"] == "queued"
    until(lambda: Node(url).outbox().document["recipients"][0]["attempts"] or None, "it was tried")
    for name in ("UserX", "Carla", "seedX"):
        children.stop(name)
    files = [tmp_path / name / "keys.json" for name in ("UserX", "Bobby")]
    keys = [key for file in files for key in _strings(json.loads(file.read_text()))]
    hidden = [TEXT, BROKEN, GUESSED, owners, token.read_text().strip(), mesh_key.read_text(), *keys]
    assert len(keys) == 4  # an identity key and a mail key each
    logs = {name: (tmp_path / f"{name}.log").read_text() for name in ("seedX", "UserX", "Bobby", "Carla")}
    for name, log in logs.items():
        lines = check_lines(log, form)
        assert [secret for secret in hidden if secret in log] == [], name
        if form == "json":
            assert lines[0]["message"].startswith("twistd") and lines[-1]["message"] == "Server Shut Down."
    assert ("accepted way-1" in logs["UserX"], "delivered way-1 for Bobby" in logs["UserX"]) == (True, True)
    assert "received way-1 from UserX~" in logs["Bobby"] and "accepted way-2" in logs["UserX"]


def _strings(value: Any) -> list[str]:
    """Long ones: keys, not names."""
    if isinstance(value, dict):
        return [found for one in value.values() for found in _strings(one)]
    if isinstance(value, list):
        return [found for one in value for found in _strings(one)]
    return [value] if isinstance(value, str) and len(value) >= 32 else []


class HostileSeed(threading.Thread):
    """Answers every line with an error that would be a line of the log."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with suppress(ConnectionError), connection, connection.makefile("rwb") as lines:
                for line in lines:
                    error = {"code": 400, "message": HOSTILE, "data": {"detail": HOSTILE}}
                    answer = {"jsonrpc": "2.0", "id": json.loads(line).get("id"), "error": error}
                    lines.write(json.dumps(answer).encode() + b"\n")
                    lines.flush()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.mark.parametrize("form", FORMATS)
def test_nobody_forges_a_line(children: Children, tmp_path: Path, form: str) -> None:
    """What a seed says, and what the id of a message says, stays within its line and moves no cursor."""
    hostile = HostileSeed()
    hostile.start()
    seed = children.start("meshseed", "seedX", "--log-format", form)
    options = ("--seed", seed, "--log-messages", "yes", "--log-format", form)
    url = children.start("meshuser", "UserX", *options)
    until(lambda: Node(url).status().document["registered"] or None, "it is registered")
    assert Node(url).send("UserX", "hello", message_id=f"id{HOSTILE}").document["status"] == "delivered"
    lost = children.start("meshuser", "Lost", "--seed", hostile.address, "--log-format", form)
    until(lambda: "FORGED" in (Node(lost).status().document["problem"] or "") or None, "it has heard the seed")
    with socket.create_connection(seed.rsplit(":", 1)) as connection:  # type: ignore[arg-type]
        connection.sendall(f"GET /{FORGED} HTTP/1.1\r\n{HOSTILE}\r\n\r\n".encode())
        connection.recv(1000)
    for name in ("UserX", "Lost", "seedX"):
        children.stop(name)
    hostile.close()
    logs = {name: (tmp_path / f"{name}.log").read_text() for name in ("UserX", "Lost", "seedX")}
    for log in logs.values():
        check_lines(log, form)
    assert logs["UserX"].count("FORGED") >= 3 and "FORGED" in logs["Lost"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_bug_tells_where_it_is_and_not_of_what(
    form: str, monkeypatch: pytest.MonkeyPatch, nothing_logged_as_failure: list[LogEvent]
) -> None:
    """An exception in the middle of a request has its traceback in the log, without what the code had in its hands."""
    world = World(4)
    world.add_seed("seedX")
    world.add_user("UserX", ["seedX"])
    world.run_until(world.registered)
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        lines.append(json_line(event) if form == "json" else formatEventAsClassicLogText(event) or "")

    def broken(*_: object, **__: object) -> None:
        text_in_hand = TEXT
        raise RuntimeError(f"it went wrong after {len(text_in_hand)} characters")

    monkeypatch.setattr("meshproto.net.accepting.Accepting.send", broken)
    globalLogPublisher.addObserver(observe)  # type: ignore[arg-type]
    try:
        assert world.send("UserX", "UserX", TEXT).code == 500
    finally:
        globalLogPublisher.removeObserver(observe)  # type: ignore[arg-type]
    log = "".join(lines)
    assert "RuntimeError: it went wrong after" in log and TEXT not in log
    nothing_logged_as_failure.clear()
    world.close()


def test_a_daemon_logs_to_its_file(tmp_path: Path) -> None:
    """Without -n, from twistd's first line on; SIGUSR1 opens it anew when it was moved away."""
    log, state = tmp_path / "seed.log", tmp_path / "state"
    arguments = ("--logfile", str(log), "--pidfile", str(tmp_path / "pid"), "meshseed", "--name", "seedX")
    command = [*TWISTD, *arguments, "--port", "0", "--state", str(state), "--log-format", "json"]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=20)
    until(lambda: (state / "address").exists() or None, "it listens")
    pid = int((tmp_path / "pid").read_text())
    log.rename(tmp_path / "seed.log.1")
    os.kill(pid, signal.SIGUSR1)
    until(lambda: log.exists() or None, "the file is another one")
    os.kill(pid, signal.SIGTERM)
    until(lambda: not (tmp_path / "pid").exists() or None, "it has ended")
    lines = check_lines((tmp_path / "seed.log.1").read_text() + log.read_text(), "json")
    assert lines[0]["message"].startswith("twistd") and "Server Shut Down." in lines[-1]["message"]
