"""A hundred thousand messages for someone who is away, and what others notice of it: `python -m bench.backlog`.

A seed and four users' nodes, as real processes. Anna writes to Dora, who is away, in one stream, and then Dora returns.
Before, meanwhile and while all is delivered, Anna writes to Emil, one message after the other, and so does Bert, who
has nothing else to do: his figures stand for what the machine allows at that moment, and Anna's beside them for what
the backlog costs. The two take turns.
"""

import argparse
import http.client
import itertools
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import msgspec

from bench.million import Measured, cpu_s, memory_bytes, table
from meshproto.cli.processes import Child, Children, Failed, until
from meshproto.client.node import Node as Client
from meshproto.core.inbox import PAGE_MESSAGES_MAX
from meshproto.core.outbox import RECIPIENT_MESSAGES_MAX
from meshproto.wire import split_address

SEED: Final = "seedX"
SENDER: Final = "Anna"
ANOTHER_SENDER: Final = "Bert"
RECIPIENT: Final = "Dora"
OTHER: Final = "Emil"
USERS: Final = (SENDER, ANOTHER_SENDER, RECIPIENT, OTHER)
SENDS: Final = 1000
"""To the other, before and while all those wait."""
GREETING: Final = "Hello"
"""What the one who will be away has had before."""
TURN_SENDS: Final = 20
"""In a row by one of the two."""
TEXT_CHARS: Final = 100
PIECE_LINES: Final = 100
SAMPLE_S: Final = 0.05
REGISTERED_S_MAX: Final = 60.0
DRAIN_S_MAX: Final = 900.0
ANSWER_S_MAX: Final = 60.0


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    began, load_before = time.monotonic(), os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory(prefix="mesh-backlog-", dir=options.state, ignore_cleanup_errors=True) as directory,
        Children(Path(directory)) as children,
    ):
        try:
            rows = list(Bench(children, options.messages, options.sends).rows())
        except Failed:
            for child in children.all.values():
                _say(f"--- the end of {child.name}'s log\n{child.last_words()}")
            raise
    rows.append(Measured("load of the machine before", load_before, limit=True))
    rows.append(Measured("load of the machine afterwards, with this", os.getloadavg()[0], limit=True))
    print(f"{options.messages:,} messages, {os.cpu_count()} cores, in {time.monotonic() - began:.0f} s\n")
    print(table(rows))
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)) + b"\n")
    return 1 if any(row.missed for row in rows) else 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.backlog", description=__doc__)
    most = RECIPIENT_MESSAGES_MAX
    options.add_argument("--messages", type=int, default=most, help="for the one who is away, at most %(default)d")
    options.add_argument("--sends", type=int, default=SENDS, help="to the other, in each part (%(default)d)")
    options.add_argument("--state", type=Path, metavar="DIR", help="where the run's own directory is made")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    return options


def _say(text: str) -> None:
    """What goes on, for whoever waits; the table alone goes to stdout."""
    print(text, file=sys.stderr, flush=True)


def text_of(number: int) -> str:
    return f"{number:06}".ljust(TEXT_CHARS, ".")


# -- the course of it ---------------------------------------------------------------------------------------------


