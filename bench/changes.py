"""Users who change their records all the time, at one seed, so that another hears of it by gossip."""

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from bench.million import Client
from bench.servers import LOAD_CORE
from meshproto.cli.processes import Failed, until
from meshproto.core.identity import Identity
from meshproto.wire import encode_value, split_address

NAMES: Final = 2000
"""At a thousand changes a second each changes every two seconds: gossip tells every one of them."""
LINKS: Final = 20
"""From an address each, which a seed lets register a hundred times a second; with a hundred names each, the most."""
PORTION_S: Final = 0.02
"""Changes of so long go out together."""
ARRIVED_S_MAX: Final = 10.0
ANSWER_S_MAX: Final = 10.0


class Changes:
    """Registrations at the seed at `told`, `per_s` of them wanted; enough are signed for `seconds`. As a context
    manager it holds the connections; :meth:`coming` has the changes come. `arrives`: the seed that hears of them.
    `arrived_per_s`: how many there were, when last they came, all of which that seed knew in the end."""

    def __init__(self, told: str, arrives: str, per_s: int, seconds: float) -> None:
        self.arrived_per_s = 0.0
        self._told = told
        self._arrives = arrives
        self._portion = max(1, int(per_s * PORTION_S))
        self._lines = _signed(int(per_s * seconds))
        self._sent = 0
        self._links: list[socket.socket] = []
        self._over = threading.Event()
        self._wrong: str | None = None

    def __enter__(self) -> "Changes":
        for number in range(LINKS):
            link = socket.create_connection(
                split_address(self._told), ANSWER_S_MAX, source_address=(f"127.8.0.{number + 1}", 0)
            )
            self._links.append(link)
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._links:
            link.close()

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        """Raises :class:`Failed` when one is refused, or does not arrive."""
        self._over.clear()
        sender = threading.Thread(target=self._send, daemon=True)
        began, before = time.monotonic(), self._sent
        sender.start()
        try:
            yield
        finally:
            self._over.set()
            sender.join()
        took_s = time.monotonic() - began
        if self._wrong is not None:
            raise Failed(f"a change was answered {self._wrong}")
        with Client(self._arrives) as client:
            until(lambda: self._has_arrived(client) or None, "the last change has arrived", ARRIVED_S_MAX)
        self.arrived_per_s = (self._sent - before) / took_s

    def _has_arrived(self, client: Client) -> bool:
        last = self._sent - 1
        answer = client.call("lookup", {"name": _name(last)})
        return bool("result" in answer and msgspec.json.decode(answer["result"]["record"])["seq"] == _seq(last))

    def _send(self) -> None:
        os.sched_setaffinity(0, {LOAD_CORE})  # of this thread
        due = time.monotonic()
        try:
            while not self._over.is_set() and self._sent + self._portion <= len(self._lines):
                self._change()
                due += PORTION_S
                self._over.wait(max(0.0, due - time.monotonic()))
        except (OSError, Failed) as reason:
            self._wrong = repr(reason)

    def _change(self) -> None:
        """The next ones, each over its name's link, and what is answered."""
        answers: dict[int, int] = {}
        for number in range(self._sent, self._sent + self._portion):
            link = number % NAMES % LINKS
            self._links[link].sendall(self._lines[number])
            answers[link] = answers.get(link, 0) + 1
        self._sent += self._portion
        for link, wanted in answers.items():
            got = b""
            while got.count(b"\n") < wanted:
                piece = self._links[link].recv(65536)
                if not piece:
                    raise Failed("the connection was ended")
                got += piece
            if got.count(b'"lease"') < wanted:
                raise Failed(got.decode())


_FIRST_SEQ: Final = int(time.time() * 1000)


def _name(number: int) -> str:
    return f"changes{number % NAMES:04}"


def _seq(number: int) -> int:
    return _FIRST_SEQ + number


def _signed(count: int) -> list[bytes]:
    """Registrations of the names in turns, each newer than the one before."""
    rng = random.Random(1)
    identities = [Identity.create(rng.randbytes, 0) for _ in range(min(NAMES, count))]
    lines = []
    for number in range(count):
        signed = identities[number % NAMES].sign(_name(number), ["http://192.0.2.7:3000"], _seq(number))
        params: dict[str, Any] = {"record": signed.record, "sig": signed.sig}
        lines.append(encode_value({"jsonrpc": "2.0", "id": 1, "method": "register", "params": params}) + b"\n")
    return lines
