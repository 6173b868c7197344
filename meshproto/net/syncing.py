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
arrives a tenth sooner by that, and a node that is busy with messages one by one has a third less to do for each."""
TRIED_AFTER: Final = 8
"""So many syncs are done by the other thread, then a small one is tried in the reactor's. How long the thread takes
does not tell: where the reactor is busy that is mostly the thread's waiting for the interpreter. One that was not quick
sends the next ones back to the thread, twice as many each time; one that was halves that number again. So a slow disk
holds the reactor up seldom."""
TRIED_AFTER_MAX: Final = 4096
"""A disk that has become quick is noticed after so many at the latest."""
HANGS_S: Final = 0.05
"""So long the thread does not wait for the interpreter: it is the disk that takes it, and the count begins anew. So a
disk that goes on hanging holds the reactor up once."""

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
        self._to_come = self._tried_after = TRIED_AFTER  # syncs by the other thread
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
        if small and not self._to_come:
            done(_tried(self._try_sync))
        else:
            self._to_come = max(0, self._to_come - 1)
            self._work.put((self._sync_apart, done))

    def checkpoint(self, done: Done) -> None:
        self._work.put((self._checkpoint, done))

    def close(self, done: Done) -> None:
        self._work.put((self._close, done))

    def _run(self) -> None:
        work: Callable[[], None] | None = None
        while work != self._close:
            work, done = self._work.get()
            self._reactor.callFromThread(done, _tried(work))

    def _try_sync(self) -> None:
        """Whether that is quick enough to do it so again."""
        self._to_come = self._tried_after  # also if it fails
        began = monotonic()
        self._sync()
        if monotonic() - began <= QUICK_S:
            self._to_come, self._tried_after = 0, max(TRIED_AFTER, self._tried_after // 2)
        else:
            self._tried_after = min(TRIED_AFTER_MAX, 2 * self._tried_after)

    def _sync_apart(self) -> None:
        began = monotonic()
        self._sync()
        if monotonic() - began >= HANGS_S:
            self._to_come = self._tried_after

    def _sync(self) -> None:
        os.fdatasync(self._wal)

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
