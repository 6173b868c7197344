"""The programs in C among the benchmarks: the load generator, and what a server could do at best. They are compiled
when they are first wanted, into a directory that git does not see."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).parent
BINARIES: Final = SOURCES.parent / "build" / "bench"
FLAGS: Final = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")
COMPILE_S_MAX: Final = 60.0


class NoCompiler(Exception):
    """There is nothing to compile C with; the text says what to do."""


def compiler() -> str:
    """Raises :class:`NoCompiler`."""
    name = os.environ.get("CC", "cc")
    if (path := shutil.which(name)) is None:
        raise NoCompiler(f"benchmarks need a C compiler, and there is no `{name}`: apt-get install gcc, or set CC")
    return path


def program(name: str) -> Path:
    """The program made from `bench/NAME.c`. Raises :class:`NoCompiler`, and :class:`subprocess.CalledProcessError` when
    the compiler refuses it."""
    source, binary = SOURCES / f"{name}.c", BINARIES / name
    if binary.exists() and binary.stat().st_mtime >= source.stat().st_mtime:
        return binary
    BINARIES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BINARIES) as directory:  # two may compile at a time: each has it whole
        made = Path(directory) / name
        subprocess.run([compiler(), *FLAGS, "-o", made, source], check=True, timeout=COMPILE_S_MAX)
        made.replace(binary)
    return binary
