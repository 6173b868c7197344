"""The HTTP connection of a node: what it bears from a client that means to wear it down."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.python.failure import Failure

from meshproto.core import bodies, limits
from meshproto.core.envelope import SEALED_BYTES_MAX
from meshproto.core.http1 import HEAD_BYTES_MAX, HEADERS_MAX, LENGTH_DIGITS_MAX, LINE_BYTES_MAX
from meshproto.core.limits import Rate
from meshproto.core.notes import NOTE_S
from meshproto.errors import MeshError
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
from meshproto.net.http_limits import (
    BODIES_FULL_S,
    NETWORK_CONNECTIONS_MAX,
    PIECE_BYTES,
    REQUESTS,
    UNPROVEN_BYTES,
    WRONG_TOKENS,
    Limits,
)
from meshproto.net.http_request import SMALL_PIECES_MAX, KleinRequest
from meshproto.net.public_front import PUBLIC_PATHS
from tests.net.pipe import Pipe
from tests.net.raw_http import RawHTTP, RawHTTPS, listen_with_tls
from tests.world import World

pytestmark = [
    pytest.mark.usefixtures("way"),
    # Twisted hands pyOpenSSL its own kind of certificate.
    pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning"),
]

GET = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
MIB = 2**20


@pytest.fixture
def world() -> World:
    world = World(21)
    world.add_seed("seedX")
    world.add_user("UserX", seeds=["seedX"])
    world.add_user("Bobby", seeds=["seedX"])
    world.run_until(world.registered)
    return world


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


def post(length: int, path: str = "/deliver") -> bytes:
    """A head that announces a body."""
    return b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % (path.encode(), length)


def refused(client: RawHTTP) -> tuple[int, str]:
    """Status and detail of the one answer on a connection, which is closed then."""
    assert client.closed
    head, _, body = client.heard.partition(b"\r\n\r\n")
    fields = head.split(b"\r\n")
    assert b"Content-Type: application/problem+json" in fields
    assert b"Connection: close" in fields
    assert b"Content-Length: %d" % len(body) in fields
    document = json.loads(body)
    assert document["status"] == client.status
    assert document["title"]
    return client.status, document["detail"]


def answers(client: RawHTTP) -> list[int]:
    """The status of each answer that came on the connection."""
    return [int(part.split(b" ")[1]) for part in client.heard.split(b"HTTP/1.1 ")[1:] for part in [b" " + part]]


def again(world: World) -> None:
    """Bobby's node starts again, with the limits as they are now."""
    world.stop("Bobby")
    world.restart("Bobby")
    world.run_until(world.registered)


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


# -- how many, how often, how much --------------------------------------------------------------------------------


