"""Several :class:`Gossip` instances and what is true of them: every write that was ever made, and what each reader was
told. Every message goes through the wire's own encoding."""

from collections.abc import Iterable

from meshproto.core.gossip import Change, Gossip, Space, content, is_tombstone, version_of
from meshproto.wire import Delta, Digest, GossipParams, decode_value, encode_value

PLENTY_BYTES = 10_000_000
FACTS = "@"


def live(space: Space) -> dict[str, bytes]:
    """What a space exposes: the values that are not tombstones, and what is still kept of its former life."""
    return {key: content(held) for key, held in {**space.stale, **space.values}.items() if not is_tombstone(held)}


def over_the_wire(digest: Digest, deltas: list[Delta]) -> GossipParams:
    return decode_value(encode_value(GossipParams(digest, deltas)), GossipParams)


def pair(*keys: str) -> tuple[Gossip, Gossip]:
    """A writer with the keys, and a reader who knows nothing yet."""
    writer, reader = Gossip("writer", 1000), Gossip("reader", 1000)
    for key in keys:
        writer.put(key, b'"first"')
    return writer, reader


def tell(teller: Gossip, reader: Gossip, bytes_max: int = PLENTY_BYTES) -> list[Change]:
    """One step of an exchange: the digest, and what the reader lacks. The changes show values, without versions."""
    deltas, _ = teller.delta(reader.digest(), bytes_max)
    reader.heard(teller.digest())
    return [shown(change) for delta in deltas for change in reader.merge(delta)]


def shown(change: Change) -> Change:
    return change if change.stored is None else change._replace(stored=content(change.stored))


def known(reader: Gossip, seed: str = "writer") -> dict[str, bytes]:
    return live(reader.spaces[seed])


class Life:
    """All writes of a seed between two restarts; `read_in`: its version when it was ready to gossip."""

    def __init__(self) -> None:
        self.writes: list[tuple[str, bytes | None]] = []
        self.read_in = 0

    def last_writes(self) -> dict[str, tuple[int, bytes | None]]:
        return {key: (version, value) for version, (key, value) in enumerate(self.writes, start=1)}

    def deleted(self, key: str) -> bool:
        return (key, None) in self.writes


