"""What a client does that is more than one question, written once for both kinds of waiting.

Each of these is a generator of steps: a :class:`~meshproto.client.asking.Request` is to be asked, a :class:`Pause` to
be waited for. It is sent the answer, or thrown what went wrong, and returns its result. How one waits is all that the
two clients differ in.
"""

import hashlib
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, TypeVar

from meshproto.client.asking import Answer, Questions, Request
from meshproto.client.cursor import CursorFile
from meshproto.client.errors import Document, IdReused, OtherNode, Problem, Unreachable, passes, understood
from meshproto.client.following import Following
from meshproto.client.results import Draft, Found, Kept, Message, Page, Sent, Status
from meshproto.client.retrying import Patience
from meshproto.client.under_way import UnderWay

RETRY_PAUSE_S = 0.5  # doubled each time,
RETRY_PAUSE_S_MAX = 5.0  # up to this: soon enough after the node is back
RETRY_S = 30.0  # without an answer: a node that restarts is back by then
BULK_RETRY_S = 60.0  # without one result: also one that reads a large store first
FOLLOW_PAUSE_S_MAX = 30.0  # nobody waits for the answer: a node may be away for days
ID_BYTES = 12  # no two messages of one sender ever meet

T = TypeVar("T")


@dataclass(frozen=True)
class Pause:
    """Wait for so long."""

    seconds: float


Steps = Generator[Request | Pause, Any, T]


class _Requests(Questions[Request]):
    """What would be asked."""

    def ask(self, request: Request) -> Request:
        return request


REQUESTS = _Requests()


def make_id() -> str:
    return token_hex(ID_BYTES)


def answer_id(message: Message, part: str = "") -> str:
    """Of the answer to a message: whoever answers again after a crash sends the same message again. `part`: which one,
    when there are several. An id is the sender's own choice, so it is theirs together with their key."""
    return "re-" + hashlib.sha256(f"{message.key}\n{message.id}\n{part}".encode()).hexdigest()[:32]


class Ways:
    """`url`: the node's, for what is told of errors. `clock`: seconds. `retry_s`: for how long a node that does not
    answer is asked again."""

    def __init__(self, url: str, clock: Callable[[], float], retry_s: float = RETRY_S) -> None:
        self._url, self._clock, self._retry_s = url, clock, retry_s

    def patience(self, give_up_s: float | None, max_s: float = RETRY_PAUSE_S_MAX) -> Patience:
        return Patience(self._clock, first_s=RETRY_PAUSE_S, max_s=max_s, give_up_s=give_up_s, chance=random.random)

    # -- lone questions ------------------------------------------------------------------------------------------

    def send(self, to: str | list[str], draft: Draft) -> Steps[list[Sent]]:
        """`draft` but for its `to`. The id makes it harmless that it may be asked more than once."""
        request = REQUESTS.send(
            to,
            draft.message,
            message_id=make_id() if draft.id is None else draft.id,
            message_type=draft.type or None,
            ttl_s=draft.ttl_s,
            wait_s=draft.wait_s,
        )
        document = (yield from self.asked(request)).document
        with understood(self._url, uncertain=True):
            results = [Sent.read(one) for one in document.get("results", [document])]
            if not results:
                raise ValueError("no result")
            return results

    def answer(self, message: Message, draft: Draft, part: str) -> Steps[Sent]:
        """`draft` but for its `to` and `id`. What was answered before stays, also if this would be another answer."""
        message_id = answer_id(message, part)
        try:
            results = yield from self.send(message.sender, Draft(message.sender, draft.message, message_id, draft.type))
        except IdReused:
            kept = yield from self.state(message_id, message.sender)
            return Sent(kept.id, kept.to, kept.status, kept.reason)
        return results[0]

    def inbox(self, after: int | None, sender: str | None, limit: int | None, wait_s: float | None) -> Steps[Page]:
        asked = REQUESTS.inbox(after=after, sender=sender, limit=limit, wait_s=wait_s)
        return (yield from self._read(asked, Page.read))

    def lookup(self, name: str) -> Steps[Found]:
        return (yield from self._read(REQUESTS.lookup(name), Found.read))

    def status(self) -> Steps[Status]:
        return (yield from self._read(REQUESTS.status(), Status.read))

    def state(self, message_id: str, to: str) -> Steps[Kept]:
        return (yield from self._read(REQUESTS.sent(message_id, to), Kept.read))

    def cancel(self, message_id: str, to: str) -> Steps[Sent]:
        return (yield from self._read(REQUESTS.cancel(message_id, to), Sent.read))

    def _read(self, request: Request, read: Callable[[Document], T]) -> Steps[T]:
        document = (yield from self.asked(request)).document
        with understood(self._url):
            return read(document)

    def asked(self, request: Request) -> Steps[Answer]:
        """All that is asked here may be asked again: a question changes nothing, and what is sent has its id."""
        patience = self.patience(self._retry_s)
        while True:
            try:
                answer: Answer = yield request
                return answer
            except Unreachable as error:
                yield Pause(patience.lost(error))

    # -- streams -------------------------------------------------------------------------------------------------

    def following(self, cursor: CursorFile | None, after: int | None, sender: str | None) -> Following:
        patience, arrival = self.patience(None, FOLLOW_PAUSE_S_MAX), self.patience(self._retry_s)
        return Following(self._url, "message", patience, arrival, after=after, sender=sender, stored=cursor)


class Bulk:
    """A stream of messages that is begun anew as often as it breaks: `lines` are sent, each result is read once, in
    order. The first to :meth:`begin` says whose node it is."""

    def __init__(self, url: str, lines: UnderWay, patience: Patience) -> None:
        self._url, self._lines, self._patience = url, lines, patience
        self._fingerprint: str | None = None

    def begin(self, status: Document) -> None:
        """Before each connection. Raises :class:`OtherNode`: ids are of one node."""
        with understood(self._url):
            fingerprint = str(status["fingerprint"])
        if self._fingerprint not in (None, fingerprint):
            raise OtherNode(self._url, fingerprint, str(self._fingerprint))
        self._fingerprint = fingerprint

    def read(self, result: Document) -> Sent:
        due = self._lines.due()
        with understood(self._url):
            sent = Sent.read({"id": (due and due.id) or "", **result})
        self._lines.settle(self._url, result)
        self._patience.back()
        return sent

    @property
    def is_done(self) -> bool:
        """The last result has come, whether or not the node has ended its answer."""
        return self._lines.ended and not self._lines.waiting

    def end(self) -> None:
        """The node has ended its answer. Raises :class:`Unreachable` if that was too early."""
        if self._lines.held:
            raise Unreachable(self._url, "its answer ended half-way")

    def lost(self, error: Unreachable | Problem) -> float:
        """For how many seconds to wait, before what was not answered is sent again. Raises the error when that does not
        help."""
        if not passes(error):
            raise error
        self._lines.rewind()
        return self._patience.lost(error)
