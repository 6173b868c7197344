"""What is compared: the work, how much of it at a time, and what each who does it has to offer."""

import random
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final, Literal

from msgspec import Struct

from bench.figures import Sample
from bench.peers.machine import Servers, cpu_s

Work = Literal["lookup", "message"]

VALUE_BYTES: Final = 380
"""What a name is looked up for: as long as the result of a seed (tests/test_bench_peers.py holds it to that)."""
VERSION_S_MAX: Final = 30.0
RANDOM_SEED: Final = 1


class Load(Struct, frozen=True):
    """How much is under way: on each of so many connections, `depth`."""

    label: str
    connections: int
    depth: int

    @property
    def in_flight(self) -> int:
        return self.connections * self.depth


LOOKUPS: Final = (Load("64c d1", 64, 1), Load("64c d16", 64, 16), Load("1c d64", 1, 64))
STREAMED: Final = tuple(Load(f"{number:,} in flight", 1, number) for number in (1, 64, 512, 4096))
"""On one connection. The last is for what comes in bulk."""
SINGLES: Final = (STREAMED[0], *(Load(f"{number} connections", number, 1) for number in (64, 512)))
"""One on each connection."""
MESSAGES: Final = (*STREAMED, SINGLES[1])
LOADS: Final = (*LOOKUPS, *STREAMED, *SINGLES[1:])
"""All, in the order of the tables."""
EACH_SYNCED: Final = (*STREAMED[:3], SINGLES[1])
"""For those who sync each message alone, and so are no faster with more under way."""


class Setting(Struct, frozen=True):
    """Where all of this happens. `names`: how many there are to look up; `programs`: what was installed for this
    alone."""

    servers: Servers
    names: int
    programs: Path

    def name(self, number: int) -> str:
        return f"user{number % self.names:07}"


def shuffled(count: int) -> list[int]:
    """The same order for all: one that no cache likes."""
    numbers = list(range(count))
    random.Random(RANDOM_SEED).shuffle(numbers)
    return numbers


def value() -> bytes:
    """What each name is looked up for."""
    return b"v" * VALUE_BYTES


class Peer(ABC):
    """One system in one setting."""

    key: ClassVar[str]
    """What `--only` calls it."""
    title: str
    acknowledged: str
    """What an acknowledgement, or an answer, says."""
    durable: bool = False
    """Whether what was acknowledged outlives a power cut."""
    work: Work
    loads: Sequence[Load]
    packages: tuple[str, ...] = ()
    """Of Debian."""
    version: str = ""
    ratio: str = ""
    """See :class:`bench.peers.told.System`."""
    _roots: tuple[int, ...] = ()

    @abstractmethod
    def start(self, setting: Setting) -> None:
        """Have it ready, with all the names where there are any. Raises :class:`bench.peers.machine.Unavailable`."""

    @abstractmethod
    def measure(self, load: Load, seconds: float) -> Sample: ...

    def usage(self) -> float:
        return cpu_s(*self._roots)


def version_of(*command: str | Path) -> str:
    """The first number with a point in what a program says of itself."""
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=VERSION_S_MAX)
    words = (said.stdout + said.stderr).replace(",", " ").replace("=", " ").replace("/", " ").split()
    numbers = (word.lstrip("v") for word in words if "." in word and word.lstrip("v")[:1].isdigit())
    return next(numbers, "?")
