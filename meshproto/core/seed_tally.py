"""What a seed counts of what it is asked. Plain numbers: who shows them is the shell."""

from collections import Counter
from enum import StrEnum
from typing import Final

from meshproto.errors import (
    BadParams,
    BadSignature,
    Forbidden,
    MeshError,
    NameTaken,
    SlowDown,
    StaleRecord,
    TooLarge,
    Unauthorized,
)


class NotRegistered(StrEnum):
    """Why somebody was not registered."""

    BAD_SIGNATURE = "bad_signature"
    NAME_TAKEN = "name_taken"
    STALE_RECORD = "stale_record"
    NOT_ALLOWED = "not_allowed"
    """Not on the list, or without the token."""
    TOO_MANY = "too_many"
    """Of the same network, or over the same connection."""
    BAD_RECORD = "bad_record"
    OTHER = "other"


_WHY: Final[tuple[tuple[type[MeshError], NotRegistered], ...]] = (
    (BadSignature, NotRegistered.BAD_SIGNATURE),
    (NameTaken, NotRegistered.NAME_TAKEN),
    (StaleRecord, NotRegistered.STALE_RECORD),
    (Unauthorized, NotRegistered.NOT_ALLOWED),
    (Forbidden, NotRegistered.NOT_ALLOWED),
    (SlowDown, NotRegistered.TOO_MANY),
    (BadParams, NotRegistered.BAD_RECORD),
    (TooLarge, NotRegistered.BAD_RECORD),
)


class SeedTally:
    """`missed`: of the `lookups`, those of names that nobody has; `slowed`: requests that were refused since there were
    too many."""

    __slots__ = ("lookups", "missed", "not_registered", "registrations", "slowed")

    def __init__(self) -> None:
        self.lookups = self.missed = self.registrations = self.slowed = 0
        self.not_registered: Counter[NotRegistered] = Counter()

    def refused_to_register(self, error: MeshError) -> None:
        why = next((why for kind, why in _WHY if isinstance(error, kind)), NotRegistered.OTHER)
        self.not_registered[why] += 1
