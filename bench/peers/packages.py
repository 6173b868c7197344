"""What the peers need: packages of Debian, and what only the Python package index has."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

REQUIREMENTS: Final = Path(__file__).with_name("requirements.txt")
PROGRAMS: Final = Path(__file__).parents[2] / "build" / "peers"
"""A virtual environment of the benchmark's own, which git does not see."""
POLICY: Final = Path("/usr/sbin/policy-rc.d")
"""What Debian's packages ask before they start their service: exit code 101 means not to."""
INSTALL_S_MAX: Final = 600.0


class NotInstalled(Exception):
    """Packages that cannot be had; the text says why, and what to do."""


def missing(packages: Iterable[str]) -> list[str]:
    return sorted({package for package in packages if not debian_version(package)})


def debian_version(package: str) -> str:
    """Of the upstream program, as Debian's package says it; empty when that is not installed."""
    if shutil.which("dpkg-query") is None:
        return ""
    command = ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Version}", package]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    if said[:1] != ["installed"]:
        return ""
    return said[1].rpartition("-")[0].rpartition(":")[2].partition("+")[0]


def install(packages: Iterable[str]) -> None:
    """Those that are missing, without starting their services. Raises :class:`NotInstalled`."""
    wanted = missing(packages)
    if not wanted:
        return
    if shutil.which("apt-get") is None:
        raise NotInstalled(f"there is no apt-get here to install {' '.join(wanted)}")
    if os.geteuid() != 0:
        raise NotInstalled(f"not installed; as root: apt-get install --no-install-recommends {' '.join(wanted)}")
    quiet = _no_services()
    try:
        _apt("update")
        _apt("install", "--yes", "--no-install-recommends", *wanted)
    finally:
        if quiet:
            POLICY.unlink()


def _no_services() -> bool:
    """Whether a policy was made that is to be removed again."""
    if POLICY.exists():
        return False
    POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    POLICY.chmod(0o755)
    return True


def _apt(*words: str) -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    ended = subprocess.run(
        ["apt-get", "--quiet", *words], capture_output=True, text=True, check=False, env=env, timeout=INSTALL_S_MAX
    )
    if ended.returncode:
        raise NotInstalled(f"apt-get {words[0]} failed: {ended.stderr.strip()[-300:]}")


def install_programs() -> None:
    """What `requirements.txt` names. Raises :class:`NotInstalled`."""
    done = PROGRAMS / "done"
    if done.exists() and done.stat().st_mtime >= REQUIREMENTS.stat().st_mtime:
        return
    steps = (
        [sys.executable, "-m", "venv", "--clear", str(PROGRAMS)],
        [str(PROGRAMS / "bin" / "pip"), "install", "--quiet", "--no-deps", "--requirement", str(REQUIREMENTS)],
    )
    for step in steps:
        ended = subprocess.run(step, capture_output=True, text=True, check=False, timeout=INSTALL_S_MAX)
        if ended.returncode:
            raise NotInstalled(f"{' '.join(step[:3])} failed: {ended.stderr.strip()[-300:]}")
    done.touch()
