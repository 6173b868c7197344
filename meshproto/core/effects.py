"""What a seed wants done: frozen values that the shell carries out in order.

A *link* is a number that the shell gave to a connection; an *address* is a HOST:PORT where another seed listens.
"""

from collections.abc import Coroutine
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from meshproto.errors import MeshError
from meshproto.wire import EntryValue, GossipParams, Id, encode_error, encode_result


class Send(Struct, frozen=True):
    """Write the line to the link."""

    link: int
    line: bytes


class Tell(Struct, frozen=True):
    """Write the line to the links, in one's own time: it says how the folded name stands, and takes the place of what
    was to be told of that name before."""

    name: str
    line: bytes
    links: tuple[int, ...]


Row = tuple[str, EntryValue | None]
"""A folded name and its own entry; None: there is none any more."""


class Save(Struct, frozen=True):
    """Write the rows; when they are on disk carry out `then`, if that fails `otherwise`."""

    rows: tuple[Row, ...]
    then: tuple[Send, ...] = ()
    otherwise: tuple[Send, ...] = ()


class SavePeer(Struct, frozen=True):
    """Remember the address for the next start."""

    address: str


class Exchange(Struct, frozen=True):
    """Ask the seed at the address for a gossip exchange and bring the answer to
    :meth:`meshproto.core.seed.Seed.exchanged`, its absence to :meth:`meshproto.core.seed.Seed.unreachable`."""

    address: str
    params: GossipParams


class Push(Struct, frozen=True):
    """Tell the seed at the address without waiting for an answer; nothing is lost if it is not reached."""

    address: str
    params: GossipParams


class Log(Struct, frozen=True):
    """Something the operator should read."""

    text: str


class Ask(Struct, frozen=True):
    """Something that takes a while: run it, and carry out what it returns; it does not raise. `link`: the one that
    waits for it, if any does."""

    work: "Coroutine[Any, Any, list[Effect]]"
    link: int | None = None


class Reply(Struct, frozen=True):
    """Whom to answer, and to which request; a notification has no answer."""

    link: int
    request_id: Id | UnsetType

    def result(self, result: Struct) -> list[Send]:
        return [] if self.request_id is UNSET else [Send(self.link, encode_result(self.request_id, result))]

    def error(self, error: MeshError) -> list[Send]:
        return [] if self.request_id is UNSET else [Send(self.link, encode_error(self.request_id, error))]


Effect = Send | Tell | Save | SavePeer | Exchange | Push | Log | Ask
