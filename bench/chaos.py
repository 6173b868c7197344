"""Messages through nodes that are killed all the time: `python -m bench.chaos`.

Two seeds, three senders and one recipient as real processes. While the senders' clients hand over their messages, every
node is killed with SIGKILL again and again and started anew, at once or after a while, now and then two together, now
and then before it is up. At the end the recipient has to have every acknowledged message once, in its sender's order,
and nothing else.

Kills are paced by progress, not by time: each node's are spread over its own messages, so that on any machine they all
come while messages flow. `--seed` draws when, whom and for how long; what they meet is up to the machine, so a run
cannot be repeated exactly.
"""

import argparse
import contextlib
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from socket import create_server
from typing import Any, Final, NamedTuple

from bench.chaos_senders import PipeliningSender, PlainSender, Sender, StreamingSender, ask, id_of, text_of
from bench.million import Client as Seed
from bench.million import Measured, memory_bytes, table
from meshproto.cli.processes import Child, Children, Failed, until
from meshproto.client.node import Node as Client
from meshproto.core.inbox import PAGE_MESSAGES_MAX
from meshproto.core.outbox import BACKOFF_MAX_S

SEEDS: Final = ("seedX", "seedY")
SENDERS: Final = ("Anna", "Bert", "Cleo")
RECIPIENT: Final = "Dora"
NAMES: Final = (*SEEDS, *SENDERS, RECIPIENT)
MESSAGES: Final = 50_000
KILLS: Final = 20
KILLS_UNTIL: Final = 0.95
"""The part of its messages by which a node has been killed for the last time: some have to come after that."""
SEED_KILLS_PART: Final = 0.25
"""Of the kills of each user's node."""
TOGETHER: Final = 0.2
"""The part of the kills that meet another user's node at the same moment, which is one more for that one."""
AT_ONCE: Final = 0.5
"""The part of the restarts that come at once; the others after a while (`--away`)."""
AWAY_S: Final = 3.0
EARLY: Final = 0.2
"""The part of the starts in which a node is killed once more, within :data:`EARLY_S`: before it listens, or while it
takes up what it had left."""
EARLY_S: Final = 1.0
OVERDUE_MAX: Final = 1
"""When more kills of a node wait for its return than this, its senders wait too."""
PORTS: Final = range(20_000, 32_000)
"""Below those that Linux gives to outgoing connections: one of these would take a dead node's port, and the client that
tries to reach the dead node might even be connected with itself."""
POLL_S: Final = 0.01
START_S_MAX: Final = 60.0
STALL_S_MAX: Final = 1.5 * BACKOFF_MAX_S
"""Longer than the longest pause between two attempts."""
REPORT_S: Final = 10.0
RECHECKED: Final = 100
"""Messages of each sender that are looked up in its outbox at the end."""
SHOWN_MAX: Final = 5
"""Messages that are told of for each thing that is wrong."""


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.state:
        options.state.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="mesh-chaos-", dir=options.state))
    done = False
    try:
        with Children(directory) as children:
            rng = random.Random(options.seed)
            chaos = Chaos(children, options.messages, options.kills, options.away, rng, stream=options.stream)
            chaos.run()
        chaos.look_at_files(directory)
        print(f"{options.messages:,} messages, --seed {options.seed}, {directory}\n")
        print(table(chaos.rows))
        for failure in chaos.failures:
            print(f"FAILED: {failure}")
        done = not chaos.failures and not any(row.missed for row in chaos.rows)
        return 0 if done else 1
    finally:
        if done and not options.keep:
            shutil.rmtree(directory)
        else:
            _say(f"kept: {directory}")


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    options.add_argument("--messages", type=int, default=MESSAGES, help="from all senders together (%(default)d)")
    options.add_argument("--kills", type=int, default=KILLS, help="of each user's node, at least (%(default)d)")
    options.add_argument("--seed", type=int, default=1, help="what the kills are drawn from (%(default)d)")
    options.add_argument("--away", type=float, default=AWAY_S, help="seconds a node stays dead at most (%(default)g)")
    options.add_argument("--state", type=Path, metavar="DIR", help="where the run's own directory is made")
    options.add_argument("--keep", action="store_true", help="keep that directory, as after a failure")
    options.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, default=True, help="one sender uses an NDJSON stream"
    )
    return options


