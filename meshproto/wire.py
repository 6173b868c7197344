"""The seed protocol: JSON-RPC 2.0, one JSON object a line, as tagged frozen structs.

What belongs here: the messages, their bytes, their limits. What does not: sockets, time, and what a message means.
docs/protocol.md is this file told to people.

A request is decoded in one pass (msgspec picks the struct by `method`); only a line that fails is looked at a second
time, to find the id that its error answer must carry.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from meshproto.errors import (
    BadParams,
    InvalidRequest,
    MeshError,
    MethodNotFound,
    NameTaken,
    ParseError,
    PeerError,
    PeerRefused,
    SlowDown,
    Unavailable,
    UserNotFound,
    quoted,
)

PROTOCOL_VERSION: Final = 1

LINE_BYTES_MAX: Final = 64 * 1024
"""One line with its newline. Room for a page of names or a gossip delta, small enough to buffer for every peer."""

NAME_CHARS_MAX: Final = 64
NAME_PATTERN: Final = r"^[A-Za-z0-9._-]{1,64}\Z"
NAME_RULE: Final = "a name has 1 to 64 of A-Z a-z 0-9 . _ -"
URIS_MAX: Final = 8
"""Addresses in one record: a few interfaces and a fallback, not a way to make a seed carry data."""
URI_CHARS_MAX: Final = 512
ADDRESS_CHARS_MAX: Final = 262
"""HOST:PORT: a DNS name has at most 253 characters (RFC 1035), `tls:` may stand before it."""
ID_CHARS_MAX: Final = 128
RECORD_CHARS_MAX: Final = 8 * 1024
"""Eight URIs of full length and the keys fit; escaped twice it still leaves most of a line."""
CELL_BYTES_MAX: Final = 6 * 1024
"""One value of a key space as JSON: a record with eight URIs of full length fits, and beside it the largest digest."""
SEEDS_BYTES_MAX: Final = 60 * 1024
"""What an answer to `seeds` may hold, so that it fits in a line."""
WATCH_NAMES_MAX: Final = 500
"""Names in one `watch`: 500 of full length fit in a line."""
NAMES_PAGE_MAX: Final = 500
"""Names in one page of `names`: with 64 characters each it fits in half a line."""
GOSSIP_SEEDS_MAX: Final = 1000
"""Seeds in one digest: about 60 bytes each, so that a digest always fits in a line."""
NONCE_BYTES: Final = 32
"""What each side of a seeds' handshake adds to it, fresh: 43 characters of base64url."""
REASON_CHARS_MAX: Final = 1000
"""What is quoted of a value that does not fit: an error answer must not grow with the line it answers."""

GONE_SEEDS_MAX: Final = 32
"""Deaths that one seed tells of at a time."""
FAREWELLS_MAX: Final = 3
"""Former owners of a name that its entry remembers: about 350 bytes each, beside the largest record in one cell."""

Name = Annotated[str, Meta(pattern=NAME_PATTERN, description="1-64 of A-Z a-z 0-9 . _ -")]
DirectoryId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,64}\Z")]
Address = Annotated[str, Meta(min_length=3, max_length=ADDRESS_CHARS_MAX)]
Id = Annotated[int, Meta(ge=-(2**53), le=2**53)] | Annotated[str, Meta(max_length=ID_CHARS_MAX)]
B64 = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]*\Z", max_length=128)]
Nonce = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{43}\Z")]


def fold(name: str) -> str:
    """The form in which names are compared: case does not count."""
    return name.lower()


TLS_PREFIX: Final = "tls:"
"""Stands before the HOST:PORT of a seed that speaks TLS, wherever it is told of."""

_HOST: Final = re.compile(r"[A-Za-z0-9._:-]{1,253}\Z")
"""A DNS name or an IP address, in ASCII."""


