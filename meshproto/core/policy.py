"""A list of who may do something: users by name, or by name and key.

    # who may write to me
    Bobby
    Ada~kzdvvj2umnduyauf

A name alone stands for whoever owns it; with a fingerprint behind it, for one key.
"""

from collections.abc import Mapping
from typing import Final

from meshproto.core.identity import fingerprint, parse_address
from meshproto.errors import BadParams
from meshproto.wire import fold

NAMES_MAX: Final = 100_000
"""Lines of a list: read in half a second, and 40 MB of memory. More than that is a directory, not a list."""


class Names:
    """`prints`: the fingerprints that each name (folded) may have; None: any."""

    def __init__(self, prints: Mapping[str, frozenset[str] | None]) -> None:
        self._prints = prints

    @classmethod
    def parse(cls, text: str) -> "Names":
        """One `NAME` or `NAME~FINGERPRINT` a line; blank lines and what comes after `#` do not count. Raises
        :class:`BadParams` with the number of the line that is neither."""
        prints: dict[str, frozenset[str] | None] = {}
        for number, line in enumerate(text.split("\n"), 1):
            entry = line.partition("#")[0].strip()
            if not entry:
                continue
            try:
                name, print_ = parse_address(entry)
            except BadParams as wrong:
                raise BadParams(f"line {number}: {wrong.detail}") from None
            known = prints.get(fold(name), frozenset())
            prints[fold(name)] = None if print_ is None or known is None else known | {print_}
            if len(prints) > NAMES_MAX:
                raise BadParams(f"line {number}: a list has at most {NAMES_MAX} names")
        return cls(prints)

    def allow(self, name: str, key: bytes) -> bool:
        """Whether the user with this name and identity key is on the list."""
        prints = self._prints.get(fold(name), frozenset())
        return prints is None or fingerprint(key) in prints
