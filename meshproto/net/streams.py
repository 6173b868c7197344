"""`GET /inbox/stream`: what comes, and what becomes of what was sent, told as it happens.

As Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html) or as lines of JSON. Messages are
read from the disk after the cursor that the reader has come to, so none is missed and none is kept here for whoever is
slow. Of the rest only the latest is told, so what there is to tell stays bounded, however slow the reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import structs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall

from meshproto.core.queue import Queue
from meshproto.errors import MeshError, SlowDown, Unavailable
from meshproto.net.asked import Wanted
from meshproto.net.clocks import NowMs
from meshproto.net.http_request import KleinRequest
from meshproto.net.outbox_table import OutboxTable
from meshproto.net.outflow import Outflow
from meshproto.net.presence import Presence, Watcher
from meshproto.net.problem import problem
from meshproto.net.receiving import Receiving, shown
from meshproto.net.seeds import Seeds
from meshproto.net.sending import Sending
from meshproto.net.shown import kept_shown, recipient_shown
from meshproto.wire import encode_value

STREAMS_MAX: Final = 100
"""Readers at a time: some pages and programs of one owner."""
PAGE_MESSAGES: Final = 100
"""Messages written at a time."""
CHANGES_MAX: Final = 1000
"""Changes of the outbox that wait to be told; more are not told one by one."""
CHANGES_S: Final = 0.05
"""How often changes of the outbox are told: with thousands of them a second nobody reads each as it comes."""
ALIVE_S: Final = 15.0
"""How often something is said at least, so that the reader, and whoever stands between, knows the connection lives."""

Event = tuple[str, dict[str, Any], int | None]
"""Its kind, its data, and for a message the cursor to go on after."""
Write = Callable[[str, dict[str, Any], int | None], bytes]


class Form(NamedTuple):
    content_type: bytes
    write: Write
    alive: bytes


def _as_event(event: str, data: dict[str, Any], cursor: int | None) -> bytes:
    at = b"" if cursor is None else b"id: %d\n" % cursor
    return b"%bevent: %b\ndata: %b\n\n" % (at, event.encode("ascii"), _line(data))


def _as_line(event: str, data: dict[str, Any], cursor: int | None) -> bytes:
    return _line({"event": event, **data}) + b"\n"


def _line(data: dict[str, Any]) -> bytes:
    """Messages are JSON as their senders wrote it, which may be on several lines."""
    line = encode_value(data)
    return msgspec.json.format(line, indent=-1) if b"\n" in line or b"\r" in line else line


EVENTS: Final = Form(b"text/event-stream", _as_event, b": alive\n\n")
LINES: Final = Form(b"application/x-ndjson", _as_line, b'{"event":"alive"}\n')


class Streams:
    """All that are open."""

    def __init__(
        self,
        receiving: Receiving,
        sending: Sending,
        table: OutboxTable,
        seeds: Seeds,
        clock: IReactorTime,
        now_ms: NowMs,
    ) -> None:
        self.receiving = receiving
        self.sending = sending
        self.table = table
        self.seeds = seeds
        self.clock = clock
        self.now_ms = now_ms
        self._open: set[Stream] = set()

    @property
    def readers(self) -> int:
        return len(self._open)

    async def run(self, request: KleinRequest, form: Form, wanted: Wanted) -> None:
        """Until the reader goes, or the node stops. Raises :class:`SlowDown` when there are too many, and
        :class:`meshproto.errors.Unavailable` (the disk); then nothing was written."""
        if len(self._open) >= STREAMS_MAX:
            raise SlowDown(f"{STREAMS_MAX} streams are open already", retry_after_s=ALIVE_S)
        stream = Stream(self, wanted)
        self._open.add(stream)
        try:
            await stream.run(request, form)
        finally:
            self._open.discard(stream)

    def stop(self) -> None:
        for stream in list(self._open):
            stream.end(Unavailable("this node is shutting down"))


class Stream:
    """One of them."""

    def __init__(self, streams: Streams, wanted: Wanted) -> None:
        self._streams = streams
        self._wanted = wanted
        self._after = 0
        self._may_have_come = wanted.messages
        self._rows: dict[int, None] = {}
        self._missed = 0
        self._recipients: dict[str, str] = {}  # folded -> as it was given
        self._changes_due = False
        self._changes_timer: IDelayedCall | None = None
        self._present: dict[str, Presence] = {}
        self._end: MeshError | None = None
        self._news: Deferred[None] | None = None

    def end(self, why: MeshError) -> None:
        self._end = why
        self._wake()

    async def run(self, request: KleinRequest, form: Form) -> None:
        last = await self._streams.receiving.last()
        self._after = last if self._wanted.after is None else self._wanted.after
        request.setHeader(b"x-accel-buffering", b"no")  # nginx would wait for more before it passes anything on
        out = Outflow(request, form.content_type, self._streams.clock)
        out.resumed = self._wake
        alive = LoopingCall(lambda: None if out.blocked else out.write(form.alive))
        alive.clock = self._streams.clock
        out.write(form.write("open", {"cursor": self._after, "now": self._streams.now_ms()}, self._after))
        alive.start(ALIVE_S, now=False)
        stop_listening = self._listen()
        try:
            await self._tell(out, form)
        except MeshError as error:
            out.write(form.write("end", problem(error.code, error.title, error.detail), None))
        finally:
            stop_listening()
            alive.stop()
            out.close()

    # -- what happens --------------------------------------------------------------------------------------------

    def _listen(self) -> Callable[[], None]:
        """To what is wanted; what this returns ends it."""
        streams, wanted = self._streams, self._wanted
        watcher: Watcher | None = None
        if wanted.messages:
            streams.receiving.listeners.add(self._came)
        if wanted.outbox:
            streams.sending.listeners.add(self._changed)
        if wanted.presence:
            watcher = Watcher(streams.seeds, wanted.presence, streams.clock, self._is_there)

        def stop() -> None:
            streams.receiving.listeners.discard(self._came)
            streams.sending.listeners.discard(self._changed)
            if watcher is not None:
                watcher.stop()
            if self._changes_timer is not None:
                self._changes_timer.cancel()

        return stop

    def _came(self) -> None:
        self._may_have_come = True
        self._wake()

    def _changed(self, recipient: str | None, rows: Iterable[int]) -> None:
        """See :attr:`Sending.listeners`."""
        self._rows.update(dict.fromkeys(rows))
        if recipient is not None:
            self._recipients[recipient] = recipient
        if len(self._rows) > CHANGES_MAX or len(self._recipients) > CHANGES_MAX:
            self._missed += len(self._rows)
            self._rows.clear()
            self._recipients.clear()
        if self._changes_timer is None:
            self._changes_timer = self._streams.clock.callLater(CHANGES_S, self._tell_changes)

    def _tell_changes(self) -> None:
        self._changes_timer, self._changes_due = None, True
        self._wake()

    def _is_there(self, presence: Presence) -> None:
        self._present[presence.name] = presence
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.called:
            self._news.callback(None)

    # -- what is told --------------------------------------------------------------------------------------------

    async def _tell(self, out: Outflow, form: Form) -> None:
        """Raises :class:`MeshError`: why it ends."""
        while self._end is None:
            if out.blocked or not (self._may_have_come or self._changes_due or self._present):
                self._news = Deferred()
                await self._news
                continue
            events = [*self._presences(), *await self._changes(), *await self._messages()]
            out.write(b"".join(form.write(*event) for event in events))
        raise self._end

    def _presences(self) -> list[Event]:
        present, self._present = self._present, {}
        return [("presence", structs.asdict(one), None) for one in present.values()]

    async def _changes(self) -> list[Event]:
        if not self._changes_due:
            return []
        self._changes_due = False
        rows, self._rows = self._rows, {}
        recipients, self._recipients = self._recipients, {}
        missed, self._missed = self._missed, 0
        sending, now_ms = self._streams.sending, self._streams.now_ms()
        kept = await self._streams.table.by_rows(list(rows))
        recipients.update((one.recipient, one.to.partition("~")[0]) for one in kept)
        ahead_ms = now_ms - self._streams.clock.seconds() * 1000
        events: list[Event] = [("outbox", {"missed": missed}, None)] if missed else []
        events += [("outbox", kept_shown(one, sending), None) for one in kept]
        for key, name in recipients.items():
            queue = sending.outbox.queues.get(key) or Queue(to=name, oldest_at=0)
            events.append(("recipient", recipient_shown(queue, ahead_ms), None))
        return events

    async def _messages(self) -> list[Event]:
        if not self._may_have_come:
            return []
        self._may_have_come = False
        wanted = self._wanted
        page = await self._streams.receiving.inbox(self._after, wanted.sender, PAGE_MESSAGES, 0.0, wanted.print_)
        self._after = page.next
        self._may_have_come = self._may_have_come or bool(page.messages)
        return [("message", shown(message), message.cursor) for message in page.messages]
