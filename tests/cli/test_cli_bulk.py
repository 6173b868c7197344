"""`mesh send --bulk`: every line once, whatever happens on the way."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshproto.cli import bulk as bulk_module
from meshproto.cli.bulk import GIVE_UP_S, RETRY_DELAY_S, RETRY_DELAY_S_MAX, Bulk
from meshproto.cli.exits import Exit
from meshproto.cli.feed import Feed, Source
from meshproto.cli.ledger import BulkRefused, Ledger
from meshproto.cli.sendfile import FAILURES_SHOWN_MAX
from meshproto.client import under_way
from meshproto.client.errors import Unreachable
from meshproto.client.node import Node
from meshproto.client.under_way import AHEAD_LINES
from tests.cli.conftest import Mesh
from tests.cli.stub import JSON, Mailbox, Reply, Stream, Stub
from tests.net.certificates import self_signed

STATUS = {"fingerprint": "abcdefgh"}
MESH = [sys.executable, "-c", "from meshproto.cli.main import main; main()"]


@pytest.fixture
def mailbox(stub: Stub) -> Mailbox:
    """The stub takes streams by a node's rules."""
    mailbox = Mailbox()
    stub.status, stub.default = STATUS, mailbox.serve
    return mailbox


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(bulk_module, "RETRY_DELAY_S", 0.0)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of messages to UserX; bytes stand as they are."""

    def write(*messages: Any) -> Path:
        path = tmp_path / "a.ndjson"
        lines = [m if isinstance(m, bytes) else json.dumps({"to": "UserX", "message": m}).encode() for m in messages]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path

    return write


def state_of(path: Path) -> Any:
    """What the state file holds."""
    return json.loads(path.with_name(f"{path.name}.sending").read_text())


def is_over(path: Path) -> bool:
    """Whether nothing is beside the file."""
    return [other.name for other in path.parent.iterdir()] == [path.name]


def test_every_line_is_sent(stub: Stub, run: Mesh, mailbox: Mailbox, write: Callable[..., Path]) -> None:
    """One request with all of it, ids of one run, a summary, and nothing left behind."""
    path = write("a", {"b": 1}, "away")
    result = run("send", "--bulk", str(path))
    assert (result.exit_code, result.stderr) == (Exit.DONE, "")
    assert result.stdout == "3 lines: 2 delivered, 1 queued, 0 failed\n"
    assert list(mailbox.taken.values()) == ["a", {"b": 1}, "away"]
    (run_id,) = {message_id.rpartition("-")[0] for _, message_id in mailbox.taken}
    assert [message_id for _, message_id in mailbox.taken] == [f"{run_id}-{number}" for number in (1, 2, 3)]
    assert stub.requests[-1].headers["Content-Type"] == "application/x-ndjson"
    assert is_over(path)


def test_sending_again_on_purpose(run: Mesh, mailbox: Mailbox, write: Callable[..., Path]) -> None:
    """When all of it is through, the same command is another run."""
    path = write("a")
    run("send", "--bulk", str(path))
    run("send", "--bulk", str(path))
    assert len(mailbox.taken) == 2


def test_an_empty_file(stub: Stub, run: Mesh, mailbox: Mailbox, tmp_path: Path) -> None:
    """Nothing to send is done at once."""
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"\n \n")
    assert run("send", "--bulk", str(path)).stdout == "0 lines: 0 delivered, 0 queued, 0 failed\n"
    assert [request.path for request in stub.requests] == ["/status"]
    assert is_over(path)


def test_failed_lines_are_told(run: Mesh, mailbox: Mailbox, write: Callable[..., Path]) -> None:
    """With FILE:LINE, harmless, in order; the highest exit code counts; the lines around them are taken."""
    path = write("a", b"", b"{", {"fail": 404}, "b", b"[]")
    result = run("send", "--bulk", str(path))
    lines = [
        rf"{path}:3: 400 bad params (no\x1b)",
        f"{path}:4: 404 User Not Found",
        rf"{path}:6: 400 bad params (no\x1b)",
    ]
    assert result.stderr.splitlines() == lines
    assert (result.exit_code, result.stdout) == (Exit.NOT_FOUND, "5 lines: 2 delivered, 0 queued, 3 failed\n")
    assert mailbox.seen[1] == b"{"
    assert is_over(path)


def test_no_more_failures_are_told_than_fit(run: Mesh, mailbox: Mailbox, write: Callable[..., Path]) -> None:
    """The rest is counted for people; programs get every result, with the line of the file."""
    path = write(b"", *[{"fail": 404}] * (FAILURES_SHOWN_MAX + 2))
    lines = run("send", "--bulk", str(path)).stderr.splitlines()
    assert (len(lines), lines[-1]) == (FAILURES_SHOWN_MAX + 1, f"{path}: and 2 more; --json tells all of them")
    result = run("send", "--bulk", str(path), "--json")
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each["line"] for each in told] == list(range(2, FAILURES_SHOWN_MAX + 4))
    assert (told[0]["code"], result.stderr, result.exit_code) == (404, "", Exit.NOT_FOUND)


def test_options_are_for_lines_that_lack_them(run: Mesh, mailbox: Mailbox, tmp_path: Path) -> None:
    """A line's own word counts."""
    path = tmp_path / "a.ndjson"
    path.write_text('{"message": 1}\n{"message": 2, "to": "Bobby", "ttl": 5, "id": "own"}\n')
    run("send", "--bulk", str(path), "--to", "UserX", "--ttl", "60", "--wait", "0")
    first, second = map(json.loads, mailbox.seen)
    assert {**first, "id": ""} == {"message": 1, "to": "UserX", "wait": 0, "ttl": 60, "id": ""}
    assert second == {"message": 2, "to": "Bobby", "ttl": 5, "id": "own", "wait": 0}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bulk", "f", "UserX"], "--to names who gets the rest"),
        (["--bulk", "f", "--id", "1"], "have the names and the ids"),
        (["UserX", "hi", "--to", "Bobby"], "--to goes with --bulk"),
        (["--bulk", "/nonexistent"], "mesh: /nonexistent cannot be read: No such file or directory."),
    ],
)
def test_wrong_usage(stub: Stub, run: Mesh, arguments: list[str], says: str) -> None:
    """What cannot be meant is told before the node is asked."""
    result = run("send", *arguments)
    assert (result.exit_code, stub.requests) == (Exit.USAGE, [])
    assert says in result.stderr


