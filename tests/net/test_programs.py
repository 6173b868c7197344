"""The owner's programs: what they are handed, what they may answer, how long they may take."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import pytest
from msgspec import Raw
from twisted.internet.defer import Deferred, ensureDeferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError, ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone

from meshproto.core.envelope import Letter, seal
from meshproto.core.handover import LOAD_RETRY_S, Answer, Verdict
from meshproto.core.identity import Identity, verify
from meshproto.core.inbox import WAIT_S_MAX, Correspondent, Received
from meshproto.core.outbox import BACKOFF_FIRST_S, BACKOFF_MAX_S
from meshproto.errors import BadParams, Unavailable
from meshproto.net import deliver_exec as module
from meshproto.net.courier import REASON_CHARS_MAX
from meshproto.net.deliver_exec import (
    COMMAND_TIMEOUT_S,
    KILL_AFTER_S,
    LINGER_S,
    DeliverExec,
    parse_command,
)
from meshproto.net.deliver_to import ANSWER_BYTES_MAX, ANSWER_TIMEOUT_S, DeliverTo, check_url
from meshproto.net.program import Program
from meshproto.net.programs import DRAIN_S, Programs
from meshproto.net.receiving import Receiving
from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION, UserStore, begin_cursors
from tests.net.on_clock import OnClock

NOW_MS = 1_795_343_300_123
BEGAN = 1000.0
URL = "http://127.0.0.1:8000/messages"
TAKEN, NEVER, LATER = (Answer(verdict, f"said {verdict.name.lower()}") for verdict in Verdict)


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
            self.identity, self.store.inbox, self.clock, lambda: NOW_MS, self.entropy, lambda name: None
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


@pytest.fixture
def owner() -> Iterator[Owner]:
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


def said(events: Sequence[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in events]


# -- the order of things ------------------------------------------------------------------------------------------


def test_one_at_a_time_in_order(owner: Owner) -> None:
    """The next message is given when the one before was answered; the cursor is then on disk."""
    program = Manual()
    owner.start(program)
    owner.arrive("a", "b")
    owner.arrive("c")
    for number, text in enumerate(["a", "b", "c"], start=1):
        assert program.texts == ["a", "b", "c"][:number]
        assert program.texts[-1] == text
        before = program.given[-1].cursor
        assert owner.cursor_on_disk("manual") < before
        program.answer(TAKEN)
        owner.settle()
        assert owner.cursor_on_disk("manual") == before
    assert len(program.given) == 3


def test_more_than_a_page(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """All messages come, however many a page holds, and those that come meanwhile."""
    monkeypatch.setattr("meshproto.net.programs.PAGE_MESSAGES", 3)
    program = Prompt()
    owner.start(program)
    owner.arrive(*range(10))
    owner.arrive(*range(10, 14))
    assert program.texts == list(range(14))


def test_what_came_before_is_not_handed_over(owner: Owner) -> None:
    """A program that is given for the first time begins with what comes from then on."""
    owner.arrive("old")
    program = Prompt()
    owner.start(program)
    owner.arrive("new")
    assert program.texts == ["new"]


def test_a_program_that_was_left_out_goes_on(owner: Owner) -> None:
    """A program that is given again goes on where it was, with what came while it was left out."""
    owner.start(Prompt())
    owner.arrive("a")
    owner.wait(owner.stop())
    owner.start()
    owner.arrive("b")
    owner.wait(owner.stop())
    again = Prompt()
    owner.start(again)
    assert again.texts == ["b"]


def test_one_that_never_will_does_not_stop_the_others(owner: Owner) -> None:
    """The log says which message was left out, and nothing of what was in it or of the program's own words."""
    program = Manual()
    owner.start(program)
    with capturedLogs() as events:
        owner.arrive("secret", "next")
        program.answer(Answer(Verdict.NEVER, "answered 410", "secret is no number"))
        owner.settle()
    (warning,) = said(events)
    assert warning == "manual: message 1 will never be taken (answered 410): going on without it"
    assert program.texts == ["secret", "next"]


