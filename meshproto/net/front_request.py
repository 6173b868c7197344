"""A request of the front on Klein's way, whose body may be a stream.

Twisted calls the resource when the whole body is there. For a stream it is called when the headers are: this file is
the one place that knows how.
"""

from io import BytesIO
from typing import Final

from twisted.python.failure import Failure

from meshproto.core.http1 import Head
from meshproto.net.bulk import LineStream
from meshproto.net.door import refusal
from meshproto.net.http_channel import Channel, Hold
from meshproto.net.http_request import KleinRequest

STREAMED: Final = b"application/x-ndjson"


class FrontRequest(KleinRequest):
    _begun = False

    def begin_stream(self, channel: Channel) -> None:
        """The body is one: it is handed on as it comes. To whoever is not the owner that is said before."""
        self.refusal = self.refusal or refusal(self)
        if self.refusal is not None:
            self.answers_early = True
            if self.head.expects_continue:  # it may not come at all, and then another request does
                channel.close_when_done()
                self.setHeader(b"connection", b"close")
            return
        self.unhurried = True
        self.stream = LineStream(lambda: channel.hold(Hold.STREAM), lambda: channel.release(Hold.STREAM))
        # Not at once: what answers at once would end the request amidst the channel's own work on it.
        channel.site.reactor.callLater(0, self._begin)

    def _begin(self) -> None:
        if not self._begun and self.channel is not None:
            self._begun = True
            self.content = BytesIO()
            self.requestReceived(self.head.method, self.head.target, self.head.version)

    def received(self, piece: bytes) -> None:
        if self.stream is None:
            super().received(piece)
        else:
            self.stream.received(piece)

    def complete(self) -> None:
        if self.stream is None:
            super().complete()
            return
        self.stream.complete()
        self._begin()

    def finish(self) -> None:
        if self.stream is not None and not self.stream.whole and self.channel is not None:
            self.channel.close_when_done()
        super().finish()

    def connectionLost(self, reason: Failure) -> None:
        if self.stream is not None:
            self.stream.broken()
        super().connectionLost(reason)


def is_stream(head: Head) -> bool:
    kind = (head.get(b"content-type") or b"").partition(b";")[0].strip().lower()
    path = head.target.partition(b"?")[0]
    return kind == STREAMED and (head.method, path, head.version) == (b"POST", b"/send", b"HTTP/1.1")
