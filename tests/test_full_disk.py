"""Real nodes on a disk that is really full: a small file system in memory under the state directory."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from meshproto.cli.processes import Children, until

TIMEOUT_S = 20.0
ARRIVE_S_MAX = 60.0
CHECKPOINT_BYTES = 4_000_000
"""SQLite carries the WAL into the database when it has grown to 1000 pages of 4096 bytes."""
BALLAST_BYTES = 12 << 20
TEXT = "x" * 100_000
MESSAGES_MAX = 1000
"""More than fit onto any of these disks."""


class Disk:
    """A file system with so much room, and a file that takes away more when it is there."""

    def __init__(self, place: Path, room_bytes: int) -> None:
        self._ballast = place / "ballast"
        place.mkdir()
        options = f"size={room_bytes + BALLAST_BYTES},mode=700"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=False)
        if done.returncode:
            pytest.skip(
                "may not mount: run this as root, or with `unshare -rm python -m pytest tests/test_full_disk.py`"
            )
        self._ballast.write_bytes(bytes(BALLAST_BYTES))
        self._place = place

    def fill(self) -> None:
        """Not a byte of room is left."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return

    def size_of(self, name: str) -> int:
        return (self._place / name).stat().st_size

    def make_room(self) -> None:
        self._ballast.unlink()

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self._place)], check=True)


class Mesh:
    """A seed, Bobby who sends, and UserX. A node starts again on the state that it had."""

    def __init__(self, directory: Path, children: Children) -> None:
        self.children = children
        self.disks: list[Disk] = []
        self._directory = directory
        self._seed = children.start("meshseed", "seedX")
        self.urls: dict[str, str] = {}

    def on_small_disk(self, name: str, room_bytes: int) -> Disk:
        disk = Disk(self._directory / name, room_bytes)
        self.disks.append(disk)
        return disk

    def start(self, name: str) -> None:
        self.urls[name] = self.children.start("meshuser", name, "--seed", self._seed)
        until(lambda: self.ask(name, "GET", "/status")[1]["registered"] or None, f"{name} is registered")

    def kill(self, name: str) -> None:
        process = self.children.all[name].process
        process.kill()
        process.wait()

    def ask(self, name: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = HTTPConnection(urlsplit(self.urls[name]).netloc, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def send(self, text: str, message_id: str) -> tuple[int, Any]:
        message = {"to": "UserX", "message": text, "id": message_id, "wait": 0}
        return self.ask("Bobby", "POST", "/send", message)

    def status_of(self, message_id: str) -> Any:
        return self.ask("Bobby", "GET", f"/outbox/{message_id}")[1]

    def received(self) -> list[str]:
        """The ids in UserX's inbox."""
        ids: list[str] = []
        after = 0
        while (page := self.ask("UserX", "GET", f"/inbox?after={after}")[1])["messages"]:
            ids += [message["id"] for message in page["messages"]]
            after = page["next"]
        return ids

    def log(self, name: str) -> str:
        return self.children.all[name].log.read_text()


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    if shutil.which("mount") is None:
        pytest.skip("there is no mount")
    with Children(tmp_path) as children:
        mesh = Mesh(tmp_path, children)
        try:
            yield mesh
            for name in children.all:
                log = mesh.log(name)
                assert "Traceback" not in log and "Unhandled" not in log, f"{name}:\n{log}"
        finally:
            for disk in mesh.disks:
                disk.unmount()


FULL = "the disk does not take it: database or disk is full (user.db); free space on its file system"


@pytest.mark.parametrize("room_bytes", [2 << 20, 6 << 20], ids=["before the first checkpoint", "at a checkpoint"])
def test_the_senders_disk(mesh: Mesh, room_bytes: int) -> None:
    """On a full disk /send answers 503 and says what to do, what was accepted is there and can be read, and when there
    is room again it goes on without a restart; after SIGKILL all that was ever accepted is delivered, once, in order.
    In 6 MB the WAL can grow until it is to be carried into the database, which then cannot."""
    disk = mesh.on_small_disk("Bobby", room_bytes)
    mesh.start("UserX")
    mesh.start("Bobby")
    mesh.kill("UserX")
    accepted: list[str] = []

    def send() -> tuple[int, Any]:
        message_id = f"m{len(accepted)}"
        status, answer = mesh.send(TEXT, message_id)
        if status == 202:
            accepted.append(message_id)
        return status, answer

    refused = next(answer for _ in range(MESSAGES_MAX) if (answer := send())[0] != 202)
    assert refused[0] == 503 and refused[1]["detail"] == FULL
    assert (disk.size_of("user.db-wal") > CHECKPOINT_BYTES) == (room_bytes > CHECKPOINT_BYTES)
    assert [mesh.status_of(message_id)["id"] for message_id in accepted] == accepted
    for path in ("/outbox", "/inbox", "/status", "/contacts"):
        assert mesh.ask("Bobby", "GET", path)[0] == 200
    assert send()[0] == 503

    disk.make_room()
    until(lambda: send()[0] == 202 or None, "there is room again")
    assert [send()[0] for _ in range(20)] == [202] * 20
    log = mesh.log("Bobby")
    assert log.count(FULL) == log.count("the disk takes it again") <= 1  # a disk may be too full for one message alone

    mesh.kill("Bobby")
    mesh.start("Bobby")
    assert [mesh.status_of(message_id)["id"] for message_id in accepted] == accepted
    mesh.start("UserX")
    until(lambda: mesh.status_of(accepted[-1])["status"] == "delivered" or None, "the last is delivered", ARRIVE_S_MAX)
    assert mesh.received() == accepted


def test_the_recipients_disk(mesh: Mesh) -> None:
    """While the recipient's disk is full a message stays queued at its sender, with the recipient's own words; it is
    delivered when there is room, without a restart of either."""
    disk = mesh.on_small_disk("UserX", 2 << 20)
    mesh.start("UserX")
    mesh.start("Bobby")
    assert mesh.send("small", "first")[0] == 202
    until(lambda: mesh.received() or None, "the first has arrived")
    disk.fill()
    assert mesh.send(TEXT, "large")[0] == 202

    def reason() -> str | None:
        kept = mesh.status_of("large")
        assert kept["status"] != "delivered"
        return str(kept["reason"]) if kept["reason"] else None

    assert until(reason, "the recipient has refused it") == f"503 unavailable: {FULL}"
    disk.make_room()
    until(lambda: mesh.status_of("large")["status"] == "delivered" or None, "it is delivered")
    assert mesh.received() == ["first", "large"]
