"""The owner's door: who is let in, request by request, and that the token is told to nobody."""

import itertools
from collections.abc import Sequence
from typing import cast

import pytest
from twisted.web.iweb import IRequest
from twisted.web.test.requesthelper import DummyRequest

from meshproto.core.identity import Identity, KeyFile, MailKey, b64
from meshproto.errors import Forbidden, MeshError, Unauthorized
from meshproto.net.door import Door
from tests.net.raw_http import RawHTTP
from tests.world import World

TOKEN = "f00d" * 12
OPEN = Door(None, ["localhost"])
LOCKED = Door(TOKEN, ["localhost", "node.example"])

Given = Sequence[tuple[bytes, bytes]]

HOSTS: list[tuple[Given, bool]] = [
    ([(b"Host", b"localhost")], True),
    ([(b"Host", b"localhost:3000")], True),
    ([(b"Host", b"LocalHost:3000")], True),
    ([(b"Host", b"localhost.")], True),  # the same name, written in full
    ([(b"Host", b"localhost.:3000")], True),
    ([(b"Host", b"127.0.0.1")], True),
    ([(b"Host", b"127.0.0.1:3000")], True),
    ([(b"Host", b"192.0.2.7:3000")], True),
    ([(b"Host", b"[::1]")], True),
    ([(b"Host", b"[::1]:3000")], True),
    ([(b"Host", b"[2001:DB8::7]:3000")], True),
    ([], False),
    ([(b"Host", b"")], False),
    ([(b"Host", b":3000")], False),
    ([(b"Host", b".")], False),
    ([(b"Host", b"localhost"), (b"Host", b"localhost")], False),
    ([(b"Host", b"localhost"), (b"Host", b"evil.example")], False),
    ([(b"Host", b"evil.example"), (b"Host", b"localhost")], False),
    ([(b"Host", b"evil.example")], False),
    ([(b"Host", b"evil.example:3000")], False),
    ([(b"Host", b"localhost.evil.example")], False),
    ([(b"Host", b"127.0.0.1.evil.example")], False),
    ([(b"Host", b"localhost..")], False),
    ([(b"Host", b"localhost:evil.example")], False),
    ([(b"Host", b"localhost@evil.example")], False),
    ([(b"Host", b"evil.example@localhost")], False),
    ([(b"Host", b"localhost, evil.example")], False),
    ([(b"Host", b"::1")], False),
    ([(b"Host", b"[::1")], False),
    ([(b"Host", b"[127.0.0.1]")], False),
    ([(b"Host", b"127.1")], False),
    ([(b"Host", b"2130706433")], False),
    ([(b"Host", b"0x7f.0.0.1")], False),
    ([(b"Host", b"localhost\xff")], False),
    ([(b"Host", b"localhost:\xb2")], False),
]

ORIGINS: list[tuple[Given, bool]] = [
    ([], True),
    ([(b"Origin", b"http://localhost:3000")], True),
    ([(b"Origin", b"https://localhost:3000")], True),
    ([(b"Origin", b"HTTP://LOCALHOST:3000")], True),
    ([(b"Origin", b"")], False),
    ([(b"Origin", b"null")], False),
    ([(b"Origin", b"localhost:3000")], False),
    ([(b"Origin", b"http://localhost")], False),
    ([(b"Origin", b"http://localhost:3001")], False),
    ([(b"Origin", b"http://127.0.0.1:3000")], False),
    ([(b"Origin", b"http://localhost:3000/")], False),
    ([(b"Origin", b"http://localhost:3000.evil.example")], False),
    ([(b"Origin", b"http://evil.example")], False),
    ([(b"Origin", b"file://")], False),
    ([(b"Origin", b"http://evil.example"), (b"Origin", b"http://localhost:3000")], False),
]

SITES: list[tuple[Given, bool]] = [
    ([], True),
    ([(b"Sec-Fetch-Site", b"same-origin")], True),
    ([(b"Sec-Fetch-Site", b"none")], True),
    ([(b"Sec-Fetch-Site", b"same-site")], False),
    ([(b"Sec-Fetch-Site", b"cross-site")], False),
    ([(b"Sec-Fetch-Site", b"")], False),
    ([(b"Sec-Fetch-Site", b"anything-else")], False),
    ([(b"Sec-Fetch-Site", b"cross-site"), (b"Sec-Fetch-Site", b"none")], False),
]

FORWARDED: list[tuple[Given, bool]] = [
    ([], True),
    ([(b"Forwarded", b"for=192.0.2.1")], False),
    ([(b"X-Forwarded-For", b"192.0.2.1")], False),
    ([(b"X-Forwarded-For", b"")], False),
    ([(b"x-forwarded-host", b"localhost")], False),
    ([(b"X-Forwarded-Proto", b"https")], False),
    ([(b"X-Forwarded-Anything", b"else")], False),
    ([(b"X-Real-IP", b"192.0.2.1")], False),
]

