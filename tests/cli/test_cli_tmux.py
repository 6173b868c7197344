"""`mesh chat` as a person uses it: two terminals, two nodes, a seed, all of them real processes.

Nothing here sleeps for a time: what a terminal shows is looked at until it shows what it must, or the time is over.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from secrets import token_hex

import pytest

from meshproto.cli.processes import Children, until
from meshproto.client.errors import Problem, Unreachable
from meshproto.client.node import Node

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed: it is the terminal here")

WAIT_S = 60.0
MESH = Path(sys.executable).parent / "mesh"


class Terminal:
    """One window of tmux, with a command in it."""

    def __init__(self, server: "Tmux", name: str) -> None:
        self._server, self.name = server, name

    def type(self, text: str) -> None:
        """Letter by letter, as they are."""
        self._server.run("send-keys", "-t", self.name, "-l", text)

    def press(self, *keys: str) -> None:
        """Enter, C-d, PageUp and the like."""
        self._server.run("send-keys", "-t", self.name, *keys)

    def shown(self) -> str:
        return self._server.run("capture-pane", "-p", "-t", self.name)

    def shows(self, *texts: str) -> str:
        """Wait until it shows all of them; what it shows then."""

        def look() -> str | None:
            shown = self.shown()
            return shown if all(text in shown for text in texts) else None

        return until(look, f"{self.name} shows {texts}, not\n{self.shown()}", WAIT_S)

    def resize(self, columns: int, rows: int) -> None:
        self._server.run("resize-window", "-t", self.name, "-x", str(columns), "-y", str(rows))


class Tmux:
    """A server of its own, which ends with the test."""

    def __init__(self) -> None:
        self._socket = f"meshproto-{token_hex(6)}"

    def run(self, *arguments: str) -> str:
        command = ["tmux", "-L", self._socket, "-f", os.devnull, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT_S)
        return done.stdout

    def open(self, name: str, *command: str, columns: int = 90, rows: int = 20) -> Terminal:
        words = " ".join(f"'{word}'" for word in command)
        # What it ends with stays to be looked at: the window is there until the server ends.
        shell = f"{words}; echo ended with $?; exec cat"
        size = ("-x", str(columns), "-y", str(rows))
        self.run(
            "new-session", "-d", *size, "-s", name, "env", "TERM=screen-256color", "LC_ALL=C.UTF-8", "sh", "-c", shell
        )
        return Terminal(self, name)

    def close(self) -> None:
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], capture_output=True, check=False)


@pytest.fixture
def tmux() -> Iterator[Tmux]:
    server = Tmux()
    try:
        yield server
    finally:
        server.close()


def url(nodes: Children, name: str) -> str:
    address = nodes.all[name].address()
    assert address is not None
    return address


def test_two_people_talk(nodes: Children, tmux: Tmux) -> None:
    """What one types the other reads while typing; states change where they stand; each may go away and come back."""
    addresses = {name: url(nodes, name) for name in ("UserX", "Bobby")}
    until_found(addresses)
    bobby = tmux.open("bobby", str(MESH), "--node", addresses["Bobby"], "chat", "UserX")
    userx = tmux.open("userx", str(MESH), "--node", addresses["UserX"], "chat", "Bobby")
    bobby.shows("UserX  online", "Enter sends")
    userx.shows("Bobby  online", "Enter sends")

    userx.type("half a sen")
    userx.shows("> half a sen")
    bobby.type("hello from Bobby")
    bobby.press("Enter")
    bobby.shows("you  hello from Bobby  delivered")
    assert "> half a sen" in userx.shows("Bobby  hello from Bobby")
    userx.type("tence")
    userx.press("Enter")
    userx.shows("you  half a sentence  delivered")
    bobby.shows("UserX  half a sentence")

    nodes.stop("UserX")
    bobby.shows("UserX  away")
    userx.shows("not connected, trying again")
    bobby.type("are you there?")
    bobby.press("Enter")
    bobby.shows("are you there?", "queued: ", "refused")
    userx.type("wait for me")
    userx.press("Enter")
    userx.shows("wait for me", "not sent yet: ")
    port = int(addresses["UserX"].rpartition(":")[2])
    nodes.start("meshuser", "UserX", "--seed", url(nodes, "seedX"), port=port)
    bobby.shows("UserX  online", "you  are you there?  delivered", "UserX  wait for me")
    userx.shows("Bobby  are you there?", "you  wait for me  delivered", "Enter sends")

    bobby.resize(50, 12)
    bobby.shows("UserX  wait for me")
    bobby.type("/quit")
    bobby.press("Enter")
    bobby.shows("ended with 0")
    userx.press("C-d")
    userx.shows("ended with 0")

    again = tmux.open("again", str(MESH), "--node", addresses["Bobby"], "chat", "UserX")
    again.shows("you  hello from Bobby  delivered", "UserX  half a sentence", "you  are you there?  delivered")
    again.press("C-c")
    again.shows("ended with 0")


def finds(address: str, name: str) -> bool | None:
    try:
        return Node(address).lookup(name).document["online"] or None
    except (Problem, Unreachable):
        return None


def until_found(addresses: dict[str, str]) -> None:
    """Each finds the other."""
    for name, other in (("UserX", "Bobby"), ("Bobby", "UserX")):
        until(partial(finds, addresses[name], other), f"{name} finds {other}", WAIT_S)


def test_many_lines_and_many_messages(nodes: Children, tmux: Tmux) -> None:
    """One scrolls back, a message of several lines is one message, and what is wide or hostile stays in its column."""
    addresses = {name: url(nodes, name) for name in ("UserX", "Bobby")}
    until_found(addresses)
    bobby = tmux.open("bobby", str(MESH), "--node", addresses["Bobby"], "chat", "UserX", columns=60, rows=12)
    userx = tmux.open("userx", str(MESH), "--node", addresses["UserX"], "chat", "Bobby", columns=60, rows=12)
    bobby.shows("Enter sends")
    userx.shows("Enter sends")
    for number in range(15):
        bobby.type(f"message number {number}")
        bobby.press("Enter")
    userx.shows("Bobby  message number 14")
    userx.press("PageUp")
    assert "message number 14" not in userx.shows("message number 3")
    userx.press("PageDown")
    userx.shows("message number 14")
    bobby.type("日本語 first")
    bobby.press("M-Enter")
    bobby.type("12:00  you  second")
    bobby.press("Enter")
    lines = userx.shows("日本語 first", "second").splitlines()
    (first,) = [at for at, line in enumerate(lines) if "first" in line]
    assert lines[first + 1].startswith(" " * len("12:00  Bobby  ") + "12:00  you  second")
