"""`twistd meshseed`: a seed."""

import os
import random
import re
import socket
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Interface
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from twisted.application.service import IService

from meshproto import __version__
from meshproto.core.configuration import ENDPOINT, NUMBER, PATH, SWITCH, TEXT, TEXTS, Kind, path_or
from meshproto.core.meshkey import NO_KEYS, Keyring
from meshproto.core.nearby import Announcement, Nearby, label_of, told
from meshproto.core.seed import Seed, Settings
from meshproto.errors import BadParams
from meshproto.net import seed_store
from meshproto.net.asyncio_reactor import run_on_asyncio
from meshproto.net.clocks import wait_by_monotonic_time
from meshproto.net.database_file import connect
from meshproto.net.interfaces import lan_interfaces
from meshproto.net.lan import Lan
from meshproto.net.large_pages import use_large_pages
from meshproto.net.lines import LineHandler, LinesFactory
from meshproto.net.listening import is_loopback, join_address, local_address
from meshproto.net.names_file import NamesFile, read_names
from meshproto.net.process_metrics import Commits
from meshproto.net.redis_address import RedisAddress
from meshproto.net.seeding import SeedService
from meshproto.net.state import REGISTER_TOKEN_FILE, StateDir
from meshproto.net.store import SQLiteDatabase
from meshproto.net.syncing import SyncThread
from meshproto.net.tls import Trust
from meshproto.net.tls_listening import check_endpoint, is_tls
from meshproto.net.turns import Turns
from meshproto.tap import NodeOptions, NodeService, addresses, read_keys, yes_or_no
from meshproto.wire import TLS_PREFIX, EntryValue, split_address

if TYPE_CHECKING:
    from meshproto.net.sharing import Bringing, MakeStore, Sharing

MACHINE_CHARS_MAX: Final = 40
"""Of a machine's name, in that of its seed."""
MANY_NAMES: Final = 100_000
"""From so many on, 50 MB, the look-ups wait for memory, and it takes the tenth of a second that is needed to have it in
large pages."""


class Options(NodeOptions):
    kind = "seed"
    synopsis = "[options]"
    about = "A seed: knows where every user is, and tells whoever asks."
    optParameters: ClassVar[list[list[Any]]] = [
        ["name", None, None, "this seed's name among the seeds [default: seed-PORT]"],
        ["port", "p", None, "the port to listen on, on this machine only; 0: any free one [default: 5001]"],
        ["listen", None, None, "a Twisted server endpoint instead of --port, such as tcp:5001"],
        [
            "shared-port",
            None,
            None,
            "listen on this port of this machine too, together with other seeds that do (as many as it has cores, say)",
        ],
        ["advertise", None, None, "HOST:PORT or tls:HOST:PORT at which others reach this seed"],
        ["log-format", None, None, "how the log is written: text or json [default: text]"],
        ["state", None, None, "directory for what must outlive a restart"],
        ["http", None, None, "a Twisted server endpoint for metrics and a picture of the mesh, such as tcp:5080"],
        ["mesh-key", None, None, "file with the mesh's keys, one a line: gossip with those alone that prove one"],
        ["ca", None, None, "file with certificates (PEM): who is trusted with tls:, in place of the system's"],
        [
            "directory",
            None,
            None,
            "redis://HOST:PORT[,HOST:PORT...] or rediss://...: share a directory with other seeds in a Redis or Valkey "
            "cluster [default: one of its own]",
        ],
        ["directory-import", None, None, "take over what stands in another directory, once; as --directory"],
        ["directory-password", None, None, "file with the password for --directory and --directory-import"],
        ["register", None, None, "who may register: open, token, or a file of names [default: open]"],
        ["names", None, None, "whether clients may list names: yes or no [default: yes]"],
    ]
    optFlags: ClassVar[list[list[Any]]] = [
        ["lan", None, "be found on the local network, and find the seeds there"],
    ]
    twins: ClassVar[dict[str, str]] = {
        "lan": "MESH_LAN",
        "port": "PORT",
        "name": "USER_NAME",
        "listen": "MESH_LISTEN",
        "shared-port": "MESH_SHARED_PORT",
        "advertise": "MESH_ADVERTISE",
        "state": "MESH_STATE",
        "log-format": "MESH_LOG_FORMAT",
        "peer": "MESH_PEERS",
        "mesh-key": "MESH_KEY_FILE",
        "ca": "MESH_CA",
        "register": "MESH_REGISTER",
        "names": "MESH_NAMES",
        "http": "MESH_HTTP",
        "directory": "MESH_DIRECTORY",
        "directory-import": "MESH_DIRECTORY_IMPORT",
        "directory-password": "MESH_DIRECTORY_PASSWORD_FILE",
        "config": "MESH_CONFIG",
    }
    kinds: ClassVar[dict[str, Kind]] = {
        "name": TEXT,
        "port": NUMBER,
        "listen": ENDPOINT,
        "advertise": TEXT,
        "state": PATH,
        "log-format": TEXT,
        "peer": TEXTS,
        "mesh-key": PATH,
        "ca": PATH,
        "register": path_or("open", "token"),
        "names": SWITCH,
        "http": ENDPOINT,
        "lan": SWITCH,
        "shared-port": NUMBER,
        "directory": TEXT,
        "directory-import": TEXT,
        "directory-password": PATH,
    }
    reloads = frozenset({"peer", "ca", "names"})
    fallbacks: ClassVar[dict[str, Any]] = {
        "port": 5001,
        "names": "yes",
        "register": "open",
        "peer": [],
        "log-format": "text",
    }
    lists = frozenset({"peer"})

    def __init__(self) -> None:
        super().__init__()
        self["peer"] = []

    def opt_peer(self, address: str) -> None:
        """HOST:PORT or tls:HOST:PORT of another seed; may be given several times, one that answers is enough"""
        self["peer"].append(address)

    def postOptions(self) -> None:
        super().postOptions()
        self._check("peer", addresses)
        if self["shared-port"] is not None:
            self._check("shared-port", _shared_port)
        self._check("names", yes_or_no)
        if self["http"] is not None:
            self._check("http", check_endpoint)
        for option in ("directory", "directory-import"):
            if self[option] is not None:
                self._check(option, _directory)
        self["directory-password"] = Path(self["directory-password"]) if self["directory-password"] else None
        if self["advertise"] is not None:
            self._check("advertise", lambda address: addresses([address])[0])

    def _name_by_default(self) -> None:
        if self["name"] is None:
            self["name"] = f"seed-{_machine()}-{self['port']}" if self["lan"] else f"seed-{self['port']}"

    def look(self) -> None:
        super().look()
        if self["mesh-key"] is not None:
            read_keys(Path(self["mesh-key"]), "mesh")
        if self["register"] not in ("open", "token"):
            read_names(Path(self["register"]))


