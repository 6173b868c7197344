"""Bytes <-> lines, with flow control: what a connection may cost us.

Whoever does not take their answers is not read from; whoever takes nothing for a while is cut off. A line that is too
long is answered and ends the connection, because nobody can say where the next one begins.
"""

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any, Final, Protocol

from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    INegotiated,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from meshproto import wire
from meshproto.core.limits import network_of
from meshproto.errors import MeshError, TooLarge
from meshproto.net.direct import write
from meshproto.net.turns import AT_ONCE_LINES, SLICE_S, Turns

if TYPE_CHECKING:
    from twisted.internet.tcp import Connection

STALL_S: Final = 60.0
"""A peer that has not taken all that waits for it after this long is gone or hostile."""
UNANSWERED_MAX: Final = 1000
"""Requests of one link that wait for the disk; past that it is not read from."""
CHUNK_BYTES: Final = 64 * 1024
"""Answers gathered before they are written: one write for a chunk of pipelined requests, and a bound for many large
answers to many small questions."""
QUICK_LINES: Final = 64
"""Answered at once without a look at the clock, or at how much it comes to: a fifth of a millisecond, and less than
CHUNK_BYTES."""
BACKLOG_BYTES_MAX: Final = 1024 * 1024
"""What is kept for a peer that does not read: the news of a thousand watched names, say."""
LINGER_S: Final = 2.0
"""After the last answer the peer gets this long to read it while what it still sends is thrown away: closing with
unread bytes would reset the connection under the answer."""


Quick = Callable[[list[bytes]], list[bytes]]
"""Some lines -> the answers to the first of them, as far as these are of a kind that is answered at once and has no
other consequences; the one after them is for :class:`LineHandler`. Each answer is short."""
QuickEach = Callable[[list[Any], list[bytes]], list[bytes]]
"""The same for a line of each of several handlers."""


class LineHandler(Protocol):
    """Who gets the lines."""

    def opened(self, lines: "Lines") -> None:
        """The connection is there."""

    def line(self, lines: "Lines", line: bytes) -> None:
        """A line without its newline; never a blank one."""

    def closed(self, lines: "Lines", reason: str) -> None:
        """The connection is gone; `opened` came before."""


