"""Random operations on two seeds that share a directory and one that has its own, while the store is gone at times and
forgets at times what it had acknowledged last, and seeds are killed."""

import random

import pytest
from msgspec import UNSET

from meshproto.core.seed import LEASE_S
from meshproto.core.shared import CARE_S
from meshproto.wire import LookupResult, NameParams, Nothing
from tests.core.seed_mesh import Client, SeedMesh
from tests.core.users import signed

SITE = ("seedA", "seedB")
SEEDS = (*SITE, "seedE")
NAMES = ("Anna", "Bert", "Carl")
OWNERS = (1, 2)
STEPS = 60
RUNS = 150
Record = tuple[str, int, int]
"""Name, owner, seq."""


class Soak:
    """`here`: who is connected, as far as they know: connection -> what was registered over it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.mesh = SeedMesh(*SEEDS, sharing=SITE)
        self.mesh.advance(5)
        self.here: dict[Client, Record] = {}
        self.seq = 0
        self.kept = self.mesh.store.copy()

    def run(self) -> None:
        for _ in range(STEPS):
            self.rng.choice(
                [
                    self.register,
                    self.register,
                    self.leave,
                    self.look,
                    self.kill,
                    self.forget,
                    self.vanish,
                    self.replicate,
                ]
            )()
            self.pass_time(self.rng.choice([0.0, 0.1, 1.0, 5.0]))
        self.mesh.store.gone = False
        self.resumed()
        self.pass_time(3 * CARE_S)

    # -- what happens

    def register(self) -> None:
        self.seq += 1
        name, owner = self.rng.choice(NAMES), self.rng.choice(OWNERS)
        client = Client(self.mesh, self.rng.choice(SEEDS))
        answers = client.say("register", signed(name, self.seq, owner=owner))
        if any(line.result is not UNSET for line in answers):
            # A user is where they registered last; the connection that they had before stays open for a while.
            self.here = {one: record for one, record in self.here.items() if record[:2] != (name, owner)}
            self.here[client] = name, owner, self.seq

    def leave(self) -> None:
        if self.here:
            client = self.rng.choice(list(self.here))
            del self.here[client]
            client.close()

    def look(self) -> None:
        Client(self.mesh, self.rng.choice(SEEDS)).say("lookup", NameParams(self.rng.choice(NAMES)))

    def kill(self) -> None:
        seed = self.rng.choice(SEEDS)
        self.mesh.stop(seed)
        self.here = {client: record for client, record in self.here.items() if client.seed != seed}
        self.pass_time(self.rng.choice([0.1, 20.0]))
        self.mesh.start(seed)

    def vanish(self) -> None:
        """The store is gone, or is back."""
        self.mesh.store.gone = not self.mesh.store.gone
        if not self.mesh.store.gone:
            self.resumed()

    def replicate(self) -> None:
        self.kept = self.mesh.store.copy()

    def forget(self) -> None:
        """A replica stands in, which had not heard of the last writes; seeds notice that there was an outage."""
        self.mesh.store.values = dict(self.kept)
        self.resumed()

    def resumed(self) -> None:
        for seed in SITE:
            names = self.mesh[seed].names
            if names is not None and self.mesh[seed].core is not None:
                self.mesh.carry_out(self.mesh[seed], names.resumed())

    def pass_time(self, seconds: float) -> None:
        """Nodes ping, and hear of it when they have lost their name."""
        while seconds > 0:
            self.mesh.advance(min(seconds, LEASE_S / 3))
            seconds -= LEASE_S / 3
            for client in list(self.here):
                client.tell("ping", Nothing())
                if any(line.method == "conflict" for line in self.mesh[client.seed].lines[client.link]):
                    del self.here[client]

    # -- what has to be so in the end

    def answers(self, name: str) -> dict[str, LookupResult | None]:
        found: dict[str, LookupResult | None] = {}
        for seed in SEEDS:
            client = Client(self.mesh, seed)
            found[seed] = client.lookup(name) if client.knows(name) else None
        return found

    def check(self) -> None:
        for name in NAMES:
            found = self.answers(name)
            assert found["seedA"] == found["seedB"], (name, found)
            if found["seedE"] is not None and found["seedA"] is not None:
                assert found["seedE"].signed == found["seedA"].signed, (name, found)
            latest: dict[int, int] = {}
            for known, owner, seq in self.here.values():
                if known == name:
                    latest[owner] = max(seq, latest.get(owner, 0))
            assert len(latest) <= 1, f"{name} is thought by two to be theirs: {latest}"
            for owner, seq in latest.items():
                answer = found["seedA"]
                assert answer is not None and answer.signed == signed(name, seq, owner=owner), (name, found)
                assert answer.online


@pytest.mark.parametrize("first", range(1, RUNS + 1, 10))
def test_all_seeds_agree_and_nobody_is_lost(first: int) -> None:
    """In the end, whatever has happened: seeds give the same answers, a name is one user's, and whoever is connected
    and was not told otherwise is found as they registered last."""
    for seed in range(first, first + 10):
        soak = Soak(seed)
        soak.run()
        try:
            soak.check()
        except AssertionError as wrong:
            raise AssertionError(f"run {seed}: {wrong}") from wrong
