"""Requests that go the short way are served as those that go Klein's, in the clear and over TLS."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogEvent

from meshproto.core.envelope import SEALED_BYTES_MAX
from meshproto.core.http1 import LINE_BYTES_MAX
from meshproto.net.door import Door
from meshproto.net.face import SHORT_WAY, Face
from meshproto.net.http_channel import BODY_BYTES_PER_S, BODY_LOOK_S, HEAD_S, IDLE_TIMEOUT_S
from meshproto.net.http_request import ShortRequest
from tests.net.raw_http import RawHTTP, RawHTTPS, listen_with_tls
from tests.world import World

# Twisted hands pyOpenSSL its own kind of certificate.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

Connect = Callable[[], RawHTTP]
PATHS = ["/send", "/deliver"]


def build() -> World:
    world = World(31)
    world.add_seed("seedX")
    for name in ("UserX", "Bobby"):
        world.add_user(name, seeds=["seedX"])
    world.run_until(world.registered)
    return world


@pytest.fixture
def world(way: str) -> World:
    return build()


@pytest.fixture(params=[RawHTTP, RawHTTPS], ids=["plain", "TLS"])
def connect(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Connect:
    listen_with_tls(world, "Bobby", tmp_path)
    kind: type[RawHTTP] = request.param
    return lambda: kind(world, "Bobby")


def post(path: str, body: bytes = b"", *fields: str, host: str = "localhost") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def message(text: Any, to: str = "UserX", **more: Any) -> bytes:
    return json.dumps({"to": to, "message": text, **more}).encode()


def codes(client: RawHTTP) -> list[int]:
    return [code for code, _, _ in client.answers]


class Slow:
    """In place of what takes a batch: answers when the test says so."""

    def __init__(self, world: World) -> None:
        self.waiting: list[Deferred[bytes]] = []
        self.cancelled = 0
        world.users["Bobby"].receiving.deliver = self.deliver  # type: ignore[method-assign]

    async def deliver(self, body: bytes, network: str = "") -> bytes:
        answer: Deferred[bytes] = Deferred()
        self.waiting.append(answer)
        try:
            return b"%s after %s" % (body, await answer)
        except CancelledError:
            self.cancelled += 1
            raise


# -- which way ----------------------------------------------------------------------------------------------------

PLAIN = [
    post("/send", message("x")),
    post("/send", message("x"), host="127.0.0.1:3000"),
    post("/send", message("x"), host="[::1]:3000"),
    post("/deliver", b"x", host="node.example"),
    post("/deliver", b"x", "Content-Type: application/x-ndjson"),
    post("/deliver").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
]
ODD = [
    post("/send?x=1", message("x")),
    post("/%73end", message("x")),
    post("/send/", message("x")),
    post("/send", message("x"), "Host: localhost"),
    post("/send", message("x"), host="a..b"),
    post("/send", message("x"), host="a" * 64),
    post("/send", message("x"), host=""),
    post("/send", message("x"), host="\xff"),
    post("/send", message("x"), "Content-Type: application/x-ndjson"),
    post("/send", message("x")).replace(b"HTTP/1.1", b"HTTP/1.0"),
    post("http://localhost/send", message("x")),
    post("/send", message("x")).replace(b"POST", b"PUT"),
    post("/send", message("x")).replace(b"POST", b"post"),
    post("/deliver", b"x").replace(b"Host: localhost\r\n", b""),
    post("/healthz"),
]


class TestWhichWay:
    @pytest.fixture
    def went(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        made: list[str] = []
        make = Face.make_request

        def noted(face: Face, channel: Any, head: Any) -> Any:
            request = make(face, channel, head)
            made.append(type(request).__name__)
            return request

        monkeypatch.setattr(Face, "make_request", noted)
        return made

    @pytest.mark.parametrize("text", [*PLAIN, *ODD])
    def test_what_is_plain_goes_the_short_way(self, went: list[str], text: bytes) -> None:
        world = build()
        RawHTTP(world, "Bobby").say(text)
        world.run(1)
        assert went[0] == ("ShortRequest" if text in PLAIN else "FrontRequest")

    @pytest.mark.parametrize("text", [post("/send", message("x")), post("/deliver", b"x")])
    def test_what_is_not_served_does_not(self, went: list[str], text: bytes) -> None:
        """The owner's routes where nobody is the owner, the public ones on a listener of the owner's own."""
        world = build()
        world.users["Bobby"].face.door = None
        if b"/deliver" in text:
            world.users["Bobby"].face.door = Door(None, ["localhost"])
            world.users["Bobby"].face._public = None
        client = RawHTTP(world, "Bobby")
        client.say(text)
        assert (went[0], client.status) == ("FrontRequest", 404)


# -- the same answers ---------------------------------------------------------------------------------------------

ASKED = {
    "sent": post("/send", message("hello")),
    "a name nobody has": post("/send", message("hello", to="Nobody")),
    "several": post("/send", json.dumps({"to": ["UserX", "Nobody"], "message": 1, "id": "i"}).encode()),
    "a key": post("/send", message("hello"), "Idempotency-Key: k1"),
    "two keys": post("/send", message("hello"), "Idempotency-Key: k1", "Idempotency-Key: k2"),
    "a key that is none": post("/send", message("hello"), "Idempotency-Key: \xff"),
    "no body": post("/send"),
    "no JSON": post("/send", b"{"),
    "no UTF-8": post("/send", b'{"to":"UserX","message":"\xff"}'),
    "too large": post("/send", b" " * 400_000),
    "too large for any route": post("/deliver", b" " * (SEALED_BYTES_MAX + 1)),
    "no batch": post("/deliver", b"x"),
    "a batch for nobody": post("/deliver", b'{"sender":{"record":"{}","sig":""},"to":"","box":""}'),
    "in chunks": post("/send").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    + b"10\r\n"
    + message("a")[:16]
    + b"\r\n%x\r\n" % (len(message("a")) - 16)
    + message("a")[16:]
    + b"\r\n0\r\n\r\n",
    "closing": post("/send", message("hello"), "Connection: close"),
    "another origin": post("/send", message("x"), "Origin: http://evil.example"),
    "its own origin": post("/send", message("x"), "Origin: http://localhost"),
    "another site": post("/send", message("x"), "Sec-Fetch-Site: cross-site"),
    "two sites": post("/send", message("x"), "Sec-Fetch-Site: none", "Sec-Fetch-Site: none"),
    "another name": post("/send", message("x"), host="evil.example"),
    "by a proxy": post("/send", message("x"), "X-Forwarded-For: 192.0.2.1"),
    "a token nobody asks for": post("/send", message("x"), "Authorization: Bearer x"),
    "a batch of another origin": post("/deliver", b"x", "Origin: http://evil.example", host="evil.example"),
    "asked before": post("/send", message("x"), "Expect: 100-continue"),
}


def answered(text: bytes, token: str | None = None) -> list[tuple[int, dict[str, str], Any]]:
    """But for what tells the ways apart: how the length of the body is said, and who serves."""
    world = build()
    if token is not None:
        world.users["Bobby"].face.door = Door(token, ["localhost"])
    client = RawHTTP(world, "Bobby")
    client.say(text)
    world.run(6)
    found = []
    for code, fields, body in client.answers:
        for name in ("date", "server", "content-length", "transfer-encoding"):
            fields.pop(name, None)
        found.append((code, fields, json.loads(body) if body else None))
    return [*found, (int(client.closed), {}, world.inbox("UserX"))]


@pytest.mark.parametrize("token", [None, "secret"])
@pytest.mark.parametrize("what", ASKED)
def test_both_ways_answer_alike(what: str, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status, fields, document, what is sent, and whether the connection goes on."""
    went: list[str] = []
    complete = ShortRequest.complete

    def noted(request: ShortRequest) -> None:
        went.append("short")
        complete(request)

    monkeypatch.setattr(ShortRequest, "complete", noted)
    short = answered(ASKED[what], token)
    assert went or what == "too large for any route" or short[0][0] == 400, "it went Klein's way"
    went.clear()
    monkeypatch.setattr("meshproto.net.face.SHORT_WAY", {front: {} for front in SHORT_WAY})
    assert answered(ASKED[what], token) == short
    assert not went


