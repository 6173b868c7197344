"""The programs that talk to the nodes of :mod:`bench.faults`: HTTP/1.1 by hand, so that requests can be pipelined,
split, broken off in the middle and left without an answer; and because a real client costs more than the node it talks
to."""

import json
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure

from tests.world import USER_PORT, World

CONNECT_TIMEOUT_S: Final = 5.0


class Said(NamedTuple):
    """An answer; `code` 0: there was none."""

    code: int
    json: Any


NOTHING: Final = Said(0, None)
Told = Callable[[Said], None]


class _Client(Protocol):
    """One connection. What is asked before it is made is sent then; each request is told its answer, in order, or
    :data:`NOTHING` when the connection ends first."""

    def __init__(self, world: World, user: str) -> None:
        self.user = user
        self.over = False
        self._host = world.hosts[user].ip
        self._asked: deque[Told] = deque()
        self._early: list[bytes] = []
        self._received = b""
        self._wire: ITCPTransport | None = None
        world.laptop.connectTCP(self._host, USER_PORT, _Factory(self), CONNECT_TIMEOUT_S)

    @property
    def waiting(self) -> int:
        """Requests without an answer so far."""
        return len(self._asked)

    def hang_up(self, *, abort: bool) -> None:
        if self._wire is not None:
            (self._wire.abortConnection if abort else self._wire.loseConnection)()
        self.end()

    def end(self) -> None:
        """Nobody will answer any more, nor listen."""
        self.over = True
        while self._asked:
            self._asked.popleft()(NOTHING)

    def connectionMade(self) -> None:
        assert self.transport is not None
        self._wire = cast(ITCPTransport, self.transport)
        if self.over:
            self._wire.loseConnection()
        self._wire.write(b"".join(self._early))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.end()

    def _write(self, data: bytes) -> None:
        if self._wire is None:
            self._early.append(data)
        else:
            self._wire.write(data)


class _Factory(ClientFactory):
    noisy = False

    def __init__(self, client: _Client) -> None:
        self._client = client
        self.wanted = client.user

    def buildProtocol(self, addr: object) -> _Client:
        return self._client

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self._client.end()


class Talk(_Client):
    """Requests one after the other."""

    def ask(self, method: str, path: str, told: Told, body: Any = None) -> None:
        text = b"" if body is None else json.dumps(body).encode()
        if self.over:
            told(NOTHING)
            return
        self._asked.append(told)
        self._write(self._head(method, path, len(text)) + text)

    def ask_half(self, path: str, body: Any) -> None:
        """The beginning of a request, of which nothing more will come."""
        text = json.dumps(body).encode()
        self._write(self._head("POST", path, len(text)) + text[: len(text) // 2])

    def _head(self, method: str, path: str, length: int) -> bytes:
        return f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {length}\r\n\r\n".encode()

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        while self._asked and (answer := self._next()) is not None:
            self._asked.popleft()(answer)

    def _next(self) -> Said | None:
        """The answer that has come whole, if one has."""
        head, blank, rest = self._received.partition(b"\r\n\r\n")
        if not blank:
            return None
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), None)
        whole = _chunks(rest) if length is None else (rest[:length], rest[length:]) if len(rest) >= length else None
        if whole is None:
            return None
        body, self._received = whole
        return Said(int(lines[0].split()[1]), json.loads(body))


class Stream(_Client):
    """`POST /send` as application/x-ndjson: lines as they are said, each with its result."""

    def __init__(self, world: World, user: str) -> None:
        super().__init__(world, user)
        self.ended = False
        self._begun = False
        self._text = b""
        kind = "Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked"
        self._write(f"POST /send HTTP/1.1\r\nHost: {self._host}\r\n{kind}\r\n\r\n".encode())

    def say(self, body: Any, told: Told, split_at: int = 0) -> None:
        """One line; in two chunks if it is to be split."""
        if self.over:
            told(NOTHING)
            return
        self._asked.append(told)
        line = json.dumps(body).encode() + b"\n"
        for part in (line[:split_at], line[split_at:]):
            if part:
                self._write(b"%x\r\n%s\r\n" % (len(part), part))

    def finish(self) -> None:
        self.ended = True
        self._write(b"0\r\n\r\n")

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        if not self._begun:
            head, blank, rest = self._received.partition(b"\r\n\r\n")
            if not blank:
                return
            assert head.split()[1] == b"200", f"a stream is answered {head[:40]!r}"
            self._begun, self._received = True, rest
        while (chunk := _chunk(self._received)) is not None:
            part, self._received = chunk
            self._text += part
            if not part:
                self.hang_up(abort=False)  # the end of the results
                return
        *lines, self._text = self._text.split(b"\n")
        for line in lines[: self.waiting]:  # who hangs up listens no more
            self._asked.popleft()(Said(200, json.loads(line)))


def _chunk(data: bytes) -> tuple[bytes, bytes] | None:
    """One chunk of a body (RFC 9112, 7.1) and what comes after it; None: it is not whole yet."""
    size, line, rest = data.partition(b"\r\n")
    length = int(size, 16) if line else 0
    return (rest[:length], rest[length + 2 :]) if line and len(rest) >= length + 2 else None


def _chunks(data: bytes) -> tuple[bytes, bytes] | None:
    """A whole body in chunks, and what comes after it."""
    parts = []
    while (chunk := _chunk(data)) is not None:
        part, data = chunk
        parts.append(part)
        if not part:
            return b"".join(parts), data
    return None
