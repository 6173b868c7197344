"""The delivery promise under faults, again and again: `python -m bench.faults --runs 1000`.

Real nodes on a fake clock, with a network and disks in memory (:mod:`tests.world`), are asked to send a few dozen
messages while whatever can go wrong does: processes die between any two steps and come back, elsewhere, with other
keys; the network loses one direction or both, or breaks in the middle of a body; disks are slow, refuse, cannot be
read, or do not know what they have written; clocks are set; clients hang up, ask again, and mix up their ids.
Afterwards everything is healed, and :mod:`bench.faults_model` judges what was answered against what has arrived.

A run is drawn from its number alone; one that fails is repeated, with all that happened in it, by `python -m
bench.faults --seed NUMBER`. Each run has only some of the kinds of faults, since some hide others (swarm testing, Groce
et al. 2012). The pattern is FoundationDB's (Zhou et al. 2021, section 4) and TigerBeetle's VOPR.
"""

import argparse
import gc
import hashlib
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Final

from twisted.logger import (
    ILogObserver,
    LogEvent,
    LogLevel,
    formatEvent,
    globalLogBeginner,
    globalLogPublisher,
)
from zope.interface import implementer

from bench.faults_client import NOTHING, Said, Stream, Talk, Told
from bench.faults_model import Entry, Message, Model
from meshproto.core.identity import b64
from tests.network import EPOCH_S
from tests.world import World

SEEDS: Final = ("seedX", "seedY")
USERS: Final = ("Ada", "Bob", "Cyd", "Dan")
OPERATIONS_MIN, OPERATIONS_MAX = 20, 55
STEPS_MAX: Final = 45
"""Steps between two operations, when hardly any time goes by: a message takes about thirty from its client to the
recipient's disk and back."""
SHORT_TTLS_S: Final = (1.0, 4.0, 15.0)
TTL_S: Final = 7 * 86400.0
"""What /send takes when nothing is said."""
WAITS_S: Final = (0.0, 0.0, 0.5, 5.0, 5.0, 30.0)
PAUSES_S: Final = (0.02, 0.2, 1.0, 1.0, 4.0)
LONG_PAUSES_S: Final = ((15.0, 40.0, 400.0), (10, 10, 1))
"""Longer than a delivery may take, than a lookup is kept; than an outbox waits at most."""
SLOW_S: Final = (0.01, 0.3, 3.0, 30.0)
DAY_S: Final = 86400.0
DAYS_MAX: Final = 2
"""How far a clock is set ahead or back in all: a message lives seven."""
MS_S: Final = 0.001
"""What nodes stamp with knows no less."""
REST_S: Final = 900.0
"""Twice the longest wait of an outbox and some deliveries that hang: by then everything has come to its end."""
DOUBTED_IS_SEEN: Final = False
"""Whether what a disk has written and reported as failed is there at once, or after the process has died. SQLite's WAL
does the second: other connections, and it itself, see what was synced only."""
JOBS: Final = 2


