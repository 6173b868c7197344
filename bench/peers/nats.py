"""NATS: request/reply and its key-value store for lookups, JetStream for messages.

The server is the one of the Python package index (see requirements.txt), because Debian's is too old to sync each
message; where that cannot be installed it is Debian's.
"""

import contextlib
import json
import re
import shutil
import socket
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from bench.figures import Sample
from bench.peers.contest import (
    EACH_SYNCED,
    LOOKUPS,
    MESSAGES,
    VALUE_BYTES,
    Load,
    Peer,
    Setting,
    shuffled,
    value,
    version_of,
)
from bench.peers.exchange import RECEIVE_BYTES, Exchange, connect, message, read_until
from bench.peers.machine import START_S_MAX, Servers, Unavailable, free_port
from meshproto.cli.processes import Child, Failed, until

CONNECT: Final = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\nPING\r\n'
_HEAD: Final = re.compile(rb"(?:H?MSG [^\r]* (\d+)|PING|PONG|\+OK|-ERR [^\r]*)\r\n")
SUBJECT: Final = "box.UserX"
STREAM: Final = "BOX"
BUCKET: Final = "NAMES"
DELIVERED_TO: Final = "read.UserX"
UNACKNOWLEDGED_MAX: Final = 20_000
"""More than ever is under way: the default of 1000 would slow it down."""
FILL_AT_A_TIME: Final = 1000


def start(servers: Servers, binary: Path, name: str, jetstream: str | None) -> tuple[int, Child]:
    """`jetstream`: the options of the block of that name; without any there is none."""
    port, place = free_port(), servers.place(name)
    text = f"listen: 127.0.0.1:{port}\nmax_payload: 1MB\n"
    if jetstream is not None:
        text += f'jetstream {{ store_dir: "{place}"\n{jetstream} }}\n'
    file = place / "nats.conf"
    file.write_text(text, encoding="utf-8")
    return port, servers.serve(name, port, binary, "--config", file)


def dial(port: int) -> socket.socket:
    connection = connect(port)
    read_until(connection, b"\r\n")
    connection.sendall(CONNECT)
    read_until(connection, b"PONG\r\n")
    return connection


def ask(port: int, subject: str, question: dict[str, Any]) -> dict[str, Any]:
    """A request of the JetStream API."""
    body = json.dumps(question).encode()
    with dial(port) as connection:
        connection.sendall(b"SUB answer 1\r\nPUB %b answer %d\r\n%b\r\n" % (subject.encode(), len(body), body))
        answer: dict[str, Any] = json.loads(read_until(connection, b"}\r\n").split(b"\r\n", 1)[1])
    if "error" in answer:
        raise Failed(f"{subject} was answered {answer['error']}")
    return answer


