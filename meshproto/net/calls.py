"""The asking side of the line protocol: requests by id, answers in any order, notifications in between."""

from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, TypeVar

from msgspec import UNSET, Raw, Struct
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from meshproto import wire
from meshproto.errors import MeshError, NobodyListens, PeerError, Unreachable
from meshproto.net.lines import Lines, LinesFactory

CALL_TIMEOUT_S: Final = 5.0
"""A seed answers in milliseconds; one that takes seconds is no use to a sender who waits."""
DIAL_TIMEOUT_S: Final = 2.0
"""Time for a lost SYN to be sent again, once. The kernel's next tries lie ever further apart; ours do not."""
CALLS_PENDING_MAX: Final = 10_000
LINKS_MAX: Final = 200
"""Connections to seeds that a user's node keeps. A seed keeps one to every other: that one has closed it would look to
the other like its end, and be looked after."""

T = TypeVar("T")
Notified = Callable[[str, Raw], None]
Lost = Callable[[str], None]
Connect = Callable[[str], IStreamClientEndpoint]


class Calls:
    """A :class:`meshproto.net.lines.LineHandler` for one connection to a seed. `notified` gets method and params of
    each notification; `lost` fires when the connection is gone."""

    log = Logger()

    def __init__(self, clock: IReactorTime, notified: Notified | None = None) -> None:
        self._clock = clock
        self._notified = notified
        self.lost: Deferred[None] = Deferred()
        self._lines: Lines | None = None
        self._pending: dict[int, Deferred[Raw]] = {}
        self._last_id = 0
        self._closed = False
        self._past = (0, 0)
        self._parting = ""

    @property
    def sent_bytes(self) -> int:
        return self._lines.sent_bytes if self._lines is not None else self._past[0]

    @property
    def received_bytes(self) -> int:
        return self._lines.received_bytes if self._lines is not None else self._past[1]

    @property
    def connected(self) -> bool:
        return self._lines is not None and not self._closed

    @property
    def host(self) -> str:
        """The IP address at the other end; `""` when there is none."""
        return "" if self._lines is None else getattr(self._lines.transport.getPeer(), "host", "")

    @property
    def own_host(self) -> str:
        """The IP address at this end, which is what the other sees if no NAT is between; `""`: there is none."""
        return "" if self._lines is None else getattr(self._lines.transport.getHost(), "host", "")

    async def call(self, method: str, params: Struct, kind: type[T]) -> T:
        """The seed's answer. Raises what the seed answered (:func:`meshproto.wire.error_from`), :class:`Unreachable`
        when the connection is lost or no answer comes in :data:`CALL_TIMEOUT_S`, :class:`PeerError` when the answer
        does not fit. A connection over which nothing at all has come in that time is closed."""
        if self._lines is None or self._closed:
            raise Unreachable("the connection is closed")
        if len(self._pending) >= CALLS_PENDING_MAX:
            raise Unreachable(f"{CALLS_PENDING_MAX} requests wait for an answer already")
        self._last_id = request_id = self._last_id + 1
        answer: Deferred[Raw] = Deferred()
        self._pending[request_id] = answer
        timer = self._clock.callLater(CALL_TIMEOUT_S, self._overdue, request_id, self.received_bytes)
        self._lines.send(wire.encode_request(method, params, request_id))
        try:
            return wire.decode_value(await answer, kind)
        finally:
            self._pending.pop(request_id, None)
            if timer.active():
                timer.cancel()

    def tell(self, method: str, params: Struct) -> bool:
        """A notification; False: it was not sent, because the peer is behind with reading, or gone."""
        if self._lines is None or self._closed or self._lines.blocked:
            return False
        self._lines.send(wire.encode_request(method, params))
        return True

    def close(self) -> None:
        """Also a connection that is still being made."""
        self._closed = True
        if self._lines is not None:
            self._lines.abort()

    # -- LineHandler ---------------------------------------------------------------------------------------------

    def opened(self, lines: Lines) -> None:
        self._lines = lines
        if self._closed:
            lines.abort()

    def line(self, lines: Lines, line: bytes) -> None:
        try:
            answer = wire.decode_answer(line)
        except PeerError as error:
            self.log.warn("{error}", error=error)
            lines.abort()
            return
        self._parting = ""
        if answer.method is not UNSET:
            if self._notified is not None and answer.params is not UNSET:
                self._notified(answer.method, answer.params)
        elif isinstance(answer.id, int):
            self._answered(answer.id, answer)
        elif answer.error is not UNSET:
            self._parting = wire.error_from(answer.error).detail  # the reason, if the seed hangs up now

    def closed(self, lines: Lines, reason: str) -> None:
        self._lines = None
        self._past = (lines.sent_bytes, lines.received_bytes)
        for request_id in list(self._pending):
            self._fail(request_id, Unreachable(self._parting or reason))
        if not self.lost.called:
            self.lost.callback(None)

    def _answered(self, request_id: int, answer: wire.Answer) -> None:
        waiting = self._pending.pop(request_id, None)
        if waiting is None:
            return
        if answer.error is not UNSET:
            waiting.errback(wire.error_from(answer.error))
        elif answer.result is not UNSET:
            waiting.callback(answer.result)
        else:
            waiting.errback(PeerError("an answer with neither result nor error"))

    def _overdue(self, request_id: int, received_bytes: int) -> None:
        """Into a network that is cut TCP sends again ever more rarely: a connection that survives the cut is of no use
        for as long again as that has lasted. A new one is there at once."""
        if self.received_bytes == received_bytes:
            self.close()
        self._fail(request_id, Unreachable(f"no answer in {CALL_TIMEOUT_S:g} s"))

    def _fail(self, request_id: int, error: MeshError) -> None:
        waiting = self._pending.pop(request_id, None)
        if waiting is not None:
            waiting.errback(error)