@implementer(ILogObserver)
class _Failures:
    """What was logged as a failure, of whatever kind: there must be nothing."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_level") is LogLevel.critical:
            failure = event.get("log_failure")
            self.said.append(f"logged: {formatEvent(event)} {failure.getErrorMessage() if failure else ''}")


class Run:
    """One random run. `problems` is empty when all went well; `history` is a digest of all that happened."""

    def __init__(self, number: int, say: Callable[[str], None] = lambda _: None) -> None:
        self.number = number
        self.rng = random.Random(number)
        self.world = World(number)
        self.model = Model(self._on_disk)
        self._say = say
        self._digest = hashlib.sha256()
        self._talks: list[Talk | Stream] = []
        self._numbers = 0
        self._clock_set: set[str] = set()
        self._begun_at: dict[str, float] = {}
        self._addresses: list[str] = []
        kinds: list[tuple[int, Callable[[], None]]] = [
            (9, self.crash_user),
            (2, self.crash_seed),
            (1, self.stop_user),
            (4, self.cut),
            (5, self.mute),
            (5, self.reset),
            (4, self.slow_disk),
            (3, self.refusing_disk),
            (3, self.doubting_disk if DOUBTED_IS_SEEN else self.haunted_disk),
            (3, self.blind_disk),
            (2, self.set_clock),
            (5, self.hang_up),
            (3, self.reuse),
            (4, self.cancel),
            (3, self.retry),
            (8, self.stream),
        ]
        self._operations: list[tuple[int, Callable[[], None]]] = [
            (30, self.send),
            (10, self.again),
            (10, self.peek),
            (9, self.restart),
            (4, self.heal),
            (4, self.mend),
            *(kind for kind in kinds if self.rng.random() < 0.5),
        ]
        self._moves, self._rotates, self._expires = (self.rng.random() < 0.5 for _ in range(3))

    @property
    def history(self) -> str:
        return self._digest.hexdigest()

    def carry_out(self) -> list[str]:
        failures = _Failures()
        globalLogPublisher.addObserver(failures)
        try:
            found = self._carry_out()
        except Exception as error:
            found = [f"{type(error).__name__}: {error}", *self.model.problems]
        self.world.close()
        gc.collect()  # a failure that nobody has looked at is told of now
        globalLogPublisher.removeObserver(failures)
        return [*found, *failures.said]

    def _carry_out(self) -> list[str]:
        seeds = SEEDS[: self.rng.choice((1, 1, 1, 2))]
        for seed in seeds:
            self.world.add_seed(seed, peers=list(self.world.seeds))
        for user in USERS[: self.rng.choice((2, 2, 3, 4))]:
            self.world.add_user(user, seeds=seeds)
        self._seeds, self._users = list(self.world.seeds), list(self.world.users)
        self._keys = {user: b64(self.world.identities[user].key) for user in self._users}
        self._addresses = [self.world.hosts[user].ip for user in self._users]
        self.world.run_until(self.world.registered)
        weights = [weight for weight, _ in self._operations]
        for _ in range(self.rng.randint(OPERATIONS_MIN, OPERATIONS_MAX)):
            _, operation = self.rng.choices(self._operations, weights)[0]
            operation()
            self._pause()
        self._calm_down()
        found = self._come_to_rest()
        before = self._look()
        found += self.model.judge(before)
        self._tell("everybody dies and comes back")
        for name in (*self._seeds, *self._users):
            self.world.crash(name)
        for name in (*self._seeds, *self._users):
            self.world.start(name)
        found += self._come_to_rest()
        after = self._look()
        found += self.model.judge(after)
        # What a disk had written without knowing it may be sent only now.
        if any(after[user][: len(entries)] != entries for user, entries in before.items()):
            found.append("after everybody died once more the inboxes are not what they were")
        return list(dict.fromkeys(found))

    def _calm_down(self) -> None:
        self._tell("all is healed")
        self.world.heal()
        for name in (*self._seeds, *self._users):
            self.world.troubles[name].mend()
            if not self.world.runs(name):
                self._start(name)

    def _come_to_rest(self) -> list[str]:
        """Let time go by until every outbox is empty and every client has its answer."""
        since = self.world.clock.seconds()
        for pause_s in (0.5, 1.0, 3.0, 10.0):
            self.world.run(pause_s)
            if not self._stuck():
                return []
        while self.world.clock.seconds() - since < REST_S:
            self.world.run(20.0)
            if not self._stuck():
                return []
        return [f"stuck: {reason}" for reason in self._stuck()]

    def _stuck(self) -> list[str]:
        for talk in self._talks:
            if isinstance(talk, Stream) and not talk.over and not talk.ended:
                talk.finish()
        found = [f"{talk.user} does not answer" for talk in self._talks if not talk.over and talk.waiting]
        found += [f"{user} is not registered" for user in self._users if self.world.users[user].seeds.home is None]
        if not found:
            for user in self._users:
                outbox = self._ask_now(user, "/outbox?status=waiting").json
                found += [f"{user} has {queue['waiting']} messages for {queue['to']}" for queue in outbox["recipients"]]
                found += [f"{message['id']} of {user} for {message['to']} waits" for message in outbox["messages"]]
        return found

    def _look(self) -> dict[str, list[Entry]]:
        """What is in the inboxes; and how far every message has come, for the model."""
        inboxes: dict[str, list[Entry]] = {}
        for user in self._users:
            page = self._ask_now(user, "/inbox?limit=1000").json["messages"]
            inboxes[user] = [Entry(entry["from"]["name"], entry["id"], entry["message"]) for entry in page]
            self._tell(f"inbox of {user}: {[(entry.sender, entry.id) for entry in inboxes[user]]}")
            begun = self.model.moment()
            shown = self._ask_now(user, "/outbox?limit=1000").json["messages"]
            states = {(message["id"], message["to"]): (message["status"], message["reason"]) for message in shown}
            for message in self.model.messages:
                if message.sender == user:
                    state = states.get((message.id, message.to))
                    if state is None:
                        self.model.unknown(message, begun)
                    else:
                        self.model.shown(message, begun, *state)
        return inboxes

    # -- clients -------------------------------------------------------------------------------------------------

    def send(self) -> None:
        """One message, or several without waiting, over a connection of their own or one that is there."""
        sender = self.rng.choice(self._users)
        talk = self._talk(sender)
        for _ in range(self.rng.choice((1, 1, 1, 2, 5))):
            others = [user for user in self._users if user != sender]
            listed = self.rng.random() < 0.15
            many = self.rng.randint(1, len(self._users))
            names = self.rng.sample(self._users, many) if listed else [self.rng.choice(others)]
            self._ask(talk, self._new_message(sender, names), listed=listed)

    def stream(self) -> None:
        """Some lines of a stream, and perhaps its end."""
        streams = [talk for talk in self._talks if isinstance(talk, Stream) and not talk.over and not talk.ended]
        stream = self.rng.choice(streams) if streams and self.rng.random() < 0.6 else None
        if stream is None:
            sender = self.rng.choice(self._users)
            self._own_address(sender)
            stream = Stream(self.world, sender)
            self._talks.append(stream)
            self._tell(f"a stream begins at {sender}")
        for _ in range(self.rng.choice((1, 2, 6))):
            message = self._some_message() if self.rng.random() < 0.1 else None
            if message is None or message.sender != stream.user:
                (message,) = self._new_message(stream.user, [self.rng.choice(self._users)])
            body, told = self._order(stream, [message], message.to)
            stream.say(body, told, self.rng.choice((0, 0, 0, 12)))
        if self.rng.random() < 0.4:
            self._tell(f"the stream at {stream.user} ends")
            stream.finish()

    def again(self) -> None:
        """The same once more: the client has no answer, or has forgotten it."""
        message = self._some_message()
        if message is not None:
            self._tell("again:")
            self._ask(self._talk(message.sender), [message], listed=False)

    def reuse(self) -> None:
        """An id that was used before, with another text."""
        message = self._some_message()
        if message is not None:
            self._numbers += 1
            text = f"{self._numbers} instead"
            self._tell("the same id for another text:")
            other = self.model.send(message.sender, message.to, message.id, text, TTL_S)
            self._ask(self._talk(message.sender), [other], listed=False)

    def peek(self) -> None:
        """How far has it come?"""
        message = self._some_message()
        if message is None:
            return
        begun = self.model.moment()

        def told(said: Said) -> None:
            if said.code == 404:
                self.model.unknown(message, begun)
            if said.code != 200:
                self._tell(f"GET /outbox/{message.id} of {message.sender}: {said.code or 'nothing'}")
                return
            for shown in said.json.get("results", [said.json]):
                if shown["to"] == message.to:
                    self._tell(f"{message} is shown as {shown['status']}")
                    self._check_expiry(message, shown["status"])
                    self.model.shown(message, begun, shown["status"])

        self._talk(message.sender).ask("GET", f"/outbox/{message.id}", told)

    def cancel(self) -> None:
        message = self._some_message()
        if message is None:
            return
        begun = self.model.moment()

        def told(said: Said) -> None:
            self._tell(f"the cancelling of {message} is answered {said.code} {_told(said)}")
            if said.code == 404:
                self.model.unknown(message, begun)
            elif said.code in (200, 202, 409):
                status = str(said.json.get("status")) if said.code != 409 else _end_in(said.json)
                self._check_expiry(message, status)
                self.model.shown(message, begun, status)

        self._tell(f"{message} is to be cancelled")
        self._talk(message.sender).ask("DELETE", f"/outbox/{message.id}?to={message.to}", told)

    def retry(self) -> None:
        user = self.rng.choice(self._users)
        name = self.rng.choice(["", *(f"?to={other}" for other in self._users)])
        self._tell(f"{user} is to try again {name}")

        def told(said: Said) -> None:
            assert said.code in (0, 200, 404 if name else 200), f"POST /outbox/retry{name} of {user}: {said}"

        self._talk(user).ask("POST", f"/outbox/retry{name}", told)

    def hang_up(self) -> None:
        talks = [talk for talk in self._talks if not talk.over]
        if talks:
            talk = self.rng.choice(talks)
            self._tell(f"a client of {talk.user} hangs up")
            if isinstance(talk, Talk) and self.rng.random() < 0.3:
                talk.ask_half("/send", {"to": self.rng.choice(self._users), "message": "never whole", "id": "half"})
            talk.hang_up(abort=self.rng.random() < 0.5)

    # -- processes -----------------------------------------------------------------------------------------------

    def crash_user(self) -> None:
        self._crash(self._users)

    def crash_seed(self) -> None:
        self._crash(self._seeds)

    def stop_user(self) -> None:
        user = self.rng.choice(self._users)
        if self.world.runs(user):
            self._tell(f"{user} is stopped")
            self.world.stop(user)

    def restart(self) -> None:
        down = [name for name in (*self._seeds, *self._users) if not self.world.runs(name)]
        if down:
            self._start(self.rng.choice(down))

    def set_clock(self) -> None:
        user = self.rng.choice(self._users)
        host = self.world.hosts[user]
        ahead_s = host.ahead_s + self.rng.choice((-DAY_S, DAY_S))
        if abs(ahead_s) <= DAYS_MAX * DAY_S:
            self._tell(f"the clock of {user} is set {ahead_s - host.ahead_s:+g} s")
            host.ahead_s = ahead_s
            self._clock_set.add(user)

    # -- the network ---------------------------------------------------------------------------------------------

    def cut(self) -> None:
        one, other = self._two()
        self._tell(f"{one} and {other} are cut off from each other")
        self.world.cut(one, other)

    def mute(self) -> None:
        one, other = self._two()
        self._tell(f"what {one} sends does not reach {other}")
        self.world.mute(one, other)

    def reset(self) -> None:
        one, other = self._two()
        self._tell(f"connections between {one} and {other} break")
        self.world.reset(one, other, self.rng.choice((0.0, 0.3, 1.0)))

    def heal(self) -> None:
        self._tell("the network is healed")
        self.world.heal()

    # -- disks ---------------------------------------------------------------------------------------------------

    def slow_disk(self) -> None:
        name = self._any_node()
        self.world.troubles[name].slow_s = self.rng.choice(SLOW_S)
        self._tell(f"a commit of {name} takes up to {self.world.troubles[name].slow_s} s")

    def refusing_disk(self) -> None:
        name = self._any_node()
        self._tell(f"the disk of {name} refuses commits")
        self.world.troubles[name].refuses = self.rng.choice((0.3, 1.0))

    def doubting_disk(self) -> None:
        name = self._any_node()
        self._tell(f"the disk of {name} calls commits failed that it has written")
        self.world.troubles[name].doubts = self.rng.choice((0.3, 1.0))

    def haunted_disk(self) -> None:
        name = self._any_node()
        self._tell(f"the disk of {name} calls commits failed that will be there after its death")
        self.world.troubles[name].haunts = self.rng.choice((0.3, 1.0))

    def blind_disk(self) -> None:
        name = self._any_node()
        self._tell(f"the disk of {name} cannot be read")
        self.world.troubles[name].blind = self.rng.choice((0.3, 1.0))

    def mend(self) -> None:
        name = self._any_node()
        self._tell(f"the disk of {name} is mended")
        self.world.troubles[name].mend()

    # -- inside --------------------------------------------------------------------------------------------------

    def _new_message(self, sender: str, names: list[str]) -> list[Message]:
        """One for each name, with the same id and text."""
        self._numbers += 1
        id_ = f"m{self._numbers}"
        text = f"{self._numbers} {'x' * self.rng.choice((0, 0, 0, 0, 0, 20_000))}"
        short = self._expires and self.rng.random() < 0.3
        ttl_s = self.rng.choice(SHORT_TTLS_S) if short else TTL_S
        self._begun_at[id_] = self.world.clock.seconds()
        return [self.model.send(sender, name, id_, text, ttl_s) for name in names]

    def _ask(self, talk: Talk, messages: list[Message], *, listed: bool) -> None:
        body, told = self._order(talk, messages, [message.to for message in messages] if listed else messages[0].to)
        talk.ask("POST", "/send", told, body)

    def _order(self, client: Talk | Stream, messages: list[Message], to: str | list[str]) -> tuple[Any, Told]:
        """The body, and what to do with the answer; who gets none within some time hangs up."""
        first = messages[0]
        wait_s = self.rng.choice(WAITS_S)
        body = {"to": to, "message": first.text, "id": first.id, "wait": wait_s}
        if first.ttl_s != TTL_S:
            body["ttl"] = first.ttl_s
        begun = self.model.moment()
        trouble = self.world.troubles[first.sender]
        doubted = trouble.doubted
        self._tell(f"{first.id} from {first.sender} to {to}, {first.text[:12]!r}, ttl {first.ttl_s:g} wait {wait_s:g}")

        def told(said: Said) -> None:
            if patience.active():
                patience.cancel()
            self._tell(f"{first.id} of {first.sender} is answered {said.code} {_told(said)}")
            doubt = trouble.doubted > doubted
            for message in messages:
                if said is NOTHING:
                    self.model.no_answer(message)
                elif said.code == 207 or isinstance(client, Stream):
                    results = said.json["results"] if said.code == 207 else [said.json]
                    result = next(result for result in results if result["to"] == message.to)
                    self._answered(message, begun, _code(result), result, doubt)
                else:
                    self._answered(message, begun, said.code, said.json, doubt)

        patience_s = wait_s + self.rng.choice((0.5, 5.0, 40.0, 100.0))
        patience = self.world.laptop.callLater(patience_s, lambda: client.hang_up(abort=True))
        return body, told

    def _answered(self, message: Message, begun: int, code: int, body: dict[str, Any], doubt: bool) -> None:
        self._check_expiry(message, _end_in(body))
        self.model.answered(message, begun, code, body, doubt=doubt)

    def _check_expiry(self, message: Message, status: str) -> None:
        lived_s = self.world.clock.seconds() - self._begun_at[message.id]
        # The id may have been used for another text, too: what is told is of the one that was accepted.
        same = (other for other in self.model.messages if (other.sender, other.id) == (message.sender, message.id))
        ttl_s = min(other.ttl_s for other in same)
        if status == "expired" and lived_s < ttl_s - MS_S and message.sender not in self._clock_set:
            self.model.expired_early(message)

    def _own_address(self, user: str) -> None:
        """A client knows its own node: it does not talk to another that has got the address meanwhile."""
        others = [other for other in self.world.users if other != user]
        if any(self.world.hosts[other].ip == self.world.hosts[user].ip for other in others):
            self.world.hosts[user].ip = "10.2.0.0"  # where nobody is

    def _ask_now(self, user: str, path: str) -> Said:
        """When all is well: an answer is waited for."""
        heard: list[Said] = []
        talk = Talk(self.world, user)
        talk.ask("GET", path, heard.append)
        self.world.run_until(lambda: bool(heard))
        talk.hang_up(abort=False)
        assert heard[0].code == 200, f"GET {path} of {user}: {heard[0]}"
        return heard[0]

    def _talk(self, user: str) -> Talk:
        self._talks = [talk for talk in self._talks if not talk.over]
        open_ = [talk for talk in self._talks if talk.user == user and isinstance(talk, Talk)]
        if open_ and self.rng.random() < 0.5:
            return self.rng.choice(open_)
        self._own_address(user)
        talk = Talk(self.world, user)
        self._talks.append(talk)
        return talk

    def _some_message(self) -> Message | None:
        """One of the latest, rather one that has no answer."""
        late = self.model.messages[-12:]
        unanswered = [message for message in late if not message.kept]
        chosen = unanswered if unanswered and self.rng.random() < 0.5 else late
        return self.rng.choice(chosen) if chosen else None

    def _crash(self, names: Iterable[str]) -> None:
        running = [name for name in names if self.world.runs(name)]
        if running:
            name = self.rng.choice(running)
            self._tell(f"{name} dies")
            self.world.crash(name)

    def _start(self, name: str) -> None:
        if name in self._users:
            self._settle_somewhere(name)
            if self._rotates and self.rng.random() < 0.3:
                self._tell(f"{name} has another mail key")
                self.world.rotate(name)
        self._tell(f"{name} starts at {self.world.hosts[name].ip}")
        self.world.start(name)

    def _settle_somewhere(self, name: str) -> None:
        """Most come back where they were, unless somebody else has the address now; others at an address that is new,
        or was another's."""
        host = self.world.hosts[name]
        taken = {self.world.hosts[user].ip for user in self.world.users}
        if host.ip in taken or (self._moves and self.rng.random() < 0.4):
            self._addresses.append(f"10.1.0.{len(self._addresses)}")
            taken |= {dialled[0] for dialled in self.world.laptop.tcpClients}  # a client knows its own node
            host.ip = self.rng.choice([address for address in self._addresses if address not in taken])

    def _two(self) -> list[str]:
        """Two hosts; often one of them is the clients'."""
        return self.rng.sample(["laptop", *self._users, *self.rng.sample(self._seeds, 1)], 2)

    def _any_node(self) -> str:
        return self.rng.choice([*self._users, *self._users, *self._seeds])

    def _pause(self) -> None:
        """Mostly a few steps without time going by, so that what comes next comes in the middle; or some time."""
        kind = self.rng.random()
        if kind < 0.6:
            for _ in range(self.rng.randrange(STEPS_MAX)):
                if not self.world.step():
                    break
        elif kind < 0.97:
            self.world.run(self.rng.choice(PAUSES_S))
        else:
            self.world.run(self.rng.choices(*LONG_PAUSES_S)[0])

    def _on_disk(self, to: str, sender: str, id_: str) -> bool:
        query = f"SELECT count(*) FROM inbox WHERE key='{self._keys[sender]}' AND id='{id_}'"
        return bool(self.world.on_disk(to, query))

    def _tell(self, text: str) -> None:
        line = f"{self.world.clock.seconds() - EPOCH_S:9.3f} {text}"
        self._digest.update(line.encode())
        self._say(line)


