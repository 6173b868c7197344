"""TLS as a client, over real sockets: whose certificate is taken, and what is said of every other."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IListeningPort, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import URI

from meshproto.core.reach import FAR, Kind
from meshproto.errors import BadState, PeerError, Unreachable
from meshproto.net.courier import Courier, peers
from meshproto.net.http_client import ANSWER_BYTES_MAX
from meshproto.net.tls import Endpoints, Trust
from meshproto.net.tls_listening import server_endpoint
from tests.net.tls_rig import Loud, endpoint, write

NEAR = FAR | {Kind.LOOPBACK, Kind.LINK_LOCAL}

# Twisted hands pyOpenSSL its own kind of certificate.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


class Says(Protocol):
    """Asks at once; `answer` fires with the first that comes back."""

    def __init__(self) -> None:
        self.answer: Deferred[bytes] = Deferred()
        self.over: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"hello?")

    def dataReceived(self, data: bytes) -> None:
        self.answer.callback(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.over.callback(None)


class Client(Factory):
    noisy = False
    protocol = Says

    def __init__(self) -> None:
        self.built: list[Says] = []

    def buildProtocol(self, addr: object) -> Says:
        self.built.append(Says())
        return self.built[-1]


class Town:
    """A server with a certificate, and whoever trusts the one who has signed it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ca = trustme.CA()
        self.loud = Loud()
        self.ports: list[IListeningPort] = []

    def trust(self, ca: trustme.CA | None = None) -> Trust:
        file = self.path / "ca.pem"
        (ca or self.ca).cert_pem.write_to_path(file)
        return Trust.read(file)

    async def serve(self, certificate: trustme.LeafCert, factory: Factory | None = None) -> int:
        from twisted.internet import reactor

        described = endpoint(write(certificate, self.path / "server.pem"))
        return await self._listen(server_endpoint(reactor, described).listen(factory or self.loud))

    async def serve_plain(self, factory: Factory) -> int:
        from twisted.internet import reactor

        return await self._listen(TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory))

    async def _listen(self, listening: "Deferred[IListeningPort]") -> int:
        self.ports.append(await listening)
        return int(self.ports[-1].getHost().port)  # type: ignore[attr-defined]

    async def refused(self, endpoint: IStreamClientEndpoint) -> str:
        """Why there is no connection. Nothing was said to the server, nothing of it heard."""
        client = Client()
        with pytest.raises(Unreachable) as raised:
            await endpoint.connect(client)
        if self.loud.made:
            await self.loud.gone
        await self.close()
        assert client.built == []
        assert self.loud.heard == b""
        return raised.value.detail

    async def close(self) -> None:
        for port in self.ports:
            await maybeDeferred(port.stopListening)


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


def endpoints(trust: Trust) -> Endpoints:
    from twisted.internet import reactor

    return Endpoints(reactor, trust)


def https(trust: Trust, port: int) -> IStreamClientEndpoint:
    found: IStreamClientEndpoint = (
        endpoints(trust).http(5.0).endpointForURI(URI.fromBytes(b"https://localhost:%d/deliver" % port))
    )
    return found


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_certificate_that_is_good(town: Town, host: str) -> None:
    """A certificate of a trusted authority, for the host that was dialled: a name or an address."""
    port = await town.serve(town.ca.issue_cert(host))
    said = await endpoints(town.trust()).seed(f"tls:{host}:{port}").connect(Client())
    assert isinstance(said, Says)
    assert await said.answer == b"hello"
    assert said.transport is not None
    said.transport.loseConnection()
    await said.over
    await town.loud.gone
    await town.close()


Issue = Callable[[trustme.CA], trustme.LeafCert]
BAD: dict[str, Issue] = {
    "has expired": lambda ca: ca.issue_cert("localhost", not_before=NOW - 3 * DAY, not_after=NOW - DAY),
    "is not valid yet": lambda ca: ca.issue_cert("localhost", not_before=NOW + DAY, not_after=NOW + 3 * DAY),
    "is not for localhost": lambda ca: ca.issue_cert("seed.example"),
    "is from nobody who is trusted here": lambda _: trustme.CA().issue_cert("localhost"),
}


@pytest.mark.parametrize("says", BAD)
@pytest.mark.parametrize("dial", ["seed", "https"])
async def test_a_certificate_that_is_not(town: Town, says: str, dial: str) -> None:
    """Each thing that is wrong with a certificate has a sentence of its own, and ends it before a byte is said: for
    seeds and for deliveries."""
    port = await town.serve(BAD[says](town.ca))
    trust = town.trust()
    endpoint = https(trust, port) if dial == "https" else endpoints(trust).seed(f"tls:localhost:{port}")
    assert (await town.refused(endpoint)).startswith(f"the certificate at localhost:{port} {says}")


async def test_an_address_must_be_in_the_certificate(town: Town) -> None:
    """A certificate for a name is none for the address that the name leads to."""
    port = await town.serve(town.ca.issue_cert("localhost"))
    said = await town.refused(endpoints(town.trust()).seed(f"tls:127.0.0.1:{port}"))
    assert said.startswith(f"the certificate at 127.0.0.1:{port} is not for 127.0.0.1")


