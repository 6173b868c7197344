"""How a node connects to other users' nodes: only to addresses that the record may lead to, and taking no more from
them than an answer needs.

The address is looked at when it is connected to. Whatever was found out about a name before, its answer may have
changed since (DNS rebinding), and a number may be spelled in ways that only a resolver knows: here everything has
become the IP address that the socket gets.
"""

import re
from typing import Any, Final, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IConnector,
    INegotiated,
    IProtocol,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import ClientFactory, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import URI
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from meshproto.core.reach import Kind, Reach, kind_of
from meshproto.errors import PeerError, Unreachable

HEAD_BYTES_MAX: Final = 16 * 1024
"""The head of an answer. A node's own is 200 bytes; proxies in front of it add a few hundred. Twisted bounds a line but
not how many there are, and each is kept."""

_HEAD_ENDS = re.compile(rb"\n\r?\n")


@implementer(IReactorTime, IReactorTCP, IReactorPluggableNameResolver)
class GuardedReactor:
    """A reactor that connects only to addresses within `reach`."""

    def __init__(self, reactor: Any, reach: Reach) -> None:
        self._reactor = reactor
        self._reach = reach

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def connectTCP(self, host: str, port: int, factory: Any, *args: Any, **kwargs: Any) -> IConnector:
        """Raises :class:`Unreachable`."""
        kind = kind_of(host)
        if kind not in self._reach:
            what = Kind.NEVER.value if kind is None else kind.value
            raise Unreachable(f"it leads to {host}, {what}; nothing was sent there")
        connector: IConnector = self._reactor.connectTCP(host, port, factory, *args, **kwargs)
        return connector


@implementer(IAgentEndpointFactory)
class BoundedEndpoints:
    """`endpoints` that end a connection whose answers are too long: `answer_bytes_max` is for the body. They count what
    HTTP gets to read: below TLS nobody can tell a head from a body."""

    def __init__(self, endpoints: IAgentEndpointFactory, answer_bytes_max: int) -> None:
        self._endpoints = endpoints
        self._answer_bytes_max = answer_bytes_max

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        return _BoundedEndpoint(self._endpoints.endpointForURI(uri), self._answer_bytes_max)


@implementer(IStreamClientEndpoint)
class _BoundedEndpoint:
    def __init__(self, endpoint: IStreamClientEndpoint, answer_bytes_max: int) -> None:
        self._endpoint = endpoint
        self._answer_bytes_max = answer_bytes_max

    def connect(self, factory: IProtocolFactory) -> "Deferred[IProtocol]":
        connecting = self._endpoint.connect(_Bounding(factory, self._answer_bytes_max))
        return connecting.addCallback(_bounded)


def _bounded(made: IProtocol) -> IProtocol:
    """What is within the :class:`_Bounded` that was made."""
    return cast(_Bounded, made).wrappedProtocol


class _Bounded(ProtocolWrapper):
    """Counts what comes in answer to each request. It is not read, only looked through for where its head ends."""

    factory: "_Bounding"

    def __init__(self, factory: "_Bounding", wrapped: IProtocol) -> None:
        super().__init__(factory, wrapped)  # type: ignore[arg-type]  # generic on paper only
        self._why: Failure | None = None
        self._begin()

    def _begin(self) -> None:
        self._bytes = 0
        self._in_head = True
        self._tail = b""

    def write(self, data: bytes) -> None:
        self._begin()
        super().write(data)

    def writeSequence(self, data: Any) -> None:
        self._begin()
        super().writeSequence(data)

    def loseConnection(self) -> None:
        """With TLS at once: else it is the peer who says when it is over, or never does."""
        if INegotiated.providedBy(self.transport):
            self.abortConnection()
        else:
            super().loseConnection()

    def dataReceived(self, data: bytes) -> None:
        if self._why is not None:
            return
        self._bytes += len(data)
        if self._in_head:
            head = _HEAD_ENDS.search(self._tail + data)
            length = self._bytes - len(data) - len(self._tail) + (head.end() if head else len(self._tail + data))
            self._tail, self._in_head = (self._tail + data)[-2:], head is None
            if length > HEAD_BYTES_MAX:
                self._give_up(f"the head of the peer's answer is longer than {HEAD_BYTES_MAX} bytes")
                return
        if self._bytes > HEAD_BYTES_MAX + self.factory.answer_bytes_max:
            self._give_up(f"the peer's answer is longer than {self.factory.answer_bytes_max} bytes")
            return
        super().dataReceived(data)

    def _give_up(self, why: str) -> None:
        self._why = Failure(PeerError(why))
        self.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(self._why or reason)


class _Bounding(WrappingFactory):
    protocol = _Bounded
    noisy = False

    def __init__(self, wrapped: IProtocolFactory, answer_bytes_max: int) -> None:
        super().__init__(cast(ClientFactory, wrapped))
        self.answer_bytes_max = answer_bytes_max
