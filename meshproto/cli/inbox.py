"""Reading the inbox: to its end, or on and on."""

import time
from collections.abc import Callable, Iterator

from meshproto.cli.exits import passes, sentence
from meshproto.cli.node import Document, Node, Problem, Unreachable

LONG_POLL_S = 25  # below the 30 s after which many proxies give up on a silent answer
RETRY_DELAY_S = 1.0
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
    retry_delay_s: float = RETRY_DELAY_S,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Document]:
    """The messages that are there and those that come, for ever or until there were `limit`.

    A node that goes away is waited for, and `notice` is told. Only one that was never there is an error:
    then the address is wrong rather than the node restarting.
    """
    left = limit
    was_there = away = False
    while left is None or left > 0:
        try:
            page = node.inbox(after=after, sender=sender, limit=_page_size(left), wait_s=LONG_POLL_S).document
        except (Unreachable, Problem) as error:
            if not was_there or not passes(error):
                raise
            if not away:
                notice(f"{sentence(error)} Trying again every {retry_delay_s:g} s; Ctrl-C ends.")
            away = True
            sleep(retry_delay_s)
            continue
        if away:
            notice("The node is back.")
        was_there, away = True, False
        yield from page["messages"]
        left = None if left is None else left - len(page["messages"])
        after = page["next"]


def _page_size(left: int | None) -> int:
    return PAGE_MESSAGES if left is None else min(left, PAGE_MESSAGES)