def test_one_that_fails_is_given_again(owner: Owner) -> None:
    """What was not taken comes again, before the next, after a pause that grows; the log says so once."""
    program = Manual()
    owner.start(program)
    with capturedLogs() as events:
        owner.arrive("a", "b")
        for attempt in range(1, 4):
            assert program.texts == ["a"] * attempt
            program.answer(LATER)
            owner.run(BACKOFF_FIRST_S / 2 * 2 ** (attempt - 1) - 0.01)
            assert len(program.texts) == attempt
            owner.run(BACKOFF_FIRST_S / 2 * 2 ** (attempt - 1) + 0.01)
        program.answer(TAKEN)
        owner.settle()
    assert program.texts == ["a", "a", "a", "a", "b"]
    assert said(events) == [
        "manual: message 1 is not taken (said later): it will be tried again",
        "manual: message 1 is taken: going on",
    ]


def test_each_at_its_own_pace(owner: Owner) -> None:
    """A program that fails does not hold up the other; `cursor` is where the slower one is, None without any."""
    assert owner.programs.cursor is None
    slow, fast = Manual("slow"), Prompt("fast")
    owner.start(slow, fast)
    owner.arrive("a", "b")
    assert (slow.texts, fast.texts) == (["a"], ["a", "b"])
    assert owner.programs.cursor == 0
    slow.answer(TAKEN)
    owner.settle()
    assert owner.programs.cursor == 1
    assert (owner.cursor_on_disk("slow"), owner.cursor_on_disk("fast")) == (1, 2)


def test_what_the_owner_sees(owner: Owner) -> None:
    """Each program's place, how many messages wait, and what is wrong with it."""
    program = Manual()
    owner.start(program)
    calm = {
        "kind": "manual",
        "target": "by hand",
        "next": 0,
        "behind": 0,
        "attempts": 0,
        "next_try_at": None,
        "reason": None,
    }
    assert owner.shown == [calm]
    owner.arrive("a", "b")
    assert owner.shown == [{**calm, "behind": 2}]
    program.answer(Answer(Verdict.LATER, "exit code 1", "no space"))
    (shown,) = owner.shown
    assert NOW_MS < shown.pop("next_try_at") <= NOW_MS + BACKOFF_FIRST_S * 1000
    del calm["next_try_at"]
    assert shown == {**calm, "behind": 2, "attempts": 1, "reason": "exit code 1: no space"}
    owner.run(BACKOFF_FIRST_S)
    program.answer(TAKEN)
    owner.settle()
    assert owner.shown == [{**calm, "next": 1, "behind": 1, "next_try_at": None}]


# -- what may fail ------------------------------------------------------------------------------------------------


