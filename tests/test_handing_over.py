"""The owner's programs for real: an HTTP server, commands, process groups, nodes that are killed."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.python.usage import UsageError

from meshproto.cli.processes import Children, until
from meshproto.client.node import Node
from meshproto.core.handover import Answer, Verdict
from meshproto.core.inbox import Correspondent, Received
from meshproto.net import deliver_exec
from meshproto.net.deliver_exec import DeliverExec, parse_command
from meshproto.user_tap import Options

TIMEOUT_S = 20.0
GONE = "this one, never"


class Receiver:
    """A program that the node posts to. The texts in `hold` are answered when they are let go; GONE with 410."""

    def __init__(self) -> None:
        self.got: list[tuple[str, Any]] = []
        self.hold: dict[str, threading.Event] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.headers["Content-Type"] == "application/json"
                outer.got.append((self.headers["Idempotency-Key"], body))
                outer.hold.get(body["message"], _LET_GO).wait(TIMEOUT_S)
                self.send_response(410 if body["message"] == GONE else 204)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle(self) -> None:
                with suppress(ConnectionError):  # the node is killed
                    super().handle()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.005})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/messages?from=mesh"

    @property
    def texts(self) -> list[Any]:
        return [body["message"] for _, body in self.got]

    def close(self) -> None:
        for held in self.hold.values():
            held.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


_LET_GO = threading.Event()
_LET_GO.set()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


class Nodes:
    """A seed, Bobby, who sends, and UserX, who has programs."""

    def __init__(self, children: Children) -> None:
        self.children = children
        self.seed = children.start("meshseed", "seedX")
        self.bobby = Node(children.start("meshuser", "Bobby", "--seed", self.seed), timeout_s=TIMEOUT_S)

    def start(self, *options: str) -> Node:
        userx = Node(self.children.start("meshuser", "UserX", "--seed", self.seed, *options), timeout_s=TIMEOUT_S)
        until(lambda: userx.status().document["registered"] or None, "UserX is registered")
        return userx

    def kill(self) -> None:
        process = self.children.all["UserX"].process
        process.kill()
        process.wait()

    def send(self, *texts: str) -> None:
        for text in texts:
            assert self.bobby.send("UserX", text, wait_s=10).document["status"] == "delivered"


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with Children(tmp_path) as children:
        yield Nodes(children)
        for child in children.all.values():
            log = child.log.read_text()
            assert "Traceback" not in log and "Unhandled" not in log, f"{child.name}:\n{log}"


def test_posted_to_a_server(nodes: Nodes, receiver: Receiver) -> None:
    """Messages are posted as GET /inbox shows them, in order; a node that is killed in the middle of one posts that one
    again after its restart, and no other; what came before the option was given is not posted."""
    nodes.start()
    nodes.send("before")
    nodes.children.stop("UserX")
    nodes.start("--deliver-to", receiver.url)
    receiver.hold["slow"] = threading.Event()
    nodes.send("a", GONE, "slow", "b")
    until(lambda: "slow" in receiver.texts or None, "the slow one is posted")
    nodes.kill()
    receiver.hold.pop("slow").set()
    userx = nodes.start("--deliver-to", receiver.url)
    until(lambda: "b" in receiver.texts or None, "the last one is posted")
    assert receiver.texts == ["a", GONE, "slow", "slow", "b"]
    shown = userx.inbox(after=1).document["messages"]
    assert [body for _, body in receiver.got] == [shown[0], shown[1], shown[2], *shown[2:]]
    assert [key for key, _ in receiver.got] == [str(body["cursor"]) for _, body in receiver.got]

    def calm() -> Any:
        (program,) = userx.status().document["programs"]
        return program if program["behind"] == 0 else None

    assert until(calm, "all is taken") == {
        "kind": "deliver-to",
        "target": receiver.url,
        "next": shown[-1]["cursor"],
        "behind": 0,
        "attempts": 0,
        "next_try_at": None,
        "reason": None,
    }
    assert GONE not in nodes.children.all["UserX"].log.read_text()


SCRIPT = """\
#!/bin/sh
text=$(cat)
echo "$MESH_CURSOR $MESH_FROM $MESH_TYPE$text" >> log
[ "$text" = "this one, never" ] && exit 65
[ "$text" = later ] && [ ! -e tried ] && touch tried && echo "not yet" >&2 && exit 75
while [ "$text" = slow ] && [ -e hold ]; do sleep 0.02; done
exit 0
"""


def test_run_as_a_command(nodes: Nodes, tmp_path: Path) -> None:
    """A command is run for each message, in order, again for one that it has not taken, and again for the one in whose
    middle the node was killed."""
    script, hold = tmp_path / "on message", tmp_path / "hold"
    script.write_text(SCRIPT)
    script.chmod(0o700)
    hold.touch()
    options = ("--deliver-exec", f"'{script}'")

    def log() -> list[str]:
        return (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []

    nodes.start(*options)
    nodes.send("a", GONE, "later", "slow", "b")
    until(lambda: "4 Bobby slow" in log() or None, "the slow one runs")
    nodes.kill()
    hold.unlink()
    nodes.start(*options)
    until(lambda: "5 Bobby b" in log() or None, "the last one has run")
    assert log() == [
        "1 Bobby a",
        f"2 Bobby {GONE}",
        "3 Bobby later",
        "3 Bobby later",
        "4 Bobby slow",
        "4 Bobby slow",
        "5 Bobby b",
    ]
    said = nodes.children.all["UserX"].log.read_text()
    assert "message 2 will never be taken (exit code 65)" in said
    assert "message 3 is not taken (exit code 75)" in said
    assert GONE not in said and "not yet" not in said


def test_a_node_that_stops_waits_for_its_command(nodes: Nodes, tmp_path: Path) -> None:
    """A node that is stopped while a command runs waits for it, and what was taken then does not come again."""
    script, hold = tmp_path / "on message", tmp_path / "hold"
    script.write_text(SCRIPT)
    script.chmod(0o700)
    hold.touch()
    nodes.start("--deliver-exec", f"'{script}'")
    nodes.send("slow")
    until(lambda: (tmp_path / "log").exists() or None, "the slow one runs")
    child = nodes.children.all["UserX"]
    child.process.terminate()
    until(lambda: "SIGTERM" in child.log.read_text() or None, "the node was told to stop")
    hold.unlink()
    child.process.wait(TIMEOUT_S)
    nodes.start("--deliver-exec", f"'{script}'")
    nodes.send("b")
    until(lambda: "2 Bobby b" in (tmp_path / "log").read_text() or None, "the next has run")
    assert (tmp_path / "log").read_text().splitlines() == ["1 Bobby slow", "2 Bobby b"]


# -- commands in this process -------------------------------------------------------------------------------------

MESSAGE = Received(1, "id", Correspondent("Bobby", "key"), "", Raw(b'"hello"'), 0, 0)


def run(command: str) -> "tuple[DeliverExec, Deferred[Answer]]":
    from twisted.internet import reactor

    program = DeliverExec(parse_command(command), reactor)
    return program, program.give(MESSAGE).addTimeout(TIMEOUT_S, reactor)


async def test_the_whole_group_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that does not mind SIGTERM is killed, with what it has started."""
    monkeypatch.setattr(deliver_exec, "KILL_AFTER_S", 0.05)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    one, two = (f"(trap '' TERM; while echo {name}; do sleep 0.01; done) > {pipe}" for name in ("one", "two"))
    program, done = run(f'sh -c "{one} & {two}"')

    def both_say_something() -> Any:
        reader = pipe.open()
        heard: set[str] = set()
        while heard != {"one\n", "two\n"}:
            heard.add(reader.readline())
        return reader

    def until_nobody_can() -> None:
        until(lambda: reader.readline() == "" or None, "nobody holds the pipe open", TIMEOUT_S)

    with await deferToThread(both_say_something) as reader:
        program.cut()
        answer = await done
        assert (answer.verdict, answer.what) == (Verdict.LATER, "the node was stopped")
        await deferToThread(until_nobody_can)


