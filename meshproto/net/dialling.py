"""How a user's node dials seeds: those it was given wherever they are, those it has learnt of where an address may lead
that somebody else has chosen (:mod:`meshproto.core.addresses`)."""

from collections.abc import Iterable
from typing import Any

from twisted.internet.interfaces import IStreamClientEndpoint

from meshproto.core.reach import FAR, LOCAL, kind_of
from meshproto.net.guarded import GuardedReactor
from meshproto.net.tls import Endpoints, Trust
from meshproto.wire import split_address


class Dialling:
    """A :data:`meshproto.net.calls.Connect`. `given`: the addresses of seeds that the node's owner has chosen."""

    def __init__(self, reactor: Any, trust: Trust, given: Iterable[str]) -> None:
        self._reactor = reactor
        self._trust = trust
        self.give(given)

    def give(self, given: Iterable[str]) -> None:
        self._given = frozenset(given)

    def __call__(self, address: str) -> IStreamClientEndpoint:
        """Raises :class:`BadParams`. The endpoint of a name that leads to this machine or its link fails with
        :class:`Unreachable`."""
        reactor = self._reactor
        if address not in self._given:
            reactor = GuardedReactor(reactor, FAR | LOCAL & {kind_of(split_address(address)[0])})
        return Endpoints(reactor, self._trust).seed(address)