@implementer(IPushProducer, IHalfCloseableProtocol)
class Lines(TwistedProtocol):
    """One connection of the line protocol, either side of it. `turns`: with whom it shares the time of a server; a
    client's answers need not wait. `received` is called with all that comes, before it is cut into lines; `quick` with
    lines that have come together, before the handler."""

    transport: "Connection"

    def __init__(self, handler: LineHandler, clock: IReactorTime, turns: Turns | None = None) -> None:
        self.handler = handler
        self.host = ""
        self.network = ""
        self.received: Callable[[bytes], None] | None = None
        self.quick: Quick | None = None
        self.received_lines = 0
        self._clock = clock
        self._turns = turns
        self._waiting = False
        self._buffer = b""
        self._out: list[bytes] = []
        self._out_bytes = 0
        self.sent_bytes = 0
        self.received_bytes = 0
        self._backlog_bytes = 0
        self._draining = False
        self._blocked = False
        self._unanswered = 0
        self._heard_all = False
        self._ending = False
        self._timer: IDelayedCall | None = None

    # -- for the handler -----------------------------------------------------------------------------------------

    def send(self, line: bytes) -> None:
        """Write a line (with its newline)."""
        if self._ending:
            return
        self._out.append(line)
        self._out_bytes += len(line)
        if self._blocked:
            self._backlog_bytes += len(line)
            if self._backlog_bytes > BACKLOG_BYTES_MAX:
                self.abort()
                return
        if not self._draining or self._out_bytes >= CHUNK_BYTES:
            self._flush()

    def hold(self) -> None:
        """A request's answer will come later."""
        self._unanswered += 1

    def release(self) -> None:
        """A held request is answered."""
        self._unanswered -= 1
        if self._ending:
            return
        if self._heard_all and not self._unanswered:
            self.end()
        elif self._unanswered == UNANSWERED_MAX - 1 and not self._blocked:
            self._resume()

    def end(self) -> None:
        """Let the peer read what was sent, and close."""
        self._flush()
        self._ending = True
        self._stop_timer()
        self._timer = self._clock.callLater(LINGER_S, self.abort)
        self.transport.unregisterProducer()
        if not self._heard_all:
            self.transport.resumeProducing()
        if self._heard_all or INegotiated.providedBy(self.transport):
            # TLS says by itself that this was all, and reads on until the peer has said so too.
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def abort(self) -> None:
        """Close at once."""
        self._ending = True
        self._stop_timer()
        self.transport.abortConnection()

    def refuse(self, error: MeshError) -> None:
        """Say why, and close without waiting for what the peer still has to say."""
        self.send(wire.encode_error(None, error))
        self.hang_up()

    def hang_up(self) -> None:
        """Close; what was sent still goes out, if the peer takes it within :data:`LINGER_S`. Without that bound one
        that takes nothing, or does not end TLS, would stay for ever and count among no connections any more."""
        if self._ending:
            return
        self._flush()
        if self._blocked:
            self.abort()
            return
        self._ending = True
        self._stop_timer()
        self._timer = self._clock.callLater(LINGER_S, self.abort)
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def go_on(self) -> None:
        """See :class:`meshproto.net.turns.Waiting`."""
        self._waiting = False
        if self._ending:
            return
        self._resume()
        if self._heard_all and not (self._waiting or self._unanswered):
            self.end()

    @property
    def unfinished(self) -> bool:
        """Whether the peer has begun a line and owes us the rest of it."""
        return bool(self._buffer) and self._reading and not self._waiting

    @property
    def busy(self) -> bool:
        """Whether the peer waits for us."""
        return bool(self._unanswered) or self._waiting

    @property
    def blocked(self) -> bool:
        """Whether the peer is behind with reading."""
        return self._blocked

    # -- for Twisted ---------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpKeepAlive(True)  # whoever vanished without a word gives their place back
        self.host = getattr(self.transport.getPeer(), "host", "")
        self.network = network_of(self.host)
        self.transport.registerProducer(self, True)
        self.handler.opened(self)

    def dataReceived(self, data: bytes) -> None:
        self.received_bytes += len(data)
        if self.received is not None and not self._ending:
            self.received(data)
        if not self._ending and (left := self._at_once(data)):
            self._buffer += left
            self._drain()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ending = True
        self._stop_timer()
        self.handler.closed(self, reason.getErrorMessage())

    def readConnectionLost(self) -> None:
        """The peer has said all (`printf ... | nc -N`): what it asked is still answered."""
        self._heard_all = True
        if not (self._unanswered or self._waiting):
            self.end()

    def writeConnectionLost(self) -> None:
        """Our side is closed, as :meth:`end` wanted."""

    def pauseProducing(self) -> None:
        """The transport's buffer is full: the peer does not keep up with its answers."""
        self._blocked = True
        self.transport.pauseProducing()
        if self._timer is None:
            self._timer = self._clock.callLater(STALL_S, self.abort)

    def resumeProducing(self) -> None:
        """The peer has taken everything."""
        self._blocked = False
        self._backlog_bytes = 0
        self._stop_timer()
        if not self._ending and self._unanswered < UNANSWERED_MAX:
            self._resume()

    def stopProducing(self) -> None:
        """The connection is going down; :meth:`connectionLost` follows."""

    # -- inside --------------------------------------------------------------------------------------------------

    @property
    def _reading(self) -> bool:
        return not (self._blocked or self._ending or self._unanswered >= UNANSWERED_MAX)

    def _resume(self) -> None:
        self._drain()
        if self._reading and not self._waiting and not self._heard_all:
            self.transport.resumeProducing()

    def asks_one(self, data: bytes) -> bool:
        """Whether what has come is one line, and nothing that came before is still to be done."""
        return not (
            self.received is not None
            or self.quick is None
            or self._buffer
            or self._waiting
            or self._draining
            or self._blocked
            or self._ending
            or self._unanswered >= UNANSWERED_MAX
            or data.find(b"\n") + 1 != len(data)
            or len(data) > wire.LINE_BYTES_MAX
        )

    def answered(self, data: bytes, answer: bytes) -> None:
        """What has come was a line, and this answers it."""
        self.received_bytes += len(data)
        self.received_lines += 1
        self.sent_bytes += len(answer)
        write(self.transport, answer)

    def _at_once(self, data: bytes) -> bytes:
        """Answer the quick ones among some whole lines, and give back what is not answered. Nearly all that comes is
        nothing else, and this is what :meth:`_drain` would come to, in a quarter of the steps."""
        quick, turns = self.quick, self._turns
        if quick is None or self._buffer or self._waiting or self._draining or not self._reading:
            return data
        lines = data.split(b"\n")
        asked = len(lines) - 1
        if lines.pop() or asked > QUICK_LINES or len(data) > wire.LINE_BYTES_MAX:
            return data
        if turns is not None and asked > AT_ONCE_LINES:
            if asked > turns.allowed:
                return data
            turns.used(asked)
        answers = quick(lines)
        answered = len(answers)
        if answers:
            self.received_lines += answered
            self._out = answers
            self._flush()
        return b"\n".join((*lines[answered:], b"")) if answered < asked else b""

    def _drain(self) -> None:
        """Handle the lines that have come, as many as this link may now."""
        if self._draining or self._waiting:
            return
        self._draining = True
        turns, buffer, handled = self._turns, self._buffer, 0
        limit = -1 if turns is None else turns.allowed
        lines = buffer.split(b"\n", limit)
        rest = self._buffer = lines.pop()
        try:
            short = len(buffer) < wire.LINE_BYTES_MAX or max(map(len, lines), default=0) < wire.LINE_BYTES_MAX
            handled = self._handle(lines, self.quick if short else None)
            if handled < len(lines):
                self._buffer = b"\n".join((*lines[handled:], rest))
                self._waiting = self._reading
            elif rest and not self._ending:
                if len(lines) == limit and b"\n" in rest:
                    self._waiting = True
                elif len(rest) >= wire.LINE_BYTES_MAX:
                    self._overlong()
        finally:
            self._draining = False
            if self._out:
                self._flush()
        self.received_lines += handled
        if turns is not None and (handled > AT_ONCE_LINES or self._waiting):  # who asks little costs no turn
            turns.used(handled)
            if self._waiting:
                turns.wait(self)
        if not self._blocked and not self._ending and (self._waiting or self._unanswered >= UNANSWERED_MAX):
            self.transport.pauseProducing()

    def _handle(self, lines: list[bytes], quick: Quick | None) -> int:
        """How many of the lines were handled before the peer was stopped or had used up its time; one at least."""
        at, end = 0, len(lines)
        ask = 0 if quick is None else QUICK_LINES
        ends_at = inf if end <= 1 or self._turns is None else self._turns.seconds() + SLICE_S
        while at < end and not (self._blocked or self._ending or self._unanswered >= UNANSWERED_MAX):
            if at and self._turns is not None and self._turns.seconds() > ends_at:
                break
            answers = quick(lines[at : at + ask]) if quick is not None and ask else []
            if answers:
                self._out += answers
                self._flush()
                at += len(answers)
                ask = min(2 * ask, QUICK_LINES) if len(answers) == ask else 0
            else:
                self._line(lines[at])
                at += 1
                ask = 1  # where some are not quick, few are looked at in vain
        return at

    def _line(self, line: bytes) -> None:
        if len(line) >= wire.LINE_BYTES_MAX:
            self._overlong()
        elif line and not line.isspace():
            self.handler.line(self, line)

    def _overlong(self) -> None:
        detail = f"a line has at most {wire.LINE_BYTES_MAX} bytes with its newline; this connection ends"
        self._out.append(wire.encode_error(None, TooLarge(detail)))
        self._buffer = b""
        self.end()

    def _flush(self) -> None:
        if self._out and not self._ending:
            data = b"".join(self._out)
            self._out, self._out_bytes = [], 0
            self.sent_bytes += len(data)
            write(self.transport, data)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None


