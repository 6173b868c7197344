"""Lines out of bytes, and what a connection may cost."""

from collections import deque
from collections.abc import Callable
from itertools import pairwise, takewhile

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from meshproto import wire
from meshproto.errors import TooLarge
from meshproto.net.lines import (
    BACKLOG_BYTES_MAX,
    CHUNK_BYTES,
    LINGER_S,
    QUICK_LINES,
    STALL_S,
    UNANSWERED_MAX,
    Lines,
    LinesFactory,
)
from tests.net.pipe import Pipe

LONGEST = b"x" * (wire.LINE_BYTES_MAX - 1)

any_lines = st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b" ")), max_size=12)
cuts = st.lists(st.integers(0, 200), max_size=20)


class Recorder:
    """Keeps the lines; `answer` may answer them."""

    def __init__(self, answer: Callable[[Lines, bytes], None] = lambda lines, line: None) -> None:
        self.answer = answer
        self.seen: list[bytes] = []
        self.reasons: list[str] = []

    def opened(self, lines: Lines) -> None:
        """Nothing to greet with."""

    def line(self, lines: Lines, line: bytes) -> None:
        self.seen.append(line)
        self.answer(lines, line)

    def closed(self, lines: Lines, reason: str) -> None:
        self.reasons.append(reason)


class Link:
    """A connection under test, with all that it touches."""

    def __init__(
        self, answer: Callable[[Lines, bytes], None] = lambda lines, line: None, buffer_bytes_max: int = 64 * 1024
    ) -> None:
        self.clock = Clock()
        self.pipe = Pipe(buffer_bytes_max)
        self.handler = Recorder(answer)
        self.lines = Lines(self.handler, self.clock)
        self.lines.makeConnection(self.pipe)

    @property
    def seen(self) -> list[bytes]:
        return self.handler.seen

    def receive(self, data: bytes) -> None:
        self.lines.dataReceived(data)

    def lose(self) -> None:
        self.lines.connectionLost(Failure(ConnectionDone()))


def echo(lines: Lines, line: bytes) -> None:
    lines.send(line + b"\n")


def hold(lines: Lines, line: bytes) -> None:
    lines.hold()


def split(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(data)) for cut in at), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


# -- lines --------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(any_lines, cuts)
def test_lines_do_not_depend_on_how_the_bytes_arrive(lines: list[bytes], at: list[int]) -> None:
    """However a stream is cut into chunks, the same lines come out, without the blank ones."""
    link = Link()
    for chunk in split(b"".join(line + b"\n" for line in lines), at):
        link.receive(chunk)
    assert link.seen == [line for line in lines if line.strip()]


@settings(max_examples=200)
@given(any_lines, cuts, st.lists(st.booleans(), max_size=40), st.integers(0, 20))
def test_a_slow_reader_gets_every_answer_once_and_in_order(
    lines: list[bytes], at: list[int], peer_reads: list[bool], buffer_bytes_max: int
) -> None:
    """Whenever the peer reads, and however small the buffer: every line is answered once, in order."""
    link = Link(echo, buffer_bytes_max)
    chunks = deque(split(b"".join(line + b"\n" for line in lines), at))
    got = b""
    turns = deque(peer_reads)
    while chunks or link.pipe.writes:
        if link.pipe.reading and chunks and not (turns and turns.popleft()):
            link.receive(chunks.popleft())
        else:
            got += link.pipe.take()
    assert got == b"".join(line + b"\n" for line in lines if line.strip())
    assert link.clock.getDelayedCalls() == []


def test_blank_lines_are_ignored() -> None:
    """Nothing, spaces and a lone carriage return between newlines are no lines."""
    link = Link()
    link.receive(b"\n \n\r\n\t\na\r\n")
    assert link.seen == [b"a\r"]


def test_a_chunk_is_answered_in_one_write() -> None:
    """The answers to the requests of one chunk leave together."""
    link = Link(echo)
    link.receive(b"a\nb\nc\nd")
    assert link.pipe.writes == [b"a\nb\nc\n"]


