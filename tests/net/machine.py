"""A machine whose network is in a test's hands: what names resolve to, which connections come about, what is said."""

from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorPluggableNameResolver, IReactorTime, IResolutionReceiver
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.net.pipe import Pipe


class Line(Pipe):
    gone = False

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))


@implementer(IReactorTime, IReactorPluggableNameResolver)
class Machine(MemoryReactor, Clock):
    """A reactor that resolves names to what `names` says at that moment, and addresses to themselves, as the system's
    resolver does. `pipes`: the connections made."""

    def __init__(self) -> None:
        MemoryReactor.__init__(self)
        Clock.__init__(self)
        self.names: dict[str, Sequence[str]] = {}
        self.nameResolver: Any = self
        self.pipes: list[tuple[Any, Line]] = []

    def resolveHostName(self, receiver: IResolutionReceiver, host: str, port: int = 0, **_: object) -> None:
        receiver.resolutionBegan(self)  # type: ignore[arg-type]
        for ip in self.names.get(host, [host]):
            receiver.addressResolved((IPv6Address if ":" in ip else IPv4Address)("TCP", ip, port))
        receiver.resolutionComplete()

    @property
    def dialled(self) -> list[str]:
        return [client[0] for client in self.tcpClients]

    def accept(self, number: int = -1) -> Line:
        """A connection comes about, the latest one dialled if no other is named; what is written to it is there to
        read."""
        pipe = Line()
        protocol: Any = self.tcpClients[number][2].buildProtocol(None)
        protocol.makeConnection(pipe)
        self.pipes.append((protocol, pipe))
        return pipe

    def answer(self, *parts: bytes, number: int = -1) -> None:
        """The peer says this over a connection, the latest one made if no other is named."""
        for part in parts:
            self.pipes[number][0].dataReceived(part)
        self.settle()

    def settle(self) -> None:
        """Connections that were closed here are gone."""
        for number, (_, pipe) in enumerate(self.pipes):
            if pipe.aborted or pipe.disconnecting:
                self.lose(number)

    def lose(self, number: int = -1) -> None:
        """The connection is gone."""
        protocol, pipe = self.pipes[number]
        if not pipe.gone:
            pipe.gone = True
            protocol.connectionLost(Failure(ConnectionDone()))
