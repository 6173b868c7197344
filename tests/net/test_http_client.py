"""The client under deliveries: against a real server on a real connection, plain and TLS, and on a fake clock."""

from pathlib import Path

import pytest
import trustme
from twisted.internet.defer import CancelledError, Deferred, DeferredList

from meshproto.core.reach import FAR, Kind
from meshproto.errors import NoAnswer, PeerError, Unreachable
from meshproto.net.courier import peers
from meshproto.net.http_answer import HEAD_BYTES_MAX, Answer
from meshproto.net.http_client import ANSWER_BYTES_MAX, IDLE_PER_HOST_MAX
from meshproto.net.tls import Trust
from meshproto.net.tls_listening import server_endpoint
from tests.net.peer import Line, Peer, Script, answers
from tests.net.tls_rig import endpoint, write

# Twisted hands pyOpenSSL its own kind of certificate.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

NEAR = FAR | {Kind.LOOPBACK}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nfi\r\n2\r\nne\r\n0\r\nX: y\r\n\r\n"
UNTIL_END = b"HTTP/1.1 200 OK\r\n\r\nfine"
FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class Street:
    """A client, and the peer it posts to."""

    def __init__(self, tls: Path | None) -> None:
        self._tls = tls
        self.peer = Peer(answers(OK))
        self.uri = ""

    async def meet(self, *scripts: Script) -> None:
        from twisted.internet import reactor

        self.client = peers(reactor, Trust.read(self._tls))
        self.peer = Peer(*scripts)
        listening = None
        if self._tls is not None:
            listening = server_endpoint(reactor, endpoint(self._tls.with_name("server.pem")))
        port = await self.peer.listen(listening)
        self.uri = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}/deliver"

    def post(self, body: bytes = b"batch") -> "Deferred[Answer]":
        return self.client.post(self.uri, body, NEAR)

    async def text(self, body: bytes = b"batch") -> bytes:
        return (await self.post(body)).body

    async def leave(self) -> None:
        await self.client.close()
        await self.peer.close()


@pytest.fixture(params=["plain", "tls"])
def street(request: pytest.FixtureRequest, authority: trustme.CA, tmp_path: Path) -> Street:
    if request.param == "plain":
        return Street(None)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    write(authority.issue_cert("127.0.0.1"), tmp_path / "server.pem")
    return Street(tmp_path / "ca.pem")


def in_pieces(text: bytes, size: int = 1) -> Script:
    async def script(line: Line) -> None:
        while True:
            await line.request()
            for at in range(0, len(text), size):
                line.say(text[at : at + size])
                await line.turn()

    return script


def then_close(text: bytes, how: str = "close") -> Script:
    """Says this to a request, and closes."""

    async def script(line: Line) -> None:
        await line.request()
        line.say(text)
        await line.turn()
        getattr(line, how)()

    return script


# -- answers ------------------------------------------------------------------------------------------------------


async def test_one_connection_for_many_requests(street: Street) -> None:
    """And each is what a peer's server wants to see."""
    await street.meet(answers(OK, CHUNKS))
    for number in range(10):
        assert await street.text(b"%d" % number) == b"fine"
    await street.leave()
    assert len(street.peer.lines) == 1
    authority = street.uri.split("/")[2].encode()
    assert street.peer.requests == [
        b"POST /deliver HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nAccept-Encoding: identity\r\n"
        b"Content-Length: 1\r\n\r\n%d" % (authority, number)
        for number in range(10)
    ]


@pytest.mark.parametrize(
    "text", [OK, CHUNKS, b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK], ids=["length", "chunks", "103"]
)
@pytest.mark.parametrize("size", [1, 7])
async def test_answers_in_pieces(street: Street, text: bytes, size: int) -> None:
    await street.meet(in_pieces(text, size))
    assert [await street.text() for _ in range(2)] == [b"fine"] * 2
    await street.leave()
    assert len(street.peer.lines) == 1


