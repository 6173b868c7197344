"""What one HTTP listener bears, of one network and in all: connections, requests, bodies, and strangers at the owner's
part."""

import json
from pathlib import Path

import pytest

from meshproto.core import bodies, limits
from meshproto.core.envelope import SEALED_BYTES_MAX
from meshproto.core.limits import Rate
from meshproto.errors import MeshError
from meshproto.net import http_limits
from meshproto.net.door import Door
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
from tests.net.http_rig import GET, MIB, again, post, refused, two_users
from tests.net.raw_http import RawHTTP, RawHTTPS, listen_with_tls
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