# -- HTTP, both ways, in the clear and over TLS --------------------------------------------------------------------

MALFORMED = [
    b"hello\r\n\r\n",
    b"POST {path}\r\n\r\n",
    b"POST {path} HTTP/2.0\r\n\r\n",
    b"POST  {path} HTTP/1.1\r\n\r\n",
    b"POST {path} HTTP/1.1\nHost: localhost\n\n",
    b"POST {path} HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n",
    b"POST {path} HTTP/1.1\r\nHost : localhost\r\n\r\n",
    b"POST {path} HTTP/1.1\r\nHost: localhost\r\n folded: yes\r\n\r\n",
    b"POST {path} HTTP/1.1\r\nHost: local\x00host\r\n\r\n",
    b"POST {path} HTTP/1.1\r\nno colon\r\n\r\n",
]
LENGTHS = [
    b"Content-Length: 2\r\nContent-Length: 3",
    b"Content-Length: 2\r\nContent-Length: 2",
    b"Content-Length: 2, 2",
    b"Content-Length: +2",
    b"Content-Length:",
    b"Content-Length: 2\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 2",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity",
    b"X: a\nTransfer-Encoding: chunked",
]
METHODS = [(b"HEAD", 405), (b"OPTIONS", 204), (b"GET", 405), (b"ODD", 405), (b"PUT", 405), (b"TRACE", 405)]
CHUNKS = [
    b"x\r\n",
    b"-1\r\n",
    b"1 \r\nx\r\n",
    b"1\nx\n",
    b"2\r\nabc\r\n",
    b"0\r\nno trailer\r\n",
    b"0\r\nX: a\r\n b\r\n",
]