async def test_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that takes too long is ended."""
    monkeypatch.setattr(deliver_exec, "COMMAND_TIMEOUT_S", 0.05)
    answer = await run("sleep 1000")[1]
    assert (answer.verdict, answer.what) == (Verdict.LATER, "not done within 0.05 s")


async def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file descriptor and no zombie, however commands end; not even of one that leaves something running."""
    monkeypatch.setattr(deliver_exec, "LINGER_S", 0.05)
    commands = ["true", "false", "sh -c 'kill -9 $$'", "sh -c 'echo no >&2; exit 7'", "sh -c 'sleep 1 & exit 0'"]
    await run("true")[1]
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    started: list[int] = []
    from twisted.internet import reactor

    spawn = reactor.spawnProcess

    def spawn_and_tell(*arguments: Any, **more: Any) -> Any:
        process = spawn(*arguments, **more)
        started.append(process.pid)
        return process

    monkeypatch.setattr(reactor, "spawnProcess", spawn_and_tell)
    answers = [await run(command)[1] for command in commands]
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert len(started) == len(commands)
    for process in started:
        with pytest.raises(ChildProcessError):
            os.waitpid(process, os.WNOHANG)
    reasons = ["exit code 0", "exit code 1", "ended by SIGKILL", "exit code 7: no", "exit code 0"]
    assert [answer.reason for answer in answers] == reasons


