"""`twistd meshuser`: a user's node."""

import os
import random
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.web.client import HTTPConnectionPool

from meshproto.core.configuration import COMMAND, ENDPOINT, NUMBER, PATH, SWITCH, TEXT, TEXTS, Kind, path_or
from meshproto.core.identity import check_uri
from meshproto.core.meshkey import NO_KEYS, Keyring
from meshproto.core.nearby import Nearby
from meshproto.errors import BadParams
from meshproto.net import user_store
from meshproto.net.clocks import wait_by_monotonic_time, wall_ms
from meshproto.net.courier import CONNECT_TIMEOUT_S, peers
from meshproto.net.database_file import connect
from meshproto.net.deliver_exec import DeliverExec, parse_command
from meshproto.net.deliver_to import DeliverTo, check_url
from meshproto.net.dialling import Dialling
from meshproto.net.door import Door
from meshproto.net.face import Face, site
from meshproto.net.history import History
from meshproto.net.history_file import HistoryFile
from meshproto.net.http import LOOPBACK_HOSTS
from meshproto.net.http_client import HTTPClient
from meshproto.net.inherited import is_inherited_unix
from meshproto.net.interfaces import lan_interfaces
from meshproto.net.lan import Lan
from meshproto.net.listening import is_loopback, join_address, local_address
from meshproto.net.message_log import MessageLog
from meshproto.net.names_file import NamesFile, read_names
from meshproto.net.node import UserNode
from meshproto.net.process_metrics import Commits
from meshproto.net.program import Program
from meshproto.net.retention import Keep
from meshproto.net.state import TOKEN_FILE, StateDir
from meshproto.net.store import SQLiteDatabase
from meshproto.net.syncing import SyncThread
from meshproto.net.tls import Trust
from meshproto.net.tls_listening import check_endpoint, is_tls
from meshproto.net.treq_client import TreqClient, treq_client, treq_pool
from meshproto.net.unix_socket import is_unix, socket_path
from meshproto.net.writers import ANYONE, CONTACTS, Accept
from meshproto.tap import NodeOptions, NodeService, addresses, read_keys, yes_or_no

HISTORY_FILE: Final = "history.db"
KEEP_DAYS_MAX: Final = 36500.0
DIGITS_MAX: Final = 15
"""A larger number is a mistake, and no integer of the database's."""

_ACCEPTS: Final = {"anyone": ANYONE, "contacts": CONTACTS}


class Options(NodeOptions):
    kind = "user"
    synopsis = "[options]"
    about = (
        "A user's node: registers a name with a seed, takes messages from the owner over HTTP and delivers them "
        "straight to the recipient's node."
    )
    optParameters: ClassVar[list[list[Any]]] = [
        ["name", None, None, "the name others send to"],
        ["port", "p", None, "the port to listen on, on this machine only; 0: any free one [default: 3000]"],
        ["listen", None, None, "a Twisted server endpoint instead of --port, such as tcp:3000"],
        [
            "api",
            None,
            None,
            "a Twisted server endpoint for the owner's part alone, such as unix:mesh.sock",
        ],
        ["advertise", None, None, "the URI at which others reach this node, such as http://192.0.2.7:3000"],
        ["log-format", None, None, "how the log is written: text or json [default: text]"],
        ["state", None, None, "directory for keys and messages"],
        ["ca", None, None, "file with certificates (PEM): who is trusted, in place of the system's"],
        ["register-token", None, None, "file with the register tokens of seeds that ask for one, one a line"],
        ["deliver-to", None, None, "URL of a program on this machine to which each message is posted"],
        ["deliver-exec", None, None, "command line that is run with each message on its standard input"],
        ["keep-days", None, None, "delete messages that are older [default: the inbox keeps all]"],
        ["keep-messages", None, None, "keep so many messages in the inbox, the latest [default: all]"],
        ["log-messages", None, None, "a line in the log for each step of each message: yes or no [default: no]"],
        ["accept", None, None, "who may write to me: anyone, contacts, or a file of names [default: anyone]"],
    ]
    optFlags: ClassVar[list[list[Any]]] = [
        ["lan", None, "find seeds on the local network, and be reached from there"],
    ]
    twins: ClassVar[dict[str, str]] = {
        "lan": "MESH_LAN",
        "name": "USER_NAME",
        "port": "PORT",
        "listen": "MESH_LISTEN",
        "api": "MESH_API",
        "advertise": "MESH_ADVERTISE",
        "state": "MESH_STATE",
        "log-format": "MESH_LOG_FORMAT",
        "seed": "MESH_SEEDS",
        "ca": "MESH_CA",
        "register-token": "MESH_REGISTER_TOKEN",
        "deliver-to": "MESH_DELIVER_TO",
        "deliver-exec": "MESH_DELIVER_EXEC",
        "keep-days": "MESH_KEEP_DAYS",
        "keep-messages": "MESH_KEEP_MESSAGES",
        "accept": "MESH_ACCEPT",
        "log-messages": "MESH_LOG_MESSAGES",
        "config": "MESH_CONFIG",
    }
    kinds: ClassVar[dict[str, Kind]] = {
        "name": TEXT,
        "port": NUMBER,
        "listen": ENDPOINT,
        "api": ENDPOINT,
        "advertise": TEXT,
        "state": PATH,
        "log-format": TEXT,
        "log-messages": SWITCH,
        "seed": TEXTS,
        "ca": PATH,
        "register-token": PATH,
        "deliver-to": TEXT,
        "deliver-exec": COMMAND,
        "keep-days": NUMBER,
        "keep-messages": NUMBER,
        "accept": path_or(*_ACCEPTS),
        "lan": SWITCH,
    }
    reloads = frozenset({"seed", "ca", "register-token", "keep-days", "keep-messages", "accept"})
    fallbacks: ClassVar[dict[str, Any]] = {
        "port": 3000,
        "seed": ["localhost:5001"],
        "accept": "anyone",
        "log-format": "text",
        "log-messages": "no",
    }
    lists = frozenset({"seed"})

    def __init__(self) -> None:
        super().__init__()
        self["seed"] = []

    def opt_seed(self, address: str) -> None:
        """HOST:PORT or tls:HOST:PORT of a seed; may be given several times [default: localhost:5001]"""
        self["seed"].append(address)

    def fallback(self, option: str) -> Any:
        """Seeds that are looked for on the local network need not be given."""
        return [] if option == "seed" and self["lan"] not in (0, None, "no") else super().fallback(option)

    def postOptions(self) -> None:
        super().postOptions()
        self._check("seed", addresses)
        self._check("log-messages", yes_or_no)
        if self["api"] is not None:
            self._check("api", check_endpoint)
        if self["advertise"] is not None:
            self._check("advertise", _uri)
        for option, parse in (("keep-days", _days), ("keep-messages", _number)):
            if self[option] is not None:
                self._check(option, parse)
        if self["deliver-to"] is not None:
            self._check("deliver-to", check_url)
        if self["deliver-exec"] is not None:
            self._check("deliver-exec", parse_command)

    def look(self) -> None:
        super().look()
        _register_tokens(self)
        if self["accept"] not in _ACCEPTS:
            read_names(Path(self["accept"]))