TOKENS: list[tuple[Given, bool]] = [
    ([(b"Authorization", b"Bearer " + TOKEN.encode())], True),
    ([(b"Authorization", b"bearer  " + TOKEN.encode() + b" ")], True),
    ([], False),
    ([(b"Authorization", b"")], False),
    ([(b"Authorization", b"Bearer")], False),
    ([(b"Authorization", b"Bearer ")], False),
    ([(b"Authorization", TOKEN.encode())], False),
    ([(b"Authorization", b"Basic " + TOKEN.encode())], False),
    ([(b"Authorization", b"Bearer " + TOKEN.encode()[:-1])], False),
    ([(b"Authorization", b"Bearer " + TOKEN.encode() + b"0")], False),
    ([(b"Authorization", b"Bearer " + TOKEN.upper().encode())], False),
    ([(b"Authorization", b"Bearer \xff\xfe")], False),
]

HOST: Given = [(b"Host", b"localhost:3000")]


def request(*headers: tuple[bytes, bytes]) -> IRequest:
    made = DummyRequest([b"inbox"])
    for name, value in headers:
        made.requestHeaders.addRawHeader(name, value)
    return cast(IRequest, made)


def refusal(door: Door, *headers: tuple[bytes, bytes]) -> type[MeshError] | None:
    try:
        door.check(request(*headers))
    except MeshError as error:
        return type(error)
    return None


@pytest.mark.parametrize(("host", "enters"), HOSTS)
def test_only_the_names_of_the_node_and_addresses_are_answered_to(host: Given, enters: bool) -> None:
    """A name that somebody has pointed at this machine (DNS rebinding) opens no door, however it is written."""
    assert refusal(OPEN, *host) == (None if enters else Forbidden)


def test_the_advertised_name_is_the_nodes_own() -> None:
    """A node with a token goes by the name it advertises too; one without does not."""
    token = (b"Authorization", b"Bearer " + TOKEN.encode())
    assert refusal(LOCKED, (b"Host", b"Node.Example:443"), token) is None
    assert refusal(OPEN, (b"Host", b"node.example:443")) is Forbidden


def test_every_combination_is_let_in_only_when_each_part_is() -> None:
    """All of Host, Origin, Sec-Fetch-Site, forwarded headers and token, each with each: one that is wrong is enough to
    be refused. A proxy may stand in front of a node with a token, and of no other."""
    hosts = [(given, fits and given == HOST) for given, fits in HOSTS if given == HOST or not fits]
    for host, origin, site, forwarded in itertools.product(hosts, ORIGINS, SITES, FORWARDED):
        headers = [*host[0], *origin[0], *site[0], *forwarded[0]]
        from_here = host[1] and origin[1] and site[1]
        assert refusal(OPEN, *headers) == (None if from_here and forwarded[1] else Forbidden), headers
        right, wrong = TOKENS[0][0], TOKENS[2][0]
        assert refusal(LOCKED, *headers, *right) == (None if from_here else Forbidden), headers
        assert refusal(LOCKED, *headers, *wrong) == (Unauthorized if from_here else Forbidden), headers


@pytest.mark.parametrize(("token", "enters"), TOKENS)
def test_the_token_opens_and_nothing_like_it(token: Given, enters: bool) -> None:
    """The whole token, as Bearer, and nothing else."""
    assert refusal(LOCKED, *HOST, *token) == (None if enters else Unauthorized)


def test_two_tokens_are_none() -> None:
    """Of two headers neither is believed."""
    right = (b"Authorization", b"Bearer " + TOKEN.encode())
    assert refusal(LOCKED, *HOST, right, (b"Authorization", b"Bearer wrong")) is Forbidden
    assert refusal(LOCKED, *HOST, (b"Authorization", b"Bearer wrong"), right) is Forbidden


def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long the refusal takes says nothing about how much of a guess was right."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, right: bytes) -> bool:
        compared.append((given, right))
        return True

    monkeypatch.setattr("meshproto.net.door.hmac.compare_digest", compare)
    assert refusal(LOCKED, *HOST, (b"Authorization", b"Bearer guess")) is None
    assert compared == [(b"guess", TOKEN.encode())]


