"""Newline-delimited JSON as it comes in pieces: pieces -> lines (https://github.com/ndjson/ndjson-spec)."""

from collections.abc import Iterator


class Splitter:
    """Cuts a stream into numbered lines. A line longer than `line_bytes_max` is not kept: it comes as None."""

    def __init__(self, line_bytes_max: int) -> None:
        self._line_bytes_max = line_bytes_max
        self._parts: list[bytes] = []
        self._bytes = 0
        self._number = 0

    def feed(self, piece: bytes) -> Iterator[tuple[int, bytes | None]]:
        """The lines that end in this piece, with their numbers from 1, without those that are blank."""
        *ended, rest = piece.split(b"\n")
        if ended:
            yield from self._end(ended[0])
            for number, line in enumerate(ended[1:], self._number + 1):  # these came whole
                if len(line) > self._line_bytes_max:
                    yield number, None
                elif line and not line.isspace():
                    yield number, line.strip()
            self._number += len(ended) - 1
        self._keep(rest)

    def end(self) -> Iterator[tuple[int, bytes | None]]:
        """The stream has ended in good order: a last line may do without a newline."""
        yield from self._end(b"")

    def _keep(self, part: bytes) -> None:
        self._bytes += len(part)
        if self._bytes > self._line_bytes_max:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _end(self, part: bytes) -> Iterator[tuple[int, bytes | None]]:
        self._keep(part)
        self._number += 1
        line = b"".join(self._parts).strip() if self._bytes <= self._line_bytes_max else None
        self._parts.clear()
        self._bytes = 0
        if line != b"":
            yield self._number, line
