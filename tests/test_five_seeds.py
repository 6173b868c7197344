"""Five real seeds, a hundred users who speak the line protocol themselves, and SIGKILL.

`pytest -rP tests/test_five_seeds.py` prints how long each part took."""

import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from meshproto.cli.processes import Children, Failed, until
from meshproto.core.identity import Identity, next_seq
from meshproto.wire import PROTOCOL_VERSION

SEEDS = [f"seed{letter}" for letter in "ABCDE"]
KILLED = SEEDS[:2]
"""With the first, which is the only address that the others were started with."""
LEFT = SEEDS[2:]
USERS = 100
TIMEOUT_S = 10.0
MET_S = 10.0
FOUND_S = 10.0
ONLINE_AGAIN_S = 15.0
AGREED_S = 5.0
SHOWN = 10

Request = tuple[str, dict[str, Any]]


class Connection:
    """A socket to a seed. Any number of requests leave in one piece; their answers are read afterwards."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
        self._lines = self._socket.makefile("rb")
        self._last_id = 0
        self._asked: list[int] = []

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def ask(self, requests: Iterable[Request]) -> None:
        lines = []
        for method, params in requests:
            self._last_id += 1
            self._asked.append(self._last_id)
            request = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}
            lines.append(json.dumps(request) + "\n")
        self._socket.sendall("".join(lines).encode())

    def answers(self) -> list[Any]:
        """To all that was asked, in that order, whatever order they come in."""
        asked, self._asked = self._asked, []
        waiting = set(asked)
        answers = {}
        while waiting:
            line = self._lines.readline()
            if not line.endswith(b"\n"):
                raise ConnectionError("the seed has ended the connection")
            answer = json.loads(line)
            if answer.get("id") in waiting:
                waiting.remove(answer["id"])
                answers[answer["id"]] = answer
        return [answers[asked_id] for asked_id in asked]


class Fact(NamedTuple):
    """What is so of a user, or what a seed says of them."""

    record: str
    since: int
    home: str
    online: bool


class User:
    """Somebody who registers, and goes to another seed when the connection ends."""

    def __init__(self, number: int, address: str) -> None:
        self.name = f"user{number}"
        self.fact: Fact | None = None
        self._uris = [f"http://192.0.2.7:{3000 + number}"]
        self._rng = random.Random(number)
        self._identity = Identity.create(self._rng.randbytes, 0)
        self._addresses = [address]
        self._connection: Connection | None = None
        self._record = ""
        self._seq = 0

    def speak(self) -> None:
        """Ping, or register somewhere. The seed's answer is for :meth:`listen`."""
        try:
            if self._connection is None:
                self._connection = Connection(self._rng.choice(self._addresses))
                self._seq = next_seq(self._seq, time.time_ns() // 1_000_000)
                signed = self._identity.sign(self.name, self._uris, self._seq)
                self._record = signed.record
                hello = {"version": PROTOCOL_VERSION, "role": "user", "name": self.name}
                register = {"record": signed.record, "sig": signed.sig}
                self._connection.ask([("hello", hello), ("register", register), ("seeds", {})])
            else:
                self._connection.ask([("ping", {})])
        except ConnectionError:
            self.close()

    def listen(self) -> None:
        if self._connection is None:
            return
        try:
            answers = self._connection.answers()
        except ConnectionError:
            self.close()
            return
        assert all("result" in answer for answer in answers), answers
        if self.fact is None:
            _, registered, told = (answer["result"] for answer in answers)
            self.fact = Fact(self._record, registered["since"], registered["seed"], True)
            self._addresses = [seed["address"] for seed in sorted(told["seeds"], key=lambda seed: str(seed["name"]))]

    def close(self) -> None:
        self.fact = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Told(NamedTuple):
    """What a seed answers. `facts`: of the users whom it finds; `alive`: how many users each living seed has."""

    facts: dict[str, Fact]
    alive: dict[str, int]


class Mesh:
    def __init__(self, children: Children) -> None:
        self.children = children
        first = children.start("meshseed", SEEDS[0])
        others = at_once(lambda name: children.start("meshseed", name, "--peer", first), SEEDS[1:])
        self.addresses = dict(zip(SEEDS, [first, *others], strict=True))
        self.users = [User(number, self.addresses[SEEDS[number % len(SEEDS)]]) for number in range(USERS)]
        self._connections: dict[str, Connection] = {}

    def close(self) -> None:
        for user in self.users:
            user.close()
        for connection in self._connections.values():
            connection.close()

    def truth(self) -> dict[str, Fact]:
        """What the users know of themselves; who is registered nowhere is not in it."""
        return {user.name: user.fact for user in self.users if user.fact}

    def tend(self) -> None:
        """Each user says something, and hears what comes of it."""
        for user in self.users:
            user.speak()
        for user in self.users:
            user.listen()

    def told(self, seeds: list[str]) -> dict[str, Told]:
        """Each seed is asked for all users, over one connection."""
        for seed in seeds:
            if seed not in self._connections:
                self._connections[seed] = Connection(self.addresses[seed])
            lookups = [("lookup", {"name": user.name}) for user in self.users]
            self._connections[seed].ask([("seeds", {}), *lookups])
        told = {}
        for seed in seeds:
            first, *others = self._connections[seed].answers()
            found = {user.name: answer.get("result") for user, answer in zip(self.users, others, strict=True)}
            facts = {name: Fact(*(result[field] for field in Fact._fields)) for name, result in found.items() if result}
            alive = {seed["name"]: seed["users"] for seed in first["result"]["seeds"] if seed["alive"]}
            told[seed] = Told(facts, alive)
        return told

    def wrong(self, seeds: list[str]) -> list[str]:
        """How what these seeds say differs from what is so, when they, and no others, are alive."""
        self.tend()
        truth = self.truth()
        wrong = [f"{user.name} is registered nowhere" for user in self.users if user.fact is None]
        users = Counter(fact.home for fact in truth.values())
        alive = {seed: users[seed] for seed in seeds}
        for seed, told in self.told(seeds).items():
            wrong += [
                f"{seed} says {told.facts.get(name)} of {name}, who says {fact}"
                for name, fact in truth.items()
                if told.facts.get(name) != fact
            ]
            if told.alive != alive:
                wrong.append(f"{seed} says that the living seeds and their users are {told.alive}, which are {alive}")
        return wrong

    def kill(self, names: list[str]) -> None:
        """All at once."""
        processes = [self.children.all[name].process for name in names]
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
        for name in names:
            self._connections.pop(name).close()

    def restart(self, names: list[str]) -> None:
        """On their state, at their ports, with no other seed's address given."""

        def start(name: str) -> str:
            return self.children.start("meshseed", name, port=int(self.addresses[name].rsplit(":")[-1]))

        assert at_once(start, names) == [self.addresses[name] for name in names]


def at_once(start: Callable[[str], str], names: list[str]) -> list[str]:
    """Start these nodes, and wait for all of them. Two at a time: they are Python processes on few cores."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(start, names))


def measured(what: str, started: float) -> float:
    took_s = time.monotonic() - started
    print(f"{took_s:6.2f} s  {what}")  # noqa: T201 -- pytest keeps it for -rP, and shows it when the test fails
    return took_s


def within(limit_s: float, started: float, wrong: Callable[[], list[str]], what: str, mesh: Mesh) -> None:
    """Wait until nothing is wrong any more; when that takes too long, tell what is, and the seeds' last words."""
    found: list[str] = []

    def right() -> bool | None:
        found[:] = wrong()
        return None if found else True

    try:
        until(right, what, started + limit_s - time.monotonic())
    except Failed:
        words = [f"--- {child.name}\n{child.last_words()}" for child in mesh.children.all.values()]
        raise AssertionError("\n".join([f"not {what}: {len(found)} wrong", *found[:SHOWN], *words])) from None
    assert measured(what, started) <= limit_s


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with Children(tmp_path) as children, ExitStack() as stack:
        started = time.monotonic()
        mesh = Mesh(children)
        stack.callback(mesh.close)
        measured("the five seeds listen", started)
        yield mesh
        for child in children.all.values():
            log = child.log.read_text()
            assert "Traceback" not in log and "Unhandled" not in log, f"{child.name}:\n{log}"


def test_two_of_five_seeds_are_killed(mesh: Mesh) -> None:
    """With two seeds killed each of the others still finds everybody, the users of the dead are online elsewhere soon,
    and the two, back on their state, say what the others say."""

    def strangers() -> list[str]:
        told = mesh.told(SEEDS)
        return [f"{seed} knows only {told[seed].alive}" for seed in SEEDS if set(told[seed].alive) != set(SEEDS)]

    within(MET_S, time.monotonic(), strangers, "the seeds know each other", mesh)
    within(FOUND_S, time.monotonic(), lambda: mesh.wrong(SEEDS), "every seed finds all users, online", mesh)
    before = mesh.truth()
    assert Counter(fact.home for fact in before.values()) == dict.fromkeys(SEEDS, USERS // len(SEEDS))

    killed = time.monotonic()
    mesh.kill(KILLED)
    for seed, told in mesh.told(LEFT).items():
        assert set(told.facts) == set(before), f"{seed} does not find everybody"
        for name, fact in before.items():
            # Whether it has found out by now that the two are dead is all that may differ.
            online = told.facts[name].online if fact.home in KILLED else True
            assert told.facts[name] == fact._replace(online=online), f"{seed} of {name}"
    measured("after the kill, each of the others has answered for all users", killed)

    within(ONLINE_AGAIN_S, killed, lambda: mesh.wrong(LEFT), "after the kill, all users are online again", mesh)
    after = mesh.truth()
    assert {name for name in before if after[name].home != before[name].home} == {
        name for name, fact in before.items() if fact.home in KILLED
    }, "who had a living seed has stayed there"
    assert {name: fact.since for name, fact in after.items()} == {name: fact.since for name, fact in before.items()}

    restarted = time.monotonic()
    mesh.restart(KILLED)
    measured("the two listen again", restarted)
    within(AGREED_S, time.monotonic(), lambda: mesh.wrong(SEEDS), "from then on, all five say the same", mesh)
    assert mesh.truth() == after, "nobody has moved again"
