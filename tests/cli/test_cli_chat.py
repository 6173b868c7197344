"""`mesh chat` through pipes, and on a screen that is drawn in memory."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from meshproto.cli import chat_lines, chat_screen, talk
from meshproto.cli.chat import converse
from meshproto.cli.chat_screen import (
    LINE_CHARS_PER_CELL,
    NAME_CELLS_MAX,
    ChatScreen,
    fit,
    laid_out,
    presence_text,
    state_of,
    wrap,
)
from meshproto.cli.conversation import Conversation, Entry
from meshproto.cli.exits import Exit
from meshproto.cli.processes import until
from meshproto.cli.render import message_text
from meshproto.client.node import Node
from meshproto.core.envelope import MESSAGE_BYTES_MAX
from tests.cli.conftest import Mesh
from tests.cli.fake_node import NOW_MS, FakeNode
from tests.cli.stub import Stub, problem_reply

WAIT_S = 10.0


@pytest.fixture
def node(stub: Stub) -> FakeNode:
    return FakeNode(stub)


# -- through pipes ------------------------------------------------------------------------------------------------


def test_lines_in_are_messages_out(run: Mesh, node: FakeNode) -> None:
    """In order, each with an id of its own; blank lines are none, and nothing is a command."""
    result = run("chat", "UserX", stdin="one\n\n/quit\ntwo")
    assert (result.exit_code, result.stdout, result.stderr) == (Exit.DONE, "", "")
    sent = [node.taken.get(timeout=WAIT_S) for _ in range(3)]
    assert [each["message"] for each in sent] == ["one", "/quit", "two"]
    assert len({each["id"] for each in sent}) == 3
    assert {each["to"] for each in sent} == {"UserX"}


def test_lines_that_are_no_text(run: Mesh, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are told by their number, and the others are sent; one that is too long is cut, and stays one message."""
    monkeypatch.setattr(chat_lines, "LINE_BYTES_MAX", 10)
    result = run("chat", "UserX", stdin=b"one\n\xff\n" + b"x" * 35 + b"\ntwo\n")
    assert result.exit_code == Exit.USAGE
    assert "line 2 is not sent" in result.stderr
    assert [node.taken.get(timeout=WAIT_S)["message"] for _ in range(3)] == ["one", "x" * 10, "two"]


class Lines:
    """Standard input that ends when it is told to."""

    def __init__(self, ended: threading.Event) -> None:
        self._ended = ended

    def readline(self, _size: int) -> bytes:
        self._ended.wait(WAIT_S)
        return b""


@contextmanager
def piped(monkeypatch: pytest.MonkeyPatch, stub: Stub, *options: str) -> Iterator[tuple[Callable[[], str], Any]]:
    """`mesh chat UserX` with an open standard input; what it has printed so far."""
    ended, printed, results = threading.Event(), Queue[str](), list[Any]()

    class In:
        buffer = Lines(ended)

        @staticmethod
        def isatty() -> bool:
            return False

    monkeypatch.setattr("sys.stdin", In)
    monkeypatch.setattr("click.echo", lambda text, err=False: printed.put(_text(text)))
    work = threading.Thread(
        target=lambda: results.append(converse(Node(stub.url), "UserX", history=None, as_json="--json" in options))
    )
    work.start()
    try:
        yield lambda: printed.get(timeout=WAIT_S), ended
    finally:
        ended.set()
        work.join(WAIT_S)
    assert results == [Exit.DONE]