@pytest.mark.parametrize("size", [0, 1, 64 * 1024 - 1, 64 * 1024, 4 * 1024 * 1024])
async def test_bodies_of_any_size_go_and_come(street: Street, size: int) -> None:
    """What the socket does not take at once is sent as it can; what comes back may be as long as a receipt is."""
    sent = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    heard: list[bytes] = []

    async def script(line: Line) -> None:
        for _ in range(2):
            heard.append(await line.request())
            line.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % ANSWER_BYTES_MAX + bytes(ANSWER_BYTES_MAX))
        await line.over

    await street.meet(script)
    for _ in range(2):
        assert await street.text(sent) == bytes(ANSWER_BYTES_MAX)
    await street.leave()
    assert heard == [sent, sent] and len(street.peer.lines) == 1


async def test_many_at_a_time(street: Street) -> None:
    """Each has a connection of its own; afterwards so many are kept as one host may have."""
    await street.meet(answers(OK))
    many = 3 * IDLE_PER_HOST_MAX
    assert await together(street, many) == [b"fine"] * many
    left = many
    for line in street.peer.lines[:]:
        await line.over
        left -= 1
        if left == IDLE_PER_HOST_MAX:
            break
    assert await together(street, IDLE_PER_HOST_MAX) == [b"fine"] * IDLE_PER_HOST_MAX
    await street.leave()
    assert len(street.peer.lines) == many


async def together(street: Street, many: int) -> list[bytes]:
    posted = await DeferredList([street.post() for _ in range(many)], fireOnOneErrback=True)
    return [answer.body for _, answer in posted]


async def test_whatever_its_status(street: Street) -> None:
    """The answer is told as it is, redirects too; the connection is used on."""
    texts = [b"HTTP/1.1 %d So\r\nLocation: /x\r\nContent-Length: 1\r\n\r\nx" % code for code in (200, 307, 404, 503)]
    await street.meet(answers(*texts, b"HTTP/1.1 204 So\r\n\r\n"))
    assert [(await street.post()).status for _ in range(6)] == [200, 307, 404, 503, 204, 204]
    await street.leave()
    assert len(street.peer.lines) == 1


# -- when a connection ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [OK.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), OK.replace(b"1.1", b"1.0"), OK + b"\r\n"],
    ids=["close", "1.0", "more"],
)
async def test_the_last_answer_of_a_connection(street: Street, text: bytes) -> None:
    """It is we who close, and the next request has a connection of its own."""
    await street.meet(answers(text))
    for number in range(3):
        assert await street.text() == b"fine"
        await street.peer.lines[number].over
    await street.leave()
    assert len(street.peer.lines) == 3


async def test_an_answer_that_ends_with_its_connection(street: Street) -> None:
    await street.meet(then_close(UNTIL_END))
    assert [await street.text() for _ in range(2)] == [b"fine"] * 2
    await street.leave()


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("said", [b"", OK[:1], OK[:20], OK[:-1], CHUNKS[:-30], CHUNKS[:-1], b"HTTP/1.1 100 \r\n\r\n"])
async def test_a_new_connection_that_is_closed(street: Street, said: bytes, how: str) -> None:
    """Wherever in an answer: there is none, and nothing is sent again, for it may have arrived."""
    await street.meet(then_close(said, how))
    with pytest.raises(NoAnswer) as raised:
        await street.post()
    await street.leave()
    assert "closed" in raised.value.detail or "lost" in raised.value.detail
    assert len(street.peer.requests) == 1


def after_one(script: Script) -> Script:
    """Answers one request before it."""

    async def both(line: Line) -> None:
        await line.request()
        line.say(OK)
        await script(line)

    return both


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_connection_that_was_closed_meanwhile(street: Street, how: str) -> None:
    """Is not used any more."""
    await street.meet(answers(OK))
    assert await street.text() == b"fine"
    getattr(street.peer.lines[0], how)()
    await street.peer.lines[0].over
    for _ in range(2):
        assert await street.text() == b"fine"
    await street.leave()
    assert [len(street.peer.lines), len(street.peer.requests)] == [2, 3]


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_connection_that_turns_out_to_be_closed(street: Street, how: str) -> None:
    """The peer closed it while the request was on its way: it is sent once more, over a new one."""
    await street.meet(after_one(then_close(b"", how)), answers(OK))
    assert await street.text(b"first") == b"fine"
    assert await street.text(b"second") == b"fine"
    await street.leave()
    assert [request[-6:] for request in street.peer.requests] == [b"\nfirst", b"second", b"second"]


