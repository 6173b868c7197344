"""The lines of `mesh send --bulk` on their way: read, given what they lack, written, answered.

Bounded at every step: a line is never held longer than the node takes it, and never more lines are read than may be
under way. What is under way is kept until it is answered, so that after a lost connection it goes out again, the same.
"""

import json
import os
import select
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

LINE_BYTES_MAX = 327_680  # what a node takes; of a longer line so much goes out that the node can say so, and no more
AHEAD_LINES = (
    4096  # written before the first of them is answered: some batches' worth, so that no delivery waits for us
)
AHEAD_BYTES = 8 * 1024 * 1024  # the same in bytes, as all of it is kept; room for the largest of lines
READ_BYTES = 64 * 1024
PIECE_BYTES = 64 * 1024  # lines that are written at once
BLANK = b" \t\r\n"  # what JSON calls white space


@dataclass(frozen=True)
class Line:
    """A line on its way. `id`: None where the node has to make one, or refuses the line."""

    number: int
    id: str | None
    data: bytes


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


class Feed:
    """What goes out next, and what has gone out and is not answered yet."""

    def __init__(self, source: Source, wants: Callable[[int], bool], run: str, defaults: Mapping[str, object]) -> None:
        self._source, self._wants, self._run = source, wants, run
        self._defaults = {field: json.dumps(value) for field, value in defaults.items() if value is not None}
        self._unsent: deque[Line] = deque()
        self._unanswered: deque[Line] = deque()
        self._bytes = 0

    @property
    def waiting(self) -> bool:
        """Whether lines are under way, so that an answer is due."""
        return bool(self._unanswered)

    @property
    def held(self) -> bool:
        """Whether there is a line that is not answered yet."""
        return bool(self._unsent or self._unanswered)

    @property
    def ended(self) -> bool:
        """Whether everything has gone out."""
        return self._source.ended and not self._unsent

    def waits_on(self) -> int | None:
        """The file descriptor from which lines may come; None while no more of them are wanted."""
        return self._source.fd if self._open() and not self._source.ended else None

    def next_bytes(self) -> bytes:
        """What is to be written now; empty while nothing is."""
        piece = bytearray()
        while len(piece) < PIECE_BYTES and (self._unsent or self._read_line(wait=False)):
            line = self._unsent.popleft()
            self._unanswered.append(line)
            piece += line.data
        return bytes(piece)

    def wait(self) -> bool:
        """Wait for a line to send; False: everything was sent and answered."""
        return self.held or self._read_line(wait=True)

    def due(self) -> Line | None:
        """The line that the next answer is about."""
        return self._unanswered[0] if self._unanswered else None

    def answered(self) -> None:
        """The line that was due is answered."""
        self._bytes -= len(self._unanswered.popleft().data)

    def rewind(self) -> None:
        """Whatever was not answered goes out again."""
        self._unsent.extendleft(reversed(self._unanswered))
        self._unanswered.clear()

    def _open(self) -> bool:
        return len(self._unsent) + len(self._unanswered) < AHEAD_LINES and self._bytes < AHEAD_BYTES

    def _read_line(self, *, wait: bool) -> bool:
        while self._open() and not self._source.ended:
            text = self._source.take()
            if text is None:
                if not wait and not self._source.ready():
                    return False
                self._source.fill()
                continue
            number, text = self._source.number, text.strip(BLANK)
            if text and self._wants(number):  # a blank line has no answer
                data, message_id = dressed(text, f"{self._run}-{number}", self._defaults)
                self._unsent.append(Line(number, message_id, data + b"\n"))
                self._bytes += len(data) + 1
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