def _end_in(body: dict[str, Any]) -> str:
    """The end that a problem document tells of, if it does."""
    before, _, status = str(body.get("title", "")).partition("message ")
    return "" if before else status


def _code(result: dict[str, Any]) -> int:
    """What one of several would have been answered alone."""
    status = result["status"]
    if status == "failed":
        return int(result["code"])
    if status in ("expired", "refused", "cancelled"):
        result["title"] = f"message {status}"
        return 409
    return 200 if status == "delivered" else 202


def _told(said: Said) -> str:
    if said.json is None:
        return ""
    if said.code == 207:
        return str([(result["to"], result["status"], result.get("code")) for result in said.json["results"]])
    return (
        str(said.json.get("status", "")) if said.code < 300 else f"{said.json.get('title')}: {said.json.get('detail')}"
    )


def failures(number: int) -> list[str]:
    """What is wrong at the end of a run, and how to see it again."""
    problems = Run(number).carry_out()
    while gc.collect():
        """What was still going on in that world ends unheard, and not in the next one: some of it wakes others."""
    return [f"{problem} (python -m bench.faults --seed {number})" for problem in problems]


def quiet() -> None:
    """For a process that does nothing else: what Twisted logs goes to those who ask, and what was imported is left
    out of the collections after each run."""
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    gc.collect()
    gc.freeze()
    gc.disable()


