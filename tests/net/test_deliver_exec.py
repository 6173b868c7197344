"""A program that is started for each message: what it gets, what its end means, how long it may take."""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec import Raw
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from meshproto.core.identity import verify
from meshproto.core.inbox import Correspondent, Received
from meshproto.core.outbox import BACKOFF_FIRST_S
from meshproto.errors import BadParams
from meshproto.net import deliver_exec as module
from meshproto.net.courier import REASON_CHARS_MAX
from meshproto.net.deliver_exec import COMMAND_TIMEOUT_S, KILL_AFTER_S, LINGER_S, DeliverExec, parse_command
from meshproto.net.programs import DRAIN_S
from tests.net.owner import NOW_MS, Owner, working

URL = "http://192.0.2.8:3000"


@pytest.fixture
def owner() -> Iterator[Owner]:
    yield from working()


class Process:
    """A process that does what the test says. `group`: whether there is anybody in its group."""

    def __init__(self, protocol: Any, arguments: list[str], environment: dict[bytes, bytes], pid: int) -> None:
        self.protocol = protocol
        self.arguments = arguments
        self.environment = environment
        self.pid = pid
        self.group = True
        self.input: bytes | None = b""
        self.closed = False
        self.reads = True
        self.signals: list[int] = []

    def write(self, data: bytes) -> None:
        assert self.input is not None
        self.input += data

    def closeStdin(self) -> None:
        self.closed = True

    def loseConnection(self) -> None:
        self.reads = False

    def signalProcess(self, number: int) -> None:
        raise ProcessExitedAlready

    def exit(self, code: int = 0, by: int | None = None) -> None:
        self.ended = Failure(ProcessTerminated(code, by) if code or by else ProcessDone(0))
        self.protocol.processExited(self.ended)

    def end(self, code: int = 0, by: int | None = None) -> None:
        self.exit(code, by)
        self.group = False
        self.protocol.processEnded(self.ended)


class Machine(Clock):
    """A reactor that starts processes of the kind above, or cannot."""

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.callLater: Callable[..., Any] = clock.callLater
        self.seconds = clock.seconds  # type: ignore[method-assign]
        self.started: list[Process] = []
        self.refuses: OSError | None = None
        monkeypatch.setattr(os, "killpg", self.killpg)

    def spawnProcess(
        self,
        protocol: Any,
        executable: str,
        args: list[str],
        env: dict[bytes, bytes],
        childFDs: Any,  # noqa: N803 - Twisted's name
    ) -> None:
        if self.refuses is not None:
            raise self.refuses
        process = Process(protocol, args, env, 1000 + len(self.started))
        self.started.append(process)
        protocol.makeConnection(process)

    def killpg(self, pid: int, number: int) -> None:
        process = self.started[pid - 1000]
        if not process.group:
            raise ProcessLookupError
        if number:
            process.signals.append(number)


