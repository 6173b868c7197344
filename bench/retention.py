"""An inbox that is too full, and what others notice while it is emptied: `python -m bench.retention`.

A seed and three users' nodes, as real processes. Anna and Bert each find a few hundred thousand messages in their
inbox; Anna is to keep few of them, Bert all. Both write to Emil, one message after the other, in turns: before Anna's
node begins to delete, while it deletes, and while it gives the space back. Bert's figures stand for what the machine
allows at that moment.
"""

import argparse
import itertools
import os
import random
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec
from msgspec import Raw
from twisted.internet.task import Clock

from bench.backlog import REGISTERED_S_MAX, TURN_SENDS, Sent, Watch, Writer, percentile
from bench.million import Measured, table
from meshproto.cli.processes import Children, Failed, until
from meshproto.client.node import Node as Client
from meshproto.core.envelope import Letter
from meshproto.core.identity import Identity, Record, verify
from meshproto.net.database_file import connect
from meshproto.net.store import SQLiteDatabase
from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION, UserStore
from meshproto.wire import SignedRecord

SEED: Final = "seedX"
DELETES: Final = "Anna"
KEEPS: Final = "Bert"
OTHER: Final = "Emil"
MESSAGES: Final = 300_000
KEPT: Final = 1000
TEXT_CHARS: Final = 100
SENDERS: Final = 20
"""Whose messages fill an inbox, in batches that take turns."""
BATCH: Final = 1000
SECONDS: Final = 5.0
"""How long both write once all is over."""
SAMPLE_S: Final = 0.05
OVER_S_MAX: Final = 900.0
DATABASE: Final = "user.db"
PHASES: Final = ("before", "while it deletes", "while the file shrinks", "afterwards")


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    began, load_before = time.monotonic(), os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory(prefix="mesh-retention-", dir=options.state, ignore_cleanup_errors=True) as made,
        Children(Path(made)) as children,
    ):
        try:
            rows = list(Bench(children, Path(made), options.messages, options.kept, options.seconds).rows())
        except Failed:
            for child in children.all.values():
                print(f"--- the end of {child.name}'s log\n{child.last_words()}", file=sys.stderr)
            raise
    rows.append(Measured("load of the machine before", load_before, limit=True))
    rows.append(Measured("load of the machine afterwards, with this", os.getloadavg()[0], limit=True))
    print(f"{options.messages:,} messages, {os.cpu_count()} cores, in {time.monotonic() - began:.0f} s\n")
    print(table(rows))
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)) + b"\n")
    return 1 if any(row.missed for row in rows) else 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.retention", description=__doc__)
    options.add_argument("--messages", type=int, default=MESSAGES, help="in each inbox (%(default)d)")
    options.add_argument("--kept", type=int, default=KEPT, help="that Anna's node is to keep (%(default)d)")
    options.add_argument("--seconds", type=float, default=SECONDS, help="how long both write afterwards (%(default)g)")
    options.add_argument("--state", type=Path, metavar="DIR", help="where the run's own directory is made")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    return options


class Bench:
    """One run."""

    def __init__(self, children: Children, directory: Path, messages: int, kept: int, seconds: float) -> None:
        self._children = children
        self._directory = directory
        self._messages = messages
        self._kept = kept
        self._seconds = seconds

    def rows(self) -> Iterator[Measured]:
        """Raises :class:`Failed` when it cannot go on."""
        for name in (DELETES, KEEPS):
            fill(self._file(name), self._messages)
        seed = self._children.start("meshseed", SEED)
        self._start(OTHER, seed)
        addresses = {KEEPS: self._start(KEEPS, seed)}
        addresses[DELETES] = self._start(DELETES, seed, "--keep-messages", str(self._kept))
        anna, bert = (Writer(addresses[name]) for name in (DELETES, KEEPS))
        with (
            closing(anna),
            closing(bert),
            Watch(self._children.all[DELETES].process.pid) as watch,
            Progress(self._file(DELETES), self._messages - self._kept) as progress,
        ):
            sent = list(self._sent({DELETES: anna, KEEPS: bert}, progress))
        kept = Client(f"http://{addresses[DELETES]}").inbox(after=0, limit=1).document["messages"][0]["cursor"]
        yield Measured("messages that should be gone and are not", self._messages - self._kept + 1 - kept, target=0)
        deleting_s, shrinking_s = progress.deleted - progress.began, progress.over - progress.deleted
        yield Measured("until all were deleted", deleting_s, "s")
        yield Measured("messages deleted a second", (self._messages - self._kept) / max(SAMPLE_S, deleting_s))
        yield Measured("from then until the file had shrunk", shrinking_s, "s")
        yield from figures(sent, progress)
        yield Measured(f"memory of {DELETES} at most", watch.most_bytes / 1e6, "MB")
        yield Measured("the database before it deletes", progress.full_bytes / 1e6, "MB")
        yield Measured("the database once it has shrunk", progress.shrunk_bytes / 1e6, "MB")

    def _file(self, name: str) -> Path:
        return self._directory / name / DATABASE

    def _start(self, name: str, seed: str, *options: str) -> str:
        address = self._children.start("meshuser", name, "--seed", seed, *options)
        client = Client(address)
        until(lambda: client.status().document["registered"] or None, f"{name} is registered", REGISTERED_S_MAX)
        return client.url.removeprefix("http://")

    def _sent(self, writers: dict[str, Writer], progress: "Progress") -> Iterator[Sent]:
        """What both write, in turns, until all is over and for some seconds more."""
        give_up = time.time() + OVER_S_MAX
        for name in itertools.cycle(writers):
            for _ in range(TURN_SENDS):
                at_s = time.time()
                yield Sent(name, at_s, writers[name].send(OTHER) * 1000)
            if progress.over and time.time() > progress.over + self._seconds:
                return
            if time.time() > give_up:
                raise Failed(f"after {OVER_S_MAX:g} s it is not over")


