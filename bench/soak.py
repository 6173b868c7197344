"""Random operations on a small mesh, again and again: `python -m bench.soak --runs 1000`.

Seeds join, crash, come back, are cut off from each other and found again; users register, move, leave, lose their
connection, and claim each other's names. Afterwards, when it has been quiet for a while, every seed that lives must
answer every lookup alike, and right as far as :mod:`bench.soak_model` can tell. A run is drawn from its number; one
that fails is repeated, with its operations printed, by `python -m bench.soak --seed NUMBER`.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Final

from msgspec import UNSET

from bench.measures import identity
from bench.mesh_sim import Mesh
from bench.soak_model import Client, Model
from meshproto import wire
from meshproto.wire import RegisterResult

SEEDS_AT_FIRST_MAX: Final = 5
SEEDS_MAX: Final = 6
NAMES: Final = ("ada", "bob", "cyd", "dan", "eve")
KEYS: Final = 3
"""Who may claim a name; the first is the likeliest."""
STEPS_MIN, STEPS_MAX = 15, 45
PAUSES_S: Final = (0.0, 0.005, 0.03, 0.3, 1.0, 3.0, 12.0)
"""Between two operations: shorter than a link's delay, than a push, than a round, and long enough to be found dead."""
PING_S: Final = 10.0
QUIET_S: Final = 30.0
"""A dead seed is tried every five seconds, news takes a second: this is long."""


