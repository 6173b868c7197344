"""What the disk allows: one durable commit of SQLite's after the other, and bare syncs. Each call is one measurement,
in a directory of the file system that is measured."""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import quantiles
from typing import Final

from bench.figures import Sample
from meshproto.net.database_file import connect

ROW_BYTES: Final = 256
ROWS_AT_ONCE: Final = 1000
PAGE_BYTES: Final = 4096
SCHEMA: Final = "CREATE TABLE rows (number INTEGER PRIMARY KEY, text BLOB NOT NULL)"


def commits(directory: Path, seconds: float) -> Sample:
    """A row, committed with synchronous=FULL and a WAL as all of meshproto's databases are, and then the next."""
    path = directory / "commits.db"
    with closing(connect(path, SCHEMA, 1)) as database:
        sample = _timed(seconds, lambda: _commit(database))
    for file in directory.glob("commits.db*"):
        file.unlink()
    return sample


def _commit(database: sqlite3.Connection) -> None:
    database.execute("INSERT INTO rows (text) VALUES (?)", (os.urandom(ROW_BYTES),))


def rows(directory: Path, seconds: float, text_chars: int) -> Sample:
    """Rows with such texts, a thousand in each commit."""
    path, texts = directory / "rows.db", [(b"." * text_chars,)] * ROWS_AT_ONCE
    with closing(connect(path, SCHEMA, 1)) as database:

        def write() -> None:
            database.execute("BEGIN")
            database.executemany("INSERT INTO rows (text) VALUES (?)", texts)
            database.execute("COMMIT")

        sample = _timed(seconds, write)
    for file in directory.glob("rows.db*"):
        file.unlink()
    return {"per_s": sample["per_s"] * ROWS_AT_ONCE, "server_us": sample["server_us"] / ROWS_AT_ONCE}


def syncs(directory: Path, seconds: float) -> Sample:
    """A page, appended to a file and synced, and then the next."""
    path, page = directory / "syncs", os.urandom(PAGE_BYTES)
    with path.open("wb", buffering=0) as file:

        def append() -> None:
            file.write(page)
            os.fdatasync(file.fileno())

        sample = _timed(seconds, append)
    path.unlink()
    return sample


def _timed(seconds: float, work: Callable[[], None]) -> Sample:
    took: list[float] = []
    began, cpu_began = time.perf_counter(), time.process_time()
    end = began
    while end < began + seconds or len(took) < 2:
        start = end
        work()
        end = time.perf_counter()
        took.append(end - start)
    cuts = quantiles(took, n=100)
    return {
        "per_s": len(took) / (end - began),
        "p50_us": 1e6 * cuts[49],
        "p99_us": 1e6 * cuts[98],
        "server_us": 1e6 * (time.process_time() - cpu_began) / len(took),
    }
