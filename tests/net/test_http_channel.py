"""The HTTP connection of a node: what it bears from a client that means to wear it down."""

from collections.abc import Callable, Iterator

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.python.failure import Failure

from meshproto.core.envelope import SEALED_BYTES_MAX
from meshproto.core.http1 import HEAD_BYTES_MAX, HEADERS_MAX, LENGTH_DIGITS_MAX, LINE_BYTES_MAX
from meshproto.core.notes import NOTE_S
from meshproto.net import http_limits
from meshproto.net.door import Door
from meshproto.net.http_channel import (
    AHEAD_BYTES_MAX,
    BODY_BYTES_PER_S,
    BODY_LOOK_S,
    CLOSE_S,
    DISCARD_BYTES_MAX,
    DRAIN_S,
    HEAD_S,
    IDLE_TIMEOUT_S,
    Channel,
)
from tests.net.http_rig import GET, MIB, again, answers, post, refused, two_users
from tests.net.pipe import Pipe
from tests.net.raw_http import RawHTTP
from tests.world import World

pytestmark = [
    pytest.mark.usefixtures("way"),
    # Twisted hands pyOpenSSL its own kind of certificate.
    pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning"),
]


@pytest.fixture
def world() -> World:
    return two_users()


@pytest.fixture
def client(world: World) -> RawHTTP:
    return RawHTTP(world, "Bobby")


class Deaf(StringTransport):
    """A peer that takes nothing, so that its connection ends only by force."""

    aborted = False

    def unregisterProducer(self) -> None:
        """Any number of times, as a real one."""

    def abortConnection(self) -> None:
        self.aborted = True


# -- time ---------------------------------------------------------------------------------------------------------


class TestHead:
    def test_a_byte_now_and_then_does_not_keep_a_connection(self, world: World, client: RawHTTP) -> None:
        """The whole head must be there HEAD_S after its first byte, however many bytes come in between."""
        for letter in GET[: int(HEAD_S) - 1]:
            client.say(bytes([letter]))
            world.run(1)
        assert not client.closed
        world.run(1.1)
        assert refused(client) == (408, f"the head of a request has to come within {HEAD_S:g} s")

    def test_header_by_header(self, world: World, client: RawHTTP) -> None:
        """Whole lines do not buy time either."""
        client.say(b"GET /healthz HTTP/1.1\r\n")
        for number in range(int(HEAD_S) - 1):
            world.run(1)
            client.say(b"X-%d: a\r\n" % number)
        world.run(1.1)
        assert refused(client)[0] == 408

    def test_the_second_request_has_as_long_as_the_first(self, world: World, client: RawHTTP) -> None:
        """The time of a head begins with its first byte, on a connection that was quiet, and in the middle of a piece
        that brought the end of another request."""
        client.say(GET)
        world.run(IDLE_TIMEOUT_S - 1)
        client.say(GET + GET[:10])
        world.run(HEAD_S - 0.1)
        client.say(GET[10:])
        assert answers(client) == [200, 200, 200]
        client.say(GET[:1])
        world.run(HEAD_S)
        assert client.closed
        assert answers(client)[-1] == 408

    def test_nothing_said(self, world: World, client: RawHTTP) -> None:
        """A connection that says nothing is closed without a word."""
        world.run(IDLE_TIMEOUT_S - 0.1)
        assert not client.closed
        world.run(0.2)
        assert client.closed
        assert client.heard == b""

    def test_after_an_answer(self, world: World, client: RawHTTP) -> None:
        """Kept alive for IDLE_TIMEOUT_S after each answer, neither for what was left of a head's or a body's time."""
        client.say(post(2, "/send") + b"{}")
        world.run(IDLE_TIMEOUT_S - 0.1)
        assert not client.closed
        world.run(0.2)
        assert client.closed
        assert answers(client) == [400]


