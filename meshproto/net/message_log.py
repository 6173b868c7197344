"""`--log-messages`: the way of each message in the log, a line for each step, with its id at both nodes.

That is three lines for a message in all, each of which takes as long as a good part of sending it (docs/operating.md
has the figures): they are there for those who ask for them, and all others do not even have this object.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from twisted.logger import Logger

from meshproto.core.envelope import Letter
from meshproto.core.identity import Record, fingerprint
from meshproto.core.queue import Message
from meshproto.errors import quoted
from meshproto.net.outbox_table import Kept
from meshproto.wire import ID_CHARS_MAX

REASON_CHARS_MAX: Final = 500
ENDING_MAX: Final = 100_000
"""Of more it is told that they were tried once."""
_ENDED: Final = "{event} {id} for {to} after {ms} ms, attempts: {attempts}"
_ENDED_SO: Final = f"{_ENDED}: {{reason}}"


class MessageLog:
    """Never a message's text, nor its type, which its sender chooses: its id, for whom it is, and what became of it."""

    log = Logger()

    def __init__(self) -> None:
        self._tries: Counter[str] = Counter()  # recipient -> how often, since they were last reached
        self._attempts: dict[int, int] = {}  # row, of those about to end -> as much, when it is not 1

    def accepted(self, messages: Iterable[Message]) -> None:
        """They are on disk, to be sent."""
        for message in messages:
            self.log.info("accepted {id} for {to}", event="accepted", id=_safe(message.id), to=message.to)

    def attempt(self, recipient: str) -> None:
        """They are tried."""
        self._tries[recipient] += 1

    def ending(self, recipient: str, rows: Iterable[int]) -> None:
        """Some that wait for them may be about to end."""
        tries = self._tries[recipient]
        if tries != 1 and len(self._attempts) < ENDING_MAX:
            self._attempts.update(dict.fromkeys(rows, tries))

    def reached(self, recipient: str) -> None:
        """Or nothing waits for them any more."""
        self._tries.pop(recipient, None)

    def ended(self, messages: Sequence[Kept]) -> None:
        """Their ends are on disk."""
        for message in messages:
            why = {} if message.reason is None else {"reason": quoted(message.reason, REASON_CHARS_MAX)}
            self.log.info(
                _ENDED_SO if why else _ENDED,
                event=message.status.value,
                id=_safe(message.id),
                to=message.to,
                ms=max(0, message.changed_at - message.sent_at),
                attempts=self._attempts.pop(message.row, 1),
                **why,
            )

    def received(self, sender: Record, letters: Iterable[Letter], repeated: frozenset[str]) -> None:
        """They are on disk; `repeated`: those were before."""
        address = f"{sender.name}~{fingerprint(sender.key_bytes)}"
        for letter in letters:
            event = "repeated" if letter.id in repeated else "received"
            self.log.info("{event} {id} from {from}", event=event, id=_safe(letter.id), **{"from": address})


def _safe(message_id: str) -> str:
    """An id is whatever its sender wrote."""
    return quoted(message_id, ID_CHARS_MAX)
