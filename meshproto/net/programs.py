"""Runs :class:`meshproto.core.handover.Handover` for each of the owner's programs, each at its own pace:
:mod:`meshproto.net.deliver_to`, :mod:`meshproto.net.deliver_exec`."""

import random
from collections.abc import Iterable
from typing import Any, Final, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, ensureDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from meshproto.core.handover import PAGE_MESSAGES, Answer, Give, Handover, Load, Pause, Save, Step, Verdict
from meshproto.core.inbox import WAIT_S_MAX, Received
from meshproto.errors import MeshError
from meshproto.net.clocks import NowMs
from meshproto.net.program import Program
from meshproto.net.receiving import Receiving
from meshproto.net.user_store import UserStore

DRAIN_S: Final = 5.0
"""How long a message that is being handed over may take to be taken when the node stops."""

T = TypeVar("T")


class _Worker(Service):
    """One program, served for as long as the service runs."""

    log = Logger()

    def __init__(
        self, program: Program, core: Handover, receiving: Receiving, store: UserStore, clock: IReactorTime
    ) -> None:
        self.program = program
        self.core = core
        self._receiving = receiving
        self._store = store
        self._clock = clock
        self._ended: Deferred[None] = succeed(None)
        self._idle: Deferred[Any] | None = None
        self._complaint: str | None = None

    def startService(self) -> None:
        super().startService()
        self.log.info("{kind}: begins after message {cursor}", kind=self.program.kind, cursor=self.core.cursor)
        self._ended = ensureDeferred(self._work())

    def stopService(self) -> "Deferred[None]":
        """Ends when what is under way has ended, which takes :data:`DRAIN_S` at most, and then the end of a command."""
        super().stopService()
        if self._idle is not None:
            self._idle.cancel()
        timer = self._clock.callLater(DRAIN_S, self.program.cut)

        def ended(_: None) -> None:
            if timer.active():
                timer.cancel()

        return self._ended.addCallback(ended)

    async def _work(self) -> None:
        while True:
            step = self.core.step(self._clock.seconds())
            if not self.running and not isinstance(step, Save):
                return
            try:
                await self._carry_out(step)
            except CancelledError:
                continue  # of a wait, because the service stops
            except MeshError as error:
                self.core.put_off(error.detail, error.retry_after_s, self._clock.seconds())
            except Exception:
                self.log.failure("a bug in {kind}", kind=self.program.kind)
                self.core.put_off("internal error: the node's log says more", None, self._clock.seconds())

    async def _carry_out(self, step: Step) -> None:
        match step:
            case Save():
                await self._save(step.cursor)
            case Load():
                page = self._receiving.inbox(step.after, None, PAGE_MESSAGES, WAIT_S_MAX)
                self.core.loaded((await self._wait(ensureDeferred(page))).messages)
            case Give():
                answer = await self.program.give(step.message)
                self._report(step.message, answer)
                self.core.answered(answer, self._clock.seconds())
            case Pause():
                await self._wait(deferLater(self._clock, step.until - self._clock.seconds()))

    async def _save(self, cursor: int) -> None:
        try:
            await self._store.save_cursor(self.program.kind, cursor)
        except MeshError as error:
            self.log.error("{kind}: its cursor is not saved: {reason}", kind=self.program.kind, reason=error.detail)
            self.core.not_saved()
        else:
            self.core.saved()

    async def _wait(self, something: "Deferred[T]") -> T:
        self._idle = something
        try:
            return await something
        finally:
            self._idle = None

    def _report(self, message: Received, answer: Answer) -> None:
        """To the log, once for each thing that goes wrong; and nothing that may have been in a message."""
        told = {"kind": self.program.kind, "cursor": message.cursor, "what": answer.what}
        if answer.verdict is Verdict.NEVER:
            self.log.warn("{kind}: message {cursor} will never be taken ({what}): going on without it", **told)
        elif answer.verdict is Verdict.LATER and answer.what != self._complaint:
            self.log.warn("{kind}: message {cursor} is not taken ({what}): it will be tried again", **told)
        elif answer.verdict is Verdict.TAKEN and self._complaint is not None:
            self.log.info("{kind}: message {cursor} is taken: going on", **told)
        self._complaint = answer.what if answer.verdict is Verdict.LATER else None


class Programs(Service):
    """`programs`: each with the cursor it begins after; of each kind one."""

    def __init__(
        self,
        programs: Iterable[tuple[Program, int]],
        receiving: Receiving,
        store: UserStore,
        clock: IReactorTime,
        now_ms: NowMs,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._clock = clock
        self._now_ms = now_ms
        self._workers = [
            _Worker(program, Handover(cursor, rng), receiving, store, clock) for program, cursor in programs
        ]

    @property
    def cursor(self) -> int | None:
        """All programs are done with what came up to here; None: there is none that waits for anything."""
        return min((worker.core.cursor for worker in self._workers), default=None)

    async def shown(self) -> list[dict[str, Any]]:
        """Where each program stands, for the owner. Raises :class:`meshproto.errors.Unavailable`."""
        return [await self._shown(worker) for worker in self._workers]

    async def _shown(self, worker: _Worker) -> dict[str, Any]:
        core = worker.core
        cursor = core.cursor
        behind = await self._store.inbox.behind(cursor)
        ahead_ms = self._now_ms() - self._clock.seconds() * 1000
        return {
            "kind": worker.program.kind,
            "target": worker.program.target,
            "next": cursor,
            "behind": behind,
            "attempts": core.attempts,
            "next_try_at": None if core.next_try is None else int(core.next_try * 1000 + ahead_ms),
            "reason": core.reason,
        }

    def startService(self) -> None:
        super().startService()
        for worker in self._workers:
            worker.startService()

    def stopService(self) -> "Deferred[object]":
        """Ends when all have ended; see :meth:`_Worker.stopService`."""
        super().stopService()
        return DeferredList([worker.stopService() for worker in self._workers]).addCallback(lambda _: None)
