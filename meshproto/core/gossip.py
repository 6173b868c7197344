"""Scuttlebutt: how seeds come to know the same things (van Renesse, Dumitriu, Gough, Thomas: "Efficient Reconciliation
and Flow Control for Anti-Entropy Protocols", LADIS 2008), as Cassandra and chitchat do it.

Each seed writes one key space, its own; every write takes the next version. Seeds tell each other in a digest how far
they have read each space, and send what the other lacks, oldest first, within a byte budget. The invariant: whoever
stands at version V of a space knows the last value of every key that was written at or before V and not after it.

A deletion is a tombstone, a value of `null`. The owner collects tombstones after a grace period and says up to which
version; whoever had not read so far starts that space again. A space that starts again (also because its seed was
restarted: a new generation) keeps what was known before, as `stale`, until it has caught up, so nothing that still
exists is unknown in between.

What a value means is not known here. It travels as JSON; in which form it is kept says a :class:`Packing`.

A heartbeat is the number of seconds since the seed was started, so a summary tells when its seed was last alive by its
own clock, and everybody comes to the same answer on who has been gone for too long to be remembered.
"""

import math
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from msgspec import Raw

from meshproto.wire import GOSSIP_SEEDS_MAX, Cell, Delta, Summary

TOMBSTONE: Final = b"null"
TOMBSTONE_GRACE_S: Final = 3600.0
"""A seed that was cut off for longer reads the whole space again instead of the changes alone."""
CELL_OVERHEAD_BYTES: Final = 24
"""`["",1234567890,],` around a cell's key and value."""
DELTA_OVERHEAD_BYTES: Final = 160
"""A delta's own numbers, its seed's name and its brackets."""
HEARTBEAT_AHEAD_S: Final = 3600
"""Rounds are a second long on average only, and clocks are set right by minutes."""
CLOCK_AHEAD_S: Final = 86400.0
"""A generation is the time at which a seed was started, and its heartbeats are seconds since then: nobody believes in a
seed that lives more than a day ahead of their clock."""
CLOCK_MARGIN_S: Final = 60.0
"""A seed whose generation others have pushed to that edge stays so far behind it."""
DIGEST_BYTES_MAX: Final = 57 * 1024
"""All summaries of a digest: what a line has, less room for the request and for one cell."""
SUMMARY_BYTES: Final = 53
"""`"":[1795343300123,1234567890,1234567890,1234567890],` around a seed's name."""
VERSION_BYTES: Final = 5
"""What is stored begins with them, see :func:`content`; versions are below 10**10."""
_LOG_SLACK: Final = 1024


class Change(NamedTuple):
    """A key of a seed's space was written: its value as it is stored (:func:`content`), which may be the one it had
    before; None: it has none any more."""

    seed: str
    key: str
    stored: bytes | None


class Packing(Protocol):
    """In which form values are kept."""

    def pack(self, seed: str, key: str, value: bytes, /) -> bytes:
        """JSON text in a seed's space -> what is kept; `null` stays `null`."""

    def unpack(self, packed: bytes, /) -> bytes:
        """The JSON text, byte for byte."""


class AsItComes:
    """The :class:`Packing` that does nothing."""

    def pack(self, _seed: str, _key: str, value: bytes) -> bytes:
        return value

    def unpack(self, packed: bytes) -> bytes:
        return packed


def content(stored: bytes) -> bytes:
    """The packed value. What is stored is its version and then the value, in one piece: of a million values each, two
    objects would cost 60 MB more."""
    return stored[VERSION_BYTES:]


def version_of(stored: bytes) -> int:
    return int.from_bytes(stored[:VERSION_BYTES])


def is_tombstone(stored: bytes) -> bool:
    return stored.endswith(TOMBSTONE) and content(stored) == TOMBSTONE


