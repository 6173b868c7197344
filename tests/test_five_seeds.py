"""Five real seeds, thirty users who speak the line protocol themselves, and SIGKILL."""

import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from meshproto.cli.processes import Children, Failed, until
from meshproto.core.identity import Identity
from meshproto.wire import PROTOCOL_VERSION

SEEDS = [f"seed{letter}" for letter in "ABCDE"]
KILLED = SEEDS[:2]
"""With the first, which is the only address that the others were started with."""
USERS = 30
TIMEOUT_S = 10.0
FOUND_S = 10.0
ONLINE_AGAIN_S = 15.0
AGREED_S = 5.0

Facts = dict[str, tuple[Any, ...]]


class Connection:
    """A socket to a seed: a request a time."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
        self._lines = self._socket.makefile("rb")
        self._last_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def ask(self, method: str, **params: Any) -> Any:
        self._last_id += 1
        request = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while line := self._lines.readline():
            answer = json.loads(line)
            if answer.get("id") == self._last_id:
                return answer.get("result")
        raise ConnectionError("the seed has ended the connection")


class User:
    """Somebody who registers, and goes to another seed when the connection ends."""

    def __init__(self, number: int, address: str) -> None:
        self.name = f"user{number}"
        self._rng = random.Random(number)
        self._identity = Identity.create(self._rng.randbytes, 0)
        self._addresses = [address]
        self._connection: Connection | None = None

    def tend(self) -> None:
        """Ping; register somewhere if there is no answer."""
        try:
            if self._connection is None:
                self._register(self._rng.choice(self._addresses))
            else:
                self._connection.ask("ping")
        except ConnectionError:
            self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _register(self, address: str) -> None:
        self._connection = Connection(address)
        self._connection.ask("hello", version=PROTOCOL_VERSION, role="user", name=self.name)
        signed = self._identity.sign(self.name, ["http://192.0.2.7:3000"], time.time_ns() // 1_000_000)
        assert self._connection.ask("register", record=signed.record, sig=signed.sig)
        self._addresses = [seed["address"] for seed in self._connection.ask("seeds")["seeds"]]


class Mesh:
    def __init__(self, children: Children) -> None:
        self.children = children
        self.addresses = {SEEDS[0]: children.start("meshseed", SEEDS[0])}
        for name in SEEDS[1:]:
            self.addresses[name] = children.start("meshseed", name, "--peer", self.addresses[SEEDS[0]])
        self.users = [User(number, self.addresses[SEEDS[number % len(SEEDS)]]) for number in range(USERS)]

    def facts(self, seed: str) -> Facts:
        """What a seed answers for each user; a name that it does not find is not in it."""
        with Connection(self.addresses[seed]) as connection:
            found = {user.name: connection.ask("lookup", name=user.name) for user in self.users}
        return {
            name: (told["record"], told["since"], told["home"], told["online"]) for name, told in found.items() if told
        }

    def all_online(self, seeds: list[str]) -> bool | None:
        """Whether each of the seeds finds all users online, at one of these seeds, and says the same as the others."""
        for user in self.users:
            user.tend()
        facts = [self.facts(seed) for seed in seeds]
        here = all(home in seeds and online for _, _, home, online in facts[0].values())
        return (len(facts[0]) == USERS and here and all(other == facts[0] for other in facts)) or None

    def kill(self, name: str) -> None:
        process = self.children.all[name].process
        process.kill()
        process.wait()

    def restart(self, name: str) -> None:
        """On its state, at its port, with no other seed's address given."""
        assert self.children.start("meshseed", name, port=int(self.addresses[name].rsplit(":")[-1]))


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with Children(tmp_path) as children, ExitStack() as stack:
        mesh = Mesh(children)
        for user in mesh.users:
            stack.callback(user.close)
        yield mesh
        for child in children.all.values():
            log = child.log.read_text()
            assert "Traceback" not in log and "Unhandled" not in log, f"{child.name}:\n{log}"


def within(seconds: float, true: Callable[[], bool | None], what: str, mesh: Mesh) -> None:
    """As :func:`until`, and when it is not so, what the seeds say."""
    try:
        until(true, what, seconds)
    except Failed as failed:
        words = [child.last_words() for child in mesh.children.all.values()]
        raise AssertionError("\n".join([str(failed), *words])) from None


def test_two_of_five_seeds_are_killed(mesh: Mesh) -> None:
    """With two seeds killed each of the others still finds everybody, the users of the dead are online elsewhere soon,
    and the two, back on their state, say what the others say."""
    within(FOUND_S, lambda: mesh.all_online(SEEDS), "every seed finds all users", mesh)
    for name in KILLED:
        mesh.kill(name)
    left = SEEDS[len(KILLED) :]
    assert {name: len(mesh.facts(name)) for name in left} == dict.fromkeys(left, USERS)
    within(ONLINE_AGAIN_S, lambda: mesh.all_online(left), "all users are online again", mesh)
    for name in KILLED:
        mesh.restart(name)
    within(AGREED_S, lambda: mesh.all_online(SEEDS), "all seeds say the same", mesh)
