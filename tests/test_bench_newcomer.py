"""The table of a newcomer's path in docs/tutorial.md."""

import re

from bench.newcomer import DOCUMENT, Typed, as_table
from tests.docs_support import steps


def test_the_table_is_of_the_commands_that_are_typed() -> None:
    """Each command of the tutorial stands in it once, in order, after the clone; none that is not typed any more."""
    rows = re.findall(r"^\| `(.+)` \| [\d.]+ \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows[1:] == [step.text for step in steps(DOCUMENT) if step.verb == "show"]


def test_what_is_summed_up() -> None:
    """The seconds up to the first message, and all of them."""
    table = as_table([Typed("make", 60.04), Typed("curl x -d 'Hello'", 1.5), Typed("ls", 2.0)])
    assert "| `make` | 60.0 |" in table
    assert "| **the first message is delivered, after 2 commands** | **62** |" in table
    assert "| **all 3 commands, two machines' worth of processes** | **64** |" in table
