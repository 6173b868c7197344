"""The other side of a connection, and what became of a Deferred."""

from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from meshproto import wire
from meshproto.errors import MeshError
from tests.net.pipe import Pipe

T = TypeVar("T")

result_of = SynchronousTestCase().successResultOf
failure_of = SynchronousTestCase().failureResultOf
no_result_of = SynchronousTestCase().assertNoResult


def start(work: Coroutine[Any, Any, T]) -> "Deferred[T]":
    return ensureDeferred(work)


class Far:
    """The seed's side of one connection: what it was asked, and its answers."""

    def __init__(self, protocol: IProtocol) -> None:
        self.protocol = protocol
        self.pipe = Pipe()
        self._asked: list[dict[str, Any]] = []
        protocol.makeConnection(self.pipe)

    @property
    def asked(self) -> list[dict[str, Any]]:
        self._asked += [msgspec.json.decode(line) for line in self.pipe.take().splitlines()]
        return self._asked

    def say(self, line: bytes) -> None:
        self.protocol.dataReceived(line)

    def answer(self, result: msgspec.Struct, request_id: int | None = None) -> None:
        self.say(wire.encode_result(self.asked[-1]["id"] if request_id is None else request_id, result))

    def refuse(self, error: MeshError) -> None:
        self.say(wire.encode_error(self.asked[-1]["id"], error))

    def lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))
