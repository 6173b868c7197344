"""One seed among seeds: whom it talks to and when, what it passes on, and who is alive.

Every second, jittered, it exchanges digests with a few live peers, and now and then with one that is silent or was only
heard of, for ever: so splits heal, and one address is enough to join. News does not wait for the round: it is pushed at
once to some peers, and passed on by those to whom it was news.

A connection to a seed that ends is looked after at once: when nobody listens there any more, the seed is dead.
"""

import math
import random
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from meshproto import wire
from meshproto.core import entry
from meshproto.core.effects import Effect, Exchange, Log, Push, SavePeer
from meshproto.core.gossip import CELL_OVERHEAD_BYTES, CLOCK_AHEAD_S, Change, Gossip, content
from meshproto.core.liveness import Liveness
from meshproto.errors import MeshError
from meshproto.wire import Delta, Digest, GossipParams, GossipResult

GOSSIP_INTERVAL_S: Final = 1.0
GOSSIP_PEERS: Final = 3
"""Live peers asked each round: news reaches N seeds in about log4(N) rounds even if every push is lost."""
GOSSIP_BYTES_MAX: Final = wire.LINE_BYTES_MAX - 2048
"""Digest and deltas of one line; the rest is for the request around them."""
DELTA_BYTES_MAX: Final = 24 * 1024
"""Deltas of one line: whoever reads them is busy for a few milliseconds, and a lookup that comes then waits so long."""
SILENT_PEERS: Final = 5
"""Addresses that do not answer, tried each round: fifty in ten seconds."""
PUSH_DELAY_S: Final = 0.02
"""Changes within this time travel together."""
PUSH_PEERS: Final = 6
"""Peers that hear of news at once from each seed it reaches; what they all miss the rounds repair."""
REDIAL_DEAD_S: Final = 2.0
"""A dead seed or a bootstrap address is tried no more often, for ever. With the time a dial may take, two seeds find
each other within five seconds after a cut has healed."""
PROBE_S_MAX: Final = 0.3
"""Within this time a seed whose connection ended is called again; spread, since all its peers do so."""
RELAY_BYTES_MAX: Final = GOSSIP_BYTES_MAX - 2048
"""Cells of a delta that is passed on; larger ones the rounds bring."""
FACTS_KEY: Final = "@"
"""No name contains it: where a seed writes about itself."""
PHI_SHOWN_MAX: Final = 99.0


class SeedView(Struct, frozen=True):
    """What is known of a seed. `since`: when it was last found alive or dead (seconds since 1970 UTC), `lag`: versions
    of its key space that are known to exist and were not read yet."""

    name: str
    address: str
    alive: bool
    since: float
    users: int
    phi: float
    version: int
    lag: int
    itself: bool
    directory: str = ""


