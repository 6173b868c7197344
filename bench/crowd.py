"""Many who connect and do nothing, or next to nothing: `python -m bench.crowd HOST:PORT lines|http`.

The idle ones say nothing at all. The slow ones ("slow-loris") begin a line or a request and send another byte of it
every second, as if it would be whole some day; half of those that speak HTTP do so with the body. Whoever is thrown out
comes back, after a second unless told otherwise. It ends by itself, and says what it met with.
"""

import argparse
import heapq
import json
import resource
import selectors
import sys
import time
from dataclasses import dataclass
from socket import AF_INET, SO_ERROR, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket
from typing import Final

from meshproto.wire import split_address

BYTE_S: Final = 1.0
BACK_S: Final = 1.0
DIALS_A_SECOND: Final = 2000
"""A crowd that comes all at once would measure the kernel's backlog."""
BEGINNINGS: Final = {
    "lines": [b'{"jsonrpc":"2.0","id":1,"method":"lookup","params":{"name":"'],
    "http": [
        b"POST /deliver HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
        b"POST /deliver HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n",
    ],
}


@dataclass
class Guest:
    """One of the crowd; an idle one has no `beginning`."""

    number: int
    beginning: bytes
    link: socket | None = None
    connected: bool = False
    begun: bool = False


class Crowd:
    """`counts`: connections that were made, that the other side ended, that it answered before, and that failed."""

    def __init__(self, address: str, kind: str, idle: int, slow: int, hosts: int, back_s: float = BACK_S) -> None:
        self._address = split_address(address)
        self._hosts = hosts
        self._back_s = back_s
        beginnings = BEGINNINGS[kind]
        self._guests = [Guest(number, b"") for number in range(idle)]
        self._guests += [Guest(idle + number, beginnings[number % len(beginnings)]) for number in range(slow)]
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, int]] = []
        self.counts = dict.fromkeys(("connected", "ended", "answered", "failed"), 0)
        self.most = 0
        self._here = 0

    def run(self, seconds: float) -> None:
        start = time.monotonic()
        self._due = [(start + guest.number / DIALS_A_SECOND, guest.number) for guest in self._guests]
        said = False
        while (now := time.monotonic()) < start + seconds:
            while self._due and self._due[0][0] <= now:
                self._act(self._guests[heapq.heappop(self._due)[1]], now)
            wait_s = max(0.0, min(0.1, self._due[0][0] - now if self._due else 0.1))
            for key, events in self._selector.select(wait_s):
                self._look(key.data, events, now)
            if not said and now > start + len(self._guests) / DIALS_A_SECOND + BACK_S:
                said = True
                print(json.dumps({"here": self._here}), flush=True)

    def close(self) -> None:
        for guest in self._guests:
            if guest.link is not None:
                guest.link.close()

    def _act(self, guest: Guest, now: float) -> None:
        if guest.link is None:
            self._dial(guest)
        elif guest.connected and guest.beginning:
            self._speak(guest, now)

    def _dial(self, guest: Guest) -> None:
        guest.link = dialled = socket(AF_INET, SOCK_STREAM)
        guest.connected = guest.begun = False
        dialled.setblocking(False)
        dialled.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        host = guest.number % self._hosts
        dialled.bind((f"127.7.{host // 250}.{host % 250 + 1}", 0))
        dialled.connect_ex(self._address)
        self._selector.register(dialled, selectors.EVENT_WRITE | selectors.EVENT_READ, guest)

    def _look(self, guest: Guest, events: int, now: float) -> None:
        assert guest.link is not None
        if not guest.connected and events & selectors.EVENT_WRITE:
            if guest.link.getsockopt(SOL_SOCKET, SO_ERROR):
                self._gone(guest, "failed", now)
                return
            guest.connected = True
            self._here += 1
            self.most = max(self.most, self._here)
            self.counts["connected"] += 1
            self._selector.modify(guest.link, selectors.EVENT_READ, guest)
            if guest.beginning:
                heapq.heappush(self._due, (now, guest.number))
        if events & selectors.EVENT_READ:
            self._hear(guest, now)

    def _hear(self, guest: Guest, now: float) -> None:
        assert guest.link is not None
        try:
            data = guest.link.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.counts["answered"] += 1
        else:
            self._gone(guest, "ended", now)

    def _speak(self, guest: Guest, now: float) -> None:
        assert guest.link is not None
        try:
            guest.link.send(b"x" if guest.begun else guest.beginning)
            guest.begun = True
            heapq.heappush(self._due, (now + BYTE_S, guest.number))
        except OSError:
            self._gone(guest, "ended", now)

    def _gone(self, guest: Guest, how: str, now: float) -> None:
        assert guest.link is not None
        self._here -= guest.connected
        self.counts[how] += 1
        self._selector.unregister(guest.link)
        guest.link.close()
        guest.link = None
        heapq.heappush(self._due, (now + self._back_s, guest.number))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.crowd", description=__doc__)
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("kind", choices=sorted(BEGINNINGS))
    parser.add_argument("--idle", type=int, default=5000, help="(%(default)d)")
    parser.add_argument("--slow", type=int, default=500, help="(%(default)d)")
    parser.add_argument(
        "--hosts", type=int, default=50, help="addresses of this machine that they come from (%(default)d)"
    )
    parser.add_argument("--back", type=float, default=BACK_S, help="when who was sent away is back, in s (%(default)g)")
    parser.add_argument("--seconds", type=float, default=30.0, help="(%(default)g)")
    options = parser.parse_args(arguments)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    crowd = Crowd(options.address, options.kind, options.idle, options.slow, options.hosts, options.back)
    try:
        crowd.run(options.seconds)
    finally:
        crowd.close()
    print(json.dumps({**crowd.counts, "most": crowd.most}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
