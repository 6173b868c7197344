"""A copy of a state directory that is whole, made while the node runs.

The database is copied by SQLite's own means, as it was at one moment; then the keys, so that those of the copy are
never older than it. The copy is made beside its place, checked, and put there as a whole: what stands there is a
backup, or nothing does.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from meshproto.errors import BadState
from meshproto.net.database_file import BUSY_TIMEOUT_S, DAMAGE_SHOWN_MAX
from meshproto.net.state import KEY_FILE, REGISTER_TOKEN_FILE, TOKEN_FILE, read_secret

DATABASES: Final = ("user.db", "seed.db")
SECRETS: Final = (KEY_FILE, TOKEN_FILE, REGISTER_TOKEN_FILE)
PAGES: Final = 256
"""Copied at a time: a megabyte, so that the progress is seen."""

Progress = Callable[[int, int], None]
"""How much of it is done, of how much."""


def read_database(path: Path) -> sqlite3.Connection:
    """In a transaction that reads only: everything is as it was at one moment, whatever the node writes meanwhile.
    Raises :class:`BadState`."""
    if not path.exists():
        raise BadState(f"there is no {path}: give the node's state directory with --state")
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", timeout=BUSY_TIMEOUT_S, isolation_level=None, uri=True
        )
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        except sqlite3.Error:
            connection.close()
            raise
    except sqlite3.Error as reason:
        raise BadState(f"{path} cannot be read: {reason}") from None
    return connection


def findings(path: Path) -> list[str]:
    """What is wrong with a database; nothing, if it is whole. Raises :class:`BadState` when it cannot be read."""
    with closing(read_database(path)) as connection:
        try:
            found = [str(row[0]) for row in connection.execute(f"PRAGMA quick_check({DAMAGE_SHOWN_MAX})")]
        except sqlite3.DatabaseError as reason:
            return [str(reason)]
    return [] if found == ["ok"] else found


def back_up(state: Path, target: Path, progress: Progress) -> list[str]:
    """The names of the files in the backup. Raises :class:`BadState`; then there is none."""
    databases = [name for name in DATABASES if (state / name).exists()]
    if not databases:
        raise BadState(f"{state} is no node's state directory: give it with --state")
    target = target.absolute()  # "." has no name
    draft = target.parent / f".{target.name}.part"
    try:
        if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
            raise BadState(f"{target} is there already: name a directory that is not there, or an empty one")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700, parents=True)
        try:
            for name in databases:
                _copy_database(state / name, draft / name, progress)
            secrets = [name for name in SECRETS if (state / name).exists()]
            for name in secrets:
                _write(draft / name, read_secret(state / name))
            _sync(draft)
            draft.replace(target)
            _sync(target.parent)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    except OSError as reason:
        raise BadState(f"{target} cannot be written: {reason.strerror}") from None
    return [*databases, *secrets]


def _copy_database(source: Path, target: Path, progress: Progress) -> None:
    _write(target, b"")
    with closing(read_database(source)) as reading, closing(sqlite3.connect(target)) as writing:
        try:
            # Of a source in a transaction it is one moment that is copied, in however many steps.
            reading.backup(writing, pages=PAGES, progress=lambda _, left, pages: progress(pages - left, pages))
            writing.execute("PRAGMA journal_mode=DELETE")  # whole in one file, wherever it is carried
        except sqlite3.Error as reason:
            raise BadState(f"{source} cannot be copied: {reason}") from None
    wrong = findings(target)
    if wrong:
        raise BadState(f"the copy of {source} is damaged ({wrong[0]}), and so is what it was made of: see mesh doctor")
    handle = os.open(target, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, text: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(handle)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