def test_a_disk_that_cannot_be_read(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the inbox cannot be read it is tried again, and the owner sees why."""
    program = Prompt()
    owner.arrive("old")

    with monkeypatch.context() as patch:
        patch.setattr(owner.store.inbox, "page", lambda *_: fail(Unavailable("the disk does not take it: no")))
        owner.start(program)
        (shown,) = owner.shown
        assert shown["reason"] == "the disk does not take it: no"
        assert shown["attempts"] == 0 and shown["next_try_at"] is not None
    owner.arrive("a")
    assert program.texts == []
    owner.run(LOAD_RETRY_S)
    assert program.texts == ["a"]
    assert owner.shown[0]["reason"] is None


def test_a_disk_that_cannot_be_written(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the cursor cannot be saved the handing over goes on, and it is saved when that works again."""
    program = Prompt()
    owner.start(program)
    with monkeypatch.context() as patch, capturedLogs() as events:
        patch.setattr(owner.store, "save_cursor", lambda *_: fail(Unavailable("the disk does not take it: no")))
        owner.arrive("a", "b")
    assert program.texts == ["a", "b"]
    assert any("its cursor is not saved" in line for line in said(events))
    assert owner.cursor_on_disk("manual") == 0
    owner.run(WAIT_S_MAX)
    assert owner.cursor_on_disk("manual") == 2


def test_when_too_many_read(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """When there is no place to wait for messages, the program looks for them every second or so."""
    monkeypatch.setattr(owner.receiving._readers, "_waiters_max", 0)
    program = Prompt()
    owner.start(program)
    owner.arrive("a")
    owner.run(1.0)
    assert program.texts == ["a"]


def test_a_bug_does_not_stop_it(owner: Owner, nothing_logged_as_failure: list[LogEvent]) -> None:
    """A program of ours that raises what it should not is tried again, and the log has the traceback."""

    class Broken(Prompt):
        def give(self, message: Received) -> "Deferred[Answer]":
            if not self.given:
                self.given.append(message)
                raise ZeroDivisionError
            return super().give(message)

    program = Broken()
    owner.start(program)
    owner.arrive("a")
    assert [event["log_failure"].type for event in nothing_logged_as_failure] == [ZeroDivisionError]
    nothing_logged_as_failure.clear()
    owner.run(LOAD_RETRY_S)
    assert program.texts == ["a", "a"]


# -- stopping -----------------------------------------------------------------------------------------------------


def test_a_program_without_work_stops_at_once(owner: Owner) -> None:
    """Waiting for messages, or for the next try, ends when the node stops."""
    waiting, failing = Manual("waiting"), Manual("failing")
    owner.start(waiting)
    assert owner.stop().called
    owner.start(failing)
    owner.arrive("a")
    failing.answer(LATER)
    owner.settle()
    assert owner.stop().called
    assert (waiting.cuts, failing.cuts) == (0, 0)
    assert not owner.receiving._readers._waiting


def test_what_is_under_way_may_end(owner: Owner) -> None:
    """A message that is taken while the node stops is behind the cursor on disk; the next one is not given."""
    program = Manual()
    owner.start(program)
    owner.arrive("a", "b")
    stopped = owner.stop()
    owner.run(DRAIN_S - 0.1)
    assert not stopped.called
    program.answer(TAKEN)
    owner.settle()
    assert stopped.called
    assert owner.cursor_on_disk("manual") == 1
    assert (program.texts, program.cuts) == (["a"], 0)


def test_what_does_not_end_is_cut(owner: Owner) -> None:
    """After DRAIN_S what is under way is cut off, and comes again at the next start."""
    program = Manual()
    owner.start(program)
    owner.arrive("a")
    stopped = owner.stop()
    owner.run(DRAIN_S)
    assert (stopped.called, program.cuts) == (True, 1)
    again = Prompt()
    owner.start(again)
    assert again.texts == ["a"]


# -- one that is posted to ----------------------------------------------------------------------------------------


class Body:
    """The connection under an answer."""

    def __init__(self) -> None:
        self.lost = False

    def loseConnection(self) -> None:
        self.lost = True


class Response:
    def __init__(self, code: int) -> None:
        self.code = code
        self.transport = Body()
        self.protocol: Any = None

    def deliverBody(self, protocol: Any) -> None:
        self.protocol = protocol
        protocol.makeConnection(self.transport)

    def end(self, body: bytes = b"") -> None:
        self.protocol.dataReceived(body)
        self.protocol.connectionLost(Failure(ResponseDone()))


class Client:
    """Stands for treq: keeps what was posted until the test answers it."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, dict[str, Any], Deferred[Any]]] = []
        self.cancelled = 0

    def post(self, url: str, **more: Any) -> "Deferred[Any]":
        posted: Deferred[Any] = Deferred(lambda _: self._cancel())
        self.posts.append((url, more, posted))
        return posted

    def _cancel(self) -> None:
        self.cancelled += 1

    def respond(self, code: int) -> Response:
        response = Response(code)
        self.posts[-1][2].callback(response)
        return response


@pytest.fixture
def client(owner: Owner) -> Client:
    client = Client()
    owner.start(DeliverTo(URL, client, owner.clock))
    return client


def test_what_is_posted(owner: Owner, client: Client) -> None:
    """The object that GET /inbox shows, with the cursor as Idempotency-Key, and no redirect is followed."""
    owner.arrive({"full": 0.97}, type_="alert", id_="disk-1")
    ((url, more, _),) = client.posts
    assert url == URL
    assert json.loads(more["data"]) == {
        "cursor": 1,
        "id": "disk-1",
        "from": {"name": "Bobby", "key": verify(owner.sender.sign("Bobby", [URL], 1)).key},
        "type": "alert",
        "message": {"full": 0.97},
        "sent_at": NOW_MS - 5,
        "received_at": NOW_MS,
    }
    assert more["headers"] == {"Content-Type": "application/json", "Idempotency-Key": "1"}
    assert more["allow_redirects"] is False


@pytest.mark.parametrize("code", [200, 201, 202, 204, 299, 410])
def test_codes_that_move_on(owner: Owner, client: Client, code: int) -> None:
    """2xx and 410: the next message is posted."""
    owner.arrive("a", "b")
    client.respond(code).end()
    owner.settle()
    assert len(client.posts) == 2
    assert owner.cursor_on_disk("deliver-to") == 1


@pytest.mark.parametrize("code", [199, 300, 302, 400, 404, 409, 429, 500, 503])
def test_codes_that_do_not(owner: Owner, client: Client, code: int) -> None:
    """Whatever else is answered: the same message again, and the reason says what it was."""
    owner.arrive("a", "b")
    client.respond(code).end("kaputt\u00fc\n".encode())
    owner.settle()
    assert owner.shown[0]["reason"] == f"answered {code}: kaputt\u00fc"
    owner.run(BACKOFF_FIRST_S)
    assert [json.loads(more["data"])["message"] for _, more, _ in client.posts] == ["a", "a"]


def test_nobody_listens(owner: Owner, client: Client) -> None:
    """A refused connection is tried again, with the system's words as the reason."""
    owner.arrive("a")
    client.posts[-1][2].errback(Failure(ConnectionRefusedError()))
    owner.settle()
    assert "refused" in owner.shown[0]["reason"]
    owner.run(BACKOFF_FIRST_S)
    assert len(client.posts) == 2


def test_no_answer_in_time(owner: Owner, client: Client) -> None:
    """After ANSWER_TIMEOUT_S the request is given up, and made again later."""
    owner.arrive("a")
    owner.run(ANSWER_TIMEOUT_S - 0.1)
    assert client.cancelled == 0
    owner.run(0.1)
    assert client.cancelled == 1
    assert owner.shown[0]["reason"] == f"no answer within {ANSWER_TIMEOUT_S:g} s"
    owner.run(BACKOFF_FIRST_S)
    assert len(client.posts) == 2


def test_an_answer_that_never_ends(owner: Owner, client: Client) -> None:
    """The head says that the message was taken; the rest is waited for as long as for any answer."""
    owner.arrive("a", "b")
    response = client.respond(200)
    owner.run(ANSWER_TIMEOUT_S - 0.1)
    assert len(client.posts) == 1
    owner.run(0.1)
    assert response.transport.lost
    assert len(client.posts) == 2
    response.protocol.connectionLost(Failure(ResponseDone()))


def test_an_answer_that_is_too_long(owner: Owner, client: Client) -> None:
    """An answer is read up to ANSWER_BYTES_MAX, and its beginning is the reason."""
    owner.arrive("a")
    response = client.respond(500)
    response.protocol.dataReceived(b"x" * ANSWER_BYTES_MAX)
    assert not response.transport.lost
    response.protocol.dataReceived(b"x")
    owner.settle()
    assert response.transport.lost
    assert owner.shown[0]["reason"] == "answered 500: " + "x" * REASON_CHARS_MAX


def test_stopped_while_it_is_posted(owner: Owner, client: Client) -> None:
    """The request is given up when the node has waited long enough."""
    owner.arrive("a")
    stopped = owner.stop()
    owner.run(DRAIN_S)
    assert (stopped.called, client.cancelled) == (True, 1)
    assert owner.cursor_on_disk("deliver-to") == 0


@pytest.mark.parametrize("url", ["http://localhost:8000", "https://[::1]/a/b?token=%20x&y", "http://192.0.2.7/"])
def test_urls(url: str) -> None:
    """A URL with a query is one, and is taken as it is."""
    assert check_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://localhost/",
        "http:///",
        "http://u:p@localhost/",
        "http://a/#b",
        "http://a/?b#c",
        "http://a/?b c",
        "http://a/?\u00fc",
        "http://a:99999/",
        "http://a/\n",
    ],
)
def test_no_urls(url: str) -> None:
    """What cannot be posted to is refused with a sentence."""
    with pytest.raises(BadParams, match="bad uri"):
        check_url(url)


# -- one that is started ------------------------------------------------------------------------------------------


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


def test_pauses_are_bounded(owner: Owner) -> None:
    """However often a program has failed, it is tried again within BACKOFF_MAX_S."""
    program = Manual()
    owner.start(program)
    owner.arrive("a")
    for attempt in range(1, 20):
        assert len(program.given) == attempt
        program.answer(LATER)
        owner.run(BACKOFF_MAX_S)
