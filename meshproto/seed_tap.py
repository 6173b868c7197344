"""`twistd meshseed`: a seed."""

import os
import random
import resource
from typing import Any, ClassVar

from twisted.application.service import IService

from meshproto import __version__
from meshproto.core.seed import Seed, Settings
from meshproto.errors import BadParams
from meshproto.net import seed_store
from meshproto.net.lines import LineHandler, LinesFactory
from meshproto.net.listening import local_address
from meshproto.net.seeding import SeedService
from meshproto.net.state import StateDir
from meshproto.net.store import ThreadedDatabase, connect
from meshproto.tap import NodeOptions, NodeService, addresses


class Options(NodeOptions):
    kind = "seed"
    synopsis = "[options]"
    longdesc = (
        "A seed: knows where every user is, and tells whoever asks. Every option has a twin in the environment "
        "(USER_NAME, PORT, MESH_LISTEN, MESH_ADVERTISE, MESH_STATE, MESH_PEERS, MESH_NAMES)."
    )
    optParameters: ClassVar[list[list[Any]]] = [
        ["name", None, None, "this seed's name among the seeds [default: seed-PORT]"],
        ["port", "p", None, "the port to listen on, on this machine only; 0: any free one [default: 5001]"],
        ["listen", None, None, "a Twisted server endpoint instead of --port, such as tcp:5001"],
        ["advertise", None, None, "HOST:PORT at which others reach this seed"],
        ["state", None, None, "directory for what must outlive a restart"],
        ["names", None, None, "whether clients may list names: yes or no [default: yes]"],
    ]
    twins: ClassVar[dict[str, str]] = {
        "port": "PORT",
        "name": "USER_NAME",
        "listen": "MESH_LISTEN",
        "advertise": "MESH_ADVERTISE",
        "state": "MESH_STATE",
        "peer": "MESH_PEERS",
        "names": "MESH_NAMES",
    }
    fallbacks: ClassVar[dict[str, Any]] = {"port": 5001, "names": "yes", "peer": []}
    lists = frozenset({"peer"})

    def __init__(self) -> None:
        super().__init__()
        self["peer"] = []

    def opt_peer(self, address: str) -> None:
        """HOST:PORT of another seed; may be given several times, one that answers is enough"""
        self["peer"].append(address)

    def postOptions(self) -> None:
        if self["name"] is None and "USER_NAME" not in self.environ:
            port = self["port"] or self.environ.get("PORT") or self.fallbacks["port"]
            self["name"] = f"seed-{port}"
        super().postOptions()
        self._check("peer", addresses)
        self._check("names", _yes_or_no)
        if self["advertise"] is not None:
            self._check("advertise", lambda address: addresses([address])[0])


def _yes_or_no(given: str) -> bool:
    if given not in ("yes", "no"):
        raise BadParams(f"{given!r} is neither yes nor no")
    return given == "yes"


class SeedNode(NodeService):
    program = "meshseed"
    seed: SeedService

    def open(self, state: StateDir) -> SeedService:
        _raise_open_files()
        options, reactor = self.options, self.reactor
        connection = connect(state.database("seed.db"), seed_store.SCHEMA, seed_store.SCHEMA_VERSION)
        where = self.listen(LinesFactory(self._link, reactor))
        address = options["advertise"] or self.dialled_at(where)
        core = Seed(
            options["name"],
            address,
            now=reactor.seconds(),
            rng=random.Random(os.urandom(16)),
            settings=Settings(list_names=options["names"], version=__version__),
            entries=seed_store.read_entries(connection),
            peers=[*options["peer"], *seed_store.read_peers(connection)],
        )
        store = seed_store.SeedStore(ThreadedDatabase(connection, reactor))
        self.seed = SeedService(core, store, reactor, self.dial)
        state.announce(local_address(where) if where else address)
        return self.seed

    def _link(self) -> LineHandler:
        return self.seed.link()


def _raise_open_files() -> None:
    """As many connections as this process may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def makeService(options: Options) -> IService:
    from twisted.internet import reactor  # noqa: PLC0415 - not before twistd has installed the one that was asked for

    return SeedNode(options, reactor)
