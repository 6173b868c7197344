"""`GET /doctor`: what this node finds when it looks at itself and its seeds from where it is.

Each known seed is asked over a connection of its own: whether it answers and how fast, what it knows of this user, what
time it has, and from which address it sees the node come. And each URI that the node tells others is asked whether it
leads back here.

Nobody is made to dial for somebody else. A seed only says what it sees of a connection that is there; whether an
address can be reached is found out by the node whose address it is, which dials its own URIs and the seeds it knows,
and nothing that whoever asks could name. The way to the node from elsewhere is not shown by this.
"""

import ipaddress
from collections.abc import Coroutine, Iterable
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from meshproto import wire
from meshproto.core.identity import fingerprint, unb64, verify
from meshproto.errors import MeshError, PeerError, UserNotFound
from meshproto.net.calls import Calls, Connect, dial
from meshproto.net.clocks import NowMs
from meshproto.net.deferred import together
from meshproto.net.seeds import Seeds
from meshproto.net.treq_client import TreqClient, words_of
from meshproto.wire import SignedRecord

LOOK_S: Final = 8.0
"""What one seed or URI may take: a dial, three questions. All are asked at once, and whoever asks for this waits."""
SEEDS_ASKED_MAX: Final = 32
"""The home and those given first. More make the answer longer, and no doctor's advice better."""
ANSWER_BYTES_MAX: Final = 64 * 1024
"""Of what a URI answers: a record, a version and limits are some 1,500 bytes."""

ADDRESS_CHARS_MAX: Final = 64
"""Of IPv6 with the name of an interface, there are fewer."""

Knows = Literal["current", "older", "other key", "unknown"]


class SeedSeen(Struct):
    """`reason`: why it gave no answer, else null. `sees`: the IP address that it sees this node come from; `knows`:
    what it knows of this user; `clock_ms`: by how much its clock is ahead of this machine's."""

    address: str
    home: bool
    reason: str | None = None
    name: str | None = None
    version: str | None = None
    took_ms: float | None = None
    sees: str | None = None
    knows: Knows | None = None
    clock_ms: int | None = None


class UriSeen(Struct):
    """`leads_here`: whether this very node answers there; `reason`: why that is not so, else null."""

    uri: str
    leads_here: bool
    took_ms: float
    reason: str | None = None


class Report(Struct):
    """`unasked`: how many more seeds are known."""

    now: int
    seeds: list[SeedSeen]
    unasked: int
    uris: list[UriSeen]


class Doctor:
    """`client`: for this node's own URIs, wherever they lead."""

    def __init__(self, seeds: Seeds, connect: Connect, client: TreqClient, clock: IReactorTime, now_ms: NowMs) -> None:
        self._seeds = seeds
        self._connect = connect
        self._client = client
        self._clock = clock
        self._now_ms = now_ms

    async def report(self) -> Report:
        """Takes :data:`LOOK_S` at most."""
        known = _apart(self._seeds.known)
        home = None if self._seeds.home is None else self._seeds.home.address
        order = sorted(known, key=lambda address: address != home)
        asked = order[:SEEDS_ASKED_MAX]
        seeds = [ensureDeferred(self._ask_seed(address, home=address == home)) for address in asked]
        uris = [ensureDeferred(self._ask_uri(uri)) for uri in self._seeds.uris]
        return Report(self._now_ms(), await together(seeds), len(known) - len(asked), await together(uris))

    # -- seeds ---------------------------------------------------------------------------------------------------

    async def _ask_seed(self, address: str, *, home: bool) -> SeedSeen:
        seen = SeedSeen(address, home)
        calls = Calls(self._clock)
        try:
            await self._in_time(self._examine(seen, calls))
        except MeshError as error:
            seen.reason = error.detail
        finally:
            calls.close()
        return seen

    async def _examine(self, seen: SeedSeen, calls: Calls) -> None:
        began = self._clock.seconds()
        await dial(self._connect, seen.address, calls, self._clock)
        seen.name = await self._seeds.say_hello(seen.address, calls)
        seen.took_ms = self._since_ms(began)
        status = await calls.call("status", wire.Nothing(), wire.StatusResult)
        seen.version, seen.sees = status.version, _address(status.caller)
        asked_ms = self._now_ms()
        try:
            said = await calls.call("lookup", wire.NameParams(self._seeds.user), wire.LookupResult)
        except UserNotFound:
            seen.knows = "unknown"
            return
        seen.knows = self._compare(said.signed)
        if said.online:  # of whoever is online a seed says that they are seen now, by its clock
            seen.clock_ms = said.seen - (asked_ms + self._now_ms()) // 2

    def _compare(self, signed: SignedRecord) -> Knows:
        told, own = verify(signed), verify(self._seeds.own_record())
        if told.key != own.key:
            return "other key"
        return "current" if told.seq == own.seq else "older"

    # -- this node's own addresses -------------------------------------------------------------------------------

    async def _ask_uri(self, uri: str) -> UriSeen:
        began, reason = self._clock.seconds(), None
        try:
            await self._in_time(self._lead_here(uri))
        except MeshError as error:
            reason = error.detail
        return UriSeen(uri, reason is None, self._since_ms(began), reason)

    async def _lead_here(self, uri: str) -> None:
        """Raises :class:`PeerError` with what answers there instead."""
        try:
            response = await self._client.get(
                f"{uri}/.well-known/meshproto", allow_redirects=False, unbuffered=True, reactor=self._clock
            )
        except CancelledError:
            raise
        except Exception as reason:
            # Connecting and HTTP fail in as many ways as they have layers.
            raise PeerError(words_of(reason)) from None
        body = _Body()
        response.deliverBody(body)
        text = await body.done
        try:
            record = verify(msgspec.json.decode(text, type=SignedRecord))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, MeshError):
            raise PeerError(f"what answers is no node: HTTP {response.code}") from None
        if record.key != verify(self._seeds.own_record()).key:
            raise PeerError(f"another node answers: {record.name}~{fingerprint(unb64(record.key))}")

    # -- both ----------------------------------------------------------------------------------------------------

    async def _in_time(self, work: Coroutine[Any, Any, None]) -> None:
        def too_long(_: object, timeout_s: float) -> Failure:
            return Failure(PeerError(f"no answer within {timeout_s:g} s"))

        await ensureDeferred(work).addTimeout(LOOK_S, self._clock, too_long)

    def _since_ms(self, began: float) -> float:
        return round((self._clock.seconds() - began) * 1000, 1)


def _apart(addresses: Iterable[str]) -> list[str]:
    """The same seed given as `localhost` and learnt as 127.0.0.1 is told of once, also when it does not answer."""
    places: dict[str, str] = {}
    for address in addresses:
        places.setdefault(address.replace("localhost:", "127.0.0.1:"), address)
    return list(places.values())


def _address(caller: str) -> str | None:
    """A seed may say anything, or that nobody comes from an IP address."""
    try:
        ipaddress.ip_address(caller.partition("%")[0])
    except ValueError:
        return None
    return caller[:ADDRESS_CHARS_MAX]


class _Body(Protocol):
    """So much of an answer as a record may be."""

    def __init__(self) -> None:
        self._bytes = b""
        self.done: Deferred[bytes] = Deferred(lambda _: self._enough())

    def dataReceived(self, data: bytes) -> None:
        self._bytes = (self._bytes + data)[: ANSWER_BYTES_MAX + 1]
        if len(self._bytes) > ANSWER_BYTES_MAX:
            self._bytes = b""
            self._enough()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.done.called:
            self.done.callback(self._bytes)

    def _enough(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()
        self.connectionLost()