class LinesFactory(Factory):
    """A :class:`Lines` for each connection, each with a handler of its own. `make_handler` is given the network that
    the connection comes from; where it makes none the connection is closed, before it costs anything. `quick_each`:
    for the lines of those that have a `quick`."""

    noisy = False

    def __init__(
        self,
        make_handler: Callable[[str], LineHandler | None],
        clock: IReactorTime,
        turns: Turns | None = None,
        quick_each: QuickEach | None = None,
    ) -> None:
        self._make_handler = make_handler
        self._clock = clock
        self._turns = turns
        self._quick_each = quick_each

    def at_once(self, came: list[tuple[Lines, bytes]]) -> list[tuple[Lines, bytes]]:
        """What has come over several links. Most often each asks one thing that is answered at once: that is done for
        all in one go. (A look-up of one of 64 clients costs 11.7 instead of 13.1 us by this.) The others' is given
        back. See :data:`meshproto.net.together.AtOnce`."""
        if self._quick_each is None:
            return came
        some, left, asked = [], [], []
        for one in came:
            lines, data = one
            if lines.asks_one(data):
                some.append(one)
                asked.append(data[:-1])
            else:
                left.append(one)
        answers = self._quick_each([lines.handler for lines, _ in some], asked)
        for (lines, data), answer in zip(some, answers, strict=False):
            lines.answered(data, answer)
        left += some[len(answers) :]
        return left

    def buildProtocol(self, addr: object) -> Lines | None:
        handler = self._make_handler(network_of(getattr(addr, "host", "")))
        return None if handler is None else Lines(handler, self._clock, self._turns)
