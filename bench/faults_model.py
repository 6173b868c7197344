"""The delivery promise, as a user reads it in docs/http.md: what must hold of the answers that were given, whatever
happened to the nodes, the network and the disks. It knows nothing of how the promise is kept.

1. What was answered 2xx is in the recipient's inbox exactly once, or its end is expired, refused or cancelled; then at
   most once, and not at all unless the reason says that it may have arrived.
2. An answer `delivered` is true at that moment: the message is on the recipient's disk.
3. From one sender to one recipient, what was answered 2xx before another send was begun comes before it in the inbox.
4. Nothing is in an inbox that was not sent, by that sender to that recipient with that id; nothing is there twice.
5. The state of a message never goes back, and an end never changes.
6. What was answered with a refusal is not delivered. Only without an answer, and when the sender's disk did not know
   what it had written, may either have happened.
7. Every message that was accepted comes to an end, and never by expiring before its time.

Asking again with the same id is the same message: all its answers are taken together.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

RANKS: Final = {"queued": 0, "locating": 1, "delivering": 2, "delivered": 3, "expired": 3, "refused": 3, "cancelled": 3}
FINAL: Final = 3
OPEN_CODES: Final = (500, 503)
"""Answers that leave it open whether the message was kept, when the disk did too."""

MAY_HAVE_ARRIVED: Final = "may have arrived"
"""In the reason of an end that is not `delivered`: the message was on its way without an answer."""

OnDisk = Callable[[str, str, str], bool]
"""Recipient, sender and id: whether the message would survive the recipient's death now."""


@dataclass
class Message:
    """What a client wants sent, to one recipient. `begun`: when that was asked for first; `kept`: an answer said that
    it was accepted, the first of them at `kept_at`; `maybe`: it may have been; `refused`: what the others said."""

    sender: str
    to: str
    id: str
    text: str
    begun: int
    ttl_s: float
    kept: bool = False
    kept_at: int | None = None
    maybe: bool = False
    refused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.id} from {self.sender} to {self.to} ({self.text[:12]})"


class Seen(NamedTuple):
    """A state that was told, asked for at `begun` and heard at `heard`."""

    begun: int
    heard: int
    status: str


class Entry(NamedTuple):
    """One message in an inbox."""

    sender: str
    id: str
    text: str


