"""What Python allows a server of lookups, without Twisted and without any rule: it waits, reads, cuts the name out of
each line, takes what a dictionary has under it, and writes, in a single loop: `python -m bench.bare_lookup NAMES`.
Prints its port, and serves until it is killed."""

import gc
import select
import socket
import sys
from typing import Final

from bench import names

BEFORE_NAME: Final = b'"name":"'
READ_BYTES: Final = 64 * 1024
BACKLOG: Final = 1024


def main() -> None:
    answers = {name.lower(): text + b"\n" for name, text in names.pairs(int(sys.argv[1]))}
    gc.freeze()
    listening = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    print(listening.getsockname()[1], flush=True)
    serve(listening, answers)


def serve(listening: socket.socket, answers: dict[bytes, bytes]) -> None:
    waiting, connections = select.epoll(), {listening.fileno(): listening}
    unfinished: dict[int, bytes] = {}
    waiting.register(listening, select.EPOLLIN)
    while True:
        said: list[tuple[socket.socket, bytes]] = []
        for number, _ in waiting.poll():
            connection = connections[number]
            if connection is listening:
                newcomer, _ = listening.accept()
                connections[newcomer.fileno()] = newcomer
                waiting.register(newcomer, select.EPOLLIN)
            elif data := connection.recv(READ_BYTES):
                *lines, rest = (unfinished.pop(number, b"") + data).split(b"\n")
                if rest:
                    unfinished[number] = rest
                found = [answers[line[line.rindex(BEFORE_NAME) + len(BEFORE_NAME) : -3].lower()] for line in lines]
                said.append((connection, found[0] if len(found) == 1 else b"".join(found)))
            else:
                connections.pop(number).close()
        for connection, text in said:
            connection.sendall(text)


if __name__ == "__main__":
    main()