class Peering:
    """`forget_s`: a seed that was not alive for so long is as if it had never been."""

    def __init__(
        self, name: str, address: str, *, now: float, rng: random.Random, bootstrap: Iterable[str], forget_s: float
    ) -> None:
        self.name = name
        self.address = address
        self.gossip = Gossip(name, int(now * 1000), entry)
        self._forget_s = forget_s
        self.liveness = Liveness(now)
        self.addresses: dict[str, str] = {}  # other seeds: name -> address
        self.directories: dict[str, str] = {}  # seeds that share one, which may be this one too: name -> directory
        self._names: dict[str, str] = {}  # address -> seed: what seeds say, and who answered there
        self._bootstrap = [peer for peer in bootstrap if peer != address]
        self._nearby: list[str] = []
        self._rng = rng
        self._started = now
        self._complaints: dict[tuple[str, str], str] = {}  # seed, kind -> what was logged
        self._asked: dict[str, float] = {}  # seeds -> when they last asked for an exchange
        self._stages: dict[str, int] = {}  # addresses with which an exchange goes on -> how far it had come
        self._redial: dict[str, float] = {}  # addresses that do not answer -> when to try again
        self._probes: dict[str, float] = {}  # addresses to be called soon -> when
        self._states: dict[str, tuple[bool, float]] = {}  # alive, since when
        self.next_round = now
        self._push_at: float | None = None
        self._pushed = 0
        self._relay: list[Delta] = []
        self._gone: dict[str, int] = {}  # seeds that were found dead here -> the generation that died
        self._tell_facts()

    @property
    def wake_at(self) -> float:
        times = [self.next_round, *self._probes.values()]
        return min(times if self._push_at is None else [*times, self._push_at])

    def alive(self, seed: str, now: float) -> bool:
        return seed == self.name or self.liveness.alive(seed, now)

    def lives(self, seed: str, life: int, now: float) -> bool:
        """Whether the seed is alive, and has not been restarted since that life of it."""
        space = self.gossip.spaces.get(seed)
        return space is not None and space.generation <= life and self.alive(seed, now)

    def name_at(self, address: str) -> str | None:
        return self._names.get(address)

    def greeted(self, address: str, seed: str) -> None:
        """A seed may be reached at more addresses than the one it tells of (`localhost`, say)."""
        if address in (*self._bootstrap, *self._nearby) and seed != self.name:
            self._names[address] = seed

    def give(self, added: Iterable[str], removed: Iterable[str]) -> None:
        """The operator's choice has changed: whom to call besides those who are known."""
        gone = frozenset(removed)
        kept = [peer for peer in self._bootstrap if peer not in gone]
        self._bootstrap = [peer for peer in dict.fromkeys([*kept, *added]) if peer != self.address]

    def found(self, nearby: Iterable[str]) -> None:
        """Where seeds announce themselves on the local network, all of them: dialled as bootstrap addresses are, for as
        long as they are announced."""
        self._nearby = list(nearby)

    def moved(self, address: str, now: float) -> None:
        """This seed is dialled at another address from now on."""
        self.address = address
        self._tell_facts()
        self.push_soon(now)

    def begin(self) -> None:
        """What was written up to here is no news to anybody."""
        self._pushed = self.gossip.own.version

    def stepped(self, by_s: float) -> None:
        """The clock was set: what was planned is as far off as before, and nobody is taken for silent, or for dead."""
        self.gossip.stepped(by_s)
        self.liveness.stepped(by_s)
        self.next_round += by_s
        self._push_at = None if self._push_at is None else self._push_at + by_s
        for times in (self._asked, self._redial, self._probes):
            times.update({key: at + by_s for key, at in times.items()})

    # -- hearing -------------------------------------------------------------------------------------------------

    def hear(
        self, digest: Digest, deltas: list[Delta], now: float, *, teller: str | None, pushed: bool
    ) -> tuple[list[Change], list[Effect]]:
        """Take in what a seed tells: the changes in what users' seeds say, and what follows of its own facts. `pushed`
        news is passed on: what a round brings is old to most."""
        effects: list[Effect] = []
        changes: list[Change] = []
        generation = self.gossip.own.generation
        since, until = now - self._forget_s, now + CLOCK_AHEAD_S
        alive = self.gossip.heard(digest, since, until)
        if teller in digest:
            dated = since <= digest[teller].generation / 1000 + digest[teller].heartbeat <= until
            wrong = f"the clock of seed {teller}, or that of this seed, is wrong: nothing that it says is believed"
            effects += self._complain(teller, "clock", None if dated else wrong)
            self.gossip.told_by_itself(teller, digest[teller])
        if teller in digest and teller in self.gossip.spaces and not self.liveness.knows(teller):
            alive.append(teller)  # what others say counts from the second heartbeat on: the first may be an old one
        for seed in alive:
            # Of a seed that was found dead an old heartbeat may still go round, but a new life is no old news.
            reborn = seed in self._gone and digest[seed].generation > self._gone[seed]
            self.liveness.heard(seed, now, directly=seed == teller or reborn)
        if self.gossip.own.generation != generation:
            effects.append(Log(f"a later life of {self.name} is known: its clock was set back, or two have this name"))
        for delta in deltas:
            small = [cell for cell in delta.cells if len(cell.value) <= wire.CELL_BYTES_MAX]
            if len(small) < len(delta.cells):
                large = f"dropped what was told of seed {delta.seed}: a value is larger than seeds pass on"
                effects += self._complain(delta.seed, "large", large)
                delta = msgspec.structs.replace(delta, cells=small)  # noqa: PLW2901
            fresh = self.gossip.merge(delta)
            if fresh and pushed and _fits(delta):
                self._relay.append(delta)
                self.push_soon(now)
            for change in fresh:
                if change.key == FACTS_KEY:
                    effects += self._meet(change, now)
                else:
                    changes.append(change)
        return changes, effects

    def _complain(self, seed: str, kind: str, text: str | None) -> list[Effect]:
        """A log entry, once for as long as it is so; None: it is not so any more."""
        before = self._complaints.pop((seed, kind), None)
        if text is None:
            return []
        self._complaints[seed, kind] = text
        if len(self._complaints) > wire.GOSSIP_SEEDS_MAX:
            del self._complaints[next(iter(self._complaints))]
        return [] if before == text else [Log(text)]

    def forget(self, now: float) -> list[Change]:
        """The seeds that have not been alive for too long, and all that they had said."""
        changes: list[Change] = []
        for seed, space in list(self.gossip.spaces.items()):
            if seed != self.name and space.generation / 1000 + space.heartbeat < now - self._forget_s:
                changes += [change for change in self.gossip.forget(seed) if change.key != FACTS_KEY]
                self._leave_address(seed)
                self._states.pop(seed, None)
                self._asked.pop(seed, None)
                self.liveness.forget(seed)
        return changes

    def answer(self, asker: str, digest: Digest, now: float) -> GossipResult:
        if asker in self.gossip.spaces:
            self._asked[asker] = now
        return GossipResult(self.gossip.digest(), *self._lacking(digest))

    def exchanged(self, address: str, result: GossipResult, now: float) -> list[Effect]:
        """After :meth:`hear`: what the other side lacks. It goes on at once for as long as either side gets ahead: the
        other may not take what it is told, or promise more than it has. Whoever asks this seed at the same time is told
        in the answers; two exchanges would carry everything twice."""
        self._redial.pop(address, None)
        asks = self._asked.get(self._names.get(address, ""), -math.inf) > now - GOSSIP_INTERVAL_S
        delta, more = self._lacking(result.digest)
        if result.more or ((delta or more) and not asks):
            stage = self.gossip.come_to(result.digest)
            if stage > self._stages.get(address, -1):
                self._stages[address] = stage
                return [Exchange(address, GossipParams(self.gossip.digest(), delta))]
        self._stages.pop(address, None)
        return []

    def unreachable(self, address: str, now: float, *, refused: bool) -> None:
        """Nobody answered at the address; `refused`: nobody listens there."""
        self._stages.pop(address, None)
        self._redial[address] = now + REDIAL_DEAD_S * self._rng.uniform(0.75, 1.25)
        seed = self._names.get(address)
        if refused and seed is not None and self.liveness.alive(seed, now):
            self.liveness.bury(seed, now)
            self._gone[seed] = self.gossip.spaces[seed].generation
            self._gone = dict(list(self._gone.items())[-wire.GONE_SEEDS_MAX :])
            self._tell_facts()
            self.push_soon(now)

    def _tell_facts(self) -> None:
        facts = wire.SeedFacts(self.address, self._gone, self.directories.get(self.name, ""))
        self.gossip.put(FACTS_KEY, wire.encode_value(facts))

    def share(self, directory: str) -> None:
        """This seed knows the same users as all others that say the same."""
        self.directories[self.name] = directory
        self._tell_facts()

    def _forget_gone(self, now: float) -> None:
        """Deaths that are over, or that everybody has had the time to see."""
        spaces, gone = self.gossip.spaces, self._gone
        kept = {seed: life for seed, life in gone.items() if self.liveness.doubted(seed, now)}
        kept = {seed: life for seed, life in kept.items() if seed in spaces and spaces[seed].generation == life}
        if kept != gone:
            self._gone = kept
            self._tell_facts()

    def lost(self, address: str, now: float) -> None:
        """A connection from or to the seed there has ended: call it, to see whether it lives."""
        if address in self._names and address not in self._probes:
            self._probes[address] = now + self._rng.uniform(0.0, PROBE_S_MAX)

    def _meet(self, change: Change, now: float) -> list[Effect]:
        """A seed says where it listens, and whom it has found dead."""
        if change.stored is None:
            self._leave_address(change.seed)
            return []
        try:
            facts = wire.decode_value(content(change.stored), wire.SeedFacts)
        except MeshError as error:
            return [Log(f"dropped what seed {change.seed} says of itself: {error.detail}")]
        if facts.address == self.address:
            return [Log(f"seed {change.seed} says that it listens at this seed's own address {self.address}")]
        self._look_after(facts.gone, now)
        former = self.addresses.get(change.seed)
        if former == facts.address:
            self._says_shared(change.seed, facts.directory)
            return []
        if former is not None and former not in self._bootstrap:
            self._leave_address(change.seed)
        self.addresses[change.seed] = facts.address
        self._says_shared(change.seed, facts.directory)
        holder = self._names.get(facts.address)
        if holder is None or not self.alive(holder, now):  # a seed that lives is not driven out of its address
            self._names[facts.address] = change.seed
        return [SavePeer(facts.address)]

    def _says_shared(self, seed: str, directory: str) -> None:
        self.directories.pop(seed, None)
        if directory:
            self.directories[seed] = directory

    def _leave_address(self, seed: str) -> None:
        """It is not there any more; another may be."""
        self.directories.pop(seed, None)
        address = self.addresses.pop(seed, "")
        if self._names.get(address) == seed:
            del self._names[address]

    def _look_after(self, gone: dict[str, int], now: float) -> None:
        """Another's word kills nobody, but is reason enough to call whom it says to be dead."""
        for seed, life in gone.items():
            space = self.gossip.spaces.get(seed)
            known = seed in self.addresses and space is not None and space.generation == life
            if known and self.liveness.alive(seed, now):
                self.lost(self.addresses[seed], now)

    # -- telling -------------------------------------------------------------------------------------------------

    def push_soon(self, now: float) -> None:
        if self._push_at is None:
            self._push_at = now + PUSH_DELAY_S

    def tick(self, now: float) -> list[Effect]:
        """Do what is due."""
        effects: list[Effect] = []
        if self.next_round > now + 2 * GOSSIP_INTERVAL_S:  # the clock was set back: what was planned is far off
            self.next_round = now
            self._redial.clear()
            self._probes = dict.fromkeys(self._probes, now)
        if now >= self.next_round:
            lag_s = now - self.next_round
            self.next_round = now + GOSSIP_INTERVAL_S * self._rng.uniform(0.8, 1.2)
            effects += self._round(now, lag_s)
        if self._push_at is not None and now >= self._push_at:
            effects += self._push(now)
        for address in [address for address, at in self._probes.items() if at <= now]:
            del self._probes[address]
            effects.append(Exchange(address, GossipParams(self.gossip.digest())))
        return effects

    def _round(self, now: float, lag_s: float) -> list[Effect]:
        """One gossip round: some live peers, and now and then one that is silent or was only heard of."""
        self.gossip.beat(now)
        self.gossip.collect(now)
        self.liveness.tick(now, lag_s)
        self._forget_gone(now)
        live = self._live(now)
        known = {*self._bootstrap, *self._nearby, *self.addresses.values()} - {*live, self.address}
        silent = sorted(address for address in known if not self._answers_elsewhere(address, now))
        due = [address for address in silent if self._redial.get(address, now) <= now]
        chosen = self._rng.sample(live, min(GOSSIP_PEERS, len(live)))
        chosen += self._rng.sample(due, min(SILENT_PEERS, len(due)))
        digest = self.gossip.digest()
        return [Exchange(address, GossipParams(digest)) for address in chosen]

    def _answers_elsewhere(self, address: str, now: float) -> bool:
        """Whether it is but another address of a seed that is alive."""
        seed = self._names.get(address)
        return seed == self.name or (seed in self.addresses and self.liveness.alive(seed, now))

    def _push(self, now: float) -> list[Effect]:
        """Tell some live peers what is new: own writes, and what was heard from others."""
        self._push_at = None
        deltas, self._relay = self._relay, []
        if self.gossip.own.version > self._pushed:
            deltas.append(self.gossip.news(self._pushed, GOSSIP_BYTES_MAX // 2))
            self._pushed = self.gossip.own.version
        live = self._live(now)
        peers = self._rng.sample(live, min(PUSH_PEERS, len(live)))
        own = {self.name: self.gossip.own.summary}
        return [Push(peer, GossipParams(own, [delta])) for peer in peers for delta in deltas]

    def _lacking(self, digest: Digest) -> tuple[list[Delta], bool]:
        """What its writer lacks, as much of it as fits into a line with a digest; and whether there is more."""
        if not self.gossip.lacking(digest):
            return [], False  # as most of the time: nothing has to be measured
        room_bytes = GOSSIP_BYTES_MAX - len(wire.encode_value(self.gossip.digest()))
        return self.gossip.delta(digest, min(room_bytes, DELTA_BYTES_MAX))

    # -- looking -------------------------------------------------------------------------------------------------

    def _live(self, now: float) -> list[str]:
        """The addresses of the others that are alive; notes on the way who has changed."""
        live = []
        for name in sorted(self.addresses):
            alive = self.liveness.alive(name, now)
            if self._states.get(name, (None, 0.0))[0] is not alive:
                self._states[name] = (alive, now)
            if alive:
                live.append(self.addresses[name])
        return live

    def views(self, now: float, users: Mapping[str, int]) -> list[SeedView]:
        """This seed and all that are known, by name. `users`: how many each has."""
        self._live(now)
        own = self.gossip.own
        views = [
            SeedView(
                self.name,
                self.address,
                True,
                self._started,
                users.get(self.name, 0),
                0.0,
                own.version,
                0,
                True,
                self.directories.get(self.name, ""),
            )
        ]
        for name, address in sorted(self.addresses.items()):
            alive, since = self._states[name]
            space = self.gossip.spaces[name]
            phi = min(PHI_SHOWN_MAX, self.liveness.phi(name, now))
            lag = max(0, space.head - space.version)
            shared = self.directories.get(name, "")
            views.append(
                SeedView(name, address, alive, since, users.get(name, 0), phi, space.version, lag, False, shared)
            )
        return views


def _fits(delta: Delta) -> bool:
    """Whether the delta may be passed on beside an own summary: it came in a line that may have been full."""
    return sum(len(cell.value) + len(cell.key) + CELL_OVERHEAD_BYTES for cell in delta.cells) <= RELAY_BYTES_MAX
