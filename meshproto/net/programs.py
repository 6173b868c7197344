"""Runs :class:`meshproto.core.handover.Handover` for each of the owner's programs: one that is posted to
(`--deliver-to`), one that is started (`--deliver-exec`), each at its own pace.

A command runs in a process group of its own, so that what it has started can be ended with it. Twisted starts processes
without forking this one and offers no way to give them a group; so a Python that does nothing else makes the group and
then becomes the command.
"""

import os
import random
import shlex
import shutil
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, TimeoutError, ensureDeferred, succeed
from twisted.internet.error import ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import ProcessProtocol, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from meshproto.core.handover import PAGE_MESSAGES, Answer, Give, Handover, Load, Pause, Save, Step, Verdict
from meshproto.core.identity import check_uri
from meshproto.core.inbox import WAIT_S_MAX, Received
from meshproto.errors import BadParams, MeshError
from meshproto.net.clocks import NowMs
from meshproto.net.courier import REASON_CHARS_MAX, HTTPClient, words_of
from meshproto.net.receiving import Receiving, shown
from meshproto.net.user_store import UserStore
from meshproto.wire import encode_value

ANSWER_TIMEOUT_S: Final = 30.0
"""What a program that is posted to may take for one message; a longer job belongs behind its answer."""
ANSWER_BYTES_MAX: Final = 64 * 1024
"""An answer is read up to here, so that its connection can be used again; one that goes on is cut off."""
COMMAND_TIMEOUT_S: Final = 60.0
"""What a command may take for one message, its start included."""
KILL_AFTER_S: Final = 2.0
"""Between SIGTERM and SIGKILL."""
LINGER_S: Final = 1.0
"""How long the standard error of a command that has ended is read on: something that it has left running may hold it
open for ever."""
DRAIN_S: Final = 5.0
"""How long a message that is being handed over may take to be taken when the node stops."""

_STOPPED: Final = "the node was stopped"
_WORDS_BYTES_MAX: Final = 4 * REASON_CHARS_MAX
"""Enough for so many characters of UTF-8."""
_EX_DATAERR: Final = 65
"""sysexits.h: the input was wrong. The mail system's filters use it for what need not be tried again."""

T = TypeVar("T")


class Program(Protocol):
    """One that takes messages, one at a time. `kind`: the option that names it; `target`: what the owner gave there."""

    kind: str
    target: str

    def give(self, message: Received) -> "Deferred[Answer]":
        """Hand the message over. Fires when the program is done with it, one way or the other; does not fail."""

    def cut(self) -> None:
        """What is under way ends soon."""


# -- one that is posted to ----------------------------------------------------------------------------------------


def check_url(url: str) -> str:
    """Raises :class:`BadParams` unless messages may be posted to the URL."""
    path, _, query = url.partition("?")
    check_uri(path)
    if any(not "!" <= letter <= "~" or letter == "#" for letter in query):
        raise BadParams(f"bad uri {url[:100]!r}: printable ASCII without spaces and without a fragment")
    return url


class _Words(TwistedProtocol):
    """Reads an answer's body as far as it is of use. `done` fires with its beginning, whatever becomes of the rest: how
    the message was taken stands in the answer's head."""

    def __init__(self) -> None:
        self._start = b""
        self._bytes = 0
        self.done: Deferred[str] = Deferred(lambda _: self._enough())

    def dataReceived(self, data: bytes) -> None:
        self._start = (self._start + data)[:_WORDS_BYTES_MAX]
        self._bytes += len(data)
        if self._bytes > ANSWER_BYTES_MAX:
            self._enough()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._tell()

    def _enough(self) -> None:
        self._tell()
        if self.transport is not None:
            self.transport.loseConnection()

    def _tell(self) -> None:
        if not self.done.called:
            self.done.callback(_text(self._start)[:REASON_CHARS_MAX])