class Bench:
    """One run."""

    def __init__(self, children: Children, messages: int, sends: int) -> None:
        self._children = children
        self._messages = messages
        self._sends = sends
        self._clients: dict[str, Client] = {}
        self._seed = ""

    def rows(self) -> Iterator[Measured]:
        """Raises :class:`Failed` when it cannot go on."""
        self._seed = self._children.start("meshseed", SEED)
        for name in USERS:
            self._start(name)
        with closing(Writer(self._address(SENDER))) as anna, closing(Writer(self._address(ANOTHER_SENDER))) as bert:
            for writer in (anna, bert):
                writer.send(OTHER)  # from here on they know the way
            anna.send(RECIPIENT, GREETING)
            writers = {SENDER: anna, ANOTHER_SENDER: bert}
            yield from figures("before", self._others(writers, self._so_many()))
            yield from self._store()
            yield from figures("while they wait", self._others(writers, self._so_many()))
            yield from self._return(writers)

    def _start(self, name: str) -> None:
        address = self._children.start("meshuser", name, "--seed", self._seed)
        client = self._clients[name] = Client(address)
        until(lambda: client.status().document["registered"] or None, f"{name} is registered", REGISTERED_S_MAX)

    def _address(self, name: str) -> str:
        return self._clients[name].url.removeprefix("http://")

    def _pid(self, name: str) -> int:
        return self._children.all[name].process.pid

    def _store(self) -> Iterator[Measured]:
        """The recipient dies, and all is written to them."""
        gone = self._children.all[RECIPIENT].process
        gone.kill()
        gone.wait()
        _say(f"{RECIPIENT} is away")
        pid = self._pid(SENDER)
        yield Measured(f"memory of {SENDER} before", memory_bytes(pid)[0] / 1e6, "MB")
        with Watch(pid) as watch:
            refused = sum(
                result["status"] == "failed" for result in self._clients[SENDER].send_lines(Lines(self._messages))
            )
        yield Measured("until all had been taken", watch.took_s, "s")
        yield Measured("messages taken a second", self._messages / watch.took_s)
        yield Measured(f"of a core, by {SENDER}, for each that was taken", watch.cpu_s / self._messages * 1e6, "us")
        yield Measured("refused", refused, target=0)
        yield Measured(f"memory of {SENDER} while it takes them, at most", watch.most_bytes / 1e6, "MB")
        yield Measured(f"memory of {SENDER} with all of them", memory_bytes(pid)[0] / 1e6, "MB")

    def _return(self, writers: "Writers") -> Iterator[Measured]:
        """The recipient is there again, and gets it all."""
        started = time.time()
        child = self._children.launch("meshuser", RECIPIENT, "--seed", self._seed)
        with Watch(self._pid(SENDER)) as sending, Watch(child.process.pid) as receiving:
            progress = Progress(child, self._clients[SENDER])
            others = self._others(writers, progress.over)
        self._clients[RECIPIENT] = Client(progress.address)
        got = [one for one in self._received() if one.text != GREETING]
        if not got:
            raise Failed("nothing was delivered")
        first, last = got[0].at_ms / 1000, got[-1].at_ms / 1000
        start = f"from {RECIPIENT}'s start until"
        yield Measured(f"{start} it listens", progress.listens - started, "s")
        yield Measured(f"{start} it is registered", progress.registered - started, "s")
        yield Measured(f"{start} the first is delivered", first - started, "s")
        yield Measured(f"{start} the last is delivered", last - started, "s")
        yield Measured("from its registration until the last is delivered", last - progress.registered, "s")
        yield Measured("messages delivered a second", len(got) / max(0.001, last - first))
        for name, watch in ((SENDER, sending), (RECIPIENT, receiving)):
            yield Measured(
                f"of a core, by {name}, for each that was delivered", watch.cpu_s / self._messages * 1e6, "us"
            )
            yield Measured(f"memory of {name} while they are delivered, at most", watch.most_bytes / 1e6, "MB")
        yield from figures("while they are delivered", [one for one in others if first <= one.at_s <= last])
        wrong = verdict([one.text for one in got], self._messages)
        for what, number in wrong._asdict().items():
            yield Measured(what.replace("_", " "), number, target=0)

    def _others(self, writers: "Writers", over: Callable[[], bool]) -> list["Sent"]:
        """What both write to the other, in turns, until it is `over`."""
        sent: list[Sent] = []
        while True:
            for name, writer in writers.items():
                for _ in range(TURN_SENDS):
                    at_s = time.time()
                    sent.append(Sent(name, at_s, writer.send(OTHER) * 1000))
                    if over():
                        return sent

    def _so_many(self) -> Callable[[], bool]:
        """Over when each of the two has sent as many as were asked for, in whole turns."""
        turns = 2 * math.ceil(self._sends / TURN_SENDS)
        left = itertools.count(turns * TURN_SENDS - 1, -1)
        return lambda: next(left) <= 0

    def _received(self) -> Iterator["Got"]:
        client, after = self._clients[RECIPIENT], 0
        while messages := (page := client.inbox(after=after, limit=PAGE_MESSAGES_MAX).document)["messages"]:
            for one in messages:
                yield Got(one["message"], one["received_at"])
            after = page["next"]


class Sent(NamedTuple):
    """A message to the other: by whom, when (seconds since 1970 UTC), and how long it took."""

    by: str
    at_s: float
    took_ms: float


