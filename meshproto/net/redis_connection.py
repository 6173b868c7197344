"""Connections to the nodes of a store, as redis-py makes them, and in words why one fails."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from redis.asyncio.connection import Connection, RedisSSLContext, SSLConnection
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError

from meshproto.net.listening import join_address
from meshproto.net.redis_address import RedisAddress

CONNECT_S: Final = 1.0
"""For a connection and its handshake: half of what an operation may take, so that another node can be asked still."""

FAILURES: Final = (RedisError, OSError)
"""What connections fail with; TimeoutError is an OSError."""

# OpenSSL's X509_V_ERR_*, from x509_vfy.h.
_EXPIRED: Final = 10
_WRONG_NAME: Final = frozenset({62, 64})


class Connecting:
    """Makes connections. They have no timeouts of their own, which would cost as much as all the rest of a short
    question: whoever uses one sets a time for a whole batch."""

    def __init__(self, address: RedisAddress, ca: Path | None) -> None:
        self._class: type[Connection] = SSLConnection if address.tls else Connection
        self._options: dict[str, Any] = {
            "username": address.user,
            "password": address.password,
            "protocol": 2,  # whose published messages are read like any reply
            "socket_timeout": None,
            "socket_connect_timeout": None,
        }
        self._context: RedisSSLContext | None = None
        if address.tls and ca is not None:
            self._options["ssl_ca_certs"] = str(ca)

    def to(self, host: str, port: int) -> Connection:
        """All share what is read of certificates, which takes longer than the rest of a handshake."""
        connection = self._class(host=host, port=port, **self._options)
        if isinstance(connection, SSLConnection):
            self._context = connection.ssl_context = self._context or connection.ssl_context
        return connection


def failure_words(host: str, port: int, error: BaseException) -> str:
    """Why nothing came of a connection, on one line."""
    where = join_address(host, port)
    for reason in _reasons(error):
        if isinstance(reason, ssl.SSLCertVerificationError):
            return _certificate_words(where, reason)
        if isinstance(reason, ssl.SSLError):
            return f"no TLS with {where} ({reason.reason}): without TLS its address begins with redis://"
    if isinstance(error, AuthenticationError):
        return f"{where} refuses the user or the password: {error}"
    if isinstance(error, TimeoutError) and not str(error):
        return f"{where} does not answer in time"
    return f"{where}: {error}"


def is_hopeless(error: BaseException) -> bool:
    """Whether waiting does not help."""
    wrong = (AuthenticationError, AuthorizationError, ssl.SSLError)
    return any(isinstance(reason, wrong) for reason in _reasons(error))


def nobody_listens(error: BaseException) -> bool:
    return any(isinstance(reason, (ConnectionRefusedError, socket.gaierror)) for reason in _reasons(error))


def _certificate_words(where: str, reason: ssl.SSLCertVerificationError) -> str:
    if reason.verify_code in _WRONG_NAME:
        return f"the certificate at {where} is not for that host: have it made anew, for what the store announces"
    if reason.verify_code == _EXPIRED:
        return f"the certificate at {where} has expired: it has to be renewed there (or the clock is wrong here)"
    return f"the certificate at {where} is from nobody who is trusted here: give --ca, with who has signed it"


def _reasons(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it came from."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
