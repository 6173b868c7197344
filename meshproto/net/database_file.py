"""Opening a database: what must hold before anything is written to it.

It is whole, nobody else has locked it, it can be written, and it has the layout that this version knows; else
:class:`BadState` says in one line what is wrong and what to do.
"""

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Final

from meshproto.errors import BadState

BUSY_TIMEOUT_S: Final = 2.0
"""How long another program may hold its lock before we say so: longer than a checkpoint, shorter than people wait."""
DAMAGE_SHOWN_MAX: Final = 1
"""What a damaged file is told by; one finding is enough, and looking for all takes long."""
DAMAGE_CHARS_MAX: Final = 200
READ_AHEAD_BYTES: Final = 1 << 20
NO_UPGRADES: Final[Mapping[int, str]] = MappingProxyType({})

_INCREMENTAL: Final = 2  # what `PRAGMA auto_vacuum` answers
PRIMARY: Final = 0xFF  # of SQLite's extended error codes
_FREE_SPACE: Final = "free space on its file system"
END_LOCK: Final = "end the program that has locked it (fuser shows which)"
_MAKE_WRITABLE: Final = "make the file and its file system writable"
_RESTORE: Final = "stop the node and restore a backup"
ADVICE: Final[Mapping[int, str]] = MappingProxyType(
    {
        sqlite3.SQLITE_FULL: _FREE_SPACE,
        sqlite3.SQLITE_IOERR: "look at its disk, and at the space and quota left",
        sqlite3.SQLITE_READONLY: _MAKE_WRITABLE,
        sqlite3.SQLITE_PERM: _MAKE_WRITABLE,
        sqlite3.SQLITE_BUSY: END_LOCK,
        sqlite3.SQLITE_LOCKED: END_LOCK,
        sqlite3.SQLITE_PROTOCOL: END_LOCK,
        sqlite3.SQLITE_CANTOPEN: "look at the directory's permissions, and at the limit on open files",
        sqlite3.SQLITE_CORRUPT: _RESTORE,
        sqlite3.SQLITE_NOTADB: _RESTORE,
    }
)
"""The errors that are of the disk, not of the job, and what is to be done."""
DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def connect(
    path: str | Path, schema: str, schema_version: int, upgrades: Mapping[int, str] = NO_UPGRADES
) -> sqlite3.Connection:
    """Open or create a database: a file's :class:`Path`, or any name that SQLite knows, such as `:memory:`. A file is
    checked first (about a second for a million messages, if they come from the cache or a fast disk).

    `upgrades`: the SQL that leads from each former version of the schema to the next; before it a copy is put beside
    the file. Raises :class:`BadState` with what to do when the database cannot be used; it is left as it was then."""
    try:
        if isinstance(path, Path) and path.exists():
            _check(path)
        connection = sqlite3.connect(
            path,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
            uri=str(path).startswith("file:"),
        )
        try:
            _prepare(connection, path, schema, schema_version, upgrades)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as reason:
        raise BadState(_why_not(path, reason)) from None
    except OSError as reason:
        raise BadState(f"{path} cannot be opened as a database: {reason.strerror}") from None
    return connection


def _why_not(path: str | Path, reason: sqlite3.Error) -> str:
    match code(reason):
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return _damage(path, str(reason))
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"{path} is locked by another program: end it (fuser {path} shows which)"
        case sqlite3.SQLITE_FULL:
            return f"there is no room for {path}: free space (bringing it to another layout takes thrice its size)"
        case sqlite3.SQLITE_READONLY:
            return f"{path} is read-only: {_MAKE_WRITABLE}"
        case sqlite3.SQLITE_CANTOPEN if Path(path).exists() and not os.access(Path(path).parent, os.W_OK):
            # SQLite has its -wal and -shm files there, and says no more than that it cannot make them.
            return f"{path} is in a read-only directory: {_MAKE_WRITABLE}"
        case _:
            return f"{path} cannot be opened as a database: {reason}"


def _damage(path: str | Path, finding: str) -> str:
    found = " ".join(finding.split())[:DAMAGE_CHARS_MAX]
    return f"{path} is damaged ({found}): restore a backup (docs/operating.md says how); the file is left as it is"


def _check(path: Path) -> None:
    """Raises :class:`BadState` for a damaged file. Looks through a connection of its own that cannot write: any other,
    when it is closed, carries the WAL into the file and deletes it, and both may be wanted to save what is left."""
    _read_through(path)
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=BUSY_TIMEOUT_S, uri=True)) as looking:
        findings = [finding for (finding,) in looking.execute(f"PRAGMA quick_check({DAMAGE_SHOWN_MAX})")]
    if findings != ["ok"]:
        raise BadState(_damage(path, findings[0]))


def _read_through(path: Path) -> None:
    """Into the system's cache, from front to back: the check, which jumps to and fro, took 2 s then instead of 12."""
    with path.open("rb", buffering=0) as file:
        while file.read(READ_AHEAD_BYTES):
            pass


def _prepare(
    connection: sqlite3.Connection, path: str | Path, schema: str, schema_version: int, upgrades: Mapping[int, str]
) -> None:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found == 0:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # has an effect before the first page is written only
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    _try_to_write(connection, found)
    if found == schema_version:
        return
    steps = (
        [schema] if found == 0 else [upgrades[number] for number in range(found, schema_version) if number in upgrades]
    )
    if found and len(steps) != schema_version - found:
        raise BadState(_other_version(path, found, schema_version))
    if found:
        _copy(connection, f"{path}.schema{found}")
        _let_shrink(connection)
    connection.executescript(f"BEGIN; {'; '.join(steps)}; PRAGMA user_version={schema_version}; COMMIT;")


def _other_version(path: str | Path, found: int, known: int) -> str:
    words = f"{path} has schema {found}, of another version of meshproto: this one knows schema {known}"
    if found < known:
        return f"{words}, and no way from there; use a version in between first"
    former = f"{path}.schema{known}"
    before = f", or go back to what it was before the upgrade: {former}" if Path(former).exists() else ""
    return f"{words}; use the newer version{before}"


def _try_to_write(connection: sqlite3.Connection, version: int) -> None:
    """Raises for what can only be read, and for what another program has locked; changes nothing."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA user_version={version}")  # of a file that is read-only BEGIN makes nothing of IMMEDIATE
    connection.execute("ROLLBACK")


def _copy(connection: sqlite3.Connection, path: str) -> None:
    """A copy of the whole database, which is on the disk when it has this name; SQLite does not see to that itself
    (https://sqlite.org/lang_vacuum.html). One of an earlier attempt is replaced."""
    draft = Path(f"{path}.part")
    draft.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    connection.execute("VACUUM INTO ?", (str(draft),))
    _sync(draft)
    draft.replace(path)
    _sync(draft.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _let_shrink(connection: sqlite3.Connection) -> None:
    """Before the steps, so that an upgrade that is interrupted here begins anew."""
    if connection.execute("PRAGMA auto_vacuum").fetchone() != (_INCREMENTAL,):
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("VACUUM")


def shrink(connection: sqlite3.Connection, pages_max: int) -> int:
    """For a job: give the file system back at most so many pages that deleted rows have left; how many it were."""
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    pages = min(int(free), pages_max)
    for _ in range(pages):
        # Python takes but one step of a PRAGMA without columns, and a step is a page, whatever number stands here.
        connection.execute("PRAGMA incremental_vacuum(1)")
    return pages


def code(reason: BaseException) -> int:
    """SQLite's primary error code."""
    return getattr(reason, "sqlite_errorcode", 0) & PRIMARY