class DeliverTo:
    """Posts each message, as `GET /inbox` shows it. 2xx: taken; 410 (Gone): never; anything else: later."""

    kind = "deliver-to"

    def __init__(self, url: str, client: HTTPClient, clock: IReactorTime) -> None:
        self.target = url
        self._client = client
        self._clock = clock
        self._work: Deferred[Answer] = succeed(Answer(Verdict.LATER, ""))

    def give(self, message: Received) -> "Deferred[Answer]":
        self._work = ensureDeferred(self._post(message))
        return self._work

    def cut(self) -> None:
        self._work.cancel()

    async def _post(self, message: Received) -> Answer:
        deadline = self._clock.seconds() + ANSWER_TIMEOUT_S
        try:
            posted = self._client.post(
                self.target,
                data=encode_value(shown(message)),
                headers={"Content-Type": "application/json", "Idempotency-Key": str(message.cursor)},
                allow_redirects=False,
                unbuffered=True,
                reactor=self._clock,
            )
            response = await posted.addTimeout(ANSWER_TIMEOUT_S, self._clock)
        except TimeoutError:
            return Answer(Verdict.LATER, f"no answer within {ANSWER_TIMEOUT_S:g} s")
        except CancelledError:
            return Answer(Verdict.LATER, _STOPPED)
        except Exception as reason:
            # Connecting and HTTP fail in as many ways as they have layers; each is a reason to try again.
            return Answer(Verdict.LATER, words_of(reason))
        words = _Words()
        response.deliverBody(words)
        text = await words.done.addTimeout(max(0.0, deadline - self._clock.seconds()), self._clock)
        return Answer(_verdict_of_status(response.code), f"answered {response.code}", text)


def _verdict_of_status(code: int) -> Verdict:
    if 200 <= code < 300:
        return Verdict.TAKEN
    return Verdict.NEVER if code == 410 else Verdict.LATER


# -- one that is started ------------------------------------------------------------------------------------------


class Command(NamedTuple):
    """A command line, parsed. `path`: the program, as an absolute path."""

    text: str
    path: str
    arguments: tuple[str, ...]


def parse_command(text: str) -> Command:
    """Raises :class:`BadParams` unless the text is a command line whose program is there."""
    try:
        arguments = shlex.split(text)
    except ValueError as reason:
        raise BadParams(f"{text[:100]!r} is not a command line: {reason}") from None
    if not arguments or "\0" in text:
        raise BadParams(f"{text[:100]!r} is not a command line")
    path = shutil.which(arguments[0])
    if path is None:
        raise BadParams(f"there is no program {arguments[0]!r} that could be started")
    return Command(text, str(Path(path).absolute()), tuple(arguments))


_MAKE_GROUP: Final = """\
import _signal, posix, sys
for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
    _signal.signal(number, _signal.SIG_DFL)
posix.setpgid(0, 0)
try:
    posix.execv(sys.argv[1], sys.argv[2:])
except OSError as reason:
    sys.exit(f"{sys.argv[1]} cannot be started: {reason.strerror}")
"""
"""Only modules that are built in, and no site packages: it is there in a hundredth of a second. Python ignores two
signals, which the command would inherit."""