@dataclass
class Space:
    """What one seed wrote, as far as it was read here. `version`: read up to here; `head`: how far there is known to
    be something to read; `collected`: what was deleted up to here may be missing, and no value that is known here was
    (but while `version` is below `mixed`: then the space was read from some who had collected so far and some who had
    not, and nobody can read it from here).
    The log lists every (version, key) in order; entries that a later write of the same key has overtaken are skipped,
    and dropped once they are the greater part."""

    generation: int
    heartbeat: int = 0
    version: int = 0
    head: int = 0
    collected: int = 0
    mixed: int = 0
    values: dict[str, bytes] = field(default_factory=dict)
    stale: dict[str, bytes] = field(default_factory=dict)
    _log_versions: "array[int]" = field(default_factory=lambda: array("Q"))
    _log_keys: list[str] = field(default_factory=list)

    @property
    def summary(self) -> Summary:
        return Summary(self.generation, self.heartbeat, self.version, self.collected)

    def write(self, key: str, version: int, packed: bytes) -> bytes:
        """What is stored."""
        stored = self.values[key] = version.to_bytes(VERSION_BYTES) + packed
        self._log_versions.append(version)
        self._log_keys.append(key)
        self.version = version
        self.head = max(self.head, version)
        if len(self._log_keys) > 2 * len(self.values) + _LOG_SLACK:
            self._compact()
        return stored

    def after(self, version: int) -> Iterator[tuple[str, int, bytes]]:
        """Key, version and stored value of every key whose last write came after `version`, oldest write first."""
        for at in range(bisect_right(self._log_versions, version), len(self._log_keys)):
            key = self._log_keys[at]
            stored = self.values.get(key)
            if stored is not None and version_of(stored) == self._log_versions[at]:
                yield key, self._log_versions[at], stored

    def collect(self, upto: int) -> None:
        """Forget the tombstones written at or before `upto`."""
        upto = min(upto, self.version)
        if upto <= self.collected:
            return
        for key, version, stored in self.after(self.collected):
            if version > upto:
                break
            if is_tombstone(stored):
                del self.values[key]
        self.collected = upto

    def restart(self, generation: int, collected: int) -> None:
        """Begin at version 0 again; what was known stays as `stale`. Another generation counts its heartbeats anew."""
        self.stale = {**self.stale, **self.values} if self.stale else self.values
        if generation != self.generation:
            self.heartbeat = 0
        self.generation, self.collected = generation, collected
        self.version = self.head = self.mixed = 0
        self.values = {}
        self._log_versions, self._log_keys = array("Q"), []

    def _compact(self) -> None:
        live = list(self.after(0))
        self._log_versions = array("Q", (version for _, version, _ in live))
        self._log_keys = [key for key, _, _ in live]