def split_address(address: str) -> tuple[str, int]:
    """`HOST:PORT` or `[IPV6]:PORT`, both perhaps after :data:`TLS_PREFIX` -> host and port. Raises
    :class:`BadParams`."""
    host, colon, port = address.removeprefix(TLS_PREFIX).rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not _HOST.match(host) or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise BadParams(f"{address[:100]!r} is not HOST:PORT")
    return host, int(port)


# -- what the messages carry --------------------------------------------------------------------------------------


class SignedRecord(Struct, frozen=True, gc=False):
    """A record as its owner signed it, byte for byte, and the signature (unpadded base64url of 64 bytes)."""

    record: Annotated[str, Meta(max_length=RECORD_CHARS_MAX)]
    sig: B64


class Nothing(Struct, frozen=True):
    """`{}`: no parameters, or nothing to say in answer."""


class HelloParams(Struct, frozen=True, omit_defaults=True):
    """`nonce` and `proof` are between seeds with a mesh key: :mod:`meshproto.core.meshkey`."""

    version: int
    role: Literal["seed", "user"]
    name: Name | None = None
    nonce: Nonce | None = None
    proof: B64 | None = None


class NameParams(Struct, frozen=True):
    name: Name


class WatchParams(Struct, frozen=True):
    names: Annotated[list[Name], Meta(max_length=WATCH_NAMES_MAX)]


class NamesParams(Struct, frozen=True, omit_defaults=True):
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]*\Z", max_length=NAME_CHARS_MAX)] = ""
    after: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]*\Z", max_length=NAME_CHARS_MAX)] = ""
    limit: Annotated[int, Meta(ge=1, le=NAMES_PAGE_MAX)] = 100


Generation = Annotated[int, Meta(ge=0, lt=10**13)]
"""ms since 1970 UTC, until the year 2286."""
Count = Annotated[int, Meta(ge=0, lt=10**10)]
"""Heartbeats, that is seconds, and versions: so a digest's size has a bound."""


class Summary(Struct, frozen=True, array_like=True, gc=False):
    """What one seed knows of another's key space: `[generation, heartbeat, version, collected]` in a digest.
    Tombstones up to version `collected` are no longer kept."""

    generation: Generation
    heartbeat: Count
    version: Count
    collected: Count = 0


class Cell(Struct, frozen=True, array_like=True, gc=False):
    """One versioned value of a key space: `[key, version, value]`; the key is a folded name or `@`, the value `null` a
    tombstone."""

    key: Annotated[str, Meta(pattern=r"^(@|[a-z0-9._-]{1,64})\Z")]
    version: Annotated[int, Meta(ge=1, lt=10**10)]
    value: Raw


class Delta(Struct, frozen=True, array_like=True):
    """`[seed, generation, base, upto, head, collected, cells]`: what happened in a key space after `base` and up to
    `upto`, in version order; `head` is the version its teller knows, so `upto == head` means that nothing is missing.
    `base` 0 stands for the beginning."""

    seed: Name
    generation: Generation
    base: Count
    upto: Count
    head: Count
    collected: Count
    cells: list[Cell]


Digest = dict[Name, Summary]


class GossipParams(Struct, frozen=True, omit_defaults=True):
    digest: Annotated[Digest, Meta(max_length=GOSSIP_SEEDS_MAX)]
    delta: list[Delta] = []


class HelloResult(Struct, frozen=True, omit_defaults=True):
    """`mesh`: `key` when the seed gossips with those that prove its mesh key, else `open`. `nonce` and `proof` answer
    the nonce of another seed."""

    version: int
    seed: Name
    mesh: str
    limits: dict[str, int]
    nonce: Nonce | None = None
    proof: B64 | None = None


class RegisterResult(Struct, frozen=True):
    """`since`: ms since 1970 UTC, when the claim began. `lease`: seconds without a sign of life until offline."""

    seed: str
    since: int
    lease: float


