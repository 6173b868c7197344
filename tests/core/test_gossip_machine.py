"""Scuttlebutt's invariant, whatever the seeds do and in whatever order their messages arrive."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule

from meshproto.core.gossip import TOMBSTONE_GRACE_S
from meshproto.wire import GossipParams
from tests.core.scuttlebutt import FACTS, PLENTY_BYTES, Mesh, live, over_the_wire

SEEDS = ["a", "b", "c", "d", "e"]
seeds = st.sampled_from(SEEDS)
owners = st.sampled_from(SEEDS[:1])
keys = st.sampled_from(["k1", "k2", "k3", "k4"])
values = st.sampled_from([b"1", b"2", b"3"])
budgets_bytes = st.one_of(st.just(0), st.integers(0, 400), st.just(PLENTY_BYTES))

Message = tuple[str, GossipParams]


class GossipMachine(RuleBasedStateMachine):
    """The model checks itself after every part of every message; see :class:`tests.core.scuttlebutt.Mesh`."""

    messages: Bundle[Message] = Bundle("messages")

    def __init__(self) -> None:
        super().__init__()
        self.mesh = Mesh(SEEDS)
        self.stepped_back: set[str] = set()

    @rule(seed=owners, key=keys, value=values)
    def put(self, seed: str, key: str, value: bytes) -> None:
        self.mesh.put(seed, key, value)

    @rule(seed=owners, key=keys)
    def delete(self, seed: str, key: str) -> None:
        self.mesh.delete(seed, key)

    @rule(seed=owners)
    def collect(self, seed: str) -> None:
        self.mesh.now += TOMBSTONE_GRACE_S
        self.mesh.nodes[seed].collect(self.mesh.now)

    @rule(seed=seeds)
    def beat(self, seed: str) -> None:
        self.mesh.nodes[seed].beat(self.mesh.now)

    @rule(seed=owners, forgotten=st.sets(keys))
    def restart(self, seed: str, forgotten: set[str]) -> None:
        """With what was on disk: all entries, or fewer."""
        self._start(seed, max(self.mesh.lives[seed]) + 1000, forgotten)

    @rule(seed=owners, forgotten=st.sets(keys))
    def restart_with_the_clock_stepped_back(self, seed: str, forgotten: set[str]) -> None:
        if seed not in self.stepped_back:
            self.stepped_back.add(seed)
            self._start(seed, min(self.mesh.lives[seed]) - 10, forgotten)

    def _start(self, seed: str, generation: int, forgotten: set[str]) -> None:
        known = live(self.mesh.nodes[seed].own)
        entries = {key: value for key, value in known.items() if key != FACTS and key not in forgotten}
        self.mesh.start(seed, generation, entries)

    @rule(asker=seeds, asked=seeds, bytes_max=budgets_bytes)
    def exchange(self, asker: str, asked: str, bytes_max: int) -> None:
        if asker != asked:
            self.mesh.exchange(asker, asked, bytes_max)

    @rule(teller=seeds, reader=seeds, bytes_max=budgets_bytes, digest=st.booleans())
    def tell_at_once(self, teller: str, reader: str, bytes_max: int, digest: bool) -> None:
        """One step of an exchange that then breaks off; without `digest` as news is relayed."""
        told = self.mesh.nodes[teller].digest() if digest else {}
        deltas, _ = self.mesh.nodes[teller].delta(self.mesh.nodes[reader].digest(), bytes_max)
        self.mesh.deliver(reader, over_the_wire(told, deltas))

    @rule(teller=seeds, reader=seeds)
    def hint(self, teller: str, reader: str) -> None:
        """A request whose answer is lost."""
        self.mesh.deliver(reader, over_the_wire(self.mesh.nodes[teller].digest(), []))

    @rule(target=messages, teller=seeds, reader=seeds, bytes_max=budgets_bytes)
    def tell(self, teller: str, reader: str, bytes_max: int) -> Message:
        """A message that may arrive late, twice, or never."""
        deltas, _ = self.mesh.nodes[teller].delta(self.mesh.nodes[reader].digest(), bytes_max)
        return reader, over_the_wire(self.mesh.nodes[teller].digest(), deltas)

    @rule(target=messages, teller=seeds, base=st.integers(0, 8), bytes_max=budgets_bytes)
    def push(self, teller: str, base: int, bytes_max: int) -> Message:
        own = self.mesh.nodes[teller].own
        news = self.mesh.nodes[teller].news(min(base, own.version), bytes_max)
        reader = SEEDS[SEEDS.index(teller) - 1]
        return reader, over_the_wire({teller: own.summary}, [news])

    @rule(message=messages)
    def arrive(self, message: Message) -> None:
        self.mesh.deliver(*message)

    @rule(target=messages, message=consumes(messages), reader=seeds)
    def relay(self, message: Message, reader: str) -> Message:
        """The news alone, without the digest it came with, to somebody else."""
        return reader, over_the_wire({}, message[1].delta)

    @rule(message=consumes(messages))
    def lose(self, message: Message) -> None:
        pass

    @rule(reader=seeds, seed=seeds)
    def forget(self, reader: str, seed: str) -> None:
        self.mesh.replay(reader, self.mesh.nodes[reader].forget(seed))
        assert not self.mesh.told[reader].get(seed)

    def teardown(self) -> None:
        """After enough exchanges in a ring all agree."""
        self.mesh.settle()
        self.mesh.check_agreement()


TestGossipMachine = GossipMachine.TestCase
TestGossipMachine.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
