"""One run of :mod:`bench.faults`."""

import gc
from collections.abc import Callable
from typing import Final

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from bench.faults_asking import Asking
from bench.faults_breaking import Breaking
from bench.faults_client import Stream
from bench.faults_model import Entry
from bench.faults_scene import Scene

SEEDS: Final = ("seedX", "seedY")
USERS: Final = ("Ada", "Bob", "Cyd", "Dan")
OPERATIONS_MIN, OPERATIONS_MAX = 20, 55
STEPS_MAX: Final = 45
"""Steps between two operations, when hardly any time goes by: a message takes about thirty from its client to the
recipient's disk and back."""
PAUSES_S: Final = (0.02, 0.2, 1.0, 1.0, 4.0)
LONG_PAUSES_S: Final = ((15.0, 40.0, 400.0), (10, 10, 1))
"""Longer than a delivery may take, than a lookup is kept; than an outbox waits at most."""
REST_S: Final = 900.0
"""Twice the longest wait of an outbox and some deliveries that hang: by then everything has come to its end."""
DOUBTED_IS_SEEN: Final = False
"""Whether what a disk has written and reported as failed is there at once, or after the process has died. SQLite's WAL
does the second: other connections, and it itself, see what was synced only."""


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
        self._scene = scene = Scene(number, say)
        self._rng, self._world, self._model, self._tell = scene.rng, scene.world, scene.model, scene.tell
        self._breaking = breaking = Breaking(scene)
        self._asking = asking = Asking(scene)
        kinds: list[tuple[int, Callable[[], None]]] = [
            (9, breaking.crash_user),
            (2, breaking.crash_seed),
            (1, breaking.stop_user),
            (4, breaking.cut),
            (5, breaking.mute),
            (5, breaking.reset),
            (4, breaking.slow_disk),
            (3, breaking.refusing_disk),
            (3, breaking.doubting_disk if DOUBTED_IS_SEEN else breaking.haunted_disk),
            (3, breaking.unsynced_disk),
            (3, breaking.blind_disk),
            (2, breaking.set_clock),
            (3, breaking.rotate),
            (5, asking.hang_up),
            (3, asking.reuse),
            (4, asking.cancel),
            (3, asking.retry),
            (8, asking.stream),
        ]
        self._operations: list[tuple[int, Callable[[], None]]] = [
            (30, asking.send),
            (10, asking.again),
            (10, asking.peek),
            (9, breaking.restart),
            (4, breaking.heal),
            (4, breaking.mend),
            *(kind for kind in kinds if self._rng.random() < 0.5),
        ]
        breaking.moves, breaking.rotates, asking.expires = (self._rng.random() < 0.5 for _ in range(3))

    @property
    def history(self) -> str:
        return self._scene.history

    def carry_out(self) -> list[str]:
        failures = _Failures()
        globalLogPublisher.addObserver(failures)
        try:
            found = self._carry_out()
        except Exception as error:
            found = [f"{type(error).__name__}: {error}", *self._model.problems]
        self._world.close()
        gc.collect()  # a failure that nobody has looked at is told of now
        globalLogPublisher.removeObserver(failures)
        return [*found, *failures.said]

    def _carry_out(self) -> list[str]:
        self._scene.people(SEEDS[: self._rng.choice((1, 1, 1, 2))], USERS[: self._rng.choice((2, 2, 3, 4))])
        weights = [weight for weight, _ in self._operations]
        for _ in range(self._rng.randint(OPERATIONS_MIN, OPERATIONS_MAX)):
            _, operation = self._rng.choices(self._operations, weights)[0]
            operation()
            self._pause()
        self._calm_down()
        found = self._come_to_rest()
        before = self._look()
        found += self._model.judge(before)
        self._tell("everybody dies and comes back")
        for name in (*self._scene.seeds, *self._scene.users):
            self._world.crash(name)
        for name in (*self._scene.seeds, *self._scene.users):
            self._world.start(name)
        found += self._come_to_rest()
        after = self._look()
        found += self._model.judge(after)
        # What a disk had written without knowing it may be sent only now.
        if any(after[user][: len(entries)] != entries for user, entries in before.items()):
            found.append("after everybody died once more the inboxes are not what they were")
        return list(dict.fromkeys(found))

    def _calm_down(self) -> None:
        self._tell("all is healed")
        self._world.heal()
        for name in (*self._scene.seeds, *self._scene.users):
            self._world.troubles[name].mend()
            if not self._world.runs(name):
                self._breaking.start(name)

    def _come_to_rest(self) -> list[str]:
        """Let time go by until every outbox is empty and every client has its answer."""
        since = self._world.clock.seconds()
        for pause_s in (0.5, 1.0, 3.0, 10.0):
            self._world.run(pause_s)
            if not self._stuck():
                return []
        while self._world.clock.seconds() - since < REST_S:
            self._world.run(20.0)
            if not self._stuck():
                return []
        return [f"stuck: {reason}" for reason in self._stuck()]

    def _stuck(self) -> list[str]:
        users, talks = self._scene.users, self._asking.talks
        for talk in talks:
            if isinstance(talk, Stream) and not talk.over and not talk.ended:
                talk.finish()
        found = [f"{talk.user} does not answer" for talk in talks if not talk.over and talk.waiting]
        found += [f"{user} is not registered" for user in users if self._world.users[user].seeds.home is None]
        if not found:
            for user in users:
                outbox = self._asking.ask_now(user, "/outbox?status=waiting").json
                found += [f"{user} has {queue['waiting']} messages for {queue['to']}" for queue in outbox["recipients"]]
                found += [f"{message['id']} of {user} for {message['to']} waits" for message in outbox["messages"]]
        return found

    def _look(self) -> dict[str, list[Entry]]:
        """What is in the inboxes; and how far every message has come, for the model."""
        inboxes: dict[str, list[Entry]] = {}
        for user in self._scene.users:
            page = self._asking.ask_now(user, "/inbox?limit=1000").json["messages"]
            inboxes[user] = [Entry(entry["from"]["name"], entry["id"], entry["message"]) for entry in page]
            self._tell(f"inbox of {user}: {[(entry.sender, entry.id) for entry in inboxes[user]]}")
            begun = self._model.moment()
            shown = self._asking.ask_now(user, "/outbox?limit=1000").json["messages"]
            states = {(message["id"], message["to"]): (message["status"], message["reason"]) for message in shown}
            for message in self._model.messages:
                if message.sender == user:
                    state = states.get((message.id, message.to))
                    if state is None:
                        self._model.unknown(message, begun)
                    else:
                        self._model.shown(message, begun, *state)
        return inboxes

    def _pause(self) -> None:
        """Mostly a few steps without time going by, so that what comes next comes in the middle; or some time."""
        kind = self._rng.random()
        if kind < 0.6:
            for _ in range(self._rng.randrange(STEPS_MAX)):
                if not self._world.step():
                    break
        elif kind < 0.97:
            self._world.run(self._rng.choice(PAUSES_S))
        else:
            self._world.run(self._rng.choices(*LONG_PAUSES_S)[0])