def _say(text: str) -> None:
    """What goes on, for whoever waits; the table alone goes to stdout."""
    print(text, file=sys.stderr, flush=True)


# -- the nodes ----------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """A process that comes and goes. `due`: the kills to come, by the :attr:`progress` at which each is due. `lives`:
    from when until when it ran, in ms since 1970, 0: until now."""

    name: str
    service: str
    options: tuple[str, ...]
    port: int
    progress: Callable[[], int]
    due: deque[int]
    child: Child | None = None
    kills: int = 0
    up: bool = False
    early_at: float | None = None
    listens_by: float = 0.0
    back_at: float = 0.0
    lives: list[tuple[int, int]] = field(default_factory=list)

    @property
    def overdue(self) -> int:
        return sum(1 for at in self.due if at <= self.progress())

    def launch(self, children: Children, rng: random.Random) -> None:
        self.child = children.launch(self.service, self.name, *self.options, port=self.port)
        self.lives.append((_now_ms(), 0))
        self.up = False
        self.listens_by = time.monotonic() + START_S_MAX
        self.early_at = time.monotonic() + rng.uniform(0.0, EARLY_S) if rng.random() < EARLY else None

    def listens(self) -> bool:
        """Raises :class:`Failed` when it has ended without having been killed, or does not come up."""
        if self.child is None:
            return False
        if not self.up:
            self.up = self.child.address() is not None
            if not self.up and time.monotonic() > self.listens_by:
                raise Failed(f"{self.name} does not listen, {START_S_MAX:g} s after its start")
        elif self.child.process.poll() is not None:
            raise Failed(f"{self.name} ended by itself, with exit code {self.child.process.returncode}")
        return self.up

    def kill(self, away_s: float) -> None:
        """With SIGKILL; `away_s`: when it may come back."""
        if self.child is None:
            raise Failed(f"{self.name} is to be killed, but does not run")
        process = self.child.process
        process.kill()
        if process.wait() != -signal.SIGKILL:
            raise Failed(f"{self.name} ended by itself, with exit code {process.returncode}")
        self.child = None
        self.kills += 1
        self.lives[-1] = (self.lives[-1][0], _now_ms())
        self.back_at = time.monotonic() + away_s


def spread(kills: int, messages: int, rng: random.Random) -> deque[int]:
    """At how many messages to kill: once in each of so many equal parts, at random."""
    part = KILLS_UNTIL * messages / kills
    return deque(int((number + rng.random()) * part) for number in range(kills))


def free_ports() -> list[int]:
    """One that nobody listens at for each node. They are not drawn from the run's number: two runs at a time with the
    same number would take each other's while a node is dead."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with contextlib.suppress(OSError), create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == len(NAMES):
            return found
    raise Failed(f"fewer than {len(NAMES)} ports are free from {PORTS.start} on")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# -- the course of it ---------------------------------------------------------------------------------------------


