"""Certificates for a test, and the two sides of TLS that are not ours."""

import ssl
from pathlib import Path

import trustme
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from meshproto.net.tls_listening import server_endpoint
from tests.net.pipe import Pipe


def endpoint(certificate: Path, key: Path | None = None, port: int = 0) -> str:
    return f"ssl:{port}:interface=127.0.0.1:privateKey={key or certificate}:certKey={certificate}"


def write(certificate: trustme.LeafCert, path: Path) -> Path:
    """Key and chain in one file."""
    certificate.private_key_and_cert_chain_pem.write_to_path(path)
    return path


class Loud(Factory):
    """A server that keeps what it is told, and answers `hello`. `ended`: connections that are over, of which `gone`
    tells the first."""

    noisy = False

    def __init__(self) -> None:
        self.made = 0
        self.heard = b""
        self.ended: list[Failure] = []
        self.gone: Deferred[None] = Deferred()

    def buildProtocol(self, addr: object) -> Protocol:
        return _Loud(self)


class _Loud(Protocol):
    def __init__(self, loud: Loud) -> None:
        self.loud = loud

    def connectionMade(self) -> None:
        self.loud.made += 1

    def dataReceived(self, data: bytes) -> None:
        self.loud.heard += data
        assert self.transport is not None
        self.transport.write(b"hello")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.loud.ended.append(reason)
        if not self.loud.gone.called:
            self.loud.gone.callback(None)


class Server(Clock):
    """A reactor for :func:`server_endpoint`, whose connections and time are the test's."""

    factory: IProtocolFactory

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int, interface: str) -> IListeningPort | None:
        self.factory = factory
        return None

    def listen(self, described: str, factory: IProtocolFactory) -> None:
        server_endpoint(self, described).listen(factory)


class Stranger:
    """Whoever connects to a :class:`Server`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.pipe = Pipe()
        protocol = server.factory.buildProtocol(self.pipe.getPeer())
        assert protocol is not None
        self.protocol = protocol
        self.protocol.makeConnection(self.pipe)

    def say(self, data: bytes) -> bytes:
        """What is answered."""
        self.protocol.dataReceived(data)
        self.server.advance(0)
        return self.pipe.take()

    def leave(self) -> None:
        self.protocol.connectionLost(Failure(connectionDone.value))


class Speaker(Stranger):
    """One who speaks TLS, with the standard library's."""

    def __init__(self, server: Server, context: ssl.SSLContext) -> None:
        super().__init__(server)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")

    def shake_hands(self) -> None:
        """Raises :class:`ssl.SSLError`, and sends the alert then."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._exchange()
            except ssl.SSLError:
                self._exchange()
                raise
            else:
                self._exchange()
                return

    def serial(self) -> object:
        """Which certificate the server has shown."""
        shown = self.tls.getpeercert()
        assert shown is not None
        return shown["serialNumber"]

    def ask(self, data: bytes) -> bytes:
        self.tls.write(data)
        self._exchange()
        return self.tls.read()

    def _exchange(self) -> None:
        if said := self._out.read():
            self._in.write(self.say(said))