class Gossip:
    """Every key space as far as it is known here. `generation` tells a restarted seed from its former self: ms since
    1970 UTC at start will do. Seeds past :data:`meshproto.wire.GOSSIP_SEEDS_MAX`, or whose names would not fit into a
    digest any more, are not taken up."""

    def __init__(self, seed: str, generation: int, packing: Packing | None = None) -> None:
        self.seed = seed
        self.own = Space(generation)
        self.spaces: dict[str, Space] = {seed: self.own}
        self.advances = 0  # how often something was heard that was new here
        self._digest: dict[str, Summary] = {}
        self._touched = {seed}  # the spaces whose summary in the digest is not up to date
        self._packing = packing or AsItComes()
        self._tombstones: deque[tuple[float, int]] = deque()

    # -- writing the own space -----------------------------------------------------------------------------------

    def beat(self, now: float) -> None:
        """Another heartbeat; the time (seconds since 1970 UTC) bounds it from below, and from above: when it has come
        far ahead, since the clock was set back or somebody told of a later heartbeat, a new life begins."""
        self._touched.add(self.seed)
        own = self.own
        passed = int(now) - own.generation // 1000
        if own.heartbeat > max(0, passed) + HEARTBEAT_AHEAD_S:
            own.generation, own.heartbeat, passed = max(own.generation + 1, int(now * 1000)), 0, 0
        if own.generation / 1000 + own.heartbeat < now + CLOCK_AHEAD_S - CLOCK_MARGIN_S:
            own.heartbeat = max(own.heartbeat + 1, passed)

    def put(self, key: str, packed: bytes) -> bytes:
        """Write a packed value: what is stored."""
        self._touched.add(self.seed)
        return self.own.write(key, self.own.version + 1, packed)

    def delete(self, key: str, now: float) -> None:
        known = self.own.values.get(key)
        if known is not None and not is_tombstone(known):
            self.put(key, TOMBSTONE)
            self._tombstones.append((now, self.own.version))

    def collect(self, now: float) -> None:
        """Collect the own tombstones whose grace is over."""
        upto = 0
        while self._tombstones and self._tombstones[0][0] + TOMBSTONE_GRACE_S <= now:
            upto = self._tombstones.popleft()[1]
        if upto:
            self._touched.add(self.seed)
            self.own.collect(upto)

    def stepped(self, by_s: float) -> None:
        """The clock was set: what is left of each grace stays the same."""
        self._tombstones = deque((at + by_s, version) for at, version in self._tombstones)

    # -- telling -------------------------------------------------------------------------------------------------

    def digest(self) -> dict[str, Summary]:
        while self._touched:
            seed = self._touched.pop()
            if seed in self.spaces:
                self._digest[seed] = self.spaces[seed].summary
        return self._digest.copy()

    def lacking(self, digest: dict[str, Summary]) -> list[str]:
        """The seeds of whose spaces the writer of `digest` lacks something, those first of which it lacks least: so
        small news is not held up by a large catch-up."""
        found: list[tuple[int, str]] = []
        for seed, space in self.spaces.items():
            known = digest.get(seed)
            if space.version < space.mixed:
                continue
            if known is None:
                if _summary_bytes(seed) <= _room_bytes(digest):
                    found.append((space.version, seed))
            elif known.generation < space.generation or (
                known.version < space.version and known.generation == space.generation
            ):
                found.append((space.version - _base(known, space), seed))
        return [seed for _, seed in sorted(found)]

    def delta(self, digest: dict[str, Summary], bytes_max: int) -> tuple[list[Delta], bool]:
        """What the writer of `digest` lacks, within `bytes_max` bytes of JSON; and whether there is more. One cell is
        told in any case: it will not get smaller."""
        deltas: list[Delta] = []
        for seed in self.lacking(digest):
            delta, size = self._delta_of(seed, digest.get(seed), bytes_max)
            if deltas and size > bytes_max:
                return deltas, True
            deltas.append(delta)
            bytes_max -= size
            if delta.upto < self.spaces[seed].version:
                return deltas, True
        return deltas, False

    def news(self, base: int, bytes_max: int) -> Delta:
        """What was written here after `base`, for pushing."""
        own = self.own
        return self._delta_of(self.seed, Summary(own.generation, 0, base, own.collected), bytes_max)[0]

    def _delta_of(self, seed: str, known: Summary | None, bytes_max: int) -> tuple[Delta, int]:
        space = self.spaces[seed]
        base = _base(known, space)
        cells: list[Cell] = []
        upto, size = base, DELTA_OVERHEAD_BYTES
        for key, version, stored in space.after(base):
            value = self._packing.unpack(content(stored))
            cell_bytes = len(key.encode()) + len(value) + CELL_OVERHEAD_BYTES
            if cells and size + cell_bytes > bytes_max:
                break
            cells.append(Cell(key, version, Raw(value)))
            upto, size = version, size + cell_bytes
        else:
            upto = space.version
        return Delta(seed, space.generation, base, upto, max(space.head, upto), space.collected, cells), size

    # -- hearing -------------------------------------------------------------------------------------------------

    def heard(self, digest: dict[str, Summary], since: float = 0.0, until: float = math.inf) -> list[str]:
        """Take over the heartbeats of a digest; the names of the seeds that have made a sign of life since something
        was last heard of them. Nothing is believed of a seed that lived last, by its own clock, before `since` or after
        `until` (seconds since 1970 UTC). Whoever knows a later life of this very seed (its clock was set back while it
        was down) would not listen to this one: it becomes the latest."""
        alive = []
        spaces = self.spaces
        for seed, told in digest.items():
            space = spaces.get(seed)
            if (
                space is not None
                and told.heartbeat <= space.heartbeat
                and told.version <= space.head
                and told.generation == space.generation
                and told.collected <= space.collected
            ):
                continue  # as most, most of the time
            if not since <= told.generation / 1000 + told.heartbeat <= until:
                continue
            if space is self.own:
                self._heard_of_self(told)
            elif space is None:
                self._meet(seed, told)
            elif told.generation >= space.generation and self._heard_of(space, told):
                alive.append(seed)
            self._touched.add(seed)
        return alive

    def _meet(self, seed: str, told: Summary) -> None:
        if _summary_bytes(seed) <= _room_bytes(self.spaces):
            space = self.spaces[seed] = Space(told.generation, told.heartbeat)
            space.head = told.version

    def _heard_of(self, space: Space, told: Summary) -> bool:
        """Whether it is a sign of life."""
        if told.generation > space.generation:
            space.restart(told.generation, 0)
            space.heartbeat = -1
        alive = told.heartbeat > space.heartbeat
        space.heartbeat = max(space.heartbeat, told.heartbeat)
        space.head = max(space.head, told.version)
        if told.collected <= space.version:
            space.collect(told.collected)
        return alive

    def told_by_itself(self, seed: str, told: Summary) -> None:
        """The seed's own word on how far it has written counts for more than what others have said."""
        space = self.spaces.get(seed)
        if space is not None and space.generation == told.generation:
            space.head = max(space.version, told.version)

    def come_to(self, digest: dict[str, Summary]) -> int:
        """A number that grows while an exchange with the writer of the digest gets ahead, on this side or on that; what
        is merely claimed does not count."""
        spaces = self.spaces
        return self.advances + sum(
            min(told.version, spaces[seed].version) for seed, told in digest.items() if seed in spaces
        )

    def _heard_of_self(self, told: Summary) -> None:
        own = self.own
        if (told.generation, told.version) > (own.generation, own.version):
            own.generation, own.heartbeat = told.generation + 1, 0
        elif told.generation == own.generation:
            own.heartbeat = max(own.heartbeat, told.heartbeat)

    def merge(self, delta: Delta) -> list[Change]:
        """Take in what is new in a delta. A delta that begins after what is known here is left alone, since what lies
        between comes with the next exchange; and one of a seed, or of a life of it, that no digest has told of, since
        only there is looked at whether it can be."""
        space = self.spaces.get(delta.seed)
        if space is None or space is self.own or delta.generation != space.generation:
            return []
        if _skipped(delta, space):
            if delta.base > 0:
                return []
            self._touched.add(delta.seed)
            space.restart(delta.generation, delta.collected)
        if delta.base > space.version:
            return []
        before = space.version
        if before < min(space.collected, delta.upto):
            # What a teller adds who has not collected as much may have been deleted meanwhile.
            space.mixed = max(space.mixed, space.collected)
            space.collected = min(space.collected, delta.collected)
        changes = list(self._take(delta, space))
        space.version = max(space.version, delta.upto)
        space.head = max(space.head, delta.head, space.version)
        if space.version >= space.mixed > space.collected:
            space.collect(space.mixed)
        if space.stale and space.version >= space.head > 0:
            # At version 0 it is not yet known how far there is to go: every seed writes something.
            changes += [Change(delta.seed, key, None) for key in _live(space.stale)]
            space.stale = {}
        self.advances += space.version > before
        self._touched.add(delta.seed)
        return changes

    def _take(self, delta: Delta, space: Space) -> Iterator[Change]:
        for cell in delta.cells:
            if cell.version <= space.version or cell.version > delta.upto:
                continue
            packed = self._packing.pack(delta.seed, cell.key, bytes(cell.value))
            stale = space.stale.pop(cell.key, None)
            known = space.values.get(cell.key, stale)
            stored = space.write(cell.key, cell.version, packed)
            if packed != TOMBSTONE:
                yield Change(delta.seed, cell.key, stored)
            elif known is not None and not is_tombstone(known):
                yield Change(delta.seed, cell.key, None)

    def forget(self, seed: str) -> list[Change]:
        """Drop another seed's space whole."""
        if seed == self.seed or seed not in self.spaces:
            return []
        space = self.spaces.pop(seed)
        self._digest.pop(seed, None)
        return [Change(seed, key, None) for key in _live({**space.stale, **space.values})]


def _live(values: dict[str, bytes]) -> Iterator[str]:
    return (key for key, stored in values.items() if not is_tombstone(stored))


def _summary_bytes(seed: str) -> int:
    return len(seed) + SUMMARY_BYTES


def _room_bytes(seeds: Collection[str]) -> int:
    """What one more seed may take up beside these in a digest: each exchange carries the summaries of all. Whoever
    tells does not offer what the reader has no room for, or the exchange would never end."""
    return DIGEST_BYTES_MAX - sum(map(_summary_bytes, seeds)) if len(seeds) < GOSSIP_SEEDS_MAX else 0


def _base(known: Summary | None, space: Space) -> int:
    """Where the reader goes on: at 0 in another life of the seed, or when tombstones that it has not read are gone."""
    if known is None or known.generation != space.generation or known.version < space.collected > known.collected:
        return 0
    return known.version


def _skipped(delta: Delta, space: Space) -> bool:
    """Whether the teller has collected tombstones that were not read here: the space must be read anew."""
    return space.version < delta.collected > space.collected
