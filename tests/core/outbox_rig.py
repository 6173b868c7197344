"""What the tests of the outbox share."""

from collections.abc import Iterable

from meshproto.core.outbox import TTL_S, Attempt, Effect
from meshproto.core.queue import Message

NOW = 1000.0


def message(row: int, to: str = "bob", text: bytes = b'"hi"', ttl_s: float = TTL_S) -> Message:
    return Message(row, f"id{row}", to, "", text, int(NOW * 1000), int((NOW + ttl_s) * 1000))


def messages(rows: Iterable[int], to: str = "bob", text: bytes = b'"hi"') -> list[Message]:
    return [message(row, to, text) for row in rows]


def rows(effect: Effect) -> list[int]:
    assert isinstance(effect, Attempt)
    return [sent.row for sent in effect.batch]
