"""Every command, for people and for programs, and how each error ends."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshproto.cli import main as main_module
from meshproto.cli import render
from meshproto.cli.exits import Exit
from meshproto.cli.inbox import PAGE_MESSAGES
from meshproto.cli.main import mesh
from meshproto.cli.outbox import PAGE_MESSAGES as OUTBOX_PAGE
from meshproto.cli.outbox import Page
from meshproto.cli.outbox import read as read_outbox
from meshproto.cli.render import moment
from meshproto.client.node import Node
from tests.cli.conftest import Mesh
from tests.cli.fake_node import FakeNode
from tests.cli.stub import JSON, Reply, Stub, message

AT_MS = 1_795_343_300_000
DELIVERED = {"id": "m1", "to": "UserX", "status": "delivered"}
QUEUED = {"id": "m1", "to": "UserX", "status": "queued", "reason": "away"}
FOUND = {
    "name": "UserX",
    "key": "k",
    "fingerprint": "abcdefgh",
    "address": "UserX~abcdefgh",
    "uris": ["http://192.0.2.7:3000"],
    "seq": 1,
    "since": AT_MS,
    "home": "seedX",
    "online": False,
    "seen": AT_MS,
    "record": "{}",
    "sig": "s",
}
SEEDS = {"seeds": [{"name": "seedX", "address": "127.0.0.1:5001", "alive": True, "users": 2, "home": True}]}
FULL_SEEDS = {
    "seeds": [
        {**SEEDS["seeds"][0], "since": AT_MS, "phi": 0.31, "lag": 0},
        {"name": "y", "address": "h:1", "alive": False, "users": 9, "home": False, "since": 0, "phi": 99.0, "lag": 4},
    ]
}
STATUS = {
    "name": "UserX",
    "fingerprint": "abcdefgh",
    "address": "UserX~abcdefgh",
    "version": "0.1.0",
    "uptime_s": 61,
    "uris": ["http://192.0.2.7:3000"],
    "home": {"name": "seedX", "address": "127.0.0.1:5001", "since": AT_MS},
    "registered": True,
    "problem": None,
    "seeds": 1,
    "outbox": {"waiting": 2, "recipients": 1, "oldest_at": AT_MS},
    "inbox": {"messages": 3, "next": 4},
}
RECIPIENT = {
    "to": "UserX",
    "waiting": 2,
    "oldest_at": 0,
    "attempts": 5,
    "next_try_at": None,
    "reason": "connection refused\x1b",
}
OUTBOX = {"messages": [], "recipients": [RECIPIENT]}
KEPT = {
    "cursor": 7,
    "id": "m1",
    "to": "UserX",
    "status": "expired",
    "sent_at": AT_MS,
    "expires_at": AT_MS,
    "changed_at": AT_MS,
    "reason": "too\nlate\x1b",
}
PROGRAM = {
    "kind": "deliver-exec",
    "target": "/bin/notify",
    "next": 4,
    "behind": 3,
    "attempts": 2,
    "next_try_at": AT_MS,
    "reason": "exit code 1\x1b",
}
CANCELLED = {"id": "m1", "to": "UserX", "status": "cancelled"}
PAGE = {"messages": [message(1, "hi"), message(2, {"a": 1})], "next": 2}

COMMANDS = [
    (["send", "UserX", "hi"], DELIVERED, ["delivered  UserX  m1"]),
    (["send", "UserX", "hi"], QUEUED, ["queued  UserX  m1  (away)"]),
    (["lookup", "UserX"], FOUND, ["UserX~abcdefgh", "http://192.0.2.7:3000", "offline, last seen " + moment(AT_MS)]),
    (["lookup", "UserX"], {**FOUND, "online": True}, ["presence  online"]),
    (["seeds"], SEEDS, ["SEED ", "seedX  127.0.0.1:5001  alive  2      home"]),
    (["seeds"], FULL_SEEDS, [f"seedX  127.0.0.1:5001  alive  {moment(AT_MS)}  2      0.3   0    home", "99.0  4"]),
    (["seeds"], FULL_SEEDS, ["SINCE ", "  dead   -"]),
    (["seeds"], {"seeds": []}, ["No seed has answered this node yet"]),
    (["status"], STATUS, ["seedX at 127.0.0.1:5001", "2 waiting for 1 recipients", "1 min, version 0.1.0"]),
    (["status"], {**STATUS, "home": None, "registered": False, "problem": "no seed"}, ["registered  no", "no seed"]),
    (["queue"], OUTBOX, ["LAST ERROR", r"connection refused\x1b"]),
    (["queue"], {"messages": [], "recipients": []}, ["Nothing waits."]),
    (["queue", "--to", "UserX"], {"messages": [], "recipients": []}, ["Nothing waits for UserX."]),
    (["status"], {**STATUS, "disk": None, "programs": []}, ["2 waiting for 1 recipients"]),
    (
        ["status"],
        {**STATUS, "disk": "the disk does not take it: full\x1b"},
        [r"disk: the disk does not take it: full\x1b"],
    ),
    (["status"], {**STATUS, "programs": [PROGRAM]}, ["deliver-exec  /bin/notify  3       exit code 1"]),
    (["status"], {**STATUS, "programs": [{"kind": "deliver-to"}]}, ["deliver-to  -       -       -"]),
    (["retry"], {"retried": ["UserX", "Bob\x1b"], "waiting": 3}, [r"Trying again: UserX, Bob\x1b (3 messages wait)."]),
    (["retry"], {"retried": [], "waiting": 0}, ["Nothing waits."]),
    (["cancel", "m1"], CANCELLED, ["cancelled  UserX  m1"]),
    (
        ["cancel", "m1"],
        {**CANCELLED, "status": "delivering", "reason": None},
        ["it is cancelled if this attempt fails"],
    ),
    (["cancel", "m1"], {"results": [CANCELLED, {**CANCELLED, "to": "B"}]}, ["cancelled  UserX  m1\ncancelled  B  m1"]),
]


@pytest.mark.parametrize(("arguments", "document", "shown"), COMMANDS)
def test_commands_for_people(stub: Stub, run: Mesh, arguments: list[str], document: Any, shown: list[str]) -> None:
    """What a person wants to know is there, and nothing is coloured off a terminal."""
    stub.answers(document)
    result = run(*arguments)
    assert result.exit_code == Exit.DONE, result.output
    for part in shown:
        assert part in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(("arguments", "document", "_shown"), [*COMMANDS, (["inbox"], PAGE, [])])
def test_commands_for_programs(stub: Stub, run: Mesh, arguments: list[str], document: Any, _shown: list[str]) -> None:
    """With --json standard output is the node's JSON as it came, and nothing else."""
    stub.answers(document)
    result = run(*arguments, "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (Exit.DONE, json.dumps(document) + "\n", "")


def test_a_full_disk_is_red(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal it cannot be overlooked."""
    monkeypatch.setenv("TERM", "xterm-256color")
    render.status(render.Screen(True), {**STATUS, "disk": "full"})
    assert "\x1b[1;31mdisk: full" in capsys.readouterr().out


def test_what_is_asked_of_the_outbox(stub: Stub, run: Mesh) -> None:
    """Ids and names with any characters stay one part of the path and one value of the query."""
    for arguments in (
        ["queue", "--to", "a&b"],
        ["retry", "a&b"],
        ["retry"],
        ["cancel", "a/../b?c#%ü ", "--to", "a&b"],
        ["sent", "--status", "refused", "--limit", "3", "--to", "a&b"],
    ):
        stub.answers({"messages": [], "recipients": [], "retried": [], "waiting": 0, **CANCELLED})
        assert run(*arguments).exit_code == Exit.DONE
    asked = [(request.method, request.path, request.query) for request in stub.requests]
    assert asked == [
        ("GET", "/outbox", {"status": "waiting", "to": "a&b"}),
        ("POST", "/outbox/retry", {"to": "a&b"}),
        ("POST", "/outbox/retry", {}),
        ("DELETE", "/outbox/a%2F..%2Fb%3Fc%23%25%C3%BC%20", {"to": "a&b"}),
        ("GET", "/outbox", {"status": "refused", "to": "a&b", "limit": "3"}),
    ]


def test_queue_lists_the_messages(stub: Stub, run: Mesh) -> None:
    """Totals first, then message after message, page after page; each is one line."""
    waiting = {**KEPT, "status": "queued"}
    stub.answers({**OUTBOX, "messages": [waiting, waiting], "next": 7})
    stub.answers({**OUTBOX, "messages": [{**waiting, "id": "m3", "reason": None}], "next": None})
    lines = run("queue", "--messages").stdout.splitlines()
    assert lines[0].startswith("TO ")
    at = moment(AT_MS)
    assert lines[2:] == [rf"{at}  UserX  queued  m1  (too\nlate\x1b)"] * 2 + [f"{at}  UserX  queued  m3"]
    first = {"status": "waiting", "limit": str(OUTBOX_PAGE)}
    assert [request.query for request in stub.requests] == [first, {**first, "after": "7"}]


def test_queue_lists_the_messages_for_programs(stub: Stub, run: Mesh) -> None:
    """One JSON object a line, and nothing else; an older node has no `next`."""
    stub.answers({**OUTBOX, "messages": [KEPT, KEPT]})
    result = run("queue", "--messages", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [KEPT, KEPT]


def test_pages_are_asked_for_when_they_are_wanted(stub: Stub) -> None:
    """Whoever ends after the first page has asked for one; a cursor that does not move is the end."""
    stub.answers({"messages": [KEPT], "next": "c"})
    stub.answers({"messages": [], "next": "c"})
    pages = read_outbox(Node(stub.url), status=None, to=None, limit=None)
    next(pages)
    assert len(stub.requests) == 1
    assert len(list(pages)) == 1


def test_ctrl_c_ends_a_long_list(stub: Stub, run: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not an error."""

    def interrupted(*_given: object, **_options: object) -> Iterator[Page]:
        yield Page({**OUTBOX, "messages": [KEPT]}, first=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "read_outbox", interrupted)
    result = run("queue", "--messages")
    assert (result.exit_code, result.stdout.count("m1")) == (Exit.DONE, 1)


def test_sent_shows_what_became_of_it(stub: Stub, run: Mesh) -> None:
    """As many as are wanted, the node's newest first; none at all is told."""
    stub.answers({"messages": [KEPT] * 2, "next": 7, "recipients": []})
    stub.answers({"messages": [{**KEPT, "status": "delivered", "reason": None}], "next": 9, "recipients": []})
    stub.answers({"messages": [], "next": None, "recipients": []})
    assert run("sent", "--limit", "3").stdout.splitlines()[1:] == [
        rf"{moment(AT_MS)}  UserX  expired  m1  (too\nlate\x1b)",
        f"{moment(AT_MS)}  UserX  delivered  m1",
    ]
    assert [request.query for request in stub.requests] == [{"limit": "3"}, {"limit": "1", "after": "7"}]
    assert run("sent").stdout == "Nothing was sent, or nothing stands so.\n"


@pytest.mark.parametrize(
    ("title", "advice"),
    [
        ("message delivered", "its recipient has it, and it cannot be taken back"),
        ("message expired", "this is how it ended; to send it again, give it another id"),
    ],
)
def test_what_has_ended_cannot_be_cancelled(stub: Stub, run: Mesh, title: str, advice: str) -> None:
    """A clear sentence, and the code of what is refused."""
    stub.refuses(409, title, "")
    result = run("cancel", "m1")
    assert (result.exit_code, result.stderr) == (Exit.REFUSED, f"mesh: {title}: {advice}.\n")


def test_one_of_several_that_cannot_be_cancelled(stub: Stub, run: Mesh) -> None:
    """Each is told, and the exit code is that of one that alone cannot be cancelled."""
    stub.answers({"results": [CANCELLED, {"id": "m1", "to": "B", "status": "delivered"}]}, 207)
    result = run("cancel", "m1")
    assert result.exit_code == Exit.REFUSED
    assert result.stdout == "cancelled  UserX  m1\ndelivered  B  m1\n"


@pytest.mark.parametrize("arguments", [["retry", "UserX"], ["cancel", "m1"]])
def test_what_is_not_there(stub: Stub, run: Mesh, arguments: list[str]) -> None:
    """Neither waits for the name nor has the id: told where to look; an older node's answer is told as such."""
    stub.refuses(404, "Not Found", "nothing")
    stub.refuses(405, "Method Not Allowed", "")
    first, older = run(*arguments), run(*arguments)
    assert (first.exit_code, older.exit_code) == (Exit.NOT_FOUND, Exit.FAILED)
    assert "see `mesh queue`" in first.stderr
    assert "the node is older than this mesh" in older.stderr


def test_an_unanswered_retry_is_not_a_message(stub: Stub, run: Mesh) -> None:
    """Only sending may leave a message of which nothing is known."""
    stub.replies(Reply(200, b"{}", {"Content-Length": "9", "Content-Type": JSON}))
    assert "whether the message was taken" not in run("retry").stderr


PROBLEMS = [
    (400, "Bad Request", Exit.USAGE),
    (401, "Unauthorized", Exit.REFUSED),
    (403, "Forbidden", Exit.REFUSED),
    (404, "User Not Found", Exit.NOT_FOUND),
    (404, "Not Found", Exit.NOT_FOUND),
    (409, "Key Changed", Exit.REFUSED),
    (413, "Content Too Large", Exit.TOO_MUCH),
    (429, "Slow Down", Exit.TOO_MUCH),
    (500, "Internal Server Error", Exit.FAILED),
    (503, "No Seed Reachable", Exit.NO_SEED),
]


@pytest.mark.parametrize(("status", "title", "code"), PROBLEMS)
def test_problems_end_as_a_sentence_and_a_code(stub: Stub, run: Mesh, status: int, title: str, code: Exit) -> None:
    """One line on stderr for people; with --json the problem document on stdout too."""
    stub.refuses(status, title, "because\nof \x1b[2J this.")
    text = stub.refuses(status, title, "because")
    person, program = run("send", "UserX", "hi"), run("send", "UserX", "hi", "--json")
    assert (person.exit_code, person.stdout) == (code, "")
    assert person.stderr.startswith(rf"mesh: {title} (because\nof \x1b[2J this): ")
    assert person.stderr.endswith(".\n")
    assert person.stderr.count("\n") == 1
    assert (program.exit_code, program.stdout) == (code, text + "\n")


def test_retry_after_is_passed_on(stub: Stub, run: Mesh) -> None:
    """The node knows best when to come back."""
    stub.refuses(429, "Slow Down", "", Retry_After="9")
    assert run("queue").stderr == "mesh: Slow Down: wait a little and try again (in 9 s).\n"


def test_a_send_without_an_answer_is_called_uncertain(stub: Stub, run: Mesh) -> None:
    """The node may have taken the message; neither "sent" nor "not sent" would be true."""
    stub.replies(Reply(200, b"{}", {"Content-Length": "9", "Content-Type": JSON}))
    result = run("send", "UserX", "hi")
    assert result.exit_code == Exit.UNREACHABLE
    assert "whether the message was taken is not known" in result.stderr


@pytest.mark.parametrize("arguments", [["send", "UserX", "hi"], ["inbox"], ["inbox", "--follow"], ["status"]])
def test_an_unreachable_node(arguments: list[str]) -> None:
    """Nothing listens there: exit code 3, what to do, and a document for programs."""
    with Stub() as gone:
        pass
    for extra in ([], ["--json"]):
        command = [sys.executable, "-c", "from meshproto.cli.main import main; main()", "--node", gone.url]
        result = subprocess.run([*command, *arguments, *extra], capture_output=True, text=True, check=False)
        assert result.returncode == Exit.UNREACHABLE
        assert result.stderr.startswith(f"mesh: No user node answers at {gone.url} (connection refused): start it")
        assert bool(extra) == (result.stdout != "" and json.loads(result.stdout)["title"] == "Node Not Reachable")


def test_a_fault_of_our_own_is_no_traceback(stub: Stub, run: Mesh) -> None:
    """An answer that lacks a field ends in a sentence too."""
    stub.answers({})
    result = run("status")
    assert result.exit_code == Exit.FAILED
    assert result.stderr.startswith("mesh: This is a fault of mesh itself (KeyError: ")


@pytest.mark.parametrize(
    ("arguments", "stdin", "text"),
    [
        (["hi"], "ignored", "hi"),
        ([], "two\nlines\n", "two\nlines"),
        (["-"], "no newline ü", "no newline ü"),
        (["--", "-5"], None, "-5"),
    ],
)
def test_where_the_text_comes_from(stub: Stub, run: Mesh, arguments: list[str], stdin: str, text: str) -> None:
    """From the command line, else from standard input without its last newline."""
    stub.answers(DELIVERED)
    assert run("send", "UserX", *arguments, stdin=stdin).exit_code == Exit.DONE
    assert json.loads(stub.requests[0].body) == {"to": "UserX", "message": text}


def test_options_of_send(stub: Stub, run: Mesh) -> None:
    """Whole seconds go out as whole numbers."""
    stub.answers(DELIVERED)
    run("send", "UserX", "hi", "--id", "7", "--wait", "0.5", "--ttl", "60")
    assert json.loads(stub.requests[0].body) == {"to": "UserX", "message": "hi", "id": "7", "wait": 0.5, "ttl": 60}


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        (["send"], None, "Missing argument"),
        (["send", "UserX"], "", "nothing to send"),
        (["send", "UserX", ""], "", "nothing to send"),
        (["send", "UserX", "hi", "there"], None, "put it in quotes: mesh send UserX 'hi there'"),
        (["send", "UserX"], b"\xff", "Only UTF-8"),
        (["send", "\udcff", "hi"], None, "Only UTF-8"),
        (["send", "UserX", "hi", "--wait", "nan"], None, "not a length of time"),
        (["send", "UserX", "hi", "--ttl", "-1"], None, "not a length of time"),
        (["inbox", "--limit", "0"], None, "--limit"),
        (["cancel", ""], None, "Which message?"),
        (["sent", "--status", "lost"], None, "--status"),
        (["--node", "ftp://host", "status"], None, "not the address of a node"),
        (["--node", "localhost:port", "status"], None, "not the address of a node"),
        (["--ca", "/nonexistent", "status"], None, "cannot be read as certificates"),
        (["--token-file", "/nonexistent", "status"], None, "cannot be read as a token"),
        (["nonsense"], None, "No such command"),
    ],
)
def test_wrong_usage(stub: Stub, run: Mesh, arguments: list[str], stdin: str | bytes, says: str) -> None:
    """What is wrong is said before the node is asked."""
    result = run(*arguments, stdin=stdin)
    assert (result.exit_code, stub.requests) == (Exit.USAGE, [])
    assert says in result.stderr


