"""A node moves, is copied under load, and is there twice by mistake: real processes, who write all the time."""

import itertools
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshproto.cli.processes import Children, until
from meshproto.client.node import Node

TIMEOUT_S = 60.0
SENDERS = ("Ann", "Ben", "Cem")


class Writers:
    """Each sender writes to Mover, one message after the other, until they are told to stop. `accepted`: by sender, the
    numbers of the messages that their nodes have taken, in order."""

    def __init__(self, urls: dict[str, str]) -> None:
        self.accepted: dict[str, list[int]] = {name: [] for name in urls}
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(name, url)) for name, url in urls.items()]
        for thread in self._threads:
            thread.start()

    def _write(self, name: str, url: str) -> None:
        node = Node(url, timeout_s=TIMEOUT_S)
        for number in itertools.count():
            if self._ended.is_set():
                return
            node.send("Mover", f"{name} {number}", wait_s=0)
            self.accepted[name].append(number)

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def go_on(self, messages: int) -> None:
        """Until so many more were taken of each."""
        wanted = {name: len(numbers) + messages for name, numbers in self.accepted.items()}
        until(
            lambda: all(len(self.accepted[name]) >= at for name, at in wanted.items()) or None, "they write", TIMEOUT_S
        )


class Scene:
    def __init__(self, directory: Path, children: Children) -> None:
        self.directory = directory
        self.children = children
        self.seed = children.start("meshseed", "seedX")
        self.urls = {name: self.start(name) for name in (*SENDERS, "Away", "Mover")}

    def start(self, name: str, children: Children | None = None, seed: str | None = None) -> str:
        url = (children or self.children).start("meshuser", name, "--seed", seed or self.seed)
        until(
            lambda: Node(url, timeout_s=TIMEOUT_S).status().document["registered"] or None,
            f"{name} is there",
            TIMEOUT_S,
        )
        return url

    def send_to_away(self, count: int) -> None:
        """Mover writes to somebody who is not there."""
        self.children.stop("Away")
        for number in range(count):
            assert self.node("Mover").send("Away", number, wait_s=0).document["status"] == "queued"

    def node(self, name: str) -> Node:
        return Node(self.urls[name], timeout_s=TIMEOUT_S)

    def status(self, name: str) -> Any:
        return self.node(name).status().document

    def drained(self, *names: str) -> None:
        for name in names:
            until(lambda name=name: not self.status(name)["outbox"]["waiting"] or None, f"{name}'s are out", TIMEOUT_S)  # type: ignore[misc]

    def inbox(self, name: str) -> list[Any]:
        texts: list[Any] = []
        after = 0
        while page := (answer := self.node(name).inbox(after=after, limit=1000).document)["messages"]:
            texts += [message["message"] for message in page]
            after = answer["next"]
        return texts

    def came(self) -> dict[str, list[int]]:
        """At Mover, by sender, in order."""
        found: dict[str, list[int]] = {name: [] for name in SENDERS}
        for text in self.inbox("Mover"):
            name, number = text.split()
            found[name].append(int(number))
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Children(tmp_path) as children:
        yield Scene(tmp_path, children)
        for child in children.all.values():
            assert "Traceback" not in child.log.read_text(), child.log.read_text()


def test_moved_while_others_write(scene: Scene, tmp_path: Path) -> None:
    """To another state folder and port, with name, key, inbox and queue: what was taken from the senders is there once,
    in order, and what waited goes out."""
    address = scene.status("Mover")["address"]
    scene.send_to_away(20)
    writers = Writers({name: scene.urls[name] for name in SENDERS})
    try:
        writers.go_on(50)
        scene.children.stop("Mover")
        writers.go_on(50)
        (tmp_path / "elsewhere").mkdir()
        shutil.move(tmp_path / "Mover", tmp_path / "elsewhere" / "Mover")
        with Children(tmp_path / "elsewhere") as elsewhere:
            before = scene.urls["Mover"]
            scene.urls["Mover"] = scene.start("Mover", elsewhere)
            writers.go_on(50)
            writers.stop()
            scene.drained(*SENDERS)
            assert scene.urls["Mover"] != before
            assert scene.status("Mover")["address"] == address
            assert scene.came() == writers.accepted
            scene.urls["Away"] = scene.start("Away")
            scene.drained("Mover")
            assert scene.inbox("Away") == list(range(20))
            assert scene.status("Mover")["problem"] is None
    finally:
        writers.stop()


