"""TLS as a server: Twisted's `ssl:` endpoint strings, with what a port on an open network needs besides.

Whoever does not speak TLS is told so in the language they speak, instead of being left to guess. Whoever does not
finish the handshake is not waited for. And a certificate that was renewed is used without a restart.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from OpenSSL import SSL, crypto
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import VerifyError
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamServerEndpoint,
    ITransport,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.logger import Logger
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from meshproto import wire
from meshproto.core.limits import network_of
from meshproto.core.notes import Notes
from meshproto.errors import BadParams, TLSNeeded
from meshproto.net.inherited import arguments, inherited, is_inherited
from meshproto.net.listening import TLS_HANDSHAKE
from meshproto.net.problem import last_answer
from meshproto.net.tls import said

if TYPE_CHECKING:
    from twisted.internet.tcp import Connection

HANDSHAKE_S: Final = 10.0
"""A few round trips, over the slowest line; OpenSSL itself would wait for ever."""
RENEW_S: Final = 60.0
"""How often the files of a certificate are looked at, when somebody connects: reading them takes a millisecond."""

TLS_SCHEME: Final = "ssl:"

Renew = Callable[[], None]


def is_tls(described: str) -> bool:
    """Whether an endpoint string is one of TLS."""
    return described.startswith(TLS_SCHEME)


def server_endpoint(reactor: Any, described: str, renewals: list[Renew] | None = None) -> IStreamServerEndpoint:
    """What a Twisted server endpoint string describes. Raises :class:`BadParams` when it does not read, or its
    certificate or key do not. `renewals`: gets what has the certificate read again at once, if it has one."""
    if is_inherited(described):
        return inherited(reactor, described)
    try:
        if described.startswith("tls:"):
            raise BadParams("TLS is written ssl:PORT:privateKey=FILE:certKey=FILE here")
        if is_tls(described):
            certificate = _Certificate(described, reactor)
            reactor = _TLSReactor(reactor, certificate)
            if renewals is not None:
                renewals.append(certificate.renew)
        endpoint: IStreamServerEndpoint = serverFromString(reactor, described)
    except OSError as reason:
        raise BadParams(f"{reason.filename}: {reason.strerror}") from None
    except (crypto.Error, SSL.Error, VerifyError) as reason:
        words = said(reason) or str(reason) or "it is no PEM"
        raise BadParams(f"the key or the certificate of {described} does not read: {words}") from None
    return endpoint


def check_endpoint(described: str) -> str:
    """The same before there is a reactor to listen with. Raises :class:`BadParams`, and what Twisted raises."""
    if is_inherited(described):
        arguments(described)  # the sockets are there at a start only
    else:
        server_endpoint(_NoReactor(), described)
    return described


class _NoReactor:
    def seconds(self) -> float:
        return 0.0


class _TLSReactor:
    """The reactor, for an endpoint that says `listenSSL`: that is TLS over `listenTCP`, here with :class:`_Greeted`."""

    def __init__(self, reactor: Any, certificate: "_Certificate") -> None:
        self._reactor = reactor
        self._certificate = certificate

    def listenSSL(
        self,
        port: int,
        factory: IProtocolFactory,
        contextFactory: object,  # noqa: N803
        backlog: int = 50,
        interface: str = "",
    ) -> IListeningPort:
        guarded = _GreetedFactory(self._certificate, factory, self._reactor)
        listening: IListeningPort = self._reactor.listenTCP(port, guarded, backlog, interface)
        return listening


class _ReadOnly:
    """A reactor that does not listen, but keeps what it would have listened with."""

    options: CertificateOptions

    def listenSSL(
        self,
        port: int,
        factory: object,
        contextFactory: CertificateOptions,  # noqa: N803
        **_: object,
    ) -> None:
        self.options = contextFactory


@implementer(IOpenSSLServerConnectionCreator)
class _Certificate:
    """Certificate and key of an endpoint string, as its files have them now. Raises what Twisted does when these do
    not read the first time; later those from before stay in use."""

    log = Logger()

    def __init__(self, described: str, clock: IReactorTime) -> None:
        self._described = described
        self._clock = clock
        self._context = self._read()
        self._read_at = clock.seconds()
        self._trouble = ""

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        if abs(self._clock.seconds() - self._read_at) >= RENEW_S:
            self.renew()
        return SSL.Connection(self._context, None)

    def _read(self) -> SSL.Context:
        looking = _ReadOnly()
        serverFromString(looking, self._described).listen(Factory())
        return looking.options.getContext()

    def renew(self) -> None:
        """Use what the files have now, if it reads."""
        self._read_at = self._clock.seconds()
        try:
            self._context = self._read()
            self._trouble = ""
        except Exception as reason:
            trouble = said(reason) or str(reason) or type(reason).__name__
            if trouble != self._trouble:
                self.log.error("the former certificate stays in use: {reason}", reason=trouble)
            self._trouble = trouble


class _GreetedFactory(TLSMemoryBIOFactory):
    def __init__(self, certificate: _Certificate, factory: IProtocolFactory, clock: IReactorTime) -> None:
        super().__init__(certificate, False, factory, clock)
        self.clock = clock
        self.notes = Notes()

    def buildProtocol(self, addr: IAddress | None) -> "_Greeted | None":  # type: ignore[override]  # as any factory may
        protocol = self.wrappedFactory.buildProtocol(addr)
        return None if protocol is None else _Greeted(self, protocol)


class _Greeted(BufferingTLSTransport):
    """TLS, for those who begin it and come to its end. The real protocol is there from the start, so that those who
    say nothing count among its connections."""

    factory: _GreetedFactory
    transport: "Connection"
    log = Logger()

    def __init__(self, factory: _GreetedFactory, protocol: IProtocol) -> None:
        super().__init__(factory, protocol)
        self._timer: IDelayedCall | None = None
        self._heard = False
        self._in_clear = False

    def makeConnection(self, transport: ITransport) -> None:
        self._timer = self.factory.clock.callLater(HANDSHAKE_S, self._too_late)
        super().makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        if not self._heard:
            self._heard = True
            self._in_clear = not data.startswith(TLS_HANDSHAKE)
            if self._in_clear:
                self._answer(data)
        if self._in_clear:
            return
        super().dataReceived(data)
        handle = self.getHandle()
        if self._timer is not None and handle is not None and handle.get_peer_finished() is not None:
            self._timer.cancel()
            self._timer = None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timer is not None:  # the handshake was not done
            if self._timer.active():
                self._timer.cancel()
            self._timer = None
            why = self._reason or reason  # what the wrapped protocol will be told
            self._complain("does not speak TLS" if self._in_clear else said(why.value))
        super().connectionLost(reason)

    def _answer(self, data: bytes) -> None:
        """In the clear, and then read on until they close, so that nothing is lost under what they still send."""
        needed = TLSNeeded("this port speaks TLS: write tls:HOST:PORT for a seed, https://HOST:PORT for a node")
        self.transport.write(last_answer(needed) if data[:1].isalpha() else wire.encode_error(None, needed))
        self.transport.loseWriteConnection()

    def _too_late(self) -> None:
        self.abortConnection()

    def _complain(self, what: str) -> None:
        host = getattr(self.transport.getPeer(), "host", "")
        if not what:
            return
        line = self.factory.notes.line(network_of(host), f"no TLS with {host}: {what}", self.factory.clock.seconds())
        if line is not None:
            self.log.warn("{line}", line=line)
