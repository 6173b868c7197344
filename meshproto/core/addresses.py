"""Which seeds a user's node knows, whom it tries next for a home, and how long it waits in between.

Addresses are *given* by the node's owner, *nearby* as long as seeds announce themselves on the local network, or
*learnt* from seeds. Nobody who was once heard of is given up for being
silent, or because a seed does not tell of them: a home that was cut off, or has just started, tells of too few. Only
who is told of at another address has moved there.

Whoever tells of seeds has this node dial what they tell of, and ask there for names. So what is learnt is less than
what may be given: it is by TLS where all that was given is, it never is where no message is sent, and it is on this
machine or link only for a node whose seeds are there.

The same seed may be known under a given and a learnt address (`localhost:5001`, `127.0.0.1:5001`). Who lives at an
address is what answers there at `hello`, for as long as that connection stands: then another seed may have come to live
there. What seeds tell counts where nobody has been asked.
"""

import random
from collections import Counter
from collections.abc import Iterable
from typing import Final

from meshproto.core.reach import FAR, LOCAL, Kind, Reach, kind_of
from meshproto.errors import BadParams
from meshproto.wire import TLS_PREFIX, SeedInfo, split_address

SEEDS_MAX: Final = 1000
"""Addresses learnt and kept: as many seeds as a mesh has (:data:`meshproto.wire.GOSSIP_SEEDS_MAX`)."""
SWITCH_MAX_S: Final = 0.05
"""Until the next seed is tried, while there is one that was not: its users do not leave a dead seed all at once."""
NEAR: Final = FAR | {Kind.LINK_LOCAL}
"""Where a seed of the local network may be."""
RETRY_FIRST_S: Final = 0.2
RETRY_MAX_S: Final = 5.0
"""While no seed answers. So a node is back this long after the network at most, and hurries nobody before."""


class Addresses:
    """`rng` chooses among seeds, and spreads delays."""

    def __init__(self, given: Iterable[str], learnt: Iterable[str], rng: random.Random) -> None:
        self._learnt = list(dict.fromkeys(learnt))
        self._nearby: list[str] = []
        self._round: list[str] = []
        self.give(given)
        self._rng = rng
        self._names: dict[str, str] = {}  # address -> the seed that answered there last, or is said to
        self._standing: Counter[str] = Counter()  # connections on which hello was answered
        self.directories: dict[str, str] = {}  # address -> the directory that the seed there shares with others
        self._dead: set[str] = set()  # where seeds are that the last home, or this node, found dead
        self._failed = 0

    def give(self, given: Iterable[str]) -> None:
        """The owner's choice, in place of the one before. A home stays one."""
        self._given = list(dict.fromkeys(given))
        self._tls_only = bool(self._given) and all(address.startswith(TLS_PREFIX) for address in self._given)
        self._reach: Reach = FAR | LOCAL & {kind_of(split_address(address)[0]) for address in self._given}
        usable = [address for address in self._learnt if self._is_usable(address, self._reach)]
        self._learnt = [address for address in usable if address not in self._given][:SEEDS_MAX]
        self._round.clear()

    @property
    def learnt(self) -> list[str]:
        """What is to be remembered for the next start."""
        return list(self._learnt)

    def known(self) -> list[str]:
        """Every seed that is known, those given first; once, as far as that can be told."""
        first = list(dict.fromkeys((*self._given, *self._nearby)))
        there = {self._names[address] for address in first if self._standing[address]}
        learnt = (address for address in self._learnt if address not in first)
        return [*first, *(address for address in learnt if self._names.get(address) not in there)]

    def to_ask(self, *, at_home: bool) -> list[str]:
        """Whom to ask for a name, in random order, those found dead last. A home seed would know who is not dead."""
        known = self.known()
        order = self._rng.sample(known, len(known))
        if at_home:
            order = [address for address in order if address not in self._dead or address in self._given]
        return sorted(order, key=self._dead.__contains__)

    # -- what becomes of them ------------------------------------------------------------------------------------

    def answered(self, address: str, name: str) -> None:
        """A seed has answered hello, on a connection that stands until :meth:`ended`."""
        self._names[address] = name
        self._standing[address] += 1
        self._dead.discard(address)

    def ended(self, address: str) -> None:
        """A connection to the address has ended."""
        self._standing[address] -= 1
        if self._standing[address] <= 0:
            del self._standing[address]
            self.directories.pop(address, None)  # it may come back with another

    def silent(self, address: str) -> None:
        """Nothing answers there."""
        self._dead.add(address)

    def found(self, nearby: Iterable[str]) -> None:
        """Where seeds announce themselves on the local network, all of them. Who is new is tried before those that were
        tried in vain."""
        before, self._nearby = self._nearby, [address for address in nearby if self._is_usable(address, NEAR)]
        self._dead.difference_update(set(self._nearby).difference(before))
        self._round.clear()

    def told(self, seeds: Iterable[SeedInfo], host: str = "") -> None:
        """The home seed says which seeds there are. `host`: the IP address at which it was dialled."""
        seeds = list(seeds)
        reach = self._reach | LOCAL & {kind_of(host)}
        told = [seed for seed in seeds if self._is_usable(seed.address, reach)]
        where = {seed.name: seed.address for seed in told}
        at = set(where.values())
        kept = [address for address in self._learnt if address not in at and self._names.get(address) not in where]
        self._dead = {seed.address for seed in told if not seed.alive} | self._dead.intersection(kept)
        known = [*dict.fromkeys(where.values()), *kept]
        self._learnt = [address for address in known if address not in self._given][:SEEDS_MAX]
        asked = {address: name for address, name in self._names.items() if self._standing[address]}
        names = self._names | {address: name for name, address in where.items()} | asked
        shared = {seed.name: seed.directory for seed in seeds if seed.directory}
        self.directories = {here: shared[name] for here, name in names.items() if name in shared}
        self._names = {here: names[here] for here in (*self._given, *self._learnt, *asked) if here in names}

    def _is_usable(self, address: str, reach: Reach) -> bool:
        """Whether the address, which is not given, may be dialled. What a name leads to is seen when it is."""
        if self._tls_only and not address.startswith(TLS_PREFIX):
            return False
        try:
            kind = kind_of(split_address(address)[0])
        except BadParams:
            return False
        return kind is None or kind in reach

    # -- looking for a home --------------------------------------------------------------------------------------

    def next(self) -> str | None:
        """The seed to try: each known one once in a round, in random order, those found dead last: they may be back, or
        never have been dead. None while no seed is known."""
        if not self._round:
            self._round = self.to_ask(at_home=False)
        return self._round.pop(0) if self._round else None

    def failed(self) -> None:
        """The seed that was tried is no home."""
        self._failed += 1

    def settled(self) -> None:
        """It is."""
        self._failed = 0
        self._round.clear()

    def retry_delay_s(self) -> float:
        """Until the next is tried: at once, and after a whole round in vain ever later."""
        rounds = self._failed / max(1, len(self.known()))
        if rounds < 1:
            return SWITCH_MAX_S * self._rng.random()
        return min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(rounds, 30)) * self._rng.uniform(0.5, 1.0)