def failed_of(numbers: Iterable[int], jobs: int = JOBS) -> Iterator[tuple[int, list[str]]]:
    """The runs that have problems, and which, in order."""
    with _pool(jobs) as pool:
        for number, found in zip(numbers, pool.map(failures, numbers, chunksize=20), strict=True):
            if found:
                yield number, found


def history(number: int) -> str:
    run = Run(number)
    run.carry_out()
    return run.history


def histories(numbers: Iterable[int]) -> list[str]:
    """Of each run, in a process of its own."""
    found = []
    for number in numbers:
        with _pool(1) as pool:
            found.append(pool.submit(history, number).result())
    return found


def _pool(jobs: int) -> ProcessPoolExecutor:
    """A fork would take along whatever threads and reactor there are."""
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=quiet)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="how many runs (%(default)s)")
    parser.add_argument("--first", type=int, default=1, help="the number of the first (%(default)s)")
    parser.add_argument("--jobs", type=int, default=JOBS, help="processes at a time (%(default)s)")
    parser.add_argument("--seed", type=int, metavar="NUMBER", help="only this run, with all that happens")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        quiet()
        run = Run(options.seed, print)
        problems = run.carry_out()
        print(f"history {run.history}")
        print("\n".join(problems) or "all is well")
        return bool(problems)
    started = time.monotonic()
    failed = 0
    for _, found in failed_of(range(options.first, options.first + options.runs), options.jobs):
        failed += 1
        print("\n".join(found), flush=True)
    print(f"{options.runs} runs, {failed} failed, in {time.monotonic() - started:.0f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