class LookupResult(Struct, frozen=True, omit_defaults=True):
    """`since` and `seen` in ms since 1970 UTC; `home` is the name of the seed where the user is registered. `stale`: it
    is what was known last, because the directory that the seed shares with others does not answer."""

    record: Annotated[str, Meta(max_length=RECORD_CHARS_MAX)]
    sig: B64
    since: Annotated[int, Meta(ge=0, le=2**53)]
    home: Name
    online: bool
    seen: Annotated[int, Meta(ge=0, le=2**53)]
    stale: bool = False

    @property
    def signed(self) -> SignedRecord:
        return SignedRecord(self.record, self.sig)


class NamesResult(Struct, frozen=True):
    """A page; `next` goes into `after`, and is null on the last page."""

    names: list[str]
    next: str | None


class EntryValue(Struct, frozen=True, gc=False, omit_defaults=True):
    """What a home seed says of a user in its key space and keeps on disk: a :class:`LookupResult` without `home`.
    `farewells`: the last records of those who had the name before, which say that they have left."""

    record: Annotated[str, Meta(max_length=RECORD_CHARS_MAX)]
    sig: B64
    since: Annotated[int, Meta(ge=0, le=2**53)]
    online: bool
    seen: Annotated[int, Meta(ge=0, le=2**53)]
    farewells: Annotated[tuple[SignedRecord, ...], Meta(max_length=FAREWELLS_MAX)] = ()


class SeedFacts(Struct, frozen=True, omit_defaults=True):
    """What a seed says of itself in its key space, under the key `@`; `gone`: seeds that it found dead lately, with
    the generation of each that has died, so that others look too; `directory`: the one that it shares with all who say
    the same."""

    address: Address
    gone: Annotated[dict[Name, int], Meta(max_length=GONE_SEEDS_MAX)] = {}
    directory: DirectoryId = ""


class SeedInfo(Struct, frozen=True):
    """`since`: ms since 1970 UTC when the seed was last found alive or dead; `phi`: how surprising its silence is,
    `lag`: how many of its writes were not read yet; `directory`: seeds with the same one know the same users."""

    name: Name
    address: Address
    alive: bool
    users: int
    since: Annotated[int, Meta(ge=0, le=2**53)] = 0
    phi: float = 0.0
    lag: int = 0
    directory: DirectoryId | UnsetType = UNSET


class SeedsResult(Struct, frozen=True):
    seeds: Annotated[list[SeedInfo], Meta(max_length=GOSSIP_SEEDS_MAX + 1)]


class StatusResult(Struct, frozen=True, omit_defaults=True):
    """`caller`: the IP address that whoever asks is seen to come from."""

    seed: str
    version: str
    uptime: float
    names: int
    online: int
    seeds: int
    alive: int
    links: int
    lookups: int
    registrations: int
    caller: str = ""


class GossipResult(Struct, frozen=True):
    digest: Digest
    delta: list[Delta]
    more: bool


# -- requests, told apart by `method` -----------------------------------------------------------------------------


class Request(Struct, frozen=True, kw_only=True, tag_field="method"):
    """A request; without `id` it is a notification and gets no answer."""

    jsonrpc: Literal["2.0"]
    id: Id | UnsetType = UNSET


class Hello(Request, frozen=True, kw_only=True, tag="hello"):
    params: HelloParams


class Register(Request, frozen=True, kw_only=True, tag="register"):
    params: SignedRecord


class Unregister(Request, frozen=True, kw_only=True, tag="unregister"):
    params: SignedRecord


class Lookup(Request, frozen=True, kw_only=True, tag="lookup"):
    params: NameParams


class Watch(Request, frozen=True, kw_only=True, tag="watch"):
    params: WatchParams


class Unwatch(Request, frozen=True, kw_only=True, tag="unwatch"):
    params: WatchParams


class Names(Request, frozen=True, kw_only=True, tag="names"):
    params: NamesParams = NamesParams()


class Seeds(Request, frozen=True, kw_only=True, tag="seeds"):
    params: Nothing = Nothing()


