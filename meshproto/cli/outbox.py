"""Reading the outbox page by page."""

from collections.abc import Iterator
from dataclasses import dataclass

from meshproto.client.errors import Document
from meshproto.client.node import Node

PAGE_MESSAGES = 1000  # the most a node gives at once: a page is shown when it is there, and each costs a question


@dataclass(frozen=True)
class Page:
    """A page of messages; the first one also tells who is waited for."""

    document: Document
    first: bool


def read(node: Node, *, status: str | None, to: str | None, limit: int | None) -> Iterator[Page]:
    """Pages, each asked for when it is wanted; at most `limit` messages. An older node has one page only."""
    after, left, first = None, limit, True
    while True:
        size = PAGE_MESSAGES if left is None else min(left, PAGE_MESSAGES)
        page = node.outbox(status=status, to=to, limit=size, after=after).document
        yield Page(page, first)
        left = None if left is None else left - len(page["messages"])
        following, first = page.get("next"), False
        if following is None or following == after or (left is not None and left <= 0):
            return
        after = following