def figures(sent: list[Sent], progress: "Progress") -> Iterator[Measured]:
    """Of who deletes, and of who does not."""
    marks = (0.0, progress.began, progress.deleted, progress.over, float("inf"))
    for phase, (first, last) in zip(PHASES, itertools.pairwise(marks), strict=True):
        for name in (DELETES, KEEPS):
            took_ms = [one.took_ms for one in sent if one.by == name and first <= one.at_s < last]
            limit = name == KEEPS
            yield Measured(f"{phase}, to {OTHER} by {name}: messages", len(took_ms), limit=limit)
            if took_ms:
                for what, percent in (("p50", 50), ("p99", 99), ("longest", 100)):
                    yield Measured(
                        f"{phase}, to {OTHER} by {name}: {what}", percentile(took_ms, percent), "ms", limit=limit
                    )


# -- what is in an inbox ------------------------------------------------------------------------------------------


def fill(path: Path, messages: int) -> None:
    """A user's database with so many messages, through the node's own tables."""
    path.parent.mkdir(mode=0o700)
    rng = random.Random(1)
    began_ms = int(time.time() * 1000)
    senders = [who(f"user{number}", rng, began_ms) for number in range(SENDERS)]
    clock = Clock()
    connection = connect(path, SCHEMA, SCHEMA_VERSION)
    connection.execute("PRAGMA synchronous=OFF")  # it is not there yet; how fast it comes is not measured
    inbox = UserStore(SQLiteDatabase(connection, clock)).inbox
    for first in range(0, messages, BATCH):
        # Ids as nodes give them: they rise with time.
        numbers = range(first, min(first + BATCH, messages))
        letters = [
            Letter(f"{began_ms + number:012x}{rng.randbytes(10).hex()}", Raw(text(number)), began_ms)
            for number in numbers
        ]
        inbox.receive(*senders[first // BATCH % SENDERS], letters, began_ms)
        clock.advance(0)
    connection.close()
    path.chmod(0o600)


def who(name: str, rng: random.Random, now_ms: int) -> tuple[Record, SignedRecord]:
    signed = Identity.create(rng.randbytes, now_ms).sign(name, ["http://192.0.2.7:3000"], now_ms)
    return verify(signed), signed


def text(number: int) -> bytes:
    return b'"' + f"{number:06}".ljust(TEXT_CHARS, ".").encode() + b'"'


class Seen(NamedTuple):
    """Of a database: its oldest message, pages that could be given back, and its size."""

    oldest: int
    free: int
    size_bytes: int


class Progress(threading.Thread):
    """How far the deleting has come, as another process sees it in the database: when it began, when the last message
    up to `last` was deleted, and when all space had been given back; seconds since 1970 UTC, 0 so far. `full_bytes`,
    `shrunk_bytes`: the database's size before anything was deleted, and when all space had been given back, each with
    what Anna has sent until then."""

    def __init__(self, path: Path, last: int) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._last = last
        self._left = threading.Event()
        self.began = self.deleted = self.over = 0.0
        self.full_bytes = self.shrunk_bytes = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self.join()

    def run(self) -> None:
        with closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True)) as connection:
            while not self._left.is_set() and not self.over:
                seen, now = look(connection), time.time()
                if seen.oldest <= 1:
                    self.full_bytes = seen.size_bytes
                elif not self.began:
                    self.began = now
                if not self.deleted and seen.oldest > self._last:
                    self.deleted = now
                if self.deleted and not seen.free:
                    self.over, self.shrunk_bytes = now, seen.size_bytes
                self._left.wait(SAMPLE_S)


def look(connection: sqlite3.Connection) -> Seen:
    pragmas = "pragma_freelist_count, pragma_page_count, pragma_page_size"
    statement = f"SELECT (SELECT min(cursor) FROM inbox), freelist_count, page_count * page_size FROM {pragmas}"
    oldest, free, size_bytes = connection.execute(statement).fetchone()
    return Seen(oldest or 0, free, size_bytes)


if __name__ == "__main__":
    sys.exit(main())