class _Run(ProcessProtocol):
    """One command with one message. `done` fires when it has ended and nobody of its group is left that we had to
    end."""

    transport: Any

    def __init__(self, text: bytes, clock: IReactorTime) -> None:
        self.done: Deferred[Answer] = Deferred()
        self._text = text
        self._clock = clock
        self._pid = 0
        self._said = b""
        self._cut: str | None = None  # why we end it
        self._killed = False
        self._exited = False
        self._ended: Failure | None = None
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self._pid = self.transport.pid
        self._wait(COMMAND_TIMEOUT_S, self.cut, f"not done within {COMMAND_TIMEOUT_S:g} s")
        self.transport.write(self._text)
        self.transport.closeStdin()

    def errReceived(self, data: bytes) -> None:
        self._said = (self._said + data)[-_WORDS_BYTES_MAX:]

    def cut(self, why: str) -> None:
        """SIGTERM for the whole group, and SIGKILL a moment later for who is left of it."""
        if self._cut is None and not self._exited:
            self._cut = why
            self._wait(KILL_AFTER_S, self._kill)
            self._signal(signal.SIGTERM)

    def processExited(self, reason: Failure) -> None:
        self._exited = True
        if self._cut is None:
            self._wait(LINGER_S, self.transport.loseConnection)

    def processEnded(self, reason: Failure) -> None:
        self._ended = reason
        if self._cut is None or self._killed or not self._signal(0):
            self._tell(reason)

    def _kill(self) -> None:
        self._killed = True
        self._signal(signal.SIGKILL)
        if self._ended is not None:
            self._tell(self._ended)
        else:
            self.transport.loseConnection()  # whoever has left the group may hold its standard error open

    def _signal(self, number: int) -> bool:
        """Whether there was anybody to get the signal."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, number)
            return True
        if number:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess(number)  # it has not made its group yet
        return False

    def _wait(self, delay_s: float, then: Any, *arguments: Any) -> None:
        """There is one thing to wait for at a time."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self._clock.callLater(delay_s, then, *arguments)

    def _tell(self, reason: Failure) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self.done.callback(self._answer(reason.value))

    def _answer(self, end: BaseException | None) -> Answer:
        words = _text(self._said)[-REASON_CHARS_MAX:]
        if self._cut is not None:
            # Also when it says 0: many a program does so when it is told to end, wherever it stands.
            return Answer(Verdict.LATER, self._cut, words)
        if not isinstance(end, ProcessTerminated):
            return Answer(Verdict.TAKEN, "exit code 0", words)
        if end.signal is not None:
            return Answer(Verdict.LATER, f"ended by {signal.Signals(end.signal).name}", words)
        verdict = Verdict.NEVER if end.exitCode == _EX_DATAERR else Verdict.LATER
        return Answer(verdict, f"exit code {end.exitCode}", words)


class DeliverExec:
    """Runs a command with each message on its standard input. Exit code 0: taken; 65: never; anything else: later.
    What it prints is thrown away; the end of its standard error is kept for the reason."""

    kind = "deliver-exec"

    def __init__(self, command: Command, reactor: Any) -> None:
        self.target = command.text
        self._command = command
        self._reactor = reactor
        self._run: _Run | None = None

    def give(self, message: Received) -> "Deferred[Answer]":
        run = _Run(_input(message), self._reactor)
        start = [sys.executable, "-I", "-S", "-c", _MAKE_GROUP, self._command.path, *self._command.arguments]
        try:
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device, not a file
                descriptors = {0: "w", 1: nowhere.fileno(), 2: "r"}
                self._reactor.spawnProcess(run, start[0], start, _environment(message), childFDs=descriptors)
        except OSError as reason:
            return succeed(Answer(Verdict.LATER, f"{self._command.path} cannot be started: {reason.strerror}"))
        self._run = run
        return run.done

    def cut(self) -> None:
        if self._run is not None:
            self._run.cut(_STOPPED)


def _input(message: Received) -> bytes:
    """The text of a message that is one; the JSON of any other."""
    raw = bytes(message.message)
    try:
        return msgspec.json.decode(raw, type=str).encode("utf-8")
    except (msgspec.DecodeError, UnicodeError):
        return raw


def _environment(message: Received) -> dict[bytes, bytes]:
    """Ours, and what there is to know about the message. Its sender chose some of that: a NUL, which no environment can
    hold, becomes U+FFFD."""
    facts = {
        "MESH_FROM": message.sender.name,
        "MESH_KEY": message.sender.key,
        "MESH_ID": message.id,
        "MESH_TYPE": message.type,
        "MESH_CURSOR": str(message.cursor),
        "MESH_SENT_AT": str(message.sent_at),
    }
    mine = {name.encode(): value.replace("\0", "\ufffd").encode("utf-8", "replace") for name, value in facts.items()}
    return {**os.environb, **mine}


def _text(said: bytes) -> str:
    return said.decode("utf-8", "replace").strip()


# -- all of them --------------------------------------------------------------------------------------------------


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
        """Ends when what is under way has ended, which takes :data:`DRAIN_S` and :data:`KILL_AFTER_S` at most."""
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
