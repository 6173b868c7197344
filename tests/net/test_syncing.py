"""Who waits for the disk, and for how long: over a real file."""

import errno
import os
import sqlite3
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from meshproto.net.store import CHECKPOINT_FRAMES
from meshproto.net.syncing import HANDOVER_S, HANGS_S, QUICK_S, TRIED_AFTER, TRIED_AFTER_MAX
from tests.net.store_rig import Threaded, insert


async def test_the_wal_begins_anew(tmp_path: Path) -> None:
    """Over a real file the WAL stays as small as CHECKPOINT_FRAMES and one transaction make it, and what the disk's
    thread counts is what is in it."""
    rig = Threaded(tmp_path / "words.db")
    seen = []
    for number in range(12):
        await rig.submit(*(insert(f"{number} {word} " + "x" * 3000) for word in range(300)))
        seen.append(rig.syncing.frames)
    assert max(seen) >= CHECKPOINT_FRAMES
    assert any(later < earlier for earlier, later in pairwise(seen))
    assert (tmp_path / "words.db-wal").stat().st_size < (CHECKPOINT_FRAMES + 1500) * 4200
    await rig.database.close()


async def test_who_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reactor's own thread what is small, after TRIED_AFTER by the other one; which has it again from the first
    that is not quick, or that fails: the longer the oftener that happens, and TRIED_AFTER_MAX at most. While the other
    one finds that the disk hangs nothing is tried."""
    rig = Threaded(tmp_path / "words.db")
    now, took_s, wrong = 0.0, 0.0, False
    here: list[bool] = []

    def sync(_: int) -> None:
        nonlocal now
        here.append(threading.current_thread() is threading.main_thread())
        now += took_s
        if wrong:
            raise OSError(errno.EIO, "no")

    monkeypatch.setattr("meshproto.net.syncing.monotonic", lambda: now)
    monkeypatch.setattr("meshproto.net.syncing.os.fdatasync", sync)

    async def sync_once(*, small: bool = True) -> bool:
        done: Deferred[Exception | None] = Deferred()
        rig.syncing.sync(done.callback, small=small)
        assert (await done is not None) is wrong
        return here[-1]

    async def until_tried() -> int:
        """How many the other thread has done, before one is done here."""
        others = 0
        while not await sync_once():
            others += 1
        return others

    took_s = 0.99 * QUICK_S
    assert await until_tried() == TRIED_AFTER
    assert not await sync_once(small=False)
    assert await sync_once()
    assert await sync_once()
    took_s = 1.01 * QUICK_S
    assert await sync_once()
    for doubled in (1, 2, 4):
        assert await until_tried() == doubled * TRIED_AFTER
    took_s = 0.99 * QUICK_S
    assert await until_tried() == 8 * TRIED_AFTER  # and from here on half as many
    wrong = True
    assert await sync_once()
    wrong = False
    assert await until_tried() == 8 * TRIED_AFTER
    assert await sync_once()
    assert await sync_once()
    took_s = 1.01 * QUICK_S
    assert await sync_once()
    assert await until_tried() == TRIED_AFTER
    took_s = 1.01 * HANGS_S
    assert [await sync_once() for _ in range(3 * TRIED_AFTER)] == [False] * 3 * TRIED_AFTER
    took_s = 0.99 * HANGS_S
    assert await until_tried() == 4 * TRIED_AFTER
    most = 0
    while most < TRIED_AFTER_MAX:
        most, before = await until_tried(), most
        assert most == 2 * before or not before
    assert await until_tried() == TRIED_AFTER_MAX
    monkeypatch.undo()
    await rig.database.close()


async def test_a_sync_that_fails(tmp_path: Path) -> None:
    """What the system says of a sync is told as SQLite would tell it."""
    rig = Threaded(tmp_path / "words.db")
    done: Deferred[Exception | None] = Deferred()
    reads, writes = os.pipe()
    os.dup2(reads, rig.syncing._wal)  # a pipe has nothing to sync
    rig.syncing.sync(done.callback, small=False)
    assert getattr(await done, "sqlite_errorcode", None) == sqlite3.SQLITE_IOERR_FSYNC
    os.close(reads)
    os.close(writes)
    await rig.database.close()


async def test_handover(tmp_path: Path) -> None:
    """The thread gets the interpreter from a busy reactor soon, and no later than before."""
    before = sys.getswitchinterval()
    try:
        for given, expected in ((1.0, HANDOVER_S), (HANDOVER_S / 2, HANDOVER_S / 2)):
            sys.setswitchinterval(given)
            await Threaded(tmp_path / "words.db").database.close()
            assert sys.getswitchinterval() == pytest.approx(expected)
    finally:
        sys.setswitchinterval(before)
