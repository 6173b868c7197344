"""User nodes with many messages in the inbox already: their states, which are filled once and kept."""

import contextlib
import shutil
import sqlite3
from pathlib import Path
from typing import Final

from bench import retention
from bench.compiled import BINARIES
from bench.figures import say
from meshproto.errors import BadState
from meshproto.net.database_file import connect
from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION

STATES: Final = BINARIES / "inboxes"
"""A million messages take a quarter of a gigabyte; `make clean` removes them."""


def database(messages: int, kept: Path = STATES) -> Path:
    """The database of a node that has received so many, made when there is none."""
    path = kept / str(messages) / retention.DATABASE
    if not _fits(path, messages):
        say(f"{messages:,} messages are put into an inbox, once")
        shutil.rmtree(path.parent, ignore_errors=True)
        kept.mkdir(parents=True, exist_ok=True)
        retention.fill(path, messages)
    return path


def _fits(path: Path, messages: int) -> bool:
    if not path.exists():
        return False
    try:
        opened = connect(path, SCHEMA, SCHEMA_VERSION)
    except BadState as reason:
        say(f"filled anew: {reason.detail}")
        return False
    with contextlib.closing(opened) as connection:
        return bool(connection.execute("SELECT count(*) FROM inbox").fetchone()[0] == messages)


def copy(messages: int, state: Path, kept: Path = STATES) -> None:
    """Give a node that has not started yet such an inbox, of its own."""
    state.mkdir(mode=0o700, exist_ok=True)
    shutil.copyfile(database(messages, kept), state / retention.DATABASE)
    (state / retention.DATABASE).chmod(0o600)


def look_at_all(path: Path) -> int:
    """What SQLite itself takes to see whether the file is whole."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return len(connection.execute("PRAGMA quick_check").fetchall())
