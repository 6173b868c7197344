"""What a node answers, as shapes that nothing but its /openapi.json uses; tests hold them against a running node."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from meshproto.core.identity import ADDRESS_PATTERN
from meshproto.core.queue import Status as State
from meshproto.wire import SignedRecord

Ms = Annotated[int, Meta(description="ms since 1970 UTC")]
Groups = Annotated[str, Meta(description="the fingerprint, to be compared by eye")]
Address = Annotated[str, Meta(pattern=ADDRESS_PATTERN, description="a name, or `NAME~FINGERPRINT`")]


class Problem(Struct):
    """An error (RFC 9457): `detail` says what was wrong and what to do."""

    type: str
    title: str
    status: int
    detail: str


class Outcome(Struct):
    """How far a message has come, and why it is not further."""

    id: str
    to: str
    status: State
    reason: str | UnsetType = UNSET


class Result(Struct):
    """What became of one of several messages; of one that `failed`, what it would have been answered alone."""

    to: str
    status: Literal["queued", "locating", "delivering", "delivered", "expired", "refused", "cancelled", "failed"]
    id: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    code: int | UnsetType = UNSET
    title: str | UnsetType = UNSET
    retry_after: int | UnsetType = UNSET


class Results(Struct):
    """One for each recipient, in order."""

    results: list[Result]


class Correspondent(Struct):
    """`key` is proven; `name` is what that key calls itself."""

    name: str
    key: str


class Received(Struct):
    """One message of the inbox."""

    cursor: int
    id: str
    sender: Correspondent = msgspec.field(name="from")
    type: str
    message: Any
    sent_at: Ms
    received_at: Ms


class Inbox(Struct):
    """A page, oldest first; `next` goes into `after`."""

    messages: list[Received]
    next: int


class Stream(Struct):
    """Events without an end: Server-Sent Events, or lines of JSON if that is accepted."""


class Metrics(Struct):
    """Prometheus's text format 0.0.4."""


class Kept(Struct):
    """One message of the outbox."""

    cursor: int
    id: str
    to: str
    status: State
    sent_at: Ms
    expires_at: Ms
    changed_at: Ms
    reason: str | None


class Several(Struct):
    """An id that was used for several recipients."""

    results: list[Kept]


class Recipient(Struct):
    """For whom messages wait; `reason`: the last error, verbatim."""

    to: str
    waiting: int
    oldest_at: Ms
    attempts: int
    next_try_at: Ms | None
    reason: str | None


class Outbox(Struct):
    """A page; `next` goes into `after`, and is null on the last one."""

    messages: list[Kept]
    next: int | None
    recipients: list[Recipient]


class Retried(Struct):
    """Whose messages are tried again now, and how many those are."""

    retried: list[str]
    waiting: int


class Found(Struct):
    """A user as the mesh knows them. What a seed says is null when none was reached and this is the last known."""

    name: str
    key: str
    fingerprint: str
    groups: Groups
    address: Address
    uris: list[str]
    seq: int
    since: Ms | None
    home: str | None
    online: bool | None
    seen: Ms | None
    record: str
    sig: str


class Seed(Struct):
    """A seed as this node's home tells of it; `alive` is null when there is no home."""

    name: str
    address: str
    alive: bool | None
    users: int
    since: Ms
    phi: float
    lag: int
    home: bool


class Seeds(Struct):
    """Every seed known."""

    seeds: list[Seed]


class Offered(Struct):
    """Another key that has used a contact's name."""

    key: str
    fingerprint: str
    groups: Groups
    address: Address
    seen_at: Ms


class Item(Struct):
    """A message of the history: one of the inbox (`direction` is `in`), or of the outbox with what was sent (`out`)."""

    pos: int
    direction: Literal["in", "out"]
    at: Ms
    cursor: int
    id: str
    type: str
    message: Any
    sent_at: Ms
    sender: Correspondent | UnsetType = msgspec.field(default=UNSET, name="from")
    received_at: Ms | UnsetType = UNSET
    to: str | UnsetType = UNSET
    status: State | UnsetType = UNSET
    expires_at: Ms | UnsetType = UNSET
    changed_at: Ms | UnsetType = UNSET
    reason: str | UnsetType | None = UNSET


class Conversation(Struct):
    """With one name; `last` is null when the message is no longer kept."""

    name: str
    pos: int
    unread: int
    waiting: int
    last: Item | None


class Conversations(Struct):
    """A page, the latest first; `next` goes into `before`. `behind`: messages that are not in it yet."""

    conversations: list[Conversation]
    next: int | None
    behind: int


class Said(Struct):
    """A page of one conversation, oldest first."""

    messages: list[Item]
    before: int | None
    after: int | None
    total: int
    behind: int


class Unread(Struct):
    """What is left."""

    unread: int


class Hit(Item):
    """A message that was found; in the `snippet` the words are between U+0002 and U+0003."""

    with_: str = msgspec.field(default="", name="with")
    snippet: str = ""


class Hits(Struct):
    """A page, newest first; `next` goes into `before`."""

    hits: list[Hit]
    next: int | None
    behind: int


class Contact(Struct):
    """Whose key is pinned; `verified_at`: null until the owner has compared the fingerprint."""

    name: str
    key: str
    fingerprint: str
    groups: Groups
    address: Address
    first_seen: Ms
    verified_at: Ms | None
    offered: Offered | None


class Contacts(Struct):
    """In the order of their names."""

    contacts: list[Contact]


class Home(Struct):
    """The seed where this node is registered."""

    name: str
    address: str
    since: Ms


class Waiting(Struct):
    """What waits in the outbox."""

    waiting: int
    recipients: int
    oldest_at: Ms | None


class Came(Struct):
    """What came; `next`: the latest cursor."""

    messages: int
    next: int


class Keys(Struct):
    """Of how many contacts another key has used the name."""

    key_changed: int


class Program(Struct):
    """A program that the inbox is handed over to."""

    kind: str
    target: str
    next: int
    behind: int
    attempts: int
    next_try_at: Ms | None
    reason: str | None


class Summary(Struct):
    """The node at a glance; `problem`: why the node is registered nowhere, or who else has its key, `seed_answers`:
    whether a seed has said so, `disk`: what is wrong with it."""

    name: str
    fingerprint: str
    groups: Groups
    address: Address
    version: str
    uptime_s: float
    uris: list[str]
    home: Home | None
    registered: bool
    problem: str | None
    seed_answers: bool
    seeds: int
    outbox: Waiting
    inbox: Came
    contacts: Keys
    disk: str | None
    programs: list[Program]


class WellKnown(SignedRecord, frozen=True):
    """The node's own record, its version and its limits."""

    version: str
    protocol: int
    limits: dict[str, int]


class Health(Struct):
    """The node lives and can write to its disk."""

    status: Literal["ok"]
