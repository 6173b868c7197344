"""What seeds and user nodes tell Prometheus alike: of their process, and of their disk."""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Final

from meshproto import __version__
from meshproto.net.exposition import Family, Histogram, one

COMMIT_BOUNDS_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0)
"""From a good disk's sync, which takes less than half a millisecond, to one that hangs."""
_MEMORY: Final = Path("/proc/self/statm")
_STARTED_S: Final = time.time()


class Commits:
    """What the disk has done. `took`: groups of jobs, from the first statement to the end of the sync; those that had
    nothing to sync are not counted. `failures`: groups of which the disk did not take all. `seconds`: what time is
    measured with."""

    __slots__ = ("failures", "seconds", "took")

    def __init__(self, seconds: Callable[[], float] = perf_counter) -> None:
        self.seconds = seconds
        self.took = Histogram(COMMIT_BOUNDS_S)
        self.failures = 0


def of_process() -> list[Family]:
    """Under the names that Prometheus's own libraries give them."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    families = [
        one("process_start_time_seconds", "gauge", "When the process started, since 1970 UTC.", _STARTED_S),
        one("process_cpu_seconds_total", "counter", "Processor time used.", used.ru_utime + used.ru_stime),
    ]
    memory = _resident_bytes()
    if memory is not None:
        families.append(one("process_resident_memory_bytes", "gauge", "Memory in use.", memory))
    return families


def of_node(prefix: str, kind: str, name: str, uptime_s: float) -> list[Family]:
    """`kind`: of the node, as the label that has its name."""
    about = "The node's name and the version of its program; always 1."
    return [
        Family(f"{prefix}info", "gauge", about, [({kind: name, "version": __version__}, 1)]),
        one(f"{prefix}uptime_seconds", "gauge", "Since the node has started.", uptime_s),
    ]


def of_disk(prefix: str, commits: Commits, *, refuses: bool) -> list[Family]:
    took = "From the first statement of a commit until it was synced to the disk."
    failures = "Groups of jobs of which the disk did not take all."
    return [
        one(f"{prefix}commit_seconds", "histogram", took, commits.took),
        one(f"{prefix}commit_failures_total", "counter", failures, commits.failures),
        one(f"{prefix}disk_refuses", "gauge", "Whether the disk takes nothing at this moment: 0 or 1.", refuses),
    ]


def _resident_bytes() -> int | None:
    """None where the system does not tell it so."""
    try:
        return int(_MEMORY.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