def _machine() -> str:
    """What this machine is called, as far as it can stand in a name."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().partition(".")[0])[:MACHINE_CHARS_MAX] or "machine"


def _shared_port(given: str) -> tuple[str, int]:
    """The address to listen on, and the port: one that others can know."""
    host, port = split_address(given if ":" in given else f"127.0.0.1:{given}")
    if not port:
        raise BadParams("a port that is shared has a number: not 0")
    return host, port


def _directory(given: str) -> RedisAddress:
    """Its address; from then on this process has the reactor that it needs."""
    address = RedisAddress.parse(given)
    run_on_asyncio()
    return address


class SeedNode(NodeService):
    program = "meshseed"
    seed: SeedService
    core: Seed
    _turns: Turns
    _address: str

    def status(self) -> str:
        told = self.core.status(self.seed.now())
        return f"{told.online} of {told.names} names online, {told.alive} of {told.seeds} seeds alive"

    def take(self, fresh: NodeOptions) -> set[str]:
        """There stay as many mesh keys or none, since others are connected who have proven one, or not."""
        options = self.options
        left = set(options.changed(fresh)) - options.reloads
        if None not in (options["mesh-key"], fresh["mesh-key"]):
            left.discard("mesh-key")
        key_file = options["mesh-key"] if "mesh-key" in left else fresh["mesh-key"]
        trust, mesh_keys, tokens = Trust.read(fresh["ca"]), self._mesh_keys(key_file), self._register_tokens()
        self.trust.follow(trust)
        self.core.reconfigure(list_names=fresh["names"], mesh_keys=mesh_keys, register_tokens=tokens)
        before, now = set(options["peer"]), set(fresh["peer"])
        self.core.peering.give(fresh["peer"], before - now)
        return left

    def open(self, state: StateDir) -> SeedService:
        options, reactor = self.options, self.reactor
        settings = self._settings()
        connection = connect(
            state.database("seed.db"), seed_store.SCHEMA, seed_store.SCHEMA_VERSION, seed_store.UPGRADES
        )
        self._turns = turns = Turns(reactor)
        where = self.listen(LinesFactory(self._link, reactor, turns, self._answers_each))
        if options["shared-port"] is not None:
            host, port = options["shared-port"]
            self.listen_together(host, port, LinesFactory(self._link, reactor, turns, self._answers_each))
        prefix = TLS_PREFIX if is_tls(self.options.endpoint) else ""
        self._address = address = options["advertise"] or prefix + self.dialled_at(where)
        entries = seed_store.read_entries(connection)
        sharing, bringing = self._shared(entries)
        core = Seed(
            options["name"],
            address,
            now=time.time(),
            rng=random.Random(os.urandom(16)),
            entropy=os.urandom,
            settings=settings,
            entries=entries,
            make_names=None if sharing is None else sharing.make_names,
            peers=[*options["peer"], *seed_store.read_peers(connection)],
        )
        if len(core.directory) >= MANY_NAMES:
            use_large_pages()
        self.syncing = SyncThread(connection, reactor)
        commits = Commits()
        store = seed_store.SeedStore(SQLiteDatabase(connection, reactor, self.syncing, commits))
        self.core = core
        self.seed = SeedService(core, store, reactor, self.endpoints.seed, time.time, turns, sharing, bringing)
        if options["http"] is not None:
            self._open_http(core, commits)
        if options["lan"]:
            self._open_lan(self.lan_port(where), settings)
        self.announce(state, prefix + local_address(where) if where else address)
        self.log.info("{name} listens, and says that it is at {address}", name=options["name"], address=address)
        return self.seed

    def _shared(self, entries: Iterator[tuple[str, EntryValue]]) -> "tuple[Sharing | None, Bringing | None]":
        """The directory that is shared, and the one that is given up. Raises :class:`BadState`."""
        options, reactor = self.options, self.reactor
        if options["directory"] is None and options["directory-import"] is None:
            return None, None
        # Whoever has a directory of their own need not have the client of another.
        from meshproto.net.sharing import Bringing, Sharing  # noqa: PLC0415

        sharing = bringing = None
        if options["directory"] is not None:
            sharing = Sharing(self._make_store("directory"), reactor, time.time, list(entries))
        if options["directory-import"] is not None:
            bringing = Bringing(self._make_store("directory-import"), reactor)
        return sharing, bringing

    def _make_store(self, option: str) -> "MakeStore":
        """Raises :class:`BadState`."""
        from meshproto.net.redis_store import RedisStore  # noqa: PLC0415

        options = self.options
        address = options[option].with_password_of(options["directory-password"])
        return lambda changed, resumed: RedisStore(address, self.reactor, changed, resumed, options["ca"])

    def _open_lan(self, where: tuple[str, int], settings: Settings) -> None:
        """Be found at this machine's addresses on local networks, and find others. Raises :class:`BadState`."""
        options, tls, marks = self.options, is_tls(self.options.endpoint), settings.mesh_keys.marks() or [""]

        def moved(here: list[IPv4Interface]) -> list[str]:
            hosts = self.follow(where, here, LinesFactory(self._link, self.reactor, self._turns, self._answers_each))
            if hosts and options["advertise"] is None:
                address = f"{TLS_PREFIX if tls else ''}{join_address(hosts[0], where[1])}"
                if address != self._address:
                    self._address = address
                    self.seed.moved(address)
            return hosts

        def announce(hosts: list[str]) -> Announcement:
            text = told(options["name"], marks[0], tls=tls)
            return Announcement(label_of(options["name"]), tuple(hosts), where[1], text)

        nearby = Nearby(options["name"], marks)
        self.lan = Lan(self.reactor, nearby, moved=moved, announce=announce, found=self.seed.found)
        moved(lan_interfaces())

    def _settings(self) -> Settings:
        """Raises :class:`BadState`."""
        options, may_register = self.options, None
        if options["register"] not in ("open", "token"):
            may_register = NamesFile(Path(options["register"]), self.reactor).allow
        return Settings(
            list_names=options["names"],
            mesh_keys=self._mesh_keys(options["mesh-key"]),
            register_tokens=self._register_tokens(),
            may_register=may_register,
            version=__version__,
        )

    def _mesh_keys(self, file: str | None) -> Keyring:
        return NO_KEYS if file is None else read_keys(Path(file), "mesh")

    def _register_tokens(self) -> Keyring:
        if self.state is None or self.options["register"] != "token":
            return NO_KEYS
        made = self.state.register_token(os.urandom)
        return read_keys(self.state.path / REGISTER_TOKEN_FILE, "register", made)

    def _open_http(self, core: Seed, commits: Commits) -> None:
        # Klein costs seven megabytes: of a million names, seven bytes each.
        from meshproto.net.http import LOOPBACK_HOSTS  # noqa: PLC0415
        from meshproto.net.seed_front import SeedFront, site  # noqa: PLC0415

        front = SeedFront(core, self.seed, commits)
        where = self.listen(site(front, self.reactor), "http")
        if where is not None and is_loopback(where[0]):
            front.hosts = LOOPBACK_HOSTS
        scheme = "https" if is_tls(self.options["http"]) else "http"
        url = f"{scheme}://{local_address(where)}/" if where else self.options["http"]
        self.log.info("the mesh can be seen at {url}", url=url)

    def _link(self, network: str) -> LineHandler | None:
        return self.seed.link(network)

    def _answers_each(self, links: Sequence[Any], lines: list[bytes]) -> list[bytes]:
        return self.seed.answers_each(links, lines)


def makeService(options: Options) -> IService:
    from twisted.internet import reactor  # noqa: PLC0415 - not before twistd has installed the one that was asked for

    wait_by_monotonic_time(reactor)
    return SeedNode(options, reactor)
