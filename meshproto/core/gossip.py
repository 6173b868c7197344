"""Scuttlebutt: how seeds come to know the same things (van Renesse, Dumitriu, Gough, Thomas: "Efficient Reconciliation
and Flow Control for Anti-Entropy Protocols", LADIS 2008), as Cassandra and chitchat do it.

Each seed writes one key space, its own; every write takes the next version. Seeds tell each other in a digest how far
they have read each space, and send what the other lacks, oldest first, within a byte budget. The invariant: whoever
stands at version V of a space knows the last value of every key that was written at or before V and not after it.

A deletion is a tombstone, a value of `null`. The owner collects tombstones after a grace period and says up to which
version; whoever had not read so far starts that space again. A space that starts again (also because its seed was
restarted: a new generation) keeps what was known before, as `stale`, until it has caught up, so nothing that still
exists is unknown in between.

What a value means is not known here.
"""

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from msgspec import Raw, Struct

from meshproto.wire import GOSSIP_SEEDS_MAX, Cell, Delta, Summary

TOMBSTONE: Final = b"null"
TOMBSTONE_GRACE_S: Final = 3600.0
"""A seed that was cut off for longer reads the whole space again instead of the changes alone."""
CELL_OVERHEAD_BYTES: Final = 24
"""`["",1234567890,],` around a cell's key and value."""
DELTA_OVERHEAD_BYTES: Final = 160
"""A delta's own numbers, its seed's name and its brackets."""
DIGEST_BYTES_MAX: Final = 56 * 1024
"""All summaries of a digest: what a line has, less room for the request and for one cell."""
SUMMARY_BYTES: Final = 48
"""`"":[1795343300123,12345678,12345678,12345678],` around a seed's name."""
_LOG_SLACK: Final = 1024


class Change(NamedTuple):
    """A key of a seed's space has a new value; None: it has none any more."""

    seed: str
    key: str
    value: bytes | None


class _Value(Struct, frozen=True, gc=False):
    version: int
    value: bytes


@dataclass
class Space:
    """What one seed wrote, as far as it was read here. `version`: read up to here; `head`: how far there is known to
    be something to read; `collected`: what was deleted up to here may be missing, and no value that is known here was.
    The log lists every (version, key) in order; entries that a later write of the same key has overtaken are skipped,
    and dropped once they are the greater part."""

    generation: int
    heartbeat: int = 0
    version: int = 0
    head: int = 0
    collected: int = 0
    values: dict[str, _Value] = field(default_factory=dict)
    stale: dict[str, bytes] = field(default_factory=dict)
    _log_versions: "array[int]" = field(default_factory=lambda: array("Q"))
    _log_keys: list[str] = field(default_factory=list)

    @property
    def summary(self) -> Summary:
        return Summary(self.generation, self.heartbeat, self.version, self.collected)

    def write(self, key: str, version: int, value: bytes) -> None:
        self.values[key] = _Value(version, value)
        self._log_versions.append(version)
        self._log_keys.append(key)
        self.version = version
        self.head = max(self.head, version)
        if len(self._log_keys) > 2 * len(self.values) + _LOG_SLACK:
            self._compact()

    def after(self, version: int) -> Iterator[tuple[str, _Value]]:
        """Every key whose last write came after `version`, oldest write first."""
        for at in range(bisect_right(self._log_versions, version), len(self._log_keys)):
            key = self._log_keys[at]
            value = self.values.get(key)
            if value is not None and value.version == self._log_versions[at]:
                yield key, value

    def collect(self, upto: int) -> None:
        """Forget the tombstones written at or before `upto`."""
        upto = min(upto, self.version)
        if upto <= self.collected:
            return
        for key, value in self.after(self.collected):
            if value.version > upto:
                break
            if value.value == TOMBSTONE:
                del self.values[key]
        self.collected = upto

    def restart(self, generation: int, collected: int) -> None:
        """Begin at version 0 again; what was known stays as `stale`. Another generation counts its heartbeats anew."""
        known = {key: value.value for key, value in self.values.items() if value.value != TOMBSTONE}
        self.stale = {**self.stale, **known}
        if generation != self.generation:
            self.heartbeat = 0
        self.generation, self.collected, self.version, self.head = generation, collected, 0, 0
        self.values = {}
        self._log_versions, self._log_keys = array("Q"), []

    def _compact(self) -> None:
        live = list(self.after(0))
        self._log_versions = array("Q", (value.version for _, value in live))
        self._log_keys = [key for key, _ in live]