class Ping(Request, frozen=True, kw_only=True, tag="ping"):
    params: Nothing = Nothing()


class Status(Request, frozen=True, kw_only=True, tag="status"):
    params: Nothing = Nothing()


class Gossip(Request, frozen=True, kw_only=True, tag="gossip"):
    params: GossipParams


AnyRequest = Hello | Register | Unregister | Lookup | Watch | Unwatch | Names | Seeds | Ping | Status | Gossip
METHODS: Final = frozenset(
    ("hello", "register", "unregister", "lookup", "watch", "unwatch", "names", "seeds", "ping", "status", "gossip")
)


# -- answers and notifications, as a client sees them -------------------------------------------------------------


class ErrorData(Struct, frozen=True, omit_defaults=True):
    """`detail` says what was wrong and what to do; `retry_after` in seconds."""

    detail: str = ""
    retry_after: float | None = None


class RpcError(Struct, frozen=True):
    code: int
    message: str
    data: ErrorData = ErrorData()


class Answer(Struct, frozen=True):
    """What a seed sends: an answer (`id` with `result` or `error`), or a notification (`method` with `params`)."""

    jsonrpc: Literal["2.0"]
    id: Id | None = None
    result: Raw | UnsetType = UNSET
    error: RpcError | UnsetType = UNSET
    method: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET


class ChangedParams(Struct, frozen=True):
    """What `changed` tells of a watched name: a lookup result, or null when the name is gone."""

    name: str
    entry: LookupResult | None


class ConflictParams(Struct, frozen=True):
    """What `conflict` tells a user node: the name was claimed earlier by another key (unpadded base64url)."""

    name: str
    key: str


class _AnyName(Struct, frozen=True, gc=False):
    name: str


class AnyLookup(Struct, frozen=True, kw_only=True, gc=False):
    """A :class:`Lookup` whose name may not be one: to find out costs as much as to read all the rest of the line, and
    need not be done for a name that is then found."""

    jsonrpc: Literal["2.0"]
    method: Literal["lookup"]
    params: _AnyName
    id: Id | UnsetType = UNSET


class _Probe(Struct, frozen=True):
    """The second look at a line that failed."""

    id: Any = UNSET
    method: Any = UNSET
    jsonrpc: Any = UNSET


_encoder = msgspec.json.Encoder()
encode_id: Final = _encoder.encode
_request_decoder: msgspec.json.Decoder[AnyRequest] = msgspec.json.Decoder(AnyRequest)
decode_lookup: Final = msgspec.json.Decoder(AnyLookup).decode
"""Raises one of :data:`UNFIT`."""
_answer_decoder = msgspec.json.Decoder(Answer)
_probe_decoder = msgspec.json.Decoder(_Probe)

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
UNFIT: Final = (msgspec.ValidationError, *_UNREADABLE)
"""What decoders raise."""


class LineError(Exception):
    """A line that is no request: the error to answer with, and the id to answer to (null if there is none)."""

    def __init__(self, request_id: Id | None, error: MeshError) -> None:
        super().__init__(error.detail)
        self.request_id = request_id
        self.error = error


def decode_request(line: bytes) -> AnyRequest:
    """One line from a client -> a request. Raises :class:`LineError`."""
    try:
        return _request_decoder.decode(line)
    except UNFIT as reason:
        raise _diagnose(line, reason) from None


