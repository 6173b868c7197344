"""Sockets that systemd has opened: `systemd:domain=INET:name=NAME` (systemd.socket(5), sd_listen_fds(3)).

Twisted adopts what it is given without a look, and takes a unix socket for its own: it makes it everybody's (0666),
gives it a backlog of fifty, and removes its file at the end, after which nobody finds the socket that systemd still
holds. Here the socket is what it was said to be, and stays as it was given.
"""

import os
import re
import socket
import stat
from pathlib import Path
from typing import Any, Final

from twisted.internet import unix
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.python.failure import Failure

from meshproto.errors import BadParams

PREFIX: Final = "systemd:"


def is_inherited(described: str) -> bool:
    """Whether an endpoint string is of a socket that systemd hands over."""
    return described.startswith(PREFIX)


def arguments(described: str) -> dict[str, str]:
    """Of such a string. Raises :class:`BadParams`."""
    parts = [part.partition("=")[::2] for part in described.removeprefix(PREFIX).split(":")]
    given = dict(parts)
    which = given.keys() - {"domain"}
    if "domain" not in given or which not in ({"name"}, {"index"}) or len(given) < len(parts):
        raise BadParams("a socket of systemd's is written systemd:domain=INET:name=NAME, or domain=UNIX")
    if given["domain"] not in ("INET", "INET6", "UNIX"):
        raise BadParams(f"{given['domain']!r} is no domain: INET, INET6 or UNIX")
    if not re.fullmatch(r"[0-9]{1,6}", given.get("index", "0")):
        raise BadParams(f"{given['index']!r} is no index: 0 is the first")
    return given


def is_inherited_unix(described: str) -> bool:
    return is_inherited(described) and arguments(described)["domain"] == "UNIX"


def inherited(reactor: Any, described: str) -> IStreamServerEndpoint:
    """Raises :class:`BadParams` when there is no such socket, or it is another than was said."""
    given = arguments(described)
    which = " ".join(f"{key} {value}" for key, value in given.items() if key != "domain")
    try:
        endpoint: Any = serverFromString(_Reactor(reactor), described)
    except LookupError:
        raise BadParams(f"systemd has handed over no socket of {which}: is its .socket unit started?") from None
    try:
        with socket.socket(fileno=os.dup(endpoint.fileno)) as given_socket:
            _check(given_socket, given["domain"])
            endpoint.addressFamily = given_socket.family  # INET may be IPv6, as systemd makes it of a number alone
    except OSError as reason:
        raise BadParams(f"what is handed over as {which} cannot be used as a socket: {reason.strerror}") from None
    listening: IStreamServerEndpoint = endpoint
    return listening


def _check(given: socket.socket, domain: str) -> None:
    """Raises :class:`BadParams`, OSError."""
    if (given.family == socket.AF_UNIX) != (domain == "UNIX"):
        raise BadParams(f"the socket that systemd hands over is of {given.family.name.removeprefix('AF_')}")
    if not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise BadParams("the socket that systemd hands over does not listen: ListenStream=, and Accept=no")
    if given.family == socket.AF_UNIX:
        _check_mode(given.getsockname())


def _check_mode(name: str | bytes) -> None:
    """Who may open it is the owner, or writes to the node past all limits by network. systemd leaves it open to
    everybody unless it is told otherwise, and so is a name without a file."""
    path = os.fsdecode(name)
    if not path or path.startswith("\0") or stat.S_IMODE(Path(path).stat().st_mode) & 0o007:
        raise BadParams(f"everybody may open the socket {path.lstrip(chr(0))}: give it a path, and SocketMode=0600")


class _Reactor:
    """The reactor, for a unix socket that is not ours."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def adoptStreamPort(self, descriptor: int, family: int, factory: IProtocolFactory) -> IListeningPort:
        if family != socket.AF_UNIX:
            port: IListeningPort = self._reactor.adoptStreamPort(descriptor, family, factory)
            return port
        adopted = _UnixPort(socket.socket(fileno=os.dup(descriptor)), factory, self._reactor)
        adopted.startListening()
        return adopted


class _UnixPort(unix.Port):
    """Neither its mode nor its backlog nor its file are touched."""

    factory: Any

    def __init__(self, adopted: socket.socket, factory: IProtocolFactory, reactor: Any) -> None:
        super().__init__(os.fsencode(adopted.getsockname()), factory, reactor=reactor)
        self.socket = adopted
        self.socket.setblocking(False)

    def fileno(self) -> int:
        return self.socket.fileno()

    def startListening(self) -> None:
        self.factory.doStart()
        self.connected = True
        self.numberAccepts = 1
        self.startReading()

    def connectionLost(self, reason: Failure) -> None:
        """As a TCP port ends, without a file to be removed."""
        self._logConnectionLostMsg()
        self.connected = False
        self.socket.close()
        self.factory.doStop()
