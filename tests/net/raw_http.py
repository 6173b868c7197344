"""An HTTP client of the fake world that says and hears exactly what a test wants."""

import json
from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from tests.world import USER_PORT, World


class RawHTTP(Protocol):
    """`heard`: all bytes that came; `closed`: the node has hung up."""

    def __init__(self, world: World, user: str) -> None:
        self._world = world
        self.heard = b""
        self.closed = False
        endpoint = TCP4ClientEndpoint(world.laptop, world.hosts[user].ip, USER_PORT)
        connectProtocol(endpoint, self)
        world.settle()

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True

    def say(self, text: bytes) -> None:
        assert self.transport is not None
        self.transport.write(text)
        self._world.settle()

    def hang_up(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()
        self._world.settle()

    # a stream

    def begin(self, **headers: str) -> None:
        named = {"Host": "127.0.0.1", "Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        self.say(b"POST /send HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in named.items()).encode() + b"\r\n")

    def chunk(self, text: bytes) -> None:
        self.say(b"%x\r\n%s\r\n" % (len(text), text))

    def lines(self, *messages: Any) -> None:
        self.chunk(b"".join(json.dumps(message).encode() + b"\n" for message in messages))

    def end(self) -> None:
        self.say(b"0\r\n\r\n")

    @property
    def status(self) -> int:
        return int(self.heard.split(b" ", 2)[1])

    @property
    def over(self) -> bool:
        """The answer has ended in good order."""
        return self.heard.endswith(b"\r\n0\r\n\r\n")

    @property
    def results(self) -> list[Any]:
        """The result lines that came."""
        _, _, rest = self.heard.partition(b"\r\n\r\n")
        text = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            text, rest = text + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        return [json.loads(line) for line in text.splitlines()]