def _uri(text: str) -> str:
    check_uri(text)
    return text.rstrip("/")


def _register_tokens(options: NodeOptions) -> Keyring:
    given = options["register-token"]
    return NO_KEYS if given is None else read_keys(Path(given), "register")


def _scheme(described: str) -> str:
    """How a listener is spoken to."""
    return "https" if is_tls(described) else "http"


def _days(text: str) -> float:
    days = float(text)
    if not 0 < days <= KEEP_DAYS_MAX:
        raise BadParams(f"{text!r} is no number of days: above 0, at most {KEEP_DAYS_MAX:g}; 0.5 is twelve hours")
    return days


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > DIGITS_MAX:
        raise BadParams(f"{text[:40]!r} is no number of messages: 0 or more")
    return int(text)


class UserService(NodeService):
    program = "meshuser"
    uri: str
    _lan_hosts: tuple[str, ...] | list[str] = ()
    _port: int
    _pool: HTTPConnectionPool
    node: UserNode
    _peers: HTTPClient
    _dialling: Dialling

    def status(self) -> str:
        home, waiting = self.node.seeds.home, self.node.sending.outbox.waiting
        where = self.node.seeds.problem or (f"registered at {home.name}" if home else "not registered yet")
        return f"{where}, {waiting} waiting"

    def take(self, fresh: NodeOptions) -> set[str]:
        left = set(self.options.changed(fresh)) - self.options.reloads
        trust, tokens, accept = Trust.read(fresh["ca"]), _register_tokens(fresh), self._accept(fresh["accept"])
        self.trust.follow(trust)
        self._dialling.give(fresh["seed"])
        keep = Keep(fresh["keep-days"], fresh["keep-messages"])
        self.node.reconfigure(seeds=fresh["seed"], register_tokens=tokens, keep=keep, accept=accept)
        return left

    def open(self, state: StateDir) -> UserNode:
        options, reactor = self.options, self.reactor
        tokens = _register_tokens(options)
        identity = state.identity(os.urandom, wall_ms())
        database = state.database("user.db")
        connection = connect(database, user_store.SCHEMA, user_store.SCHEMA_VERSION, user_store.UPGRADES)
        self._pool = treq_pool(reactor)
        self._peers = peers(reactor, self.trust)
        client = treq_client(reactor, self._pool, self.endpoints.http(CONNECT_TIMEOUT_S))
        programs = self._programs(client)
        cursors = user_store.begin_cursors(connection, [program.kind for program in programs])
        self.syncing = SyncThread(connection, reactor)
        commits = Commits()
        store = user_store.UserStore(SQLiteDatabase(connection, reactor, self.syncing, commits))
        self._dialling = Dialling(reactor, self.trust, options["seed"])
        node = self.node = UserNode(
            options["name"],
            identity,
            save=state.save,
            uris=lambda: [self._uri_seen_at(node.seeds.seen_at)],
            seeds=options["seed"],
            store=store,
            start=user_store.read_start(connection),
            peers=self._peers,
            client=client,
            connect=self._dialling,
            history=self._history(state, database, store),
            reactor=reactor,
            now_ms=wall_ms,
            rng=random.Random(os.urandom(16)),
            entropy=os.urandom,
            programs=[(program, cursors[program.kind]) for program in programs],
            register_tokens=tokens,
            keep=Keep(options["keep-days"], options["keep-messages"]),
            accept=self._accept(options["accept"]),
            commits=commits,
            message_log=MessageLog() if options["log-messages"] else None,
        )
        where = self.listen(node.site)
        self.uri = options["advertise"] or f"{_scheme(options.endpoint)}://{self.dialled_at(where)}"
        if options["lan"]:
            self._open_lan(self.lan_port(where), node)
        self.announce(state, self._let_in(where, node, state))
        self.log.info("{name} listens, and says that it is at {uri}", name=options["name"], uri=self.uri)
        return node

    def _open_lan(self, where: tuple[str, int], node: UserNode) -> None:
        """Find seeds on local networks, and be reached at this machine's addresses there. Raises :class:`BadState`."""

        def moved(here: list[IPv4Interface]) -> list[str]:
            before, self._lan_hosts = self._lan_hosts, self.follow(where, here, node.public_site)
            if before != self._lan_hosts and node.running:
                node.seeds.renew()
            return self._lan_hosts

        self._port = where[1]
        self.lan = Lan(self.reactor, Nearby(), moved=moved, announce=None, found=node.seeds.found)
        moved(lan_interfaces())

    def _uri_seen_at(self, host: str) -> str:
        """Where peers reach this node, which is at this address of the machine on its way to the home seed."""
        if self.options["advertise"] is not None or not self._lan_hosts:
            return self.uri
        host = host if host in self._lan_hosts else self._lan_hosts[0]
        return f"{_scheme(self.options.endpoint)}://{join_address(host, self._port)}"

    def _history(self, state: StateDir, node: Path, store: user_store.UserStore) -> History:
        return History(
            lambda: HistoryFile(state.database(HISTORY_FILE), f"{node.as_uri()}?mode=ro"),
            (state.path / HISTORY_FILE).exists,
            partial(deferToThreadPool, self.reactor, self.reactor.getThreadPool()),
            store,
            self.reactor,
        )

    def _let_in(self, where: tuple[str, int] | None, node: UserNode, state: StateDir) -> str:
        """Opens the door to the owner: on a listener of its own, or on the one that takes what peers send, at `where`.
        The address of the owner's part. Raises :class:`BadState`."""
        face, described = node.face, self.options["api"]
        if described is not None:
            face = Face(None, node.front, tally=node.http_tally)
            where = self.listen(site(face, self.reactor), "api")
            if is_unix(described) or is_inherited_unix(described):
                face.door = Door(None, LOOPBACK_HOSTS)
                return f"unix:{socket_path(self.ports[-1])}"
        if where is not None and is_loopback(where[0]):
            face.door = Door(None, LOOPBACK_HOSTS)
        else:
            self.log.info("the owner's part asks for the token in {file}", file=str(state.path / TOKEN_FILE))
            face.door = Door(state.token(os.urandom), {*LOOPBACK_HOSTS, urlsplit(self.uri).hostname or ""})
        return f"{_scheme(described or self.options.endpoint)}://{local_address(where)}" if where else self.uri

    def _accept(self, given: str) -> Accept:
        """Raises :class:`meshproto.errors.BadState` when it is a file that does not read."""
        return _ACCEPTS[given] if given in _ACCEPTS else Accept(True, NamesFile(Path(given), self.reactor))

    def _programs(self, client: TreqClient) -> list[Program]:
        programs: list[Program] = []
        if self.options["deliver-to"] is not None:
            programs.append(DeliverTo(self.options["deliver-to"], client, self.reactor))
        if self.options["deliver-exec"] is not None:
            programs.append(DeliverExec(self.options["deliver-exec"], self.reactor))
        return programs

    def stopService(self) -> "Deferred[None]":
        stopped = super().stopService()
        stopped.addCallback(lambda _: self._pool.closeCachedConnections())
        stopped.addCallback(lambda _: self._peers.close())
        return stopped


def makeService(options: Options) -> IService:
    from twisted.internet import reactor  # noqa: PLC0415 - not before twistd has installed the one that was asked for

    wait_by_monotonic_time(reactor)
    return UserService(options, reactor)
