"""Clients of a user node: send, follow the inbox, answer. See docs/clients.md.

`Client` waits for its answers, and needs nothing but the standard library. :mod:`meshproto.client.on_twisted` has one
of the same name whose methods return Deferreds. Results and errors are the same.
"""

from meshproto.client.blocking import Client
from meshproto.client.cursor import BadCursor
from meshproto.client.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    IdReused,
    KeyChanged,
    MessageEnded,
    NodeError,
    NotFound,
    OtherNode,
    Problem,
    QueueFull,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unreachable,
    UserNotFound,
)
from meshproto.client.results import Draft, Found, Kept, Message, Page, Sent, Status
from meshproto.client.settings import BadSetting

__all__ = [
    "BadCursor",
    "BadRequest",
    "BadSetting",
    "Client",
    "Conflict",
    "Draft",
    "Forbidden",
    "Found",
    "IdReused",
    "Kept",
    "KeyChanged",
    "Message",
    "MessageEnded",
    "NodeError",
    "NotFound",
    "OtherNode",
    "Page",
    "Problem",
    "QueueFull",
    "Sent",
    "Status",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "Unreachable",
    "UserNotFound",
]
