"""A seed with a shared directory has the reactor that it needs, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PARSE = """\
import sys
from twisted.python.usage import UsageError
from meshproto.seed_tap import Options
try:
    Options().parse(sys.argv[1:])
except UsageError as wrong:
    print(wrong)
else:
    from twisted.internet import reactor
    print(type(reactor).__name__)
"""
SHARED = ("--directory", "redis://localhost:1")


def said(before: str, *options: str) -> str:
    command = [sys.executable, "-c", before + PARSE, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def test_it_is_chosen() -> None:
    """By the option alone; any other seed has the one of its platform."""
    assert said("", *SHARED) == "AsyncioSelectorReactor"
    assert said("") not in ("", "AsyncioSelectorReactor")


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("from twisted.internet.asyncioreactor import install\ninstall()\n", "AsyncioSelectorReactor"),
        ("from twisted.internet.selectreactor import install\ninstall()\n", "this is SelectReactor"),
        ("import sys\nsys.modules['redis'] = None\n", "pip install 'meshproto[redis]'"),
    ],
)
def test_one_that_is_there(before: str, says: str) -> None:
    """It stays if it is the right one; otherwise it is said what to do. So it is when the client is missing."""
    assert says in said(before, *SHARED)