class TestConnections:
    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch, world: World) -> None:
        assert http_limits.HTTP_CONNECTIONS_MAX > NETWORK_CONNECTIONS_MAX > 5
        monkeypatch.setattr(http_limits, "NETWORK_CONNECTIONS_MAX", 5)
        again(world)

    def test_the_idlest_goes(self, world: World) -> None:
        """Beyond NETWORK_CONNECTIONS_MAX the connection that has been served longest ago makes room; the newcomer is
        served."""
        clients = [RawHTTP(world, "Bobby") for _ in range(5)]
        clients[0].say(GET)
        newest = [RawHTTP(world, "Bobby") for _ in range(2)]
        assert [client.closed for client in clients] == [False, True, True, False, False]
        for client in newest:
            client.say(GET)
            assert client.status == 200

    def test_slow_ones_are_no_better_than_idle_ones(self, world: World) -> None:
        """Half a head and half a body are no request yet."""
        slow = [RawHTTP(world, "Bobby") for _ in range(5)]
        for client in slow:
            client.say(post(1000) + b"x")
        for _ in range(20):
            client = RawHTTP(world, "Bobby")
            client.say(GET)
            assert client.status == 200
        assert all(client.closed for client in slow)

    def test_whoever_waits_for_an_answer_stays(self, world: World) -> None:
        """A long poll and a stream are not given up for strangers, however many come; when they are over they are
        guests like all."""
        poll, stream = RawHTTP(world, "Bobby"), RawHTTP(world, "Bobby")
        poll.say(b"GET /inbox?wait=60 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        stream.begin()
        for _ in range(20):
            RawHTTP(world, "Bobby")
        assert not poll.closed
        assert not stream.closed
        world.send("UserX", "Bobby", "hello")
        assert b"hello" in poll.heard
        for _ in range(5):
            RawHTTP(world, "Bobby")
        assert poll.closed
        assert not stream.closed

    def test_whoever_comes_again_and_again(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """A network that has its share gets NEWCOMERS for which its own have to go, and then no more for a while: they
        are closed before anything is done for them. Others come in as ever."""
        monkeypatch.setattr(limits, "NEWCOMERS", Rate(per_s=1.0, burst=3.0))
        again(world)
        guests = [RawHTTP(world, "Bobby") for _ in range(5 + 3)]
        assert [guest.closed for guest in guests] == [True] * 3 + [False] * 5
        assert all(RawHTTP(world, "Bobby").closed for _ in range(20))
        assert not any(guest.closed for guest in guests[3:])
        assert world.send("UserX", "Bobby", "from another network").json["status"] == "delivered"
        world.run(1)
        assert not RawHTTP(world, "Bobby").closed
        assert guests[3].closed
        guests[-1].hang_up()
        assert not RawHTTP(world, "Bobby").closed  # there is room, so nobody is counted

    def test_nor_over_tls(self, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(limits, "NEWCOMERS", Rate(per_s=1.0, burst=1.0))
        again(world)
        listen_with_tls(world, "Bobby", tmp_path)
        guests = [RawHTTPS(world, "Bobby") for _ in range(5 + 1)]
        assert [guest.closed for guest in guests] == [True] + [False] * 5
        assert RawHTTPS(world, "Bobby").closed
        assert not any(guest.closed for guest in guests[1:])

    def test_all_busy(self, world: World) -> None:
        """When all places of a network are taken by those who wait for an answer, there is none for one more of it."""
        polls = [RawHTTP(world, "Bobby") for _ in range(5)]
        for poll in polls:
            poll.say(b"GET /inbox?wait=60 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert RawHTTP(world, "Bobby").closed
        assert not any(poll.closed for poll in polls)
        assert world.send("UserX", "Bobby", "from another network").json["status"] == "delivered"


@pytest.fixture
def few_requests(world: World, monkeypatch: pytest.MonkeyPatch) -> Rate:
    """A rate that a test reaches in no time."""
    rate = Rate(per_s=50.0, burst=100.0)
    assert REQUESTS.burst > rate.burst
    monkeypatch.setattr(http_limits, "REQUESTS", rate)
    again(world)
    return rate


class TestRates:
    @pytest.mark.parametrize("path", [*sorted(path.encode() for path in PUBLIC_PATHS), b"/%64eliver", b"/healthz?x=1"])
    def test_public_requests(self, world: World, few_requests: Rate, client: RawHTTP, path: bytes) -> None:
        """More than REQUESTS of one network are answered 429 with a time, in HTTP as ever; other networks and the
        owner's routes are served."""
        for _ in range(int(few_requests.burst)):
            client.say(GET)
        client.heard = b""
        client.say(b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\nabcde" % path)
        assert client.status == 429
        assert b"Retry-After: 1" in client.heard
        assert not client.closed
        assert world.get("Bobby", "/status").code == 200
        assert world.send("UserX", "Bobby", "hello").json["status"] == "delivered"
        world.run(1.1 / few_requests.per_s)
        client.heard = b""
        client.say(GET)
        assert client.status == 200

    def test_the_sender_comes_when_it_is_told_to(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """A peer's Retry-After is kept to, and its words are shown."""
        monkeypatch.setattr(http_limits, "REQUESTS", Rate(per_s=0.05, burst=1.0))
        again(world)
        assert world.send("UserX", "Bobby", "takes it all").json["status"] == "delivered"
        asked_at: list[float] = []
        ask = Limits.request

        def asked(limits: Limits, network: str) -> MeshError | None:
            asked_at.append(world.clock.seconds())
            return ask(limits, network)

        monkeypatch.setattr(Limits, "request", asked)
        kept = world.send("UserX", "Bobby", "later", wait=0.0).json
        world.run(19)
        assert (
            "429 slow down: more than 0.05 requests a second"
            in world.get("UserX", f"/outbox/{kept['id']}").json["reason"]
        )
        assert len(asked_at) == 1
        world.run(5)
        assert world.inbox("Bobby") == ["takes it all", "later"]

    def test_bytes_that_come_to_nothing(self, world: World) -> None:
        """Bodies that are no batches count against their network, until it is answered 429."""
        codes = []
        for _ in range(int(UNPROVEN_BYTES.burst) // SEALED_BYTES_MAX + 1):
            client = RawHTTP(world, "Bobby")
            client.say(post(SEALED_BYTES_MAX) + b"x" * SEALED_BYTES_MAX)
            codes.append(client.status)
        assert codes[:-2] == [400] * (int(UNPROVEN_BYTES.burst) // SEALED_BYTES_MAX - 1)
        assert codes[-1] == 429
        assert b"Retry-After" in client.heard
        assert world.send("UserX", "Bobby", "hello").json["status"] == "delivered"

    def test_the_owners_bytes_do_not_count(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """The owner hears as often as they like that a body is wrong."""
        monkeypatch.setattr(http_limits, "UNPROVEN_BYTES", Rate(1.0, 2.0 * PIECE_BYTES))
        again(world)
        for _ in range(5):
            client = RawHTTP(world, "Bobby")
            client.say(b"POST /send HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\n\r\nabc")
            assert client.status == 400

    def test_pieces_count(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """A body in chunks of a byte is as much as one that is five hundred times as long."""
        monkeypatch.setattr(http_limits, "UNPROVEN_BYTES", Rate(1.0, 100.0 * PIECE_BYTES))
        again(world)
        whole, chunked = RawHTTP(world, "Bobby"), RawHTTP(world, "Bobby")
        whole.say(post(200) + b"x" * 200)
        assert whole.status == 400
        head = b"POST /deliver HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunked.say(head + b"1\r\nx\r\n" * 200 + b"0\r\n\r\n")
        assert chunked.status == 429

    def test_small_pieces(self, world: World, client: RawHTTP) -> None:
        """Chunks of a byte each are taken so far, and then the connection ends with a reason."""
        head = b"POST /deliver HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.say(head + b"1\r\nx\r\n" * SMALL_PIECES_MAX)
        assert not client.closed
        client.say(b"1\r\nx\r\n" * 10)
        assert refused(client)[0] == 400

    def test_bytes_that_were_of_use_do_not_count(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """A peer may send any amount of batches that are taken."""
        monkeypatch.setattr(http_limits, "UNPROVEN_BYTES", Rate(1.0, 40_000.0))
        again(world)
        for _ in range(10):
            assert world.send("UserX", "Bobby", "x" * 10_000).json["status"] == "delivered"

    def test_wrong_tokens(self, world: World, client: RawHTTP) -> None:
        """After WRONG_TOKENS wrong ones every other is answered 429; the right one opens all the time."""
        world.users["Bobby"].face.door = Door("secret", ["127.0.0.1"])
        codes = [
            world.get("Bobby", "/status", authorization="Bearer wrong").code for _ in range(int(WRONG_TOKENS.burst) + 2)
        ]
        assert codes == [401] * int(WRONG_TOKENS.burst) + [429, 429]
        assert world.get("Bobby", "/status", authorization="Bearer secret").code == 200
        world.run(1 / WRONG_TOKENS.per_s)
        assert world.get("Bobby", "/status", authorization="Bearer wrong").code == 401


class TestBodies:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert UNPROVEN_BYTES.burst + UNPROVEN_BYTES.per_s * bodies.BODY_SURE_S < bodies.BODIES_BYTES_MAX
        monkeypatch.setattr(bodies.Bodies.__init__, "__defaults__", (MIB,))

    def test_no_room(self, world: World) -> None:
        """Beyond BODIES_BYTES_MAX of bodies under way a new one is answered 503 with a time, and one that grows too."""
        again(world)
        first, second, third = (RawHTTP(world, "Bobby") for _ in range(3))
        first.say(post(SEALED_BYTES_MAX) + b"x" * (MIB - 10))
        second.say(post(100) + b"x" * 11)
        assert refused(second) == (503, "too many large requests are under way")
        first.say(b"x" * 10)
        third.say(post(5) + b"abcde")
        assert third.status == 503
        assert b"Retry-After: %d" % BODIES_FULL_S in third.heard
        assert not third.closed
        first.hang_up()
        third.heard = b""
        third.say(post(5) + b"abcde")
        assert third.status == 400

    def test_the_oldest_makes_room(self, world: World) -> None:
        """One that takes longer than BODY_SURE_S goes when there is no room: nobody holds it by being slow."""
        again(world)
        slow, quick = RawHTTP(world, "Bobby"), RawHTTP(world, "Bobby")
        slow.say(post(SEALED_BYTES_MAX) + b"x" * MIB)
        world.run(bodies.BODY_SURE_S - 0.1)
        quick.say(post(5) + b"abcde")
        assert quick.status == 503
        world.run(0.2)
        quick.heard = b""
        quick.say(post(5) + b"abcde")
        assert quick.status == 400
        assert refused(slow) == (503, "too many large requests are under way")

    def test_one_that_is_worked_on_stays(self, world: World) -> None:
        """A request that waits for its answer is not given up for the room of its body."""
        again(world)
        world.send("Bobby", "UserX", "known")
        world.cut("Bobby", "UserX")
        waits, other = RawHTTP(world, "Bobby"), RawHTTP(world, "Bobby")
        message = b'{"to":"UserX","wait":60,"message":"%s"}' % (b"x" * 250_000)
        waits.say(post(len(message), "/send") + message)
        world.run(bodies.BODY_SURE_S + 5)
        other.say(post(SEALED_BYTES_MAX) + b"x" * (MIB - 250_000))
        assert other.status == 503
        assert not waits.closed
        assert waits.heard == b""

    def test_half_a_body_is_nothing(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is refused in the middle of its body is not done, though its end came along with it."""
        again(world)
        processed: list[KleinRequest] = []
        monkeypatch.setattr(KleinRequest, "process", processed.append)
        first, second = RawHTTP(world, "Bobby"), RawHTTP(world, "Bobby")
        first.say(post(SEALED_BYTES_MAX) + b"x" * (MIB - 10))
        head = b"POST /send/UserX HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        second.say(head + b"5\r\nabcde\r\n" + b"32\r\n" + b"x" * 50 + b"\r\n" + b"2\r\nyz\r\n" + b"0\r\n\r\n")
        assert refused(second)[0] == 503
        assert processed == []

    def test_what_no_route_takes_is_not_kept(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a body in chunks no more than SEALED_BYTES_MAX takes room; the rest is read, and answered 413."""
        monkeypatch.setattr(bodies.Bodies.__init__, "__defaults__", (SEALED_BYTES_MAX + 1,))
        again(world)
        client = RawHTTP(world, "Bobby")
        client.say(b"POST /deliver HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(SEALED_BYTES_MAX // MIB + 2):
            client.chunk(b"x" * MIB)
        client.end()
        assert client.status == 413


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


# -- strangers at the owner's part ----------------------------------------------------------------------------------


class TestStrangers:
    @pytest.mark.parametrize("token", ["", "Bearer wrong"])
    @pytest.mark.parametrize("path", ["/send", "/send/UserX", "/nowhere", "/pages"])
    def test_what_is_the_owners_is_counted_too(
        self, world: World, few_requests: Rate, client: RawHTTP, path: str, token: str
    ) -> None:
        """Whoever asks for it, or for what there is not, without the token: more than REQUESTS are answered 429, at no
        more cost. The owner is served all the same, from the same address."""
        world.users["Bobby"].face.door = Door("secret", ["127.0.0.1"])

        def ask(token: str) -> int:
            client.heard = b""
            fields = f"Host: 127.0.0.1\r\nContent-Length: 2\r\nAuthorization: {token}"
            client.say(f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n{{}}".encode())
            return client.status

        refused = {ask(token) for _ in range(int(few_requests.burst))}
        assert refused <= {401, 404, 429}
        assert ask(token) == 429
        assert "requests a second" in json.loads(client.answers[0][2])["detail"]
        assert b"Retry-After: 1" in client.heard
        assert ask("Bearer secret") in (200, 400, 404)

    def test_where_nobody_is_the_owner(self, world: World, few_requests: Rate, client: RawHTTP) -> None:
        """A listener for peers alone counts what it does not serve."""
        world.users["Bobby"].face.door = None
        for _ in range(int(few_requests.burst)):
            client.say(b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        client.heard = b""
        client.say(GET)
        assert client.status == 429

    def test_the_owner_is_not_counted(self, world: World, few_requests: Rate, client: RawHTTP) -> None:
        """As often as they like."""
        for _ in range(int(few_requests.burst) + 1):
            client.say(b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        client.heard = b""
        client.say(GET)
        assert client.status == 200
