"""A node's inbox with the programs that it is handed over to, on a fake clock."""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

from msgspec import Raw
from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.python.failure import Failure

from meshproto.core.envelope import Letter, seal
from meshproto.core.handover import Answer, Verdict
from meshproto.core.identity import Identity, verify
from meshproto.core.inbox import Received
from meshproto.net.deliver_exec import KILL_AFTER_S
from meshproto.net.program import Program
from meshproto.net.programs import DRAIN_S, Programs
from meshproto.net.receiving import Receiving
from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION, UserStore, begin_cursors
from tests.net.on_clock import OnClock

NOW_MS = 1_795_343_300_123
BEGAN = 1000.0
TAKEN, LATER = Answer(Verdict.TAKEN, "said taken"), Answer(Verdict.LATER, "said later")


class Owner:
    """A node's inbox, on a fake clock, with the programs that it is handed over to."""

    def __init__(self) -> None:
        self.disk = OnClock(SCHEMA, SCHEMA_VERSION)
        self.clock = self.disk.clock
        self.clock.advance(BEGAN)
        self.entropy = Random(1).randbytes
        self.identity = Identity.create(self.entropy, NOW_MS)
        self.record = verify(self.identity.sign("UserX", ["http://192.0.2.7:3000"], NOW_MS))
        self.sender = Identity.create(self.entropy, NOW_MS)
        self.store = UserStore(self.disk.database)
        self.receiving = Receiving(
            lambda: self.identity,
            self.store.inbox,
            self.clock,
            lambda: NOW_MS,
            self.entropy,
            check=lambda *_: succeed(None),
            heard=lambda _: None,
        )
        self.programs = Programs([], self.receiving, self.store, self.clock, lambda: NOW_MS, Random(1))

    def start(self, *programs: Program) -> None:
        """As a node starts that has these options."""
        cursors = begin_cursors(self.disk.connection, [program.kind for program in programs])
        began = [(program, cursors[program.kind]) for program in programs]
        self.programs = Programs(began, self.receiving, self.store, self.clock, self.now_ms, Random(1))
        self.programs.startService()
        self.settle()

    def now_ms(self) -> int:
        return NOW_MS + int((self.clock.seconds() - BEGAN) * 1000)

    def arrive(self, *messages: Any, type_: str = "", id_: str = "") -> None:
        """One batch from Bobby."""
        letters = [
            Letter(id_ or f"id {message}", Raw(json.dumps(message).encode()), NOW_MS - 5, type_) for message in messages
        ]
        signed = self.sender.sign("Bobby", ["http://192.0.2.8:3000"], NOW_MS)
        pending = seal(letters, self.sender, signed, self.record, self.entropy)
        self.wait(self.receiving.deliver(pending.body))

    def wait(self, work: Any) -> Any:
        results: list[Any] = []
        ensureDeferred(work).addBoth(results.append)
        self.settle()
        assert not isinstance(results[0], Failure), results[0]
        return results[0]

    def settle(self) -> None:
        for _ in range(20):
            self.clock.advance(0)

    def run(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.settle()

    @property
    def shown(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.wait(self.programs.shown())
        return found

    def cursor_on_disk(self, kind: str) -> int:
        query = "SELECT value FROM numbers WHERE name=?"
        return int(self.disk.connection.execute(query, (f"cursor {kind}",)).fetchone()[0])

    def stop(self) -> "Deferred[object]":
        stopped = self.programs.stopService()
        self.settle()
        return stopped


def working() -> Iterator[Owner]:
    """For a fixture: an owner, whose programs have stopped when the test is over."""
    owner = Owner()
    yield owner
    stopped = owner.stop()
    owner.run(DRAIN_S)
    owner.run(KILL_AFTER_S)
    assert stopped.called, "a program was not stopped"
    assert not owner.clock.getDelayedCalls()
    owner.disk.close()


class Manual:
    """A program that answers when the test does."""

    target = "by hand"

    def __init__(self, kind: str = "manual") -> None:
        self.kind = kind
        self.given: list[Received] = []
        self.cuts = 0
        self._answer: Deferred[Answer] | None = None

    def give(self, message: Received) -> "Deferred[Answer]":
        assert self._answer is None, "one at a time"
        self.given.append(message)
        self._answer = Deferred()
        return self._answer

    def answer(self, answer: Answer) -> None:
        waiting, self._answer = self._answer, None
        assert waiting is not None, "nothing was given"
        waiting.callback(answer)

    def cut(self) -> None:
        self.cuts += 1
        if self._answer is not None:
            self.answer(LATER)

    @property
    def texts(self) -> list[Any]:
        return [json.loads(bytes(message.message)) for message in self.given]


class Prompt(Manual):
    """A program that takes everything at once."""

    def give(self, message: Received) -> "Deferred[Answer]":
        self.given.append(message)
        return succeed(TAKEN)
