"""What a client hands out: the node's documents as objects. `document` is each as it came, with all that it says."""

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Self

from meshproto.client.errors import Document, Problem, failure

FINGERPRINT_CHARS = 16


@dataclass(frozen=True)
class Draft:
    """A message to be sent. `id`: made up if it is not given; the same id for the same recipient is the same message.
    `ttl_s`: how long to keep trying, `wait_s`: how long to wait for the delivery; the node's own values if None."""

    to: str
    message: object
    id: str | None = None
    type: str = ""
    ttl_s: float | None = None
    wait_s: float | None = None


@dataclass(frozen=True)
class Sent:
    """How far a message has come: `delivered` is on the recipient's disk, `queued` on the own node's. Of one of several
    that was not taken the status is `failed`, and `error` says why."""

    id: str
    to: str
    status: str
    reason: str | None = None
    error: Problem | None = None

    @property
    def is_delivered(self) -> bool:
        return self.status == "delivered"

    @classmethod
    def read(cls, document: Document) -> Self:
        reason = document.get("reason")
        return cls(
            str(document.get("id", "")),
            str(document.get("to", "")),
            str(document["status"]),
            None if reason is None else str(reason),
            failure(document),
        )


@dataclass(frozen=True)
class Message:
    """One message of the inbox. `name` is what its sender calls themselves, `key` is proven; `cursor` its place."""

    cursor: int
    id: str
    name: str
    key: str
    type: str
    message: object
    sent_at_ms: int
    received_at_ms: int
    document: Document = field(repr=False, compare=False)

    @property
    def sender(self) -> str:
        """The full address, NAME~FINGERPRINT: what is sent there goes to nobody but whoever wrote this."""
        return f"{self.name}~{fingerprint(self.key)}"

    @classmethod
    def read(cls, document: Document) -> Self:
        return cls(
            cursor=int(document["cursor"]),
            id=str(document["id"]),
            name=str(document["from"]["name"]),
            key=str(document["from"]["key"]),
            type=str(document.get("type") or ""),
            message=document["message"],
            sent_at_ms=int(document["sent_at"]),
            received_at_ms=int(document["received_at"]),
            document=document,
        )


@dataclass(frozen=True)
class Page:
    """Messages, oldest first; `next` goes into `after`."""

    messages: tuple[Message, ...]
    next: int

    @classmethod
    def read(cls, document: Document) -> Self:
        return cls(tuple(map(Message.read, document["messages"])), int(document["next"]))


@dataclass(frozen=True)
class Found:
    """A user as the mesh knows them. What a seed says is None when none was reached and this is the last known."""

    name: str
    address: str
    fingerprint: str
    uris: tuple[str, ...]
    online: bool | None
    seen_ms: int | None
    document: Document = field(repr=False, compare=False)

    @classmethod
    def read(cls, document: Document) -> Self:
        return cls(
            name=str(document["name"]),
            address=str(document["address"]),
            fingerprint=str(document["fingerprint"]),
            uris=tuple(document["uris"]),
            online=document["online"],
            seen_ms=document["seen"],
            document=document,
        )


@dataclass(frozen=True)
class Status:
    """The own node at a glance. `waiting`: messages in its outbox; `next`: the latest cursor of its inbox; `problem`:
    why it is registered nowhere."""

    name: str
    address: str
    fingerprint: str
    version: str
    registered: bool
    problem: str | None
    waiting: int
    next: int
    document: Document = field(repr=False, compare=False)

    @classmethod
    def read(cls, document: Document) -> Self:
        return cls(
            name=str(document["name"]),
            address=str(document["address"]),
            fingerprint=str(document["fingerprint"]),
            version=str(document["version"]),
            registered=bool(document["registered"]),
            problem=document["problem"],
            waiting=int(document["outbox"]["waiting"]),
            next=int(document["inbox"]["next"]),
            document=document,
        )


@dataclass(frozen=True)
class Kept:
    """One message of the outbox, and what became of it."""

    id: str
    to: str
    status: str
    reason: str | None
    sent_at_ms: int
    expires_at_ms: int
    changed_at_ms: int
    document: Document = field(repr=False, compare=False)

    @classmethod
    def read(cls, document: Document) -> Self:
        return cls(
            id=str(document["id"]),
            to=str(document["to"]),
            status=str(document["status"]),
            reason=document["reason"],
            sent_at_ms=int(document["sent_at"]),
            expires_at_ms=int(document["expires_at"]),
            changed_at_ms=int(document["changed_at"]),
            document=document,
        )


def fingerprint(key: str) -> str:
    """Of an identity key, as docs/protocol.md has it (records). Here without what signs and seals: a client does
    neither."""
    digest = hashlib.sha256(base64.urlsafe_b64decode(key + "=" * (-len(key) % 4))).digest()
    return base64.b32encode(digest).decode("ascii").lower()[:FINGERPRINT_CHARS]
