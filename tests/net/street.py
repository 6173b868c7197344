"""Seeds without a network: what each does when it is called, and who is still being called."""

from collections.abc import Callable

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectingCancelledError, ConnectionRefusedError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from meshproto import wire
from meshproto.errors import MeshError
from tests.net.far import Far

TICK_S = 1 / 8
"""Times that are sums of these are exact."""

Reply = msgspec.Struct | MeshError | None
"""An answer, a refusal, or silence."""
Behaviour = Callable[[str], Reply]
"""What a seed says to a method."""


@implementer(IStreamClientEndpoint)
class _Door:
    def __init__(self, street: "Street", address: str) -> None:
        self.street = street
        self.address = address

    def connect(self, factory: IProtocolFactory) -> "Deferred[IProtocol]":
        return self.street.knock(self.address, factory)


class Street:
    """`seeds`: what lives at each address. At any other one nobody listens, or, in `dark`, nothing answers at all.
    `dialling`: the calls that wait for a connection; `dialled`: all there were."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.seeds: dict[str, Behaviour] = {}
        self.dark: set[str] = set()
        self.dialled: list[str] = []
        self.dialling: list[str] = []
        self.fars: list[tuple[str, Far]] = []
        self._answered: dict[int, int] = {}

    def connect(self, address: str) -> _Door:
        return _Door(self, address)

    def knock(self, address: str, factory: IProtocolFactory) -> "Deferred[IProtocol]":
        self.dialled.append(address)

        def cancelled(connecting: "Deferred[IProtocol]") -> None:
            self.dialling.remove(address)
            connecting.errback(ConnectingCancelledError(None))  # as Twisted's own endpoints say it

        connecting: Deferred[IProtocol] = Deferred(cancelled)
        if address in self.dark:
            self.dialling.append(address)
        elif address not in self.seeds:
            connecting.errback(Failure(ConnectionRefusedError()))
        else:
            protocol = factory.buildProtocol(None)  # type: ignore[arg-type]
            assert protocol is not None
            self.fars.append((address, Far(protocol)))
            connecting.callback(protocol)
        return connecting

    def far(self, address: str) -> Far:
        """The latest connection to the address."""
        return next(far for at, far in reversed(self.fars) if at == address)

    def asked(self, method: str) -> list[str]:
        """The addresses that were asked for something, in order of their connections."""
        return [at for at, far in self.fars for request in far.asked if request["method"] == method]

    def settle(self) -> None:
        """Every seed says what it has to say."""
        moved = True
        while moved:
            moved = False
            self.clock.advance(0)
            for address, far in list(self.fars):
                for request in far.asked[self._answered.get(id(far), 0) :]:
                    self._answered[id(far)] = self._answered.get(id(far), 0) + 1
                    moved = True
                    reply = self.seeds[address](request["method"])
                    if isinstance(reply, MeshError):
                        far.say(wire.encode_error(request["id"], reply))
                    elif reply is not None:
                        far.say(wire.encode_result(request["id"], reply))

    def run(self, seconds: float) -> None:
        """Let time go by."""
        self.settle()
        for _ in range(round(seconds / TICK_S)):
            self.clock.advance(TICK_S)
            self.settle()
