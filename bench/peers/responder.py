"""Who answers NATS requests for names: `python -m bench.peers.responder PORT NAMES`.

A dict, a blocking socket and one pattern: what a program in Python can do at best. A client library costs more.
"""

import re
import sys
from typing import Final

from bench.peers.contest import value
from bench.peers.exchange import RECEIVE_BYTES
from bench.peers.nats import dial

_REQUEST: Final = re.compile(rb"MSG where\.(\S+) 1 (\S+) 0\r\n\r\n")


def main(port: int, names: int) -> None:
    answers = {f"user{number:07}".encode(): b"%d\r\n%b\r\n" % (len(value()), value()) for number in range(names)}
    with dial(port) as connection:
        connection.settimeout(None)
        connection.sendall(b"SUB where.* 1\r\n")
        rest = b""
        while data := connection.recv(RECEIVE_BYTES):
            rest += data
            end, said = 0, []
            for request in _REQUEST.finditer(rest):
                said.append(b"PUB %b %b" % (request[2], answers[request[1]]))
                end = request.end()
            rest = rest[end:]
            if rest.startswith(b"PING\r\n"):
                rest = rest[6:]
                said.append(b"PONG\r\n")
            connection.sendall(b"".join(said))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
