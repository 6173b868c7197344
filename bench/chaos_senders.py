"""The clients of :mod:`bench.chaos`: each hands its messages to a node that is killed again and again.

A client has its messages in order and one connection. What was not acknowledged (2xx) is sent again with the same id,
before anything that comes after it. So the order of acceptance is the order of the numbers, and every message has to
arrive once: with one exception, see :attr:`Sender.unordered`.
"""

import http.client
import json
import random
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from io import BufferedReader
from socket import SocketIO, create_connection, socket
from typing import Any, Final, cast
from urllib.parse import urlsplit

from msgspec import Struct

from meshproto.wire import split_address

ANSWER_S_MAX: Final = 60.0
"""Far beyond what a message is waited for: who is silent for so long hangs."""
RECONNECT_S: Final = 0.05
RETRY_S_MAX: Final = 1.0
"""A node may ask for more patience than a run has."""
PIPELINE_MAX: Final = 20
STREAM_LINES_MAX: Final = 1000
STREAM_AHEAD_MAX: Final = 100
"""Lines without a result yet: few enough that both ends' socket buffers hold them, so that nobody has to read and write
at the same time."""
RECHECKED: Final = 0.02
"""The part of the acknowledgements after which an earlier one is looked up again."""
FAILURES_MAX: Final = 20
LARGE_EVERY: Final = 200
LARGE_CHARS: Final = 20_000
SMALL_CHARS_MAX: Final = 300
REFUSED: Final = (429, 503)
WAITING: Final = ("queued", "locating", "delivering")


class Reply(Struct, frozen=True):
    """What became of one message, as the node said it."""

    code: int
    said: dict[str, Any]


def id_of(sender: str, number: int) -> str:
    return f"{sender}-{number:06}"


def text_of(message_id: str) -> str:
    """The message's text follows from its id, so that a wrong one is seen. A few are large."""
    drawn = zlib.crc32(message_id.encode())
    length = LARGE_CHARS if drawn % LARGE_EVERY == 0 else drawn % SMALL_CHARS_MAX
    return message_id + "." * length


