"""HTTP whose answer begins before the request has ended.

Whoever writes a long stream and reads the answers to its parts must do both at once: a node that gets no answer rid
stops reading, and two sides that both only write wait for each other for ever. Here the request is written while the
answer is waited for, by one thread: a TLS connection must not be used by two.
"""

import io
import select
import socket
import ssl
from typing import Any, Protocol

_READ_LATER = (BlockingIOError, ssl.SSLWantReadError)


class Outgoing(Protocol):
    """What is written."""

    @property
    def waiting(self) -> bool:
        """Whether an answer is due."""

    @property
    def ended(self) -> bool:
        """Whether everything has been handed out."""

    def next_bytes(self) -> bytes:
        """What is to be written now; empty while nothing is."""

    def waits_on(self) -> int | None:
        """The file descriptor from which more may come; None while no more is wanted."""


class Duplex(io.RawIOBase):
    """Reading from the connection; while there is nothing to read, the request's body is written, in chunks.

    `connection` belongs to this from now on; the request's head has been written. `silence_s`: how long to wait for an
    answer that is due, or for the other side to read; then reading raises `TimeoutError`.
    """

    def __init__(self, connection: socket.socket, outgoing: Outgoing, silence_s: float) -> None:
        connection.setblocking(False)
        self._connection, self._outgoing, self._silence_s = connection, outgoing, silence_s
        self._unwritten = memoryview(b"")
        self._closed_body = False
        self._refused: OSError | None = None  # why the other side takes no more
        self._heard = False

    def makefile(self, *_mode: str) -> io.BufferedReader:
        """What `http.client` reads an answer from."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """What has come, at least one byte; 0 at the end. Raises `OSError`."""
        while True:
            try:
                return self._received(self._connection.recv_into(buffer))
            except _READ_LATER:
                blocked = False  # nothing has come yet; there may be something to write meanwhile
            except ssl.SSLWantWriteError:
                blocked = True
            blocked = self._write() or blocked
            self._wait(blocked)

    def _received(self, size: int) -> int:
        if not size and not self._heard and self._refused is not None:
            raise self._refused
        self._heard = self._heard or size > 0
        return size

    def _write(self) -> bool:
        """Write what there is, as far as it goes; whether the connection would take no more."""
        while True:
            if not self._unwritten:
                self._unwritten = memoryview(self._next_chunk())
            if not self._unwritten:
                return False
            try:
                self._unwritten = self._unwritten[self._connection.send(self._unwritten) :]
            except ssl.SSLWantReadError:
                return False
            except (BlockingIOError, ssl.SSLWantWriteError):
                return True
            except (BrokenPipeError, ConnectionResetError) as error:
                # A node that refuses says so and reads no more: go on to read what it said. It counts if that is
                # nothing.
                self._refused = error
                self._closed_body, self._unwritten = True, memoryview(b"")
                return False

    def _next_chunk(self) -> bytes:
        if self._closed_body:
            return b""
        piece = self._outgoing.next_bytes()
        self._closed_body = self._outgoing.ended
        chunk = b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""
        return chunk + b"0\r\n\r\n" * self._closed_body

    def _wait(self, blocked: bool) -> None:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN | (select.POLLOUT if blocked else 0))
        more = None if self._unwritten or self._closed_body else self._outgoing.waits_on()
        if more is not None:
            poll.register(more, select.POLLIN)
        due = bool(self._unwritten) or self._closed_body or self._outgoing.waiting
        if not poll.poll(self._silence_s * 1000 if due else None):
            raise TimeoutError