def _diagnose(line: bytes, reason: Exception) -> LineError:
    if isinstance(reason, UnicodeDecodeError):
        return LineError(None, ParseError(f"not UTF-8: {reason}"))
    try:
        probe = _probe_decoder.decode(line)
    except msgspec.ValidationError:
        detail = (
            "arrays are not taken: send one request a line, without waiting for answers"
            if line.lstrip()[:1] == b"["
            else 'a request is a JSON object with "jsonrpc", "method" and "id"'
        )
        return LineError(None, InvalidRequest(detail))
    except RecursionError:
        return LineError(None, ParseError("the line is nested too deeply"))
    except _UNREADABLE as unreadable:
        return LineError(None, ParseError(f"not JSON in UTF-8: {unreadable}"))
    request_id = _usable_id(probe.id)
    if probe.id is not UNSET and request_id is None:
        return LineError(None, InvalidRequest("id must be an integer or a string of at most 128 characters"))
    if probe.jsonrpc != "2.0":
        return LineError(request_id, InvalidRequest('"jsonrpc":"2.0" is missing'))
    if not isinstance(probe.method, str):
        return LineError(request_id, InvalidRequest('"method" must be a string'))
    if probe.method not in METHODS:
        known = ", ".join(sorted(METHODS))
        return LineError(request_id, MethodNotFound(f"unknown method {probe.method[:64]!r}; there are: {known}"))
    return LineError(request_id, BadParams(explain(reason)))


def explain(reason: Exception) -> str:
    """msgspec's sentence about a value that does not fit, with the pattern of a name in words."""
    return str(reason).replace(f"Expected `str` matching regex {NAME_PATTERN!r}", NAME_RULE)[:REASON_CHARS_MAX]


def _usable_id(value: Any) -> Id | None:
    try:
        return msgspec.convert(value, Id)  # type: ignore[no-any-return]
    except msgspec.ValidationError:
        return None


def decode_answer(line: bytes) -> Answer:
    """One line from a seed -> an answer or a notification. Raises :class:`meshproto.errors.PeerError`."""
    try:
        answer = _answer_decoder.decode(line)
    except UNFIT as reason:
        raise PeerError(f"the seed sent a line that is not JSON-RPC: {reason}") from None
    return answer


T = TypeVar("T")


def decode_value(raw: Raw | bytes | str, kind: type[T]) -> T:
    """A part of an answer, or a stored value. Raises :class:`meshproto.errors.PeerError`."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except UNFIT as reason:
        raise PeerError(f"unexpected {kind.__name__}: {reason}") from None


def encode_value(value: Any) -> bytes:
    return _encoder.encode(value)


def encode_lines(values: Iterable[Any]) -> bytes:
    """A line of JSON each (https://github.com/ndjson/ndjson-spec)."""
    return _encoder.encode_lines(values)


def encode_request(method: str, params: Struct, request_id: Id | None = None) -> bytes:
    """A request line, or a notification when there is no id."""
    head = b'{"jsonrpc":"2.0",' if request_id is None else b'{"jsonrpc":"2.0","id":%b,' % _encoder.encode(request_id)
    return b'%b"method":"%b","params":%b}\n' % (head, method.encode("ascii"), _encoder.encode(params))


def encode_result(request_id: Id, result: Struct) -> bytes:
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}\n' % (_encoder.encode(request_id), _encoder.encode(result))


def encode_error(request_id: Id | None, error: MeshError) -> bytes:
    """An error line; its `message` is the stable title, the sentence for people is in `data.detail`."""
    data = ErrorData(error.detail if error.detail != error.title else "", error.retry_after_s)
    body = RpcError(error.code, error.title, data)
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}\n' % (_encoder.encode(request_id), _encoder.encode(body))


_RAISED_BY_CODE: Final[dict[int, type[MeshError]]] = {
    error.code: error for error in (UserNotFound, NameTaken, SlowDown, Unavailable)
}


def error_from(error: RpcError) -> MeshError:
    """An error answer -> the error to raise: those that callers act on by their class, the rest as PeerRefused."""
    detail = quoted(error.data.detail or error.message, REASON_CHARS_MAX)
    kind = _RAISED_BY_CODE.get(error.code)
    if kind is None or kind.title != error.message:
        said = f"{quoted(error.message, REASON_CHARS_MAX)}: {detail}"
        return PeerRefused(error.code, said, retry_after_s=error.data.retry_after)
    return kind(detail, retry_after_s=error.data.retry_after)
