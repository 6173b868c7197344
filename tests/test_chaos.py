""":mod:`bench.chaos` in miniature, and that it sees what it is there to see."""

import json
import random
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bench import chaos, chaos_senders
from bench.chaos_senders import Reply, id_of, text_of


def test_nothing_is_lost_among_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few hundred messages arrive once and in order though every node is killed twice, and the run's files go."""
    arguments = ["--messages", "240", "--kills", "2", "--away", "0.2", "--state", str(tmp_path)]
    assert chaos.main(arguments) == 0, capsys.readouterr()
    told = dict(line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("| "))
    assert told["| acknowledged"] == "240"
    assert all(int(told[f"| kills of {name}"]) >= 2 for name in (*chaos.SENDERS, chaos.RECIPIENT))
    assert all(int(told[f"| kills of {name}"]) >= 1 for name in chaos.SEEDS)
    assert list(tmp_path.iterdir()) == []


def got(*numbers: int, sender: str = "Anna") -> list[chaos.Got]:
    return [
        chaos.Got(sender, id_of(sender, number), text_of(id_of(sender, number)), 0, cursor)
        for cursor, number in enumerate(numbers)
    ]


def verdict(*messages: chaos.Got, unordered: Sequence[int] = ()) -> dict[str, list[int]]:
    """What is wrong with these when Anna has sent 0 to 3, by the messages' numbers."""
    wanted = {"Anna": [id_of("Anna", number) for number in range(4)]}
    said = chaos.judge(wanted, {id_of("Anna", number) for number in unordered}, messages)
    return {what: [int(id_[-6:]) for id_ in ids] for what, ids in said._asdict().items() if ids}


def test_all_as_it_should_be() -> None:
    """What arrived once, in order, as it was sent, is not complained of."""
    assert verdict(*got(0, 1, 2, 3)) == {}


def test_what_is_wrong_is_seen() -> None:
    """A message that is lost, doubled, too late, altered, or that nobody sent."""
    assert verdict(*got(0, 1, 3)) == {"lost": [2]}
    assert verdict(*got(0, 1, 2, 1, 3)) == {"doubled": [1]}
    assert verdict(*got(0, 2, 3, 1)) == {"out_of_order": [1]}
    assert verdict(*got(0, 1), got(2)[0]._replace(text="?"), *got(3)) == {"with_a_wrong_text": [2]}
    assert verdict(*got(0, 1, 2, 3), *got(4)) == {"not_sent": [4]}
    assert verdict(*got(0, 1, 2, 3), *got(0, sender="Bert")) == {"not_sent": [0]}


def test_what_was_refused_once_has_no_order() -> None:
    """Messages that went ahead of a refused one, and that one, are not judged by their order; the others are."""
    assert verdict(*got(0, 2, 1, 3), unordered=[1, 2]) == {}
    assert verdict(*got(1, 3, 2, 0), unordered=[1, 2]) == {"out_of_order": [0]}


def test_gaps_count_from_when_both_run() -> None:
    """From the later of two starts to the next delivery, or to the end of a life in which none came."""
    assert list(chaos.gaps_ms([(10, 50), (60, 0)], [(20, 70), (80, 0)], [30, 40, 90])) == [10, 10, 10]
    assert list(chaos.gaps_ms([(10, 0)], [(0, 0)], [5])) == []


