"""Memory in large pages: the same memory, where the system does that."""

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshproto.net import large_pages
from meshproto.net.large_pages import LARGE_PAGE_BYTES, use_large_pages

MEMORY_BYTES = 8 * LARGE_PAGE_BYTES
MAPS = Path("/proc/self/maps")

pytestmark = pytest.mark.skipif(not MAPS.exists(), reason="Linux tells what memory a process has, others do not")


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    """Nobody else's, and no file's."""
    with mmap.mmap(-1, MEMORY_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for at in range(0, MEMORY_BYTES, mmap.PAGESIZE):
            memory[at : at + 8] = at.to_bytes(8)
        yield memory


def test_all_that_is_there_stays_as_it_is(memory: mmap.mmap) -> None:
    """And may be written to as before."""
    use_large_pages()
    assert all(memory[at : at + 8] == at.to_bytes(8) for at in range(0, MEMORY_BYTES, mmap.PAGESIZE))
    memory[-8:] = b"the last"
    assert memory[-8:] == b"the last"


def test_most_of_it_lies_in_large_pages_then(memory: mmap.mmap) -> None:
    taken = use_large_pages()
    if not taken:
        pytest.skip("this system has no large pages, or does not give them when it is asked")
    found = re.search(r"AnonHugePages: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(encoding="ascii"))
    assert found is not None
    assert int(found[1]) * 1024 >= MEMORY_BYTES / 2
    assert taken >= MEMORY_BYTES


TOLD = """\
00400000-00800000 r-xp 00000000 08:01 4711 /usr/bin/python
00800000-00c00000 rw-p 00400000 08:01 4711 /usr/bin/a file of that name
01000000-01200000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000400000 rw-p 00000000 00:00 0
7f0000400000-7f0000500000 rw-p 00000000 00:00 0
7f0000800000-7f0000c00000 r--p 00000000 00:00 0
7f0001000000-7f0001400000 rw-s 00000000 00:01 99 /dev/zero (deleted)
7ffe00000000-7ffe00400000 rw-p 00000000 00:00 0 [stack]
"""


def test_what_is_asked_for() -> None:
    """Only memory that is nobody else's, no file's and no stack, from one large page on."""
    assert list(large_pages._areas(TOLD)) == [(0x1000000, 0x200000), (0x7F0000000000, 0x400000)]


def test_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There is nothing to do, and no error."""
    monkeypatch.setattr(large_pages, "MAPS", tmp_path / "maps")
    assert use_large_pages() == 0
