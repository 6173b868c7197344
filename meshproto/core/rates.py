"""What one network may ask of a seed: by the second, by the hour, and to be watched at a time.

What is cheap is counted in advance, some requests at a time, because counting costs as much as a lookup does.
"""

from typing import Final

from meshproto import wire
from meshproto.core.limits import Buckets, Rate, called
from meshproto.errors import SlowDown

REQUESTS: Final = Rate(per_s=1_000_000, burst=2_000_000)
"""In lookups. More of these than one core answers, since links take turns anyway: it is for what costs more."""
REQUESTS_AT_ONCE: Final = 16
"""Counted at a time for one link. Making a connection costs as much."""
COSTS: Final[dict[type[wire.AnyRequest], int]] = {
    wire.Seeds: 4000,  # of a mesh of a thousand seeds: a millisecond or two, and 60 kB
    wire.Status: 1200,
    wire.Names: 1200,  # a page: two milliseconds
    wire.Watch: 200,
    wire.Unwatch: 200,
    wire.Hello: 40,
    wire.Register: 120,
    wire.Unregister: 120,
}
"""What a request costs, in lookups."""
REGISTRATIONS: Final = Rate(per_s=100, burst=2000)
"""Each is a signature to verify and a row for the disk. When a seed comes back all users of a large site register
within a second or two; after that it is one by one."""
NEW_NAMES: Final = Rate(per_s=200 / 3600, burst=1000)
"""Names that nobody had: each stays in the memory of every seed, 600 bytes for thirty days. Enough to set up a site of
a thousand; then 200 an hour. This machine itself may register as many as it likes."""
WATCHED_PER_NETWORK_MAX: Final = 100_000
"""Twenty full links of one network, and 20 MB."""


class Rates:
    """What each network has had. All raise :class:`SlowDown`. Times in seconds, of the wall clock as all of the core's:
    when that steps forward a network has its burst again at most, and when it steps back nobody waits the longer."""

    def __init__(self) -> None:
        self._requests = Buckets(REQUESTS)
        self._registrations = Buckets(REGISTRATIONS)
        self._new_names = Buckets(NEW_NAMES)

    def ask(self, network: str, amount: int, now: float) -> None:
        """So many lookups' worth of requests."""
        _refuse(self._requests.take(network, now, amount), f"too many requests from {called(network)}")

    def register(self, network: str, now: float) -> None:
        """A registration or a farewell, of whatever name."""
        _refuse(self._registrations.take(network, now), f"too many registrations from {called(network)}")

    def new_name(self, network: str, now: float) -> None:
        """A name that this seed has never heard of."""
        _refuse(self._new_names.take(network, now), f"too many new names from {called(network)}")


def _refuse(wait_s: float, what: str) -> None:
    if wait_s:
        raise SlowDown(what, retry_after_s=round(wait_s, 3))
