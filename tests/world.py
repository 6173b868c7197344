"""The fake world: any number of seeds and user nodes, with their real services, on one fake clock and a network in
memory (:mod:`tests.network`). What happens in it depends on its seed alone.

    world = World(seed=1)
    world.add_seed("seedX")
    world.add_seed("seedY", peers=["seedX"])
    world.add_user("UserX", seeds=["seedX"])
    world.run(2)
    answer = world.post("Bobby", "/send", {"to": "UserX", "message": "Hello"})

Each node lives on a host of its own, with an address of its own and the ports 5001 (seeds) and 3000 (users). A call of
:meth:`World.settle` carries bytes until nothing moves any more, without time going by; :meth:`World.run` lets time go
by from one timer to the next.
"""

import itertools
import json
import random
import sqlite3
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import treq
from msgspec import UNSET
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.web.client import HTTPConnectionPool

from meshproto import wire
from meshproto.core.identity import Identity
from meshproto.core.seed import Seed, Settings
from meshproto.errors import BadState
from meshproto.net import seed_store, user_store
from meshproto.net.database_file import connect
from meshproto.net.door import Door
from meshproto.net.history import History
from meshproto.net.history_file import HistoryFile
from meshproto.net.http import LOOPBACK_HOSTS
from meshproto.net.http_client import HTTPClient
from meshproto.net.lines import LinesFactory
from meshproto.net.message_log import MessageLog
from meshproto.net.node import UserNode
from meshproto.net.process_metrics import Commits
from meshproto.net.retention import KEEP_ALL, Keep
from meshproto.net.seeding import SeedService
from meshproto.net.store import Database, SQLiteDatabase
from meshproto.net.treq_client import treq_client, treq_pool
from meshproto.net.writers import ANYONE, Accept
from tests.disk import SlowDatabase, Trouble, TroubledConnection, TroubledSync, bring_to_light
from tests.network import Endpoints, Host, Network, dial_from

SEED_PORT = 5001
USER_PORT = 3000
_worlds = itertools.count(1)


class Answer(NamedTuple):
    """An HTTP answer; `json` is what the body reads as."""

    code: int
    headers: dict[str, str]
    json: Any


class _SeedPlan(NamedTuple):
    peers: list[str]
    settings: Settings


class _UserPlan(NamedTuple):
    seeds: list[str]
    accept: Accept
    keep: Keep


