"""What those who watch a name are told when it changes, however many they are: some at a time, taking turns with links
that have lines to be handled (:mod:`meshproto.net.turns`), so that everybody else is answered in between.

A name that changes again before all have been told is told of as it is then, once: so what waits is bounded by what is
watched. Whoever has waited longest is told first: a name that changes all the time leaves nobody out.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from meshproto.net.turns import SLICE_LINES, SLICE_S, Turns


class News:
    """A :class:`meshproto.net.turns.Waiting`. `tell`: writes to a link, for a folded name, the line that says how the
    name stands."""

    network = "news"
    """No network is called so: all who are told are one among those that take turns."""

    def __init__(self, turns: Turns, tell: Callable[[int, str, bytes], None]) -> None:
        self._turns = turns
        self._tell = tell
        self._untold: OrderedDict[str, tuple[bytes, deque[int]]] = OrderedDict()
        self._waiting = False

    def spread(self, name: str, line: bytes, links: Iterable[int]) -> None:
        """Tell these links, and none with another line any more. The first of them are told at once."""
        links = dict.fromkeys(links)
        _, before = self._untold.get(name, (b"", deque[int]()))
        late = [link for link in before if link in links]
        self._untold[name] = line, deque(dict.fromkeys([*late, *links]))
        if not self._waiting:
            self.go_on()

    def go_on(self) -> None:
        """It is the turn of news. Names take turns as well."""
        self._waiting, told = False, 0
        may, ends_at = min(self._turns.allowed, SLICE_LINES), self._turns.seconds() + SLICE_S
        try:
            while self._untold and told < may and (not told or self._turns.seconds() < ends_at):
                name, (line, links) = self._untold.popitem(last=False)
                link = links.popleft()
                if links:
                    self._untold[name] = line, links
                told += 1
                self._tell(link, name, line)
        finally:
            self._turns.used(told)
            if self._untold:
                self._waiting = True
                self._turns.wait(self)

    def abort(self) -> None:
        """One could not be told; the others are."""
