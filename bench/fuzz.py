"""Millions of lines and bodies that nobody should send, at a real seed and a real user's node: `python -m bench.fuzz`.

Each batch of lines is followed by a request that is right. Its answer tells that everything before it was dealt with;
a connection that was ended instead must have said why. All that comes back has to read as the protocol says, the nodes
have to be alive afterwards, their logs without an error of ours, and their memory as large as before.
"""

import argparse
import http.client
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from socket import AF_INET, SOCK_STREAM, socket
from typing import Any, Final

import msgspec

from bench.fuzz_input import Bodies, Lines, User, users
from bench.million import Client, Measured, memory_bytes, table
from meshproto.cli.processes import Children, Failed, until
from meshproto.client.node import Node
from meshproto.core.identity import verify
from meshproto.wire import SignedRecord, split_address

LINES: Final = 2_000_000
BODIES: Final = 500_000
SEED: Final = "seedX"
USER: Final = "UserX"
BATCH_LINES: Final = 100
"""Between two requests that are right."""
CONNECTION_BATCHES: Final = 20
"""Then another connection, from another address."""
CONNECTION_BODIES: Final = 200
WARM: Final = 0.1
"""The part of a run after which memory is measured for the first time: until then caches and pools fill."""
GROWTH_MAX: Final = 0.1
ANSWER_S_MAX: Final = 30.0
RECEIVE_BYTES: Final = 256 * 1024
WRONG_IN_A_LOG: Final = re.compile(rb"Traceback|Unhandled|a bug|#critical|#failure")
SAID_NO: Final = frozenset({200, 400, 401, 403, 405, 408, 409, 411, 413, 414, 415, 421, 429, 431, 503})
"""What `POST /deliver` may answer; an error of ours is 500."""


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mesh-fuzz-") as directory, Children(Path(directory)) as children:
        fuzz = Fuzz(children, random.Random(options.seed))
        rows = [*fuzz.lines(options.lines), *fuzz.bodies(options.bodies), *fuzz.afterwards()]
    print(f"--seed {options.seed}, {os.cpu_count()} cores, in {time.monotonic() - began:.0f} s\n")
    print(table(rows))
    return 1 if any(row.missed for row in rows) else 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    options.add_argument("--lines", type=int, default=LINES, help="at the seed (%(default)d)")
    options.add_argument("--bodies", type=int, default=BODIES, help="at the user's node (%(default)d)")
    options.add_argument("--seed", type=int, default=1, help="what all of it is drawn from (%(default)d)")
    return options


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Fuzz:
    """A run. What is wrong with an answer raises :class:`Failed` that shows it."""

    def __init__(self, children: Children, rng: random.Random) -> None:
        self._children = children
        self._rng = rng
        self._people = users(rng)
        self._seed = children.start("meshseed", SEED)
        self._node = children.start("meshuser", USER, "--seed", self._seed).removeprefix("http://")
        client = Node(f"http://{self._node}")
        until(lambda: client.status().document["registered"] or None, f"{USER} is registered")
        self._register()

    def _register(self) -> None:
        """Those who write are who they say: what they have sealed is opened, and looked into."""
        with Client(self._seed) as seed:
            for person in self._people:
                _register(seed, person)

    def lines(self, count: int) -> Iterator[Measured]:
        """`count` lines at the seed."""
        source = Lines(self._rng, self._people)
        codes: Counter[str] = Counter()
        memory, sent, ended = Memory(self._pid(SEED), count), 0, 0
        while sent < count:
            with _connect(self._seed, self._rng) as connection:
                for _ in range(CONNECTION_BATCHES):
                    wanted = min(BATCH_LINES, count - sent)
                    sent += wanted
                    if not wanted or not _ask(connection, [source.next() for _ in range(wanted)], codes):
                        ended += bool(wanted)
                        break
            memory.look(sent)
        yield Measured("lines", sent)
        yield Measured("connections that the seed ended, and said why", ended)
        for code, times in sorted(codes.items()):
            yield Measured(f"answered {code}", times, target=0 if code in ("-32603", "500") else None)
        yield from memory.rows(SEED)

    def bodies(self, count: int) -> Iterator[Measured]:
        """`count` bodies at the user's node."""
        with Client(self._seed) as seed:
            found = seed.call("lookup", {"name": USER})["result"]
        source = Bodies(self._rng, self._people, verify(SignedRecord(found["record"], found["sig"])))
        codes: Counter[int] = Counter()
        memory, sent = Memory(self._pid(USER), count), 0
        while sent < count:
            with _connect(self._node, self._rng) as connection:
                for _ in range(min(CONNECTION_BODIES, count - sent)):
                    sent += 1
                    code, goes_on = _deliver(connection, source.next())
                    codes[code] += 1
                    if not goes_on:
                        break
            memory.look(sent)
        yield Measured("bodies", sent)
        for code, times in sorted(codes.items()):
            yield Measured(f"answered {code}", times, target=None if code in SAID_NO else 0)
        yield from memory.rows(USER)

    def afterwards(self) -> Iterator[Measured]:
        """They live, do what they are for, and have nothing to complain of."""
        with Client(self._seed) as seed:
            seed.ask("status")
        answer = Node(f"http://{self._node}").send(USER, "still here")
        yield Measured(
            "a message afterwards is not delivered", float(answer.document["status"] != "delivered"), target=0
        )
        for name, child in self._children.all.items():
            wrong = WRONG_IN_A_LOG.findall(child.log.read_bytes())
            if wrong:
                _say(child.last_words())
            yield Measured(f"errors in the log of {name}", len(wrong), target=0)
            yield Measured(f"lines in the log of {name}", child.log.read_bytes().count(b"\n"))

    def _pid(self, name: str) -> int:
        return self._children.all[name].process.pid