class Run:
    """One random run. `problems` is empty when all went well."""

    def __init__(self, number: int, say: Callable[[str], None] = lambda _: None) -> None:
        self.number = number
        self.rng = random.Random(number)
        self.mesh = Mesh(number, loss=self.rng.choice((0.0, 0.0, 0.1)))
        self.model = Model()
        self.clients: list[Client] = []
        self._say = say
        self._pinged = self.mesh.now
        self._operations: list[tuple[int, Callable[[], None]]] = [
            (2, self.join),
            (4, self.crash),
            (5, self.restart),
            (4, self.cut),
            (3, self.heal),
            (12, self.register),
            (8, self.move),
            (4, self.leave),
            (6, self.disconnect),
        ]

    def carry_out(self) -> list[str]:
        for _ in range(self.rng.randint(3, SEEDS_AT_FIRST_MAX)):
            self.join()
        self._wait(self.rng.choice(PAUSES_S))
        weights = [weight for weight, _ in self._operations]
        for _ in range(self.rng.randint(STEPS_MIN, STEPS_MAX)):
            _, operation = self.rng.choices(self._operations, weights)[0]
            operation()
            self._wait(self.rng.choice(PAUSES_S))
        self._calm_down()
        return self.model.problems(self.mesh, self.clients)

    def _calm_down(self) -> None:
        """All cuts heal, most of the dead come back, and the first seed in any case: whoever had not met anybody yet
        knows only that one. Later some of those who are away return, undisturbed."""
        self._tell("heal everything")
        self.mesh.heal()
        everyone = self.rng.random() < 0.7
        for number, name in enumerate(sorted(self.mesh.nodes)):
            if self.mesh.nodes[name].dead and (everyone or number == 0):
                self._tell(f"restart {name}")
                self.mesh.restart(name)
        self._wait(QUIET_S)
        for _ in range(self.rng.randrange(3)):
            self.register()
        self._wait(QUIET_S)

    # -- seeds ---------------------------------------------------------------------------------------------------

    def join(self) -> None:
        names = sorted(self.mesh.nodes)
        if len(names) >= SEEDS_MAX:
            return
        name = f"seed{len(names)}"
        peers = sorted({*names[:1], *self.rng.sample(names, min(len(names), 1))})
        self._tell(f"join {name}, which knows {peers}")
        self.mesh.add(name, peers)

    def crash(self) -> None:
        live = [node.name for node in self.mesh.live]
        if len(live) < 2:
            return
        name = self.rng.choice(live)
        self._tell(f"crash {name}")
        self.mesh.kill(name)

    def restart(self) -> None:
        dead = [node.name for node in self.mesh.nodes.values() if node.dead]
        if dead:
            name = self.rng.choice(dead)
            self._tell(f"restart {name}")
            self.mesh.restart(name)

    def cut(self) -> None:
        one, other = self.rng.sample(sorted(self.mesh.nodes), 2)
        self._tell(f"cut {one} from {other}")
        self.mesh.cuts.add(frozenset((one, other)))

    def heal(self) -> None:
        self._tell("heal everything")
        self.mesh.heal()

    # -- users ---------------------------------------------------------------------------------------------------

    def register(self) -> None:
        """Anybody who has no connection registers somewhere; often the name is another's."""
        name = self.rng.choice(NAMES)
        key = self.rng.choices(range(KEYS), (6, 2, 1))[0]
        if not any((client.name, client.number) == (name, key) for client in self._connected()):
            self._register_at(Client(name, key, identity(key)), self._any_seed())

    def move(self) -> None:
        """A user registers elsewhere, and lets go of the former seed before or after."""
        connected = self._connected()
        if not connected:
            return
        client = self.rng.choice(connected)
        first = self.rng.random() < 0.5
        former = Client(client.name, client.number, client.identity, client.home, client.link)
        self._tell(f"{client} {'goes' if first else 'will go'}, and moves")
        if first:
            self._hang_up(former)
            self._wait(self.rng.choice(PAUSES_S))
        client.link = None
        self._register_at(Client(client.name, client.number, client.identity), self._any_seed())
        if not first:
            self._wait(self.rng.choice(PAUSES_S[:4]))
            self._hang_up(former)

    def leave(self) -> None:
        connected = self._connected()
        if not connected:
            return
        client = self.rng.choice(connected)
        home = client.home if self.rng.random() < 0.7 else self._any_seed()
        link = client.link if home == client.home else self.mesh.connect(home)
        assert link is not None
        self._wait(0.001)
        gone = client.identity.sign(client.name, [], self._now_ms())
        answer = self.mesh.say(home, link, wire.Unregister(jsonrpc="2.0", id=1, params=gone))
        assert answer is not None
        said = "is let go" if answer.result is not UNSET else answer.error
        self._tell(f"{client} leaves at {home}: {said}")
        if answer.result is not UNSET:
            self.model.left(client, self._now_ms())
        self._hang_up(client)
        client.link = None

    def disconnect(self) -> None:
        connected = self._connected()
        if connected:
            client = self.rng.choice(connected)
            self._tell(f"{client} disconnects")
            self._hang_up(client)
            client.link = None

    # -- inside --------------------------------------------------------------------------------------------------

    def _register_at(self, client: Client, home: str) -> None:
        self._wait(0.001)  # so that its record is newer than every other
        link = self.mesh.connect(home)
        seq = self._now_ms()
        answer = self.mesh.register(home, client.identity, client.name, seq, link)
        client.home, client.link = home, link
        if answer.result is UNSET:
            self._tell(f"{client} is refused: {answer.error}")
            self._hang_up(client)
            return
        since = wire.decode_value(answer.result, RegisterResult).since
        self._tell(f"{client} registers, seq {seq} since {since}")
        self.clients.append(client)
        self.model.registered(client, seq, since)

    def _connected(self) -> list[Client]:
        """Those whose registration stands, as far as they were told."""
        found = []
        for client in self.clients:
            heard = self.mesh.nodes[client.home].users.get(client.link or 0)
            if heard is None:
                client.link = None  # the seed has crashed
            elif any(b'"conflict"' in line for line in heard):
                self._tell(f"{client} is told that the name is lost")
                self._hang_up(client)
                client.link = None
            else:
                found.append(client)
        self.clients = [client for client in self.clients if client.link is not None]
        return found

    def _hang_up(self, client: Client) -> None:
        """Nothing to do when the seed has crashed meanwhile."""
        node = self.mesh.nodes[client.home]
        if client.link is not None and client.link in node.users:
            self.mesh.hang_up(client.home, client.link)

    def _any_seed(self) -> str:
        return self.rng.choice([node.name for node in self.mesh.live])

    def _wait(self, seconds: float) -> None:
        """Time goes by; whoever is connected pings."""
        end = self.mesh.now + seconds
        while self._pinged + PING_S <= end:
            self.mesh.run(max(0.0, self._pinged + PING_S - self.mesh.now))
            self._pinged = self.mesh.now
            for client in self._connected():
                assert client.link is not None
                self.mesh.say(client.home, client.link, wire.Ping(jsonrpc="2.0", id=2))
        self.mesh.run(max(0.0, end - self.mesh.now))
        self._connected()

    def _now_ms(self) -> int:
        return int(self.mesh.now * 1000)

    def _tell(self, text: str) -> None:
        self._say(f"{self.mesh.now % 100_000:10.3f} {text}")


def failures(number: int) -> list[str]:
    """What is wrong at the end of a run, and how to see it again."""
    try:
        problems = Run(number).carry_out()
    except Exception as error:
        problems = [f"{type(error).__name__}: {error}"]
    return [f"{problem} (python -m bench.soak --seed {number})" for problem in problems]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="how many runs (%(default)s)")
    parser.add_argument("--first", type=int, default=1, help="the number of the first (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (%(default)s)")
    parser.add_argument("--seed", type=int, metavar="NUMBER", help="only this run, with its operations")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        problems = Run(options.seed, print).carry_out()
        print("\n".join(problems) or "all is well")
        return bool(problems)
    started = time.monotonic()
    numbers = range(options.first, options.first + options.runs)
    with ProcessPoolExecutor(options.jobs) as pool:
        failed = [found for found in pool.map(failures, numbers, chunksize=5) if found]
    for found in failed:
        print("\n".join(found))
    print(f"{options.runs} runs, {len(failed)} failed, in {time.monotonic() - started:.0f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