async def test_no_more_than_once(street: Street) -> None:
    """A peer that goes on closing gets no more."""
    await street.meet(after_one(then_close(b"")), then_close(b""))
    assert await street.text(b"first") == b"fine"
    with pytest.raises(NoAnswer):
        await street.text(b"second")
    await street.leave()
    assert len(street.peer.requests) == 3


@pytest.mark.parametrize("said", [b"H", OK[:-1]])
async def test_an_answer_that_was_begun_is_not_asked_for_again(street: Street, said: bytes) -> None:
    """It was no closed connection then."""
    await street.meet(after_one(then_close(said)))
    assert await street.text() == b"fine"
    with pytest.raises(NoAnswer):
        await street.text()
    await street.leave()
    assert len(street.peer.requests) == 2


async def test_what_was_sent_may_have_arrived_though_nobody_is_there_now(street: Street) -> None:
    """The peer closed, and listens no more: whether it has the first is not known, so that this is no Unreachable."""

    async def dies(line: Line) -> None:
        await line.request()
        await street.peer.stop()
        line.close()

    await street.meet(after_one(dies))
    assert await street.text() == b"fine"
    with pytest.raises(NoAnswer):
        await street.text()
    await street.leave()


# -- answers that are not taken -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00",
        b"SSH-2.0-x\r\n",
        b"\r\n" + OK,
        OK.replace(b"4", b"-4"),
        CHUNKS.replace(b"2", b"z"),
        UNTIL_END.replace(b"200", b"101"),
    ],
)
async def test_garbage(street: Street, garbage: bytes) -> None:
    """Is no answer, and the end of the connection; also where the one before it was good."""
    await street.meet(answers(garbage), answers(OK, garbage))
    for good in (0, 1):
        for _ in range(good):
            await street.text()
        with pytest.raises(NoAnswer):
            await street.post()
        await street.peer.lines[good].over
    await street.leave()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * HEAD_BYTES_MAX, "the head of the peer's answer is longer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (ANSWER_BYTES_MAX + 1), "the peer's answer is longer"),
        (UNTIL_END + bytes(ANSWER_BYTES_MAX), "the peer's answer is longer"),
        (CHUNKS[:47] + b"400\r\n%b\r\n" % bytes(1024) * 600, "the peer's answer is longer"),
        (b"HTTP/1.1 103 Early\r\n\r\n" * 50_000, "the peer's answer is longer"),
        (OK.replace(b"\r\n", b"\r\nContent-Encoding: gzip\r\n", 1), "the peer's answer is encoded (gzip)"),
    ],
    ids=["head", "length", "until the end", "chunks", "interim", "gzip"],
)
async def test_answers_that_are_not_taken(street: Street, text: bytes, says: str) -> None:
    """Ends the connection at once; it is the peer who has to notice."""
    await street.meet(answers(text))
    with pytest.raises(PeerError) as raised:
        await street.post()
    assert raised.value.detail.startswith(says)
    await street.peer.lines[0].over
    await street.leave()
    assert len(street.peer.requests) == 1


@pytest.mark.parametrize("first", [OK, CHUNKS, b"HTTP/1.1 204 So\r\n\r\n"], ids=["length", "chunks", "none"])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_second_answer_is_the_answer_to_nothing(street: Street, first: bytes, at_once: bool) -> None:
    """A peer, or a proxy that mixes up two clients, answers before it is asked: that closes the connection, and the
    next request gets the answer to itself."""

    async def smuggles(line: Line) -> None:
        await line.request()
        if at_once:
            line.say(first + FORGED)
        else:
            line.say(first)
            await line.turn()
            line.say(FORGED)
        await line.over

    await street.meet(smuggles, answers(OK))
    assert await street.text() == (b"" if b"204" in first else b"fine")
    await street.peer.lines[0].over
    assert await street.text() == b"fine"
    await street.leave()
    assert len(street.peer.lines) == 2


