"""An HTTP client of the fake world that says and hears exactly what a test wants."""

import json
import ssl
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from meshproto.net.tls_listening import server_endpoint
from tests.net.certificates import self_signed
from tests.net.tls_rig import endpoint
from tests.world import USER_PORT, World

TLS_PORT = 3443


class RawHTTP(Protocol):
    """`heard`: all bytes that came; `closed`: the node has hung up."""

    port = USER_PORT

    def __init__(self, world: World, user: str) -> None:
        self._world = world
        self.heard = b""
        self.closed = False
        there = TCP4ClientEndpoint(world.laptop, world.hosts[user].ip, self.port)
        connectProtocol(there, self)
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
        return [json.loads(line) for line in self.text.split(b"\n") if line]

    @property
    def text(self) -> bytes:
        """As much of an answer in chunks as has come."""
        _, _, rest = self.heard.partition(b"\r\n\r\n")
        text = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            text, rest = text + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        return text

    @property
    def answers(self) -> list[tuple[int, dict[str, str], bytes]]:
        """Status, fields and body of each whole answer that came; to `HEAD` there must be none."""
        found, rest = [], self.heard
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = b""
            if fields.get("transfer-encoding") == "chunked":
                while True:
                    size, _, rest = rest.partition(b"\r\n")
                    body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
                    if not int(size, 16):
                        break
            elif first.startswith("HTTP/1.0"):
                body, rest = rest, b""
            elif "content-length" in fields:
                length = int(fields["content-length"])
                body, rest = rest[:length], rest[length:]
                assert len(body) == length
            found.append((int(first.split(" ")[1]), fields, body))
        return found


def listen_with_tls(world: World, user: str, directory: Path) -> None:
    """What the node serves, on another port."""
    file = directory / "node.pem"
    file.write_bytes(self_signed("localhost"))
    server_endpoint(world.hosts[user], endpoint(file, port=TLS_PORT)).listen(world.users[user].site)


class RawHTTPS(RawHTTP):
    """The same over TLS (:func:`listen_with_tls`)."""

    port = TLS_PORT

    def __init__(self, world: World, user: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out)
        super().__init__(world, user)

    def connectionMade(self) -> None:
        self._go_on()

    def dataReceived(self, data: bytes) -> None:
        self._in.write(data)
        self._go_on()

    def say(self, text: bytes) -> None:
        self._tls.write(text)
        self._go_on()
        self._world.settle()

    def _go_on(self) -> None:
        assert self.transport is not None
        try:
            self._tls.do_handshake()
            while data := self._tls.read(65536):
                super().dataReceived(data)
            self.transport.loseConnection()  # the other side has said so
        except ssl.SSLWantReadError:
            pass
        if said := self._out.read():
            self.transport.write(said)
