"""What the two twistd plugins have in common: options with environment twins, and a service that takes its state
directory and its port or ends the process with one clear line."""

import gc
import os
import re
import resource
import sqlite3
import sys
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any, ClassVar, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import ILogObserver, Logger
from twisted.python import usage
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from meshproto.core.meshkey import Domain, Keyring
from meshproto.core.nearby import is_lan
from meshproto.errors import BadParams, BadState, MeshError
from meshproto.net.interfaces import lan_interfaces
from meshproto.net.json_log import json_observer
from meshproto.net.lan import Lan
from meshproto.net.listening import WILDCARD_HOSTS, host_port, join_address, listen, with_backlog
from meshproto.net.state import StateDir, default_path, read_secret
from meshproto.net.tls import Endpoints, Trust
from meshproto.net.tls_listening import check_endpoint, server_endpoint
from meshproto.net.unix_socket import UnixSockets, is_unix
from meshproto.wire import NAME_PATTERN, NAME_RULE, split_address

LOG_FORMATS: Final = ("text", "json")


class NodeOptions(usage.Options):
    """`twins`: option -> environment variable. Options win over the environment, the environment over defaults. `lists`
    are the options that may be given several times; in the environment they are separated by commas. `flags`: those
    without a value, yes or no in the environment."""

    kind: ClassVar[str]
    about: ClassVar[str]
    twins: ClassVar[dict[str, str]]
    fallbacks: ClassVar[dict[str, Any]]
    lists: ClassVar[frozenset[str]] = frozenset()
    flags: ClassVar[frozenset[str]] = frozenset({"lan"})
    environ: ClassVar[Mapping[str, str]] = os.environ

    @property
    def longdesc(self) -> str:
        """What `--help` begins with."""
        return f"{self.about} Every option has a twin in the environment ({', '.join(self.twins.values())})."

    def postOptions(self) -> None:
        """Raises :class:`usage.UsageError`, which twistd shows under the usage text."""
        for option, variable in self.twins.items():
            if self[option] in (None, [], 0):
                given = self.environ.get(variable)
                self[option] = self._from_environment(option, given) if given else self.fallback(option)
        for flag in self.flags:
            self._check(flag, is_set)
        self._check("name", self._name)
        self._check("port", self._port)
        if self["listen"] is not None:
            self._check("listen", check_endpoint)
        self._check("log-format", _log_format)
        self["ca"] = Path(self["ca"]) if self["ca"] else None
        self["state"] = Path(self["state"]) if self["state"] else default_path(self.kind, self["name"])

    def fallback(self, option: str) -> Any:
        """What is taken when nobody says anything."""
        return self.fallbacks.get(option)

    def _from_environment(self, option: str, given: str) -> str | list[str]:
        return [part.strip() for part in given.split(",") if part.strip()] if option in self.lists else given

    def _check(self, option: str, parse: Callable[[Any], Any]) -> None:
        try:
            self[option] = parse(self[option])
        except (MeshError, ValueError, TypeError, KeyError) as reason:
            detail = reason.detail if isinstance(reason, MeshError) else str(reason)
            raise usage.UsageError(f"--{option} (or {self.twins[option]}): {detail}") from None

    def _name(self, given: str | None) -> str:
        if given is None:
            raise BadParams("a name is needed")
        if not re.match(NAME_PATTERN, given):
            raise BadParams(f"{given!r} is not a name: {NAME_RULE}")
        return given

    def _port(self, given: Any) -> int:
        text = str(given)
        if not text.isascii() or not text.isdigit() or int(text) > 65535:
            raise BadParams(f"{text!r} is not a port: a number from 0 (any free one) to 65535")
        return int(text)

    @property
    def endpoint(self) -> str:
        """The server endpoint string to listen on: loopback unless --listen says otherwise."""
        return str(self["listen"] or f"tcp:{self['port']}:interface=127.0.0.1")


