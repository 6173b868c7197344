"""Seeds that know many names already: their states, which are signed once and kept, and what they are asked for."""

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bench import million
from bench.compiled import BINARIES
from bench.figures import say
from meshproto.cli.processes import Child, Children, Failed, until
from meshproto.wire import LookupResult, encode_value

STATES: Final = BINARIES / "names"
"""A million take a minute to sign, and half a gigabyte; `make clean` removes them."""
ORDER_SEED: Final = 7
HIT: Final = '"record":'
MISS: Final = '"code":404'
"""What is in an answer that names somebody, and in one that says that there is nobody."""


def state(names: int, kept: Path = STATES) -> Path:
    """The state directory of a seed that knows so many, made when there is none that is fresh."""
    directory = kept / str(names) / million.OLD  # as `python -m bench.million --state` has it
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not million.is_fresh(directory / "seed.db", names):
        say(f"{names:,} names are signed, once")
        million.write(directory / "seed.db", names)
    return directory


def start(children: Children, directory: Path, names: int, *options: str) -> tuple[str, Child]:
    """A seed of `children`, which keep their states in `directory`, on so many names: its address, once it listens."""
    name = f"seed-{names}"
    (directory / name).symlink_to(state(names).resolve())
    child = children.launch("meshseed", name, *options)
    try:
        return until(child.address, f"{name} listens", million.START_S_MAX), child
    except Failed:
        say(f"--- the end of its log\n{child.last_words()}")
        raise


def copy(names: int, directory: Path) -> None:
    """Give a seed that has not started yet so many names, of its own."""
    directory.mkdir(mode=0o700)
    shutil.copyfile(state(names) / "seed.db", directory / "seed.db")


def shuffled(names: int) -> list[str]:
    """All of them, in an order that has nothing to do with how they are kept."""
    numbers = list(range(names))
    random.Random(ORDER_SEED).shuffle(numbers)
    return [million.name_of(number) for number in numbers]


def strangers(count: int) -> list[str]:
    """Names that nobody has, as long as the others."""
    return [f"none{number:07}" for number in range(count)]


def lookups(names: Sequence[str]) -> Iterator[bytes]:
    for number, name in enumerate(names):
        yield b'{"jsonrpc":"2.0","id":%d,"method":"lookup","params":{"name":"%b"}}\n' % (number % 1000, name.encode())


def pairs(names: int) -> Iterator[tuple[bytes, bytes]]:
    """Each name with what a seed answers for it, for others to keep."""
    with contextlib.closing(sqlite3.connect(state(names) / "seed.db")) as connection:
        for name, record, sig, since, seen in connection.execute("SELECT name, record, sig, since, seen FROM entries"):
            yield name.encode(), encode_value(LookupResult(record, sig, since, f"seed-{names}", False, seen))