class Memory:
    """Of a process: resident after :data:`WARM` of the run, and at its end."""

    def __init__(self, pid: int, count: int) -> None:
        self._pid = pid
        self._warm_at = count * WARM
        self._report_at = count / 10
        self._cold = memory_bytes(pid)[0]
        self._warm: int | None = None
        self._count = count

    def look(self, done: int) -> None:
        if self._warm is None and done >= self._warm_at:
            self._warm = memory_bytes(self._pid)[0]
        if done >= self._report_at:
            self._report_at += self._count / 10
            _say(f"{done:,} of {self._count:,}, {memory_bytes(self._pid)[0] / 1e6:.1f} MB")

    def rows(self, name: str) -> Iterator[Measured]:
        warm, now = self._warm or self._cold, memory_bytes(self._pid)[0]
        yield Measured(f"memory of {name} at the start", self._cold / 1e6, "MB")
        yield Measured(f"memory of {name} after a tenth", warm / 1e6, "MB")
        yield Measured(f"memory of {name} at the end", now / 1e6, "MB")
        yield Measured(f"growth of {name} since", now / warm - 1, target=GROWTH_MAX)


def _register(seed: Client, person: User) -> None:
    signed = person.identity.sign(person.name, ["http://127.0.0.1:9"], 1)
    answer = seed.call("register", msgspec.to_builtins(signed))
    if "result" not in answer:
        raise Failed(f"{person.name} was not registered: {answer}")


def _connect(address: str, rng: random.Random) -> socket:
    """From an address of its own, as from many machines: what one address may ask is limited."""
    connection = socket(AF_INET, SOCK_STREAM)
    connection.settimeout(ANSWER_S_MAX)
    connection.bind((f"127.{rng.randrange(1, 250)}.{rng.randrange(1, 250)}.{rng.randrange(1, 250)}", 0))
    connection.connect(split_address(address))
    return connection


def _ask(connection: socket, lines: list[bytes], codes: Counter[str]) -> bool:
    """Send lines and one that is right; whether it was answered. False: the connection was ended, with a reason."""
    last = b'{"jsonrpc":"2.0","id":"the last of these","method":"ping"}'
    received = b""
    try:
        connection.sendall(b"\n".join([*lines, last, b""]))
        while True:
            if received.endswith(b"\n") and b'"the last of these"' in received:
                for line in received.split(b"\n")[:-1]:
                    codes[_judged(line)] += 1
                return True
            data = connection.recv(RECEIVE_BYTES)
            if not data:
                break
            received += data
    except (ConnectionResetError, BrokenPipeError):
        pass
    said = [line for line in received.split(b"\n") if line]
    if not said:
        raise Failed(f"the seed ended a connection without a word, after one of {lines!r}"[:4000])
    if said[0].startswith(b"HTTP/1.1 400") or any(line.startswith(b"HTTP/1.1 400") for line in said):
        codes["HTTP 400"] += 1
        return False
    for line in said:
        codes[_judged(line)] += 1
    return False


def _judged(line: bytes) -> str:
    """What was answered: `ok`, a code, or the method of a notification. Raises :class:`Failed` for anything else."""
    try:
        answer: Any = json.loads(line)
        if answer["jsonrpc"] == "2.0":
            if "method" in answer:
                return str(answer["method"])
            return "ok" if "result" in answer else str(answer["error"]["code"] + 0)
    except (ValueError, TypeError, KeyError):
        pass
    raise Failed(f"the seed answered {line[:2000]!r}")


def _deliver(connection: socket, body: bytes) -> tuple[int, bool]:
    """The code of the answer, and whether the connection goes on."""
    head = b"POST /deliver HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with suppress(ConnectionResetError, BrokenPipeError):  # it may have answered before the body was there
        connection.sendall(head % len(body) + body)
    try:
        answer = http.client.HTTPResponse(connection, method="POST")
        answer.begin()
        said = answer.read()
        if answer.status >= 400 and json.loads(said)["status"] != answer.status:
            raise Failed(f"{answer.status} was answered with {said[:2000]!r}")
    except (http.client.HTTPException, ConnectionResetError, ValueError, KeyError) as reason:
        raise Failed(f"{reason!r} for an answer, after {body[:2000]!r}") from reason
    return answer.status, not answer.will_close


if __name__ == "__main__":
    sys.exit(main())
