"""TLS as a client: who is trusted, whether it is them, and in words why not.

A connection counts as made when the handshake is done and the certificate is for the host that was dialled: whoever
uses it sees no bytes before that, and a handshake that fails is a connection that failed. The chain is verified by
OpenSSL, the name by service_identity (RFC 9525), as Twisted does it; not through Twisted's own `optionsForClientTLS`,
because that does not tell an expired certificate from an unknown one.
"""

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

from OpenSSL import SSL, crypto
from service_identity import VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IAddress,
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import Certificate, CertificateOptions, platformTrust, trustRootFromCertificates
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.web.client import URI
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from meshproto.errors import BadState, TLSFailed
from meshproto.net.listening import join_address
from meshproto.wire import TLS_PREFIX, split_address

CONNECT_S: Final = 30.0
"""Twisted's own. Who dials a seed gives up before."""

_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

# OpenSSL's X509_V_ERR_*, from x509_vfy.h.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_UNTRUSTED: Final = frozenset({2, 18, 19, 20, 21, 27})
"""No issuer found, self-signed, or not trusted for this."""

_NOT_TLS: Final = frozenset({"wrong version number", "packet length too long", "record layer failure"})
"""What OpenSSL calls an answer that is plain text."""


class Trust:
    """Which certificates are believed: those of `authorities`, or without any the system's."""

    def __init__(self, authorities: Sequence[Certificate] | None = None) -> None:
        self._authorities = authorities

    @classmethod
    def read(cls, path: Path | None) -> "Trust":
        """The certificates in a file, PEM, one or several. Raises :class:`BadState`."""
        if path is None:
            return cls()
        try:
            found = _CERTIFICATE.findall(path.read_bytes())
            authorities = [Certificate.loadPEM(one) for one in found]
        except OSError as reason:
            raise BadState(f"{path} cannot be read: {reason.strerror}") from None
        except (crypto.Error, ValueError) as reason:
            raise BadState(f"{path} has a certificate that does not read: {reason}") from None
        if not authorities:
            raise BadState(f"{path} has no certificate in it: they begin with -----BEGIN CERTIFICATE----- (PEM)")
        return cls(authorities)

    def follow(self, other: "Trust") -> None:
        """Believe what the other does, from the next connection on."""
        self._authorities = other._authorities
        self.__dict__.pop("context", None)

    @cached_property
    def context(self) -> SSL.Context:
        """TLS 1.2 at least, as Twisted has it. The system's certificates take a while to read: once, if at all."""
        given = self._authorities
        root = platformTrust() if given is None else trustRootFromCertificates(given)
        return CertificateOptions(trustRoot=root).getContext()


def tcp(reactor: IReactorTime, host: str, port: int, timeout_s: float) -> IStreamClientEndpoint:
    """A name is resolved, and its addresses tried one after the other. An address is connected to as it is: Twisted
    would ask a resolver for it too, in a thread, which takes as long as all the rest."""
    if isIPAddress(host):
        return TCP4ClientEndpoint(reactor, host, port, timeout_s)
    if isIPv6Address(host):
        return TCP6ClientEndpoint(reactor, host, port, timeout_s)
    return HostnameEndpoint(reactor, host, port, timeout_s)


class Endpoints:
    """Where connections lead. `reactor` is handed to Twisted's `HostnameEndpoint`."""

    def __init__(self, reactor: IReactorTime, trust: Trust) -> None:
        self._reactor = reactor
        self._trust = trust

    def seed(self, address: str) -> IStreamClientEndpoint:
        """`HOST:PORT`, or `tls:HOST:PORT`. Raises :class:`BadParams`."""
        host, port = split_address(address)
        endpoint = tcp(self._reactor, host, port, CONNECT_S)
        if not address.startswith(TLS_PREFIX):
            return endpoint
        return TLSEndpoint(self._reactor, self._trust, endpoint, host, port, join_address(host, port))

    def http(self, timeout_s: float) -> IAgentEndpointFactory:
        """For Twisted's `Agent`. `timeout_s`: for a TCP connection."""
        return _HTTPEndpoints(self._reactor, self._trust, timeout_s)


@implementer(IAgentEndpointFactory)
class _HTTPEndpoints:
    def __init__(self, reactor: IReactorTime, trust: Trust, timeout_s: float) -> None:
        self._reactor = reactor
        self._trust = trust
        self._timeout_s = timeout_s

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        host = uri.host.decode("ascii")
        endpoint = tcp(self._reactor, host, uri.port, self._timeout_s)
        if uri.scheme != b"https":
            return endpoint
        plain = f"http://{join_address(host, uri.port)}"
        return TLSEndpoint(self._reactor, self._trust, endpoint, host, uri.port, plain)