async def test_a_message_that_is_not_read() -> None:
    """A command that does not read its standard input, and prints without end, is judged by its exit code alone."""
    from twisted.internet import reactor

    large = Received(1, "id", Correspondent("Bobby", "key"), "", Raw(b'"' + b"x" * 250_000 + b'"'), 0, 0)
    program = DeliverExec(parse_command("sh -c 'head -c 1000000 /dev/zero; exit 0'"), reactor)
    assert (await program.give(large)).verdict is Verdict.TAKEN


async def test_a_command_begins_as_from_a_shell() -> None:
    """It leads a group of its own and ends by a broken pipe as others do, which Python's own children do not."""
    leads = await run("""sh -c 'set -- $(cat /proc/$$/stat); [ "$5" = $$ ] || exit 9'""")[1]
    assert leads.reason == "exit code 0"
    broken = await run("""sh -c 'kill -PIPE $$; exit 9'""")[1]
    assert broken.reason == "ended by SIGPIPE"


async def test_a_program_that_is_gone(tmp_path: Path) -> None:
    """A program that was deleted after the start is missed in one line, and tried again."""
    from twisted.internet import reactor

    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o700)
    program = DeliverExec(parse_command(str(script)), reactor)
    assert (await program.give(MESSAGE)).verdict is Verdict.TAKEN
    script.unlink()
    answer = await program.give(MESSAGE)
    assert (answer.verdict, answer.words) == (
        Verdict.LATER,
        f"{script} cannot be started: No such file or directory",
    )


# -- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "given", "says"),
    [
        ("deliver-to", "localhost:8000", "--deliver-to (or MESH_DELIVER_TO): bad uri 'localhost:8000'"),
        ("deliver-exec", "sh -c 'x", '--deliver-exec (or MESH_DELIVER_EXEC): "sh -c \'x" is not a command line'),
        ("deliver-exec", "", "--deliver-exec (or MESH_DELIVER_EXEC): '' is not a command line"),
        ("deliver-exec", "/no/such", "--deliver-exec (or MESH_DELIVER_EXEC): there is no program '/no/such'"),
    ],
)
def test_wrong_options(option: str, given: str, says: str) -> None:
    """What cannot be posted to or run is said at the start."""
    with pytest.raises(UsageError) as refused:
        Options().parse(["--name", "UserX", f"--{option}", given])
    assert says in str(refused.value)


def test_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both can be given in the environment, and both at once; without them there is no program."""
    options = Options()
    options.parseOptions(["--name", "UserX"])
    assert (options["deliver-to"], options["deliver-exec"]) == (None, None)
    environ = {"MESH_DELIVER_TO": "http://localhost:1/", "MESH_DELIVER_EXEC": "cat -n"}
    monkeypatch.setattr(Options, "environ", environ)
    options = Options()
    options.parseOptions(["--name", "UserX"])
    assert options["deliver-to"] == environ["MESH_DELIVER_TO"]
    assert options["deliver-exec"].arguments == ("cat", "-n")
