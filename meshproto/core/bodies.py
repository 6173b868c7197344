"""The bodies of requests that are under way: how much memory they may take together.

A body that is sent slowly on purpose must not keep the room from others: when there is none left, the one that has been
under way for longest goes, unless it began a short while ago; then the newest has to come again.
"""

from typing import Final

BODIES_BYTES_MAX: Final = 128 * 1024 * 1024
"""Of all bodies together: 32 sealed batches of full size. A batch takes this several times over while it is opened, but
one at a time."""
BODY_SURE_S: Final = 20.0
"""So long nobody is pushed out. A sender gives a batch up after 30 s (:mod:`meshproto.net.courier`)."""


class Bodies:
    """Times in seconds, of one clock."""

    def __init__(self, bytes_max: int = BODIES_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._under_way: dict[int, tuple[float, int]] = {}  # since when, and its bytes; the oldest first
        self._complete: dict[int, int] = {}
        self.bytes = 0

    def add(self, number: int, amount: int, now: float) -> list[int]:
        """So many more bytes of a body have come. Those that have to go for it, whose bytes are free then; the body
        itself is the last of them when there is no room for it."""
        since, had = self._under_way.get(number, (now, 0))
        goes: list[int] = []
        while self.bytes + amount > self._bytes_max:
            oldest = next(iter(self._under_way), number)
            if oldest == number or now - self._under_way[oldest][0] < BODY_SURE_S:
                self.end(number)
                return [*goes, number]
            self.end(oldest)
            goes.append(oldest)
        self.bytes += amount
        self._under_way[number] = (since, had + amount)
        return goes

    def is_full(self, now: float) -> bool:
        """Whether a new body would have to go at once."""
        oldest_at = next((since for since, _ in self._under_way.values()), now)
        return self.bytes >= self._bytes_max and now - oldest_at < BODY_SURE_S

    def complete(self, number: int) -> None:
        """All of it has come, and it is being worked on: it goes no more for another."""
        _, amount = self._under_way.pop(number, (0.0, 0))
        self._complete[number] = self._complete.get(number, 0) + amount

    def end(self, number: int) -> None:
        """The body is no longer held; nothing happens if none was."""
        _, amount = self._under_way.pop(number, (0.0, 0))
        self.bytes -= amount + self._complete.pop(number, 0)
