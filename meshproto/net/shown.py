"""How messages and what became of them are shown to the owner."""

from typing import Any

from twisted.web.iweb import IRequest

from meshproto.core.identity import fingerprint, grouped, unb64
from meshproto.core.queue import Queue, Status
from meshproto.errors import MeshError
from meshproto.net.accepting import Outcome
from meshproto.net.contacts_table import Contact
from meshproto.net.http import answer_json, answer_problem
from meshproto.net.outbox_table import Kept
from meshproto.net.sending import Sending


def outcome(request: IRequest, outcome: Outcome, wanted: Status = Status.DELIVERED) -> bytes:
    """200 for the end that was `wanted`, 202 for none yet, 409 for another."""
    if outcome.status is wanted:
        return answer_json(request, outcome)
    if not outcome.status.final:
        return answer_json(request, outcome, 202)
    detail = outcome.reason or f"the message is {outcome.status}"
    return answer_problem(request, 409, f"message {outcome.status}", detail, id=outcome.id, to=outcome.to)


def failed(error: MeshError, **known: Any) -> dict[str, Any]:
    """One of several messages that came to nothing; `known`: what there is to tell it by."""
    shown = {**known, "status": "failed", "code": error.code, "title": error.title, "reason": error.detail}
    return shown if error.retry_after_s is None else {**shown, "retry_after": max(1, round(error.retry_after_s))}


def kept_shown(kept: Kept, sending: Sending) -> dict[str, Any]:
    """A message of the outbox, as it is at this moment."""
    status = sending.status_of(kept.recipient, kept.row, kept.status)
    return {
        "cursor": kept.row,
        "id": kept.id,
        "to": kept.to,
        "status": status,
        "sent_at": kept.sent_at,
        "expires_at": kept.expires_at,
        "changed_at": kept.changed_at,
        "reason": kept.reason if status.final else sending.why(kept.recipient),
    }


def recipient_shown(queue: Queue, ahead_ms: float) -> dict[str, Any]:
    """`ahead_ms`: how far the wall clock is ahead of the queue's."""
    return {
        "to": queue.to,
        "waiting": queue.waiting,
        "oldest_at": queue.oldest_at,
        "attempts": queue.attempts,
        "next_try_at": None if queue.tried_at is None else int(queue.tried_at * 1000 + ahead_ms),
        "reason": queue.why,
    }


def contact_shown(contact: Contact) -> dict[str, Any]:
    """`groups`: the fingerprint to be compared by eye."""
    offered = contact.offered
    return {
        "name": contact.name,
        **_key_shown(contact.name, contact.key),
        "first_seen": contact.first_seen,
        "verified_at": contact.verified_at,
        "offered": offered and {**_key_shown(contact.name, offered.key), "seen_at": offered.seen_at},
    }


def _key_shown(name: str, key: str) -> dict[str, str]:
    print_ = fingerprint(unb64(key))
    return {"key": key, "fingerprint": print_, "groups": grouped(print_), "address": f"{name}~{print_}"}