class Chaos:
    """One run. `rows` and `failures` are what came of it."""

    def __init__(
        self, children: Children, messages: int, kills: int, away_s_max: float, rng: random.Random, *, stream: bool
    ) -> None:
        self.rows: list[Measured] = []
        self.failures: list[str] = []
        self._children = children
        self._messages = messages
        self._kills = kills
        self._away_s_max = away_s_max
        self._rng = rng
        self._flow = threading.Event()
        self._flow.set()
        ports = dict(zip(NAMES, free_ports(), strict=True))
        self._senders = self._clients(ports, stream)
        self._nodes = self._all_nodes(ports)
        self._users = [self._nodes[name] for name in (*SENDERS, RECIPIENT)]

    def _clients(self, ports: Mapping[str, int], stream: bool) -> dict[str, Sender]:
        kinds: tuple[type[Sender], ...] = (PlainSender, PipeliningSender, StreamingSender if stream else PlainSender)
        clients: dict[str, Sender] = {}
        for number, (name, kind) in enumerate(zip(SENDERS, kinds, strict=True)):
            share = (self._messages + number) // len(SENDERS)
            rng = random.Random(self._rng.random())
            clients[name] = kind(name, _url(ports[name]), RECIPIENT, share, rng, self._flow)
        return clients

    def _all_nodes(self, ports: Mapping[str, int]) -> dict[str, Node]:
        seeds = [f"127.0.0.1:{ports[name]}" for name in SEEDS]
        nodes = []
        for name, other in zip(SEEDS, reversed(seeds), strict=True):
            due = spread(max(1, round(SEED_KILLS_PART * self._kills)), self._messages, self._rng)
            nodes.append(Node(name, "meshseed", ("--peer", other), ports[name], self.acknowledged, due))
        known = tuple(part for seed in seeds for part in ("--seed", seed))
        for name, client in self._senders.items():
            due = spread(self._kills, client.messages, self._rng)
            nodes.append(Node(name, "meshuser", known, ports[name], lambda of=client: len(of.acknowledged), due))  # type: ignore[misc]
        due = spread(self._kills, self._messages, self._rng)
        nodes.append(Node(RECIPIENT, "meshuser", known, ports[RECIPIENT], self.acknowledged, due))
        return {node.name: node for node in nodes}

    def acknowledged(self) -> int:
        return sum(len(client.acknowledged) for client in self._senders.values())

    def run(self) -> None:
        """Raises :class:`Failed` when it cannot go on; what is merely wrong is in :attr:`failures`."""
        try:
            self._start()
            began = time.monotonic()
            self._send()
            took_s = time.monotonic() - began
            self._count(took_s)
            self._drain(began)
            self._judge()
            self._memory()
        except Failed as reason:
            self.failures.append(f"{reason}\n{self._evidence()}")
        for client in self._senders.values():
            client.over = True
            self.failures += client.failures
        self._flow.set()

    def _start(self) -> None:
        for node in self._nodes.values():
            node.launch(self._children, self._rng)
        for node in self._users:
            until(lambda node=node: node.listens() or None, f"{node.name} listens", START_S_MAX)  # type: ignore[misc]
            client = Client(_url(node.port))
            until(lambda client=client: client.status().document["registered"] or None, f"{node.name} is registered")  # type: ignore[misc]
        for name in SEEDS:  # one that is killed before it has told the other leaves nobody who knows them
            with Seed(f"127.0.0.1:{self._nodes[name].port}") as seed:
                until(partial(self._knows_all, seed), f"{name} knows all", START_S_MAX)

    def _knows_all(self, seed: Seed) -> bool | None:
        return seed.ask("status")["names"] == len(self._users) or None

    def _send(self) -> None:
        for client in self._senders.values():
            client.start()
        seen, seen_at = 0, time.monotonic()
        report_at = seen_at + REPORT_S
        while any(client.is_alive() for client in self._senders.values()):
            self._step()
            self._check_clients()
            now = time.monotonic()
            if (count := self.acknowledged()) > seen:
                seen, seen_at = count, now
            if now > seen_at + STALL_S_MAX:
                raise Failed(f"{count:,} messages are acknowledged, and no more for {STALL_S_MAX:g} s")
            if now > report_at:
                report_at = now + REPORT_S
                _say(f"{count:,} acknowledged, {sum(node.kills for node in self._nodes.values())} kills")
            time.sleep(POLL_S)
        self._check_clients()

    def _check_clients(self) -> None:
        for client in self._senders.values():
            if client.died is not None:
                raise Failed(f"{client.name}'s client ended with {client.died!r}") from client.died

    def _step(self) -> None:
        """Bring back whose time has come, and kill whose time has come."""
        for node in self._nodes.values():
            if node.child is None and time.monotonic() > node.back_at:
                node.launch(self._children, self._rng)
            if node.listens() and node.overdue:
                node.due.popleft()
                node.kill(self._away_s())
                self._kill_another(node)
            elif node.child is not None and node.early_at is not None and time.monotonic() > node.early_at:
                node.kill(self._away_s())
        self._throttle()

    def _kill_another(self, node: Node) -> None:
        others = [other for other in self._users if other is not node and other.child is not None and other.listens()]
        if others and node in self._users and self._rng.random() < TOGETHER:
            self._rng.choice(others).kill(self._away_s())

    def _away_s(self) -> float:
        return 0.0 if self._rng.random() < AT_ONCE else self._rng.uniform(0.0, self._away_s_max)

    def _throttle(self) -> None:
        """Hold the senders while the kills lag behind: all must have come before the last message."""
        behind = any(node.overdue > OVERDUE_MAX or (node.overdue and len(node.due) == 1) for node in self._users)
        (self._flow.clear if behind else self._flow.set)()

    def _drain(self, began: float) -> None:
        """All nodes up, and nothing waits any more."""
        for node in self._nodes.values():
            if node.child is None:
                node.launch(self._children, self._rng)
        for node in self._nodes.values():
            until(lambda node=node: node.listens() or None, f"{node.name} listens", START_S_MAX)  # type: ignore[misc]
        clients = [Client(_url(self._nodes[name].port)) for name in SENDERS]

        def empty() -> bool | None:
            return all(client.status().document["outbox"]["waiting"] == 0 for client in clients) or None

        until(empty, "every outbox is empty", STALL_S_MAX)
        took_s = time.monotonic() - began
        self._row("until every outbox was empty", took_s, "s")
        self._row("messages a second, until then", self._messages / took_s)
        for client in self._senders.values():
            client.recheck_some(RECHECKED)
        self._row("looked up again when they had been delivered", sum(c.rechecked for c in self._senders.values()))

    # -- what came of it -------------------------------------------------------------------------------------------

    def _row(self, what: str, value: float, unit: str = "", target: float | None = None) -> None:
        self.rows.append(Measured(what, value, unit, target))

    def _count(self, took_s: float) -> None:
        clients = self._senders.values()
        self._row("messages", self._messages)
        for node in self._nodes.values():
            self._row(f"kills of {node.name}", node.kills)
            if node.due:
                self.failures.append(f"{node.name} was to be killed {len(node.due)} times more")
        self._row("until all were acknowledged", took_s, "s")
        self._row("acknowledged", self.acknowledged())
        self._row("of these delivered when they were", sum(client.delivered for client in clients))
        self._row("sent again", sum(client.repeated for client in clients))
        self._row("answers that asked to try later", sum(client.refused for client in clients))
        self._row("sent on behind such a one, in any order", sum(len(client.unordered) for client in clients))

    def _judge(self) -> None:
        got = list(self._inbox())
        wanted = {name: [id_of(name, number) for number in self._senders[name].acknowledged] for name in SENDERS}
        unordered = {id_of(name, number) for name in SENDERS for number in self._senders[name].unordered}
        verdict = judge(wanted, unordered, got)
        for what, ids in verdict._asdict().items():
            self._row(what.replace("_", " "), len(ids), target=0)
            self.failures += [f"{what.replace('_', ' ')}: {self._about(each, got)}" for each in ids[:SHOWN_MAX]]
        for name in SENDERS:
            received = [message.received_at for message in got if message.sender == name]
            gaps = list(gaps_ms(self._nodes[name].lives, self._nodes[RECIPIENT].lives, received))
            what = f"from a restart of {name} or {RECIPIENT} until the next delivery"
            self._row(f"{what}: median", sorted(gaps)[len(gaps) // 2] / 1000, "s")
            self._row(f"{what}: longest", max(gaps) / 1000, "s")

    def _inbox(self) -> Iterator["Got"]:
        client, after = Client(_url(self._nodes[RECIPIENT].port)), 0
        while messages := (page := client.inbox(after=after, limit=PAGE_MESSAGES_MAX).document)["messages"]:
            for one in messages:
                yield Got(one["from"]["name"], one["id"], one["message"], one["received_at"], one["cursor"])
            after = page["next"]

    def _about(self, message_id: str, got: Iterable["Got"]) -> str:
        """What both sides know of a message."""
        found = [(one.cursor, one.received_at) for one in got if one.id == message_id]
        kept = [ask(f"127.0.0.1:{self._nodes[name].port}", f"/outbox/{message_id}") for name in SENDERS]
        outboxes = [said for code, said in kept if code == 200]
        return f"{message_id}: (cursor, received_at) in the inbox: {found}; in the outbox: {outboxes}"

    def _evidence(self) -> str:
        """What the nodes that answer say of themselves."""
        lines = []
        for node in self._users:
            for path in ("/status", "/outbox?limit=1"):
                try:
                    said: object = ask(f"127.0.0.1:{node.port}", path)
                except OSError as reason:
                    said = reason
                lines.append(f"  {node.name} {path}: {said}")
            lines.append(f"  the end of {node.name}'s log:\n{self._children.all[node.name].last_words()}")
        return "\n".join(lines)

    def _memory(self) -> None:
        for node in self._nodes.values():
            if node.child is not None:
                resident, _ = memory_bytes(node.child.process.pid)
                self._row(f"memory of {node.name}", resident / 1e6, "MB")

    def look_at_files(self, directory: Path) -> None:
        """When all nodes have ended: their databases and logs."""
        damaged = 0
        for path in sorted(directory.glob("*/*.db")):
            with contextlib.closing(sqlite3.connect(path)) as connection:
                said = [text for (text,) in connection.execute("PRAGMA integrity_check")]
            if said != ["ok"]:
                damaged += 1
                self.failures.append(f"{path}: {said[:SHOWN_MAX]}")
        self._row("databases that are damaged", damaged, target=0)
        for path in sorted(directory.glob("*.log")):
            log = path.read_text(encoding="utf-8", errors="replace")
            for word in ("Traceback", "Unhandled"):
                if (at := log.find(word)) >= 0:
                    self.failures.append(f"{path}:\n{log[max(0, at - 300) : at + 2000]}")
                    break


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


# -- the verdict --------------------------------------------------------------------------------------------------


class Got(NamedTuple):
    """A message in the recipient's inbox."""

    sender: str
    id: str
    text: Any
    received_at: int
    cursor: int


class Verdict(NamedTuple):
    """The ids of the messages with which something is wrong."""

    lost: list[str]
    doubled: list[str]
    out_of_order: list[str]
    with_a_wrong_text: list[str]
    not_sent: list[str]


def judge(wanted: Mapping[str, Sequence[str]], unordered: set[str], got: Sequence[Got]) -> Verdict:
    """`wanted`: by sender, the ids in the order of acknowledgement; `got`: the inbox in its order. `unordered` may be
    anywhere."""
    verdict = Verdict([], [], [], [], [])
    sent = {(sender, id_) for sender, ids in wanted.items() for id_ in ids}
    times = Counter((one.sender, one.id) for one in got)
    verdict.lost.extend(sorted(id_ for _, id_ in sent - times.keys()))
    verdict.not_sent.extend(sorted(id_ for _, id_ in times.keys() - sent))
    verdict.doubled.extend(sorted(id_ for (_, id_), count in times.items() if count > 1))
    verdict.with_a_wrong_text.extend(one.id for one in got if one.text != text_of(one.id))
    for sender, ids in wanted.items():
        ranks = {id_: rank for rank, id_ in enumerate(ids) if id_ not in unordered}
        latest = -1
        for one in got:
            rank = ranks.pop(one.id, -1) if one.sender == sender else -1  # a second copy is doubled, not out of order
            if rank >= 0:
                if rank < latest:
                    verdict.out_of_order.append(one.id)
                latest = max(latest, rank)
    return verdict


def gaps_ms(
    lives: Iterable[tuple[int, int]], others: Iterable[tuple[int, int]], received: Sequence[int]
) -> Iterator[int]:
    """From each moment when both nodes had been started until the next delivery, or until one of them was killed if
    nothing came. All in ms since 1970, rising; an end of 0: not yet."""
    for begin, end in lives:
        for other_begin, other_end in others:
            both, over = max(begin, other_begin), min(end or sys.maxsize, other_end or sys.maxsize)
            at = bisect_left(received, both)
            if both < over and at < len(received):
                yield min(received[at], over) - both


if __name__ == "__main__":
    sys.exit(main())
