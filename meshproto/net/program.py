"""What the owner's programs have in common."""

from typing import Final, Protocol

from twisted.internet.defer import Deferred

from meshproto.core.handover import Answer
from meshproto.core.inbox import Received
from meshproto.net.courier import REASON_CHARS_MAX

STOPPED: Final = "the node was stopped"
WORDS_BYTES_MAX: Final = 4 * REASON_CHARS_MAX
"""Enough for so many characters of UTF-8."""


class Program(Protocol):
    """One that takes messages, one at a time. `kind`: the option that names it; `target`: what the owner gave there."""

    kind: str
    target: str

    def give(self, message: Received) -> "Deferred[Answer]":
        """Hand the message over. Fires when the program is done with it, one way or the other; does not fail."""

    def cut(self) -> None:
        """What is under way ends soon."""


def text_of(said: bytes) -> str:
    return said.decode("utf-8", "replace").strip()
