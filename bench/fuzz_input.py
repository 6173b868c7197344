"""What :mod:`bench.fuzz` throws at nodes: lines and bodies that are right, nearly right, and nothing of the kind.

All of it comes from one random generator, so that a number names a whole run. The names, ids and seeds in it are few:
what a node rightly keeps of it is bounded, so that growth means a leak.
"""

import json
import random
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
from nacl.public import Box, PublicKey

from meshproto import wire
from meshproto.core.envelope import Sealed
from meshproto.core.identity import Identity, Record, b64
from meshproto.wire import SignedRecord, encode_value

USERS: Final = 20
"""Who register, and seal batches."""
IDS: Final = 500
SENDER: Final = "the key of the sender"
RECIPIENT: Final = "the key of the recipient"
"""What stands in a batch until it is known who sends it to whom."""
SEEDS: Final = [f"fuzz{number}" for number in range(8)]
LONG: Final = 70_000
"""More than a line may have."""
PRETENDED: Final = 0.02
"""Of all lines: what is no line protocol at all, and ends the connection."""

NASTY: Final[list[Any]] = [
    None,
    True,
    -1,
    0,
    2**53 + 1,
    2**64,
    -(2**80),
    1e308,
    0.1,
    "",
    "\x00",
    "\ud800",
    "é" * 100,
    "x" * 5000,
    "../../etc/passwd",
    "http://169.254.169.254/",
    "a~" + "a" * 16,
    [],
    {},
    [[[[[[]]]]]],
    {"": {"": {}}},
    ["a"] * 600,
    {f"k{number}": number for number in range(100)},
]
NASTY_TEXT: Final = [
    b"1e999",
    b"-1e999",
    b"9" * 5000,
    b"-0",
    b"NaN",
    b"Infinity",
    b"[" * 20_000,
    b'{"a":' * 5000,
    b'"\\ud800"',
    b'"\xff\xfe"',
    b"0x10",
    b"01",
    b"'a'",
    b"\x00",
    b"\xef\xbb\xbf{}",
]
PRETENDERS: Final = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r",
    b"POST /deliver HTTP/1.1\r\nContent-Length: 5\r\n\r",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(60, 120)),
    b"x" * LONG,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r",
    b"EHLO mail.example.org\r",
]


class User(NamedTuple):
    identity: Identity
    name: str


def users(rng: random.Random) -> list[User]:
    """Each with a name of its own."""
    return [User(Identity.create(rng.randbytes, 1), f"Fuzz{number}") for number in range(USERS)]


