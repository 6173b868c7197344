"""Why something failed, in few words that are always the same: what failures are counted by. What exactly went wrong
stands in the log, and in the reason that the owner is shown."""

from enum import StrEnum
from typing import Final

from meshproto.errors import (
    IdReused,
    KeyChanged,
    MeshError,
    NoAnswer,
    NoSeedAnswers,
    NotInTime,
    PeerError,
    PeerRefused,
    ShuttingDown,
    SlowDown,
    TLSFailed,
    Unavailable,
    Unreachable,
    UserNotFound,
)


class Cause(StrEnum):
    UNREACHABLE = "unreachable"
    """Nobody listens there, or there is no way."""
    TIMEOUT = "timeout"
    """No connection came about in time."""
    TLS = "tls"
    NO_ANSWER = "no_answer"
    """It was sent, and no answer came: nobody knows what became of it."""
    REFUSED = "refused"
    """The peer has answered with an error."""
    BAD_ANSWER = "bad_answer"
    """What came back was nonsense."""
    NOT_FOUND = "not_found"
    """No seed knows the name."""
    NO_SEED = "no_seed"
    """No seed answers."""
    KEY_CHANGED = "key_changed"
    FULL = "full"
    """A limit was reached."""
    ID_REUSED = "id_reused"
    DISK = "disk"
    STOPPED = "stopped"
    OTHER = "other"
    """What the others are not; in a delivery it is a bug."""


_CAUSES: Final[tuple[tuple[type[MeshError], Cause], ...]] = (
    (NotInTime, Cause.TIMEOUT),
    (TLSFailed, Cause.TLS),
    (NoAnswer, Cause.NO_ANSWER),
    (Unreachable, Cause.UNREACHABLE),
    (PeerRefused, Cause.REFUSED),
    (PeerError, Cause.BAD_ANSWER),
    (UserNotFound, Cause.NOT_FOUND),
    (NoSeedAnswers, Cause.NO_SEED),
    (ShuttingDown, Cause.STOPPED),
    (KeyChanged, Cause.KEY_CHANGED),
    (SlowDown, Cause.FULL),
    (IdReused, Cause.ID_REUSED),
    (Unavailable, Cause.DISK),
)
"""The first that fits."""


def cause_of(error: MeshError) -> Cause:
    return next((cause for kind, cause in _CAUSES if isinstance(error, kind)), Cause.OTHER)