async def test_an_early_answer(street: Street) -> None:
    """A peer that says no before it has read the whole request is heard."""

    async def refuses(line: Line) -> None:
        await line.begun()
        line.transport.pauseProducing()
        line.say(b"HTTP/1.1 413 Too large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await line.turn()
        line.transport.resumeProducing()
        await line.over

    await street.meet(refuses, answers(OK))
    assert (await street.post(bytes(16 * 1024 * 1024))).status == 413
    await street.peer.lines[0].over
    assert await street.text() == b"fine"
    await street.leave()


@pytest.mark.parametrize("street", ["plain"], indirect=True)
async def test_an_early_answer_is_the_last(street: Street) -> None:
    """Also when the peer does not say so: what is left of the request would stand before the next one."""

    async def refuses(line: Line) -> None:
        await line.begun()
        line.transport.pauseProducing()
        line.say(OK)
        await asked_again
        line.transport.resumeProducing()
        await line.over

    asked_again: Deferred[None] = Deferred()
    await street.meet(refuses, answers(OK))
    assert await street.text(bytes(16 * 1024 * 1024)) == b"fine"
    assert await street.text() == b"fine"
    asked_again.callback(None)
    await street.leave()
    assert len(street.peer.lines) == 2


# -- who does not wait --------------------------------------------------------------------------------------------


async def test_cancelling_closes(street: Street) -> None:
    """Before anything has come, and in the middle of an answer."""

    async def waits(line: Line) -> None:
        await line.request()
        line.say(b"" if len(street.peer.lines) == 1 else OK[:-1])
        asked.pop().callback(None)
        await line.over

    asked: list[Deferred[None]] = []
    await street.meet(waits)
    for number in range(2):
        there: Deferred[None] = Deferred()
        asked.append(there)
        pending = street.post()
        await there
        pending.cancel()
        with pytest.raises(CancelledError):
            await pending
        await street.peer.lines[number].over
    await street.leave()


async def test_cancelling_what_is_being_connected(street: Street) -> None:
    """Leaves no connection behind."""
    await street.meet(answers(OK))
    pending = street.post()
    pending.cancel()
    with pytest.raises(CancelledError):
        await pending
    assert await street.text() == b"fine"
    await street.leave()
    assert len(street.peer.requests) == 1


@pytest.mark.parametrize("said", [b"", OK[:-1]])
async def test_a_client_that_is_closed(street: Street, said: bytes) -> None:
    """Has no connections left, and makes none; who waits is told."""

    async def waits(line: Line) -> None:
        if await line.request() == b"idle":
            line.say(OK)
        else:
            line.say(said)
            asked.callback(None)
        await line.over

    asked: Deferred[None] = Deferred()
    await street.meet(waits)
    idle, pending = street.text(b"idle"), street.post()
    assert await idle == b"fine"
    await asked
    await street.leave()
    with pytest.raises(CancelledError):
        await pending
    with pytest.raises(Unreachable, match="shutting down"):
        await street.post()


# -- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "http://",
        "ftp://localhost/",
        "localhost:3000/deliver",
        "http://localhost/a b",
        "http://localhost/\r\nX: y",
        "http://lo\xe4alhost/",
    ],
)
async def test_what_is_no_address(uri: str) -> None:
    """Is not connected to, and nothing of it gets into a request."""
    from twisted.internet import reactor

    client = peers(reactor, Trust())
    with pytest.raises(Unreachable, match="it cannot be posted to"):
        await client.post(uri, b"", NEAR)
    await client.close()


async def test_nobody_listens(street: Street) -> None:
    """Nothing was sent, which is known."""
    await street.meet(answers(OK))
    await street.peer.stop()
    with pytest.raises(Unreachable) as raised:
        await street.post()
    assert type(raised.value) is Unreachable and "refused" in raised.value.detail
    await street.leave()
