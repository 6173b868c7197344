"""The lines of `mesh send --bulk`: read, and given what they lack. A line is never held longer than the node takes it,
and never more of them are read than may be under way (:mod:`meshproto.client.under_way`)."""

import json
import os
import select
from collections.abc import Callable, Mapping

from meshproto.client.under_way import LINE_BYTES_MAX, Line, UnderWay

READ_BYTES = 64 * 1024
BLANK = b" \t\r\n"  # what JSON calls white space


class Source:
    """Lines out of a file descriptor, without ever waiting unless told to."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.number = 0  # of the line taken last
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._buffer = bytearray()
        self._start = 0
        self._skips = False  # the rest of a line that is too long
        self._end = False

    @property
    def ended(self) -> bool:
        """No line will come any more."""
        return self._end and self._start == len(self._buffer)

    def ready(self) -> bool:
        """Whether `fill` finds something, if only the end, without waiting."""
        return not self._end and bool(self._poll.poll(0))

    def fill(self) -> None:
        """Read on; waits where nothing is ready."""
        content = os.read(self.fd, READ_BYTES)
        del self._buffer[: self._start]
        self._start = 0
        self._buffer += content
        self._end = not content

    def take(self) -> bytes | None:
        """The next line without its newline; None: `fill` first. One that is too long is cut, but stays too long."""
        if self._skips and not self._skip():
            return None
        at = self._buffer.find(b"\n", self._start)
        held = (len(self._buffer) if at < 0 else at) - self._start
        if at < 0 and held <= LINE_BYTES_MAX and not (self._end and held):
            return None
        text = bytes(self._buffer[self._start : self._start + min(held, LINE_BYTES_MAX + 1)])
        self._start = len(self._buffer) if at < 0 else at + 1
        self._skips = at < 0 and not self._end
        self.number += 1
        return text

    def _skip(self) -> bool:
        at = self._buffer.find(b"\n", self._start)
        self._skips = at < 0 and not self._end
        self._start = len(self._buffer) if at < 0 else at + 1
        return not self._skips


class Feed(UnderWay):
    """The lines of a source that are wanted, dressed."""

    def __init__(self, source: Source, wants: Callable[[int], bool], run: str, defaults: Mapping[str, object]) -> None:
        super().__init__()
        self._source, self._wants, self._run = source, wants, run
        self._defaults = {field: json.dumps(value) for field, value in defaults.items() if value is not None}

    @property
    def exhausted(self) -> bool:
        return self._source.ended

    def waits_on(self) -> int | None:
        return self._source.fd if self.has_room and not self._source.ended else None

    def take_one(self, *, wait: bool) -> bool:
        while self.has_room and not self._source.ended:
            text = self._source.take()
            if text is None:
                if not wait and not self._source.ready():
                    return False
                self._source.fill()
                continue
            number, text = self._source.number, text.strip(BLANK)
            if text and self._wants(number):  # a blank line has no answer
                data, message_id = dressed(text, f"{self._run}-{number}", self._defaults)
                self.add(Line(number, message_id, data + b"\n"))
                return True
        return False


def dressed(text: bytes, message_id: str, defaults: Mapping[str, str]) -> tuple[bytes, str | None]:
    """The line with the fields it lacks, and its id. `defaults`: fields and their JSON.

    The fields are put behind its own, whose bytes stay as they are: a message that went through a parser might come out
    as another one (1e2 and 100.0 are two). What does not parse is for the node to refuse.
    """
    try:
        document = json.loads(text.decode(), parse_int=float)  # digits without end are no error
    except (ValueError, RecursionError):
        return text, None
    if not isinstance(document, dict):
        return text, None
    lacking = {field: value for field, value in defaults.items() if field not in document}
    if document.get("id") is None:  # of two fields of one name, null and this one, a node takes the last
        lacking["id"] = json.dumps(message_id)
        document["id"] = message_id
    own = text[:-1].rstrip(BLANK)
    fields = ",".join(f'"{field}":{value}' for field, value in lacking.items()).encode()
    between = b"," if fields and own != b"{" else b""
    return own + between + fields + b"}", document["id"] if isinstance(document["id"], str) else None
