"""A request of the front, whose body may be a stream.

Twisted calls the resource when the whole body is there. For a stream it is called when the headers are: this file is
the one place that knows how.
"""

from typing import Any

from twisted.web.iweb import IRequest

from meshproto.core.envelope import SEALED_BYTES_MAX
from meshproto.net.bulk import LineStream
from meshproto.net.http import BoundedRequest, header
from meshproto.net.public_front import PUBLIC_PATHS

STREAMED = "application/x-ndjson"


class FrontRequest(BoundedRequest):
    """`stream`: the body as it comes, when it is one; else None. `beside_public`: whether the listener that it came
    through serves the public routes too."""

    body_bytes_max = SEALED_BYTES_MAX
    public_paths = frozenset(path.encode() for path in PUBLIC_PATHS)  # the owner's are bounded by the door
    stream: LineStream | None = None
    beside_public = False
    _begun = False

    def gotLength(self, length: int | None) -> None:
        # The channel keeps the request line to itself until the body is there.
        channel: Any = self.channel
        line = (channel._command, channel._path, channel._version)
        if not is_stream(self, *line):
            super().gotLength(length)
            return
        super().gotLength(0)
        self.unhurried = True
        reactor, transport = channel.site.reactor, channel.transport
        self.stream = LineStream(transport.pauseProducing, transport.resumeProducing, reactor)
        # Not at once: what answers at once would end the request amidst the channel's own work on it.
        reactor.callLater(0, self._begin, *line)

    def _begin(self, *line: bytes) -> None:
        if not self._begun and self.channel is not None:
            self._begun = True
            super().requestReceived(*line)

    def handleContentChunk(self, data: bytes) -> None:
        if self.stream is not None:
            self.stream.received(data)
        else:
            super().handleContentChunk(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self.stream is None:
            super().requestReceived(command, path, version)
            return
        self.stream.complete()
        self._begin(command, path, version)

    def finish(self) -> None:
        if self.stream is not None and not self.stream.whole and self.channel is not None:
            self.channel.persistent = False  # what comes yet is no request
        super().finish()

    def connectionLost(self, reason: Any) -> None:
        if self.stream is not None:
            self.stream.broken()
        super().connectionLost(reason)


def is_stream(request: IRequest, command: bytes, path: bytes, version: bytes) -> bool:
    kind = (header(request, b"content-type") or "").partition(";")[0].strip().lower()
    return kind == STREAMED and command == b"POST" and path.partition(b"?")[0] == b"/send" and version == b"HTTP/1.1"
