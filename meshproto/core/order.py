"""The keys of a mapping in sorted order, for paging through a million of them while they come and go.

One list, sorted when somebody asks: what has come since is appended and sorted in, which costs little because the rest
is in order already (Timsort). What has gone is skipped, and left out once it is the greater part. Eight bytes a key.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator


class Order:
    """Of the keys in `present`, which is told of with :meth:`added` and :meth:`removed` as it changes."""

    def __init__(self, present: Collection[str]) -> None:
        self._present = present
        self._sorted: list[str] = []
        self._fresh: list[str] = []
        self._removed = 0

    def added(self, key: str) -> None:
        self._fresh.append(key)

    def removed(self) -> None:
        self._removed += 1

    def after(self, key: str, *, inclusive: bool = False, settled: bool = False) -> Iterator[str]:
        """The keys after `key` (from it on, when `inclusive`), in order. `settled`: as of the last time, without those
        that have come since."""
        if not settled:
            self._settle()
        at = (bisect_left if inclusive else bisect_right)(self._sorted, key)
        last = None
        while at < len(self._sorted):
            key = self._sorted[at]
            at += 1
            if key != last and key in self._present:  # one that left and came again stands twice
                yield key
            last = key

    def _settle(self) -> None:
        if self._removed > len(self._present):
            self._sorted, self._fresh, self._removed = list(self._present), [], 0
            self._sorted.sort()
        elif self._fresh:
            self._sorted += self._fresh
            self._fresh = []
            self._sorted.sort()
