"""Events of a node, on and on, for whoever waits for them: see :mod:`meshproto.client.following`."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing

from meshproto.client.errors import Document, Problem, Unreachable
from meshproto.client.following import ENDED, LOST, Following
from meshproto.client.node import EventStream, Node


class Stream:
    """`sleep`: as `time.sleep`, between two attempts to connect."""

    def __init__(self, node: Node, following: Following, sleep: Callable[[float], object] = time.sleep) -> None:
        self._node, self._following, self._sleep = node, following, sleep
        self._open: EventStream | None = None
        self._closed = False

    def close(self) -> None:
        """No more events; from whichever thread."""
        self._closed = True
        if self._open is not None:
            self._open.close()

    def __iter__(self) -> Iterator[Document]:
        """Every event. A node that goes away is waited for, which is one event `lost`, and then an `open`. Raises
        :class:`Unreachable` when it was never there, and :class:`Problem` when waiting does not help."""
        while not self._closed:
            try:
                yield from self._connection()
            except (Unreachable, Problem) as error:
                if self._closed:
                    return
                pause_s, is_news = self._following.lost(error)
                if is_news:
                    yield {"event": LOST, "error": error}
                self._sleep(pause_s)

    def _connection(self) -> Iterator[Document]:
        """Until it is gone, which is an error, whoever ends it."""
        if self._following.asks_whose:
            self._following.learn(self._node.status().document)
        self._open = self._node.open(self._following.request())
        if self._closed:
            self._open.close()
        with closing(iter(self._open)) as events:
            for event in events:
                if self._following.heard(event):
                    yield event
        raise Unreachable(self._node.url, ENDED)
