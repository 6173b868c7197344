"""The bodies of requests that are under way: how much memory they may take together.

A body that is sent slowly on purpose must not keep the room from others: when there is none left, the oldest body of
the network that holds most goes for one of a network that holds less. Among equals the one that has been under way for
longest goes, unless it began a short while ago; then the newest has to come again.
"""

from collections import Counter
from typing import Final

BODIES_BYTES_MAX: Final = 128 * 1024 * 1024
"""Of all bodies together: 32 sealed batches of full size. A batch takes this several times over while it is opened, but
one at a time."""
BODY_SURE_S: Final = 20.0
"""So long nobody is pushed out. A sender gives a batch up after 30 s (:mod:`meshproto.net.http_client`)."""


class Bodies:
    """Times in seconds, of one clock."""

    def __init__(self, bytes_max: int = BODIES_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._under_way: dict[int, tuple[float, int]] = {}  # since when, and its bytes; the oldest first
        self._complete: dict[int, int] = {}
        self._network: dict[int, str] = {}  # of those under way
        self._held: Counter[str] = Counter()  # bytes under way, by network
        self.bytes = 0

    def add(self, number: int, network: str, amount: int, now: float) -> list[int]:
        """So many more bytes of a body have come from a network. Those that have to go for it, whose bytes are free
        then; the body itself is the last of them when there is no room for it."""
        since, had = self._under_way.get(number, (now, 0))
        goes: list[int] = []
        while self.bytes + amount > self._bytes_max:
            one = self._one_less(number, network, amount, now)
            if one is None:
                self.end(number)
                return [*goes, number]
            self.end(one)
            goes.append(one)
        self.bytes += amount
        self._under_way[number] = (since, had + amount)
        self._network[number] = network
        self._held[network] += amount
        return goes

    def add_whole(self, number: int, amount: int) -> bool:
        """All of a body has come at once, as most do, and so was never under way. Whether there was room for it; if not
        it is to be added as others are."""
        if self.bytes + amount > self._bytes_max:
            return False
        self.bytes += amount
        self._complete[number] = self._complete.get(number, 0) + amount
        return True

    def is_full(self, network: str, now: float) -> bool:
        """Whether a new body from the network would have to go at once."""
        return self.bytes >= self._bytes_max and self._one_less(-1, network, 1, now) is None

    def _one_less(self, number: int, network: str, amount: int, now: float) -> int | None:
        """Who goes for another; None: nobody but the other itself."""
        fullest, held = max(self._held.items(), key=lambda item: item[1], default=("", 0))
        if held > self._held[network] + amount:
            return next(one for one in self._under_way if self._network[one] == fullest)
        oldest = next(iter(self._under_way), number)
        if oldest == number or now - self._under_way[oldest][0] < BODY_SURE_S:
            return None
        return oldest

    def complete(self, number: int) -> None:
        """All of it has come, and it is being worked on: it goes no more for another."""
        if number in self._under_way:
            self._complete[number] = self._complete.get(number, 0) + self._take_out(number)

    def end(self, number: int) -> None:
        """The body is no longer held; nothing happens if none was."""
        if number in self._under_way:
            self.bytes -= self._take_out(number)
        self.bytes -= self._complete.pop(number, 0)

    def _take_out(self, number: int) -> int:
        """Under way no more: how many bytes it had."""
        _, amount = self._under_way.pop(number)
        network = self._network.pop(number)
        self._held[network] -= amount
        if not self._held[network]:
            del self._held[network]
        return amount