class World(Network):
    """What happens is drawn from `seed`; `latency_s`: how long bytes take from one host to another; `directory`: where
    the nodes' disks are files, as `NAME.db`. Else they are in memory. `commits`: what those disks count in.
    `logs_messages`: whether users that are started from now on do."""

    def __init__(self, seed: int = 0, latency_s: float = 0.0, directory: Path | None = None) -> None:
        super().__init__(seed, latency_s)
        self.rng = random.Random(seed)
        self.seeds: dict[str, SeedService] = {}
        self.cores: dict[str, Seed] = {}
        self.users: dict[str, UserNode] = {}
        self.identities: dict[str, Identity] = {}
        self._plans: dict[str, _SeedPlan | _UserPlan] = {}
        self.troubles: dict[str, Trouble] = {}
        self.commits: dict[str, Commits] = {}
        self._databases: dict[str, sqlite3.Connection] = {}
        self._open: dict[str, sqlite3.Connection] = {}
        self._crashed: list[object] = []
        self._number = next(_worlds)
        self._directory = directory
        self.logs_messages = False
        self.laptop = self._host("laptop")
        self._client = treq_client(self.laptop, treq_pool(self.laptop), Endpoints(self.laptop))

    # -- who is there --------------------------------------------------------------------------------------------

    def add_seed(self, name: str, peers: Iterable[str] = (), settings: Settings | None = None) -> None:
        self._plans[name] = _SeedPlan(list(peers), settings or Settings())
        self._host(name)
        self._start_seed(name)

    def add_user(self, name: str, seeds: Iterable[str], accept: Accept = ANYONE, keep: Keep = KEEP_ALL) -> None:
        self._plans[name] = _UserPlan(list(seeds), accept, keep)
        self._host(name)
        self.identities[name] = Identity.create(self.rng.randbytes, int(self.clock.seconds() * 1000))
        self._start_user(name)

    def address(self, name: str) -> str:
        """HOST:PORT of a seed."""
        return f"{self.hosts[name].ip}:{SEED_PORT}"

    def crash(self, name: str) -> None:
        """The process dies between two steps: what was not committed is gone, its connections are reset."""
        self._crashed.append(self.seeds.pop(name, None) or self.users.pop(name, None))
        self._crashed += self.vanish(name)
        self._open.pop(name).close()
        bring_to_light(self.troubles[name], self._databases[name])

    def stop(self, name: str) -> None:
        """The process ends in good order (SIGTERM)."""
        node = self.users.get(name) or self.seeds[name]
        self.hosts[name].tcpServers.clear()
        self.wait(node.stopService())
        self.crash(name)

    def restart(self, name: str, settings: Settings | None = None) -> None:
        """The process starts again, on its disk, after the others have learnt that its connections are gone. A seed may
        be given other settings."""
        self.settle()
        plan = self._plans[name]
        if isinstance(plan, _SeedPlan):
            self._plans[name] = _SeedPlan(plan.peers, settings or plan.settings)
        self.start(name)

    def start(self, name: str) -> None:
        """The process starts again, at once: others may still take its connections for alive."""
        (self._start_seed if isinstance(self._plans[name], _SeedPlan) else self._start_user)(name)

    def runs(self, name: str) -> bool:
        return name in self.users or name in self.seeds

    def rotate(self, name: str) -> None:
        """A user gets a new mail key, before the next start or while the node runs."""
        now_ms = self.hosts[name].now_ms()
        if name in self.users:
            self.users[name].keys.rotate(now_ms)
        else:
            self.identities[name] = self.identities[name].rotated(self.rng.randbytes, now_ms)

    def forget_disk(self, *names: str) -> None:
        """The disks of nodes that are down are lost."""
        for name in names:
            self._databases.pop(name).close()

    def close(self) -> None:
        """The world ends: nothing is left of its disks."""
        for connection in (*self._open.values(), *self._databases.values()):
            connection.close()

    # -- talking to nodes ----------------------------------------------------------------------------------------

    def request(self, method: str, user: str, path: str, body: Any = None, **headers: str) -> "Deferred[Answer]":
        """An HTTP request from the laptop; `body`: bytes as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        url = f"http://{self.hosts[user].ip}:{USER_PORT}{path}"
        sent = self._client.request(method, url, data=data, headers=headers, reactor=self.laptop)  # type: ignore[attr-defined]

        def read(response: Any) -> Deferred[Answer]:
            answered: Deferred[bytes] = treq.content(response)
            named = {name.decode().lower(): values[0].decode() for name, values in response.headers.getAllRawHeaders()}
            return answered.addCallback(lambda text: Answer(response.code, named, json.loads(text) if text else None))

        return sent.addCallback(read)  # type: ignore[no-any-return]

    def ask(self, method: str, user: str, path: str, body: Any = None, **headers: str) -> Answer:
        answer: Answer = self.wait(self.request(method, user, path, body, **headers))
        return answer

    def get(self, user: str, path: str, **headers: str) -> Answer:
        return self.ask("GET", user, path, **headers)

    def text(self, user: str, path: str) -> tuple[str, str]:
        """The type and the text of an answer that is no JSON."""
        url = f"http://{self.hosts[user].ip}:{USER_PORT}{path}"
        response = self.wait(self._client.get(url, reactor=self.laptop))
        assert response.code == 200
        (kind,) = response.headers.getRawHeaders("content-type")
        return kind, self.wait(treq.text_content(response))

    def post(self, user: str, path: str, body: Any, **headers: str) -> Answer:
        return self.ask("POST", user, path, body, **headers)

    def send(self, sender: str, to: str, message: Any, **more: Any) -> Answer:
        return self.post(sender, "/send", {"to": to, "message": message, **more})

    def inbox(self, user: str) -> list[Any]:
        """The texts in a user's inbox, oldest first."""
        return [message["message"] for message in self._messages(user)]

    def registered(self) -> bool:
        """Whether every user that runs is at home somewhere."""
        return all(user.seeds.home is not None for user in self.users.values())

    def lookup(self, seed: str, name: str) -> wire.LookupResult | None:
        """What a seed answers, asked without a connection."""
        core = self.cores[seed]
        link = -1
        core.opened(link, "")
        request = wire.Lookup(jsonrpc="2.0", id=1, params=wire.NameParams(name))
        effects = core.receive(link, request, self.clock.seconds())
        core.closed(link, self.clock.seconds())
        answer = wire.decode_answer(effects[-1].line)  # type: ignore[union-attr]
        return None if answer.result is UNSET else wire.decode_value(answer.result, wire.LookupResult)

    def on_disk(self, name: str, query: str) -> Any:
        """The first value that a query of a node's database gives: what would survive a crash."""
        return self._databases[name].execute(query).fetchone()[0]

    def _messages(self, user: str) -> Iterator[Any]:
        after = 0
        while page := self.get(user, f"/inbox?after={after}&limit=1000").json["messages"]:
            yield from page
            after = page[-1]["cursor"]

    # -- inside --------------------------------------------------------------------------------------------------

    def _host(self, name: str) -> Host:
        self.troubles[name] = Trouble(random.Random(f"{self.seed} {name}'s disk"))
        return self.add_host(name)

    def _file(self, name: str) -> str | Path:
        memory = f"file:world{self._number}-{name}?mode=memory&cache=shared"
        return memory if self._directory is None else self._directory / f"{name}.db"

    def _node(self, name: str) -> str:
        """A node's database, as another connection is told of it."""
        where = self._file(name)
        return f"{where.as_uri()}?mode=ro" if isinstance(where, Path) else where

    def _connection(self, name: str, schema: str, version: int) -> sqlite3.Connection:
        where = self._file(name)
        self._databases.setdefault(name, sqlite3.connect(where, uri=True))  # keeps the disk while the node is down
        self._open[name] = connect(where, schema, version)
        return self._open[name]

    def _database(self, name: str, connection: sqlite3.Connection) -> Database:
        host, trouble = self.hosts[name], self.troubles[name]
        troubled = TroubledConnection(connection, trouble)
        self.commits[name] = commits = Commits(host.seconds)
        syncing = TroubledSync(troubled, trouble)
        database = SQLiteDatabase(cast(sqlite3.Connection, troubled), host, syncing, commits)
        return SlowDatabase(database, host, trouble)

    def _start_seed(self, name: str) -> None:
        host, plan = self.hosts[name], self._plans[name]
        assert isinstance(plan, _SeedPlan)
        connection = self._connection(name, seed_store.SCHEMA, seed_store.SCHEMA_VERSION)
        core = Seed(
            name,
            self.address(name),
            now=host.now(),
            rng=random.Random(self.rng.random()),
            entropy=self.rng.randbytes,
            settings=plan.settings,
            entries=seed_store.read_entries(connection),
            peers=[*(self.address(peer) for peer in plan.peers), *seed_store.read_peers(connection)],
        )
        store = seed_store.SeedStore(self._database(name, connection))
        service = SeedService(core, store, host, dial_from(host), host.now)
        host.listenTCP(SEED_PORT, LinesFactory(service.link, host, quick_each=service.answers_each))
        self.seeds[name], self.cores[name] = service, core
        service.startService()

    def _start_user(self, name: str) -> None:
        host, plan = self.hosts[name], self._plans[name]
        assert isinstance(plan, _UserPlan)
        connection = self._connection(name, user_store.SCHEMA, user_store.SCHEMA_VERSION)
        store = user_store.UserStore(self._database(name, connection))
        node = UserNode(
            name,
            self.identities[name],
            save=partial(self._save_keys, name),
            uris=lambda: [f"http://{host.ip}:{USER_PORT}"],
            seeds=[self.address(seed) for seed in plan.seeds],
            store=store,
            start=user_store.read_start(connection),
            peers=HTTPClient(host, lambda _: Endpoints(host)),
            client=treq_client(host, HTTPConnectionPool(host, persistent=False), Endpoints(host)),
            connect=dial_from(host),
            history=self._history(name, store),
            reactor=host,
            now_ms=host.now_ms,
            rng=random.Random(self.rng.random()),
            entropy=self.rng.randbytes,
            accept=plan.accept,
            keep=plan.keep,
            commits=self.commits[name],
            message_log=MessageLog() if self.logs_messages else None,
        )
        node.face.door = Door(None, LOOPBACK_HOSTS)
        host.listenTCP(USER_PORT, node.site)
        self.users[name] = node
        node.startService()

    def _history(self, name: str, store: user_store.UserStore) -> History:
        where, host = self._file(f"{name}-history"), self.hosts[name]
        return History(
            lambda: HistoryFile(where, self._node(name)),
            lambda: isinstance(where, Path) and where.exists(),
            maybeDeferred,
            store,
            host,
        )

    def _save_keys(self, name: str, identity: Identity) -> None:
        if self.troubles[name].refuses > self.rng.random():
            raise BadState("keys.json cannot be written: No space left on device")
        self.identities[name] = identity
