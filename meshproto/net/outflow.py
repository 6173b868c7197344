"""An answer that is written bit by bit, as far as its reader takes it."""

from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IPushProducer, IReactorTime
from zope.interface import implementer

from meshproto.net.clocks import Timeout
from meshproto.net.http_request import KleinRequest

STALL_S: Final = 60.0
"""Who has taken nothing for so long, though something waits for them, is gone or hostile: the connection ends."""


@implementer(IPushProducer)
class Outflow:
    """`resumed` is called when there is room for more."""

    def __init__(self, request: KleinRequest, content_type: bytes, clock: IReactorTime) -> None:
        self._request = request
        self.resumed: Callable[[], None] = _nothing
        self._blocked = False
        self._stall = Timeout(clock, self._cut_off)
        request.setHeader(b"content-type", content_type)
        request.registerProducer(self, True)

    def write(self, data: bytes) -> None:
        self._request.write(data)
        self.keep_open()

    @property
    def blocked(self) -> bool:
        """The reader does not take what there is."""
        return self._blocked

    def keep_open(self) -> None:
        """The connection is not idle."""
        if self._request.channel is not None:
            self._request.channel.resetTimeout()

    def pauseProducing(self) -> None:
        self._blocked = True
        self._stall.set(STALL_S)

    def resumeProducing(self) -> None:
        self._blocked = False
        self._stall.clear()
        self.resumed()

    def stopProducing(self) -> None:
        """The connection is gone, and whoever waits is cancelled."""

    def close(self) -> None:
        """All is written, or the connection is gone."""
        self._stall.stop()
        if self._request.channel is not None:
            self._request.unregisterProducer()

    def _cut_off(self) -> None:
        if self._request.channel is not None:
            self._request.channel.evict()


def _nothing() -> None:
    """Nobody waits for room."""
