"""The connections that a seed has, as far as it does not trust them: how many there may be, how long they may be
silent, and how much they may say before anything of it was right.

Whoever is registered, watches or gossips is more than a guest, and is not sent away for being silent.
"""

from dataclasses import dataclass
from typing import Final

from meshproto.core.limits import Buckets, Places, Rate, called
from meshproto.errors import CallerError, MeshError, SlowDown, TooSlow, Unavailable
from meshproto.net.lines import Lines
from meshproto.net.listening import TLS_HANDSHAKE, places_max

LINKS_MAX: Final = 20_000
"""Connections to one seed: about 10 kB each, 200 MB. The process's limit on open files is raised to what it may be."""
LINKS_PER_NETWORK_MAX: Final = 2_000
"""Of those: all the users of a large site behind one address; ten such sites fill a seed."""
FIRST_LINE_S: Final = 30.0
"""For the first line. A person at `nc` takes a few seconds, a program none."""
LINE_S: Final = 30.0
"""For a line that was begun: the longest one at 2 kB a second."""
IDLE_S: Final = 300.0
"""Without a question, for who is only a guest. Whoever has another one after that may connect again."""
SWEEP_S: Final = 5.0
"""How often silence is looked for: that much later it is noticed."""
STRANGERS_BYTES: Final = Rate(per_s=64 * 1024, burst=8 * 1024 * 1024)
"""What a network may say over connections on which nothing was right yet: a line a second of the longest."""


class WrongProtocol(CallerError):
    title = "not a line"


@dataclass(slots=True)
class Guest:
    """A connection. `lines_seen` were said until `silent_since`; since `begun_at` a line is not finished."""

    lines: Lines
    silent_since: float
    begun_at: float | None = None
    lines_seen: int = 0
    staying: bool = False


class Guests:
    """All of them, by the numbers of their links. Times in seconds, of a clock that does not step."""

    def __init__(self) -> None:
        self._guests: dict[int, Guest] = {}
        self._places = Places(places_max(LINKS_MAX), LINKS_PER_NETWORK_MAX)
        self._strangers = Buckets(STRANGERS_BYTES)
        self.asked = self._places.heard

    def __getitem__(self, number: int) -> Guest:
        return self._guests[number]

    def admits(self, network: str, now: float) -> bool:
        """Whether somebody may come in."""
        return self._places.admits(network, now)

    def enter(self, number: int, lines: Lines, now: float) -> tuple[int, MeshError] | None:
        """Somebody has come. Who has to go for it, and why; that may be the one who came."""
        self._guests[number] = Guest(lines, now)
        goes = self._places.enter(number, lines.network)
        if goes is None:
            return None
        if goes == number:
            return goes, Unavailable(f"this seed has no place left for {called(lines.network)}", retry_after_s=30.0)
        return goes, Unavailable("another connection needs the place, and this one was idle for longest")

    def leave(self, number: int) -> None:
        self._guests.pop(number, None)
        self._places.leave(number)

    def stay(self, number: int) -> None:
        """More than a guest from now on."""
        self._guests[number].staying = True
        self._places.keep(number)

    def be_guest_again(self, number: int) -> None:
        self._guests[number].staying = False
        self._places.let_go(number)

    def staying(self) -> list[int]:
        """Those who are more than guests."""
        return [number for number, guest in self._guests.items() if guest.staying]

    def heard(self, number: int, data: bytes, now: float) -> None:
        """A stranger said something. Raises :class:`WrongProtocol`, and :class:`SlowDown` for one who says too much;
        the connection has to end then."""
        guest = self._guests[number]
        if guest.lines.received_bytes == len(data) and data.startswith(TLS_HANDSHAKE):
            raise WrongProtocol("this is TLS, and the seed's port is not: connect without, as to HOST:PORT")
        wait_s = self._strangers.take(guest.lines.network, now, len(data))
        if wait_s:
            raise SlowDown("too much that is no request; this connection ends", retry_after_s=round(wait_s, 3))

    def silent(self, now: float) -> list[tuple[int, MeshError]]:
        """Those who have been silent for too long."""
        told = ((number, self._judge(guest, now)) for number, guest in self._guests.items())
        return [(number, error) for number, error in told if error is not None]

    @staticmethod
    def _judge(guest: Guest, now: float) -> MeshError | None:
        if guest.lines_seen != guest.lines.received_lines or guest.lines.busy:
            guest.lines_seen, guest.silent_since, guest.begun_at = guest.lines.received_lines, now, None
        if not guest.lines.unfinished:
            guest.begun_at = None
        elif guest.begun_at is None:
            guest.begun_at = now
        if not guest.lines_seen and now - guest.silent_since >= FIRST_LINE_S:
            return TooSlow(f"not a line in {FIRST_LINE_S:g} s; this connection ends")
        if guest.begun_at is not None and now - guest.begun_at >= LINE_S:
            return TooSlow(f"a line was begun and not finished in {LINE_S:g} s; this connection ends")
        if not guest.staying and now - guest.silent_since >= IDLE_S:
            return TooSlow(f"nothing was asked in {IDLE_S:g} s; this connection ends")
        return None