@implementer(IStreamClientEndpoint)
class TLSEndpoint:
    """`plain`: what the address would be without TLS, for whoever has mistaken it."""

    def __init__(
        self, clock: IReactorTime, trust: Trust, endpoint: IStreamClientEndpoint, host: str, port: int, plain: str
    ) -> None:
        self._clock = clock
        self._trust = trust
        self._endpoint = endpoint
        self._host = host
        self._where = join_address(host, port)
        self._plain = plain

    def connect(self, factory: IProtocolFactory) -> "Deferred[IProtocol]":
        """Fails with :class:`TLSFailed` when the handshake does."""
        checked = _Checked(self._trust.context, self._host)
        handshakes: list[_Handshake] = []

        def give_up(_: object) -> None:
            connecting.cancel()
            for handshake in handshakes:
                handshake.give_up()

        made: Deferred[IProtocol] = Deferred(give_up)

        def begin(address: IAddress | None) -> _Handshake:
            handshakes.append(_Handshake(factory, address, checked, self._words, made))
            return handshakes[-1]

        wrapped = wrapClientTLS(checked, self._endpoint, self._clock)
        connecting = wrapped.connect(_Begin(begin))
        connecting.addErrback(lambda failure: None if made.called else made.errback(failure))
        return made

    def _words(self, checked: "_Checked", reason: Failure) -> str:
        """Why there is no connection, and what to do."""
        where, host = self._where, self._host
        if checked.wrong_name:
            return f"the certificate at {where} is not for {host}: dial a name that it is for, or have it made anew"
        if checked.error == _EXPIRED:
            return f"the certificate at {where} has expired: it has to be renewed there (or the clock is wrong here)"
        if checked.error == _NOT_YET_VALID:
            return f"the certificate at {where} is not valid yet: the clock is wrong, there or here"
        if checked.error in _UNTRUSTED:
            return f"the certificate at {where} is from nobody who is trusted here: give --ca, with who has signed it"
        if checked.error:
            return f"the certificate at {where} is no good: OpenSSL's verify error {checked.error}"
        openssl = said(reason.value)
        if openssl in _NOT_TLS:
            return f"what listens at {where} does not speak TLS: its address is {self._plain}"
        if openssl:
            return f"no TLS with {where}: {openssl}"
        return f"{where} closed the connection instead of speaking TLS: perhaps its address is {self._plain}"


class _Begin(Factory):
    noisy = False

    def __init__(self, begin: Callable[[IAddress | None], "_Handshake"]) -> None:
        self._begin = begin

    def buildProtocol(self, addr: IAddress | None) -> "_Handshake":
        return self._begin(addr)


@implementer(IOpenSSLClientConnectionCreator)
class _Checked:
    """One connection to one host: what is wrong with its certificate."""

    def __init__(self, context: SSL.Context, host: str) -> None:
        self._context = context
        self._host = host
        self._is_ip = isIPAddress(host) or isIPv6Address(host)
        self.error = 0
        self.wrong_name = False

    def clientConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        if not self._is_ip:
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        connection.set_verify(SSL.VERIFY_PEER, self._judged)
        return connection

    def check_name(self, connection: SSL.Connection) -> bool:
        """Whether the certificate is for this host: to be asked before anything is said."""
        verify = verify_ip_address if self._is_ip else verify_hostname
        try:
            verify(connection, self._host)
        except (VerificationError, ValueError):  # of which CertificateError is one
            self.wrong_name = True
        return not self.wrong_name

    def _judged(self, _: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
        """OpenSSL's judgement of one certificate of the chain."""
        if not ok:
            self.error = self.error or error
        return bool(ok)


@implementer(IHandshakeListener)
class _Handshake(Protocol):
    """In the place of the real protocol, until it is known who is there."""

    transport: TLSMemoryBIOProtocol

    def __init__(
        self,
        factory: IProtocolFactory,
        address: IAddress | None,
        checked: _Checked,
        words: Callable[[_Checked, Failure], str],
        made: "Deferred[IProtocol]",
    ) -> None:
        self._factory = factory
        self._address = address
        self._checked = checked
        self._words = words
        self._made = made

    def handshakeCompleted(self) -> None:
        if self._made.called or not self._checked.check_name(self.transport.getHandle()):
            self.transport.abortConnection()
            return
        protocol = self._factory.buildProtocol(self._address)  # type: ignore[arg-type]
        if protocol is None:
            self.transport.abortConnection()
            return
        self.transport.wrappedProtocol = protocol
        protocol.makeConnection(self.transport)
        self._made.callback(protocol)

    def give_up(self) -> None:
        """Nobody waits any more."""
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._made.called:
            self._made.errback(Failure(TLSFailed(self._words(self._checked, reason))))


def said(reason: BaseException | None) -> str:
    """OpenSSL's own words for an error, `""` when it is none of OpenSSL's, or only says that the connection ended."""
    if not isinstance(reason, (SSL.Error, crypto.Error)) or isinstance(reason, SSL.SysCallError):
        return ""
    queue = reason.args[0] if reason.args else ()
    return str(queue[-1][2]) if queue else ""
