"""HTTP/1.1 as a server reads it: bytes in, heads and bodies out (RFC 9110 and 9112).

Strict, because others may stand between a client and us: what two readers may read differently is refused, and what
follows it is not read (request smuggling). There is one grammar, of a whole head, and nothing is taken that does not
fit it: no bare line feeds, no folded fields, no space before a colon, no controls, no length said twice.

It reads when it is asked to, and never beyond the end of a request, so that whoever asks decides whose turn it is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import Final

from meshproto.errors import BadParams, HeadTooLarge, TargetTooLong, TooLarge

LINE_BYTES_MAX: Final = 8192
"""The request line, and each header field (RFC 9110, section 4.1, wants at least 8000)."""
HEAD_BYTES_MAX: Final = 16384
"""All of a head."""
HEADERS_MAX: Final = 100
"""Header fields; a browser sends about twenty."""
LENGTH_DIGITS_MAX: Final = 15
"""Of a Content-Length: Python refuses to read thousands of digits, by an exception that nobody expects."""
CHUNK_LINE_BYTES_MAX: Final = 1024
"""The size of a chunk, and its extensions, which nobody looks at."""
TRAILERS_BYTES_MAX: Final = 65536
"""What stands behind the last chunk, which nobody looks at either."""

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_VALUE: Final = rb"[\t -~\x80-\xff]*+"
_REQUEST_LINE: Final = rb"(%s) ([!-~]++) (HTTP/1\.[01])" % _TOKEN
_HEAD: Final = re.compile(rb"%s\r\n((?:%s:%s\r\n)*+)\r\n" % (_REQUEST_LINE, _TOKEN, _VALUE))
_LINE: Final = re.compile(_REQUEST_LINE)
_FIELD: Final = re.compile(rb"%s:%s" % (_TOKEN, _VALUE))
_EXTENSION: Final = rb';%s(?:=(?:%s|"[\t !#-\[\]-~\x80-\xff]*+"))?' % (_TOKEN, _TOKEN)
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:%s)*+" % _EXTENSION)

HEADS_KNOWN_MAX: Final = 256
"""Whoever asks again asks with the same head: what these were is not found out anew."""
KNOWN_BYTES_MAX: Final = 1024
"""Of a head that is remembered. With a hundred tiny fields it takes twenty times as much: 6 MB for all, at worst."""

UNREADABLE: Final = "the request does not read as HTTP/1.1: its head, or the lengths of its chunks"


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """`fields`: by name, in lower case; several of one name in their order. `length`: of the body in bytes; None: it
    comes in chunks, until it ends. `keeps_open`: whether there may be another request. `expects_continue`: whether the
    client asks before it sends the body (RFC 9110, section 10.1.1)."""

    method: bytes
    target: bytes
    version: bytes
    fields: Mapping[bytes, Sequence[bytes]]
    length: int | None
    keeps_open: bool
    expects_continue: bool

    def get(self, name: bytes) -> bytes | None:
        """The last one of that name."""
        values = self.fields.get(name)
        return values[-1] if values else None


class _Next(Enum):
    """What comes next of a body in chunks, when no chunk is under way."""

    SIZE = auto()
    END_OF_CHUNK = auto()
    TRAILER = auto()


class Reader:
    """Of one connection. All that reads raises the :class:`MeshError` that the client is to be told; nothing more can
    be read then."""

    def __init__(self) -> None:
        self._data = b""
        self._at = 0
        self._left = 0  # of the body, or of the chunk
        self._next: _Next | None = None  # None: the body has a length
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> None:
        """So much more has come."""
        self._data = self._data[self._at :] + data if self.unread else data
        self._at = 0

    @property
    def unread(self) -> int:
        """Bytes that have come and were not read yet."""
        return len(self._data) - self._at

    # -- heads

    def head(self) -> Head | None:
        """The next request's, when all of it is there. Then its body is to be read."""
        data, at = self._data, self._at
        if data.startswith(b"\r\n", at):  # some send one behind a body (RFC 9112, section 2.2)
            at += 2
        end = data.find(b"\r\n\r\n", at) + 4
        if end < 4:
            _check_begun(data, at)
            return None
        head = _known(data[at:end]) if end - at <= KNOWN_BYTES_MAX else _read(data[at:end])
        self._left, self._next = head.length or 0, None
        self._was_read(end)
        if head.length is None:
            self._next, self._trailer_bytes = _Next.SIZE, 0
        return head

    # -- bodies

    def piece(self) -> bytes | None:
        """The next piece of the body; nothing in it at the end; None: more has to come."""
        if not self._left:
            if self._next is None:
                return b""
            if not self._begin_chunk():
                return b"" if self._next is None else None
        piece = self._data[self._at : self._at + self._left]
        self._left -= len(piece)
        self._was_read(self._at + len(piece))
        return piece or None

    def _begin_chunk(self) -> bool:
        """Whether one has begun. Behind the last one nothing is :attr:`_next`."""
        while not self._left and (line := self._line()) is not None:
            if self._next is _Next.SIZE:
                match = _CHUNK.fullmatch(line)
                if match is None:
                    raise BadParams(UNREADABLE)
                self._left = int(match[1], 16)
                self._next = _Next.END_OF_CHUNK if self._left else _Next.TRAILER
            elif self._next is _Next.END_OF_CHUNK:
                if line:
                    raise BadParams(UNREADABLE)
                self._next = _Next.SIZE
            elif line:
                self._trailer_bytes += len(line)
                if self._trailer_bytes > TRAILERS_BYTES_MAX or not _FIELD.fullmatch(line):
                    raise BadParams(UNREADABLE)
            else:
                self._next = None
                return False
        return self._left > 0

    def _line(self) -> bytes | None:
        bytes_max = LINE_BYTES_MAX if self._next is _Next.TRAILER else CHUNK_LINE_BYTES_MAX
        end = self._data.find(b"\r\n", self._at)
        if (self.unread if end < 0 else end - self._at) > bytes_max:
            raise BadParams(UNREADABLE)
        if end < 0:
            return None
        line = self._data[self._at : end]
        self._was_read(end + 2)
        return line

    def _was_read(self, end: int) -> None:
        """All before is done with. When that is all nothing is kept: a thousand idle clients would add up."""
        if end < len(self._data):
            self._at = end
        else:
            self._data, self._at = b"", 0


