"""`--deliver-exec`: each message is the standard input of a command.

A command runs in a process group of its own, so that what it has started can be ended with it. Twisted starts processes
without forking this one and offers no way to give them a group; so a Python that does nothing else makes the group and
then becomes the command.
"""

import os
import shlex
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from meshproto.core.handover import Answer, Verdict
from meshproto.core.inbox import Received
from meshproto.errors import BadParams
from meshproto.net.courier import REASON_CHARS_MAX
from meshproto.net.program import STOPPED, WORDS_BYTES_MAX, text_of

COMMAND_TIMEOUT_S: Final = 60.0
"""What a command may take for one message, its start included."""
KILL_AFTER_S: Final = 2.0
"""Between SIGTERM and SIGKILL."""
LINGER_S: Final = 1.0
"""How long the standard error of a command that has ended is read on: something that it has left running may hold it
open for ever."""
_EX_DATAERR: Final = 65
"""sysexits.h: the input was wrong. The mail system's filters use it for what need not be tried again."""


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
        self._said = (self._said + data)[-WORDS_BYTES_MAX:]

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
        words = text_of(self._said)[-REASON_CHARS_MAX:]
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
            self._run.cut(STOPPED)


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
