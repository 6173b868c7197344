"""What one HTTP listener bears: connections, requests, bodies and wrong tokens, by network and in all."""

from collections.abc import Callable
from itertools import count
from typing import Final, Protocol

from meshproto.core.bodies import Bodies
from meshproto.core.limits import Buckets, Places, Rate, called
from meshproto.core.notes import Notes
from meshproto.errors import MeshError, SlowDown, Unavailable
from meshproto.net.listening import places_max

HTTP_CONNECTIONS_MAX: Final = 8192
"""Connections to one listener: about 4 kB each while they idle, 30 MB. A node that many write to has a few for each of
them, and keeps them for a minute; a crowd of five thousand that only waits pushes nobody out."""
NETWORK_CONNECTIONS_MAX: Final = 1024
"""Of one network: a house or a company behind one address; seven such leave an eighth to the others."""
PIECE_BYTES: Final = 512
"""What each piece of a body counts besides its bytes: one in chunks of a byte each is as much work as a longer one."""
REQUESTS: Final = Rate(per_s=5000.0, burst=10_000.0)
"""Public requests of one network: a peer that sends messages one after another makes a thousand a second at best, since
it has one batch under way at a time. This is some busy peers behind one address, and half of what a node can do."""
UNPROVEN_BYTES: Final = Rate(per_s=4 * 1024 * 1024, burst=32 * 1024 * 1024)
"""Bodies of one network that came to nothing: who seals batches for us gets them back. Below what would fill
:data:`meshproto.core.bodies.BODIES_BYTES_MAX` within :data:`meshproto.core.bodies.BODY_SURE_S`."""
WRONG_TOKENS: Final = Rate(per_s=2.0, burst=10.0)
"""Wrong tokens of one network: a person who mistypes, a program with an old one."""
BODIES_FULL_S: Final = 5.0
"""When to come again if bodies under way take all the room."""


class Channel(Protocol):
    """A connection, as its listener sees it."""

    def evict(self) -> None:
        """Close: somebody else needs the place."""

    def push_out(self) -> None:
        """Close: others need the room that the request's body takes."""


class Limits:
    """`seconds`: a clock that does not step back. `notes`: how much the log says of all who come."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.seconds = seconds
        self._numbers = count()
        self._channels: dict[int, Channel] = {}
        self._places = Places(places_max(HTTP_CONNECTIONS_MAX), NETWORK_CONNECTIONS_MAX)
        self._requests = Buckets(REQUESTS)
        self._unproven = Buckets(UNPROVEN_BYTES)
        self._wrong_tokens = Buckets(WRONG_TOKENS)
        self._bodies = Bodies()
        self.notes = Notes()

    # connections

    def admits(self, network: str) -> bool:
        """Whether a connection may come in."""
        return self._places.admits(network, self.seconds())

    def enter(self, channel: Channel, network: str) -> int:
        """A connection came in: its number. Another goes if need be; it may be the newcomer itself."""
        number = next(self._numbers)
        self._channels[number] = channel
        goes = self._places.enter(number, network)
        if goes is not None:
            self._channels.pop(goes).evict()
        return number

    def leave(self, number: int) -> None:
        self._channels.pop(number, None)
        self._places.leave(number)
        self._bodies.end(number)

    def busy(self, number: int) -> None:
        """We work on a request of this connection: it stays."""
        self._places.keep(number)

    def idle(self, number: int) -> None:
        """The request was answered: a guest as before, the least idle one."""
        self._places.let_go(number)
        self._places.heard(number)

    # requests

    def request(self, network: str) -> MeshError | None:
        """Why a public request, of which only the head is there, may not be served now."""
        wait_s = self._requests.take(network, self.seconds())
        if not wait_s:
            return None
        return SlowDown(f"more than {REQUESTS.per_s:g} requests a second from {called(network)}", retry_after_s=wait_s)

    def wrong_token(self, network: str) -> MeshError | None:
        """What to say instead, when wrong tokens were too many. The right one always opens: else any stranger could
        lock the owner out, and a token of 192 random bits is not found by trying."""
        wait_s = self._wrong_tokens.take(network, self.seconds())
        return SlowDown(f"too many wrong tokens from {called(network)}", retry_after_s=wait_s) if wait_s else None

    # bodies

    def new_body(self, network: str) -> MeshError | None:
        """Why a request with a body may not be served now."""
        if not self._bodies.is_full(network, self.seconds()):
            return None
        return Unavailable("too many large requests are under way", retry_after_s=BODIES_FULL_S)

    def piece(self, network: str, amount: int) -> MeshError | None:
        """So many more bytes of a public request's body have come: why they may not be kept."""
        wait_s = self._unproven.take(network, self.seconds(), amount + PIECE_BYTES)
        if not wait_s:
            return None
        mib = UNPROVEN_BYTES.per_s / 2**20
        return SlowDown(f"more than {mib:g} MiB a second from {called(network)} came to nothing", retry_after_s=wait_s)

    def body(self, number: int, network: str, amount: int, *, whole: bool) -> None:
        """So many more bytes of a request's body are to be kept; `whole`: they are all of it. Others may be pushed out
        for them, or the request itself."""
        if whole and self._bodies.add_whole(number, amount):
            return
        for goes in self._bodies.add(number, network, amount, self.seconds()):
            self._channels[goes].push_out()

    def proven(self, network: str, amount: int, pieces: int) -> None:
        """The public request was served: its body, so many bytes in so many pieces, was worth them."""
        self._unproven.give_back(network, amount + pieces * PIECE_BYTES)

    def body_complete(self, number: int) -> None:
        self._bodies.complete(number)

    def body_over(self, number: int) -> None:
        self._bodies.end(number)
