"""Many messages in one request: `POST /send` as application/x-ndjson, streamed in and out.

Lines that have come while the last ones were being committed are committed together, so the stream goes as fast as the
disk and needs no sizes from anyone. Results go out in the order of the lines. Nothing is read any more while too many
results are due or the client does not take those it has, so a stream of any length takes bounded memory.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.web.http import Request
from zope.interface import implementer

from meshproto.core.ndjson import Splitter
from meshproto.errors import BadParams, MeshError, SlowDown, TooLarge
from meshproto.net.accepting import Accepting, Order, Taken
from meshproto.net.asked import SEND_BYTES_MAX, SendBody, parse_body
from meshproto.net.shown import failed, told
from meshproto.wire import encode_value

GROUP_LINES_MAX: Final = 1000
"""Lines committed together; as many as a batch holds."""
WINDOW_LINES: Final = 4000
"""Lines whose results are due: enough for two batches under way and two that gather. A kilobyte each; their texts are
on disk."""
BUFFER_BYTES_MAX: Final = 1024 * 1024
"""What has been received and not been looked at yet; then reading pauses."""
WRITE_BYTES: Final = 32 * 1024
"""Results are written in pieces of about this size, or when the next one is not known yet."""
KEEP_OPEN_S: Final = 20.0
"""How often the connection is told that it is not idle, while results are due: a delivery may take its time."""
ROOM_LOOK_S: Final = 0.1
ROOM_WAIT_S: Final = 30.0
"""How long a line waits for room in the outbox while its recipient takes messages; then it is answered 429."""
DISCARD_BYTES_MAX: Final = 16 * 1024 * 1024
DISCARD_S: Final = 5.0
"""How much more is read of a stream that is refused, so that its sender reads our answer."""


class LineStream:
    """The body of a request as it comes. `pause` and `resume` stop and start the reading of it."""

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None], clock: IReactorTime) -> None:
        self._pause = pause
        self._resume = resume
        self._clock = clock
        self._splitter = Splitter(SEND_BYTES_MAX)
        self._lines: deque[tuple[int, bytes | None]] = deque()
        self._bytes = 0
        self._paused = False
        self._waiting: Deferred[None] | None = None
        self._discarding = False
        self.ended = False
        self.whole = False  # all of it has come

    # what comes

    def received(self, piece: bytes) -> None:
        self._bytes += len(piece)
        if not self._discarding:
            self._lines.extend(self._splitter.feed(piece))
        bytes_max = DISCARD_BYTES_MAX if self._discarding else BUFFER_BYTES_MAX
        if self._bytes > bytes_max or len(self._lines) > WINDOW_LINES:
            self._paused = True
            self._pause()
        self._wake()

    def complete(self) -> None:
        """All of it has come."""
        self._lines.extend(self._splitter.end())
        self.whole = True
        self.broken()

    def broken(self) -> None:
        """No more of it will come, or is wanted."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.called:
            self._waiting.callback(None)

    # who reads

    async def group(self) -> list[tuple[int, bytes | None]]:
        """The next lines, as many as there are, with their numbers; None for a line that was too long. Nothing at the
        end."""
        while not self._lines and not self.ended:
            self._go_on()
            self._waiting = Deferred()
            await self._waiting
        group = [self._lines.popleft() for _ in range(min(GROUP_LINES_MAX, len(self._lines)))]
        if not self._lines:
            self._go_on()
        return group

    def _go_on(self) -> None:
        self._bytes = 0
        if self._paused:
            self._paused = False
            self._resume()

    async def discard(self) -> None:
        """Let the rest come, up to a bound, and look at none of it."""
        self._discarding = True
        self._lines.clear()
        self._go_on()
        until = self._clock.seconds() + DISCARD_S
        while not self.ended and not self._paused and (left_s := until - self._clock.seconds()) > 0:
            self._waiting = Deferred()
            timer = self._clock.callLater(left_s, self._wake)
            await self._waiting
            _stop(timer)


