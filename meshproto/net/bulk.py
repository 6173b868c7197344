"""Many messages in one request: `POST /send` as application/x-ndjson, streamed in and out.

Lines that have come while the last ones were being committed are committed together, so the stream goes as fast as the
disk and needs no sizes from anyone. Results go out in the order of the lines. Nothing is read any more while too many
results are due or the client does not take those it has, so a stream of any length takes bounded memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall, deferLater

from meshproto.core.ndjson import Splitter
from meshproto.errors import BadParams, MeshError, SlowDown, TooLarge
from meshproto.net.accepting import Accepting, Order, Outcome, Taken
from meshproto.net.asked import SEND_BYTES_MAX, SendBody, parse_body
from meshproto.net.clocks import Alarm
from meshproto.net.outflow import Outflow
from meshproto.net.sending import End
from meshproto.net.shown import failed
from meshproto.wire import encode_lines

GROUP_LINES_MAX: Final = 1000
"""Lines committed together; as many as a batch holds."""
WINDOW_LINES: Final = 4000
"""Lines whose results are due: enough for two batches under way and two that gather. A kilobyte each; their texts are
on disk."""
BUFFER_BYTES_MAX: Final = 1024 * 1024
"""What has been received and not been looked at yet; then reading pauses."""
WRITE_LINES: Final = 250
"""Results are written so many at a time, some ten kilobytes, or when the next one is not known yet."""
KEEP_OPEN_S: Final = 20.0
"""How often the connection is told that it is not idle, while results are due: a delivery may take its time."""
ROOM_LOOK_S: Final = 0.1
ROOM_WAIT_S: Final = 30.0
"""How long a line waits for room in the outbox while its recipient takes messages; then it is answered 429."""


class LineStream:
    """The body of a request as it comes. `pause` and `resume` stop and start the reading of it."""

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._pause = pause
        self._resume = resume
        self._splitter = Splitter(SEND_BYTES_MAX)
        self._lines: deque[tuple[int, bytes | None]] = deque()
        self._bytes = 0
        self._paused = False
        self._waiting: Deferred[None] | None = None
        self.ended = False
        self.whole = False  # all of it has come

    # what comes

    def received(self, piece: bytes) -> None:
        self._bytes += len(piece)
        self._lines.extend(self._splitter.feed(piece))
        if self._bytes > BUFFER_BYTES_MAX or len(self._lines) > WINDOW_LINES:
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


class _Due:
    """The result of a line: `shown`, as soon as it is known."""

    __slots__ = ("shown",)

    def __init__(self, shown: Outcome | dict[str, Any] | None) -> None:
        self.shown = shown


class _Awaited(_Due):
    """That of a message on its way: its end, or how far it is at the time `until`. `news` is called when it ends."""

    __slots__ = ("_news", "taken", "until")

    def __init__(self, taken: Taken, until: float, news: Callable[[], None]) -> None:
        super().__init__(None)
        self.taken = taken
        self.until = until
        self._news = news

    def told(self, end: End) -> None:
        self.shown = Outcome(self.taken.id, self.taken.to, *end)
        self._news()


MakeOrder = Callable[[SendBody], Order]
"""Raises :class:`MeshError` when the message cannot be sent."""


class Bulk:
    """One stream."""

    def __init__(
        self,
        stream: LineStream,
        results: Outflow,
        accepting: Accepting,
        make_order: MakeOrder,
        clock: IReactorTime,
    ) -> None:
        self._stream = stream
        self._results = results
        self._accepting = accepting
        self._make_order = make_order
        self._clock = clock
        self._due: deque[_Due] = deque()  # in the order of the lines
        self._news: IDelayedCall | None = None
        self._patience = Alarm(clock, self._write)
        self._fewer: Deferred[None] | None = None
        self._keeping = LoopingCall(self._keep_open)
        self._keeping.clock = clock
        results.resumed = self._write

    async def run(self) -> None:
        """Until the end of the stream, when all results are written."""
        self._keeping.start(KEEP_OPEN_S, now=False)
        try:
            while group := await self._stream.group():
                self._due.extend(await self._take(group))
                self._write()
                await self._at_most(WINDOW_LINES)
            await self._at_most(0)
        except Exception:
            self._end()
            raise
        self._end()

    def stop(self) -> None:
        """Read no more; :meth:`run` ends when the results that are due are written."""
        self._stream.broken()

    async def _at_most(self, lines: int) -> None:
        """Wait until no more results are due."""
        while len(self._due) > lines:
            self._fewer = Deferred()
            await self._fewer

    def _keep_open(self) -> None:
        if self._due and not self._results.blocked:
            self._results.keep_open()

    def _end(self) -> None:
        """Nothing is awaited any more."""
        self._keeping.stop()
        self._patience.stop()
        if self._news is not None:
            self._news.cancel()
        for due in self._due:
            if isinstance(due, _Awaited) and due.shown is None:
                self._accepting.unfollow(due.taken, due)
        self._due.clear()

    # -- in ------------------------------------------------------------------------------------------------------

    async def _take(self, group: Sequence[tuple[int, bytes | None]]) -> list[_Due]:
        results: dict[int, _Due] = {}
        orders: dict[int, Order] = {}
        for number, line in group:
            try:
                orders[number] = self._order(line)
            except MeshError as error:
                results[number] = _Due(failed(error, line=number))
        until = self._clock.seconds() + ROOM_WAIT_S
        while orders:
            taken = await self._accepting.take(list(orders.values()), patient=False)
            full: dict[int, Order] = {}
            for (number, order), one in zip(orders.items(), taken, strict=True):
                if isinstance(one, Taken):
                    results[number] = self._follow(one)
                    continue
                if isinstance(one, SlowDown) and self._accepting.is_served(order.draft.recipient):
                    full[number] = order
                results[number] = _Due(failed(one, line=number, id=order.draft.id, to=order.to))
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

    def _follow(self, taken: Taken) -> _Due:
        if taken.wait_s:
            due = _Awaited(taken, self._clock.seconds() + taken.wait_s, self._told)
            if self._accepting.follow(taken, due):
                return due
        return _Due(Outcome(taken.id, taken.to, taken.status, taken.reason))

    # -- out -----------------------------------------------------------------------------------------------------

    def _told(self) -> None:
        """A result is known; with those that are told in the same turn it is written in one piece."""
        if self._news is None:
            self._news = self._clock.callLater(0, self._write_news)

    def _write_news(self) -> None:
        self._news = None
        self._write()

    def _write(self) -> None:
        """All results that are known, as far as the client takes them."""
        while not self._results.blocked and (known := self._next()):
            self._results.write(encode_lines(known))
        if self._fewer is not None and not self._fewer.called:
            self._fewer.callback(None)

    def _next(self) -> list[Outcome | dict[str, Any]]:
        known: list[Outcome | dict[str, Any]] = []
        while self._due and len(known) < WRITE_LINES:
            due = self._due[0]
            if due.shown is None and isinstance(due, _Awaited):
                if due.until > self._clock.seconds():
                    self._patience.at(due.until)
                    break
                taken = due.taken
                self._accepting.unfollow(taken, due)
                due.shown = Outcome(taken.id, taken.to, taken.status, self._accepting.why(taken))
            known.append(cast("Outcome | dict[str, Any]", due.shown))
            self._due.popleft()
        return known
