"""Lines, bodies and HTTP made up by a fuzzer that watches which code they reach: `python -m
bench.fuzz_guided lines -runs=100000`, or `deliver`, or `http`; what follows goes to libFuzzer.

The nodes are those of the fake world, in this process. :mod:`bench.fuzz` is the same by chance instead of by
coverage, and from outside.
"""

import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import atheris
from nacl.public import Box, PublicKey
from twisted.internet.defer import ensureDeferred
from twisted.internet.error import ConnectionDone
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

with atheris.instrument_imports(include=["meshproto"]):
    from bench.fuzz_input import Bodies, Lines, addressed, users
    from meshproto import wire
    from meshproto.core.envelope import SEALED_BYTES_MAX, Sealed
    from meshproto.core.identity import b64, verify
    from meshproto.errors import MeshError
    from meshproto.net.lines import Lines as Connection
    from tests.net.pipe import Pipe
    from tests.world import World

INTERNAL_ERROR: Final = -32603
FOLLOWED_S: Final = 0.1
"""What an input sets going is followed so far: the disk answers in that time."""
BODY: Final = b"b"
RECORD: Final = b"r"
BATCH: Final = b"s"
"""What the rest of an input for :func:`at_the_node` is."""
EXAMPLES: Final = 300
"""To begin with: without them it would take a fuzzer hours to come upon JSON."""


class Found(Exception):
    """Something that no input may bring about."""


def _world() -> World:
    """A seed, and two users who know each other."""
    world = World(seed=1)
    world.add_seed("seedX")
    for name in ("UserX", "Bobby"):
        world.add_user(name, ["seedX"])
    world.run_until(world.registered)
    for sender, to in (("Bobby", "UserX"), ("UserX", "Bobby")):
        world.send(sender, to, "hello")
    return world


def at_the_seed() -> Callable[[bytes], None]:
    """An input is what one connection says, in two pieces: each request in it gets one answer that reads, or the
    connection ends with a reason."""
    world = _world()

    def one(data: bytes) -> None:
        at = len(data) * data[-1] // 256 if data else 0
        pipe = Pipe()
        handler = world.seeds["seedX"].link("")
        assert handler is not None, "there is room"
        connection = Connection(handler, world.hosts["seedX"])
        connection.makeConnection(pipe)
        for piece in (data[:at], data[at:], b"\n"):
            if not pipe.aborted:
                connection.dataReceived(piece)
        world.run(FOLLOWED_S)
        answers = pipe.take()
        for answer in answers.split(b"\n") if not answers.startswith(b"HTTP/1.1 400") else ():
            if answer:
                _check(answer)
        connection.connectionLost(Failure(ConnectionDone()))

    return one


def _check(line: bytes) -> None:
    answer = wire.decode_answer(line)
    if not isinstance(answer.error, wire.RpcError):
        return
    if answer.error.code == INTERNAL_ERROR or len(line) > wire.LINE_BYTES_MAX:
        raise Found(f"answered {line[:1000]!r}")


def at_the_node() -> Callable[[bytes], None]:
    """An input is a body, or what a contact seals into one, or a record beside such a box: it is taken, or refused as
    the caller's fault."""
    world = _world()
    recipient, sender = world.users["UserX"], world.identities["Bobby"]
    own = world.users["Bobby"].seeds.own_record()
    to = verify(recipient.seeds.own_record())
    rng = random.Random(1)

    def sealed(inside: bytes, record: wire.SignedRecord) -> bytes:
        inside = addressed(inside, b64(sender.key), to.key)
        box = Box(sender.mail, PublicKey(to.mail_bytes)).encrypt(inside, rng.randbytes(24))
        return wire.encode_value(Sealed(record, to.mail, b64(box)))

    def one(data: bytes) -> None:
        kind, text = data[:1], data[1 : 1 + SEALED_BYTES_MAX]
        if kind == BODY:
            body = text
        elif kind == RECORD:
            body = sealed(b"{}", wire.SignedRecord(text.decode("utf-8", "replace"), own.sig))
        else:
            body = sealed(text, own)
        outcome: list[Any] = []
        ensureDeferred(recipient.receiving.deliver(body)).addBoth(outcome.append)
        world.run(FOLLOWED_S)
        if not outcome:
            raise Found("no answer")
        if isinstance(outcome[0], Failure) and not outcome[0].check(MeshError):
            outcome[0].raiseException()

    return one


