"""Reads the answer to an HTTP request, in whatever pieces it comes: bytes in, an :class:`Answer` out. Nothing here
knows of connections.

Where a head ends, and how long a body with a Content-Length is, is seen here, to the byte: nothing that follows an
answer is taken for a part of it, and each limit is one of bytes that came. All the rest of reading HTTP/1 is llhttp's
(through httptools), in its strict mode: one Content-Length, in digits, never beside a Transfer-Encoding; lines end with
CR LF; no folded fields.
"""

from typing import Final, NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from meshproto.errors import NoAnswer, PeerError, quoted

HEAD_BYTES_MAX: Final = 16 * 1024
"""The head of an answer. A node's own is 200 bytes; proxies in front of it add a few hundred."""
WORDS_CHARS_MAX: Final = 40
"""What is told of an answer that is not taken."""

_HEAD_END: Final = b"\r\n\r\n"
_CLOSING_VERSION: Final = b"HTTP/1.0 "
_VERSIONS: Final = (b"HTTP/1.1 ", _CLOSING_VERSION)
"""What a head begins with: who says something else, and waits, is not waited for."""
_SWITCHING_PROTOCOLS: Final = 101
_PLAIN: Final = {b"content-encoding": b"identity", b"transfer-encoding": b"chunked"}
"""What is taken of encodings: a kilobyte of gzip may be a megabyte of zeros."""
_LOOKED_AT: Final = frozenset({b"content-length", b"connection", *_PLAIN})


class Answer(NamedTuple):
    """A whole answer. `headers`: the names in lower case, in the order in which they came."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """The first field of that name."""
        return next((value for other, value in self.headers if other == name), None)


class _Heard:
    """What llhttp has told of an answer. It knows nothing of who reads, so that nothing is left to the garbage
    collector."""

    __slots__ = ("body_bytes", "headers", "headers_end", "is_complete", "parts")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.body_bytes = 0
        self.forget()

    def forget(self) -> None:
        """It was not the answer that counts."""
        self.headers: list[tuple[bytes, bytes]] = []
        self.headers_end = False
        self.is_complete = False

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise HttpParserError("a second answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.headers_end:  # those after a body in chunks are not looked at
            self.headers.append((name.lower(), value.strip()))

    def on_headers_complete(self) -> None:
        self.headers_end = True

    def on_body(self, data: bytes) -> None:
        self.parts.append(data)
        self.body_bytes += len(data)

    def on_message_complete(self) -> None:
        self.is_complete = True


class Reader:
    """Reads one answer, whose body has at most `body_bytes_max` bytes. All that comes may be as long as the longest
    head and the longest body together: interim answers, and what frames chunks, are not free."""

    def __init__(self, body_bytes_max: int) -> None:
        self._body_bytes_max = body_bytes_max
        self._bytes = 0
        self._held = b""  # the beginning of a head
        self._in_head = True
        self._heard = _Heard()
        self._parser = HttpResponseParser(self._heard)
        self._closes = False
        self._is_last = True  # nothing follows the answer
        self._length: int | None = None
        self._is_chunked = False
        self._tail = b""

    @property
    def begun(self) -> bool:
        """Whether anything has come."""
        return self._bytes > 0

    @property
    def reusable(self) -> bool:
        """Whether the connection is good for another request, now that the answer is complete."""
        return self._is_last and not self._closes

    def feed(self, data: bytes) -> Answer | None:
        """More of it has come; the answer, when it is complete. Raises :class:`NoAnswer` when it is none, and
        :class:`PeerError` when it is one that is not taken: too long, or encoded."""
        self._bytes += len(data)
        if self._bytes > HEAD_BYTES_MAX + self._body_bytes_max:
            raise self._too_long()
        if self._in_head:
            data = self._read_heads(self._held + data)
        return None if self._in_head else self._read_body(data)

    def end(self) -> Answer | None:
        """Nothing more comes. The answer, if that was the way to say that it is complete."""
        if self._in_head or self._heard.is_complete or self._is_chunked or self._length is not None:
            return None
        return self._answer()

    # -- heads ---------------------------------------------------------------------------------------------------

    def _read_heads(self, data: bytes) -> bytes:
        """What follows the head that counts: interim answers may come before it (RFC 9110, section 15.2)."""
        while self._in_head:
            end = data.find(_HEAD_END)
            head_bytes = len(data) if end < 0 else end + len(_HEAD_END)
            if head_bytes > HEAD_BYTES_MAX:
                raise NoAnswer(f"the head of the peer's answer is longer than {HEAD_BYTES_MAX} bytes")
            if not any(version.startswith(data[: len(version)]) for version in _VERSIONS):
                raise _no_http(data)
            if end < 0:
                self._held = data  # joined with each piece: 16384 times at most, which takes 20 ms
                return b""
            self._read_head(data[:head_bytes])
            data = data[head_bytes:]
        return data

    def _read_head(self, head: bytes) -> None:
        self._parse(head)
        status = self._parser.get_status_code()
        if not self._heard.headers_end or status < 100 or status == _SWITCHING_PROTOCOLS:
            raise _no_http(head)
        if status < 200:
            self._heard.forget()
            return
        self._in_head = False
        self._closes = head.startswith(_CLOSING_VERSION)
        for name, value in self._heard.headers:
            if name in _LOOKED_AT:
                self._look_at(name, value.lower())
        if self._length is not None and self._length > self._body_bytes_max:
            raise self._too_long()

    def _look_at(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            self._length = int(value)
        elif name == b"connection":
            self._closes = self._closes or b"close" in value
        elif value != _PLAIN[name]:
            words = quoted(value.decode("latin-1"), WORDS_CHARS_MAX)
            raise PeerError(f"the peer's answer is encoded ({words}), which was not asked for")
        elif name == b"transfer-encoding":
            self._is_chunked = True

    # -- the body ------------------------------------------------------------------------------------------------

    def _read_body(self, data: bytes) -> Answer | None:
        heard = self._heard
        if heard.is_complete:  # by its head
            self._is_last = not data
        elif self._length is not None:
            left = self._length - heard.body_bytes
            self._is_last = len(data) <= left
            self._parse(data[:left])
        else:
            self._parse(data)
            self._tail = (self._tail + data)[-5:]
            if heard.is_complete:
                # llhttp passes over empty lines between answers.
                self._is_last = self._is_last and self._tail.endswith(_HEAD_END) and self._tail[0] not in b"\r\n"
        if heard.body_bytes > self._body_bytes_max:
            raise self._too_long()
        return self._answer() if heard.is_complete else None

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as reason:
            if not self._heard.is_complete:
                raise NoAnswer(f"what answers does not speak HTTP/1: {reason}") from None
            self._is_last = False

    def _answer(self) -> Answer:
        return Answer(self._parser.get_status_code(), self._heard.headers, b"".join(self._heard.parts))

    def _too_long(self) -> PeerError:
        return PeerError(f"the peer's answer is longer than {self._body_bytes_max} bytes")


def _no_http(data: bytes) -> NoAnswer:
    words = quoted(data[:WORDS_CHARS_MAX].decode("latin-1"), WORDS_CHARS_MAX)
    return NoAnswer(f"what answers does not speak HTTP/1: {words}")
