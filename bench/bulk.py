"""How many messages a user's node sends in streams, each delivered: `python -m bench.bulk`.

`POST /send` as application/x-ndjson, over one connection and over four, to one recipient. The clock runs from the first
byte of the requests to the last result; each result says `delivered`, so all messages are on disk at both ends by then.
The sender keeps to one core; recipient, seed and client to the other. Beside it what the disk allows in the same
rounds: the same texts as rows of SQLite, a thousand a commit, by one process alone.
"""

import argparse
import http.client
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from bench import disk, figures
from bench.figures import Row, Sample, say
from bench.million import cpu_s, memory_bytes
from bench.sends import RECIPIENT, SENDER, Pair
from meshproto.cli.processes import Failed
from meshproto.wire import split_address

MESSAGES: Final = 20_000
MESSAGES_QUICK: Final = 200
CONNECTIONS: Final = (1, 4)
TEXT_CHARS: Final = 256
READ_BYTES: Final = 64 * 1024
ANSWER_S_MAX: Final = 60.0
DELIVERED: Final = b'"status":"delivered"'
OURS: Final = "a message of a stream, delivered"
ROWS: Final = "a row of SQLite, a thousand a commit"


def main(arguments: list[str] | None = None) -> int:
    options = figures.parse(parser(), arguments)
    messages = options.messages or (MESSAGES_QUICK if options.quick else MESSAGES)
    before = figures.machine()
    with (
        tempfile.TemporaryDirectory(prefix="mesh-bulk-", dir=options.directory, ignore_cleanup_errors=True) as made,
        ExitStack() as stack,
    ):
        rows = list(measure(Pair(stack, Path(made)), Path(made), messages, options.rounds, options.seconds))
    return figures.tell("bulk", before, options, rows)


def parser() -> argparse.ArgumentParser:
    options = figures.parser("bench.bulk", __doc__, 1.0)
    options.add_argument("--messages", type=int, help=f"in each measurement ({MESSAGES:,})")
    options.add_argument("--directory", type=Path, metavar="DIR", help="on the disk to measure")
    return options


def measure(pair: Pair, directory: Path, messages: int, rounds: int, seconds: float) -> Iterator[Row]:
    send(pair.client.url, 1, 1)  # from here on they know each other
    for connections in CONNECTIONS:
        case = f"{connections} connection{'s' * (connections > 1)}"
        say(f"{messages:,} messages over {case}")
        entrants = {
            OURS: partial(_sent, pair, messages, connections),
            ROWS: partial(disk.rows, directory, seconds, TEXT_CHARS),
        }
        yield from figures.rows(case, figures.alternate(rounds, entrants), {ROWS})


def _sent(pair: Pair, messages: int, connections: int) -> Sample:
    pids = {"sender": pair.pids[0], "recipient": pair.pids[1], "seed": pair.pids[2]}
    cpu_before = {who: cpu_s(pid) for who, pid in pids.items()}
    own_before = time.process_time()
    delivered, took_s = send(pair.client.url, messages, connections)
    sample = {"per_s": delivered / took_s, "errors": float(messages - delivered)}
    for who, pid in pids.items():
        sample[f"{who}_us"] = 1e6 * (cpu_s(pid) - cpu_before[who]) / messages
    sample["load_us"] = 1e6 * (time.process_time() - own_before) / messages
    for who in ("sender", "recipient"):
        sample[f"{who}_mb"] = memory_bytes(pids[who])[1] / 1e6
    return sample


def send(url: str, messages: int, connections: int) -> tuple[int, float]:
    """How many were delivered, and in how many seconds."""
    share = messages // connections
    streams = [Stream(url, range(number * share, (number + 1) * share)) for number in range(connections)]
    began = time.perf_counter()
    for stream in streams:
        stream.start()
    for stream in streams:
        stream.join()
    if wrong := [stream.wrong for stream in streams if stream.wrong]:
        raise Failed(f"a stream of {SENDER}'s to {RECIPIENT}: {wrong[0]}")
    return sum(stream.delivered for stream in streams), time.perf_counter() - began


class Stream(threading.Thread):
    """One request: all its lines, which are there before, go out while its results come in."""

    def __init__(self, url: str, numbers: range) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection(*split_address(url.removeprefix("http://")), timeout=ANSWER_S_MAX)
        self._body = b"".join(line_of(number) for number in numbers)
        self.delivered = 0
        self.wrong = ""

    def run(self) -> None:
        try:
            with closing(self._connection):
                self._exchange()
        except (OSError, http.client.HTTPException) as reason:
            self.wrong = repr(reason)

    def _exchange(self) -> None:
        connection = self._connection
        connection.putrequest("POST", "/send")
        connection.putheader("Content-Type", "application/x-ndjson")
        connection.putheader("Content-Length", str(len(self._body)))
        connection.endheaders()
        sending = threading.Thread(target=connection.send, args=(self._body,), daemon=True)
        sending.start()
        response = connection.getresponse()
        rest = b""
        while piece := response.read1(READ_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            told = sum(DELIVERED in line for line in lines)
            if told < sum(map(bool, lines)) and not self.wrong:
                self.wrong = next(line for line in lines if line and DELIVERED not in line).decode()
            self.delivered += told
        sending.join()


def line_of(number: int) -> bytes:
    return msgspec.json.encode({"to": RECIPIENT, "message": f"{number:06}".ljust(TEXT_CHARS, ".")}) + b"\n"


if __name__ == "__main__":
    sys.exit(main())