class Gossip:
    """Every key space as far as it is known here. `generation` tells a restarted seed from its former self: ms since
    1970 UTC at start will do. Seeds past :data:`meshproto.wire.GOSSIP_SEEDS_MAX`, or whose names would not fit into a
    digest any more, are not taken up."""

    def __init__(self, seed: str, generation: int) -> None:
        self.seed = seed
        self.own = Space(generation)
        self.spaces: dict[str, Space] = {seed: self.own}
        self._tombstones: deque[tuple[float, int]] = deque()

    # -- writing the own space -----------------------------------------------------------------------------------

    def beat(self) -> None:
        self.own.heartbeat += 1

    def put(self, key: str, value: bytes) -> None:
        """`value`: JSON text, not `null`."""
        self.own.write(key, self.own.version + 1, value)

    def delete(self, key: str, now: float) -> None:
        known = self.own.values.get(key)
        if known is not None and known.value != TOMBSTONE:
            self.own.write(key, self.own.version + 1, TOMBSTONE)
            self._tombstones.append((now, self.own.version))

    def collect(self, now: float) -> None:
        """Collect the own tombstones whose grace is over."""
        upto = 0
        while self._tombstones and self._tombstones[0][0] + TOMBSTONE_GRACE_S <= now:
            upto = self._tombstones.popleft()[1]
        self.own.collect(upto)

    # -- telling -------------------------------------------------------------------------------------------------

    def digest(self) -> dict[str, Summary]:
        return {seed: space.summary for seed, space in self.spaces.items()}

    def delta(self, digest: dict[str, Summary], bytes_max: int) -> tuple[list[Delta], bool]:
        """What the writer of `digest` lacks, the spaces it lacks least of first (so that small news is not held up by
        a large catch-up), within `bytes_max` bytes of JSON; and whether there is more. One cell is told in any case:
        it will not get smaller."""
        room_bytes = _room_bytes(digest)
        lacking = [
            (space.version - _base(known, space), seed)
            for seed, space in self.spaces.items()
            if _lacks(known := digest.get(seed), space) and (known or _summary_bytes(seed) <= room_bytes)
        ]
        deltas: list[Delta] = []
        for _, seed in sorted(lacking):
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
        for key, value in space.after(base):
            cell_bytes = len(key.encode()) + len(value.value) + CELL_OVERHEAD_BYTES
            if cells and size + cell_bytes > bytes_max:
                break
            cells.append(Cell(key, value.version, Raw(value.value)))
            upto, size = value.version, size + cell_bytes
        else:
            upto = space.version
        return Delta(seed, space.generation, base, upto, max(space.head, upto), space.collected, cells), size

    # -- hearing -------------------------------------------------------------------------------------------------

    def heard(self, digest: dict[str, Summary]) -> list[str]:
        """Take over the heartbeats of a digest; the names of the seeds that have made a sign of life since. Whoever
        knows a later life of this very seed (its clock was set back while it was down) would not listen to this one:
        it becomes the latest."""
        alive = []
        for seed, told in digest.items():
            space = self.spaces.get(seed)
            if space is self.own:
                if (told.generation, told.version) > (space.generation, space.version):
                    space.generation = told.generation + 1
                continue
            if space is None:
                if _summary_bytes(seed) > _room_bytes(self.spaces):
                    continue
                space = self.spaces[seed] = Space(told.generation, heartbeat=-1)
            if told.generation < space.generation:
                continue
            if told.generation > space.generation:
                space.restart(told.generation, 0)
                space.heartbeat = -1
            if told.heartbeat > space.heartbeat:
                space.heartbeat = told.heartbeat
                alive.append(seed)
            space.head = max(space.head, told.version)
            if space.version >= told.collected:
                space.collect(told.collected)
        return alive

    def merge(self, delta: Delta) -> list[Change]:
        """Take in what is new in a delta. A delta that begins after what is known here is left alone: what lies between
        comes with the next exchange."""
        space = self.spaces.get(delta.seed)
        if delta.seed == self.seed:
            return []
        if space is None:
            if _summary_bytes(delta.seed) > _room_bytes(self.spaces):
                return []
            space = self.spaces[delta.seed] = Space(delta.generation)
        if delta.generation < space.generation:
            return []
        if delta.generation > space.generation or _skipped(delta, space):
            if delta.base > 0:
                return []
            space.restart(delta.generation, delta.collected)
        if delta.base > space.version:
            return []
        if space.version < min(space.collected, delta.upto):
            # What a teller adds who has not collected as much may have been deleted meanwhile.
            space.collected = min(space.collected, delta.collected)
        changes = list(self._take(delta, space))
        space.version = max(space.version, delta.upto)
        space.head = max(space.head, delta.head, space.version)
        if space.stale and space.version >= space.head > 0:
            # At version 0 it is not yet known how far there is to go: every seed writes something.
            changes += [Change(delta.seed, key, None) for key in space.stale]
            space.stale = {}
        return changes

    def _take(self, delta: Delta, space: Space) -> Iterator[Change]:
        for cell in delta.cells:
            if cell.version <= space.version or cell.version > delta.upto:
                continue
            value = bytes(cell.value)
            before = space.values.get(cell.key)
            stale = space.stale.pop(cell.key, None)
            space.write(cell.key, cell.version, value)
            known = before.value if before is not None and before.value != TOMBSTONE else stale
            told = None if value == TOMBSTONE else value
            if told != known:
                yield Change(delta.seed, cell.key, told)

    def forget(self, seed: str) -> list[Change]:
        """Drop another seed's space whole."""
        if seed == self.seed or seed not in self.spaces:
            return []
        space = self.spaces.pop(seed)
        live = [key for key, value in space.values.items() if value.value != TOMBSTONE]
        return [Change(seed, key, None) for key in (*live, *space.stale)]


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


def _lacks(known: Summary | None, space: Space) -> bool:
    if known is None:
        return True
    if known.generation != space.generation:
        return known.generation < space.generation
    return known.version < space.version


def _skipped(delta: Delta, space: Space) -> bool:
    """Whether the teller has collected tombstones that were not read here: the space must be read anew."""
    return space.version < delta.collected > space.collected
