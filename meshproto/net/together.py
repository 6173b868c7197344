"""Connections that are read from together.

For each connection that has said something a reactor does as much of its own (it sets up a log context, and looks at
every kind of event) as the kernel does to carry a short line. So here all connections of a port are in an epoll set of
their own, which is a single thing to read from for the reactor, and what is ready in it is read in one loop. (The
answers that a Twisted echo gave to 64 clients cost 5.5 instead of 8.2 us each by this.)

Nothing else about a connection changes. That its peer has said all is left to the reactor, which finds it again and
knows what to do.
"""

import select
from typing import Any, Final

from twisted.internet import tcp
from twisted.internet.abstract import FileDescriptor
from twisted.internet.main import CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure

from meshproto.net.direct import gathered

EPOLL: Final = hasattr(select, "epoll")
"""Linux has it."""


class Together(FileDescriptor):
    """The set, as the reactor sees it."""

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self._epoll = select.epoll()
        self._connections: dict[int, tcp.Connection] = {}

    def fileno(self) -> int:
        return self._epoll.fileno()

    def add(self, connection: tcp.Connection) -> None:
        """Read from it."""
        if not self._connections:
            self.startReading()
        number = connection.fileno()
        if number not in self._connections:
            self._connections[number] = connection
            self._epoll.register(number, select.EPOLLIN)

    def remove(self, connection: tcp.Connection) -> None:
        """Read from it no more."""
        number = connection.fileno()
        if self._connections.pop(number, None) is not None:
            self._epoll.unregister(number)
            if not self._connections:
                self.stopReading()

    def doRead(self) -> None:
        ready = self._epoll.poll(0, len(self._connections))
        if len(ready) == 1:  # whose answer has nothing to wait for
            self._read_all(ready)
        else:
            with gathered():
                self._read_all(ready)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops, and does not know those whom it would have to tell."""
        super().connectionLost(reason)
        for connection in list(self._connections.values()):
            connection.connectionLost(reason)

    def _read_all(self, ready: list[tuple[int, int]]) -> None:
        for number, _ in ready:
            connection = self._connections.get(number)
            if connection is None:
                continue  # another one has had it closed
            try:
                self._read(connection)
            except Exception:
                # As the reactor does with a protocol that fails on what it is given: it goes, the others go on.
                self.log.failure("a bug in what reads from a connection")
                connection.abortConnection()

    def _read(self, connection: tcp.Connection) -> None:
        """What :meth:`tcp.Connection.doRead` does, in fewer calls. Whatever the event was, this tells."""
        try:
            data = connection.socket.recv(connection.bufferSize)
        except BlockingIOError:
            return  # what was ready is closed, and its number is this one's now
        except OSError:  # which the kernel tells once
            connection.connectionLost(Failure(CONNECTION_LOST))
            return
        if data:
            connection.protocol.dataReceived(data)
        else:
            self.remove(connection)
            self.reactor.addReader(connection)


def read_together(port: Any) -> None:
    """Have the connections that a listening port takes in be read from together, where that can be done: over TCP, with
    TLS or without, on Linux."""
    if not EPOLL or getattr(port, "transport", None) is not tcp.Server:
        return
    together = Together(port.reactor)

    class Connection(tcp.Server):
        def startReading(self) -> None:
            together.add(self)

        def stopReading(self) -> None:
            together.remove(self)
            super().stopReading()

    port.transport = Connection