def at_the_listener() -> Callable[[bytes], None]:
    """An input is what one connection says, in two pieces: it is answered in HTTP, by no error of ours, or the
    connection ends."""
    world = _world()

    def one(data: bytes) -> None:
        at = len(data) * data[-1] // 256 if data else 0
        pipe = Pipe()
        channel = world.users["UserX"].site.buildProtocol(None)
        channel.makeConnection(pipe)
        said = b""
        for piece in (data[:at], data[at:]):
            if not pipe.disconnecting:
                channel.dataReceived(piece)
            world.run(FOLLOWED_S)
            said += pipe.take()
        if not said.startswith(b"HTTP/1.") and (said or pipe.disconnecting):
            raise Found(f"answered {said[:1000]!r}")
        if b"HTTP/1.1 500" in said:
            raise Found(f"an error of ours: {said[:1000]!r}")
        channel.connectionLost(Failure(ConnectionDone()))

    return one


def _asked() -> Iterator[bytes]:
    """Requests of each kind, and several at once."""
    message = b'{"to":"Bobby","message":"x"}'
    head = b"%s %s HTTP/1.1\r\nHost: localhost\r\n"
    length = b"Content-Length: %d\r\n\r\n" % len(message) + message
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\nX: y\r\n\r\n" % (len(message), message)
    for path in (b"/send", b"/deliver", b"/send/Bobby?id=1", b"/nowhere"):
        for body in (length, chunked, b"Expect: 100-continue\r\n" + length, b"Connection: close\r\n" + chunked):
            yield head % (b"POST", path) + body
    for path in (b"/inbox?limit=1", b"/outbox", b"/healthz", b"/openapi.json", b"/%2e", b"*", b"http://localhost/"):
        yield head % (b"GET", path) + b"\r\n" + head % (b"HEAD", path) + b"\r\n"
    yield head % (b"POST", b"/send") + b"Content-Type: application/x-ndjson\r\n" + chunked + head % (b"GET", b"/status")


def examples(target: str) -> Iterator[bytes]:
    """Inputs that reach far already."""
    if target == "http":
        yield from _asked()
        return
    rng = random.Random(1)
    lines = Lines(rng, users(rng))
    recipient = verify(users(rng)[0].identity.sign("UserX", [], 1))
    bodies = Bodies(rng, users(rng), recipient)
    for _ in range(EXAMPLES):
        if target == "lines":
            yield b"\n".join([lines.next() for _ in range(3)])
        else:
            yield rng.choice((BODY + bodies.next(), RECORD + lines.next(), BATCH + bodies.inside()))


TARGETS: Final = {"lines": at_the_seed, "deliver": at_the_node, "http": at_the_listener}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(f"usage: python -m bench.fuzz_guided {'|'.join(TARGETS)} [libFuzzer's options]")
    target = TARGETS[sys.argv[1]]()
    logged: list[LogEvent] = []

    @implementer(ILogObserver)
    def watch(event: LogEvent) -> None:
        if "log_failure" in event:
            logged.append(event)

    def one(data: bytes) -> None:
        target(data)
        if logged:
            raise Found(f"logged: {logged[0]['log_failure'].getTraceback()}")

    globalLogPublisher.addObserver(watch)
    with tempfile.TemporaryDirectory(prefix="mesh-fuzz-") as directory:
        for number, example in enumerate(examples(sys.argv[1])):
            (Path(directory) / str(number)).write_bytes(example)
        atheris.Setup([sys.argv[0], *sys.argv[2:], f"-max_len={wire.LINE_BYTES_MAX}", directory], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