def figures(when: str, sent: Sequence[Sent]) -> Iterator[Measured]:
    """Of who has the backlog, and of who has none."""
    for name, by in ((SENDER, SENDER), (ANOTHER_SENDER, f"{ANOTHER_SENDER}, who has no backlog")):
        took_ms = [one.took_ms for one in sent if one.by == name]
        limit = name != SENDER
        yield Measured(f"{when}, to {OTHER} by {by}: messages", len(took_ms), limit=limit)
        if took_ms:
            for percent in (50, 99):
                yield Measured(
                    f"{when}, to {OTHER} by {by}: p{percent}", percentile(took_ms, percent), "ms", limit=limit
                )


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


class Verdict(NamedTuple):
    """How many of the messages something is wrong with."""

    lost: int
    doubled: int
    out_of_order: int
    not_sent: int


def verdict(got: Sequence[Any], messages: int) -> Verdict:
    """`got`: the texts in the order of the inbox."""
    sent = {text_of(number): number for number in range(messages)}
    first = list(dict.fromkeys(got))
    numbers = [sent[text] for text in first if text in sent]
    unordered = sum(later < earlier for earlier, later in itertools.pairwise(numbers))
    return Verdict(messages - len(numbers), len(got) - len(first), unordered, len(first) - len(numbers))


class Got(NamedTuple):
    """A message in the inbox; `at_ms` since 1970 UTC."""

    text: Any
    at_ms: int


# -- who writes, and who watches ----------------------------------------------------------------------------------


class Writer:
    """Sends one message after the other, over one connection to a node."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(*split_address(address), timeout=ANSWER_S_MAX)

    def send(self, to: str, text: str = "x" * TEXT_CHARS) -> float:
        """How many seconds it takes to be delivered."""
        body = json.dumps({"to": to, "message": text})
        began = time.perf_counter()
        self._connection.request("POST", "/send", body)
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        took_s = time.perf_counter() - began
        if answer.get("status") != "delivered":
            raise Failed(f"a message to {to} was answered {response.status} {answer}")
        return took_s

    def close(self) -> None:
        self._connection.close()


Writers = dict[str, Writer]


class Lines:
    """The recipient's messages, as :meth:`meshproto.client.node.Node.send_lines` wants them."""

    def __init__(self, messages: int) -> None:
        self._left = iter(range(messages))
        self._next = next(self._left, None)

    waiting = True

    @property
    def ended(self) -> bool:
        return self._next is None

    def next_bytes(self) -> bytes:
        lines: list[str] = []
        while self._next is not None and len(lines) < PIECE_LINES:
            lines.append(json.dumps({"to": RECIPIENT, "message": text_of(self._next), "wait": 0}) + "\n")
            self._next = next(self._left, None)
        return "".join(lines).encode()

    def waits_on(self) -> int | None:
        """Nothing has to be waited for: all is there."""
        return None


class Progress:
    """How far the recipient's return has come: when it listened, and when it was registered, in seconds since 1970."""

    def __init__(self, recipient: Child, sender: Client) -> None:
        self._recipient = recipient
        self._sender = sender
        self._client: Client | None = None
        self._looked_at = time.monotonic()
        self._until = self._looked_at + DRAIN_S_MAX
        self.address = ""
        self.listens = self.registered = 0.0

    def over(self) -> bool:
        """Whether all is delivered. Asks the nodes every now and then only."""
        now = time.monotonic()
        if now > self._until:
            raise Failed(f"it is not delivered after {DRAIN_S_MAX:g} s")
        if now < self._looked_at + SAMPLE_S:
            return False
        self._looked_at = now
        if self._client is None:
            if address := self._recipient.address():
                self.address, self.listens = address, time.time()
                self._client = Client(address)
        elif not self.registered:
            if self._client.status().document["registered"]:
                self.registered = time.time()
        else:
            return not self._sender.status().document["outbox"]["waiting"]
        return False


class Watch(threading.Thread):
    """What a process takes while the block runs: its memory at most, and of the cores. `took_s`: how long that was."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._over = threading.Event()
        self.most_bytes = 0
        self.cpu_s = self.took_s = 0.0
        self.began = time.monotonic()

    def __enter__(self) -> Self:
        self.cpu_s = -cpu_s(self._pid)
        self.began = time.monotonic()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.took_s = time.monotonic() - self.began
        self._over.set()
        self.join()
        self.cpu_s += cpu_s(self._pid)

    def run(self) -> None:
        while not self._over.is_set():
            self.most_bytes = max(self.most_bytes, memory_bytes(self._pid)[0])
            self._over.wait(SAMPLE_S)


if __name__ == "__main__":
    sys.exit(main())
