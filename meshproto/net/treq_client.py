"""treq, for the owner's own programs (:mod:`meshproto.net.deliver_to`): they may be anywhere and answer as they like.
Deliveries to peers go through :mod:`meshproto.net.http_client`."""

from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, Protocol, cast

import treq
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer
from twisted.web.client import Agent, HTTPConnectionPool, _HTTP11ClientFactory
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from meshproto.errors import quoted
from meshproto.net.courier import REASON_CHARS_MAX

KEEP_ALIVE_S: Final = 50.0
"""Programs may close an idle connection after a minute: it is we who close it."""
CONNECTIONS_PER_HOST: Final = 4


class Poster(Protocol):
    """What is used of treq to deliver, so that tests can put in another."""

    def post(self, url: str, **kwargs: Any) -> "Deferred[IResponse]":
        """:meth:`treq.client.HTTPClient.post`."""


class TreqClient(Poster, Protocol):
    """What is used of treq."""

    def get(self, url: str, **kwargs: Any) -> "Deferred[IResponse]":
        """:meth:`treq.client.HTTPClient.get`."""


@implementer(IBodyProducer)
class Body:
    """A body that is there already. It is written once, and let go: Twisted's request and response refer to each other,
    and would keep a megabyte each until Python looks for such."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> "Deferred[None]":
        consumer.write(self._body)
        self._body = b""
        return succeed(None)

    def pauseProducing(self) -> None:
        """Everything was written at once."""

    def resumeProducing(self) -> None:
        """Everything was written at once."""

    def stopProducing(self) -> None:
        """Everything was written at once."""


class _QuietFactory(_HTTP11ClientFactory):
    noisy = False


def treq_pool(reactor: Any) -> HTTPConnectionPool:
    pool = HTTPConnectionPool(reactor)
    pool.maxPersistentPerHost = CONNECTIONS_PER_HOST
    pool.cachedConnectionTimeout = KEEP_ALIVE_S  # type: ignore[assignment]
    pool._factory = _QuietFactory  # the only way to spare the log two lines a connection
    return pool


def treq_client(reactor: Any, pool: HTTPConnectionPool, endpoints: IAgentEndpointFactory) -> TreqClient:
    """treq over the pool, without cookies; `endpoints`: where connections lead."""
    agent = Agent.usingEndpointFactory(reactor, endpoints, pool=pool)
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    client = treq.client.HTTPClient(agent, cookiejar=no_cookies, data_to_body_producer=Body)  # type: ignore[arg-type]
    return cast(TreqClient, client)


def words_of(reason: Exception) -> str:
    """The sentence in a Twisted error, whose reasons may be wrapped in failures."""
    inner = getattr(reason, "reasons", None)
    if inner:
        return words_of(inner[-1].value)
    return quoted(str(reason) or type(reason).__name__, REASON_CHARS_MAX)
