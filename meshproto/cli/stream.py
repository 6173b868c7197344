"""Events of a node, on and on: whatever happens to the connection, no message is missed and none comes twice.

The node numbers the messages of the inbox, and a stream that is opened anew begins after the last number that was seen.
What is told of the outbox and of presence is how things are now, so of these nothing has to be made up for here.
"""

import time
from collections.abc import Callable, Iterator

from meshproto.cli.exits import passes
from meshproto.cli.node import Document, EventStream, Node, Problem, Unreachable

RETRY_DELAY_S = 1.0
LOST = "lost"  # the event that the command itself adds: the connection is gone, and `error` says why


class Stream:
    """`kinds`, `sender`, `names`: see `Node.events`. `sleep`: as `time.sleep`, between two attempts to connect."""

    def __init__(
        self,
        node: Node,
        kinds: str,
        *,
        after: int,
        sender: str | None = None,
        names: str | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._node, self._kinds, self._after = node, kinds, after
        self._sender, self._names, self._sleep = sender, names, sleep
        self._open: EventStream | None = None
        self._closed = False

    def close(self) -> None:
        """No more events; from whichever thread."""
        self._closed = True
        if self._open is not None:
            self._open.close()

    def __iter__(self) -> Iterator[Document]:
        """Every event. A node that goes away is waited for, which is one event `lost`, and then an `open`. Raises
        `Unreachable` when it was never there, and `Problem` when waiting does not help."""
        was_there = away = False
        while not self._closed:
            try:
                for event in self._connection():
                    was_there, away = True, False
                    yield event
            except (Unreachable, Problem) as error:
                if self._closed:
                    return
                if not was_there or not passes(error):
                    raise
                if not away:
                    yield {"event": LOST, "error": error}
                away = True
                self._sleep(RETRY_DELAY_S)

    def _connection(self) -> Iterator[Document]:
        """Until it is gone, which is an error, whoever ends it."""
        self._open = self._node.events(self._kinds, after=self._after, sender=self._sender, names=self._names)
        if self._closed:
            self._open.close()
        for event in self._open:
            match event.get("event"):
                case "message":
                    self._after = event["cursor"]
                case "end":
                    raise Problem(int(event["status"]), str(event["title"]), str(event["detail"]))
                case "alive":
                    continue
            yield event
        raise Unreachable(self._node.url, "it has ended the stream")