@implementer(IPushProducer)
class Results:
    """What goes out, as far as the client takes it."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._blocked: Deferred[None] | None = None
        request.setHeader(b"content-type", b"application/x-ndjson")
        request.registerProducer(self, True)

    async def write(self, lines: bytes) -> None:
        """Returns when there is room for more."""
        self._request.write(lines)
        self.keep_open()
        if self._blocked is not None:
            await self._blocked

    @property
    def blocked(self) -> bool:
        """The client does not take what there is."""
        return self._blocked is not None

    def keep_open(self) -> None:
        """The connection is not idle."""
        if self._request.channel is not None:
            self._request.channel.resetTimeout()

    def pauseProducing(self) -> None:
        if self._blocked is None:
            self._blocked = Deferred()

    def resumeProducing(self) -> None:
        if self._blocked is not None:
            blocked, self._blocked = self._blocked, None
            blocked.callback(None)

    def stopProducing(self) -> None:
        """The connection is gone, and whoever waits is cancelled."""

    def close(self) -> None:
        self._request.unregisterProducer()


T = TypeVar("T")


class _Failed(NamedTuple):
    """A line that came to nothing; `given`: what of it could be read."""

    line: int
    error: MeshError
    given: dict[str, str]


MakeOrder = Callable[[SendBody], Order]
"""Raises :class:`MeshError` when the message cannot be sent."""


class Bulk:
    """One stream."""

    def __init__(
        self, stream: LineStream, results: Results, accepting: Accepting, make_order: MakeOrder, clock: IReactorTime
    ) -> None:
        self._stream = stream
        self._results = results
        self._accepting = accepting
        self._make_order = make_order
        self._clock = clock
        self._due: deque[Taken | _Failed] = deque()
        self._some: Deferred[None] | None = None
        self._room: Deferred[None] | None = None
        self._complete = False

    async def run(self) -> None:
        """Until the end of the stream, when all results are written."""
        keeping = LoopingCall(self._keep_open)
        keeping.clock = self._clock
        keeping.start(KEEP_OPEN_S, now=False)
        writing = ensureDeferred(self._write())
        writing.addBoth(self._over)
        try:
            await self._read(writing)
            await writing
        except Exception:
            keeping.stop()
            if not writing.called:
                writing.cancel()
                writing.addErrback(lambda failure: failure.trap(CancelledError))
            raise
        keeping.stop()

    async def _read(self, writing: "Deferred[None]") -> None:
        while group := await self._stream.group():
            self._due.extend(await self._take(group))
            _tell(self._some)
            while len(self._due) > WINDOW_LINES and not writing.called:
                self._room = Deferred()
                await self._room
        self._complete = True
        _tell(self._some)

    def stop(self) -> None:
        """Read no more; :meth:`run` ends when the results that are due are written."""
        self._stream.broken()

    def _keep_open(self) -> None:
        if self._due and not self._results.blocked:
            self._results.keep_open()

    def _over(self, result: T) -> T:
        """Nobody shall wait for a writer that has ended."""
        _tell(self._room)
        return result

    # -- in ------------------------------------------------------------------------------------------------------

    async def _take(self, group: Sequence[tuple[int, bytes | None]]) -> list[Taken | _Failed]:
        results: dict[int, Taken | _Failed] = {}
        orders: dict[int, Order] = {}
        for number, line in group:
            try:
                orders[number] = self._order(line)
            except MeshError as error:
                results[number] = _Failed(number, error, {})
        until = self._clock.seconds() + ROOM_WAIT_S
        while orders:
            taken = await self._accepting.take(list(orders.values()), patient=False)
            full: dict[int, Order] = {}
            for (number, order), one in zip(orders.items(), taken, strict=True):
                if isinstance(one, SlowDown) and self._accepting.is_served(order.draft.recipient):
                    full[number] = order
                results[number] = one if isinstance(one, Taken) else _failed(number, order, one)
            if not full or self._clock.seconds() >= until:
                break
            orders = full
            await deferLater(self._clock, ROOM_LOOK_S)
        return [results[number] for number, _ in group]

    def _order(self, line: bytes | None) -> Order:
        if line is None:
            raise TooLarge(f"the line is longer than {SEND_BYTES_MAX} bytes")
        body = parse_body(line, SendBody, "the line")
        if not isinstance(body.to, str):
            raise BadParams("a line goes to one name: write a line for each")
        return self._make_order(body)

    # -- out -----------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        text: list[bytes] = []
        size = 0
        while True:
            if text and (size >= WRITE_BYTES or not self._due or not _is_known(self._due[0])):
                await self._results.write(b"".join(text))
                text, size = [], 0
            if self._due:
                line = await self._line(self._due[0])
                self._due.popleft()
                text.append(line)
                size += len(line)
                if len(self._due) <= WINDOW_LINES:
                    _tell(self._room)
            elif self._complete:
                return
            else:
                self._some = Deferred()
                await self._some

    async def _line(self, result: Taken | _Failed) -> bytes:
        if isinstance(result, _Failed):
            shown = failed(result.error, line=result.line, **result.given)
        else:
            shown = told(await self._accepting.outcome(result))
        return encode_value(shown) + b"\n"


def _failed(number: int, order: Order, error: MeshError) -> _Failed:
    return _Failed(number, error, {"id": order.draft.id, "to": order.to})


def _is_known(result: Taken | _Failed) -> bool:
    return isinstance(result, _Failed) or result.end is None or bool(result.end.called)


def _tell(waiting: "Deferred[None] | None") -> None:
    if waiting is not None and not waiting.called:
        waiting.callback(None)


def _stop(timer: IDelayedCall) -> None:
    if timer.active():
        timer.cancel()
