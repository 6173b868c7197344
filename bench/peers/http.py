"""What our load reads of HTTP/1.1: bodies, however long their head says that they are."""

import re
from collections.abc import Iterator
from typing import Final

from meshproto.cli.processes import Failed

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)
HEAD_END: Final = b"\r\n\r\n"


class Chunks:
    """A body of the transfer coding `chunked`, as it comes."""

    def __init__(self) -> None:
        self.rest = b""
        """What is not decoded: the beginning of a chunk; once the body has ended, what came after it."""
        self.ended = False

    def receive(self, data: bytes) -> bytes:
        """The body's next bytes."""
        self.rest += data
        return b"".join(self._whole())

    def _whole(self) -> Iterator[bytes]:
        at = 0
        while not self.ended and (line_end := self.rest.find(b"\r\n", at)) >= 0:
            begin = line_end + 2
            end = begin + int(self.rest[at:line_end], 16)
            if end + 2 > len(self.rest):
                break
            yield self.rest[begin:end]
            self.ended, at = end == begin, end + 2
        self.rest = self.rest[at:]


class Responses:
    """The responses on one connection."""

    def __init__(self) -> None:
        self._rest = b""
        self._chunks: Chunks | None = None
        self._body = b""

    def receive(self, data: bytes) -> list[bytes]:
        """The bodies that are whole now."""
        self._rest += data
        bodies = []
        while (body := self._next()) is not None:
            bodies.append(body)
        return bodies

    def _next(self) -> bytes | None:
        if self._chunks is None:
            head_end = self._rest.find(HEAD_END) + 2
            if head_end < 2:
                return None
            if length := _LENGTH.search(self._rest, 0, head_end):
                begin = head_end + 2
                end = begin + int(length[1])
                if end > len(self._rest):
                    return None
                body, self._rest = self._rest[begin:end], self._rest[end:]
                return body
            if not _CHUNKED.search(self._rest, 0, head_end):
                raise Failed(f"a response without a length: {self._rest[:head_end]!r}")
            self._rest, self._chunks, self._body = self._rest[head_end + 2 :], Chunks(), b""
        self._body += self._chunks.receive(self._rest)
        self._rest = b""
        if not self._chunks.ended:
            return None
        self._rest, self._chunks = self._chunks.rest, None
        return self._body
