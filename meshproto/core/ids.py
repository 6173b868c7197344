"""Ids for messages whose senders give none."""

from typing import Final

from meshproto.core.identity import Entropy

ID_RANDOM_BYTES: Final = 10
"""Two ids of one millisecond are alike once in 10**24 times."""
DRAWN_IDS: Final = 100
"""Randomness drawn at a time: asking the system takes longer than all the rest."""


class MessageIds:
    """Rising with time, as RFC 9562 advises (UUIDv7): the indexes on ids, ours and the recipient's, then grow at their
    end. With ids that fall anywhere the inbox wrote twelve times as much to the disk, the outbox six."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._random = ""

    def next(self, now_ms: int) -> str:
        if not self._random:
            self._random = self._entropy(DRAWN_IDS * ID_RANDOM_BYTES).hex()
        drawn, self._random = self._random[: 2 * ID_RANDOM_BYTES], self._random[2 * ID_RANDOM_BYTES :]
        return f"{now_ms:012x}{drawn}"