def _text(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else text


def test_messages_in_are_lines_out(stub: Stub, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `mesh inbox` shows them; what happens besides goes where people look."""
    monkeypatch.setattr(talk, "RETRY_DELAY_S", 0.0)
    monkeypatch.setattr("meshproto.cli.following.RETRY_DELAY_S", 0.0)
    with piped(monkeypatch, stub) as (printed, _):
        node.opened.get(timeout=WAIT_S)
        node.receives("hello\nthere")
        assert printed().endswith("  UserX  hello\n    there")
        node.cut()
        assert "Trying again." in printed()
        assert printed() == "mesh: The node is back."
        node.receives({"a": 1})
        assert printed().endswith('  UserX  {"a":1}')


def test_everything_that_happens_for_programs(stub: Stub, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """One JSON object a line."""
    with piped(monkeypatch, stub, "--json") as (printed, _):
        assert json.loads(printed()) == {"event": "connection", "reason": None}
        node.opened.get(timeout=WAIT_S)
        node.receives("hi")
        came = json.loads(printed())
        assert (came["event"], came["text"], came["from"]["name"]) == ("message", "hi", "UserX")
        node.is_there(False)
        assert json.loads(printed()) == {"event": "presence", "name": "UserX", "online": False, "seen": NOW_MS}


def test_how_own_messages_stand_for_programs(run: Mesh, node: FakeNode) -> None:
    """Each state is a line."""
    result = run("chat", "UserX", "--json", stdin="hi\n")
    sent = [line for line in map(json.loads, result.stdout.splitlines()) if line["event"] == "sent"]
    assert [line["status"] for line in sent] == ["unsent", "queued"]


def test_what_the_node_does_not_take(run: Mesh, node: FakeNode) -> None:
    """Is told with the reason, and is the exit code; the next lines are sent all the same."""
    node.verdict = problem_reply(409, "key changed")
    result = run("chat", "UserX", stdin="one\ntwo\n")
    assert result.exit_code == Exit.REFUSED
    assert result.stderr.count("key changed") == 2


def test_a_node_that_is_away_is_waited_for(run: Mesh, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same message, under the same id, until it is taken."""
    monkeypatch.setattr(talk, "RETRY_DELAY_S", 0.0)
    node.verdict = problem_reply(503, "unavailable", "no seed can be reached")

    def sometimes(request: Any) -> Any:
        if node.taken.qsize() == 2:
            node.verdict = {"status": "delivered"}
        return node._send(request)

    node.stub.routes["POST /send"] = sometimes
    assert run("chat", "UserX", stdin="hi\n").exit_code == Exit.DONE
    tries = [node.taken.get(timeout=WAIT_S) for _ in range(3)]
    assert tries[0] == tries[1] == tries[2]


def test_nobody_has_the_name(stub: Stub, node: FakeNode, run: Mesh) -> None:
    """Found out before a word is typed."""
    stub.routes["GET /contacts/UserX"] = lambda _: problem_reply(404, "Not Found")
    stub.routes["GET /lookup/UserX"] = lambda _: problem_reply(404, "User Not Found", "no seed knows UserX")
    result = run("chat", "UserX", stdin="hi\n")
    assert result.exit_code == Exit.NOT_FOUND
    assert "check the spelling" in result.stderr
    stub.routes["GET /lookup/UserX"] = lambda _: problem_reply(503, "unavailable", "no seed can be reached")
    assert run("chat", "UserX", stdin="hi\n").exit_code == Exit.DONE
    stub.routes["GET /contacts/UserX"] = lambda _: problem_reply(400, "bad params", "not a name")
    assert run("chat", "UserX", stdin="hi\n").exit_code == Exit.USAGE


def test_a_changed_key_is_loud(node: FakeNode, run: Mesh) -> None:
    """It stands above the conversation."""
    node.contact = {"name": "UserX", "offered": {}}
    assert "THE KEY OF UserX HAS CHANGED" in run("chat", "UserX", stdin="hi\n").stderr


def test_a_refusal_ends_it(stub: Stub, node: FakeNode, run: Mesh) -> None:
    """A token that is wrong for the stream will stay wrong."""
    stub.routes["GET /inbox/stream"] = lambda _: problem_reply(401, "Unauthorized")
    stub.routes["POST /send"] = lambda _: problem_reply(503, "unavailable")  # so that the end is not that of the input
    assert run("chat", "UserX", stdin="hi\n").exit_code == Exit.REFUSED


# -- on a screen --------------------------------------------------------------------------------------------------


class Screen:
    """A `ChatScreen` in a thread of its own, with keys that are pressed here."""

    def __init__(self, stub: Stub, node: FakeNode, *, history: int = 0) -> None:
        self._keys = create_pipe_input()
        self.pipe = self._keys.__enter__()
        self._result: Queue[Any] = Queue()
        self.node = node
        with create_app_session(input=self.pipe, output=DummyOutput()):
            self.chat = ChatScreen(Node(stub.url), "UserX", history=history)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        node.opened.get(timeout=WAIT_S)

    def _run(self) -> None:
        try:
            self._result.put(self.chat.run())
        except Exception as error:
            self._result.put(error)

    def press(self, text: str) -> None:
        self.pipe.send_text(text)

    def until(self, is_so: Callable[[], bool]) -> None:
        until(lambda: is_so() or None, "the screen is so", WAIT_S)

    def ended(self) -> Any:
        try:
            return self._result.get(timeout=WAIT_S)
        finally:
            self.thread.join(WAIT_S)
            self._keys.__exit__(None, None, None)


def test_what_is_typed_is_sent(stub: Stub, node: FakeNode) -> None:
    """Enter sends, Alt-Enter does not; // is for what begins with a slash; /quit ends."""
    screen = Screen(stub, node)
    screen.press("one\r")
    assert node.taken.get(timeout=WAIT_S)["message"] == "one"
    screen.press("two\x1b\rlines\r")
    assert node.taken.get(timeout=WAIT_S)["message"] == "two\nlines"
    screen.press("//etc\r")
    assert node.taken.get(timeout=WAIT_S)["message"] == "/etc"
    screen.press("/nonsense\r")
    screen.press("/help\r")
    screen.press("/quit\r")
    assert screen.ended() == Exit.DONE
    assert node.taken.empty()


def test_control_d_and_control_c_end_an_empty_line(stub: Stub, node: FakeNode) -> None:
    """What is typed is not lost by them: Ctrl-C clears the line first."""
    screen = Screen(stub, node)
    screen.press("half\x03\x04")
    assert screen.ended() == Exit.DONE
    assert node.taken.empty()


def test_what_was_not_taken_is_told_at_the_end(stub: Stub, node: FakeNode) -> None:
    """Nothing that was typed disappears without a word."""
    node.verdict = problem_reply(503, "unavailable")
    screen = Screen(stub, node)
    screen.press("lost?\r")
    node.taken.get(timeout=WAIT_S)
    screen.press("/quit\r")
    assert screen.ended() == Exit.DONE
    assert [entry.text for entry in screen.chat.unsent()] == ["lost?"]
    assert screen.chat.waiting() == 0


def test_a_refusal_ends_the_screen(stub: Stub, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is what the command ends with."""
    monkeypatch.setattr("meshproto.cli.following.RETRY_DELAY_S", 0.0)
    screen = Screen(stub, node)
    stub.routes["GET /inbox/stream"] = lambda _: problem_reply(401, "Unauthorized")
    node.cut()
    assert screen.ended().status == 401


def test_no_more_is_typed_than_may_wait(stub: Stub, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no room stays in the line."""
    monkeypatch.setattr(talk, "AHEAD_MESSAGES", 1)
    node.verdict = problem_reply(503, "unavailable")
    screen = Screen(stub, node)
    screen.press("one\r")
    node.taken.get(timeout=WAIT_S)
    screen.press("two\r")
    screen.press("three\r\x03/quit\r")
    screen.ended()
    assert [entry.text for entry in screen.chat.unsent()] == ["one", "two"]


def item(pos: int, message_id: str, text: str, status: str = "delivered") -> dict[str, Any]:
    """One's own message in the history."""
    own = {"pos": pos, "direction": "out", "id": message_id, "type": "", "message": text, "at": NOW_MS}
    return {**own, "to": "UserX", "status": status, "reason": None, "changed_at": NOW_MS}


def test_the_last_messages_are_there_and_read(stub: Stub, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """A history that is still being made is asked again; what is shown counts as read."""
    monkeypatch.setattr(talk, "LOOK_AGAIN_S", 0.0)
    node.history = [item(7, "a", "before")]
    node.behind += [3, 3]
    screen = Screen(stub, node, history=10)
    assert node.read.get(timeout=WAIT_S) == 7
    screen.until(lambda: len(screen.chat.conversation.entries) == 1)
    node.history.append(item(9, "b", "later"))
    screen.press("/quit\r")
    screen.ended()
    assert node.read.get(timeout=WAIT_S) == 9
    assert [entry.text for entry in screen.chat.conversation.entries] == ["before"]


def test_what_is_sent_by_other_means_is_shown(stub: Stub, node: FakeNode) -> None:
    """As from the page: its text is in the history."""
    screen = Screen(stub, node)
    node.history = [item(1, "elsewhere", "from the page", "queued")]
    node.stands("elsewhere", "delivered")
    assert node.read.get(timeout=WAIT_S) == 1
    screen.until(lambda: [entry.status for entry in screen.chat.conversation.entries] == ["delivered"])
    node.history = []
    node.tell({"event": "outbox", "missed": 3})
    screen.press("/quit\r")
    screen.ended()
    (entry,) = screen.chat.conversation.entries
    assert (entry.text, entry.status) == ("from the page", "delivered")


def test_why_messages_wait(stub: Stub, node: FakeNode) -> None:
    """The queue of the other says it, for all that wait."""
    screen = Screen(stub, node)
    screen.press("one\r")
    screen.until(lambda: [entry.status for entry in screen.chat.conversation.entries] == ["queued"])
    node.tell({"event": "recipient", "to": "UserX", "waiting": 1, "reason": "refused"})
    node.tell({"event": "recipient", "to": "Bobby", "waiting": 1, "reason": "other"})
    screen.until(lambda: [entry.reason for entry in screen.chat.conversation.entries] == ["refused"])
    screen.press("/quit\r")
    screen.ended()
    assert screen.chat.waiting() == 1


# -- how it is laid out -------------------------------------------------------------------------------------------


def shown(entry: Entry, width: int, day: str | None = None) -> list[str]:
    return ["".join(part[1] for part in line) for line in laid_out(entry, width, day)]


def test_a_message_has_a_column_of_its_own() -> None:
    """No line of it begins where times and names stand, wherever it is broken."""
    entry = Entry(("k", "1"), NOW_MS, "UserX", "12:00  you  a lie\nand a long line that is broken somewhere")
    lines = shown(entry, 44, "2026-11-22")
    assert lines[0].strip() == "2026-11-22"
    margin = len("12:00  UserX  ")
    assert lines[1][margin:] == "12:00  you  a lie"
    assert all(line[:margin].isspace() for line in lines[2:])
    assert " ".join(line.strip() for line in lines[2:]) == "and a long line that is broken somewhere"


def test_the_state_stands_beside_the_text_or_below_it() -> None:
    """Where there is room."""
    entry = Entry(("", "1"), NOW_MS, "you", "short", "queued", "connection refused")
    assert shown(entry, 80)[0].endswith("short  queued: connection refused")
    assert [line.strip() for line in shown(entry, 34)[1:]] == ["queued: connection", "refused"]


@pytest.mark.parametrize(
    ("status", "reason", "changed_at_ms", "words"),
    [
        ("unsent", None, None, "not sent yet"),
        ("failed", "too large", None, "not sent: too large"),
        ("delivered", None, NOW_MS + 100, "delivered"),
        ("delivered", None, None, "delivered"),
        ("refused", "key\nchanged", None, "refused: key\\nchanged"),
    ],
)
def test_states_in_words(status: str, reason: str | None, changed_at_ms: int | None, words: str) -> None:
    """A line of words, whatever is in the reason."""
    assert state_of(Entry(("", "1"), NOW_MS, "you", "x", status, reason, changed_at_ms))[1] == words


def test_a_late_delivery_has_its_time() -> None:
    """More than a minute after it was sent."""
    entry = Entry(("", "1"), NOW_MS, "you", "x", "delivered", None, NOW_MS + 3_600_000)
    assert len(state_of(entry)[1]) == len("delivered 12:00")


def test_wide_characters_take_two_cells() -> None:
    """And one that is wider than the line gets one all the same."""
    assert wrap("日本語テスト", 5) == ["日本", "語テ", "スト"]
    assert wrap("日本", 1) == ["日", "本"]
    assert wrap("", 5) == [""]
    assert fit("x" * 40, NAME_CELLS_MAX) == "x" * (NAME_CELLS_MAX - 1) + "~"
    assert fit("UserX", NAME_CELLS_MAX) == "UserX"


def test_presence_in_words() -> None:
    """Nothing is said where nothing is known."""
    conversation = Conversation("UserX")
    assert presence_text(conversation) == ""
    conversation.seen(True, NOW_MS)
    assert presence_text(conversation) == "online"
    conversation.seen(False, NOW_MS)
    assert presence_text(conversation).startswith("away, last seen 20")
    conversation.seen(False, None)
    assert presence_text(conversation) == "away"


def content(conversation: Conversation, history: Any, width: int, height: int) -> list[str]:
    made = history.create_content(width, height)
    assert made.line_count == height
    return ["".join(part[1] for part in made.get_line(at)).strip() for at in range(height)]


def test_scrolling() -> None:
    """From the end backwards, with a line in common, and no further than there is something."""
    conversation = Conversation("UserX")
    for number in range(10):
        conversation.came(
            {"from": {"key": "k", "name": "U"}, "id": str(number), "received_at": NOW_MS, "message": number}
        )
    history = chat_screen._History(conversation)
    lines = content(conversation, history, 80, 4)
    assert [line[-1] for line in lines] == ["6", "7", "8", "9"]
    history.scroll(1)
    assert [line[-1] for line in content(conversation, history, 80, 4)] == ["3", "4", "5", "6"]
    for _ in range(9):
        history.scroll(1)
    top = content(conversation, history, 80, 4)
    assert "-" in top[0]
    assert [line[-1] for line in top[1:]] == ["0", "1", "2"]
    history.scroll(-1)
    assert content(conversation, history, 80, 4) != top
    history.to_end()
    assert content(conversation, history, 80, 4) == lines
    assert content(Conversation("UserX"), chat_screen._History(Conversation("UserX")), 80, 2) == ["", ""]


@pytest.mark.parametrize("text", ["x", "ab ", "\u4e00", "\x7f"])
def test_a_text_of_any_length_is_wrapped_at_once(text: str) -> None:
    """The largest message that another may send: it took 20 s and more, each time the screen was drawn."""
    began = time.process_time()
    lines = wrap(message_text(text * (MESSAGE_BYTES_MAX // len(text.encode()))), 64)
    assert len(lines) > 1000
    assert time.process_time() - began < 5


def test_marks_without_end_are_many_lines() -> None:
    """A line of so many that take no room was drawn in minutes."""
    lines = wrap("a" + "\u0301" * 10_000, 64)
    assert max(map(len, lines)) == 64 * LINE_CHARS_PER_CELL
    assert "".join(lines) == "a" + "\u0301" * 10_000