def mutated(text: bytes, rng: random.Random) -> bytes:
    """A text with a few bytes changed, lost, doubled or put in."""
    changed = bytearray(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at : at + rng.choice((1, 2, 10, 100))]
            case 2:
                changed[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
            case 3:
                changed[at:at] = changed[at : at + rng.choice((1, 10, 100))]
            case 4:
                changed[at:at] = rng.choice(NASTY_TEXT)
            case _:
                changed[at:at] = rng.choice((b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b" "))
    return bytes(changed)


def twisted(value: Any, rng: random.Random) -> Any:
    """A JSON value with one of its parts replaced, left out or put in."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        match rng.randrange(4):
            case 0:
                return {name: inner for name, inner in value.items() if name != key}
            case 1:
                return {**value, rng.choice(("id", "more", "", "__proto__")): rng.choice(NASTY)}
            case _:
                return {**value, key: twisted(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], twisted(value[at], rng), *value[at + 1 :]]
    return rng.choice(NASTY)


def _text(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode("ascii")


def addressed(inside: bytes, sender: str, recipient: str) -> bytes:
    """What goes into a box, with the identity keys of both."""
    return inside.replace(SENDER.encode(), sender.encode()).replace(RECIPIENT.encode(), recipient.encode())


class Lines:
    """Endless lines, each without its newline. A node that takes them all knows :data:`USERS` users afterwards."""

    def __init__(self, rng: random.Random, people: list[User]) -> None:
        self._rng = rng
        self._people = people
        self._seq = 1
        self._makers: list[Callable[[], tuple[str, Any]]] = [
            self._hello,
            self._register,
            self._unregister,
            self._name("lookup"),
            self._name("lookup"),
            self._names("watch"),
            self._names("unwatch"),
            lambda: ("names", {"prefix": "", "after": "", "limit": rng.choice((0, 1, 500, 501))}),
            lambda: (rng.choice(("seeds", "ping", "status")), {}),
            self._gossip,
            self._gossip,
        ]

    def next(self) -> bytes:
        rng = self._rng
        if rng.random() < PRETENDED:
            return rng.choice(PRETENDERS)
        if rng.random() < 0.05:
            return rng.randbytes(rng.choice((1, 10, 100))).replace(b"\n", b" ")
        method, params = rng.choice(self._makers)()
        request = {"jsonrpc": "2.0", "id": rng.choice((1, -5, "a", "x" * 128)), "method": method, "params": params}
        if rng.random() < 0.1:
            del request["id"]
        match rng.randrange(5):
            case 0:
                return _text(request)
            case 1 | 2:
                return _text(twisted(request, rng)).replace(b"\n", b" ")
            case 3:
                return mutated(_text(request), rng).replace(b"\n", b" ")
            case _:
                return _text(self._damaged(request)).replace(b"\n", b" ")

    def _damaged(self, request: dict[str, Any]) -> dict[str, Any]:
        """The envelope right, the parameters not."""
        return {**request, "params": twisted(request["params"], self._rng)}

    def _hello(self) -> tuple[str, Any]:
        role, name = self._rng.choice(("seed", "user")), self._rng.choice(SEEDS)
        nonce = b64(self._rng.randbytes(wire.NONCE_BYTES))
        return "hello", {"version": 1, "role": role, "name": name, "nonce": nonce, "proof": nonce}

    def _signed(self, uris: list[str]) -> SignedRecord:
        self._seq += 1
        person = self._rng.choice(self._people)
        signed = person.identity.sign(person.name, uris, self._seq)
        if self._rng.random() < 0.3:
            return SignedRecord(mutated(signed.record.encode(), self._rng).decode("utf-8", "replace"), signed.sig)
        return signed

    def _register(self) -> tuple[str, Any]:
        uri = self._rng.choice(("http://127.0.0.1:3000", "http://192.0.2.7:3000", "https://[2001:db8::7]", "ftp://x"))
        return "register", msgspec.to_builtins(self._signed([uri]))

    def _unregister(self) -> tuple[str, Any]:
        return "unregister", msgspec.to_builtins(self._signed([]))

    def _name(self, method: str) -> Callable[[], tuple[str, Any]]:
        return lambda: (method, {"name": self._rng.choice(self._people).name})

    def _names(self, method: str) -> Callable[[], tuple[str, Any]]:
        return lambda: (method, {"names": [person.name for person in self._people]})

    def _gossip(self) -> tuple[str, Any]:
        rng, seed = self._rng, self._rng.choice(SEEDS)
        signed = self._signed(["http://127.0.0.1:3000"])
        entry = {"record": signed.record, "sig": signed.sig, "since": rng.randrange(2**41), "online": True, "seen": 5}
        generation, version = rng.choice((1, 10**12, 10**13 - 1)), rng.randrange(1, 100)
        facts = {"address": "127.0.0.1:1", "gone": {seed: generation}}
        cells = [
            ["@", version, facts],
            [f"fuzz{rng.randrange(USERS)}", version + 1, entry],
            ["gone", version + 2, None],
        ]
        upto = version + rng.randrange(4)
        delta = [seed, generation, rng.choice((0, version)), upto, upto + rng.randrange(2), 0, cells]
        return "gossip", {"digest": {seed: [generation, rng.randrange(100), upto, 0]}, "delta": [delta]}


class Bodies:
    """Endless bodies of `POST /deliver` for the node that has this record."""

    def __init__(self, rng: random.Random, people: list[User], recipient: Record) -> None:
        self._rng = rng
        self._people = people
        self._recipient = recipient
        self._before: list[bytes] = [b"{}"]

    def next(self) -> bytes:
        body = self._make()
        if self._rng.random() < 0.01:
            self._before = [*self._before[-20:], body]
        return body

    def _make(self) -> bytes:
        rng = self._rng
        match rng.randrange(8):
            case 0:
                return rng.choice(
                    (b"", b"{}", b"[]", rng.randbytes(200), rng.choice(NASTY_TEXT), b"\x1f\x8b" + rng.randbytes(50))
                )
            case 1:
                return rng.choice(self._before)
            case 2:
                return mutated(self._sealed(self.inside()), rng)
            case 3:
                return _text(twisted(json.loads(self._sealed(self.inside())), rng))
            case 4:
                return self._sealed(mutated(self.inside(), rng))
            case 5 | 6:
                return self._sealed(_text(twisted(self._batch(), rng)))
            case _:
                return self._sealed(self.inside())

    def _batch(self) -> dict[str, Any]:
        rng = self._rng
        letters: list[Any] = [
            {"id": f"id{rng.randrange(IDS)}", "message": rng.choice(("x", 1, {})), "sent_at": 5, "type": ""}
            for _ in range(rng.choice((1, 1, 2, 20)))
        ]
        return {"token": b64(rng.randbytes(16)), "sender": SENDER, "recipient": RECIPIENT, "letters": letters}

    def inside(self) -> bytes:
        """A batch, half of the times with a message that is none."""
        text = _text(self._batch())
        if self._rng.random() < 0.5:
            return text
        return text.replace(b'"message": ', b'"message": ' + self._rng.choice(NASTY_TEXT), 1)

    def _sealed(self, inside: bytes) -> bytes:
        rng = self._rng
        sender = rng.choice(self._people)
        own = sender.identity.sign(
            sender.name, ["http://127.0.0.1:9"], rng.choice((2, 2, 2, 1))
        )  # an older one is refused
        if rng.random() < 0.05:
            own = rng.choice(self._people).identity.sign(sender.name, ["http://127.0.0.1:9"], 7)
        box = Box(sender.identity.mail, PublicKey(self._recipient.mail_bytes))
        sealed = box.encrypt(addressed(inside, b64(sender.identity.key), self._recipient.key), rng.randbytes(24))
        return encode_value(Sealed(own, self._recipient.mail, b64(sealed)))
