"""Posts a sealed batch to a peer's node: treq over connections that are kept alive."""

from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, Protocol, cast

import msgspec
import treq
from msgspec import Struct
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, succeed
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone, ResponseNeverReceived, _HTTP11ClientFactory
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from meshproto.errors import NoAnswer, PeerError, PeerRefused, Unreachable

CONNECT_TIMEOUT_S: Final = 5.0
DELIVER_TIMEOUT_S: Final = 30.0
"""A batch of a megabyte over a slow line, and the commit at the other end."""
ANSWER_BYTES_MAX: Final = 512 * 1024
"""A sealed receipt: 1000 ids of 128 characters, and base64's third."""
REASON_CHARS_MAX: Final = 500
"""What is kept of a peer's own words about an error."""
RETRY_AFTER_DIGITS_MAX: Final = 9
"""Thirty years; Python does not read a number of thousands of digits."""
KEEP_ALIVE_S: Final = 50.0
"""Below the minute after which a node closes an idle connection, so that it is we who close."""
CONNECTIONS_PER_HOST: Final = 4


class HTTPClient(Protocol):
    """What is used of treq, so that tests can put in another."""

    def post(self, url: str, **kwargs: Any) -> "Deferred[IResponse]":
        """:meth:`treq.client.HTTPClient.post`."""


class _Problem(Struct, frozen=True):
    title: str = ""
    detail: str = ""


@implementer(IBodyProducer)
class _Body:
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


class _Collector(TwistedProtocol):
    """Reads an answer's body, up to :data:`ANSWER_BYTES_MAX`."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._bytes = 0
        self.done: Deferred[bytes] = Deferred(lambda _: self._cut())

    def dataReceived(self, data: bytes) -> None:
        self._parts.append(data)
        self._bytes += len(data)
        if self._bytes > ANSWER_BYTES_MAX and not self.done.called:
            self.done.errback(PeerError(f"the peer's answer is longer than {ANSWER_BYTES_MAX} bytes"))
            self._cut()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(b"".join(self._parts))
        else:
            self.done.errback(reason)

    def _cut(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()


class _QuietFactory(_HTTP11ClientFactory):
    noisy = False


def http_pool(reactor: Any) -> HTTPConnectionPool:
    pool = HTTPConnectionPool(reactor)
    pool.maxPersistentPerHost = CONNECTIONS_PER_HOST
    pool.cachedConnectionTimeout = KEEP_ALIVE_S  # type: ignore[assignment]
    pool._factory = _QuietFactory  # the only way to spare the log two lines a connection
    return pool


def http_client(reactor: Any, pool: HTTPConnectionPool, endpoints: IAgentEndpointFactory | None = None) -> HTTPClient:
    """treq over the pool, without cookies; `endpoints`: where connections lead, if not where the URL says."""
    agent: IAgent = (
        Agent(reactor, pool=pool, connectTimeout=CONNECT_TIMEOUT_S)
        if endpoints is None
        else Agent.usingEndpointFactory(reactor, endpoints, pool=pool)
    )
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    client = treq.client.HTTPClient(agent, cookiejar=no_cookies, data_to_body_producer=_Body)  # type: ignore[arg-type]
    return cast(HTTPClient, client)


class Courier:
    def __init__(self, client: HTTPClient, clock: IReactorTime) -> None:
        self._client = client
        self._clock = clock

    async def deliver(self, uri: str, body: bytes) -> bytes:
        """The peer's answer to `POST uri/deliver`. Raises :class:`Unreachable` when there is no connection,
        :class:`NoAnswer` when no answer came, :class:`PeerRefused` with the peer's own words when it is an error."""
        url = uri.rstrip("/") + "/deliver"
        lost = False
        try:
            try:
                return await self._post(url, body)
            except ResponseNeverReceived as nothing:
                if any(reason.check(CancelledError) for reason in nothing.reasons):
                    raise
                # A kept-alive connection that the peer had closed meanwhile looks like this. To deliver twice is
                # harmless, so once more, on a fresh one.
                lost = True
                return await self._post(url, body)
        except (PeerRefused, PeerError):
            raise
        except Exception as reason:
            # Connecting and HTTP fail in as many ways as they have layers; each is a reason to try again later.
            kind = Unreachable if isinstance(reason, ConnectError) and not lost else NoAnswer
            raise kind(f"{uri}: {words_of(reason)}") from None

    def _post(self, url: str, body: bytes) -> "Deferred[bytes]":
        return ensureDeferred(self._exchange(url, body)).addTimeout(DELIVER_TIMEOUT_S, self._clock, _too_late)

    async def _exchange(self, url: str, body: bytes) -> bytes:
        response = await self._client.post(
            url,
            data=body,
            headers={"Content-Type": "application/json"},
            allow_redirects=False,
            unbuffered=True,
            reactor=self._clock,
        )
        collector = _Collector()
        response.deliverBody(collector)
        answer = await collector.done
        if response.code != 200:
            words = f"{response.code} {_problem(answer)}".strip()
            raise PeerRefused(response.code, words, retry_after_s=_retry_after_s(response))
        return answer


def _too_late(_: object, timeout_s: float) -> Failure:
    """Whatever Twisted made of the cancelling."""
    return Failure(TimeoutError(f"no answer in {timeout_s:g} s"))


def words_of(reason: Exception) -> str:
    """The sentence in a Twisted error, whose reasons may be wrapped in failures."""
    inner = getattr(reason, "reasons", None)
    if inner:
        return words_of(inner[-1].value)
    return (str(reason) or type(reason).__name__)[:REASON_CHARS_MAX]


def _retry_after_s(response: IResponse) -> float | None:
    """RFC 9110, section 10.2.3; a date is not read."""
    given = (response.headers.getRawHeaders(b"retry-after") or [b""])[0]
    return float(given) if given.isdigit() and len(given) <= RETRY_AFTER_DIGITS_MAX else None


def _problem(answer: bytes) -> str:
    try:
        problem = msgspec.json.decode(answer, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return f"{problem.title}: {problem.detail}"[:REASON_CHARS_MAX]