def test_a_backup_under_load(scene: Scene, tmp_path: Path) -> None:
    """A copy that `mesh backup` makes while others write and the node is then killed: started from it, it has what was
    taken before, once, in order; what it had not got then comes; and what waited goes out, once."""
    scene.send_to_away(20)
    writers = Writers({name: scene.urls[name] for name in SENDERS})
    try:
        writers.go_on(50)
        copied = {name: len(numbers) for name, numbers in writers.accepted.items()}
        delivered = scene.came()
        command = [sys.executable, "-c", "from meshproto.cli.main import main; main()", "backup", "--state"]
        target = tmp_path / "elsewhere" / "Mover"
        target.parent.mkdir()
        subprocess.run(
            [*command, str(tmp_path / "Mover"), str(target)], check=True, timeout=TIMEOUT_S, capture_output=True
        )
        scene.children.all["Mover"].process.kill()
        writers.go_on(20)
        with Children(tmp_path / "elsewhere") as elsewhere:
            scene.urls["Mover"] = scene.start("Mover", elsewhere)
            writers.go_on(20)
            writers.stop()
            scene.drained(*SENDERS)
            came = scene.came()
            for name, numbers in came.items():
                assert numbers[: len(delivered[name])] == delivered[name]
                assert numbers == sorted(set(numbers))
                assert numbers[-1] == writers.accepted[name][-1]
            assert all(copied.values())
            scene.urls["Away"] = scene.start("Away")
            scene.drained("Mover")
            assert scene.inbox("Away") == list(range(20))
    finally:
        writers.stop()


@pytest.mark.parametrize("elsewhere_too", [False, True], ids=["at one seed", "at two seeds"])
def test_twice_by_mistake(scene: Scene, tmp_path: Path, elsewhere_too: bool) -> None:
    """Two nodes with one key: the one that registered last gets what is sent, and the other says so, in its log and as
    its problem, until it is the last again; nothing is lost that either has taken."""
    scene.children.stop("Mover")
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(tmp_path / "Mover", tmp_path / "elsewhere" / "Mover")
    first = scene.urls["Mover"] = scene.start("Mover")
    seed_y = scene.children.start("meshseed", "seedY", "--peer", scene.seed) if elsewhere_too else None
    with Children(tmp_path / "elsewhere") as elsewhere:
        second = scene.start("Mover", elsewhere, seed_y)
        problem = f"another node has this one's key and name, and gets what is sent to Mover: {second}; stop one"
        until(lambda: scene.status("Mover")["problem"] == problem or None, "the first says so", TIMEOUT_S)
        assert not scene.status("Mover")["registered"]
        assert problem in scene.children.all["Mover"].log.read_text()
        assert scene.node("Ann").send("Mover", "Ann 1", wait_s=5).document["status"] == "delivered"
        assert scene.inbox("Mover") == []
        scene.urls["Mover"] = second
        assert scene.inbox("Mover") == ["Ann 1"]
        assert scene.status("Mover")["problem"] is None
        elsewhere.stop("Mover")
    scene.urls["Mover"] = first
    scene.children.stop("seedX")
    seed = scene.seed.rpartition(":")[2]
    scene.children.start("meshseed", "seedX", port=int(seed))
    until(lambda: scene.status("Mover")["registered"] or None, "the first has registered anew", TIMEOUT_S)
    assert scene.status("Mover")["problem"] is None