class Model:
    """`on_disk` looks at a disk at that very moment."""

    def __init__(self, on_disk: OnDisk) -> None:
        self._on_disk = on_disk
        self._moment = 0
        self.messages: list[Message] = []
        self._seen: dict[tuple[str, str, str], list[Seen]] = {}
        self._sure: set[tuple[str, str, str]] = set()  # those that ended without having been on their way
        self.problems: list[str] = []

    def moment(self) -> int:
        """A number for now: what happens later has a higher one."""
        self._moment += 1
        return self._moment

    # -- what is done and heard ----------------------------------------------------------------------------------

    def send(self, sender: str, to: str, id_: str, text: str, ttl_s: float) -> Message:
        """A message that has not been asked for before."""
        message = Message(sender, to, id_, text, self.moment(), ttl_s)
        self.messages.append(message)
        return message

    def no_answer(self, message: Message) -> None:
        message.maybe = True

    def answered(self, message: Message, begun: int, code: int, body: dict[str, Any], *, doubt: bool) -> None:
        """An answer to `POST /send` for one recipient, asked for at the moment `begun`. `doubt`: since then the
        sender's disk reported a commit as failed that it had written."""
        heard = self.moment()
        status, title = body.get("status"), body.get("title", "")
        if code in (200, 202):
            self._kept(message, heard)
            if code == 202 and RANKS.get(str(status), FINAL) == FINAL:
                self.problems.append(f"{message}: answered 202 {status}")
            if code == 200 and status != "delivered":
                self.problems.append(f"{message}: answered 200 {status}")
            if status == "delivered":
                self._delivered(message)
            self._see(message, begun, heard, str(status) if code == 200 else "waits")
        elif code == 409 and title.startswith("message "):
            self._kept(message, heard)
            self._see(message, begun, heard, title.removeprefix("message "))
        elif code in OPEN_CODES and doubt:
            message.maybe = True
        else:
            message.refused.append(f"{code} {title}")
        if code == 500 or title == "key changed":
            self.problems.append(f"{message}: answered {code} {title}: {body.get('detail') or body.get('reason')}")

    def shown(self, message: Message, begun: int, status: str, reason: str | None = MAY_HAVE_ARRIVED) -> None:
        """What the outbox said, with the `reason` if that is known."""
        if status not in RANKS:
            self.problems.append(f"{message}: shown as {status}")
            return
        if status == "delivered":
            self._delivered(message)
        elif RANKS[status] == FINAL and MAY_HAVE_ARRIVED not in (reason or ""):
            self._sure.add(_key(message))
        self._see(message, begun, self.moment(), status)

    def unknown(self, message: Message, begun: int) -> None:
        """`GET /outbox/ID` said 404."""
        if message.kept_at is not None and message.kept_at < begun:
            self.problems.append(f"{message}: was accepted, and is not in the outbox")

    def expired_early(self, message: Message) -> None:
        self.problems.append(f"{message}: expired before its {message.ttl_s:g} s were over")

    # -- what must hold ------------------------------------------------------------------------------------------

    def judge(self, inboxes: dict[str, list[Entry]]) -> list[str]:
        """The problems when everything has come to rest; see the head of this file."""
        found = [*self.problems, *self._states()]
        for to, entries in inboxes.items():
            found += self._inbox(to, entries)
        for message in self.messages:
            count = sum(entry == (message.sender, message.id, message.text) for entry in inboxes[message.to])
            found += [f"{message}: {problem}" for problem in self._fate(message, count)]
        kept = [_key(message) for message in self.messages if message.kept]
        return [*found, *(f"{key}: two texts were accepted" for key in dict.fromkeys(kept) if kept.count(key) > 1)]

    def ends(self, message: Message) -> set[str]:
        """The ends of a message that were told."""
        seen = self._seen.get(_key(message), [])
        return {state.status for state in seen if RANKS.get(state.status) == FINAL}

    def _fate(self, message: Message, count: int) -> Iterable[str]:
        if not message.kept and not message.maybe and count:
            yield f"was refused ({message.refused}), and delivered"
        if message.kept:
            ends = self.ends(message)
            if count and _key(message) in self._sure:
                yield f"ended as {ends}, surely not delivered, and is in the inbox"
            if not ends:
                yield "was accepted, and comes to no end"
            elif ends == {"delivered"} and count != 1:
                yield f"was delivered, and is in the inbox {count} times"

    def _inbox(self, to: str, entries: list[Entry]) -> Iterable[str]:
        sent = {(message.sender, message.id, message.text): message for message in self.messages if message.to == to}
        places: dict[tuple[str, str], int] = {}
        for place, entry in enumerate(entries):
            if entry not in sent:
                yield f"{entry} is in the inbox of {to}, and was not sent"
            if (entry.sender, entry.id) in places:
                yield f"{entry} is twice in the inbox of {to}"
            places[entry.sender, entry.id] = place
        begun_max: dict[str, tuple[int, Message]] = {}
        for entry in entries:
            message = sent.get(entry)
            if message is None:
                continue
            latest = begun_max.get(entry.sender)
            if latest is not None and message.kept_at is not None and message.kept_at < latest[0]:
                yield f"{message} was accepted before {latest[1]} was begun, and comes after it"
            if latest is None or message.begun > latest[0]:  # the one begun last of those so far
                begun_max[entry.sender] = message.begun, message

    def _states(self) -> Iterable[str]:
        for (sender, to, id_), seen in self._seen.items():
            for later in seen:
                for earlier in seen:
                    if earlier.heard < later.begun and _goes_back(earlier.status, later.status):
                        yield f"{id_} from {sender} to {to}: was {earlier.status}, then {later.status}"

    # -- inside --------------------------------------------------------------------------------------------------

    def _kept(self, message: Message, heard: int) -> None:
        message.kept = True
        if message.kept_at is None:
            message.kept_at = heard

    def _delivered(self, message: Message) -> None:
        if not self._on_disk(message.to, message.sender, message.id):
            self.problems.append(f"{message}: told to be delivered, and not on the recipient's disk")

    def _see(self, message: Message, begun: int, heard: int, status: str) -> None:
        self._seen.setdefault(_key(message), []).append(Seen(begun, heard, status))


def _key(message: Message) -> tuple[str, str, str]:
    return message.sender, message.to, message.id


def _goes_back(earlier: str, later: str) -> bool:
    if "waits" in (earlier, later):  # accepted, and not at its end
        return later == "waits" and RANKS.get(earlier, 0) == FINAL
    if RANKS[earlier] == FINAL:
        return earlier != later
    return RANKS[later] < RANKS[earlier]
