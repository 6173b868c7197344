"""What one address may take of a node that serves many: requests by the second, and connections.

Addresses are counted by network (:func:`network_of`), so that one who has many of IPv6 counts once. Everything here is
bounded itself: what is remembered of a million addresses is as large as of ten thousand.
"""

import ipaddress
from collections import OrderedDict
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from typing import Final, NamedTuple

FORGOTTEN_AT_ONCE: Final = 2
"""Networks forgotten at most for one that is seen: more than come, so they do not pile up."""
NETWORKS_MAX: Final = 10_000
"""Networks whose use is remembered: about 2 MB. The one not heard of longest is forgotten; should it return it begins
anew."""
QUEUE_SLACK: Final = 16
"""Of a few connections that come and go nobody need be forgotten at once."""
IPV6_PREFIX: Final = 64
"""The part of an IPv6 address that tells subscribers apart (RFC 6177)."""


def network_of(host: str) -> str:
    """An IP address -> the network that it counts for: an IPv4 address stands for itself, also when it is mapped into
    IPv6, an IPv6 address for its /64. Anything else stands for itself: a unix socket has `""`."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
    return str(address)


def called(network: str) -> str:
    """A network in words."""
    return network or "a unix socket"


class Rate(NamedTuple):
    """So many a second in the long run, and `burst` at once after a silence."""

    per_s: float
    burst: float


NEWCOMERS: Final = Rate(per_s=50.0, burst=200.0)
"""Connections of one network for which others have to go: as long as there is room they are not counted. To take one in
and send another away is as much work as some requests are."""


class Buckets:
    """A token bucket (RFC 2697 in its simplest form) for each network, all of one rate. Times in seconds, of one
    clock. A network whose bucket is full again is as good as one that has never been seen, and is forgotten."""

    def __init__(self, rate: Rate, networks_max: int = NETWORKS_MAX) -> None:
        self._rate = rate
        self._networks_max = networks_max
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when it was

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, network: str, now: float, amount: float = 1.0) -> float:
        """0 when the network may have that much, which it then has had; else the seconds until it may, and it has had
        nothing. Nobody may ever have more than `burst` at once: more than that is given as if it were `burst`."""
        per_s, burst = self._rate
        left, at = self._buckets.pop(network, (burst, now))
        if now > at:
            left = min(burst, left + (now - at) * per_s)
        wanted = min(amount, burst)
        missing = wanted - left
        self._buckets[network] = (left if missing > 0 else left - wanted, now)
        if len(self._buckets) > 1:
            self._forget(now)
        return missing / per_s if missing > 0 else 0.0

    def _forget(self, now: float) -> None:
        """Those not seen for longest, a few at a time: what is full again, and what is too many."""
        per_s, burst = self._rate
        for _ in range(FORGOTTEN_AT_ONCE):
            oldest = next(iter(self._buckets))
            left, at = self._buckets[oldest]
            if left + (now - at) * per_s < burst and len(self._buckets) <= self._networks_max:
                return
            del self._buckets[oldest]

    def give_back(self, network: str, amount: float) -> None:
        """What the network has had does not count after all."""
        if network in self._buckets:
            left, at = self._buckets[network]
            self._buckets[network] = (min(self._rate.burst, left + amount), at)


class _Queue:
    """Connections by when they were last heard (`heard`: a number that grows), the idlest first. What is heard is not
    looked at here as it happens, which is all the time, but when somebody asks for the idlest, which is hardly ever."""

    def __init__(self, heard: dict[int, int]) -> None:
        self._heard = heard
        self._numbers: set[int] = set()
        self._heap: list[tuple[int, int]] = []  # when each was heard, as far as was looked at

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, number: int) -> bool:
        return number in self._numbers

    def add(self, number: int) -> None:
        self._numbers.add(number)
        heappush(self._heap, (self._heard[number], number))

    def remove(self, number: int) -> None:
        self._numbers.remove(number)
        if len(self._heap) > 2 * len(self._numbers) + QUEUE_SLACK:
            self._heap = [(self._heard[number], number) for number in self._numbers]
            heapify(self._heap)

    def idlest(self) -> int:
        while True:
            heard, number = self._heap[0]
            if number not in self._numbers:
                heappop(self._heap)
            elif heard != self._heard[number]:
                heapreplace(self._heap, (self._heard[number], number))
            else:
                return number


class _Crowd:
    """Connections by network; and the network that has most of them."""

    def __init__(self, heard: dict[int, int]) -> None:
        self._heard = heard
        self._of: dict[str, _Queue] = {}
        self._by_size: dict[int, OrderedDict[str, None]] = {}
        self._most = 0

    def has(self, number: int, network: str) -> bool:
        crowd = self._of.get(network)
        return crowd is not None and number in crowd

    def idlest(self, network: str) -> int | None:
        crowd = self._of.get(network)
        return None if crowd is None else crowd.idlest()

    def fullest(self) -> tuple[str, int]:
        """The network with most of these connections, and how many; `""` and 0 when there are none."""
        return (next(iter(self._by_size[self._most])), self._most) if self._most else ("", 0)

    def add(self, number: int, network: str) -> None:
        crowd = self._of.get(network)
        if crowd is None:
            crowd = self._of[network] = _Queue(self._heard)
        self._file(network, len(crowd), len(crowd) + 1)
        crowd.add(number)

    def remove(self, number: int, network: str) -> bool:
        """Whether it was there."""
        crowd = self._of.get(network)
        if crowd is None or number not in crowd:
            return False
        self._file(network, len(crowd), len(crowd) - 1)
        crowd.remove(number)
        if not crowd:
            del self._of[network]
        return True

    def _file(self, network: str, before: int, after: int) -> None:
        """Sizes change by one, so the largest is found without looking at all."""
        if before:
            del self._by_size[before][network]
            if not self._by_size[before]:
                del self._by_size[before]
        if after:
            self._by_size.setdefault(after, OrderedDict())[network] = None
        if after > self._most or self._most not in self._by_size:
            self._most = after


class Places:
    """The connections there are, and which of them goes when there is no room for one more.

    A newcomer is not turned away for the sake of those who only wait: the idlest guest of its own network goes when the
    network has its share, and when all places are taken the idlest guest of the network that has most. Whoever has been
    found to be more than a guest (:meth:`keep`) stays, unless there is no guest left anywhere: then a network that has
    more connections than the newcomer's gives its idlest. So nobody holds all places by being more than a guest many
    times. Nor does anybody keep us busy by coming back each time they had to go (:meth:`admits`)."""

    def __init__(self, places_max: int, per_network_max: int) -> None:
        self._newcomers = Buckets(NEWCOMERS)
        self._places_max = places_max
        self._per_network_max = per_network_max
        self._network: dict[int, str] = {}
        self._sizes: dict[str, int] = {}  # network -> its connections, guests or not
        self._heard: dict[int, int] = {}
        self._ticks = count()
        self._guests = _Crowd(self._heard)
        self._kept = _Crowd(self._heard)
        self._to_be_kept: set[int] = set()  # among the guests still: most are let go before anybody looks

    def __len__(self) -> int:
        return len(self._network)

    def of(self, network: str) -> int:
        """How many connections the network has."""
        return self._sizes.get(network, 0)

    def is_full(self, network: str) -> bool:
        """Whether somebody has to go for one more of the network."""
        return self.of(network) >= self._per_network_max or len(self._network) >= self._places_max

    def admits(self, network: str, now: float) -> bool:
        """Whether one more of the network is to be looked at: where others have to go for them, not more often than
        :data:`NEWCOMERS`. `now` as for :meth:`Buckets.take`."""
        return not (self.is_full(network) and self._newcomers.take(network, now))

    def enter(self, number: int, network: str) -> int | None:
        """A connection came in. The number of the one that has to go for it, which may be itself; it has left then."""
        self._network[number] = network
        self._heard[number] = next(self._ticks)
        self._sizes[network] = self._sizes.get(network, 0) + 1
        goes: int | None = None
        if self._sizes[network] > self._per_network_max or len(self._network) > self._places_max:
            self._sort_out()
        if self._sizes[network] > self._per_network_max:
            goes = self._guests.idlest(network)
            goes = number if goes is None else goes
        elif len(self._network) > self._places_max:
            goes = self._one_less(number, network)
        self._guests.add(number, network)
        if goes is not None:
            self.leave(goes)
        return goes

    def _one_less(self, number: int, network: str) -> int:
        goes = self._guests.idlest(self._guests.fullest()[0])
        if goes is not None:
            return goes
        fullest, many = self._kept.fullest()
        goes = self._kept.idlest(fullest)
        return number if goes is None or many <= self._sizes[network] else goes

    def heard(self, number: int) -> None:
        """It has asked for something: it is the least idle one now."""
        if number in self._heard:
            self._heard[number] = next(self._ticks)

    def keep(self, number: int) -> None:
        """More than a guest from now on."""
        network = self._network.get(number)
        if network is not None and number not in self._to_be_kept and not self._kept.has(number, network):
            self.heard(number)
            self._to_be_kept.add(number)

    def let_go(self, number: int) -> None:
        """A guest again."""
        if number in self._to_be_kept:
            self._to_be_kept.discard(number)
            self.heard(number)
        elif self._kept.remove(number, network := self._network.get(number, "")):
            self.heard(number)
            self._guests.add(number, network)

    def _sort_out(self) -> None:
        """Whoever has become more than a guest is one no more, now that somebody looks."""
        for number in self._to_be_kept:
            network = self._network[number]
            self._guests.remove(number, network)
            self._kept.add(number, network)
        self._to_be_kept.clear()

    def leave(self, number: int) -> None:
        """The connection is gone; nothing happens if it has left before."""
        network = self._network.pop(number, None)
        if network is None:
            return
        del self._heard[number]
        self._to_be_kept.discard(number)
        self._guests.remove(number, network)
        self._kept.remove(number, network)
        self._sizes[network] -= 1
        if not self._sizes[network]:
            del self._sizes[network]