def is_set(given: str | int | None) -> bool:
    """A flag: how often it was given, or what the environment says. Raises :class:`BadParams`."""
    return yes_or_no(given) if isinstance(given, str) else bool(given)


def addresses(given: list[str]) -> list[str]:
    """HOST:PORT or tls:HOST:PORT texts, checked. Raises :class:`BadParams`."""
    for address in given:
        split_address(address)
    return given


def _log_format(given: str) -> str:
    if given not in LOG_FORMATS:
        raise BadParams(f"{given!r} is neither {' nor '.join(LOG_FORMATS)}")
    return given


def yes_or_no(given: str) -> bool:
    """Raises :class:`BadParams`."""
    if given not in ("yes", "no"):
        raise BadParams(f"{given!r} is neither yes nor no")
    return given == "yes"


def read_keys(path: Path, domain: Domain, text: bytes | None = None) -> Keyring:
    """The keys in a file that its owner alone can read; `text`: what is in it. Raises :class:`BadState`."""
    try:
        return Keyring.parse(read_secret(path) if text is None else text, domain)
    except BadParams as wrong:
        raise BadState(f"{path}: {wrong.detail}") from None


def _raise_open_files() -> None:
    """As many connections as this process may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


YOUNG_OBJECTS: Final = 10_000
"""Made since the last time, that Python looks for garbage again: about as many as a second's idle traffic makes."""