class Sender(threading.Thread):
    """Sends its messages one at a time, until each is acknowledged. `flow`: cleared while nothing may be sent.

    `acknowledged` grows in order; `repeated` counts messages that were sent again, `refused` answers that asked to try
    later. `unordered` are messages sent on behind one that was refused, before its refusal was read: they were rightly
    taken first. `died` is what ended the thread if not the end of its work; `over`, when set, ends it too.
    """

    ahead_max = 1

    def __init__(self, name: str, url: str, to: str, messages: int, rng: random.Random, flow: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self.acknowledged: list[int] = []
        self.repeated = self.refused = self.rechecked = 0
        self.unordered: set[int] = set()
        self.failures: list[str] = []
        self.died: BaseException | None = None
        self.over = False
        self._address = urlsplit(url).netloc
        self._to = to
        self.messages = messages
        self._rng = rng
        self._flow = flow
        self._delivered: list[int] = []
        self._sent = 0  # of the window, by this exchange

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # whoever started the thread judges it
            self.died = error
        finally:
            self.close()

    def _work(self) -> None:
        left = deque(range(self.messages))
        while left and not self.over:
            self._flow.wait()
            window = [left.popleft() for _ in range(min(len(left), self._rng.randint(1, self.ahead_max)))]
            left.extendleft(reversed(self._round(window)))
            if self._delivered and self._rng.random() < RECHECKED * len(window):
                self.recheck(self._rng.choice(self._delivered))

    def _round(self, window: Sequence[int]) -> list[int]:
        """Send these, and return those that have to be sent again, in order."""
        again = dict.fromkeys(window)
        self._sent = 0
        pause_s = 0.0
        try:
            for number, reply in self.exchange(window):
                if self._judge(number, reply):
                    del again[number]
                else:
                    pause_s = min(RETRY_S_MAX, float(reply.said.get("retry_after", RETRY_S_MAX)))
                    self.unordered.update(window[window.index(number) :] if number != window[-1] else ())
        except (OSError, http.client.HTTPException):
            self.close()
            pause_s = RECONNECT_S
        self.repeated += sum(number in again for number in window[: self._sent])
        if pause_s:
            time.sleep(pause_s)
        return list(again)

    def _judge(self, number: int, reply: Reply) -> bool:
        """Whether it is acknowledged."""
        message_id = id_of(self.name, number)
        status = reply.said.get("status")
        if (reply.code, status) == (200, "delivered") or (reply.code == 202 and status in WAITING):
            if (reply.said.get("id"), reply.said.get("to")) != (message_id, self._to):
                self._failed(f"{message_id} was answered with {reply.said}")
            self.acknowledged.append(number)
            if status == "delivered":
                self._delivered.append(number)
            return True
        if reply.code in REFUSED:
            self.refused += 1
        else:
            self._failed(f"{message_id} was answered {reply.code} {reply.said}")
        return False

    def _failed(self, what: str) -> None:
        if len(self.failures) < FAILURES_MAX:  # the first tell most
            self.failures.append(what)

    @property
    def delivered(self) -> int:
        """How many were acknowledged as delivered."""
        return len(self._delivered)

    def recheck(self, number: int) -> None:
        """What was answered `delivered` stays so."""
        message_id = id_of(self.name, number)
        try:
            code, kept = ask(self._address, f"/outbox/{message_id}")
        except (OSError, http.client.HTTPException):
            return  # killed just now: it is asked about others
        self.rechecked += 1
        if code != 200 or kept.get("status") != "delivered":
            self._failed(f"{message_id} was answered delivered, and later GET /outbox says {code} {kept}")

    def recheck_some(self, count: int) -> None:
        for number in self._rng.sample(self._delivered, min(count, len(self._delivered))):
            self.recheck(number)

    def message(self, number: int) -> bytes:
        """The object of `POST /send`. Half of them wait for nothing, the others as long as the node does by itself."""
        message_id = id_of(self.name, number)
        wait = {} if self._rng.random() < 0.5 else {"wait": 0}
        return json.dumps({"to": self._to, "id": message_id, "message": text_of(message_id), **wait}).encode()

    def exchange(self, window: Sequence[int]) -> Iterator[tuple[int, Reply]]:
        """Send these messages, and give the reply to each, in order. Raises :class:`OSError` and
        :class:`http.client.HTTPException`."""
        raise NotImplementedError

    def close(self) -> None:
        """Let the connection go; the next exchange makes another."""
        raise NotImplementedError


class PlainSender(Sender):
    """A request a message, one after another, over a connection that is kept alive."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._connection = http.client.HTTPConnection(self._address, timeout=ANSWER_S_MAX)

    def exchange(self, window: Sequence[int]) -> Iterator[tuple[int, Reply]]:
        for number in window:
            if self._connection.sock is None:
                self._connection.connect()
            self._sent += 1
            self._connection.request("POST", "/send", self.message(number))
            response = self._connection.getresponse()
            yield number, _reply(response.status, response.headers, response.read())

    def close(self) -> None:
        self._connection.close()


class _Answers(BufferedReader):
    """The answers on one connection, one behind the other: :mod:`http.client` opens a file for each, and closes it."""

    def makefile(self, mode: str) -> "_Answers":
        return self

    def close(self) -> None:
        """The next answer is still to be read; the socket's owner closes it."""


class PipeliningSender(Sender):
    """Several requests before the first is answered (RFC 9112, section 9.3.2)."""

    ahead_max = PIPELINE_MAX

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._connection: tuple[socket, SocketIO, _Answers] | None = None

    def exchange(self, window: Sequence[int]) -> Iterator[tuple[int, Reply]]:
        if self._connection is None:
            opened = create_connection(split_address(self._address), timeout=ANSWER_S_MAX)
            raw = opened.makefile("rb", buffering=0)
            self._connection = opened, raw, _Answers(raw)
        to_node, _, answers = self._connection
        self._sent = len(window)
        to_node.sendall(b"".join(map(self._request, window)))
        for number in window:
            response = http.client.HTTPResponse(cast(socket, answers), method="POST")
            response.begin()
            yield number, _reply(response.status, response.headers, response.read())

    def close(self) -> None:
        if self._connection is not None:
            opened, raw, _ = self._connection
            raw.close()
            opened.close()
        self._connection = None

    def _request(self, number: int) -> bytes:
        body = self.message(number)
        head = f"POST /send HTTP/1.1\r\nHost: {self._address}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode("ascii") + body


class StreamingSender(PlainSender):
    """NDJSON both ways: a line a message, a line a result."""

    ahead_max = STREAM_LINES_MAX

    def exchange(self, window: Sequence[int]) -> Iterator[tuple[int, Reply]]:
        self._connection.putrequest("POST", "/send")
        self._connection.putheader("Content-Type", "application/x-ndjson")
        self._connection.putheader("Transfer-Encoding", "chunked")
        self._connection.endheaders()
        response: http.client.HTTPResponse | None = None
        for done, number in enumerate(window):
            self._flow.wait()
            ahead = window[self._sent : done + self._rng.randint(1, STREAM_AHEAD_MAX)]
            if ahead:
                self._sent += len(ahead)
                self._send_chunk(b"".join(self.message(each) + b"\n" for each in ahead))
            if response is None:
                response = self._connection.getresponse()
                if response.status != 200:
                    yield number, _reply(response.status, response.headers, response.read())
                    raise http.client.HTTPException("the stream was refused")
            yield number, self._result(response)
        self._send_chunk(b"")
        if response is not None and (rest := response.read()):
            self._failed(f"a stream went on after its last result: {rest[:100]!r}")

    def _send_chunk(self, data: bytes) -> None:
        """An empty one ends the body."""
        self._connection.send(b"%x\r\n%b\r\n" % (len(data), data))

    def _result(self, response: http.client.HTTPResponse) -> Reply:
        line = response.readline()
        if not line.endswith(b"\n"):
            raise http.client.IncompleteRead(line)
        said = json.loads(line)
        if said.get("status") == "failed":
            return Reply(int(said["code"]), said)
        return Reply(200 if said.get("status") == "delivered" else 202, said)


def _reply(code: int, headers: http.client.HTTPMessage, body: bytes) -> Reply:
    said = json.loads(body)
    retry_after = headers.get("Retry-After")
    return Reply(code, said if retry_after is None else {**said, "retry_after": retry_after})


def ask(address: str, path: str) -> tuple[int, dict[str, Any]]:
    """A `GET` of the node at HOST:PORT, over a connection of its own."""
    with closing(http.client.HTTPConnection(address, timeout=ANSWER_S_MAX)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
