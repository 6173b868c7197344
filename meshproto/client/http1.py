"""Reads the answer to one HTTP request while it comes: bytes in, a :class:`~meshproto.client.asking.Head` and the
pieces of a body out. Nothing here knows of connections. The reading itself is llhttp's (through httptools)."""

from email.message import Message

from httptools import HttpParserError, HttpResponseParser

from meshproto.client.asking import Head

HEAD_BYTES_MAX = 64 * 1024  # as much as `http.client` takes for a line; a node's own heads have 300 bytes


class BadAnswer(Exception):
    """What comes is no answer, or not all of one."""


class _Heard:
    """What llhttp has told so far. It knows nothing of who reads. Fields behind the body, and what comes behind the
    answer, are of no use to anybody here, and may have no end."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.status = b""
        self.is_complete = False
        self.head_is_complete = False
        self.fields = Message()

    def on_status(self, status: bytes) -> None:
        if not self.head_is_complete:
            self.status += status

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_is_complete:
            self.fields[name.decode("latin-1")] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        self.head_is_complete = True

    def on_body(self, piece: bytes) -> None:
        if not self.is_complete:
            self.pieces.append(piece)

    def on_message_complete(self) -> None:
        self.is_complete = True


class ResponseReader:
    """`head`: once it is there. `is_complete`: nothing more is to come."""

    def __init__(self) -> None:
        self._heard = _Heard()
        self._parser = HttpResponseParser(self._heard)
        self._head_bytes = 0
        self.head: Head | None = None

    @property
    def is_complete(self) -> bool:
        return self.head is not None and self._heard.is_complete

    def feed(self, data: bytes) -> bytes:
        """What of the body came with it. Raises :class:`BadAnswer`."""
        heard = self._heard
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            if not heard.is_complete:  # after the last answer of a connection nothing counts
                raise BadAnswer(f"its answer is not HTTP: {error}") from error
        if self.head is None:
            self._head_bytes += len(data)
            if heard.head_is_complete:
                fields, status = heard.fields, self._parser.get_status_code()
                kind, retry_after = fields.get_content_type(), str(fields.get("Retry-After", ""))
                self.head = Head(status, heard.status.decode("latin-1"), kind, retry_after)
            elif self._head_bytes > HEAD_BYTES_MAX:
                raise BadAnswer(f"the head of its answer is longer than {HEAD_BYTES_MAX} bytes")
        body, heard.pieces[:] = b"".join(heard.pieces), []
        return body

    def end(self) -> None:
        """The connection has ended. Raises :class:`BadAnswer` unless that was a way to end the answer."""
        framed = self._heard.fields.get("Content-Length") or self._heard.fields.get("Transfer-Encoding")
        if self.head is None or (framed and not self._heard.is_complete):
            raise BadAnswer("its answer ended half-way" if self._head_bytes else "it has hung up")