@pytest.mark.parametrize("ahead", [0, 30])
def test_a_cut_connection(stub: Stub, run: Mesh, mailbox: Mailbox, write: Callable[..., Path], ahead: int) -> None:
    """It goes on with the first line that was not answered; what the node had taken already stays one message."""
    path = write(*range(100))
    stub.streams(mailbox.cut_after(20, ahead))
    stub.streams(mailbox.cut_after(30, ahead))
    result = run("send", "--bulk", str(path))
    assert (result.exit_code, result.stdout) == (Exit.DONE, "100 lines: 100 delivered, 0 queued, 0 failed\n")
    assert list(mailbox.taken.values()) == list(range(100))
    assert len(mailbox.seen) == 100 + 2 * ahead
    assert [line.partition(":")[2][:23] for line in result.stderr.splitlines()] == [" The connection is lost"] * 2
    assert is_over(path)


def test_a_busy_node_is_waited_for(stub: Stub, run: Mesh, mailbox: Mailbox, write: Callable[..., Path]) -> None:
    """Once it has taken a line, a node that starts or is too busy is asked again."""
    path = write("a", "b")
    stub.streams(mailbox.cut_after(1))
    stub.refuses(503, "Starting", "")
    stub.refuses(429, "Slow Down", "")
    assert run("send", "--bulk", str(path)).exit_code == Exit.DONE
    assert list(mailbox.taken.values()) == ["a", "b"]


