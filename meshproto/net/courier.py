"""Posts a sealed batch to a peer's node, over connections that are kept alive.

With Twisted's agent alone: it follows no redirect, keeps no cookie and unpacks nothing, all of which a peer might wish
for; and its hosts may be IPv6 addresses, for which treq wants a name that IDNA knows. treq is for the owner's own
programs (:mod:`meshproto.net.deliver_to`)."""

from collections.abc import Callable
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, Protocol, cast

import msgspec
import treq
from msgspec import Struct
from twisted.internet.defer import CancelledError, Deferred, DeferredList, ensureDeferred, succeed
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone, ResponseNeverReceived, _HTTP11ClientFactory
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from meshproto.core.reach import Reach
from meshproto.errors import MeshError, NoAnswer, PeerError, PeerRefused, Unreachable, quoted
from meshproto.net.guarded import BoundedEndpoints, GuardedReactor
from meshproto.net.tls import Endpoints, Trust

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


_HEADERS: Final = {b"content-type": [b"application/json"], b"accept-encoding": [b"identity"]}


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


class _HangUp(TwistedProtocol):
    def connectionMade(self) -> None:
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


class Peers:
    """The agents for other users' nodes, by how far they go. Each has connections of its own: one that was made where a
    neighbour's record may lead is not kept for the record of a stranger."""

    def __init__(self, reactor: Any, trust: Trust) -> None:
        self._reactor = reactor
        self._trust = trust
        self._pools: list[HTTPConnectionPool] = []
        self._agents: dict[Reach, IAgent] = {}

    def __call__(self, reach: Reach) -> IAgent:
        if reach not in self._agents:
            guarded = GuardedReactor(self._reactor, reach)
            pool = http_pool(self._reactor)
            self._pools.append(pool)
            endpoints = BoundedEndpoints(Endpoints(guarded, self._trust).http(CONNECT_TIMEOUT_S), ANSWER_BYTES_MAX)
            self._agents[reach] = Agent.usingEndpointFactory(guarded, endpoints, pool=pool)
        return self._agents[reach]

    def close(self) -> "Deferred[Any]":
        return DeferredList([pool.closeCachedConnections() for pool in self._pools])


class Courier:
    """`peers`: the agents to post with, by how far they go."""

    def __init__(self, peers: Callable[[Reach], IAgent], clock: IReactorTime) -> None:
        self._peers = peers
        self._clock = clock

    async def deliver(self, uri: str, body: bytes, reach: Reach) -> bytes:
        """The peer's answer to `POST uri/deliver`. Raises :class:`Unreachable` when there is no connection, or the URI
        leads out of `reach`, :class:`NoAnswer` when no answer came, :class:`PeerRefused` with the peer's own words when
        it is an error."""
        agent, url = self._peers(reach), uri.rstrip("/").encode("ascii") + b"/deliver"
        lost = False
        try:
            try:
                return await self._post(agent, url, body)
            except ResponseNeverReceived as nothing:
                if any(reason.check(CancelledError, PeerError) for reason in nothing.reasons):
                    raise
                # A kept-alive connection that the peer had closed meanwhile looks like this. To deliver twice is
                # harmless, so once more, on a fresh one.
                lost = True
                return await self._post(agent, url, body)
        except Unreachable as reason:
            raise Unreachable(f"{uri}: {reason.detail}") from None
        except PeerError:
            raise
        except Exception as reason:
            # Connecting and HTTP fail in as many ways as they have layers; each is a reason to try again later.
            kind = Unreachable if isinstance(reason, ConnectError) and not lost else NoAnswer
            raise kind(f"{uri}: {words_of(reason)}") from None

    def _post(self, agent: IAgent, url: bytes, body: bytes) -> "Deferred[bytes]":
        return ensureDeferred(self._exchange(agent, url, body)).addTimeout(DELIVER_TIMEOUT_S, self._clock, _too_late)

    async def _exchange(self, agent: IAgent, url: bytes, body: bytes) -> bytes:
        response: IResponse = await agent.request(b"POST", url, Headers(_HEADERS), _Body(body))
        _check_plain(response)
        collector = _Collector()
        response.deliverBody(collector)
        answer = await collector.done
        if response.code != 200:
            words = f"{response.code} {_problem(answer)}".strip()
            raise PeerRefused(response.code, words, retry_after_s=_retry_after_s(response))
        return answer


def _check_plain(response: IResponse) -> None:
    """Raises :class:`PeerError` when the answer's body is encoded, and hangs up: a kilobyte of gzip may be a megabyte
    of zeros."""
    encodings = response.headers.getRawHeaders(b"content-encoding", [])
    if any(encoding.strip().lower() != b"identity" for encoding in encodings):
        response.deliverBody(_HangUp())
        encoding = quoted(encodings[0].decode("latin-1"), 40)
        raise PeerError(f"the peer's answer is encoded ({encoding}), which was not asked for")


def _too_late(_: object, timeout_s: float) -> Failure:
    """Whatever Twisted made of the cancelling."""
    return Failure(TimeoutError(f"no answer in {timeout_s:g} s"))


def words_of(reason: Exception) -> str:
    """The sentence in a Twisted error, whose reasons may be wrapped in failures."""
    inner = getattr(reason, "reasons", None)
    if inner:
        ours = [each for each in inner if each.check(MeshError)]  # why we hung up, before what broke by that
        return words_of((ours or inner)[-1].value)
    return quoted(str(reason) or type(reason).__name__, REASON_CHARS_MAX)


def _retry_after_s(response: IResponse) -> float | None:
    """RFC 9110, section 10.2.3; a date is not read."""
    given = (response.headers.getRawHeaders(b"retry-after") or [b""])[0]
    return float(given) if given.isdigit() and len(given) <= RETRY_AFTER_DIGITS_MAX else None


def _problem(answer: bytes) -> str:
    try:
        problem = msgspec.json.decode(answer, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return quoted(f"{problem.title}: {problem.detail}", REASON_CHARS_MAX)