class Stream:
    """What a connection of NATS says, message by message: its head, and its payload with its headers."""

    def __init__(self) -> None:
        self._rest = b""

    def messages(self, data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Whole ones, and what has to be written in return."""
        data = self._rest + data
        at, found, answer = 0, [], b""
        while head := _HEAD.match(data, at):
            if head[1]:
                end = head.end() + int(head[1]) + 2
                if end > len(data):
                    break
                found.append((head[0], data[head.end() : end - 2]))
                at = end
            else:
                if head[0].startswith(b"-ERR"):
                    raise Failed(f"NATS said {head[0]!r}")
                answer += b"PONG\r\n" if head[0] == b"PING\r\n" else b""
                at = head.end()
        self._rest = data[at:]
        return found, answer


class Request:
    """Requests with a subject of their own to answer to; the number is the subject's end."""

    def __init__(self, link: int) -> None:
        self._stream = Stream()
        self._inbox = b"_INBOX.%d." % link

    def subscription(self) -> bytes:
        return b"SUB %b* 1\r\n" % self._inbox

    def send(self, numbers: Sequence[int]) -> bytes:
        return b"".join(map(self.one, numbers))

    def one(self, number: int) -> bytes:
        raise NotImplementedError

    def check(self, payload: bytes) -> None:
        raise NotImplementedError

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        messages, answer = self._stream.messages(data)
        numbers = []
        for head, payload in messages:
            self.check(payload)
            numbers.append(int(head.split(b" ", 2)[1].rpartition(b".")[2]))
        return numbers, answer


class Lookup(Request):
    """Asks for one name after another. `ask`: the subject, with a place for the name."""

    def __init__(self, link: int, names: Sequence[bytes], ask_for: bytes, expected: bytes) -> None:
        super().__init__(link)
        self._names = names
        self._first = link * 7919  # each link begins elsewhere
        self._ask_for = ask_for
        self._expected = expected

    def one(self, number: int) -> bytes:
        name = self._names[(self._first + number) % len(self._names)]
        return b"PUB %b %b%d 0\r\n\r\n" % (self._ask_for % name, self._inbox, number)

    def check(self, payload: bytes) -> None:
        if self._expected not in payload:
            raise Failed(f"a lookup was answered {payload[:200]!r}")


class Publish(Request):
    """Sends to the stream, which answers when it has the message."""

    def one(self, number: int) -> bytes:
        text = message(number)
        return b"PUB %b %b%d %d\r\n%b\r\n" % (SUBJECT.encode(), self._inbox, number, len(text), text)

    def check(self, payload: bytes) -> None:
        if b'"seq"' not in payload:
            raise Failed(f"a message was answered {payload!r}")


class Consume:
    """The reader: acknowledges each."""

    def __init__(self) -> None:
        self._stream = Stream()

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        messages, answer = self._stream.messages(data)
        numbers = [int(payload[:12]) for _, payload in messages]
        return numbers, answer + b"".join(b"PUB %b 0\r\n\r\n" % head.split(b" ")[3] for head, _ in messages)


# -- what is measured ---------------------------------------------------------------------------------------------


class Nats(Peer):
    """Where its program is, and its version."""

    key = "nats"
    packages = ("nats-server",)

    def _launch(self, setting: Setting, name: str, jetstream: str | None = None) -> None:
        own = setting.programs / "bin" / "nats-server"
        binary = own if own.exists() else Path(shutil.which("nats-server") or "nats-server")
        self.version = version_of(binary, "--version")
        self.port, child = start(setting.servers, binary, name, jetstream)
        self._roots = (child.process.pid,)

    def _exchange(self, ends: Sequence[Request], reader: Consume | None = None) -> Exchange:
        senders = []
        for end in ends:
            connection = dial(self.port)
            connection.sendall(end.subscription())
            senders.append((connection, end))
        if reader is None:
            return Exchange(senders)
        listening = dial(self.port)
        listening.sendall(b"SUB %b 1\r\n" % DELIVERED_TO.encode())
        return Exchange(senders, (listening, reader))


class _Lookups(Nats):
    work = "lookup"
    loads = LOOKUPS
    ask_for: bytes
    _names: list[bytes]

    def measure(self, load: Load, seconds: float) -> Sample:
        ends = [Lookup(number, self._names, self.ask_for, value()) for number in range(load.connections)]
        return self._exchange(ends).run(load.in_flight, seconds, self.usage)


class RequestReply(_Lookups):
    """A responder that has the names in a dict answers through the server: two programs, both counted."""

    title = "NATS request/reply, a responder in Python"
    acknowledged = "from the responder's memory"
    ask_for = b"where.%b"

    def start(self, setting: Setting) -> None:
        self._launch(setting, "nats-requests")
        words = (sys.executable, "-m", "bench.peers.responder", str(self.port), str(setting.names))
        child = setting.servers.run("nats-responder", *words)
        self._roots += (child.process.pid,)
        self._names = [setting.name(number).encode() for number in shuffled(setting.names)]
        until(self._answers, "the responder answers", START_S_MAX)

    def _answers(self) -> bool | None:
        with dial(self.port) as connection:
            connection.sendall(b"SUB answer 1\r\nPUB where.%b answer 0\r\n\r\n" % self._names[0])
            stream = Stream()
            while not (messages := stream.messages(connection.recv(RECEIVE_BYTES))[0]):
                pass
        return messages[0][1] == value() or None  # else it is the server, which says that nobody answers


class KeyValue(_Lookups):
    """The server answers by itself, from a stream in memory: NATS' own way to look something up."""

    title = "NATS key-value store, in memory, direct get"
    acknowledged = "from the server's memory"
    ask_for = f"$JS.API.DIRECT.GET.KV_{BUCKET}.$KV.{BUCKET}.".encode() + b"%b"

    def start(self, setting: Setting) -> None:
        self._launch(setting, "nats-kv", "max_memory_store: 8GB")
        bucket = {
            "name": f"KV_{BUCKET}",
            "subjects": [f"$KV.{BUCKET}.>"],
            "storage": "memory",
            "max_msgs_per_subject": 1,
            "allow_direct": True,
            "discard": "new",
        }
        ask(self.port, f"$JS.API.STREAM.CREATE.KV_{BUCKET}", bucket)
        self._names = [setting.name(number).encode() for number in shuffled(setting.names)]
        with dial(self.port) as connection:
            connection.sendall(b"SUB done 1\r\n")
            for at in range(0, len(self._names), FILL_AT_A_TIME):
                self._fill(connection, self._names[at : at + FILL_AT_A_TIME])

    @staticmethod
    def _fill(connection: socket.socket, names: Sequence[bytes]) -> None:
        subject = f"$KV.{BUCKET}.".encode()
        put = (b"PUB %b%b done %d\r\n%b\r\n" % (subject, name, VALUE_BYTES, value()) for name in names)
        connection.sendall(b"".join(put))
        stream, stored = Stream(), 0
        while stored < len(names):
            for _, payload in stream.messages(connection.recv(RECEIVE_BYTES))[0]:
                if b'"seq"' not in payload:
                    raise Failed(f"a name was answered {payload!r}")
                stored += 1


class JetStream(Nats):
    """A stream in files with one durable consumer that acknowledges each message."""

    work = "message"
    loads = EACH_SYNCED
    durable = True
    title = "NATS JetStream, file, `sync_interval: always`"
    acknowledged = "fsynced"
    _sync = "sync_interval: always"

    def start(self, setting: Setting) -> None:
        if not (setting.programs / "bin" / "nats-server").exists() and self._sync:
            raise Unavailable("Debian's nats-server cannot sync each message, and the newer one could not be installed")
        self._launch(setting, f"nats-{'sync' if self._sync else 'lazy'}", self._sync)

    def measure(self, load: Load, seconds: float) -> Sample:
        with contextlib.suppress(Failed):  # there is none yet
            ask(self.port, f"$JS.API.STREAM.DELETE.{STREAM}", {})
        stream = {"name": STREAM, "subjects": ["box.>"], "storage": "file", "retention": "limits"}
        ask(self.port, f"$JS.API.STREAM.CREATE.{STREAM}", stream)
        consumer = {
            "durable_name": "reader",
            "deliver_subject": DELIVERED_TO,
            "ack_policy": "explicit",
            "max_ack_pending": UNACKNOWLEDGED_MAX,
        }
        subject = f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.reader"
        ask(self.port, subject, {"stream_name": STREAM, "config": consumer})
        ends = [Publish(number) for number in range(load.connections)]
        return self._exchange(ends, Consume()).run(load.in_flight, seconds, self.usage)


class LazyJetStream(JetStream):
    """The same as it comes: synced every two minutes."""

    title = "NATS JetStream, file, default"
    acknowledged = "in the page cache; synced every 2 minutes"
    durable = False
    loads = MESSAGES
    _sync = ""