def _leave_what_is_there() -> None:
    """What has been made up to now stays for good, and Python's collector need not look at it, which took 25 ms each
    time and under load came twice a second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


class NodeService(Service):
    """Opens in `privilegedStartService`, which twistd calls after it has become a daemon and before it gives up root.
    `open` takes what is needed from the outside and returns the service that runs then."""

    program: ClassVar[str]
    log = Logger()

    def __init__(self, options: NodeOptions, reactor: Any) -> None:
        self.options = options
        self.reactor = reactor
        self.state: StateDir | None = None
        self.ports: list[IListeningPort] = []
        self.inner: Service | None = None
        self.lan: Lan | None = None
        self._lan_ports: dict[str, IListeningPort] = {}
        self.trust = Trust()
        self.endpoints = Endpoints(reactor, self.trust)

    def open(self, state: StateDir) -> Service:
        """Raises :class:`BadState`."""
        raise NotImplementedError

    def setServiceParent(self, parent: Any) -> None:
        """Called by twistd with the application, before it begins to log: what an application brings along is asked
        before twistd makes a log of its own, and has twistd's first lines too."""
        super().setServiceParent(parent)
        if self.options["log-format"] == "json" and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, json_observer(self.options.parent or {}, self.reactor.callFromThread))

    def privilegedStartService(self) -> None:
        _raise_open_files()
        try:
            self.trust = Trust.read(self.options["ca"])
            self.endpoints = Endpoints(self.reactor, self.trust)
            self.state = StateDir(self.options["state"])
            self.inner = self.open(self.state)
        except (BadState, sqlite3.Error) as error:
            reason = error.detail if isinstance(error, BadState) else f"the database cannot be read: {error}"
            self.log.error("{reason}", reason=reason)
            print(f"{self.program}: {reason}", file=sys.__stderr__)  # sys.stderr is twistd's log
            raise SystemExit(1) from None
        super().privilegedStartService()

    def startService(self) -> None:
        super().startService()
        if self.inner is not None:
            self.inner.startService()
            if self.lan is not None:
                self.lan.startService()
            _leave_what_is_there()

    def stopService(self) -> "Deferred[None]":
        super().stopService()
        return ensureDeferred(self._stop())

    def listen(self, factory: IProtocolFactory, described: str | None = None) -> tuple[str, int] | None:
        """Host and port where it listens now, None for an endpoint without them. `described`: an endpoint other than
        the node's own. Raises :class:`BadState`."""
        described = described or self.options.endpoint
        reactor = UnixSockets(self.reactor) if is_unix(described) else self.reactor
        try:
            endpoint = server_endpoint(reactor, with_backlog(described))
        except BadParams as wrong:  # it did read when the options did, perhaps in another directory or as another user
            raise BadState(wrong.detail) from None
        port = listen(endpoint, factory, described)
        self.ports.append(port)
        return host_port(port)

    def dialled_at(self, where: tuple[str, int] | None) -> str:
        """HOST:PORT for others to dial. Raises :class:`BadState` when only the operator can know."""
        if self.options["lan"] and where is not None and (hosts := self.lan_hosts(where[0], lan_interfaces())):
            return join_address(hosts[0], where[1])
        if where is None or (where[0] in WILDCARD_HOSTS and not self.options["lan"]):
            raise BadState(f"{self.options.endpoint} does not say what others should dial: give --advertise too")
        return join_address(*where)

    # -- on local networks ---------------------------------------------------------------------------------------

    def lan_port(self, where: tuple[str, int] | None) -> tuple[str, int]:
        """Raises :class:`BadState` when the node can be reached from no network."""
        if where is None:
            raise BadState(f"--lan: {self.options.endpoint} is not of a network: leave --listen out, or change it")
        self.lan_hosts(where[0], ())
        return where

    def lan_hosts(self, host: str, here: Iterable[IPv4Interface]) -> list[str]:
        """At which of this machine's addresses on local networks a node can be reached that listens at `host`, or that
        with `--lan` alone listens at all of them. Raises :class:`BadState` when it never can."""
        hosts = [str(interface.ip) for interface in here]
        if self.options["listen"] is None or host in WILDCARD_HOSTS:
            return hosts
        if not is_lan(host):
            raise BadState(
                f"--lan: {self.options.endpoint} is not of a local network: leave --listen out, or change it"
            )
        return [mine for mine in hosts if mine == host]

    def follow(
        self,
        where: tuple[str, int],
        here: Iterable[IPv4Interface],
        factory: IProtocolFactory,
        opened: Callable[[IListeningPort], None] = lambda _: None,
    ) -> list[str]:
        """Listen at the addresses that the machine has now, and no more at those that it had, unless `--listen` says
        where. At which of them the node can be reached."""
        hosts = self.lan_hosts(where[0], here)
        if self.options["listen"] is not None:
            return hosts
        for host in self._lan_ports.keys() - hosts:
            port = self._lan_ports.pop(host)
            self.ports.remove(port)
            maybeDeferred(port.stopListening).addErrback(self._not_closed)
        for host in hosts:
            if host not in self._lan_ports:
                self._listen_at(host, where[1], factory, opened)
        return [host for host in hosts if host in self._lan_ports]

    def _listen_at(
        self, host: str, port: int, factory: IProtocolFactory, opened: Callable[[IListeningPort], None]
    ) -> None:
        try:
            self.listen(factory, f"tcp:{port}:interface={host}")
        except BadState as reason:  # the address may have gone again, or another program has the port there
            self.log.error("{reason}", reason=reason.detail)
        else:
            self._lan_ports[host] = self.ports[-1]
            opened(self.ports[-1])

    def _not_closed(self, failure: Failure) -> None:
        self.log.error("a listener could not be closed: {reason}", reason=failure.getErrorMessage())

    # -- starting and stopping -----------------------------------------------------------------------------------

    def announce(self, state: StateDir, address: str) -> None:
        """Tell scripts where the node listens, once the reactor minds its signals: whoever reads this may send one."""
        self.reactor.callWhenRunning(state.announce, address)

    async def _stop(self) -> None:
        if self.lan is not None and self.lan.running:
            await maybeDeferred(self.lan.stopService)
        for port in self.ports:
            await maybeDeferred(port.stopListening)
        if self.inner is not None:
            await maybeDeferred(self.inner.stopService)
        if self.state is not None:
            self.state.close()
