"""Those who wait for something, each holding some memory: how many there may be, and who makes room for the next.

A newcomer is not turned away for the sake of those who wait: whoever has waited longest goes, of the network that has
most of them, or holds most. So one who comes seldom, from an address of their own, has the longest time of all.
"""

from collections import Counter
from typing import NamedTuple


class _Waiting(NamedTuple):
    network: str
    held_bytes: int


class WaitingRoom:
    """Those who wait, by number: `places_max` of them, `per_network_max` of one network, who hold `bytes_max` together.
    They are few, so that to look at all of them costs nothing."""

    def __init__(self, places_max: int, per_network_max: int, bytes_max: int) -> None:
        self._places_max = places_max
        self._per_network_max = per_network_max
        self._bytes_max = bytes_max
        self._waiting: dict[int, _Waiting] = {}  # who has waited longest first

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, number: int, network: str, held_bytes: int) -> list[int]:
        """Somebody waits. Who has to go for it, which may be themselves; they have left then."""
        self._waiting[number] = _Waiting(network, held_bytes)
        goes: list[int] = []
        while (one := self._one_too_many()) is not None:
            self.leave(one)
            goes.append(one)
        return goes

    def leave(self, number: int) -> None:
        """They wait no longer; nothing happens if they have left before."""
        self._waiting.pop(number, None)

    def _one_too_many(self) -> int | None:
        places: Counter[str] = Counter()
        held: Counter[str] = Counter()
        for network, held_bytes in self._waiting.values():
            places[network] += 1
            held[network] += held_bytes
        if len(self._waiting) > self._places_max or max(places.values(), default=0) > self._per_network_max:
            return self._first_of_the_fullest(places)
        return self._first_of_the_fullest(held) if held.total() > self._bytes_max else None

    def _first_of_the_fullest(self, has: Counter[str]) -> int:
        most = max(has.values())
        return next(number for number, waiting in self._waiting.items() if has[waiting.network] == most)
