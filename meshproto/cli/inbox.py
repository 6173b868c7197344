"""Reading the inbox: to its end, or on and on."""

import time
from collections.abc import Callable, Iterator

from meshproto.cli.exits import what
from meshproto.cli.following import RETRY_DELAY_S, stream
from meshproto.client.errors import Document
from meshproto.client.node import Node

PAGE_MESSAGES = 100  # a page that is shown at once, however large the inbox


def read(node: Node, *, after: int | None, sender: str | None, limit: int | None) -> Iterator[Document]:
    """The messages that are there, page by page, at most `limit` of them."""
    left = limit
    while left is None or left > 0:
        page = node.inbox(after=after, sender=sender, limit=_page_size(left)).document
        yield from page["messages"]
        left = None if left is None else left - len(page["messages"])
        if page["next"] == after:  # an empty page may still have moved on, past the messages of others than `sender`
            return
        after = page["next"]


def follow(
    node: Node,
    *,
    after: int | None,
    sender: str | None,
    limit: int | None,
    notice: Callable[[str], None],
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[Document]:
    """The messages that are there and those that come, for ever or until there were `limit`.

    A node that goes away is waited for, and `notice` is told. Only one that was never there is an error:
    then the address is wrong rather than the node restarting.
    """
    left, away = limit, False
    events = stream(node, "message", after=after or 0, sender=sender, sleep=sleep)
    try:
        for event in events:
            match event.pop("event", None):
                case "message":
                    yield event
                    left = None if left is None else left - 1
                    if left == 0:
                        return
                case "lost":
                    notice(f"{what(event['error'])}. Trying again every {RETRY_DELAY_S:g} s; Ctrl-C ends.")
                    away = True
                case "open" if away:
                    notice("The node is back.")
                    away = False
    finally:
        events.close()


def _page_size(left: int | None) -> int:
    return PAGE_MESSAGES if left is None else min(left, PAGE_MESSAGES)