async def test_a_file_takes_the_place_of_the_system(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --ca whom the system trusts is believed, with it only those in the file."""
    file = town.path / "system.pem"
    town.ca.cert_pem.write_to_path(file)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))  # OpenSSL's own way to say whom the system trusts
    port = await town.serve(town.ca.issue_cert("localhost"))
    said = await endpoints(Trust()).seed(f"tls:localhost:{port}").connect(Client())
    assert isinstance(said, Says) and said.transport is not None
    await said.answer
    said.transport.loseConnection()
    await said.over
    await town.loud.gone
    town.loud = Loud()
    await town.close()
    port = await town.serve(town.ca.issue_cert("localhost"))
    other = town.trust(trustme.CA())
    assert "give --ca" in await town.refused(endpoints(other).seed(f"tls:localhost:{port}"))


async def test_an_authority_of_ones_own_is_not_the_systems(town: Town) -> None:
    """Without --ca an authority of one's own is not believed."""
    port = await town.serve(town.ca.issue_cert("localhost"))
    assert "give --ca" in await town.refused(endpoints(Trust()).seed(f"tls:localhost:{port}"))


class Talkative(Factory):
    noisy = False

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def buildProtocol(self, addr: object) -> Protocol:
        return _Talkative(self._answer)


class _Talkative(Protocol):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(self._answer)
        self.transport.loseConnection()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b'{"jsonrpc":"2.0","id":null,"error":{}}\n', "what listens at {where} does not speak TLS: its address is "),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what listens at {where} does not speak TLS: its address is "),
        (b"", "{where} closed the connection instead of speaking TLS: perhaps its address is "),
    ],
    ids=["a seed", "a node", "nothing"],
)
async def test_a_port_that_does_not_speak_tls(town: Town, answer: bytes, says: str) -> None:
    """What it would be written without TLS is said at once."""
    port = await town.serve_plain(Talkative(answer))
    where = f"localhost:{port}"
    assert await town.refused(endpoints(town.trust()).seed(f"tls:{where}")) == says.format(where=where) + where
    port = await town.serve_plain(Talkative(answer))
    where = f"localhost:{port}"
    assert await town.refused(https(town.trust(), port)) == says.format(where=where) + f"http://{where}"


async def test_who_gives_up_in_the_handshake_leaves_nothing(town: Town) -> None:
    """A dial that is cancelled while the other side says nothing closes the connection."""

    class Silent(Factory):
        noisy = False

        def __init__(self) -> None:
            self.made: Deferred[None] = Deferred()
            self.lost: Deferred[None] = Deferred()

        def buildProtocol(self, addr: object) -> Protocol:
            return Quiet(self)

    class Quiet(Protocol):
        def __init__(self, silent: Silent) -> None:
            self._silent = silent

        def dataReceived(self, data: bytes) -> None:
            self._silent.made.callback(None)

        def connectionLost(self, reason: Failure = connectionDone) -> None:
            self._silent.lost.callback(None)

    silent = Silent()
    port = await town.serve_plain(silent)
    dialling = endpoints(town.trust()).seed(f"tls:localhost:{port}").connect(Client())
    await silent.made
    dialling.cancel()
    with pytest.raises(CancelledError):
        await dialling
    await silent.lost
    await town.close()


def test_files_that_are_no_authorities(tmp_path: Path) -> None:
    """A file that is missing, empty of certificates, or broken is named, with what is wrong; several in one are all
    taken."""
    file = tmp_path / "ca.pem"
    with pytest.raises(BadState, match=r"ca\.pem cannot be read: No such file"):
        Trust.read(file)
    file.write_text("nothing\n")
    with pytest.raises(BadState, match=r"ca\.pem has no certificate in it"):
        Trust.read(file)
    file.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(BadState, match=r"ca\.pem has a certificate that does not read"):
        Trust.read(file)
    file.write_bytes(b"".join(trustme.CA().cert_pem.bytes() for _ in range(2)))
    Trust.read(file)


class Peer(Factory):
    """Answers every request with a body of so many bytes. `gone`: its first connection is over."""

    noisy = False

    def __init__(self, size: int) -> None:
        self.gone: Deferred[None] = Deferred()
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)

    def buildProtocol(self, addr: object) -> Protocol:
        return _Peer(self)


class _Peer(Protocol):
    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.heard = b""

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        if self.heard.endswith(b"batch") and self.transport is not None:
            self.transport.write(self.peer.answer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.peer.gone.callback(None)


async def deliver(town: Town, size: int) -> bytes:
    """The answer of that size, over https."""
    from twisted.internet import reactor

    peer = Peer(size)
    port = await town.serve(town.ca.issue_cert("localhost"), peer)
    client = peers(reactor, town.trust())
    try:
        return await Courier(client).deliver(f"https://localhost:{port}", b"batch", NEAR)
    finally:
        await client.close()
        await peer.gone
        await town.close()


async def test_a_long_receipt(town: Town) -> None:
    """What an answer may be long is counted in what it says, not in what TLS makes of it: a receipt for a full batch
    comes over https too."""
    assert await deliver(town, ANSWER_BYTES_MAX) == bytes(ANSWER_BYTES_MAX)


async def test_an_answer_over_https_is_bounded(town: Town) -> None:
    """TLS is no way around the bound."""
    with pytest.raises(PeerError, match="longer than"):
        await deliver(town, 2 * ANSWER_BYTES_MAX)
