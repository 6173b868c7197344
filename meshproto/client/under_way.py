"""Messages on their way to a node over one stream: what goes out next, and what is out and not answered yet.

Bounded at every step: never more lines are taken from their source than may be under way. What is under way is kept
until it is answered, so that after a lost connection it goes out again, the same bytes with the same ids: to the node
the same messages.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from meshproto.client.errors import Document, Unreachable
from meshproto.client.results import Draft

LINE_BYTES_MAX = 327_680  # what a node takes; of a longer line so much goes out that the node can say so, and no more
AHEAD_LINES = (
    4096  # written before the first of them is answered: some batches' worth, so that no delivery waits for us
)
AHEAD_BYTES = 8 * 1024 * 1024  # the same in bytes, as all of it is kept; room for the largest of lines
PIECE_BYTES = 64 * 1024  # lines that are written at once
GATHER_S = 0.005  # for how long they are gathered, when their source takes its time


@dataclass(frozen=True)
class Line:
    """A line on its way. `id`: None where the node has to make one, or refuses the line."""

    number: int
    id: str | None
    data: bytes


class UnderWay:
    """Whoever writes takes :meth:`next_bytes`; whoever reads the results tells each to :meth:`settle`."""

    def __init__(self) -> None:
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
        return self.exhausted and not self._unsent

    @property
    def has_room(self) -> bool:
        """Whether one more may be under way."""
        return len(self._unsent) + len(self._unanswered) < AHEAD_LINES and self._bytes < AHEAD_BYTES

    @property
    def exhausted(self) -> bool:
        """Whether no line will come any more. Overridden."""
        raise NotImplementedError

    def take_one(self, *, wait: bool) -> bool:
        """Take a line from the source, with :meth:`add`; False: there is none, or no room. Without `wait` none that has
        to be waited for. Overridden."""
        raise NotImplementedError

    def waits_on(self) -> int | None:
        """The file descriptor from which lines may come; None while no more of them are wanted, or it has none."""
        return None

    def add(self, line: Line) -> None:
        self._unsent.append(line)
        self._bytes += len(line.data)

    def next_bytes(self) -> bytes:
        """What is to be written now; empty while nothing is."""
        piece, until = bytearray(), time.monotonic() + GATHER_S
        while len(piece) < PIECE_BYTES and (self._unsent or (time.monotonic() < until and self.take_one(wait=False))):
            line = self._unsent.popleft()
            self._unanswered.append(line)
            piece += line.data
        return bytes(piece)

    def wait(self) -> bool:
        """Wait for a line to send; False: everything was sent and answered."""
        return self.held or self.take_one(wait=True)

    def due(self) -> Line | None:
        """The line that the next result is about."""
        return self._unanswered[0] if self._unanswered else None

    def settle(self, url: str, result: Document) -> Line:
        """The line that a result is about; it is no longer under way. Raises :class:`Unreachable` when it is about
        another one."""
        line = self.due()
        if line is None:
            raise Unreachable(url, "it answers what was not sent")
        if line.id is not None and result.get("id", line.id) != line.id:
            raise Unreachable(url, f"it answers {result['id']!r} where {line.id!r} was due")
        self._bytes -= len(self._unanswered.popleft().data)
        return line

    def rewind(self) -> None:
        """Whatever was not answered goes out again."""
        self._unsent.extendleft(reversed(self._unanswered))
        self._unanswered.clear()


class Drafts(UnderWay):
    """Those that :meth:`put` is given. `done`: set by the giver when it has no more; one that failed sets `failure`,
    which is due when what came before is sent. `make_id`: for those without an id."""

    def __init__(self, make_id: Callable[[], str]) -> None:
        super().__init__()
        self._make_id = make_id
        self._number = 0
        self.done = False
        self.failure: Exception | None = None

    @property
    def exhausted(self) -> bool:
        return self.done

    def put(self, draft: Draft) -> None:
        """Raises ValueError and TypeError for what JSON cannot say."""
        self._number += 1
        message_id = self._make_id() if draft.id is None else draft.id
        optional = {"type": draft.type or None, "ttl": draft.ttl_s, "wait": draft.wait_s}
        fields = {"to": draft.to, "id": message_id, **{name: one for name, one in optional.items() if one is not None}}
        text = json.dumps({**fields, "message": draft.message}, ensure_ascii=False, allow_nan=False).encode()
        # Of a line that was cut the node reads no id.
        whole = len(text) <= LINE_BYTES_MAX
        self.add(Line(self._number, message_id if whole else None, text[: LINE_BYTES_MAX + 1] + b"\n"))

    def take_one(self, *, wait: bool) -> bool:
        return False


class IteratedDrafts(Drafts):
    """Those of an iterator."""

    def __init__(self, drafts: Iterator[Draft], make_id: Callable[[], str]) -> None:
        super().__init__(make_id)
        self._drafts = drafts

    def take_one(self, *, wait: bool) -> bool:
        """An iterator cannot be asked whether it has one: the caller waits for it in any case."""
        if self.done or not self.has_room:
            return False
        try:
            self.put(next(self._drafts))
        except StopIteration:
            self.done = True
        except Exception as error:
            self.failure, self.done = error, True
        return not self.done