@pytest.mark.parametrize("path", PATHS)
class TestHTTP:
    def test_malformed(self, connect: Connect, path: str) -> None:
        """Told so, and hung up on."""
        for text in MALFORMED:
            client = connect()
            client.say(text.replace(b"{path}", path.encode()))
            assert (codes(client), client.closed) == ([400], True), text

    def test_smuggling(self, world: World, connect: Connect, path: str) -> None:
        """Where two readers may see two lengths nothing is done, nor what follows read as another request."""
        inner = post("/send", message("smuggled"))
        for fields in LENGTHS:
            client = connect()
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n".encode() + fields + b"\r\n\r\n"
            client.say(head + b"0\r\n\r\n" + inner)
            assert (codes(client), client.closed) == ([400], True), fields
            client.say(inner)
        world.run(1)
        assert world.inbox("UserX") == []

    def test_chunks_that_are_none(self, world: World, connect: Connect, path: str) -> None:
        head = post(path).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        for chunks in CHUNKS:
            client = connect()
            client.say(head + chunks + b"0\r\n\r\n" + post("/send", message("smuggled")))
            assert (codes(client), client.closed) == ([400], True), chunks
        world.run(1)
        assert world.inbox("UserX") == []

    def test_chunks(self, world: World, connect: Connect, path: str) -> None:
        """Extensions and trailers are passed over, and what stands behind is the next request."""
        slow, client = Slow(world), connect()
        text = message("in chunks")
        head = post(path).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        body = b"5;x=y\r\n%s\r\n%x\r\n%s\r\n0;z\r\nTrailer: x\r\n\r\n" % (text[:5], len(text) - 5, text[5:])
        for letter in head + body:
            client.say(bytes([letter]))
        world.run(1)
        for answer in slow.waiting:
            answer.callback(b"asking")
        client.say(post("/nowhere"))
        assert codes(client) == [200, 404]
        if path == "/deliver":
            assert client.answers[0][2] == text + b" after asking"
        else:
            assert world.inbox("UserX") == ["in chunks"]

    def test_a_trailer_is_no_header(self, world: World, connect: Connect, path: str) -> None:
        """What came behind the body lets nobody in."""
        world.users["Bobby"].face.door = Door("secret", ["localhost"])
        client = connect()
        head = post(path).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        client.say(head + b"0\r\nAuthorization: Bearer secret\r\n\r\n")
        assert codes(client) == [401 if path == "/send" else 400]

    def test_absolute_form(self, world: World, connect: Connect, path: str) -> None:
        """As if there was no such route: nothing is done for a host that another reader sees."""
        client = connect()
        client.say(post(f"http://evil.example{path}", message("x")))
        client.say(post(f"http://localhost{path}", message("x")))
        world.run(1)
        assert codes(client) == [404, 404]
        assert world.inbox("UserX") == []

    def test_expect(self, world: World, connect: Connect, path: str) -> None:
        client = connect()
        text = message("expected")
        head, _, body = post(path, text, "Expect: 100-continue").partition(b"\r\n\r\n")
        client.say(head + b"\r\n\r\n")
        assert client.heard == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.say(body)
        world.run(1)
        assert codes(client) == [100, 200 if path == "/send" else 400]

    def test_expect_of_1_0(self, connect: Connect, path: str) -> None:
        """It knows no such thing."""
        client = connect()
        client.say(post(path, b"{}", "Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")[:-1])
        assert client.heard == b""
        client.say(b"}")
        assert codes(client) == [400]

    def test_other_methods(self, connect: Connect, path: str) -> None:
        """Also those that nobody has heard of."""
        client = connect()
        for method, code in METHODS:
            client.heard = b""
            client.say(post(path).replace(b"POST", method))
            assert client.status == code, method
            assert b"Allow: OPTIONS, POST\r\n" in client.heard
            assert client.heard.endswith(b"\r\n\r\n") or (method, code) != (b"HEAD", 405)
        assert not client.closed

    def test_connect(self, connect: Connect, path: str) -> None:
        """Nobody's proxy."""
        client = connect()
        client.say(b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n" + post(path))
        assert (codes(client), client.closed) == ([400], True)

    def test_upgrade(self, world: World, connect: Connect, path: str) -> None:
        """Not taken up: it is a request like any."""
        client = connect()
        client.say(
            post(path, message("x"), "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAA")
        )
        client.say(post("/nowhere"))
        world.run(1)
        assert codes(client) == [200 if path == "/send" else 400, 404]

    def test_the_last_request(self, world: World, connect: Connect, path: str) -> None:
        """What comes behind it is none."""
        client = connect()
        client.say(post(path, message("x"), "Connection: x, Close") + post(path, message("not taken")))
        world.run(1)
        assert (len(client.answers), client.closed) == (1, True)
        assert client.answers[0][1]["connection"] == "close"
        assert world.inbox("UserX") == (["x"] if path == "/send" else [])

    def test_http_1_0(self, world: World, connect: Connect, path: str) -> None:
        client = connect()
        client.say(post(path, message("x"), "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"))
        world.run(1)
        assert (client.status, client.closed) == (200 if path == "/send" else 400, True)
        assert b"Transfer-Encoding" not in client.heard

    def test_a_head_has_its_time(self, world: World, connect: Connect, path: str) -> None:
        client = connect()
        for letter in post(path)[: int(HEAD_S)]:
            client.say(bytes([letter]))
            world.run(1)
        assert (codes(client), client.closed) == ([408], True)

    def test_a_body_has_its_time(self, world: World, connect: Connect, path: str) -> None:
        client = connect()
        client.say(post(path, b"x" * 300_000)[:-1])
        world.run(BODY_LOOK_S + 0.1)
        assert not client.closed
        world.run(BODY_LOOK_S)
        assert (codes(client), client.closed) == ([408], True)
        assert BODY_BYTES_PER_S * BODY_LOOK_S < 300_000

    def test_a_long_target(self, connect: Connect, path: str) -> None:
        client = connect()
        client.say(post(path + "?" + "x" * LINE_BYTES_MAX))
        assert (codes(client), client.closed) == ([414], True)

    def test_a_long_field(self, connect: Connect, path: str) -> None:
        client = connect()
        client.say(post(path, b"", "X: " + "x" * LINE_BYTES_MAX))
        assert (codes(client), client.closed) == ([431], True)

    def test_idle_afterwards(self, world: World, connect: Connect, path: str) -> None:
        client = connect()
        client.say(post(path, b"{}"))
        world.run(IDLE_TIMEOUT_S - 0.1)
        assert not client.closed
        world.run(0.2)
        assert (codes(client), client.closed) == ([400], True)


class TestTurns:
    def test_answers_come_in_the_order_of_requests(self, world: World, connect: Connect) -> None:
        """Also when the first takes its time and the ways alternate."""
        slow, client = Slow(world), connect()
        client.say(post("/deliver", b"first") + post("/nowhere") + post("/deliver?2", b"second") + post("/send", b"{"))
        assert codes(client) == []
        slow.waiting[0].callback(b"a while")
        world.settle()
        assert codes(client) == [200, 404]
        slow.waiting[1].callback(b"another")
        world.settle()
        assert codes(client) == [200, 404, 200, 400]
        assert [body for _, _, body in client.answers][0::2] == [b"first after a while", b"second after another"]

    def test_those_that_came_at_once_take_turns(
        self, world: World, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of two who ask, the one that asked for much does not hold up the other."""
        order: list[str] = []

        async def deliver(body: bytes, network: str = "") -> bytes:
            order.append(body.decode())
            return b""

        world.users["Bobby"].receiving.deliver = deliver  # type: ignore[method-assign]
        much, little = connect(), connect()
        with monkeypatch.context() as patched:  # what both say is there before anything of it is carried
            patched.setattr(world, "settle", lambda: None)
            much.say(post("/deliver", b"much") * 10)
        little.say(post("/deliver", b"little"))
        assert (order.count("much"), order.count("little")) == (10, 1)
        assert order.index("little") <= 1


class TestWhoGoes:
    def test_whoever_hangs_up_is_not_waited_for(self, world: World, connect: Connect) -> None:
        """What is under way for them is cancelled; what was accepted goes on."""
        slow, client = Slow(world), connect()
        client.say(post("/deliver", b"x"))
        client.hang_up()
        assert slow.cancelled == 1
        world.send("Bobby", "UserX", "known")
        world.cut("Bobby", "UserX")
        client = connect()
        client.say(post("/send", message("goes on", wait=60)))
        world.run(1)
        client.hang_up()
        world.run(1)
        assert not world.users["Bobby"].sending._followers
        world.heal()
        world.run(60)
        assert world.inbox("UserX") == ["known", "goes on"]

    def test_a_bug(self, world: World, connect: Connect, nothing_logged_as_failure: list[LogEvent]) -> None:
        """Is answered, and told in the log; before the handler has waited, and after."""
        slow, client = Slow(world), connect()
        client.say(post("/deliver", b"x"))
        slow.waiting[0].errback(RuntimeError("after a while"))

        async def deliver(body: bytes, network: str = "") -> bytes:
            raise RuntimeError("at once")

        world.users["Bobby"].receiving.deliver = deliver  # type: ignore[method-assign]
        world.settle()
        client.say(post("/deliver", b"x"))
        assert codes(client) == [500, 500]
        assert json.loads(client.answers[0][2])["detail"] == "the node's log says more"
        assert [str(event["log_failure"].value) for event in nothing_logged_as_failure] == ["after a while", "at once"]
        nothing_logged_as_failure.clear()

    def test_a_bug_when_nobody_is_there(
        self, world: World, connect: Connect, nothing_logged_as_failure: list[LogEvent]
    ) -> None:
        """Is told in the log."""
        client = connect()

        async def deliver(body: bytes, network: str = "") -> bytes:
            try:
                return await Deferred()
            except CancelledError:
                raise RuntimeError("on the way out") from None

        world.users["Bobby"].receiving.deliver = deliver  # type: ignore[method-assign]
        client.say(post("/deliver", b"x"))
        client.hang_up()
        (event,) = nothing_logged_as_failure
        assert str((event.get("log_failure") or event["failure"]).value) == "on the way out"
        nothing_logged_as_failure.clear()
