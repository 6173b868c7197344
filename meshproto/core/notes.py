"""What the log says of things that others bring about as often as they like: so many lines now and then, and how many
were left out. Nobody is to fill the disk, or to hide one line among a million."""

from collections import OrderedDict
from typing import Final, NamedTuple

from meshproto.core.limits import NETWORKS_MAX

NOTE_S: Final = 60.0
"""One line for each key and so long."""


class _Noted(NamedTuple):
    since: float
    lines: int
    left_out: int


class Notes:
    """Lines by key: the network that somebody comes from, the contact that is told of. `lines_max` of each in
    `every_s`. Times in seconds, of one clock; should it step back the next line is due at once. `keys_max`: of more
    keys, the one that got a line longest ago is forgotten."""

    def __init__(self, every_s: float = NOTE_S, lines_max: int = 1, keys_max: int = NETWORKS_MAX) -> None:
        self._every_s = every_s
        self._lines_max = lines_max
        self._keys_max = keys_max
        self._noted: OrderedDict[str, _Noted] = OrderedDict()

    def line(self, key: str, text: str, now: float) -> str | None:
        """What the log is to say; None: nothing this time."""
        noted = self._noted.get(key)
        if noted is None or not 0 <= now - noted.since < self._every_s:
            left_out = 0 if noted is None else noted.left_out
            self._noted[key] = _Noted(now, 1, 0)
            self._noted.move_to_end(key)
            if len(self._noted) > self._keys_max:
                self._noted.popitem(last=False)
            return f"{text} (and {left_out} more since the last such line)" if left_out else text
        due = noted.lines < self._lines_max
        self._noted[key] = noted._replace(lines=noted.lines + due, left_out=noted.left_out + (not due))
        return text if due else None