def test_a_text_too_long_is_not_sent(stub: Stub, run: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading stops at the limit; programs get the document that a node would give."""
    monkeypatch.setattr(main_module, "TEXT_BYTES_MAX", 4)
    result = run("send", "UserX", "--json", stdin="12345")
    assert (result.exit_code, stub.requests) == (Exit.TOO_MUCH, [])
    assert json.loads(result.stdout)["status"] == 413


def test_the_token_comes_from_a_file(stub: Stub, run: Mesh, tmp_path: Path) -> None:
    """Never from the command line, where other users of the machine could read it."""
    token_file = tmp_path / "token"
    token_file.write_text("secret\n")
    stub.answers(SEEDS)
    run("--token-file", str(token_file), "seeds")
    assert stub.requests[0].headers["Authorization"] == "Bearer secret"
    for wrong in ("", "two\nlines", "x" * 5000, "ü"):
        token_file.write_text(wrong)
        assert run("--token-file", str(token_file), "seeds").exit_code == Exit.USAGE


def test_inbox_shows_what_came(stub: Stub, run: Mesh) -> None:
    """Oldest first, to the end of the inbox."""
    stub.answers(PAGE)
    stub.answers({"messages": [], "next": 2})
    at = moment(message(1, "")["received_at"])
    assert run("inbox", "--from", "Bobby").stdout == f'{at}  Bobby  hi\n{at}  Bobby  {{"a":1}}\n'
    assert stub.requests[0].query == {"from": "Bobby", "limit": str(PAGE_MESSAGES)}


def test_inbox_follow_for_programs(stub: Stub, run: Mesh) -> None:
    """One JSON object a line."""
    node = FakeNode(stub, "Bobby")
    node.receives("hi\x1b")
    node.receives(None)
    result = run("inbox", "--follow", "--json", "--limit", "2")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [message(1, "hi\x1b"), message(2, None)]
    assert "\x1b" not in result.stdout


def test_ctrl_c_is_how_follow_ends(run: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not an error."""

    def interrupted(*_given: object, **_options: object) -> Iterator[dict[str, Any]]:
        yield message(1, "hi")
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "follow_inbox", interrupted)
    result = run("inbox", "--follow")
    assert (result.exit_code, result.stdout.count("\n")) == (Exit.DONE, 1)


def test_help_needs_nothing_and_tells_the_exit_codes(run: Mesh) -> None:
    """Examples, every exit code and the version, without a node and with a missing token file."""
    shown = run("--token-file", "/nonexistent", "--help").stdout
    assert 'mesh send UserX "Hello UserX"' in shown
    assert all(f"\n    {code.value}  " in shown for code in Exit)
    for command in mesh.commands:
        shown = run("--token-file", "/nonexistent", command, "-h").stdout
        assert "Example" in shown
        assert f"mesh {command}" in shown.partition("Example")[2]
    assert run("--version").stdout.startswith("mesh, version ")


def test_starting_is_cheap() -> None:
    """Neither Twisted nor rich nor what draws a conversation is imported before it is needed."""
    late = ("twisted", "rich", "msgspec", "prompt_toolkit")
    check = f"import sys, meshproto.cli.main; sys.exit(any(name in sys.modules for name in {late}))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
