"""What goes wrong in a run of :mod:`bench.faults`: with processes, with the network and with disks."""

from collections.abc import Iterable
from typing import Final

from bench.faults_scene import Scene

SLOW_S: Final = (0.01, 0.3, 3.0, 30.0)
DAY_S: Final = 86400.0
DAYS_MAX: Final = 2
"""How far a clock is set ahead or back in all: a message lives seven."""


class Breaking:
    """Each method is one thing that goes wrong, or is mended. `moves`: who comes back may do so at another address;
    `rotates`: and with another mail key."""

    def __init__(self, scene: Scene) -> None:
        self._rng, self._world, self._tell = scene.rng, scene.world, scene.tell
        self._seeds, self._users, self._addresses = scene.seeds, scene.users, scene.addresses
        self._clock_set = scene.clock_set
        self.moves = self.rotates = False

    # -- processes -----------------------------------------------------------------------------------------------

    def crash_user(self) -> None:
        self._crash(self._users)

    def crash_seed(self) -> None:
        self._crash(self._seeds)

    def stop_user(self) -> None:
        user = self._rng.choice(self._users)
        if self._world.runs(user):
            self._tell(f"{user} is stopped")
            self._world.stop(user)

    def restart(self) -> None:
        down = [name for name in (*self._seeds, *self._users) if not self._world.runs(name)]
        if down:
            self.start(self._rng.choice(down))

    def set_clock(self) -> None:
        user = self._rng.choice(self._users)
        host = self._world.hosts[user]
        ahead_s = host.ahead_s + self._rng.choice((-DAY_S, DAY_S))
        if abs(ahead_s) <= DAYS_MAX * DAY_S:
            self._tell(f"the clock of {user} is set {ahead_s - host.ahead_s:+g} s")
            host.ahead_s = ahead_s
            self._clock_set.add(user)

    def rotate(self) -> None:
        user = self._rng.choice(self._users)
        if self._world.runs(user):
            self._tell(f"{user} takes another mail key")
            self._world.rotate(user)

    # -- the network ---------------------------------------------------------------------------------------------

    def cut(self) -> None:
        one, other = self._two()
        self._tell(f"{one} and {other} are cut off from each other")
        self._world.cut(one, other)

    def mute(self) -> None:
        one, other = self._two()
        self._tell(f"what {one} sends does not reach {other}")
        self._world.mute(one, other)

    def reset(self) -> None:
        one, other = self._two()
        self._tell(f"connections between {one} and {other} break")
        self._world.reset(one, other, self._rng.choice((0.0, 0.3, 1.0)))

    def heal(self) -> None:
        self._tell("the network is healed")
        self._world.heal()

    # -- disks ---------------------------------------------------------------------------------------------------

    def slow_disk(self) -> None:
        name = self._any_node()
        self._world.troubles[name].slow_s = self._rng.choice(SLOW_S)
        self._tell(f"a commit of {name} takes up to {self._world.troubles[name].slow_s} s")

    def refusing_disk(self) -> None:
        name = self._any_node()
        self._tell(f"the disk of {name} refuses commits")
        self._world.troubles[name].refuses = self._rng.choice((0.3, 1.0))

    def doubting_disk(self) -> None:
        name = self._any_node()
        self._tell(f"the disk of {name} calls commits failed that it has written")
        self._world.troubles[name].doubts = self._rng.choice((0.3, 1.0))

    def haunted_disk(self) -> None:
        name = self._any_node()
        self._tell(f"the disk of {name} calls commits failed that will be there after its death")
        self._world.troubles[name].haunts = self._rng.choice((0.3, 1.0))

    def unsynced_disk(self) -> None:
        name = self._any_node()
        self._tell(f"the disk of {name} does not sync what was written")
        self._world.troubles[name].unsynced = self._rng.choice((0.3, 1.0))

    def blind_disk(self) -> None:
        name = self._any_node()
        self._tell(f"the disk of {name} cannot be read")
        self._world.troubles[name].blind = self._rng.choice((0.3, 1.0))

    def mend(self) -> None:
        name = self._any_node()
        self._tell(f"the disk of {name} is mended")
        self._world.troubles[name].mend()

    # -- inside --------------------------------------------------------------------------------------------------

    def _crash(self, names: Iterable[str]) -> None:
        running = [name for name in names if self._world.runs(name)]
        if running:
            name = self._rng.choice(running)
            self._tell(f"{name} dies")
            self._world.crash(name)

    def start(self, name: str) -> None:
        if name in self._users:
            self._settle_somewhere(name)
            if self.rotates and self._rng.random() < 0.3:
                self._tell(f"{name} has another mail key")
                self._world.rotate(name)
        self._tell(f"{name} starts at {self._world.hosts[name].ip}")
        self._world.start(name)

    def _settle_somewhere(self, name: str) -> None:
        """Most come back where they were, unless somebody else has the address now; others at an address that is new,
        or was another's."""
        host = self._world.hosts[name]
        taken = {self._world.hosts[user].ip for user in self._world.users}
        if host.ip in taken or (self.moves and self._rng.random() < 0.4):
            self._addresses.append(f"10.1.0.{len(self._addresses)}")
            taken |= {dialled[0] for dialled in self._world.laptop.tcpClients}  # a client knows its own node
            host.ip = self._rng.choice([address for address in self._addresses if address not in taken])

    def _two(self) -> list[str]:
        """Two hosts; often one of them is the clients'."""
        return self._rng.sample(["laptop", *self._users, *self._rng.sample(self._seeds, 1)], 2)

    def _any_node(self) -> str:
        return self._rng.choice([*self._users, *self._users, *self._seeds])
