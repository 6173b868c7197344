"""Answers that go to the socket at once.

A transport's `write` always goes round the reactor: the socket is added to what epoll waits for, the next turn sends,
and it is taken off again. For a question and its answer that is as much work as all the rest. Here is the one place
that looks at what the public interface does not tell: whether anything is waiting already. (A Twisted echo went from
40,000 to 72,000 answers a second by this.)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from twisted.internet.interfaces import ITransport
from twisted.internet.tcp import Connection
from twisted.logger import Logger

GATHERED_BYTES_MAX: Final = 64 * 1024
"""More is sent on the way: it would fill caches and sockets, and whoever does not take their answers would be noticed
late."""


class _Gathered:
    """What is to be sent at the end of :func:`gathered`; `None`: nobody gathers."""

    def __init__(self) -> None:
        self.writes: list[tuple[Connection, bytes]] | None = None
        self.size_bytes = 0


_gathered: Final = _Gathered()
_log: Final = Logger()


def write(transport: ITransport, data: bytes) -> None:
    """What `transport.write` does, and as reliably; but what the socket takes at this moment is sent at this moment,
    if nothing waits before it. On what is no plain socket (TLS, a test's transport) it is `transport.write`."""
    if not isinstance(transport, Connection) or transport.TLS:
        transport.write(data)
    elif _gathered.writes is None:
        _send(transport, data)
    else:
        _gathered.writes.append((transport, data))
        _gathered.size_bytes += len(data)
        if _gathered.size_bytes > GATHERED_BYTES_MAX:
            _send_gathered(_gathered.writes)


@contextmanager
def gathered() -> Iterator[None]:
    """What is written meanwhile goes out at the end, in its order: where many small questions are answered in a row,
    the processor does better to do all of the one and then all of the other. (The answers of a seed to 64 clients cost
    a sixth less by this.) Within another one it makes no difference."""
    if _gathered.writes is not None:
        yield
        return
    _gathered.writes = []
    try:
        yield
    finally:
        writes, _gathered.writes = _gathered.writes, None
        _send_gathered(writes)


def _send_gathered(writes: list[tuple[Connection, bytes]]) -> None:
    _gathered.size_bytes = 0
    for transport, data in writes:
        try:
            _send(transport, data)
        except Exception:  # of whoever is told that too much waits: that is not the others' trouble
            _log.failure("a bug in what writes to a connection")
            transport.abortConnection()
    writes.clear()


def _send(transport: Connection, data: bytes) -> None:
    waits = transport.dataBuffer or transport._tempDataBuffer
    if transport.connected and not (waits or transport._writeDisconnected):
        try:
            sent = transport.socket.send(data)
        except OSError:  # nothing more goes in now, or the connection is lost: the reactor finds out when it writes
            sent = 0
        if sent == len(data):
            return
        data = data[sent:]
    transport.write(data)


def is_waiting(transport: ITransport) -> bool:
    """Whether something that was written has not been sent yet, as far as that can be told: on what is no plain socket
    it is not."""
    if not isinstance(transport, Connection) or transport.TLS:
        return False
    return bool(transport.dataBuffer or transport._tempDataBuffer)
