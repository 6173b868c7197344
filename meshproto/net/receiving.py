"""Takes sealed batches from peers onto the disk, and lets the owner read them."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from meshproto.core.envelope import Opened, open_batch, seal_receipt
from meshproto.core.identity import Entropy, Identity, Record, fingerprint, unb64
from meshproto.core.inbox import Received, sort
from meshproto.errors import KeyChanged, SlowDown
from meshproto.net.clocks import NowMs
from meshproto.net.contacts import CHANGED
from meshproto.net.deferred import Waiters, apart
from meshproto.net.inbox_table import InboxTable
from meshproto.net.message_log import MessageLog
from meshproto.net.tallies import ReceivedTally

READERS_MAX: Final = 1000
"""Long polls at a time."""


class Page(NamedTuple):
    """`next`: the cursor to go on after; the one that was asked for when there is nothing new."""

    messages: list[Received]
    next: int


def shown(message: Received) -> dict[str, Any]:
    """A message of the inbox as its readers see it, whichever way they read."""
    return {
        "cursor": message.cursor,
        "id": message.id,
        "from": message.sender,
        "type": message.type,
        "message": message.message,
        "sent_at": message.sent_at,
        "received_at": message.received_at,
    }


class Receiving:
    """`identity`: the keys in use. `check` raises :class:`MeshError` unless the user may write (:class:`Writers`).
    `heard` gets the name of everyone who has written: a sign of life. `listeners` are called when something may have
    come. `message_log`: None where messages are not in the log."""

    log = Logger()

    def __init__(
        self,
        identity: Callable[[], Identity],
        table: InboxTable,
        clock: IReactorTime,
        now_ms: NowMs,
        entropy: Entropy,
        check: Callable[[Record, str, int], Awaitable[None]],
        heard: Callable[[str], None],
        message_log: MessageLog | None = None,
    ) -> None:
        self.tally = ReceivedTally()
        self._message_log = message_log
        self._identity = identity
        self._table = table
        self._clock = clock
        self._now_ms = now_ms
        self._entropy = entropy
        self._check = check
        self._heard = heard
        self._readers: Waiters[None, bool] = Waiters(clock, READERS_MAX)
        self._stopped = False
        self.listeners: set[Callable[[], None]] = set()

    async def deliver(self, body: bytes, network: str = "") -> bytes:
        """A sealed batch, from a network -> the sealed receipt, when its letters are on disk. Raises what
        :func:`meshproto.core.envelope.open_batch` and `check` do, :class:`KeyChanged`, and
        :class:`meshproto.errors.Unavailable`; then nothing of it was kept."""
        opened = open_batch(body, self._identity())
        await self._check(opened.sender, network, len(body))
        return await apart(self._keep(opened))

    async def _keep(self, opened: Opened) -> bytes:
        sender = opened.sender
        letters, refused = sort(opened.batch)
        try:
            repeated = await self._table.receive(sender, opened.signed, letters, self._now_ms())
        except KeyChanged as error:
            if error.news:  # once: whoever goes on writing must not fill the log
                self.log.warn(f"refused mail: {CHANGED}", reason=error.detail)
            raise
        self.tally.messages += len(letters) - len(repeated)
        self.tally.repeated += len(repeated)
        self.tally.refused += len(refused)
        if self._message_log is not None:
            self._message_log.received(sender, letters, repeated)
        # Also when all of it is there already: the commit may have been told to have failed, and had not.
        self._readers.tell(None, True)
        for listener in self.listeners:
            listener()
        self._heard(sender.name)
        return seal_receipt(opened, [letter.id for letter in letters], refused, self._entropy)

    @property
    def readers(self) -> int:
        """Who wait for messages, each with a request."""
        return len(self._readers)

    async def last(self) -> int:
        """The cursor of the latest message that ever came."""
        return (await self._table.totals()).last

    async def inbox(self, after: int, sender: str | None, limit: int, wait_s: float, print_: str | None = None) -> Page:
        """A page; when there is nothing yet, whatever has come within `wait_s`. `print_`: only what was sent with the
        key of this fingerprint. Raises :class:`SlowDown`."""
        deadline = self._clock.seconds() + wait_s
        while True:
            found = await self._table.page(after, sender, limit)
            messages = [one for one in found if print_ is None or fingerprint(unb64(one.sender.key)) == print_]
            after = found[-1].cursor if found else after
            if found and not messages:  # all are of another key
                continue
            left_s = deadline - self._clock.seconds()
            if messages or left_s <= 0 or self._stopped:
                return Page(messages, after)
            if self._readers.full:
                raise SlowDown(f"{READERS_MAX} requests wait for messages already", retry_after_s=1.0)
            await self._readers.wait(None, left_s)

    def stop(self) -> None:
        """Let everyone who waits have what there is, from now on at once."""
        self._stopped = True
        self._readers.tell_all(False)