class TestBody:
    def test_a_slow_line_brings_a_full_batch(self, world: World, client: RawHTTP) -> None:
        """SEALED_BYTES_MAX at little more than BODY_BYTES_PER_S are read to their end."""
        client.say(post(SEALED_BYTES_MAX))
        piece = b"x" * int(BODY_BYTES_PER_S * 1.1)
        for start in range(0, SEALED_BYTES_MAX, len(piece)):
            world.run(1)
            client.say(piece[: SEALED_BYTES_MAX - start])
        assert answers(client) == [400]  # it is no batch

    @pytest.mark.parametrize(
        "head", [post(SEALED_BYTES_MAX), post(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")]
    )
    def test_a_byte_now_and_then_does_not_keep_a_body(self, world: World, client: RawHTTP, head: bytes) -> None:
        client.say(head)
        for _ in range(int(BODY_LOOK_S) - 1):
            world.run(1)
            client.say(b"1\r\nx\r\n" if b"chunked" in head else b"x")
        assert not client.closed
        world.run(1.1)
        assert refused(client) == (408, f"the body of a request has to bring {BODY_BYTES_PER_S} bytes a second")

    def test_a_quick_beginning_does_not_buy_time(self, world: World, client: RawHTTP) -> None:
        """The speed is looked at in windows of BODY_LOOK_S: whoever sends nearly all at once does not hold it long."""
        client.say(post(SEALED_BYTES_MAX) + b"x" * (SEALED_BYTES_MAX - 1))
        world.run(2 * BODY_LOOK_S + 0.1)
        assert refused(client)[0] == 408

    def test_trailers_do_not_count(self, world: World, client: RawHTTP) -> None:
        """Nor do they come without end."""
        client.say(post(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"0\r\n")
        for _ in range(int(BODY_LOOK_S)):
            world.run(1)
            client.say(b"x" * 1000 + b": y\r\n")
        world.run(0.1)
        assert refused(client)[0] == 408

    def test_a_stream_of_the_owner_may_be_slow(self, world: World, client: RawHTTP) -> None:
        """A line a minute is no attack on oneself."""
        client.begin()
        for number in range(4):
            world.run(IDLE_TIMEOUT_S - 5)
            client.lines({"to": "UserX", "message": number})
        client.end()
        world.run(1)
        assert [result["status"] for result in client.results] == ["delivered"] * 4

    def test_an_answer_that_nobody_takes(self, world: World) -> None:
        """A connection that is to be closed after its answer does not stay when the peer does not take it."""
        channel, transport = world.users["Bobby"].site.buildProtocol(None), Deaf()
        assert channel is not None
        channel.makeConnection(transport)
        channel.dataReceived(GET.replace(b"Host", b"Connection: close\r\nHost"))
        world.run(IDLE_TIMEOUT_S + CLOSE_S - 0.1)
        assert not transport.aborted
        world.run(0.2)
        assert transport.aborted
        channel.connectionLost(Failure(ConnectionAborted()))


# -- size and form ------------------------------------------------------------------------------------------------


class TestHeadLimits:
    def test_a_long_target(self, client: RawHTTP) -> None:
        client.say(b"GET /healthz?" + b"x" * LINE_BYTES_MAX)
        assert refused(client) == (414, f"the first line of a request has at most {LINE_BYTES_MAX} bytes")

    def test_a_long_field(self, client: RawHTTP) -> None:
        client.say(b"GET /healthz HTTP/1.1\r\nX: " + b"x" * LINE_BYTES_MAX)
        assert refused(client) == (431, f"a header field has at most {LINE_BYTES_MAX} bytes")

    def test_a_large_head(self, client: RawHTTP) -> None:
        """The sum counts, also of a field that goes on over many lines."""
        client.say(b"GET /healthz HTTP/1.1\r\nX: a\r\n" + b" ab\r\n" * (HEAD_BYTES_MAX // 5))
        assert refused(client) == (431, f"the head of a request has at most {HEAD_BYTES_MAX} bytes")

    def test_many_fields(self, client: RawHTTP) -> None:
        """HEADERS_MAX are taken, one more is not."""
        fields = b"X: y\r\n" * (HEADERS_MAX - 1)
        client.say(GET[:-2] + fields + b"\r\n")
        assert client.status == 200
        client.heard = b""
        client.say(GET[:-2] + fields + b"X: y\r\n\r\n")
        assert refused(client) == (431, f"a request has at most {HEADERS_MAX} header fields")


class TestSmuggling:
    @pytest.mark.parametrize(
        "fields",
        [
            b"Content-Length: 2\r\nContent-Length: 3",
            b"Content-Length: 2\r\nContent-Length: 2",
            b"Content-Length: 2, 2",
            b"Content-Length: +2",
            b"Content-Length: -2",
            b"Content-Length: 0x2",
            b"Content-Length: 2 2",
            b"Content-Length:",
            b"Content-Length : 2",
            b"Content-Length: 2\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: chunked\r\nContent-Length: 2",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: identity",
            b"Transfer-Encoding: xchunked",
            b"X: a\nTransfer-Encoding: chunked",
            b"X: a\x00b",
            b"no colon",
        ],
    )
    def test_lengths_that_two_readers_may_read_differently(self, world: World, client: RawHTTP, fields: bytes) -> None:
        """Refused before anything is done, and what follows is not read as another request."""
        message = b'{"to":"UserX","message":"smuggled"}'
        inner = b"POST /send HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (len(message), message)
        client.say(b"POST /send HTTP/1.1\r\nHost: 127.0.0.1\r\n" + fields + b"\r\nX-Last: 1\r\n\r\n0\r\n\r\n" + inner)
        assert refused(client)[0] == 400
        client.say(inner)
        world.run(1)
        assert world.get("Bobby", "/outbox").json["messages"] == []
        assert world.inbox("UserX") == []

    @pytest.mark.parametrize("length", [b"9" * 5000, b"1" + b"0" * LENGTH_DIGITS_MAX])
    def test_a_length_of_many_digits(self, client: RawHTTP, length: bytes) -> None:
        """Python does not read a number of 5000 digits; nor do we."""
        client.say(b"POST /deliver HTTP/1.1\r\nContent-Length: " + length + b"\r\n\r\n")
        assert refused(client)[0] == 413

    @pytest.mark.parametrize(
        "chunks",
        [b"ffffffffffffffffffff", b"x\r\n", b"-1\r\n", b"1;" + b"e" * 2000, b"1\r\nab\r\n", b"0\r\n" + b"t" * 70_000],
    )
    def test_bad_chunks(self, client: RawHTTP, chunks: bytes) -> None:
        """Chunk sizes, extensions and trailers are bounded and read strictly."""
        client.say(b"POST /deliver HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"\r\n" + b"x" * 100_000)
        if chunks.startswith(b"fff"):
            assert not client.closed or client.status in (400, 413)
        else:
            assert refused(client)[0] == 400

    @pytest.mark.parametrize(
        "text",
        [
            b"hello\r\n\r\n",
            b"GET /\r\n\r\n",
            b"GET / HTTP/2.0\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b'{"jsonrpc":"2.0","id":1,"method":"ping"}\r\n',
            b"\xff\xfe /x HTTP/1.1\r\n\r\n",
        ],
    )
    def test_what_is_no_http(self, client: RawHTTP, text: bytes) -> None:
        """Another protocol is told what this one is."""
        client.say(text)
        assert refused(client)[0] == 400
        assert "HTTP/1.1" in refused(client)[1]

    def test_tls(self, world: World) -> None:
        """A TLS client is hung up on at once, with words that make OpenSSL say 'wrong version number'; the log tells of
        it once in NOTE_S."""
        with capturedLogs() as events:
            for wait_s in (0.0, NOTE_S - 1, 2.0):
                world.run(wait_s)
                client = RawHTTP(world, "Bobby")
                client.say(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500))
                assert refused(client) == (400, "this port speaks plain HTTP, not TLS: use http://")
        assert len([event for event in events if "speaks TLS" in formatEvent(event)]) == 2


def test_a_body_too_large_is_thrown_away(world: World, client: RawHTTP) -> None:
    """Announced or in chunks: read up to DISCARD_BYTES_MAX, kept nowhere."""
    client.say(b"POST /deliver HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(DISCARD_BYTES_MAX // MIB + 1):
        client.chunk(b"x" * MIB)
    assert refused(client)[0] == 413


# -- whose turn it is, and who takes what ---------------------------------------------------------------------------


class TestPauses:
    @pytest.fixture
    def pipe(self) -> Pipe:
        return Pipe()

    @pytest.fixture
    def channel(self, world: World, pipe: Pipe) -> Iterator[Channel]:
        channel = world.users["Bobby"].site.buildProtocol(None)
        channel.makeConnection(pipe)
        yield channel
        channel.connectionLost(Failure(ConnectionAborted()))

    def test_ahead(self, world: World, channel: Channel, pipe: Pipe) -> None:
        """While one request is worked on, AHEAD_BYTES_MAX of others are read and no more, until it is answered."""
        channel.dataReceived(b"GET /inbox?wait=60 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        pipe.buffer_bytes_max = MIB
        others = GET * (AHEAD_BYTES_MAX // len(GET))
        channel.dataReceived(others)
        assert pipe.reading
        channel.dataReceived(GET)
        assert not pipe.reading
        world.run(60)
        assert pipe.reading
        assert pipe.take().count(b"HTTP/1.1 200") == 2 + len(others) // len(GET)

    def test_one_turn_each(self, world: World, channel: Channel, pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of requests that came at once one is answered in a turn of the reactor."""
        turns: list[Callable[[], None]] = []
        monkeypatch.setattr(world.hosts["Bobby"], "callLater", lambda delay_s, call: turns.append(call))
        channel.dataReceived((post(2, "/send") + b"{}") * 4)
        answered = [pipe.take().count(b"HTTP/1.1 400")]
        while turns:
            assert len(turns) == 1
            turns.pop()()
            answered.append(pipe.take().count(b"HTTP/1.1 400"))
        assert answered == [1, 1, 1, 1]

    def test_answers_that_nobody_takes(self, world: World, channel: Channel, pipe: Pipe) -> None:
        """Whoever does not take the answers they have is given no more, and not read from."""
        pipe.buffer_bytes_max = 1000
        channel.dataReceived(GET * 100)
        world.run(1)
        assert not pipe.reading
        assert pipe.waiting_bytes < 1500
        assert channel._reader.unread > 0
        answers = 0
        for _ in range(100):
            answers += pipe.take().count(b"HTTP/1.1 200")
            world.run(0.1)
        assert answers == 100
        assert pipe.reading

    def test_what_comes_all_the_same(self, world: World, channel: Channel, pipe: Pipe) -> None:
        """TLS hands on what it has read before it pauses: that is answered when the client takes answers again."""
        pipe.buffer_bytes_max = 100
        channel.dataReceived(GET)
        world.run(1)
        assert not pipe.reading
        channel.dataReceived(GET)
        world.run(1)
        assert pipe.take().count(b"HTTP/1.1 200") == 1
        world.run(1)
        assert pipe.take().count(b"HTTP/1.1 200") == 1

    def test_nothing_is_written_behind_the_last_word(self, world: World, channel: Channel, pipe: Pipe) -> None:
        """What is still under way when a connection was given up is answered to nobody."""
        channel.dataReceived(b"GET /inbox?wait=60 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        channel.evict()
        world.run(61)
        assert pipe.aborted
        assert pipe.take() == b""


def test_a_short_answer_needs_no_turn_of_the_reactor(world: World, way: str) -> None:
    """One that need not wait is there when the request is, in one piece, and no timer was touched for it."""

    async def deliver(body: bytes, network: str = "") -> bytes:
        return body

    node, pipe = world.users["Bobby"], Pipe()
    node.receiving.deliver = deliver  # type: ignore[method-assign]
    channel = node.site.buildProtocol(None)
    channel.makeConnection(pipe)
    timers = world.hosts["Bobby"].getDelayedCalls()
    channel.dataReceived(post(5) + b"hello")
    if way == "the short way":
        assert len(pipe.writes) == 1
    assert pipe.take().startswith(b"HTTP/1.1 200 OK\r\n")
    assert world.hosts["Bobby"].getDelayedCalls() == timers
    channel.connectionLost(Failure(ConnectionAborted()))


def test_what_is_no_answer_is_a_bug(world: World, way: str, nothing_logged_as_failure: list[LogEvent]) -> None:
    """A handler that returns something else ends the connection, and the log says so; Klein takes None for no body."""
    waiting: Deferred[bytes] = Deferred()

    async def deliver(body: bytes, network: str = "") -> bytes:
        return await waiting

    world.users["Bobby"].receiving.deliver = deliver  # type: ignore[method-assign]
    client = RawHTTP(world, "Bobby")
    client.say(post(5) + b"hello")
    waiting.callback(None)  # type: ignore[arg-type]
    world.settle()
    short = way == "the short way"
    assert (client.closed, len(nothing_logged_as_failure)) == (short, int(short))
    nothing_logged_as_failure.clear()


# -- streams that are refused ---------------------------------------------------------------------------------------


class TestRefusedStreams:
    @pytest.fixture
    def client(self, world: World) -> RawHTTP:
        world.users["Bobby"].face.door = Door("secret", ["127.0.0.1"])
        client = RawHTTP(world, "Bobby")
        client.begin()
        return client

    def test_the_answer_does_not_wait(self, world: World, client: RawHTTP) -> None:
        """It is there before the end of the stream, which is then read on: who has written all of it may go on."""
        assert [code for code, _, _ in client.answers] == [401]
        client.lines({"to": "UserX", "message": "x"})
        world.run(DRAIN_S - 0.1)
        client.end()
        client.say(GET)
        assert [code for code, _, _ in client.answers] == [401, 200]
        assert not client.closed
        assert world.inbox("UserX") == []

    def test_who_asks_first(self, world: World, client: RawHTTP) -> None:
        """Is not told to go on. Whether the body comes all the same nobody knows, so the connection ends."""
        client = RawHTTP(world, "Bobby")
        client.begin(Expect="100-continue")
        ((code, fields, _),) = client.answers
        assert (code, fields["connection"]) == (401, "close")
        client.end()
        assert client.closed

    def test_it_is_not_read_for_long(self, world: World, client: RawHTTP) -> None:
        world.run(DRAIN_S - 0.1)
        client.lines({"to": "UserX", "message": "x"})
        assert not client.closed
        world.run(0.2)
        assert client.closed
        assert [code for code, _, _ in client.answers] == [401]

    def test_nor_is_much_of_it(self, world: World, client: RawHTTP) -> None:
        for _ in range(DISCARD_BYTES_MAX // MIB):
            client.chunk(b" " * MIB)
        assert not client.closed
        client.chunk(b" ")
        assert client.closed
        assert [code for code, _, _ in client.answers] == [401]

    def test_what_is_no_chunk(self, client: RawHTTP) -> None:
        """There is no second answer."""
        client.say(GET)
        assert client.closed
        assert [code for code, _, _ in client.answers] == [401]

    def test_it_is_a_guest_like_any(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """While it is read on it keeps nobody out."""
        monkeypatch.setattr(http_limits, "NETWORK_CONNECTIONS_MAX", 2)
        again(world)
        world.users["Bobby"].face.door = Door("secret", ["127.0.0.1"])
        streams = [RawHTTP(world, "Bobby") for _ in range(2)]
        for stream in streams:
            stream.begin()
        newest = RawHTTP(world, "Bobby")
        newest.say(GET)
        assert newest.status == 200
        assert [stream.closed for stream in streams] == [True, False]


def test_a_bad_chunk_amid_a_stream(world: World, client: RawHTTP) -> None:
    """When the answer has begun there is no other: it breaks off."""
    client.begin()
    client.lines({"to": "UserX", "message": "x"})
    world.run(1)
    assert client.status == 200
    client.say(b"no chunk\r\n")
    assert client.closed
    assert client.heard.count(b"HTTP/1.1") == 1
    assert not client.over
    assert world.inbox("UserX") == ["x"]
