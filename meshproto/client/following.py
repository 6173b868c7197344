"""An inbox, on and on: whatever happens to the connection, no message is missed and none comes twice.

The node numbers the messages of the inbox, and a stream that is opened anew begins after the last number that was seen.
What is told of the outbox and of presence is how things are now, so of these nothing has to be made up for here.

Nothing here has a connection: a client opens what :meth:`Following.request` says, tells :meth:`Following.heard` what
comes, and asks :meth:`Following.lost` how long to wait.
"""

from dataclasses import dataclass, field

from meshproto.client.asking import Request, events_request
from meshproto.client.cursor import Cursor, CursorFile
from meshproto.client.errors import Document, OtherNode, Problem, Unreachable, passes, problem, understood
from meshproto.client.results import Message
from meshproto.client.retrying import Patience

LOST = "lost"  # the event that a client itself adds: the connection is gone, and `error` says why
ENDED = "it has ended the stream"


@dataclass
class Following:
    """`kinds`, `sender`, `names`: see :func:`meshproto.client.asking.events_request`. `after`: where to begin, unless
    `stored` says where it was; None: with what comes from now on. `stored`: kept by :meth:`done`. `patience`: with a
    node that was there; `arrival`: with one that never was, None to call that an error at once."""

    url: str
    kinds: str
    patience: Patience
    arrival: Patience | None = None
    after: int | None = 0
    sender: str | None = None
    names: str | None = None
    stored: CursorFile | None = None
    _node: str | None = field(default=None, init=False)
    _was_there: bool = field(default=False, init=False)

    @property
    def asks_whose(self) -> bool:
        """Whether the node's status is wanted before :meth:`request`: by whoever has to know whose inbox it is."""
        return self.stored is not None or self.after is None

    def learn(self, status: Document) -> None:
        """Whose inbox it is. Raises :class:`OtherNode`."""
        with understood(self.url):
            fingerprint = str(status["fingerprint"])
        if self._node is None and self.stored is not None:
            cursor = self.stored.read()
            if cursor is not None:
                self._node, self.after = cursor.node, cursor.after
        if self._node is not None and self._node != fingerprint:
            raise OtherNode(self.url, fingerprint, self._node)
        if self.after is None:
            with understood(self.url):
                self.after = int(status["inbox"]["next"])
        if self._node is None:
            self._node = fingerprint
            self.done(self.after)  # of what comes from now on nothing is missed, even if this ends before the first

    def request(self) -> Request:
        """What to open."""
        return events_request(self.kinds, after=self.after or 0, sender=self.sender, names=self.names)

    def heard(self, event: Document) -> bool:
        """Whether it is for whoever reads: a message that was there before is not. Raises :class:`Problem` when it says
        that the node ends the stream, and :class:`Unreachable` when it does not read: the next stream begins with it,
        so that it is not missed."""
        ended: Problem | None = None
        cursor: int | None = None
        with understood(self.url):
            match event["event"]:
                case "message":
                    cursor = Message.read(event).cursor
                case "end":
                    ended = problem(int(event["status"]), str(event["title"]), str(event["detail"]))
        self._was_there = True
        self.patience.back()
        if ended is not None:
            raise ended
        if cursor is not None:
            is_new = self.after is None or cursor > self.after
            self.after = cursor if is_new else self.after
            return is_new
        return bool(event["event"] != "alive")

    def lost(self, error: Unreachable | Problem) -> tuple[float, bool]:
        """For how many seconds to wait, and whether that is news. Raises the error when waiting does not help, or the
        node was never there: a stored cursor says that it was."""
        was_there = self._was_there or (self.stored is not None and self.stored.read() is not None)
        patience = self.patience if was_there else self.arrival
        if patience is None or not passes(error):
            raise error
        is_news = not patience.waits
        return patience.lost(error), is_news

    def done(self, cursor: int) -> None:
        """Everything up to this message has been dealt with; on the disk when this returns."""
        if self.stored is not None and self._node is not None:
            self.stored.write(Cursor(self._node, cursor))
