"""The links of a seed: who registered over which, until when they count as present, and who watches what.

Presence is the connection: whoever registered over a link is online while that link lives and is heard from within
the lease.
"""

import ipaddress
import math
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from meshproto.core.limits import called, network_of
from meshproto.core.meshkey import Handshake
from meshproto.core.rates import WATCHED_PER_NETWORK_MAX
from meshproto.core.reach import Kind, kind_of
from meshproto.errors import SlowDown

REGISTRATIONS_PER_LINK_MAX: Final = 100
"""A node registers itself; a gateway may register a few dozen names."""
WATCHES_PER_LINK_MAX: Final = 10_000
"""A name costs about 200 bytes to watch: 2 MB for one link."""


class Role(StrEnum):
    """What a link is for."""

    SEED = "seed"
    """It gossips."""
    USER = "user"
    """Somebody is registered over it, or watches."""
    GUEST = "guest"


@dataclass
class Session:
    """One link. `host`: the IP address at its other end, `""` when there is none. `handshake`: what it has to prove.
    `seed`: the name of the seed that gossips over it. `proven`: it has shown the register token. `welcome`: something
    that it asked was right. `credit`: requests that are counted already. `names` and `watched` are folded."""

    host: str
    handshake: Handshake | None = None
    seed: str | None = None
    proven: bool = False
    welcome: bool = False
    credit: int = 0
    names: set[str] = field(default_factory=set)
    watched: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.network = network_of(self.host)

    @property
    def local(self) -> bool:
        """Whether it comes from this machine."""
        return not self.host or kind_of(self.host) is Kind.LOOPBACK

    @property
    def guest(self) -> bool:
        """Whether nobody is registered over it, watches or gossips."""
        return not (self.names or self.watched or self.seed)

    @property
    def role(self) -> Role:
        if self.seed:
            return Role.SEED
        return Role.GUEST if self.guest else Role.USER

    @property
    def trusted(self) -> bool:
        """Whether it may gossip where no mesh key is asked for: it is on this machine or a private network (RFC 1918,
        RFC 4193)."""
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return address.is_private or address.is_loopback


class Sessions(dict[int, Session]):
    """By link."""

    def __init__(self, lease_s: float) -> None:
        super().__init__()
        self._lease_s = lease_s
        self._leases: dict[int, float] = {}  # link -> deadline, earliest first
        self._link_of: dict[str, int] = {}
        self._watchers: dict[str, set[int]] = {}
        self._watched: Counter[str] = Counter()  # network -> names, each as often as it is watched

    @property
    def wake_at(self) -> float:
        """When the next lease ends."""
        return next(iter(self._leases.values()), math.inf)

    def stepped(self, by_s: float) -> None:
        """The clock was set: every lease is as long as before."""
        self._leases = {link: until + by_s for link, until in self._leases.items()}

    def opened(self, link: int, host: str) -> None:
        self[link] = Session(host)

    def closed(self, link: int) -> None:
        session = self.pop(link)
        self._leases.pop(link, None)
        self.unwatch(link, session, session.watched.copy())
        for key in session.names:
            if self._link_of.get(key) == link:
                del self._link_of[key]

    # -- who is registered here ----------------------------------------------------------------------------------

    def check_room(self, link: int, key: str) -> None:
        """Raises :class:`SlowDown` when no further name may be registered over the link."""
        names = self[link].names
        if key not in names and len(names) >= REGISTRATIONS_PER_LINK_MAX:
            raise SlowDown(f"at most {REGISTRATIONS_PER_LINK_MAX} names may be registered over one connection")

    def register(self, link: int, key: str) -> None:
        """The name's user is at the other end of this link, and of no other."""
        former = self._link_of.get(key)
        if former is not None and former != link:
            self[former].names.discard(key)
        self[link].names.add(key)
        self._link_of[key] = link

    def unregister(self, key: str) -> int | None:
        """Nobody is registered any more: the link over which somebody was."""
        link = self._link_of.pop(key, None)
        if link is not None:
            self[link].names.discard(key)
        return link

    def link_of(self, key: str) -> int | None:
        return self._link_of.get(key)

    def names_of(self, link: int) -> list[str]:
        """Those whose latest registration came over this link."""
        return sorted(key for key in self[link].names if self._link_of.get(key) == link)

    def renew(self, link: int, now: float) -> bool:
        """A sign of life; whether there was no lease any more. The mapping stays in the order of the deadlines because
        every lease is equally long."""
        lapsed = self._leases.pop(link, None) is None
        self._leases[link] = now + self._lease_s
        return lapsed

    def leased(self, link: int) -> bool:
        """Whether the link's users still count as present."""
        return link in self._leases

    def lapse(self, now: float) -> list[int]:
        """The links whose lease has ended."""
        over = []
        while self.wake_at <= now:
            over.append(next(iter(self._leases)))
            del self._leases[over[-1]]
        return over

    # -- who wants to know ---------------------------------------------------------------------------------------

    def watch(self, link: int, keys: set[str]) -> None:
        """Raises :class:`SlowDown`."""
        session = self[link]
        if len(session.watched | keys) > WATCHES_PER_LINK_MAX:
            raise SlowDown(f"at most {WATCHES_PER_LINK_MAX} names may be watched over one connection")
        if self._watched[session.network] + len(keys - session.watched) > WATCHED_PER_NETWORK_MAX:
            raise SlowDown(f"at most {WATCHED_PER_NETWORK_MAX} names may be watched from {called(session.network)}")
        self._watched[session.network] += len(keys - session.watched)
        session.watched |= keys
        for key in keys:
            self._watchers.setdefault(key, set()).add(link)

    def unwatch(self, link: int, session: Session, keys: set[str]) -> None:
        self._watched[session.network] -= len(session.watched & keys)
        if not self._watched[session.network]:
            del self._watched[session.network]
        session.watched -= keys
        for key in keys:
            watchers = self._watchers.get(key, set())
            watchers.discard(link)
            if not watchers:
                self._watchers.pop(key, None)

    def watched(self, keys: set[str]) -> list[str]:
        """Those of the keys that somebody watches."""
        return sorted(keys & self._watchers.keys())

    def watchers(self, key: str) -> tuple[int, ...]:
        return tuple(self._watchers.get(key, ()))
