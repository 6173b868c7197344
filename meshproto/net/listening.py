"""Listening where an operator said, or ending the process with one clear line."""

import ipaddress
import resource
import socket
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.python.failure import Failure

from meshproto.errors import BadState

BACKLOG: Final = 1024
"""Connections that the system holds until they are taken. With Twisted's 50 a burst of strangers has others reset."""
NEWCOMERS_AT_ONCE: Final = 8
"""Connections that are taken in one turn of the reactor: about two milliseconds."""
FILES_FOR_CONNECTIONS: Final = 0.75
"""Of the files that a process may have open; the others are its databases, and the connections that it makes."""
FILES_FOR_IDLE: Final = 0.125
"""Of the files that a process may have open: for connections that it has made and keeps idle."""
TLS_HANDSHAKE: Final = b"\x16"
"""The first byte of everybody who speaks TLS: the content type of a handshake (RFC 8446, 5.1). Neither JSON nor a
request of HTTP begins with it."""
WILDCARD_HOSTS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104


def listen(endpoint: IStreamServerEndpoint, factory: IProtocolFactory, described: str) -> IListeningPort:
    """The port that listens now. Raises :class:`BadState` that says what and why when it cannot."""
    ports: list[IListeningPort] = []
    reasons: list[Failure] = []
    listening: Deferred[IListeningPort] = endpoint.listen(factory)
    listening.addCallbacks(ports.append, reasons.append)
    if ports:
        _take_few(ports[0])
        return ports[0]
    error = reasons[0].value if reasons else None
    reason = error.socketError if isinstance(error, CannotListenError) else error
    words = getattr(reason, "strerror", None) or reason or "it did not start at once"
    raise BadState(f"cannot listen on {described}: {words}")


def listen_together(reactor: Any, host: str, port: int, factory: IProtocolFactory) -> IListeningPort:
    """A port that other processes of the same user may listen on too (`SO_REUSEPORT`): the system deals connections out
    among them. Raises :class:`BadState`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.setblocking(False)
        try:
            taken.bind((host, port))
            taken.listen(BACKLOG)
        except OSError as reason:
            raise BadState(f"cannot listen on port {port} together with others: {reason.strerror}") from None
        listening: IListeningPort = reactor.adoptStreamPort(taken.fileno(), family, factory)
    _take_few(listening)
    return listening


def _take_few(port: Any) -> None:
    """Let others have their turn between newcomers. Twisted takes twenty more at a time whenever that many have come,
    and so, in a storm of them, all that the system holds: nobody else is heard for hundreds of milliseconds then."""
    if hasattr(port, "numberAccepts"):
        few = property(lambda _: NEWCOMERS_AT_ONCE, lambda *_: None)
        kind = type(port)
        port.__class__ = type(kind.__name__, (kind,), {"numberAccepts": few})


def with_backlog(described: str) -> str:
    """An endpoint string, with :data:`BACKLOG` unless it says another."""
    kind = described.partition(":")[0]
    if kind not in ("tcp", "tcp6", "ssl", "unix") or ":backlog=" in described:
        return described
    return f"{described}:backlog={BACKLOG}"


def places_max(wanted: int) -> int:
    """How many connections may be taken in: as many as wanted, unless the process may not have so many files open. The
    system itself would turn away whoever comes next, honest or not; a place is given to them instead."""
    files_max, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(wanted, int(files_max * FILES_FOR_CONNECTIONS)))


def idle_max(wanted: int) -> int:
    """How many connections that were made may be kept idle: as many as wanted, unless the process may not have so many
    files open."""
    files_max, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(wanted, int(files_max * FILES_FOR_IDLE)))


def host_port(port: IListeningPort) -> tuple[str, int] | None:
    """Where a port listens; None for one without a host, such as a unix socket."""
    address = port.getHost()
    host, number = getattr(address, "host", None), getattr(address, "port", None)
    return (host, number) if isinstance(host, str) and isinstance(number, int) else None


def join_address(host: str, port: int) -> str:
    """`HOST:PORT`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def local_address(where: tuple[str, int]) -> str:
    """HOST:PORT to use on this machine."""
    host, port = where
    return join_address("127.0.0.1" if host in WILDCARD_HOSTS else host, port)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
