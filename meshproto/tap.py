"""What the two twistd plugins have in common: options with environment twins, and a service that takes its state
directory and its port or ends the process with one clear line."""

import gc
import os
import re
import resource
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Interface
from pathlib import Path
from typing import IO, Any, ClassVar, Final, Self, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import FileLogObserver, ILogObserver, Logger, textFileLogObserver
from twisted.python import usage
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from meshproto.core.configuration import FILE_BYTES_MAX, Kind, Setting, parse, place
from meshproto.core.meshkey import Domain, Keyring
from meshproto.core.nearby import is_lan
from meshproto.errors import BadParams, BadState, MeshError
from meshproto.net.interfaces import lan_interfaces
from meshproto.net.json_log import json_line, json_observer
from meshproto.net.lan import Lan
from meshproto.net.listening import WILDCARD_HOSTS, host_port, join_address, listen, listen_together, with_backlog
from meshproto.net.log_file import Log, log_path, open_log
from meshproto.net.state import StateDir, default_path, read_secret
from meshproto.net.supervisor import Supervisor, Vigil
from meshproto.net.syncing import SyncThread
from meshproto.net.tls import Endpoints, Trust
from meshproto.net.tls_listening import Renew, check_endpoint, server_endpoint
from meshproto.net.together import read_together
from meshproto.net.unix_socket import UnixSockets, is_unix
from meshproto.wire import NAME_PATTERN, NAME_RULE, split_address

LOG_FORMATS: Final = ("text", "json")


class NodeOptions(usage.Options):
    """`twins`: option -> environment variable. Options win over the environment, the environment over defaults. `lists`
    are the options that may be given several times; in the environment they are separated by commas. `flags`: those
    without a value, yes or no in the environment. `kinds`: how each is written in a configuration file, which comes
    after the environment; `reloads`: what counts without a restart."""

    kind: ClassVar[str]
    about: ClassVar[str]
    twins: ClassVar[dict[str, str]]
    fallbacks: ClassVar[dict[str, Any]]
    lists: ClassVar[frozenset[str]] = frozenset()
    kinds: ClassVar[dict[str, Kind]]
    reloads: ClassVar[frozenset[str]]
    flags: ClassVar[frozenset[str]] = frozenset({"lan"})
    environ: ClassVar[Mapping[str, str]] = os.environ
    optParameters: ClassVar[list[list[Any]]] = [
        ["config", "c", None, "configuration file (TOML), with these options' names"],
    ]
    optFlags: ClassVar[list[list[Any]]] = [
        ["check", None, "say whether the configuration is good, and start nothing"],
    ]

    def __init__(self) -> None:
        super().__init__()
        self.arguments: list[str] = []
        self._file: Path | None = None
        self._written = ""
        self._settings: dict[str, Setting] = {}

    @property
    def longdesc(self) -> str:
        """What `--help` begins with."""
        twins = ", ".join(self.twins.values())
        return f"{self.about} Every option has a twin in the environment ({twins}), and may stand in --config FILE."

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """As twistd calls it. Ends the process with one line when an option or the configuration file is wrong (twistd
        would print all of the usage, and the line out of sight below it), and with what is known of it after
        `--check`."""
        try:
            self.parse(options or ())
            if self["check"]:
                self.look()
        except (BadState, usage.UsageError) as wrong:
            hint = "" if isinstance(wrong, BadState) else f" (twistd mesh{self.kind} --help shows the options)"
            print(f"mesh{self.kind}: {wrong}{hint}", file=sys.stderr)  # noqa: T201
            raise SystemExit(1) from None
        if self["check"]:
            print(f"mesh{self.kind}: the configuration is good")  # noqa: T201
            raise SystemExit(0)

    def parse(self, arguments: Sequence[str]) -> None:
        """Raises :class:`BadState` for the configuration file, and :class:`usage.UsageError` for the rest."""
        self.arguments = list(arguments)
        super().parseOptions(self.arguments)

    def parseArgs(self, *stray: str) -> None:
        """What is no option is a slip: of `-` for `--`, or of a value too many."""
        if stray:
            raise usage.UsageError(f"{stray[0]!r} is no option: they begin with --")

    def again(self) -> Self:
        """The same options, as the configuration file has them now. Raises as :meth:`parse` does."""
        fresh = type(self)()
        fresh._file = self._file  # as it was found from where the program was started
        fresh.parse(self.arguments)
        return fresh

    def changed(self, other: "NodeOptions") -> list[str]:
        """The options that are not the same there."""
        return [option for option in self.kinds if self[option] != other[option]]

    def look(self) -> None:
        """Read the files that the options name, as a start would. Raises :class:`BadState`."""
        Trust.read(self["ca"])
        if (
            not (self["lan"] or self["advertise"])
            and _ANYWHERE.match(self.endpoint)
            and "interface=" not in self.endpoint
        ):
            raise BadState(where_to_dial(self.endpoint))

    def postOptions(self) -> None:
        """Raises as :meth:`parse` does."""
        self._read_file()
        for option, variable in self.twins.items():
            if self[option] not in (None, [], 0):
                self._settings.pop(option, None)
            elif given := self.environ.get(variable):
                self._settings.pop(option, None)
                self[option] = self._from_environment(option, given)
            else:
                self[option] = self._settings.get(option, self.fallback(option))
        for flag in self.flags:
            self._check(flag, is_set)
        self._name_by_default()
        self._check("name", self._name)
        self._check("port", self._port)
        if self["listen"] is not None:
            self._check("listen", check_endpoint)
        self._check("log-format", _log_format)
        self["ca"] = Path(self["ca"]) if self["ca"] else None
        self["state"] = Path(self["state"]) if self["state"] else default_path(self.kind, self["name"])

    def _read_file(self) -> None:
        given = self["config"] or self.environ.get(self.twins["config"])
        if not given:
            return
        self._file = self._file or Path(given).absolute()
        try:
            with self._file.open("rb") as file:
                text = file.read(FILE_BYTES_MAX + 1)
            self._settings = parse(text, self.kinds, self._file.parent)
        except OSError as reason:
            raise BadState(f"{self._file} cannot be read: {reason.strerror}") from None
        except BadParams as wrong:
            raise BadState(f"{self._file}: {wrong.detail}") from None
        self._written = text.decode("utf-8-sig")

    def _name_by_default(self) -> None:
        """For a kind of node that has one."""

    def fallback(self, option: str) -> Any:
        """What is taken when nobody says anything."""
        return self.fallbacks.get(option)

    def _from_environment(self, option: str, given: str) -> str | list[str]:
        return [part.strip() for part in given.split(",") if part.strip()] if option in self.lists else given

    def called(self, option: str) -> str:
        """An option, as it is to be looked for where somebody has given it."""
        return f"--{option} (or {self.twins[option]})"

    def _check(self, option: str, parse: Callable[[Any], Any]) -> None:
        try:
            self[option] = parse(self[option])
        except (MeshError, ValueError, TypeError, KeyError) as reason:
            detail = reason.detail if isinstance(reason, MeshError) else str(reason)
            if option in self._settings:
                raise BadState(f"{self._file}: {place(self._written, option)}{detail}") from None
            raise usage.UsageError(f"{self.called(option)}: {detail}") from None

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


