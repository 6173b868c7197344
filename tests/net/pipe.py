"""A transport whose other side reads only when it is told to."""

from collections.abc import Iterable

from twisted.internet.interfaces import IPushProducer
from twisted.internet.testing import StringTransport


class Pipe(StringTransport):
    """Signals its producer like :class:`twisted.internet.abstract.FileDescriptor`: a pause when more than
    `buffer_bytes_max` wait, a resume when nothing waits any longer. `writes` keeps what waits, write by write."""

    producer: IPushProducer | None

    def __init__(self, buffer_bytes_max: int = 64 * 1024) -> None:
        super().__init__(lenient=True)
        self.buffer_bytes_max = buffer_bytes_max
        self.writes: list[bytes] = []
        self.aborted = False
        self.half_closed = False
        self._full = False

    @property
    def reading(self) -> bool:
        """Whether the protocol wants to be given what the peer sends."""
        return self.producerState == "producing"

    @property
    def waiting_bytes(self) -> int:
        return sum(map(len, self.writes))

    def take(self) -> bytes:
        """The peer reads all that waits now."""
        data = b"".join(self.writes)
        self.writes = []
        if self._full and self.producer is not None:
            self._full = False
            self.producer.resumeProducing()
        return data

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        if self.producer is not None and self.waiting_bytes > self.buffer_bytes_max:
            self._full = True
            self.producer.pauseProducing()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def unregisterProducer(self) -> None:
        self.producer = None

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def abortConnection(self) -> None:
        self.aborted = True
