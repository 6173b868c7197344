"""What Python, SQLite and the disk allow a message that is on disk at both ends, without Twisted, without a rule, a
seal or a signature: two loops that wait, read, commit what has come, and write. `python -m bench.bare_send DATABASE`
takes messages in; `python -m bench.bare_send DATABASE PORT` takes `POST /send`, and hands them on to the one at that
port in batches: what came while one was under way goes with the next. Prints its port, and serves until it is killed.
"""

import gc
import os
import select
import socket
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, Final

import msgspec

from meshproto.net.database_file import connect

READ_BYTES: Final = 256 * 1024
BACKLOG: Final = 1024
HEAD_END: Final = b"\r\n\r\n"
LENGTH: Final = b"ontent-Length: "
REQUEST: Final = b"POST /deliver HTTP/1.1\r\nHost: peer\r\nContent-Length: %d\r\n\r\n"
ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
SCHEMA: Final = (
    "CREATE TABLE messages (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, message BLOB NOT NULL, "
    "delivered INTEGER NOT NULL DEFAULT 0)"
)

Message = tuple[str, bytes]
"""Its id and its text."""


class Asked(msgspec.Struct):
    """The body of `POST /send`."""

    to: str
    message: msgspec.Raw


_asked: Final = msgspec.json.Decoder(Asked)
_batch: Final = msgspec.json.Decoder(list[tuple[str, msgspec.Raw]])


class Disk:
    """As a node has it: the sync is not in the commit, so that not every one needs it."""

    def __init__(self, path: Path) -> None:
        self._database = connect(path, SCHEMA, 1)
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._wal = os.open(f"{path}-wal", os.O_RDONLY)

    def keep(self, messages: list[Message]) -> None:
        self._write("INSERT INTO messages (id, message) VALUES (?,?)", messages)
        os.fdatasync(self._wal)

    def mark(self, messages: list[Message]) -> None:
        self._write("UPDATE messages SET delivered=1 WHERE id=?", [(id_,) for id_, _ in messages])

    def _write(self, sql: str, rows: list[Any]) -> None:
        database: sqlite3.Connection = self._database
        database.execute("BEGIN")
        database.executemany(sql, rows)
        database.execute("COMMIT")


class Loop:
    def __init__(self) -> None:
        self._waiting = select.epoll()
        self._connections: dict[int, socket.socket] = {}
        self._unfinished: dict[int, bytes] = {}
        self._answers: dict[int, Callable[[bytes], None]] = {}

    def add(self, connection: socket.socket, answered: Callable[[bytes], None] | None = None) -> None:
        """`answered`: what comes is an answer, for it."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[connection.fileno()] = connection
        if answered is not None:
            self._answers[connection.fileno()] = answered
        self._waiting.register(connection, select.EPOLLIN)

    def serve(self, listening: socket.socket, take: Callable[[list[tuple[socket.socket, bytes]]], None]) -> None:
        """`take`: gets the bodies that have come in one turn, each with whom to answer."""
        self._waiting.register(listening, select.EPOLLIN)
        while True:
            asked: list[tuple[socket.socket, bytes]] = []
            for number, _ in self._waiting.poll():
                if number == listening.fileno():
                    self.add(listening.accept()[0])
                elif (body := self._body(number)) is None:
                    continue
                elif number in self._answers:
                    self._answers[number](body)
                else:
                    asked.append((self._connections[number], body))
            if asked:
                take(asked)

    def _body(self, number: int) -> bytes | None:
        """Of the request or the answer that has come; None: it has not yet."""
        data = self._connections[number].recv(READ_BYTES)
        if not data:
            self._connections.pop(number).close()
            return None
        text = self._unfinished.pop(number, b"") + data
        head, end, body = text.partition(HEAD_END)
        length = int(head[head.index(LENGTH) + len(LENGTH) :].partition(b"\r")[0]) if end else 0
        if end and len(body) == length:
            return body
        self._unfinished[number] = text
        return None


class Recipient:
    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def take(self, asked: list[tuple[socket.socket, bytes]]) -> None:
        for connection, body in asked:
            messages = [(id_, bytes(text)) for id_, text in _batch.decode(body)]
            self._disk.keep(messages)
            connection.sendall(answer(msgspec.json.encode([id_ for id_, _ in messages])))


class Sender:
    def __init__(self, disk: Disk, loop: Loop, recipient: socket.socket) -> None:
        self._disk = disk
        self._recipient = recipient
        self._ids = count(int.from_bytes(os.urandom(6)) << 32)
        self._waiting: list[tuple[socket.socket, Message]] = []
        self._under_way: list[tuple[socket.socket, Message]] = []
        loop.add(recipient, self.answered)

    def take(self, asked: list[tuple[socket.socket, bytes]]) -> None:
        kept = [(whom, (f"{next(self._ids):032x}", bytes(_asked.decode(body).message))) for whom, body in asked]
        self._disk.keep([message for _, message in kept])
        self._waiting += kept
        self._hand_on()

    def answered(self, body: bytes) -> None:
        ended, self._under_way = self._under_way, []
        self._hand_on()
        taken = set(msgspec.json.decode(body))
        for whom, (id_, _) in ended:
            status = "delivered" if id_ in taken else "queued"
            whom.sendall(answer(msgspec.json.encode({"id": id_, "status": status})))
        self._disk.mark([message for _, message in ended])

    def _hand_on(self) -> None:
        if self._waiting and not self._under_way:
            self._under_way, self._waiting = self._waiting, []
            body = msgspec.json.encode([(id_, msgspec.Raw(text)) for _, (id_, text) in self._under_way])
            self._recipient.sendall(REQUEST % len(body) + body)


def answer(body: bytes) -> bytes:
    return ANSWER % len(body) + body


def main() -> None:
    disk = Disk(Path(sys.argv[1]))
    listening = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    loop = Loop()
    if len(sys.argv) == 2:
        take = Recipient(disk).take
    else:
        take = Sender(disk, loop, socket.create_connection(("127.0.0.1", int(sys.argv[2])))).take
    gc.freeze()
    print(listening.getsockname()[1], flush=True)
    with closing(listening):
        loop.serve(listening, take)


if __name__ == "__main__":
    main()
