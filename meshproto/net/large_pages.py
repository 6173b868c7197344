"""Large pages for what a process keeps in memory.

A million names lie in 150,000 pages of 4 KiB, and a lookup touches half a dozen of them at random: to find out where
each is takes the processor as long as to read what is in it, in a virtual machine above all. It knows a few hundred of
2 MiB by heart.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MADV_COLLAPSE: Final = 25
"""Put what is there into large pages, now (madvise(2)): Linux 6.1 and later."""
LARGE_PAGE_BYTES: Final = 2 * 1024 * 1024
MAPS: Final = Path("/proc/self/maps")


def use_large_pages() -> int:
    """For all that was allocated up to now, as far as the system does that: the bytes of the areas for which it did. It
    is no error that it does not, because nothing else changes."""
    if not MAPS.exists():
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    areas = list(_areas(MAPS.read_text(encoding="ascii", errors="replace")))
    return sum(size for start, size in areas if madvise(start, size, MADV_COLLAPSE) == 0)


def _areas(maps: str) -> Iterator[tuple[int, int]]:
    """Where memory begins that is nobody else's and no file's, and how long it is (proc_pid_maps(5))."""
    for line in maps.splitlines():
        addresses, rights, _, _, inode, *path = line.split()
        start, end = (int(address, 16) for address in addresses.split("-"))
        if rights == "rw-p" and inode == "0" and path in ([], ["[heap]"]) and end - start >= LARGE_PAGE_BYTES:
            yield start, end - start