def test_nobody_is_shown_a_secret() -> None:
    """Neither the door nor keys show what is secret when they come into a log or an error's text; a refusal does not
    repeat what was given."""
    identity = Identity.create(lambda length: b"\x5a" * length, 0)
    file = KeyFile(b64(bytes(identity.signing)), [MailKey(b64(bytes(identity.mail)), 0)])
    secrets = [b64(b"\x5a" * 32), (b"\x5a" * 32).hex(), repr(b"\x5a" * 8)[2:-1], TOKEN]
    for holder in (LOCKED, identity, file, file.mail[0]):
        for text in (repr(holder), str(holder), f"{holder}", repr([holder])):
            assert not [secret for secret in secrets if secret in text], type(holder)
    for given in (TOKEN + "0", TOKEN[:-1]):
        with pytest.raises(Unauthorized) as refused:
            LOCKED.check(request(*HOST, (b"Authorization", b"Bearer " + given.encode())))
        assert given not in repr(refused.value) + refused.value.detail


# -- on a listener ------------------------------------------------------------------------------------------------


@pytest.fixture
def world() -> World:
    world = World(11)
    world.add_seed("seedX")
    world.add_user("UserX", seeds=["seedX"])
    world.run_until(world.registered)
    return world


def answer(world: World, text: bytes) -> tuple[int, bytes]:
    """Status and body of what a request is answered, byte for byte as it is given."""
    client = RawHTTP(world, "UserX")
    client.say(text)
    head, _, body = client.heard.partition(b"\r\n\r\n")
    client.hang_up()
    return int(head.split(b" ", 2)[1]), body


@pytest.mark.parametrize(
    ("head", "status", "said"),
    [
        (b"GET /inbox HTTP/1.1\r\n", 403, b"not called ''"),
        (b"GET /inbox HTTP/1.0\r\n", 403, b"not called ''"),
        (b"GET /inbox HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 403, b"one header host"),
        (b"GET /inbox HTTP/1.1\r\nHost: [::1]:3000\r\n", 200, b"messages"),
        (b"GET http://evil.example/inbox HTTP/1.1\r\nHost: localhost\r\n", 404, b"no such route"),
        (b"GET /%ff HTTP/1.1\r\nHost: localhost\r\n", 400, b"the path is UTF-8"),
        (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n", 400, b""),
        (b"GET /inbox?from=%ff HTTP/1.1\r\nHost: localhost\r\n", 400, b"the query does not read"),
        (b"GET /inbox?%ff=1 HTTP/1.1\r\nHost: localhost\r\n", 400, b"the query does not read"),
        (b"GET /inbox HTTP/1.1\r\nHost: \xff\r\n", 400, b"ASCII"),
        (b"GET /inbox HTTP/1.1\r\nHost: localhost\r\nOrigin: \xff\r\n", 403, b"another origin"),
        (b"GET /inbox HTTP/1.1\r\nHost: localhost\r\nAuthorization: \xff\r\n", 200, b"messages"),
        (b"GET /inbox HTTP/1.1\r\nHost: localhost\r\nX-Any: \xff\xfe\r\n", 200, b"messages"),
        (b"GET /healthz HTTP/1.1\r\nHost: a..b\r\n", 400, b"no host and port"),
        (b"GET /healthz HTTP/1.1\r\nHost: " + b"a" * 80 + b"\r\n", 400, b"no host and port"),
        (b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n", 404, b"GET /nowhere: there is no such route here"),
        (b"PATCH /inbox HTTP/1.1\r\nHost: localhost\r\n", 405, b"this route takes GET, HEAD, OPTIONS"),
        (b"GET /deliver HTTP/1.1\r\nHost: localhost\r\n", 405, b"this route takes OPTIONS, POST"),
        (b"\xffET /inbox HTTP/1.1\r\nHost: localhost\r\n", 400, b""),
    ],
)
def test_odd_bytes_are_answered_in_our_words(world: World, head: bytes, status: int, said: bytes) -> None:
    """What is no text, no route or no method is answered with a status and a sentence; the log has nothing of it."""
    code, body = answer(world, head + b"\r\n")
    assert code == status
    assert said in body


def test_head_and_options(world: World) -> None:
    """HEAD is answered as GET without the body, OPTIONS with the methods, and neither lets a page in (no CORS)."""
    code, body = answer(world, b"HEAD /inbox HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert (code, body) == (200, b"")
    assert answer(world, b"HEAD /inbox HTTP/1.1\r\nHost: evil.example\r\n\r\n") == (403, b"")
    client = RawHTTP(world, "UserX")
    client.say(
        b"OPTIONS /send HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n"
        b"Access-Control-Request-Method: POST\r\n\r\n"
    )
    assert client.status == 204
    assert b"Allow: OPTIONS, POST\r\n" in client.heard
    assert b"access-control" not in client.heard.lower()
    client.hang_up()
