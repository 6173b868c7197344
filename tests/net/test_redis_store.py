"""The shared store in Redis: its tests need another reactor than the suite has, and so a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.redis_rig import MISSING

ROOT = Path(__file__).parent.parent.parent
TESTS = "tests/on_asyncio"
TIMEOUT_S = 600.0


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_on_the_asyncio_reactor(tmp_path: Path) -> None:
    """All of tests/on_asyncio passes there, and none of it is skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "--reactor=asyncio", f"--basetemp={tmp_path / 'inner'}", TESTS]
    environ = {**os.environ, "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout
