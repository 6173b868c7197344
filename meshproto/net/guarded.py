"""How a node connects to other users' nodes: only to addresses that the record may lead to.

The address is looked at when it is connected to. Whatever was found out about a name before, its answer may have
changed since (DNS rebinding), and a number may be spelled in ways that only a resolver knows: here everything has
become the IP address that the socket gets.
"""

from typing import Any

from twisted.internet.interfaces import IConnector, IReactorPluggableNameResolver, IReactorTCP, IReactorTime
from zope.interface import implementer

from meshproto.core.reach import Kind, Reach, kind_of
from meshproto.errors import Unreachable


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
