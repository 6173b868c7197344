"""Both kinds of directory with real seeds, the same suite on both: one of the seed's own, and one in a real Redis
Cluster of six processes. And what only the second kind can suffer, or do."""

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bench.peers.machine import free_port
from meshproto.cli.processes import Children, until
from meshproto.client import Client
from meshproto.core.identity import Identity
from tests.redis_rig import MISSING, Cluster, cluster

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
TIMEOUT_S = 30.0


class Line:
    """A connection to a seed, as a user's node has it. It stays open to the end of the test, since its users are away
    when it is closed."""

    opened: ClassVar[list["Line"]] = []

    def __init__(self, address: str) -> None:
        self.opened.append(self)
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
        self._file = self._socket.makefile("r", encoding="utf-8")
        self._id = 0
        self.told: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer, a result or an error."""
        self._id += 1
        request = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while (line := self._read()).get("id") != self._id:
            self.told.append(line)
        return line

    def register(self, name: str, seq: int, owner: int = 1, *, gone: bool = False) -> dict[str, Any]:
        signed = key(owner).sign(name, [] if gone else ["http://127.0.0.1:9"], seq)
        return self.call("unregister" if gone else "register", record=signed.record, sig=signed.sig)

    def next_told(self) -> dict[str, Any]:
        """The next notification."""
        return self.told.pop(0) if self.told else self._read()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def _read(self) -> dict[str, Any]:
        line: dict[str, Any] = json.loads(self._file.readline())
        return line


def key(number: int) -> Identity:
    return Identity.create(random.Random(number).randbytes, 0)


@pytest.fixture(autouse=True)
def lines() -> Iterator[None]:
    yield
    while Line.opened:
        Line.opened.pop().close()


@pytest.fixture(scope="module")
def the_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as running:
        yield running


@pytest.fixture(params=["own", "shared"])
def options(request: pytest.FixtureRequest, the_cluster: Cluster) -> tuple[str, ...]:
    """Of a seed with such a directory."""
    return ("--directory", f"redis://{the_cluster.addresses()}") if request.param == "shared" else ()


@pytest.fixture
def seeds(children: Children, options: tuple[str, ...]) -> tuple[str, str]:
    """The addresses of two seeds of one mesh."""
    one = children.start("meshseed", "seedA", *options)
    other = children.start("meshseed", "seedB", "--peer", one, *options)
    until(lambda: Line(one).call("status")["result"]["alive"] == 2 or None, "they know each other", TIMEOUT_S)
    return one, other


def found(address: str, name: str) -> dict[str, Any] | None:
    answer = Line(address).call("lookup", name=name)
    assert "result" in answer or answer["error"]["code"] == 404, answer
    return answer.get("result")


def soon(address: str, name: str, **wanted: Any) -> dict[str, Any]:
    """What a seed answers once it answers so."""

    def probe() -> dict[str, Any] | None:
        answer = found(address, name)
        return answer if answer and all(answer[field] == value for field, value in wanted.items()) else None

    return until(probe, f"{name} is found with {wanted}", TIMEOUT_S)


_numbers = iter(range(1, 1_000_000))


@pytest.fixture
def name() -> str:
    """One that nobody has had in the cluster that all these tests share."""
    return f"User{next(_numbers)}-{random.getrandbits(32):x}"


class TestBothKinds:
    def test_a_user_comes_moves_and_leaves(self, seeds: tuple[str, str], name: str) -> None:
        """Known at both seeds, where they are and whether they are, since when the name is theirs; nobody else gets
        it, until they have left."""
        one, other = seeds
        first = Line(one)
        since = first.register(name, 1)["result"]["since"]
        assert soon(other, name.lower(), online=True, home="seedA")["since"] == since
        assert Line(other).register(name, 9, owner=2)["error"]["message"] == "name taken"
        assert Line(other).register(name, 1)["error"]["message"] == "stale record"
        second = Line(other)
        assert second.register(name, 2)["result"]["since"] == since
        soon(one, name, home="seedB", online=True)
        first.close()
        second.close()
        assert soon(one, name, online=False)["since"] == since
        assert Line(other).register(name, 3, gone=True)["result"] == {}
        until(lambda: found(one, name) is None or None, "nobody has the name", TIMEOUT_S)
        assert Line(one).register(name, 2)["error"]["message"] == "stale record"
        assert "result" in Line(one).register(name, 1, owner=2)

    def test_those_who_watch_are_told(self, seeds: tuple[str, str], name: str) -> None:
        """At either seed, of each change, as it is then."""
        one, other = seeds
        watching = Line(other)
        assert watching.call("watch", names=[name])["result"] == {}
        user = Line(one)
        user.register(name, 1)

        def online() -> list[bool | None]:
            entry = watching.next_told()["params"]["entry"]
            return [entry and entry["online"]]

        seen = online()
        while seen[-1] is not True:
            seen += online()
        user.close()
        while seen[-1] is not False:
            seen += online()
        Line(one).register(name, 2, gone=True)
        while seen[-1] is not None:
            seen += online()

    def test_a_seed_is_restarted(
        self, seeds: tuple[str, str], options: tuple[str, ...], name: str, children: Children
    ) -> None:
        """Its users are away then, with their claims."""
        one, other = seeds
        since = Line(one).register(name, 1)["result"]["since"]
        soon(other, name)
        child = children.all["seedA"]
        child.process.kill()
        child.process.wait()
        assert soon(other, name, online=False)["since"] == since
        again = children.start("meshseed", "seedA", "--peer", other, *options, port=int(one.rsplit(":", 1)[1]))
        assert soon(again, name, online=False)["since"] == since
        assert Line(again).register(name, 1, owner=2)["error"]["message"] == "name taken"
        assert Line(again).register(name, 2)["result"]["since"] == since


def in_step(address: str) -> bool | None:
    """Whether a seed knows all that the other one told; the operator is to wait for that before the next one."""
    seeds = Line(address).call("seeds")["result"]["seeds"]
    return (len(seeds) == 2 and all(seed["alive"] and not seed["lag"] for seed in seeds)) or None


class Asking(threading.Thread):
    """Somebody who asks a node for names all the time, and once in a while for one that nobody has."""

    def __init__(self, node: Client, names: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self._node = node
        self._names = names
        self.wrong: list[str] = []
        self.asked = 0
        self.over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.is_set():
            for name, fingerprint in self._names.items():
                try:
                    if self._node.lookup(name).fingerprint != fingerprint:
                        self.wrong.append(f"{name} is somebody else")
                except Exception as error:
                    self.wrong.append(f"{name}: {error}")
                self.asked += 1

    def end(self) -> None:
        self.over.set()
        self.join(TIMEOUT_S)
        assert not self.is_alive()


class TestSharedAlone:
    def test_a_master_is_killed(self, children: Children, the_cluster: Cluster, name: str) -> None:
        """Under a load of registrations and lookups. What a seed has read goes on being answered, if need be as what
        was known last; and never that nobody has the name. Afterwards every user is found as before, with the claim
        that was acknowledged."""
        options = ("--directory", f"redis://{the_cluster.addresses()}")
        one = children.start("meshseed", "seedA", *options)
        other = children.start("meshseed", "seedB", "--peer", one, *options)
        users = {f"{name}-{number}": Line((one, other)[number % 2]) for number in range(60)}
        since = {user: line.register(user, 1)["result"]["since"] for user, line in users.items()}
        for user in since:
            assert found(one, user)
        lost = the_cluster.master(f"mesh:{next(iter(users)).lower()}")
        lost.kill()
        asking, late = Line(one), Line(other)
        kinds: dict[str, int] = {}
        more: dict[str, int] = {}
        until_s = time.monotonic() + 4.0
        while time.monotonic() < until_s:
            for user in users:
                answer = asking.call("lookup", name=user)
                kind = "stale" if answer["result"].get("stale") else "found"
                kinds[kind] = kinds.get(kind, 0) + 1
            fresh = f"{name}-late-{len(more)}"
            if len(more) % 50 == 49:  # a connection registers a hundred at most
                late = Line(other)
            answer = late.register(fresh, 1)
            if "result" in answer:
                more[fresh] = answer["result"]["since"]
            else:
                assert answer["error"]["code"] == 503 and answer["error"]["data"]["retry_after"], answer
                late = Line(other)
        the_cluster.wait_for_failover(lost)
        the_cluster.restart(lost)
        assert kinds.keys() <= {"found", "stale"}
        for line in users.values():
            line.call("ping")
        for user, at in {**since, **more}.items():
            assert soon(other, user, since=at)["online"] is True

    def test_to_a_cluster_and_back_again(self, children: Children, the_cluster: Cluster, tmp_path: Path) -> None:
        """One seed after the other, with lookups going on at a user's node all the time: no answer is wrong, and none
        is missing, of who is there or away. Claims are as old as they were, and messages arrive."""
        shared = ("--directory", f"redis://{the_cluster.addresses()}")
        tag = f"{random.getrandbits(32):x}"
        ports: dict[str, int] = {}
        peers: dict[str, str] = {}
        for seed in ("seedA", "seedB"):
            address = children.start("meshseed", seed, *(f"--peer={peer}" for peer in peers.values()))
            ports[seed], peers[seed] = int(address.rsplit(":", 1)[1]), address
        known = [f"--seed={address}" for address in peers.values()]
        nodes = {user: children.start("meshuser", f"{user}-{tag}", *known) for user in ("Anna", "Bert", "Carl")}
        clients = {user: Client(url, timeout_s=TIMEOUT_S) for user, url in nodes.items()}
        for client in clients.values():
            until(lambda client=client: client.status().registered or None, "registered", TIMEOUT_S)  # type: ignore[misc]
        names = {f"{user}-{tag}": client.status().fingerprint for user, client in clients.items()}
        before = {user: soon(peers["seedA"], user)["since"] for user in names}
        children.stop(f"Carl-{tag}")
        asking = Asking(clients["Anna"], {user: print_ for user, print_ in names.items() if "Anna" not in user})
        imported = ("--directory-import", shared[1])
        for options in (shared, imported, ()):
            for seed in ("seedA", "seedB"):
                other = peers["seedB" if seed == "seedA" else "seedA"]
                asked = asking.asked
                children.stop(seed)
                children.start("meshseed", seed, "--peer", other, *options, port=ports[seed])
                until(partial(in_step, peers[seed]), f"{seed} has heard all of the other", TIMEOUT_S)
                if options is imported:
                    log = tmp_path / f"{seed}.log"
                    until(lambda log=log: "were taken over" in log.read_text() or None, "all is taken over", TIMEOUT_S)  # type: ignore[misc]
                for user in ("Anna", "Bert"):
                    client = clients[user]
                    until(lambda client=client: client.status().registered or None, "registered", TIMEOUT_S)  # type: ignore[misc]
                until(lambda asked=asked: asking.asked > asked + 50 or None, "more was asked", TIMEOUT_S)  # type: ignore[misc]
            assert clients["Anna"].send(f"Bert-{tag}", "still there?").status == "delivered"
        asking.end()
        assert asking.wrong == []
        for seed in ("seedA", "seedB"):
            for user, at in before.items():
                assert soon(peers[seed], user)["since"] == at, (seed, user)


def test_seeds_of_one_machine_share_a_port(children: Children, name: str) -> None:
    """The system deals connections out among them; each is a seed of its own at its own port."""
    port = str(free_port())
    one = children.start("meshseed", "seedA", "--shared-port", port)
    children.start("meshseed", "seedB", "--shared-port", port, "--peer", one)

    def both() -> bool | None:
        answered = {Line(f"127.0.0.1:{port}").call("status")["result"]["seed"] for _ in range(10)}
        return answered == {"seedA", "seedB"} or None

    until(both, "both are reached there", TIMEOUT_S)
    Line(f"127.0.0.1:{port}").register(name, 1)
    soon(f"127.0.0.1:{port}", name, online=True)
    failed = children.launch("meshseed", "seedC", "--shared-port", port, "--listen", f"tcp:{port}:interface=127.0.0.1")
    assert failed.process.wait(TIMEOUT_S) == 1  # but not with one that has the port alone
    assert "cannot listen" in failed.log.read_text()
