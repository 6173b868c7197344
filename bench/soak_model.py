"""What the rules demand of a mesh that has come to rest, where that can be told without running the rules.

1. All seeds that live give the same answer for a name.
2. Whoever is connected, was registered and was never told otherwise owns the name, and is online.
When every seed is alive, so that nothing is hidden on a disk:
3. A name that only one key ever claimed: if its last word was a farewell nobody is found, else its newest record is,
   and it is online if its owner is connected.
4. A name that nobody gave up belongs to the key with the earliest `since`, of two the smaller.
"""

from dataclasses import dataclass, field

from bench.mesh_sim import Mesh
from meshproto.core.identity import Identity, b64, verify
from meshproto.wire import LookupResult


@dataclass
class Client:
    """A user at one seed. `link`: None when there is no connection any more."""

    name: str
    number: int
    identity: Identity
    home: str = ""
    link: int | None = None

    @property
    def key(self) -> str:
        return b64(self.identity.key)

    def __str__(self) -> str:
        return f"{self.name} (key {self.number}) at {self.home}"


@dataclass
class _Name:
    """What was granted. `last`: the newest record and whether it said farewell; `since`: the earliest of each key."""

    last: dict[str, tuple[int, bool]] = field(default_factory=dict)
    since: dict[str, int] = field(default_factory=dict)
    given_up: bool = False


class Model:
    def __init__(self) -> None:
        self._names: dict[str, _Name] = {}

    def registered(self, client: Client, seq: int, since: int) -> None:
        name = self._names.setdefault(client.name, _Name())
        name.last[client.key] = seq, False
        name.since[client.key] = min(since, name.since.get(client.key, since))

    def left(self, client: Client, seq: int) -> None:
        name = self._names[client.name]
        name.last[client.key] = seq, True
        name.given_up = True

    def problems(self, mesh: Mesh, clients: list[Client]) -> list[str]:
        found: list[str] = []
        whole = not any(node.dead for node in mesh.nodes.values())
        for user in sorted(self._names):
            answers = {node.name: mesh.lookup(node.name, user) for node in mesh.live}
            facts = {seed: _facts(answer) for seed, answer in answers.items()}
            if len(set(facts.values())) > 1:
                found.append(f"{user}: the seeds answer differently: {facts}")
                continue
            answer = next(iter(answers.values()))
            connected = [client for client in clients if client.name == user]
            found += [f"{user}: {problem}" for problem in _presence(answer, connected)]
            if whole:
                found += [f"{user}: {problem}" for problem in self._rules(answer, self._names[user], connected)]
        return found

    def _rules(self, answer: LookupResult | None, name: _Name, connected: list[Client]) -> list[str]:
        if len(name.last) == 1:
            ((seq, gone),) = name.last.values()
            if gone:
                return [] if answer is None else [f"was given up and is found: {_facts(answer)}"]
            if answer is None:
                return ["is not found"]
            if verify(answer.signed).seq != seq:
                return [f"is found with another record than that of {seq}: {_facts(answer)}"]
            return [] if answer.online == bool(connected) else [f"online is {answer.online}: {_facts(answer)}"]
        if name.given_up:
            return []
        _, winner = min((since, key) for key, since in name.since.items())
        if answer is None or verify(answer.signed).key != winner:
            return [f"the claims were {name.since}, and the owner is {_facts(answer)}"]
        return []


def _presence(answer: LookupResult | None, connected: list[Client]) -> list[str]:
    """Whoever is connected and heard of no conflict is the owner."""
    problems = []
    for client in connected:
        if answer is None:
            problems.append(f"is connected at {client.home} and not found")
        elif verify(answer.signed).key != client.key:
            problems.append(f"{client} is connected, was told of no conflict, and is not the owner: {_facts(answer)}")
        elif not answer.online or answer.home != client.home:
            problems.append(f"{client} is connected, and found as {_facts(answer)}")
    return problems


def _facts(answer: LookupResult | None) -> tuple[str, int, int, str, bool] | None:
    """All of an answer that must be the same everywhere; of one who is online `seen` is the time of asking."""
    if answer is None:
        return None
    record = verify(answer.signed)
    return record.key, record.seq, answer.since, answer.home, answer.online