def _read(text: bytes) -> Head:
    if len(text) > LINE_BYTES_MAX:
        _check_lengths(text)
    match = _HEAD.fullmatch(text)
    if match is None:
        raise BadParams(UNREADABLE)
    method, target, version, lines = match.groups()
    if not target.startswith((b"/", b"http:", b"https:")) and target != b"*":
        raise BadParams("the target of a request begins with /")
    fields = _fields(lines)
    length, keeps_open = _length(version, fields), _keeps_open(version, fields)
    return Head(method, target, version, fields, length, keeps_open, _expects_continue(version, fields))


_known: Final = lru_cache(maxsize=HEADS_KNOWN_MAX)(_read)


def _check_begun(data: bytes, at: int) -> None:
    """Of a head that is not whole: what can be told already."""
    end = data.find(b"\r\n", at)
    if (len(data) if end < 0 else end) - at > LINE_BYTES_MAX:
        raise TargetTooLong(f"the first line of a request has at most {LINE_BYTES_MAX} bytes")
    if end < 0 and b"\n" not in data[at:]:
        return
    if end < 0 or not _LINE.fullmatch(data, at, end):
        raise BadParams(UNREADABLE)
    if len(data) - data.rfind(b"\r\n") - 2 > LINE_BYTES_MAX:
        raise HeadTooLarge(f"a header field has at most {LINE_BYTES_MAX} bytes")
    if len(data) - at > HEAD_BYTES_MAX:
        raise HeadTooLarge(f"the head of a request has at most {HEAD_BYTES_MAX} bytes")


def _check_lengths(head: bytes) -> None:
    first, *lines = head.split(b"\r\n")
    if len(first) > LINE_BYTES_MAX:
        raise TargetTooLong(f"the first line of a request has at most {LINE_BYTES_MAX} bytes")
    if max(map(len, lines)) > LINE_BYTES_MAX:
        raise HeadTooLarge(f"a header field has at most {LINE_BYTES_MAX} bytes")
    if len(head) > HEAD_BYTES_MAX:
        raise HeadTooLarge(f"the head of a request has at most {HEAD_BYTES_MAX} bytes")


def _fields(lines: bytes) -> dict[bytes, tuple[bytes, ...]]:
    fields: dict[bytes, tuple[bytes, ...]] = {}
    listed = lines.split(b"\r\n")
    listed.pop()
    if len(listed) > HEADERS_MAX:
        raise HeadTooLarge(f"a request has at most {HEADERS_MAX} header fields")
    for line in listed:
        name, _, value = line.partition(b":")
        name = name.lower()
        fields[name] = (*fields.get(name, ()), value.strip(b" \t"))
    return fields


def _length(version: bytes, fields: Mapping[bytes, Sequence[bytes]]) -> int | None:
    """Of the body (RFC 9112, section 6.3), where nobody can read another one."""
    codings, lengths = fields.get(b"transfer-encoding"), fields.get(b"content-length")
    if codings is not None:
        if [coding.lower() for coding in codings] != [b"chunked"]:
            raise BadParams("of transfer encodings only 'chunked' is taken")
        if lengths is not None or version != b"HTTP/1.1":
            raise BadParams("a body in chunks has no Content-Length, and is of HTTP/1.1")
        return None
    if lengths is None:
        return 0
    if len(lengths) > 1 or not lengths[0].isdigit():
        raise BadParams("a Content-Length is one number")
    if len(lengths[0]) > LENGTH_DIGITS_MAX:
        raise TooLarge("a body of that length is not taken")
    return int(lengths[0])


def _expects_continue(version: bytes, fields: Mapping[bytes, Sequence[bytes]]) -> bool:
    return version == b"HTTP/1.1" and fields.get(b"expect", (b"",))[-1].lower() == b"100-continue"


def _keeps_open(version: bytes, fields: Mapping[bytes, Sequence[bytes]]) -> bool:
    """Whoever speaks HTTP/1.0 gets one answer."""
    if version != b"HTTP/1.1":
        return False
    said = fields.get(b"connection")
    return said is None or b"close" not in [option.strip().lower() for option in b",".join(said).split(b",")]