@pytest.fixture
def machine(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(owner.clock, monkeypatch)
    owner.start(DeliverExec(parse_command("/bin/sh -c 'exit 0'"), machine))
    return machine


def test_what_a_command_gets(owner: Owner, machine: Machine) -> None:
    """The text on standard input, which then ends; the rest in the environment, beside our own."""
    owner.arrive("disk full \u00fc", type_="alert", id_="disk-1")
    (process,) = machine.started
    assert process.arguments[-3:] == ["/bin/sh", "-c", "exit 0"]
    assert (process.input, process.closed) == ("disk full \u00fc".encode(), True)
    assert {name: value for name, value in process.environment.items() if name not in os.environb} == {
        b"MESH_FROM": b"Bobby",
        b"MESH_KEY": verify(owner.sender.sign("Bobby", [URL], 1)).key.encode(),
        b"MESH_ID": b"disk-1",
        b"MESH_TYPE": b"alert",
        b"MESH_CURSOR": b"1",
        b"MESH_SENT_AT": str(NOW_MS - 5).encode(),
    }
    assert process.environment.items() >= os.environb.items()
    process.end()


@pytest.mark.parametrize(
    ("raw", "given"),
    [
        (b'"a\\nb"', b"a\nb"),
        (b'{"a": [1, "\xc3\xbc"]}', b'{"a": [1, "\xc3\xbc"]}'),
        (b"7", b"7"),
        (b"null", b"null"),
        (b'""', b""),
        (b'"\\ud800"', b'"\\ud800"'),  # half a character, which JSON can say and UTF-8 cannot
    ],
)
def test_the_input(raw: bytes, given: bytes) -> None:
    """A text comes as it is, anything else as its JSON."""
    assert module._input(Received(1, "a", Correspondent("Bob", "key"), "", Raw(raw), 0, 0)) == given


def test_what_no_environment_can_hold() -> None:
    """A NUL and half a character, which a stranger may put into an id, do not keep a command from starting."""
    message = Received(1, "a\0b", Correspondent("Bob", "key"), "\ud800=", Raw(b"1"), 0, 0)
    environment = module._environment(message)
    assert environment[b"MESH_ID"] == "a\ufffdb".encode()
    assert environment[b"MESH_TYPE"] == b"?="
    assert not any(b"\0" in value for value in environment.values())


@pytest.mark.parametrize("code", [0, 65])
def test_exit_codes_that_move_on(owner: Owner, machine: Machine, code: int) -> None:
    """0 and 65 (EX_DATAERR): the next message."""
    owner.arrive("a", "b")
    machine.started[0].end(code)
    owner.settle()
    assert [process.input for process in machine.started] == [b"a", b"b"]
    assert owner.cursor_on_disk("deliver-exec") == 1
    machine.started[1].end()


@pytest.mark.parametrize(
    ("code", "by", "reason"), [(1, None, "exit code 1"), (75, None, "exit code 75"), (0, 9, "ended by SIGKILL")]
)
def test_exit_codes_that_do_not(owner: Owner, machine: Machine, code: int, by: int | None, reason: str) -> None:
    """Any other end: the same message again, with the end of the standard error as the reason."""
    owner.arrive("a", "b")
    machine.started[0].protocol.errReceived(b"x" * 10_000)
    machine.started[0].protocol.errReceived(b" no space\n")
    machine.started[0].end(code, by)
    owner.settle()
    words = owner.shown[0]["reason"].removeprefix(f"{reason}: ")
    assert len(words) == REASON_CHARS_MAX and words.endswith("xx no space")
    owner.run(BACKOFF_FIRST_S)
    assert [process.input for process in machine.started] == [b"a", b"a"]
    machine.started[1].end()


def test_a_command_that_takes_too_long(owner: Owner, machine: Machine) -> None:
    """After COMMAND_TIMEOUT_S its group gets SIGTERM, after KILL_AFTER_S more SIGKILL; the message comes again."""
    owner.arrive("a")
    (process,) = machine.started
    owner.run(COMMAND_TIMEOUT_S - 0.1)
    assert process.signals == []
    owner.run(0.1)
    assert process.signals == [signal.SIGTERM]
    owner.run(KILL_AFTER_S)
    assert process.signals == [signal.SIGTERM, signal.SIGKILL]
    process.end(by=9)
    owner.settle()
    assert owner.shown[0]["reason"] == f"not done within {COMMAND_TIMEOUT_S:g} s"
    owner.run(BACKOFF_FIRST_S)
    assert len(machine.started) == 2
    machine.started[1].end()


def test_a_command_that_is_ended_has_not_taken_it(owner: Owner, machine: Machine) -> None:
    """Exit code 0 after SIGTERM is no success: nobody knows how far it came."""
    owner.arrive("a")
    owner.run(COMMAND_TIMEOUT_S)
    machine.started[0].end(0)
    owner.settle()
    assert owner.cursor_on_disk("deliver-exec") == 0
    assert owner.shown[0]["attempts"] == 1


def test_who_is_left_of_a_group_is_killed(owner: Owner, machine: Machine) -> None:
    """When the command ends at SIGTERM and something that it has started does not, the message is not given again
    before that is killed."""
    owner.arrive("a")
    (process,) = machine.started
    owner.run(COMMAND_TIMEOUT_S)
    process.exit(by=15)
    process.protocol.processEnded(process.ended)
    assert owner.shown[0]["attempts"] == 0
    owner.run(KILL_AFTER_S)
    assert process.signals == [signal.SIGTERM, signal.SIGKILL]
    assert owner.shown[0]["attempts"] == 1


def test_what_a_command_leaves_running(owner: Owner, machine: Machine) -> None:
    """A command that has ended is not waited for longer than LINGER_S because something holds its standard error."""
    owner.arrive("a")
    (process,) = machine.started
    process.exit(0)
    owner.run(LINGER_S - 0.1)
    assert process.reads
    owner.run(0.1)
    assert not process.reads
    process.protocol.processEnded(process.ended)
    owner.settle()
    assert owner.cursor_on_disk("deliver-exec") == 1
    assert process.signals == []


def test_a_command_that_cannot_be_started(owner: Owner, machine: Machine) -> None:
    """When the system has no room for a process, the message waits."""
    machine.refuses = OSError(11, "Resource temporarily unavailable")
    owner.arrive("a")
    assert owner.shown[0]["reason"] == "/bin/sh cannot be started: Resource temporarily unavailable"
    machine.refuses = None
    owner.run(BACKOFF_FIRST_S)
    machine.started[0].end()
    owner.settle()
    assert owner.cursor_on_disk("deliver-exec") == 1


def test_stopped_while_a_command_runs(owner: Owner, machine: Machine) -> None:
    """A command may end within DRAIN_S; then its group is ended, and the node has stopped when it has."""
    owner.arrive("a")
    (process,) = machine.started
    stopped = owner.stop()
    owner.run(DRAIN_S)
    assert process.signals == [signal.SIGTERM]
    assert not stopped.called
    process.end(by=15)
    owner.settle()
    assert stopped.called
    assert owner.cursor_on_disk("deliver-exec") == 0


def test_command_lines() -> None:
    """Quoted as for a shell, without one; the program is found as a shell would."""
    command = parse_command("""sh -c 'echo "$MESH_FROM"' '*' """)
    assert command.arguments == ("sh", "-c", 'echo "$MESH_FROM"', "*")
    assert command.path.startswith("/") and command.path.endswith("/sh")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sh -c 'echo", "is not a command line: No closing quotation"),
        ("", "is not a command line"),
        ("   ", "is not a command line"),
        ("sh \0", "is not a command line"),
        ("/no/such/program -x", "there is no program '/no/such/program'"),
        ("/etc/passwd", "there is no program '/etc/passwd' that could be started"),
        ("no-such-program-anywhere", "there is no program"),
    ],
)
def test_no_command_lines(text: str, says: str) -> None:
    """What cannot be run is refused with a sentence."""
    with pytest.raises(BadParams) as refused:
        parse_command(text)
    assert says in refused.value.detail