def test_kills_are_spread() -> None:
    """One in each part of the messages, the last before they end."""
    for seed in range(20):
        due = list(chaos.spread(4, 1000, random.Random(seed)))
        assert [at * 4 // int(chaos.KILLS_UNTIL * 1000) for at in due] == [0, 1, 2, 3]


class Told(chaos_senders.Sender):
    """A client whose node says what a test has written down: a code for each message, None for a lost connection."""

    ahead_max = 3
    codes: tuple[int | None, ...] = ()

    def __init__(self) -> None:
        flow = threading.Event()
        flow.set()
        super().__init__("Anna", "http://127.0.0.1:1", "Dora", 3, random.Random(1), flow)
        self.windows: list[list[int]] = []

    def exchange(self, window: Sequence[int]) -> Iterator[tuple[int, Reply]]:
        self.windows.append(list(window))
        self._sent = len(window)
        for number in window:
            code, self.codes = (self.codes[0], self.codes[1:]) if self.codes else (202, ())
            if code is None:
                raise ConnectionResetError
            said = {"id": id_of("Anna", number), "to": "Dora", "status": "delivered" if code == 200 else "queued"}
            yield number, Reply(code, said if code < 300 else {"retry_after": 0})

    def close(self) -> None:
        """There is no connection."""


def told(monkeypatch: pytest.MonkeyPatch, *codes: int | None) -> Told:
    monkeypatch.setattr(Told, "codes", codes)
    monkeypatch.setattr(chaos_senders, "RECONNECT_S", 0)
    monkeypatch.setattr(chaos_senders, "RECHECKED", 0)
    monkeypatch.setattr(random.Random, "randint", lambda self, low, high: high)
    client = Told()
    client.run()
    assert client.died is None
    return client


def test_an_unanswered_tail_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a lost connection what had no answer is sent again, in order, before anything else."""
    client = told(monkeypatch, 202, None, 202)
    assert (client.windows, client.acknowledged, client.repeated) == ([[0, 1, 2], [1, 2]], [0, 1, 2], 2)


def test_what_overtakes_a_refused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent behind a refused message may be there before it, and both are noted."""
    client = told(monkeypatch, 202, 503, 202)
    assert (client.windows, client.acknowledged, client.refused) == ([[0, 1, 2], [1]], [0, 2, 1], 1)
    assert client.unordered == {1, 2}


def test_a_wrong_answer_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is neither an acknowledgement nor asks to try later is told of, and the message sent again."""
    client = told(monkeypatch, 202, 500, 202)
    assert client.acknowledged == [0, 2, 1]
    assert [failure.split(" {")[0] for failure in client.failures] == ["Anna-000001 was answered 500"]


def test_what_was_delivered_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that was answered delivered and is something else later is a failure."""
    client = told(monkeypatch, 200, 200, 200)
    monkeypatch.setattr(chaos_senders, "ask", lambda address, path: (200, {"status": "delivered"}))
    client.recheck_some(2)
    assert (client.rechecked, client.failures) == (2, [])
    monkeypatch.setattr(chaos_senders, "ask", lambda address, path: (200, {"status": "queued"}))
    client.recheck_some(1)
    assert len(client.failures) == 1


class Fickle(BaseHTTPRequestHandler):
    """A node's `POST /send`, alone and as a stream, that takes a message and hangs up every now and then instead of
    answering."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    taken: list[str]
    messages = 0

    def do_POST(self) -> None:
        if self.headers["Transfer-Encoding"] != "chunked":
            self._answer(self.rfile.read(int(self.headers["Content-Length"])))
            return
        assert self.headers["Content-Type"] == "application/x-ndjson"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while size := int(self.rfile.readline(), 16):
            for line in self.rfile.read(size).splitlines():
                self._chunk(json.dumps(self._take(line)).encode() + b"\n")
            self.rfile.readline()
        self.rfile.readline()
        self._chunk(b"")

    def _answer(self, body: bytes) -> None:
        answer = json.dumps(self._take(body)).encode()
        self.send_response(202)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _take(self, body: bytes) -> Any:
        message = json.loads(body)
        assert message["message"] == text_of(message["id"])
        if message["id"] not in self.taken:
            self.taken.append(message["id"])
        type(self).messages += 1
        if self.messages % 7 == 0:
            raise ConnectionAbortedError
        return {"id": message["id"], "to": message["to"], "status": "queued"}

    def log_message(self, *_: object) -> None:
        """Not into the test's output."""


class FickleServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """It hangs up on purpose."""


@pytest.mark.parametrize(
    "kind", [chaos_senders.PlainSender, chaos_senders.PipeliningSender, chaos_senders.StreamingSender]
)
def test_each_client_copes_with_lost_connections(
    kind: type[chaos_senders.Sender], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every message is taken in order and acknowledged, over connections that end again and again before an answer."""
    monkeypatch.setattr(chaos_senders, "RECONNECT_S", 0)
    monkeypatch.setattr(Fickle, "taken", [], raising=False)
    flow = threading.Event()
    flow.set()
    with FickleServer(("127.0.0.1", 0), Fickle) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        client = kind("Anna", f"http://127.0.0.1:{server.server_port}", "Dora", 200, random.Random(1), flow)
        client.run()
        server.shutdown()
        serving.join()
    assert (client.died, client.failures) == (None, [])
    assert client.acknowledged == list(range(200))
    assert Fickle.taken == [id_of("Anna", number) for number in range(200)]
    assert client.repeated > 0
