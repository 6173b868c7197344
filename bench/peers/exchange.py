"""The load that all have in common: so many messages under way, each from its sender's write until it is acknowledged
to the sender and, where there is a reader, has reached the reader.

What a protocol says is plain functions of bytes (:class:`Sender`, :class:`Reader`); the sockets, the window and the
clock are here. The loop is `epoll` and nothing else, so that it takes few microseconds a message; how many is measured
and shown, since a server is measured only where its load has time to spare.
"""

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Final, Protocol

from bench.figures import Sample
from meshproto.cli.processes import Failed

MESSAGE_BYTES: Final = 256
NUMBER_DIGITS: Final = 12
"""A message begins with its number: nothing that travels can be taken for another."""
FILLING: Final = b"." * (MESSAGE_BYTES - NUMBER_DIGITS)
WARM_UP_S: Final = 0.3
SILENCE_S_MAX: Final = 20.0
"""RabbitMQ may let confirms wait; nobody waits longer than this."""
RECEIVE_BYTES: Final = 256 * 1024
CONNECT_S_MAX: Final = 10.0


def message(number: int) -> bytes:
    return b"%012d" % number + FILLING


class Reader(Protocol):
    """The connection of whom the messages are for."""

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        """Which ones have come by this, and what has to be written in return."""


class Sender(Protocol):
    """One connection that sends."""

    def send(self, numbers: Sequence[int]) -> bytes:
        """The bytes that send these."""

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        """Which ones are acknowledged by this, and what has to be written in return."""


def sample(
    per_s: float, server_s: float, load_s: float, took_s: float, took_ms: Sequence[float] | None = None
) -> Sample:
    """Figures as in :mod:`bench.figures`. CPU: of all the servers' processes, for one; of the load, for one, and its
    share of a core. `took_ms`: from the sender's write until all is done; None where the load program does not tell."""
    count = per_s * took_s
    found = {
        "per_s": per_s,
        "server_us": 1e6 * server_s / count,
        "load_us": 1e6 * load_s / count,
        "load_share": load_s / took_s,
    }
    if took_ms is None:
        return found
    cuts = quantiles(took_ms, n=100)
    return {**found, "p50_us": 1000 * cuts[49], "p99_us": 1000 * cuts[98]}


Usage = Callable[[], float]
"""CPU seconds that the servers have used so far."""


@dataclass(eq=False)
class _Link:
    socket: socket.socket
    end: Reader
    waiting: bytearray = field(default_factory=bytearray)
    wants_room: bool = False


@dataclass(eq=False)
class _SendingLink(_Link):
    end: Sender


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=CONNECT_S_MAX)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """What has come when these bytes have, for a handshake. What comes after them is lost: ask one thing at a time."""
    got = b""
    while end not in got:
        more = connection.recv(RECEIVE_BYTES)
        if not more:
            raise Failed(f"the server hung up after {got!r}")
        got += more
    return got


class InOrder:
    """The numbers of one connection, for protocols whose acknowledgements come in the order of the messages."""

    def __init__(self) -> None:
        self._waiting: deque[int] = deque()

    def sent(self, numbers: Iterable[int]) -> None:
        self._waiting.extend(numbers)

    def first(self, count: int) -> list[int]:
        """Those that so many acknowledgements mean."""
        if count > len(self._waiting):
            raise Failed(f"{count} acknowledgements for {len(self._waiting)} messages")
        return [self._waiting.popleft() for _ in range(count)]


class Exchange:
    """Connections that are ready to send, and at most one that reads. It owns the sockets."""

    def __init__(
        self, senders: Sequence[tuple[socket.socket, Sender]], reader: tuple[socket.socket, Reader] | None = None
    ) -> None:
        self._senders = [_SendingLink(*sender) for sender in senders]
        links: list[_Link] = [*self._senders, *([_Link(*reader)] if reader else [])]
        self._links = {link.socket.fileno(): link for link in links}
        self._has_reader = reader is not None
        self._epoll = select.epoll()
        for link in links:
            link.socket.setblocking(False)
            self._epoll.register(link.socket, select.EPOLLIN)
        self._next = 0
        self._under_way: dict[int, tuple[float, _SendingLink]] = {}
        self._half: dict[int, _Link] = {}
        self._took: list[float] = []
        self._sending = True

    def run(self, in_flight: int, seconds: float, usage: Usage) -> Sample:
        """`in_flight` in all. Ends when all that was sent is through."""
        try:
            each, rest = divmod(in_flight, len(self._senders))
            if rest:
                raise ValueError(f"{in_flight} under way cannot be shared by {len(self._senders)}")
            for link in self._senders:
                self._send(link, each)
            self._turn_until(time.perf_counter() + WARM_UP_S)
            self._took.clear()
            server_s, load_s, began = usage(), time.process_time(), time.perf_counter()
            self._turn_until(began + seconds, in_flight)
            took_s = time.perf_counter() - began
            server_s, load_s = usage() - server_s, time.process_time() - load_s
            took = self._took.copy()
            self._sending = False
            while self._under_way:
                self._turn()
        finally:
            self.close()
        if len(took) < 2:
            raise Failed(f"{len(took)} messages in {seconds:g} s")
        return sample(len(took) / took_s, server_s, load_s, took_s, [1000 * one for one in took])

    def close(self) -> None:
        self._epoll.close()
        for link in self._links.values():
            link.socket.close()

    def _turn_until(self, end: float, count: int = 0) -> None:
        """Longer when fewer are through by then: a whole window has to turn over at least once."""
        while time.perf_counter() < end or len(self._took) < count:
            self._turn()

    def _turn(self) -> None:
        ready = self._epoll.poll(SILENCE_S_MAX)
        if not ready:
            raise Failed(f"nothing came for {SILENCE_S_MAX:g} s, {len(self._under_way)} messages are under way")
        for number, events in ready:
            link = self._links[number]
            if events & ~select.EPOLLOUT:
                self._receive(link)
            if link.waiting:
                self._write(link, b"")

    def _receive(self, link: _Link) -> None:
        data = link.socket.recv(RECEIVE_BYTES)
        if not data:
            raise Failed(f"a server hung up, {len(self._under_way)} messages are under way")
        numbers, answer = link.end.receive(data)
        if answer:
            self._write(link, answer)
        through: dict[_SendingLink, int] = {}
        now = time.perf_counter()
        for number in numbers:
            if number not in self._under_way or self._half.get(number) is link:
                raise Failed(f"message {number} came twice")
            if self._has_reader and number not in self._half:
                self._half[number] = link
                continue
            self._half.pop(number, None)
            sent_at, sender = self._under_way.pop(number)
            self._took.append(now - sent_at)
            through[sender] = through.get(sender, 0) + 1
        if self._sending:
            for sender, count in through.items():
                self._send(sender, count)

    def _send(self, link: _SendingLink, count: int) -> None:
        numbers = range(self._next, self._next + count)
        self._next += count
        now = time.perf_counter()
        self._under_way.update((number, (now, link)) for number in numbers)
        self._write(link, link.end.send(numbers))

    def _write(self, link: _Link, data: bytes) -> None:
        """At once what the socket takes, and the rest when it has room."""
        link.waiting += data
        try:
            sent = link.socket.send(link.waiting)
        except BlockingIOError:
            sent = 0
        del link.waiting[:sent]
        if link.wants_room != bool(link.waiting):
            link.wants_room = bool(link.waiting)
            self._epoll.modify(link.socket, select.EPOLLIN | (select.EPOLLOUT if link.wants_room else 0))