class Mesh:
    """The model. `lives[seed][generation]`: the truth; `told[reader][seed]`: the replay of the reader's changes."""

    def __init__(self, seeds: Iterable[str]) -> None:
        self.now = 0.0
        self.seeds = list(seeds)
        self.nodes: dict[str, Gossip] = {}
        self.lives: dict[str, dict[int, Life]] = {seed: {} for seed in self.seeds}
        self.told: dict[str, dict[str, dict[str, bytes]]] = {}
        for seed in self.seeds:
            self.start(seed, 1000, {})

    # -- what an owner does ---------------------------------------------------------------------------------------

    def start(self, seed: str, generation: int, entries: dict[str, bytes]) -> None:
        self.nodes[seed] = Gossip(seed, generation)
        self.lives[seed][generation] = Life()
        self.told[seed] = {}
        for key, value in {FACTS: b"0", **entries}.items():
            self.put(seed, key, value)
        self.life(seed).read_in = self.nodes[seed].own.version

    def life(self, seed: str) -> Life:
        return self.lives[seed][self.nodes[seed].own.generation]

    def put(self, seed: str, key: str, value: bytes) -> None:
        self.nodes[seed].put(key, value)
        self.life(seed).writes.append((key, value))

    def delete(self, seed: str, key: str) -> None:
        before = self.nodes[seed].own.version
        self.nodes[seed].delete(key, self.now)
        if self.nodes[seed].own.version > before:
            self.life(seed).writes.append((key, None))

    # -- what travels ---------------------------------------------------------------------------------------------

    def deliver(self, reader: str, message: GossipParams) -> None:
        """A message reaches a reader; everything that must hold is checked after each part of it."""
        node = self.nodes[reader]
        before = self.exposed(reader)
        life = self.life(reader)
        node.heard(message.digest)
        self.lives[reader][node.own.generation] = life
        self.check(reader, before)
        for delta in message.delta:
            before = self.exposed(reader)
            self.replay(reader, node.merge(delta))
            self.check(reader, before)

    def replay(self, reader: str, changes: list[Change]) -> None:
        for change in changes:
            known = self.told[reader].setdefault(change.seed, {})
            if change.stored is None:
                del known[change.key]
            else:
                known[change.key] = content(change.stored)
                assert self.nodes[reader].spaces[change.seed].values[change.key] is change.stored, "kept twice"

    def exchange(self, asker: str, asked: str, bytes_max: int = PLENTY_BYTES) -> int:
        """A whole exchange as :class:`meshproto.core.seed.Seed` does it; the number of requests it took."""
        deltas: list[Delta] = []
        cells = sum(len(space.values) for name in (asker, asked) for space in self.nodes[name].spaces.values())
        for steps in range(1, 20 + 3 * cells):
            request = over_the_wire(self.nodes[asker].digest(), deltas)
            self.deliver(asked, request)
            deltas, more_there = self.nodes[asked].delta(request.digest, bytes_max)
            answer = over_the_wire(self.nodes[asked].digest(), deltas)
            self.deliver(asker, answer)
            deltas, more_here = self.nodes[asker].delta(answer.digest, bytes_max)
            if not (deltas or more_here or more_there):
                return steps
        raise AssertionError("the exchange does not end")

    def settle(self) -> None:
        """Enough exchanges in a ring for everything to have gone round, in either direction."""
        for _ in range(2):
            for at, seed in enumerate(self.seeds):
                self.exchange(seed, self.seeds[at - 1])

    # -- what must hold -------------------------------------------------------------------------------------------

    def exposed(self, reader: str) -> dict[str, dict[str, bytes]]:
        return {seed: live(space) for seed, space in self.nodes[reader].spaces.items() if seed != reader}

    def check(self, reader: str, before: dict[str, dict[str, bytes]]) -> None:
        for seed, space in self.nodes[reader].spaces.items():
            if seed != reader:
                self._check_scuttlebutt(seed, space)
                self._check_kept(seed, space, before.get(seed, {}))
                own = self.nodes[seed].own
                assert space.generation != own.generation or 0 <= space.heartbeat <= own.heartbeat
                assert live(space) == self.told[reader].get(seed, {}), f"{reader} was told otherwise of {seed}"

    def _check_scuttlebutt(self, seed: str, space: Space) -> None:
        life = self.lives[seed][space.generation]
        last_writes = life.last_writes()
        assert space.version <= len(life.writes)
        for key, (version, value) in last_writes.items():
            held = space.values.get(key)
            if version <= space.version:
                known = None if held is None or is_tombstone(held) else content(held)
                assert known == value, f"{seed}'s {key} at version {space.version}: {known!r} instead of {value!r}"
        for key, held in space.values.items():
            assert version_of(held) <= space.version
            assert life.writes[version_of(held) - 1] == (key, None if is_tombstone(held) else content(held))

    def _check_kept(self, seed: str, space: Space, before: dict[str, bytes]) -> None:
        life = self.lives[seed][space.generation]
        if space.version < life.read_in:
            for key in before.keys() - live(space).keys():
                assert any(each.deleted(key) for each in self.lives[seed].values()), f"{seed}'s {key} was lost"
        if space.version == len(life.writes):
            assert not space.stale, "caught up, and yet something is kept of the former life"

    def check_agreement(self) -> None:
        for reader in self.seeds:
            for seed in self.seeds:
                known, own = self.nodes[reader].spaces[seed], self.nodes[seed].own
                assert live(known) == live(own)
                assert (known.generation, known.version) == (own.generation, own.version)
                assert not known.stale
