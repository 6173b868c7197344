"""The blocking way to ask a node: :class:`Node`.

Only the standard library, so that `mesh` starts at once. One connection a request: the node is almost always on this
machine, and a connection that is never reused can never be stale after the node restarts.
"""

import socket
import ssl
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import cast

from meshproto.client import asking
from meshproto.client.asking import (
    ANSWER_TIMEOUT_S,
    EVENTS_SILENCE_S,
    SEND_LINES,
    SILENCE_S,
    STREAM_TYPE,
    Answer,
    Head,
    Lines,
    Place,
    Questions,
    Request,
)
from meshproto.client.duplex import Duplex, Outgoing
from meshproto.client.errors import Document, Unreachable

READ_BYTES = 64 * 1024
NO_LINES = "the node takes no stream of messages"
NO_EVENTS = "the node streams no events"


class _UnixConnection(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, _host: str, _port: int | None, *, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Node(Questions[Answer]):
    """A user node, by the address of its HTTP (:class:`Place`). `tls`: who is trusted with https, if not whom the
    system trusts."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._place = Place(url)
        self.url = self._place.url
        self._connect: Callable[..., HTTPConnection] = (
            partial(HTTPSConnection, context=tls) if self._place.is_https else HTTPConnection
        )
        if self._place.socket_path:
            self._connect = partial(_UnixConnection, self._place.socket_path)
        self._token = token
        self._timeout_s = timeout_s

    def ask(self, request: Request) -> Answer:
        """Raises :class:`Problem`, :class:`Unreachable`."""
        connection = self._connection(self._timeout_s + request.wait_s)
        content = request.content()
        handed_over = False
        try:
            with self._told(self._timeout_s + request.wait_s):
                # A node that refuses a large body says so before it has read all of it: read what it said.
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(
                        request.method, self._place.prefix + request.path, content, request.headers(self._token)
                    )
                handed_over = request.sends
                response = connection.getresponse()
                # These refuse, whoever it is that answers.
                handed_over = handed_over and not 300 <= response.status < 500
                return asking.read_answer(self.url, _head(response), self._read(response))
        except Unreachable as error:
            error.uncertain = handed_over
            raise
        finally:
            connection.close()

    def send_lines(self, feed: Outgoing) -> Generator[Document, None, None]:
        """Send a stream of lines, a message each, while the results of the first of them come: in order, one a line.

        Ends when the node ends its answer, if every line was answered or not.
        """
        connection = self._connection(self._timeout_s)
        try:
            with self._told(self._timeout_s):
                connection.putrequest(SEND_LINES.method, self._place.prefix + SEND_LINES.path)
                for name, value in SEND_LINES.headers(self._token).items():
                    connection.putheader(name, value)
                connection.putheader("Content-Type", STREAM_TYPE)
                connection.putheader("Transfer-Encoding", "chunked")
                connection.endheaders()
            with self._told(SILENCE_S):
                # A response asks its connection for a file to read from, and for nothing else.
                response = HTTPResponse(cast(socket.socket, Duplex(connection.sock, feed, SILENCE_S)), method="POST")
                response.begin()
                self._check_stream(response, NO_LINES)
                yield from self._documents(response)
        finally:
            connection.close()

    def events(self, kinds: str, *, after: int, sender: str | None = None, names: str | None = None) -> "EventStream":
        """See :func:`asking.events_request`."""
        return self.open(asking.events_request(kinds, after=after, sender=sender, names=names))

    def open(self, request: Request) -> "EventStream":
        """A request whose answer is a stream."""
        connection = self._connection(self._timeout_s)
        try:
            with self._told(self._timeout_s):
                connection.request(
                    request.method, self._place.prefix + request.path, headers=request.headers(self._token)
                )
                # A connection lets go of its socket when the answer says that it is the last.
                channel = connection.sock
                response = connection.getresponse()
                self._check_stream(response, NO_EVENTS)
                channel.settimeout(EVENTS_SILENCE_S)
                return EventStream(self, connection, response, channel)
        except BaseException:
            connection.close()
            raise

    def lines(self, response: HTTPResponse, patience_s: float) -> Iterator[Document]:
        """The documents of an answer that is a stream of lines. Raises :class:`Unreachable`."""
        try:
            with self._told(patience_s):
                yield from self._documents(response)
        except ValueError as error:  # it was closed by another thread
            raise Unreachable(self.url, _reason(error, patience_s)) from error

    def _connection(self, timeout_s: float) -> HTTPConnection:
        return self._connect(self._place.host, self._place.port, timeout=timeout_s)

    @contextmanager
    def _told(self, timeout_s: float) -> Iterator[None]:
        """Whatever breaks below, in words."""
        try:
            yield
        except (OSError, HTTPException, UnicodeError) as error:
            raise Unreachable(self.url, _reason(error, timeout_s)) from error

    def _documents(self, response: HTTPResponse) -> Iterator[Document]:
        lines = Lines(self.url)
        while piece := response.read1(READ_BYTES):
            yield from lines.feed(piece)

    def _check_stream(self, response: HTTPResponse, lacking: str) -> None:
        head = _head(response)
        if not asking.is_stream(head):
            raise asking.read_no_stream(self.url, head, self._read(response), lacking)

    def _read(self, response: HTTPResponse) -> bytes:
        content = response.read(asking.ANSWER_BYTES_MAX + 1)
        if len(content) > asking.ANSWER_BYTES_MAX:
            raise Unreachable(self.url, f"its answer is longer than {asking.ANSWER_BYTES_MAX} bytes")
        if response.length:  # http.client does not tell of a body that ended early when it is read with a bound
            raise Unreachable(self.url, "its answer ended half-way")
        return content


class EventStream:
    """Events as a node tells them, each a document with an `event`; ends or raises `Unreachable` when the connection
    does, or when `close` was called by whichever thread."""

    def __init__(self, node: Node, connection: HTTPConnection, response: HTTPResponse, channel: socket.socket) -> None:
        self._node, self._connection, self._response, self._channel = node, connection, response, channel

    def __iter__(self) -> Generator[Document, None, None]:
        try:
            yield from self._node.lines(self._response, EVENTS_SILENCE_S)
        finally:
            self._response.close()
            self._connection.close()

    def close(self) -> None:
        with suppress(OSError):  # it is closed already
            self._channel.shutdown(socket.SHUT_RDWR)


def _head(response: HTTPResponse) -> Head:
    fields = response.headers
    return Head(response.status, response.reason, fields.get_content_type(), fields.get("Retry-After", ""))


def _reason(error: Exception, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    if isinstance(error, IncompleteRead):
        return "its answer ended half-way"
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return f"{type(error).__name__} {error}".strip()