async def dial(connect: Connect, address: str, calls: Calls, clock: IReactorTime) -> None:
    """Connect `calls`, in :data:`DIAL_TIMEOUT_S` with the look-up of the host's name. Raises :class:`Unreachable`, and
    :class:`NobodyListens` of that."""

    def too_long(_: object, timeout_s: float) -> Failure:
        return Failure(Unreachable(f"no connection in {timeout_s:g} s"))

    try:
        connecting = connect(address).connect(LinesFactory(lambda _: calls, clock))
        await connecting.addTimeout(DIAL_TIMEOUT_S, clock, too_long)
    except ConnectionRefusedError as reason:
        calls.close()
        raise NobodyListens(str(reason)) from None
    except Exception as reason:
        calls.close()  # should the endpoint still connect, nobody waits for it any more
        # Endpoints fail in as many ways as there are kinds of them: names, sockets, TLS.
        raise Unreachable(str(reason) or type(reason).__name__) from None


class Party(Protocol):
    """Whose hello it is: :class:`meshproto.core.meshkey.Gate` or :class:`meshproto.core.meshkey.Applicant`."""

    def hello(self) -> wire.HelloParams:
        """What is said first."""

    def answer(self, address: str, hello: wire.HelloParams, greeting: wire.HelloResult) -> wire.HelloParams | None:
        """What is said next, if anything is. Raises :class:`PeerError`."""


async def say_hello(calls: Calls, address: str, party: Party) -> str:
    """The name of the seed at the address, when all that it asks for is proven. Raises :class:`MeshError`."""
    hello = party.hello()
    greeting = await calls.call("hello", hello, wire.HelloResult)
    answer = party.answer(address, hello, greeting)
    if answer is not None:
        await calls.call("hello", answer, wire.HelloResult)
    return greeting.seed


Greet = Callable[[str, Calls], Coroutine[Any, Any, None]]


class _Link:
    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.lock = DeferredLock()
        self.used_at = 0.0


class Links:
    """Connections to seeds by address, made when they are needed and kept while they are used. `connect`: address ->
    endpoint. `greet` is what is done first on each, with its address; `lost` hears of each that ends after it was
    done. The bytes are those of connections that have ended."""

    def __init__(
        self,
        clock: IReactorTime,
        connect: Connect,
        greet: Greet,
        lost: Lost | None = None,
        links_max: int = LINKS_MAX,
    ) -> None:
        self._clock = clock
        self._connect = connect
        self._greet = greet
        self._lost = lost
        self._links: dict[str, _Link] = {}
        self._links_max = links_max
        self._closing = False
        self.sent_bytes = 0
        self.received_bytes = 0

    async def get(self, address: str) -> Calls:
        """A connection on which hello was answered. Raises :class:`MeshError`."""
        link = self._links.get(address)
        if link is None:
            self._make_room()
            link = self._links[address] = _Link(Calls(self._clock))
        link.used_at = self._clock.seconds()
        async with link.lock:
            if not link.calls.connected:
                link.calls = calls = Calls(self._clock)
                await dial(self._connect, address, calls, self._clock)
                calls.lost.addCallback(lambda _: self._count(calls))
                try:
                    await self._greet(address, calls)
                except Exception:
                    # Also when the caller was cancelled: nobody may use a connection without a hello.
                    link.calls.close()
                    raise
                calls.lost.addCallback(lambda _: self._ended(address, link))
        return link.calls

    def ready(self, address: str) -> Calls | None:
        """The connection to the address, if there is one at this moment."""
        link = self._links.get(address)
        return link.calls if link is not None and link.calls.connected and not link.lock.locked else None

    def close(self) -> None:
        self._closing = True
        for link in self._links.values():
            link.calls.close()

    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received over all connections so far."""
        live = [link.calls for link in self._links.values() if link.calls.connected]
        return (
            self.sent_bytes + sum(calls.sent_bytes for calls in live),
            self.received_bytes + sum(calls.received_bytes for calls in live),
        )

    def _count(self, calls: Calls) -> None:
        self.sent_bytes += calls.sent_bytes
        self.received_bytes += calls.received_bytes

    def _ended(self, address: str, link: _Link) -> None:
        if self._lost is not None and not self._closing and self._links.get(address) is link:
            self._lost(address)

    def _make_room(self) -> None:
        """Let go of the connection not used longest, when there are too many."""
        if len(self._links) >= self._links_max:
            idle = min(self._links, key=lambda address: self._links[address].used_at)
            self._links.pop(idle).calls.close()
