"""The thread that waits for the disk, so that the reactor need not; where the disk is quick the reactor does, for small
things."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from struct import Struct as Layout
from time import monotonic
from typing import Final, Protocol

from twisted.internet.interfaces import IReactorFromThreads

HANDOVER_S: Final = 0.0005
"""How long the reactor may keep the interpreter while the thread waits for it, which it does twice for each sync, each
time for a moment. Python's own 5 ms would be longer than most syncs."""

QUICK_S: Final = 0.001
"""A sync that takes no longer holds the reactor up less than a handful of requests do, and hardly longer than to hand
it over and back takes, which is two wake-ups and a turn of the reactor: a lone message, which is synced at two nodes,
arrives a tenth sooner by that."""
QUICK_IN_A_ROW: Final = 16
"""So many have to have been quick before the next is done in the reactor's thread, and one that was not sends all that
follow back to the other thread. So a slow disk holds the reactor up for one sync in so many at most, and a disk that
hangs once."""

_INDEX: Final = Layout("=16xI76xI")

Done = Callable[[Exception | None], None]
"""Called in the reactor's thread, with what went wrong, if anything did."""


class Syncing(Protocol):
    """Brings what was committed to the disk. Asked for one thing at a time; nobody uses the connection meanwhile but
    for :meth:`sync`."""

    @property
    def frames(self) -> int:
        """Pages of the WAL that are not in the database."""

    def sync(self, done: Done, *, small: bool) -> None:
        """All that was committed before is on disk. `small`: that is little, and nothing else waits for it; `done` may
        be called before this returns."""

    def checkpoint(self, done: Done) -> None:
        """All of the WAL is in the database, and the next transaction begins it anew."""

    def close(self, done: Done) -> None:
        """The connection is closed."""


class SyncThread:
    """For a connection to a file whose journal is a WAL."""

    def __init__(self, connection: sqlite3.Connection, reactor: IReactorFromThreads) -> None:
        sys.setswitchinterval(min(HANDOVER_S, sys.getswitchinterval()))
        self._connection = connection
        self._reactor = reactor
        (path,) = [path for _, name, path in connection.execute("PRAGMA database_list") if name == "main"]
        self._wal = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        # Open as long as the connection is: who closes a file gives up the locks that SQLite has on it.
        self._index = os.open(f"{path}-shm", os.O_RDONLY | os.O_CLOEXEC)
        self._work: SimpleQueue[tuple[Callable[[], None], Done]] = SimpleQueue()
        self._quick = 0  # syncs in a row
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether what is asked for will be done, however long it takes."""
        return self._thread.is_alive()

    @property
    def frames(self) -> int:
        """`mxFrame` less `nBackfill`, from the header of the WAL's index (https://sqlite.org/walformat.html, 2.1). The
        length of the WAL does not tell, since it begins anew without being cut."""
        frames, carried_over = _INDEX.unpack(os.pread(self._index, _INDEX.size, 0))
        return int(frames - carried_over)

    def sync(self, done: Done, *, small: bool) -> None:
        if small and self._quick >= QUICK_IN_A_ROW:
            done(_tried(self._sync))
        else:
            self._work.put((self._sync, done))

    def checkpoint(self, done: Done) -> None:
        self._work.put((self._checkpoint, done))

    def close(self, done: Done) -> None:
        self._work.put((self._close, done))

    def _run(self) -> None:
        work: Callable[[], None] | None = None
        while work != self._close:
            work, done = self._work.get()
            self._reactor.callFromThread(done, _tried(work))

    def _sync(self) -> None:
        quick, self._quick = self._quick + 1, 0  # also if it fails
        began = monotonic()
        os.fdatasync(self._wal)
        if monotonic() - began <= QUICK_S:
            self._quick = quick

    def _checkpoint(self) -> None:
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _close(self) -> None:
        self._connection.close()
        os.close(self._wal)
        os.close(self._index)


def _tried(work: Callable[[], None]) -> Exception | None:
    """What went wrong, if anything did."""
    try:
        work()
    except sqlite3.Error as reason:
        return reason
    except OSError as reason:
        return _as_sqlite_says(reason)
    return None


def _as_sqlite_says(reason: OSError) -> sqlite3.OperationalError:
    full = reason.errno in (errno.ENOSPC, errno.EDQUOT)
    error = sqlite3.OperationalError("database or disk is full" if full else "disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL if full else sqlite3.SQLITE_IOERR_FSYNC
    return error