_ANYWHERE: Final = re.compile("(tcp6?|ssl):", re.IGNORECASE)
"""Endpoints that listen on every interface, unless they say on which."""


def where_to_dial(endpoint: str) -> str:
    """Only the operator can know."""
    return f"{endpoint} does not say what others should dial: give --advertise too"


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
        self.syncing: SyncThread | None = None
        self._renewals: list[Renew] = []
        self._log_file: Log | None = None
        self._supervisor: Supervisor | None = None
        self._vigil: Vigil | None = None
        self._terminal = False

    def open(self, state: StateDir) -> Service:
        """Raises :class:`BadState`."""
        raise NotImplementedError

    def status(self) -> str:
        """In one line how it is, for who supervises it."""
        raise NotImplementedError

    def take(self, fresh: NodeOptions) -> set[str]:
        """Go by the options that can be changed while it runs, and read anew the files that they name. Those that have
        changed and were not taken. Raises :class:`BadState` before anything has changed."""
        raise NotImplementedError

    def setServiceParent(self, parent: Any) -> None:
        """Called by twistd with the application, before it begins to log: what an application brings along is asked
        before twistd makes a log of its own, and has twistd's first lines too."""
        super().setServiceParent(parent)
        path, json = log_path(self.options.parent), self.options["log-format"] == "json"
        if not isinstance(parent, Componentized):
            return
        if path is not None:
            self._log_file = open_log(path)
            file = cast(IO[Any], self._log_file)
            parent.setComponent(ILogObserver, FileLogObserver(file, json_line) if json else textFileLogObserver(file))
        elif json:
            parent.setComponent(ILogObserver, json_observer(self.options.parent or {}))

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
            self.reactor.callWhenRunning(self._serve)

    def _serve(self) -> None:
        """The reactor minds its signals now; so whoever is told that this node serves may send one."""
        self._terminal = os.isatty(sys.__stdout__.fileno()) if sys.__stdout__ else False
        for number, handle in ((signal.SIGHUP, self._hung_up), (signal.SIGUSR1, self._reopen_log)):
            signal.signal(number, lambda *_, handle=handle: self.reactor.callFromThread(handle))
        self._supervisor = Supervisor(os.environ, os.getpid())
        self._vigil = Vigil(self._supervisor, self.reactor, self.status, self._alive)
        self._supervisor.tell(ready=1)
        self._vigil.start()

    def _alive(self) -> bool:
        return self.syncing is not None and self.syncing.alive

    def _hung_up(self) -> None:
        """SIGHUP means two things: the terminal is gone, which ends a program that was started on it; or somebody
        wants this one to look at its files again."""
        if self._terminal and not os.isatty(sys.__stdout__.fileno() if sys.__stdout__ else -1):
            self.reactor.stop()
        else:
            self.reload()

    def _reopen_log(self) -> None:
        if self._log_file is not None:
            self._log_file.reopen()

    def reload(self) -> None:
        """Take what has changed in the files. What is wrong with them is logged, and then nothing has changed."""
        if not self.running:
            return  # it stops
        self._reopen_log()
        if self._supervisor is not None:
            self._supervisor.reloading()
        try:
            self._take_anew()
        except (BadState, usage.UsageError) as wrong:
            reason = wrong.detail if isinstance(wrong, BadState) else str(wrong)
            self.log.error("nothing is reloaded, all stays as it was: {reason}", reason=reason)
        finally:  # whoever is told of a beginning waits for the end
            if self._supervisor is not None:
                self._supervisor.tell(ready=1)

    def _take_anew(self) -> None:
        """Raises :class:`BadState` and :class:`usage.UsageError`, before anything has changed."""
        fresh = self.options.again()
        left = self.take(fresh)
        for renew in self._renewals:
            renew()
        taken = [option for option in self.options.changed(fresh) if option not in left]
        for option in taken:
            self.options[option] = fresh[option]
        self.log.info("reloaded: {options}", options=", ".join([*taken, "the files that the options name"]))
        for option in sorted(left):
            self.log.warn("{option} has changed: that needs a restart", option=option)

    def stopService(self) -> "Deferred[None]":
        super().stopService()
        if self._supervisor is not None:
            self._supervisor.tell(stopping=1)
        if self._vigil is not None:
            self._vigil.stop()
        return ensureDeferred(self._stop())

    def listen(self, factory: IProtocolFactory, option: str = "", described: str = "") -> tuple[str, int] | None:
        """Host and port where it listens now, None for an endpoint without them. `option`: the one that has it, if not
        the node's own; `described`: where, if it is made of that. Raises :class:`BadState`."""
        described = described or (self.options[option] if option else self.options.endpoint)
        option = option or ("port" if self.options["listen"] is None else "listen")
        reactor = UnixSockets(self.reactor) if is_unix(described) else self.reactor
        try:
            endpoint = server_endpoint(reactor, with_backlog(described), self._renewals)
        except BadParams as wrong:  # it did read when the options did, perhaps in another directory or as another user
            raise BadState(wrong.detail) from None
        try:
            port = listen(endpoint, factory, described)
        except BadState as taken:
            raise BadState(f"{self.options.called(option)}: {taken.detail}") from None
        self._add(port)
        return host_port(port)

    def listen_together(self, host: str, port: int, factory: IProtocolFactory) -> None:
        """Besides, on a port that other processes of this user listen on too: the system deals connections out among
        them. Raises :class:`BadState`."""
        self._add(listen_together(self.reactor, host, port, factory))

    def _add(self, port: IListeningPort) -> None:
        read_together(port)
        self.ports.append(port)

    def dialled_at(self, where: tuple[str, int] | None) -> str:
        """HOST:PORT for others to dial. Raises :class:`BadState` when only the operator can know."""
        if self.options["lan"] and where is not None and (hosts := self.lan_hosts(where[0], lan_interfaces())):
            return join_address(hosts[0], where[1])
        if where is None or (where[0] in WILDCARD_HOSTS and not self.options["lan"]):
            raise BadState(where_to_dial(self.options.endpoint))
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

    def follow(self, where: tuple[str, int], here: Iterable[IPv4Interface], factory: IProtocolFactory) -> list[str]:
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
                self._listen_at(host, where[1], factory)
        return [host for host in hosts if host in self._lan_ports]

    def _listen_at(self, host: str, port: int, factory: IProtocolFactory) -> None:
        try:
            self.listen(factory, "port", f"tcp:{port}:interface={host}")
        except BadState as reason:  # the address may have gone again, or another program has the port there
            self.log.error("{reason}", reason=reason.detail)
        else:
            self._lan_ports[host] = self.ports[-1]

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
        if self._supervisor is not None:
            self._supervisor.close()