def test_large_answers_do_not_pile_up() -> None:
    """Answers to one chunk are written as soon as CHUNK_BYTES of them are gathered."""
    answer = b"y" * (CHUNK_BYTES // 2 - 1) + b"\n"
    link = Link(lambda lines, line: lines.send(answer), buffer_bytes_max=10 * CHUNK_BYTES)
    link.receive(b"1\n2\n3\n4\n5\n")
    assert link.pipe.writes == [answer * 2, answer * 2, answer]


def test_news_is_written_at_once() -> None:
    """What is sent outside a chunk does not wait for one."""
    link = Link()
    link.lines.send(b"news\n")
    assert link.pipe.writes == [b"news\n"]


# -- what is answered at once -------------------------------------------------------------------------------------


class Quick:
    """Answers lines of digits; `asked` has those that it was given, call by call."""

    def __init__(self, link: Link) -> None:
        self.asked: list[list[bytes]] = []
        link.lines.quick = self

    def __call__(self, lines: list[bytes]) -> list[bytes]:
        self.asked.append(lines)
        return [line + b"!\n" for line in takewhile(bytes.isdigit, lines)]


@settings(max_examples=200)
@given(st.lists(st.sampled_from([b"1", b"23", b"a", b"bc", b"", b" "]), max_size=12), cuts)
def test_quick_answers_keep_their_place(lines: list[bytes], at: list[int]) -> None:
    """However lines of both kinds come, each is answered once and in order, and the handler has the others alone."""
    link = Link(echo)
    Quick(link)
    for chunk in split(b"".join(line + b"\n" for line in lines), at):
        link.receive(chunk)
    answers = [line + b"!\n" if line.isdigit() else line + b"\n" for line in lines if line.strip()]
    assert link.pipe.take() == b"".join(answers)
    assert link.seen == [line for line in lines if line.strip() and not line.isdigit()]
    assert link.lines.received_lines == len(lines)


def test_so_many_are_answered_at_once() -> None:
    """QUICK_LINES in one write, before the next are looked at."""
    link = Link()
    quick = Quick(link)
    link.receive(b"1\n" * (2 * QUICK_LINES + 1))
    assert [len(lines) for lines in quick.asked] == [QUICK_LINES, QUICK_LINES, 1]
    assert link.pipe.writes == [b"1!\n" * len(lines) for lines in quick.asked]


@pytest.mark.parametrize("pattern", [b"a\n", b"a\n1\n", b"1\na\n1\n"])
def test_what_is_not_quick_is_not_looked_at_in_vain(pattern: bytes) -> None:
    """To look costs something too: not for each line at all that come after it."""
    link = Link()
    quick = Quick(link)
    link.receive(pattern * 500)
    lines = link.lines.received_lines
    assert lines == 500 * pattern.count(b"\n")
    assert sum(map(len, quick.asked)) <= 2 * lines + 2 * QUICK_LINES


def test_who_does_not_read_is_not_answered_at_once() -> None:
    """What is left of a chunk waits until the peer has read."""
    link = Link(buffer_bytes_max=QUICK_LINES)
    quick = Quick(link)
    link.receive(b"1\n" * (QUICK_LINES + 1))
    assert len(quick.asked) == 1
    assert link.pipe.take() == b"1!\n" * QUICK_LINES
    assert link.pipe.take() == b"1!\n"


@pytest.mark.parametrize("before", [0, 1000])
def test_a_longer_line_is_no_quick_one(before: int) -> None:
    """A line of LINE_BYTES_MAX is refused, whatever it says, also among others."""
    link = Link(buffer_bytes_max=wire.LINE_BYTES_MAX)
    Quick(link)
    link.receive(b"1\n" * before + b"1" * wire.LINE_BYTES_MAX + b"\n1\n")
    *_, last = link.pipe.take().splitlines()
    assert b'"code":413' in last
    assert link.seen == [b"1"] * before
    link.lose()


def test_more_than_the_longest_line_at_a_time() -> None:
    """Of short ones each is a quick one, however many come together."""
    link = Link(buffer_bytes_max=wire.LINE_BYTES_MAX)
    Quick(link)
    link.receive(b"1\n" * wire.LINE_BYTES_MAX)
    assert link.seen == []


class Many:
    """Links of one listener that are read from together. `asked`: the lines that were given to what is quick for all of
    them; it answers digits up to what is none."""

    def __init__(self, links: int) -> None:
        self.asked: list[bytes] = []
        self.links = [Link(echo) for _ in range(links)]
        for link in self.links:
            Quick(link)
        handlers = iter(link.handler for link in self.links)
        self.factory = LinesFactory(lambda _: next(handlers), Clock(), quick_each=self.quick_each)

    def quick_each(self, handlers: list[Recorder], lines: list[bytes]) -> list[bytes]:
        self.asked += lines
        assert len(handlers) == len(lines)
        return [line + b"!!\n" for line in takewhile(bytes.isdigit, lines)]

    def receive(self, *data: bytes) -> list[bytes]:
        """What each link has said to its peer, when each has been told so much."""
        came = [(link.lines, one) for link, one in zip(self.links, data, strict=True)]
        for lines, one in self.factory.at_once(came):
            lines.dataReceived(one)
        return [link.pipe.take() for link in self.links]


def test_a_line_of_each_is_answered_in_one_go() -> None:
    """As far as they are quick ones; the others go the way of each, with all that counts what has come."""
    many = Many(5)
    answers = many.receive(b"1\n", b"2\n", b"a\n", b"4\n", b"5\n")
    assert answers == [b"1!!\n", b"2!!\n", b"a\n", b"4!\n", b"5!\n"]
    assert many.asked == [b"1", b"2", b"a", b"4", b"5"]
    for link, answer in zip(many.links, answers, strict=True):
        lines = link.lines
        assert (lines.received_bytes, lines.received_lines, lines.sent_bytes) == (2, 1, len(answer))


@pytest.mark.parametrize("data", [b"1", b"1\n2", b"1\n2\n", b"\n1\n", b"1" * wire.LINE_BYTES_MAX + b"\n"])
def test_what_is_not_one_line_is_not_among_those(data: bytes) -> None:
    many = Many(3)
    first, _, last = many.receive(b"1\n", data, b"3\n")
    assert (many.asked, first, last) == ([b"1", b"3"], b"1!!\n", b"3!!\n")


def test_a_line_that_is_not_the_next_is_not_among_those() -> None:
    """The peer owes us the rest of another one, or has not taken its answers, or has to be counted still, or is told
    nothing more."""
    many = Many(6)
    begun, held, counted, ended, slow = [link.lines for link in many.links[1:]]
    begun.dataReceived(b"0")
    for _ in range(UNANSWERED_MAX):
        held.hold()
    seen: list[bytes] = []
    counted.received = seen.append
    ended.end()
    slow.pauseProducing()
    answers = many.receive(b"1\n", b"2\n", b"3\n", b"4\n", b"5\n", b"6\n")
    assert (many.asked, seen) == ([b"1"], [b"4\n"])
    assert answers == [b"1!!\n", b"02!\n", b"", b"4!\n", b"", b""]
    slow.resumeProducing()
    assert many.links[-1].pipe.take() == b"6!\n"
    many.links[4].lose()


# -- the longest line ---------------------------------------------------------------------------------------------


def test_the_longest_line_is_taken() -> None:
    """LINE_BYTES_MAX counts the newline, and is allowed to the byte."""
    link = Link()
    link.receive(LONGEST)
    link.receive(b"\nnext\n")
    assert link.seen == [LONGEST, b"next"]
    assert not link.pipe.half_closed


@pytest.mark.parametrize("chunks", [[LONGEST + b"x\n"], [LONGEST, b"x"], [LONGEST + b"x"], [LONGEST, b"x\nnext\n"]])
def test_a_longer_line_is_answered_with_413_and_ends_the_connection(chunks: list[bytes]) -> None:
    """One byte more, finished or not, is answered; then our side is closed and nothing more is listened to."""
    link = Link(echo)
    for chunk in chunks:
        link.receive(chunk)
    link.receive(b"late\n")
    assert link.seen == []
    answer = msgspec.json.decode(link.pipe.take())
    assert (answer["id"], answer["error"]["code"], answer["error"]["message"]) == (None, 413, "too large")
    assert str(wire.LINE_BYTES_MAX) in answer["error"]["data"]["detail"]
    assert link.pipe.half_closed
    assert not link.pipe.aborted
    link.lose()


def test_what_came_before_a_longer_line_is_answered_first() -> None:
    """The 413 is the last line, behind the answers to the lines before it."""
    link = Link(echo)
    link.receive(b"a\nb\n" + LONGEST + b"x\nc\n")
    first, second, last = link.pipe.take().splitlines()
    assert (first, second) == (b"a", b"b")
    assert wire.decode_answer(last).error is not msgspec.UNSET
    assert link.seen == [b"a", b"b"]
    link.lose()


# -- ends ---------------------------------------------------------------------------------------------------------


def test_the_last_answer_may_be_read_for_linger_s() -> None:
    """After :meth:`Lines.end` the peer has LINGER_S, and what it sends meanwhile is read and thrown away."""
    link = Link()
    link.lines.send(b"bye\n")
    link.lines.end()
    link.receive(b"late\n")
    link.clock.advance(LINGER_S - 0.001)
    assert (link.pipe.reading, link.pipe.half_closed, link.pipe.aborted) == (True, True, False)
    link.clock.advance(0.001)
    assert link.pipe.aborted
    assert link.seen == []


def test_a_peer_that_goes_first_leaves_no_timer() -> None:
    """A connection that is lost while it lingers has nothing left to do, and its handler knows why it ended."""
    link = Link()
    link.lines.end()
    link.lose()
    assert link.clock.getDelayedCalls() == []
    assert link.handler.reasons == ["Connection was closed cleanly."]


def test_an_end_while_the_peer_does_not_read() -> None:
    """The peer that blocked us has LINGER_S too, no longer STALL_S, and what it sends is read again."""
    link = Link(buffer_bytes_max=0)
    link.lines.send(b"a\n")
    assert link.lines.blocked
    link.lines.end()
    assert link.pipe.reading
    link.clock.advance(LINGER_S)
    assert link.pipe.aborted
    assert link.clock.getDelayedCalls() == []


def test_who_is_hung_up_on_does_not_stay() -> None:
    """After :meth:`Lines.hang_up` a peer that neither takes the last line nor ends TLS has LINGER_S."""
    link = Link()
    link.lines.refuse(TooLarge("go"))
    link.clock.advance(LINGER_S - 0.001)
    assert (link.pipe.disconnecting, link.pipe.aborted) == (True, False)
    link.clock.advance(0.001)
    assert link.pipe.aborted
    link.lose()
    assert link.clock.getDelayedCalls() == []


def test_who_goes_when_hung_up_on_leaves_no_timer() -> None:
    """Nothing is left to do for a connection that has ended."""
    link = Link()
    link.lines.hang_up()
    link.lose()
    assert link.clock.getDelayedCalls() == []


@pytest.mark.parametrize("finish", [Lines.end, Lines.abort])
def test_nothing_is_sent_after_the_end(finish: Callable[[Lines], None]) -> None:
    """Answers that come too late are dropped."""
    link = Link(hold)
    link.receive(b"a\n")
    finish(link.lines)
    link.lines.send(b"late\n")
    link.lines.release()
    assert link.pipe.writes == []
    link.lose()


def test_lines_behind_an_abort_are_not_handled() -> None:
    """A handler that closes the connection does not see the rest of the chunk."""
    link = Link(lambda lines, line: lines.abort())
    link.receive(b"a\nb\n")
    assert link.seen == [b"a"]


def test_a_peer_that_has_said_all_still_gets_its_answers() -> None:
    """`printf ... | nc -N`: a half-closed connection lives until what was asked is answered, then it is closed."""
    link = Link(hold)
    link.receive(b"a\nb\n")
    link.lines.readConnectionLost()
    link.lines.send(b"A\n")
    link.lines.release()
    assert not link.pipe.disconnecting
    link.lines.send(b"B\n")
    link.lines.release()
    assert link.pipe.take() == b"A\nB\n"
    assert link.pipe.disconnecting
    link.lose()
    assert link.clock.getDelayedCalls() == []


def test_a_peer_that_has_said_all_and_waits_for_nothing_is_let_go() -> None:
    """A half-closed connection without open requests is closed, at the latest after LINGER_S."""
    link = Link(echo)
    link.receive(b"a\n")
    link.lines.readConnectionLost()
    assert link.pipe.take() == b"a\n"
    assert link.pipe.disconnecting
    link.clock.advance(LINGER_S)
    assert link.pipe.aborted


def test_the_end_of_what_a_peer_says_is_not_read_twice() -> None:
    """After the peer's half close the transport is never told to read again: it would find the same end for ever."""
    link = Link(hold, buffer_bytes_max=0)
    link.receive(b"a\n" * UNANSWERED_MAX)
    assert not link.pipe.reading
    link.lines.readConnectionLost()
    link.lines.send(b"A\n")
    link.pipe.take()
    link.lines.release()
    assert not link.pipe.reading


# -- flow control -------------------------------------------------------------------------------------------------


def test_who_does_not_read_is_not_read_from() -> None:
    """A full buffer stops the reading at once, and the rest of the chunk stays as it is."""
    answer = b"y" * CHUNK_BYTES
    link = Link(lambda lines, line: lines.send(answer), buffer_bytes_max=CHUNK_BYTES)
    link.receive(b"1\n2\n3\n4\n5\n6")
    assert link.seen == [b"1", b"2"]
    assert link.lines.blocked
    assert not link.pipe.reading
    assert link.pipe.waiting_bytes == 2 * CHUNK_BYTES


def test_a_peer_that_reads_again_is_read_from_again() -> None:
    """When the buffer is empty the rest of the chunk is handled, buffer by buffer, and then the socket is read."""
    answer = b"y" * CHUNK_BYTES
    link = Link(lambda lines, line: lines.send(answer), buffer_bytes_max=CHUNK_BYTES)
    link.receive(b"1\n2\n3\n4\n5\n6")
    link.pipe.take()
    assert link.seen == [b"1", b"2", b"3", b"4"]
    assert not link.pipe.reading
    link.pipe.take()
    assert link.pipe.reading
    link.receive(b"\n")
    assert link.seen == [b"1", b"2", b"3", b"4", b"5", b"6"]


def test_who_stalls_is_cut_off() -> None:
    """A peer that has not taken what waits for it after STALL_S is gone."""
    link = Link(echo, buffer_bytes_max=0)
    link.receive(b"a\n")
    link.clock.advance(STALL_S - 0.001)
    link.lines.send(b"news\n")
    assert not link.pipe.aborted
    link.clock.advance(0.001)
    assert link.pipe.aborted
    assert link.clock.getDelayedCalls() == []


def test_who_reads_in_time_has_the_full_time_again() -> None:
    """The clock of STALL_S starts anew each time the buffer fills."""
    link = Link(echo, buffer_bytes_max=0)
    for _ in range(3):
        link.receive(b"a\n")
        link.clock.advance(STALL_S - 0.001)
        assert link.pipe.take() == b"a\n"
        assert link.clock.getDelayedCalls() == []
    assert not link.pipe.aborted


def test_the_backlog_of_a_peer_that_does_not_read_is_bounded() -> None:
    """News for a blocked peer is kept up to BACKLOG_BYTES_MAX, to the byte; then the peer is cut off."""
    link = Link(buffer_bytes_max=0)
    link.lines.send(b"a\n")
    link.lines.send(b"n" * (BACKLOG_BYTES_MAX - 1) + b"\n")
    assert not link.pipe.aborted
    link.lines.send(b"\n")
    assert link.pipe.aborted
    assert link.pipe.waiting_bytes == 2 + BACKLOG_BYTES_MAX
    assert link.clock.getDelayedCalls() == []


def test_the_backlog_counts_anew_when_the_peer_has_read() -> None:
    """What was read is no backlog any more."""
    link = Link(buffer_bytes_max=0)
    for _ in range(3):
        link.lines.send(b"a\n")
        link.lines.send(b"n" * (BACKLOG_BYTES_MAX - 1) + b"\n")
        link.pipe.take()
    assert not link.pipe.aborted


def test_one_link_cannot_fill_the_queue_to_the_disk() -> None:
    """With UNANSWERED_MAX requests held nothing more is handled or read, until one of them is answered."""
    link = Link(hold)
    link.receive(b"r\n" * (UNANSWERED_MAX + 2))
    assert len(link.seen) == UNANSWERED_MAX
    assert not link.pipe.reading
    link.lines.release()
    assert len(link.seen) == UNANSWERED_MAX + 1
    assert not link.pipe.reading
    link.lines.release()
    link.lines.release()
    assert len(link.seen) == UNANSWERED_MAX + 2
    assert link.pipe.reading


def test_both_brakes_must_be_off() -> None:
    """A link that is blocked and holds UNANSWERED_MAX requests is read from when both have ended, in either order."""
    for read_first in (True, False):
        link = Link(hold, buffer_bytes_max=0)
        link.receive(b"r\n" * UNANSWERED_MAX)
        link.lines.send(b"news\n")
        if read_first:
            link.pipe.take()
        else:
            link.lines.release()
        assert not link.pipe.reading
        if read_first:
            link.lines.release()
        else:
            link.pipe.take()
        assert link.pipe.reading


def test_each_connection_has_its_own_handler() -> None:
    """The factory makes a handler for every connection."""
    factory = LinesFactory(lambda _: Recorder(), Clock())
    first, second = factory.buildProtocol(None), factory.buildProtocol(None)
    assert first is not None and second is not None
    assert first.handler is not second.handler
