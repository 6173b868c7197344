"""What all parts of a run of :mod:`bench.faults` share."""

import hashlib
import random
from collections.abc import Callable, Iterable

from bench.faults_model import Model
from meshproto.core.identity import b64
from tests.network import EPOCH_S
from tests.world import World


class Scene:
    """The world of one run, with the chance that rules it and what is known about it. `clock_set`: users whose clock
    was set at some time; `addresses`: those that users have lived at; `history`: a digest of all that was told."""

    def __init__(self, number: int, say: Callable[[str], None]) -> None:
        self.rng = random.Random(number)
        self.world = World(number)
        self.model = Model(self._on_disk)
        self.seeds: list[str] = []
        self.users: list[str] = []
        self.clock_set: set[str] = set()
        self.addresses: list[str] = []
        self._say = say
        self._digest = hashlib.sha256()

    def people(self, seeds: Iterable[str], users: Iterable[str]) -> None:
        """Have these nodes started; they are there when all users are registered."""
        self.seeds += seeds
        self.users += users
        for seed in self.seeds:
            self.world.add_seed(seed, peers=list(self.world.seeds))
        for user in self.users:
            self.world.add_user(user, seeds=self.seeds)
        self.addresses += [self.world.hosts[user].ip for user in self.users]
        self.world.run_until(self.world.registered)

    def tell(self, text: str) -> None:
        line = f"{self.world.clock.seconds() - EPOCH_S:9.3f} {text}"
        self._digest.update(line.encode())
        self._say(line)

    @property
    def history(self) -> str:
        return self._digest.hexdigest()

    def _on_disk(self, to: str, sender: str, id_: str) -> bool:
        key = b64(self.world.identities[sender].key)
        return bool(self.world.on_disk(to, f"SELECT count(*) FROM inbox WHERE key='{key}' AND id='{id_}'"))