@pytest.mark.parametrize(("status", "code"), [(401, Exit.REFUSED), (400, Exit.USAGE), (503, Exit.NO_SEED)])
def test_a_node_that_refuses_the_stream(
    stub: Stub, run: Mesh, mailbox: Mailbox, write: Callable[..., Path], status: int, code: Exit
) -> None:
    """It ends at once, and as nothing was taken the file may be changed."""
    path = write(*range(10_000))
    stub.refuses(status, "No", "not now")
    result = run("send", "--bulk", str(path))
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("mesh: No (not now): ")
    assert is_over(path)


def test_a_refusal_on_the_way(stub: Stub, run: Mesh, mailbox: Mailbox, write: Callable[..., Path]) -> None:
    """It ends too, but what was taken is remembered."""
    path = write("a", "b")
    stub.streams(mailbox.cut_after(1))
    stub.refuses(401, "Unauthorized", "")
    result = run("send", "--bulk", str(path))
    assert result.exit_code == Exit.REFUSED
    assert "1 of 2 lines are through; the same command goes on from there" in result.stderr
    assert state_of(path)["done"] == 1


def test_a_node_that_takes_no_streams(stub: Stub, run: Mesh, mailbox: Mailbox, write: Callable[..., Path]) -> None:
    """An older node reads the stream as one message."""
    path = write("a")
    stub.replies(Reply(202, b'{"id": "m"}', {"Content-Type": JSON}))
    result = run("send", "--bulk", str(path))
    assert result.exit_code == Exit.FAILED
    assert "the node is older than this mesh" in result.stderr


def test_what_failed_for_now_is_sent_again(run: Mesh, mailbox: Mailbox, write: Callable[..., Path]) -> None:
    """And nothing else: neither what was taken nor what failed for good."""
    path = write("a", {"fail": 429}, {"fail": 404}, {"fail": 503}, "b")
    first = run("send", "--bulk", str(path))
    assert first.exit_code == Exit.NO_SEED
    assert "2 of the failed lines may be taken another time" in first.stderr
    assert "best in 9 s" in first.stderr
    assert (state_of(path)["done"], state_of(path)["again"]) == (5, [[2, 2], [4, 4]])
    mailbox.open = True
    mailbox.seen.clear()
    second = run("send", "--bulk", str(path))
    assert (second.exit_code, second.stdout) == (Exit.DONE, "2 lines: 2 delivered, 0 queued, 0 failed\n")
    assert second.stderr == f"mesh: Going on with {path}: 3 of 5 lines are through.\n"
    assert [json.loads(line)["message"] for line in mailbox.seen] == [{"fail": 429}, {"fail": 503}]
    assert is_over(path)


