"""What one address may take of a node that serves many: requests by the second, and connections.

Addresses are counted by network (:func:`network_of`), so that one who has many of IPv6 counts once. Everything here is
bounded itself: what is remembered of a million addresses is as large as of ten thousand.
"""

import ipaddress
from collections import OrderedDict
from typing import Final, NamedTuple

NETWORKS_MAX: Final = 10_000
"""Networks whose use is remembered: about 2 MB. The one not heard of longest is forgotten; should it return it begins
anew."""
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


class Buckets:
    """A token bucket (RFC 2697 in its simplest form) for each network, all of one rate. Times in seconds, of one
    clock."""

    def __init__(self, rate: Rate, networks_max: int = NETWORKS_MAX) -> None:
        self._rate = rate
        self._networks_max = networks_max
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when it was

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, network: str, now: float, amount: float = 1.0) -> float:
        """0 when the network may have that much, which it then has had; else the seconds until it may, and it has had
        nothing. Nobody may ever have more than `burst` at once: more than that is given as if it were `burst`."""
        left, at = self._buckets.pop(network, (self._rate.burst, now))
        left = min(self._rate.burst, left + max(0.0, now - at) * self._rate.per_s)
        wanted = min(amount, self._rate.burst)
        missing = wanted - left
        self._buckets[network] = (left if missing > 0 else left - wanted, now)
        if len(self._buckets) > self._networks_max:
            self._buckets.popitem(last=False)
        return missing / self._rate.per_s if missing > 0 else 0.0

    def give_back(self, network: str, amount: float) -> None:
        """What the network has had does not count after all."""
        if network in self._buckets:
            left, at = self._buckets[network]
            self._buckets[network] = (min(self._rate.burst, left + amount), at)


class Places:
    """The connections there are, and which of them goes when there is no room for one more.

    A newcomer is never turned away for the sake of those who only wait: the idlest guest of its own network goes when
    the network has its share, and when all places are taken the idlest guest of the network that has most. Whoever has
    been found to be more than a guest (:meth:`keep`) stays."""

    def __init__(self, places_max: int, per_network_max: int) -> None:
        self._places_max = places_max
        self._per_network_max = per_network_max
        self._network: dict[int, str] = {}
        self._guests: dict[str, OrderedDict[int, None]] = {}  # network -> its guests, the idlest first
        self._sizes: dict[str, int] = {}  # network -> its connections, guests or not
        self._by_guests: dict[int, OrderedDict[str, None]] = {}  # number of guests -> the networks that have so many
        self._most = 0

    def __len__(self) -> int:
        return len(self._network)

    def of(self, network: str) -> int:
        """How many connections the network has."""
        return self._sizes.get(network, 0)

    def enter(self, number: int, network: str) -> int | None:
        """A connection came in. The number of the one that has to go for it, which may be itself; it has left then."""
        self._network[number] = network
        self._sizes[network] = self._sizes.get(network, 0) + 1
        goes: int | None = None
        if self._sizes[network] > self._per_network_max:
            goes = next(iter(self._guests.get(network, ())), number)
        elif len(self._network) > self._places_max:
            fullest = next(iter(self._by_guests[self._most])) if self._most else None
            goes = number if fullest is None else next(iter(self._guests[fullest]))
        self._add_guest(number, network)
        if goes is not None:
            self.leave(goes)
        return goes

    def heard(self, number: int) -> None:
        """A guest has asked for something: it is the least idle one now."""
        guests = self._guests.get(self._network.get(number, ""))
        if guests is not None and number in guests:
            guests.move_to_end(number)

    def keep(self, number: int) -> None:
        """More than a guest from now on."""
        network = self._network.get(number)
        if network is not None:
            self._remove_guest(number, network)

    def leave(self, number: int) -> None:
        """The connection is gone; nothing happens if it has left before."""
        network = self._network.pop(number, None)
        if network is None:
            return
        self._remove_guest(number, network)
        self._sizes[network] -= 1
        if not self._sizes[network]:
            del self._sizes[network]

    def _add_guest(self, number: int, network: str) -> None:
        guests = self._guests.setdefault(network, OrderedDict())
        self._file(network, len(guests), len(guests) + 1)
        guests[number] = None

    def _remove_guest(self, number: int, network: str) -> None:
        guests = self._guests.get(network, OrderedDict())
        if number not in guests:
            return
        self._file(network, len(guests), len(guests) - 1)
        del guests[number]
        if not guests:
            del self._guests[network]

    def _file(self, network: str, before: int, after: int) -> None:
        """Sizes change by one, so the largest is found without looking at all."""
        if before:
            del self._by_guests[before][network]
            if not self._by_guests[before]:
                del self._by_guests[before]
        if after:
            self._by_guests.setdefault(after, OrderedDict())[network] = None
        if after > self._most or self._most not in self._by_guests:
            self._most = after
