"""Events of a node, on and on, as the command follows them: a person looks on, so it tries again every second."""

import time
from collections.abc import Callable

from meshproto.client.following import Following
from meshproto.client.node import Node
from meshproto.client.retrying import Patience
from meshproto.client.stream import Stream

RETRY_DELAY_S = 1.0


def stream(
    node: Node,
    kinds: str,
    *,
    after: int,
    sender: str | None = None,
    names: str | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Stream:
    """`kinds`, `sender`, `names`: see :func:`meshproto.client.asking.events_request`."""
    patience = Patience(time.monotonic, first_s=RETRY_DELAY_S, max_s=RETRY_DELAY_S, chance=None)
    following = Following(node.url, kinds, patience, after=after, sender=sender, names=names)
    return Stream(node, following, sleep)