def test_a_full_outbox_ends_the_run(
    run: Mesh, mailbox: Mailbox, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long file is not burnt against a node that takes nothing; a taken line in between starts the count anew."""
    monkeypatch.setattr(bulk_module, "REFUSED_MAX", 3)
    monkeypatch.setattr(under_way, "AHEAD_LINES", 4)
    full = {"fail": 429}
    path = write(full, full, "a", full, full, full, *["b"] * 50)
    result = run("send", "--bulk", str(path))
    assert result.exit_code == Exit.TOO_MUCH
    assert result.stdout == "6 lines: 1 delivered, 0 queued, 5 failed\n"
    mailbox.open = True
    assert run("send", "--bulk", str(path)).exit_code == Exit.DONE
    assert len(mailbox.taken) == 56
    assert is_over(path)


def test_the_writer_does_not_run_away(stub: Stub, run: Mesh, mailbox: Mailbox, write: Callable[..., Path]) -> None:
    """A node that is slow to answer never has more lines than the bound before it."""
    ahead: list[int] = []

    def slow(stream: Stream) -> None:
        unanswered: list[bytes] = []
        for line in stream.lines():
            unanswered.append(line)
            ahead.append(len(unanswered))
            if len(unanswered) == AHEAD_LINES:
                stream.result(*map(mailbox.take, unanswered[:1000]))
                del unanswered[:1000]
        stream.result(*map(mailbox.take, unanswered))
        stream.end()

    stub.streams(slow)
    path = write(*range(3 * AHEAD_LINES))
    assert run("send", "--bulk", str(path)).exit_code == Exit.DONE
    assert (max(ahead), len(mailbox.taken)) == (AHEAD_LINES, 3 * AHEAD_LINES)


def test_large_lines_both_ways(stub: Stub, run: Mesh, mailbox: Mailbox, write: Callable[..., Path]) -> None:
    """More bytes than all buffers between hold, while the results are as large: neither side waits for ever."""

    def echo(stream: Stream) -> None:
        for line in stream.lines():
            stream.result({**mailbox.take(line), "reason": "x" * 100_000})
        stream.end()

    stub.streams(echo)
    path = write(*["y" * 100_000] * 300)
    assert run("send", "--bulk", str(path)).stdout == "300 lines: 300 delivered, 0 queued, 0 failed\n"


class Waiting:
    """A stream that answers some lines and then waits for the test to hang up."""

    def __init__(self, mailbox: Mailbox, results: int) -> None:
        self._mailbox, self._results = mailbox, results

    def __call__(self, stream: Stream) -> None:
        """Take all lines that come; answer the first of them."""
        for number, line in enumerate(stream.lines()):
            result = self._mailbox.take(line)
            if number < self._results:
                stream.result(result)
        stream.hang()


def begun(stub: Stub, path: Path, results: int) -> "subprocess.Popen[str]":
    """A `mesh` of its own that has got so many results and waits for the next."""
    command = [*MESH, "--node", stub.url, "send", "--json", "--bulk", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(results):
        process.stdout.readline()
    return process


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_ended_in_the_middle(
    stub: Stub, run: Mesh, mailbox: Mailbox, write: Callable[..., Path], how: signal.Signals
) -> None:
    """Killed or ended with Ctrl-C, the same command goes on, and no message is there twice."""
    path = write(*range(3000))
    stub.streams(Waiting(mailbox, results=500))
    process = begun(stub, path, results=500)
    process.send_signal(how)
    _, said = process.communicate()
    if how == signal.SIGINT:
        assert process.returncode == Exit.FAILED
        assert (
            said
            == "mesh: 500 of 3000 lines are through; the same command goes on from there and sends nothing twice.\n"
        )
        assert state_of(path)["done"] == 500
    run_id = state_of(path)["run"]
    result = run("send", "--bulk", str(path))
    assert (result.exit_code, is_over(path)) == (Exit.DONE, True)
    assert sorted(mailbox.taken.values()) == list(range(3000))
    assert {message_id for _, message_id in mailbox.taken} == {f"{run_id}-{number + 1}" for number in range(3000)}


def test_a_second_run_at_once(stub: Stub, run: Mesh, mailbox: Mailbox, write: Callable[..., Path]) -> None:
    """It refuses before it asks the node."""
    path = write("a", "b")
    stub.streams(Waiting(mailbox, results=1))
    process = begun(stub, path, results=1)
    asked = len(stub.requests)
    result = run("send", "--bulk", str(path))
    process.kill()
    process.communicate()
    assert (result.exit_code, len(stub.requests)) == (Exit.USAGE, asked)
    assert result.stderr == f"mesh: {path} is being sent already, by another mesh.\n"


def test_standard_input_is_sent_as_it_comes(stub: Stub, mailbox: Mailbox) -> None:
    """A result does not wait for the next line, nor a line for the end; each has an id of its own."""
    command = [*MESH, "--node", stub.url, "send", "--json", "--bulk", "-", "--to", "UserX"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    for number in range(3):
        process.stdin.write(f'{{"message": {number}}}\n')
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["line"] == number + 1
    process.communicate()
    assert process.returncode == Exit.DONE
    assert list(mailbox.taken.values()) == [0, 1, 2]


def test_standard_input_survives_a_cut(stub: Stub, mailbox: Mailbox) -> None:
    """What was read and not answered is kept, and goes out again."""
    stub.streams(mailbox.cut_after(2, ahead=3))
    text = "".join(f'{{"to": "UserX", "message": {number}}}\n' for number in range(20))
    command = [*MESH, "--node", stub.url, "send", "--bulk", "-"]
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert result.stdout == "20 lines: 20 delivered, 0 queued, 0 failed\n"
    assert list(mailbox.taken.values()) == list(range(20))
    assert len(mailbox.seen) == 23


def test_a_node_tired_of_waiting_for_input(stub: Stub, mailbox: Mailbox) -> None:
    """It may end a connection on which nothing is under way; the next line gets another one, and nobody is told."""
    stub.streams(mailbox.cut_after(1))
    command = [*MESH, "--node", stub.url, "send", "--json", "--bulk", "-", "--to", "UserX"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for number in range(2):
            process.stdin.write(f'{{"message": {number}}}\n')
            process.stdin.flush()
            process.stdout.readline()
        process.stdin.close()
        told = process.stderr.read()
    assert (process.returncode, list(mailbox.taken.values())) == (Exit.DONE, [0, 1])
    assert told.count("\n") <= 1  # the line may have gone out before the end of the connection was seen


def test_a_bar_on_a_terminal(stub: Stub, mailbox: Mailbox, write: Callable[..., Path]) -> None:
    """Drawn on standard error, and gone before the summary, which is on standard output."""
    ours, theirs = pty.openpty()
    command = [*MESH, "--node", stub.url, "send", "--bulk", str(write(*range(10), {"fail": 404}))]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        drawn = b"".join(iter(lambda: _read(ours), b"")).decode()
        assert process.stdout is not None
        assert process.stdout.read() == b"11 lines: 10 delivered, 0 queued, 1 failed\n"
    os.close(ours)
    assert "/11" in drawn
    assert ":11: 404 User Not Found\r\n" in drawn


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # how a terminal says that nobody writes any more
        return b""


class Told:
    """A view that keeps what it is told."""

    def __init__(self) -> None:
        self.results: list[int] = []
        self.notices: list[str] = []

    def result(self, number: int, _result: Any, _tally: Any) -> None:
        """Keep the number."""
        self.results.append(number)

    def notice(self, text: str) -> None:
        """Keep it."""
        self.notices.append(text)


def bulk_of(path: Path, url: str, sleep: Callable[[float], None], clock: Callable[[], float]) -> Bulk:
    """A run of its own, with a clock of its own."""
    ledger = Ledger()
    feed = Feed(Source(os.open(path, os.O_RDONLY)), ledger.wants, "r", {})
    return Bulk(Node(url), STATUS["fingerprint"], feed, ledger, Told(), lambda: None, clock, sleep)


def test_a_restarted_node(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again with growing delays until it is back; it knows what it had taken."""
    monkeypatch.setattr(bulk_module, "RETRY_DELAY_S", RETRY_DELAY_S)
    mailbox, delays, restarted = Mailbox(), list[float](), list[Stub]()
    path = write(*range(50))

    def sleep(length_s: float) -> None:
        if not delays:
            first.close()
        delays.append(length_s)
        if len(delays) == 6:
            restarted.append(Stub(first.port).__enter__())
            restarted[0].status, restarted[0].default = STATUS, mailbox.serve

    first = Stub().__enter__()
    first.status = STATUS
    first.streams(mailbox.cut_after(10, ahead=5))
    bulk = bulk_of(path, first.url, sleep, lambda: 0.0)
    bulk.run()
    restarted[0].close()
    assert delays == [0.5, 1.0, 2.0, 4.0, RETRY_DELAY_S_MAX, RETRY_DELAY_S_MAX]
    assert list(mailbox.taken.values()) == list(range(50))
    assert bulk.tally.delivered == 50


def test_a_node_that_stays_away(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up when there was no answer for long enough, counted from the loss."""
    monkeypatch.setattr(bulk_module, "RETRY_DELAY_S", RETRY_DELAY_S)
    mailbox, now = Mailbox(), [1000.0]

    def sleep(length_s: float) -> None:
        stub.close() if now == [1000.0] else None
        now[0] += length_s

    stub = Stub().__enter__()
    stub.status = STATUS
    stub.streams(mailbox.cut_after(1))
    bulk = bulk_of(write("a", "b"), stub.url, sleep, lambda: now[0])
    with pytest.raises(Unreachable):
        bulk.run()
    assert GIVE_UP_S <= now[0] - 1000 <= GIVE_UP_S + RETRY_DELAY_S_MAX
    assert bulk.ledger.done == 1


def test_another_node_in_its_place(stub: Stub, write: Callable[..., Path]) -> None:
    """What belongs to one user is not sent through another's node that has come to listen there."""
    mailbox = Mailbox()
    stub.status, stub.default = {"fingerprint": "zzz"}, mailbox.serve
    stub.streams(mailbox.cut_after(1))
    with pytest.raises(BulkRefused, match="another node, zzz"):
        bulk_of(write("a", "b"), stub.url, lambda _: None, lambda: 0.0).run()
    assert len(mailbox.taken) == 1


@pytest.mark.parametrize(
    ("ids", "done", "reason"),
    [
        (["other"], 0, "it answers 'other' where 'r-1' was due"),
        (["r-1", "r-1"], 1, "it answers 'r-1' where 'r-2' was due"),
    ],
)
def test_answers_that_fit_nothing(
    stub: Stub, write: Callable[..., Path], ids: list[str], done: int, reason: str
) -> None:
    """A result is never taken for that of another line."""

    def wrong(stream: Stream) -> None:
        next(stream.lines())
        stream.result(*({"id": message_id, "status": "delivered"} for message_id in ids))
        stream.end()

    stub.status, stub.default = STATUS, wrong
    now = iter(range(0, 10_000, 40))
    bulk = bulk_of(write("a", "b"), stub.url, lambda _: None, lambda: next(now))
    with pytest.raises(Unreachable, match=reason):
        bulk.run()
    assert bulk.ledger.done == done


def test_an_answer_too_many(stub: Stub) -> None:
    """It counts for no line."""
    reads, writes = os.pipe()

    def twice(stream: Stream) -> None:
        result = {"to": "UserX", "status": "delivered"}
        next(stream.lines())
        stream.result(result, result)
        stream.hang()
        os.close(writes)

    stub.status = STATUS
    stub.streams(twice)
    os.write(writes, b"{}\n")
    bulk = Bulk(
        Node(stub.url),
        STATUS["fingerprint"],
        Feed(Source(reads), lambda _: True, "r", {}),
        Ledger(),
        Told(),
        lambda: None,
    )
    bulk.run()
    os.close(reads)
    assert bulk.tally.lines == 1


def test_progress_is_written_down_on_the_way(
    run: Mesh, mailbox: Mailbox, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Now and then, not with every line; a state that cannot be written is told and costs nothing else."""
    monkeypatch.setattr(bulk_module, "SAVE_EVERY_S", 0.0)
    path = write("a", "b", "c")
    draft = path.with_name("a.ndjson.sending.new")
    take = mailbox.take

    def in_the_way(line: bytes) -> Any:
        draft.mkdir(exist_ok=True)
        return take(line)

    monkeypatch.setattr(mailbox, "take", in_the_way)
    result = run("send", "--bulk", str(path))
    assert (result.exit_code, len(mailbox.taken)) == (Exit.DONE, 3)
    assert "How far it has come is not written down" in result.stderr


def test_over_tls(run: Mesh, write: Callable[..., Path], tmp_path: Path) -> None:
    """Both ways at once over TLS too, with more than fits into the buffers; not with a stranger."""
    certificate = tmp_path / "loopback.pem"
    certificate.write_bytes(self_signed("127.0.0.1"))
    mailbox = Mailbox()
    with Stub(tls=certificate) as stub:
        stub.status, stub.default = STATUS, mailbox.serve
        path = write(*["y" * 10_000] * 1000)
        given = ("--node", stub.url, "send", "--bulk", str(path))
        assert "certificate verify failed" in run(*given).stderr
        assert run("--ca", str(certificate), *given).stdout.startswith("1000 lines: 1000 delivered")
    assert Counter(mailbox.taken.values()) == {"y" * 10_000: 1000}
