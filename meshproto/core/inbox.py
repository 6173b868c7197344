"""What arrived: which letters of a batch are taken, and how they are read.

The recipient keeps (sender key, id) unique, so a batch that comes again changes nothing and is acknowledged again. The
cursor of a message is its place in the order of arrival; it rises, is never used twice, and goes into `after`.
"""

from typing import Final

from msgspec import Raw, Struct

from meshproto.core.envelope import Batch, Letter, are_plain, check_message
from meshproto.errors import CallerError

PAGE_MESSAGES_MAX: Final = 1000
PAGE_MESSAGES: Final = 100
PAGE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Message texts in one page; a page holds at least one message."""
WAIT_S_MAX: Final = 60.0
"""A long poll ends by then, so that no proxy or client takes the silence for a broken connection."""


class Correspondent(Struct, frozen=True):
    name: str
    key: str


class Received(Struct, frozen=True):
    """One message in the inbox; times in ms since 1970 UTC."""

    cursor: int
    id: str
    sender: Correspondent
    type: str
    message: Raw
    sent_at: int
    received_at: int


def sort(batch: Batch) -> tuple[list[Letter], dict[str, str]]:
    """The letters to keep, and those that will never be taken with the reason for each."""
    texts = [bytes(letter.message) for letter in batch.letters]
    if are_plain(texts):
        return list(batch.letters), {}
    kept: list[Letter] = []
    refused: dict[str, str] = {}
    for letter, text in zip(batch.letters, texts, strict=True):
        try:
            check_message(text)
        except CallerError as error:
            refused[letter.id] = error.detail
        else:
            kept.append(letter)
    return kept, refused
