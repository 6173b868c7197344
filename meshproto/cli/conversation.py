"""A conversation as it stands: what was said, how far one's own messages have come, whether the other is there.

Pure: events in, changes out. What is shown, and where events come from, is for others.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from meshproto.cli.render import message_text
from meshproto.client.errors import Document

ENTRIES_MAX = 5000  # a long evening's talk; older ones are in the history, and the memory is not without end
UNSENT = "unsent"  # typed here, and not taken by the node yet
FAILED = "failed"  # the node does not take it
_STEPS = (UNSENT, "queued", "locating", "delivering")
ENDS = frozenset({"delivered", "expired", "refused", "cancelled", FAILED})

Key = tuple[str, str]
"""A message: the key of its sender, `""` for oneself, and its id."""


@dataclass
class Entry:
    """One message. `at_ms`: when it came here, or was sent; `status`: of one's own."""

    key: Key
    at_ms: int
    who: str
    text: str
    status: str | None = None
    reason: str | None = None
    changed_at_ms: int | None = None

    @property
    def own(self) -> bool:
        return self.status is not None

    @property
    def ended(self) -> bool:
        """Whether nothing more will become of it."""
        return self.status is None or self.status in ENDS


@dataclass(frozen=True)
class Presence:
    """`online`: None if nobody knows. `seen_ms`: when they were last."""

    online: bool | None = None
    seen_ms: int | None = None


class Conversation:
    """With `name`, as it is typed: a name, or one with a fingerprint."""

    def __init__(self, name: str) -> None:
        self.name = name.partition("~")[0]
        self.presence = Presence()
        self._entries: dict[Key, Entry] = {}

    @property
    def entries(self) -> list[Entry]:
        """In the order in which they were told."""
        return list(self._entries.values())

    def waiting(self) -> list[Entry]:
        """Those of one's own of which more will be heard."""
        return [entry for entry in self._entries.values() if not entry.ended]

    def is_own(self, message_id: str) -> bool:
        """Whether the message of this id is known as one of one's own."""
        return ("", message_id) in self._entries

    def concerns(self, event: Document) -> bool:
        """Whether an event of the outbox or of presence is about the other."""
        name = event.get("to", event.get("name", ""))
        return str(name).partition("~")[0].lower() == self.name.lower()

    # -- what happens --------------------------------------------------------------------------------------------

    def came(self, message: Document) -> Entry | None:
        """A message from the other; None: it is there already."""
        sender = message["from"]
        key = (str(sender["key"]), str(message["id"]))
        return self._add(Entry(key, message["received_at"], str(sender["name"]), message_text(message["message"])))

    def typed(self, message_id: str, text: str, at_ms: int) -> Entry:
        """One's own, about to be sent."""
        entry = Entry(("", message_id), at_ms, "you", message_text(text), UNSENT)
        return self._add(entry) or self._entries[entry.key]

    def remember(self, items: Iterable[Document]) -> list[Entry]:
        """Messages out of the history, oldest first; those that were not there yet."""
        added = [self._remember(item) for item in items]
        # What was typed meanwhile came before it here, and after it in the world.
        self._entries = dict(sorted(self._entries.items(), key=lambda item: item[1].at_ms))
        return [entry for entry in added if entry is not None]

    def stands(self, message_id: str, status: str, reason: Any, changed_at_ms: int | None) -> Entry | None:
        """How far one's own message has come; None if that is no news. It only ever goes forward."""
        entry = self._entries.get(("", message_id))
        if entry is None or entry.status in ENDS or not _is_later(entry, status, reason):
            return None
        entry.status, entry.reason = status, None if reason is None else str(reason)
        entry.changed_at_ms = changed_at_ms
        return entry

    def held_up(self, reason: Any) -> list[Entry]:
        """Why what waits for the other is not further (None: it is on its way); those of which that is news."""
        waiting = [entry for entry in self.waiting() if entry.status != UNSENT]
        known = [self.stands(entry.key[1], str(entry.status), reason, None) for entry in waiting]
        return [entry for entry in known if entry is not None]

    def seen(self, online: bool | None, seen_ms: int | None) -> bool:
        """Whether the other is there; whether that is news."""
        before, self.presence = self.presence, Presence(online, seen_ms)
        return before.online is not online

    def _remember(self, item: Document) -> Entry | None:
        if item["direction"] == "in":
            return self.came(item)
        key, changed_at = ("", str(item["id"])), item.get("changed_at")
        text, reason = message_text(item["message"]), item.get("reason")
        entry = Entry(key, item["at"], "you", text, str(item["status"]), reason, changed_at)
        if key in self._entries:
            self.stands(key[1], str(item["status"]), reason, changed_at)
            return None
        return self._add(entry)

    def _add(self, entry: Entry) -> Entry | None:
        if entry.key in self._entries:
            return None
        self._entries[entry.key] = entry
        while len(self._entries) > ENTRIES_MAX:
            del self._entries[next(iter(self._entries))]
        return entry


def _is_later(entry: Entry, status: str, reason: Any) -> bool:
    """`queued` follows upon `delivering` when an attempt has failed; but nothing is typed anew."""
    if status == UNSENT:
        return entry.status == UNSENT and reason != entry.reason
    return (status, reason) != (entry.status, entry.reason)
