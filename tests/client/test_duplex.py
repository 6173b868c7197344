"""HTTP both ways at once, when the other side goes away."""

import socket
from collections.abc import Iterator

import pytest

from meshproto.client.duplex import Duplex


class Closing:
    """What is written when the other side has just gone, after saying `last`."""

    def __init__(self, other: socket.socket, last: bytes) -> None:
        self._other, self._last = other, last
        self.waiting = True
        self.ended = False

    def next_bytes(self) -> bytes:
        self._other.sendall(self._last)
        self._other.close()
        return b"a line\n"

    def waits_on(self) -> int | None:
        return None


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    mine, other = socket.socketpair()
    with mine, other:
        yield mine, other


def test_nobody_reads_nor_says_anything(ends: tuple[socket.socket, socket.socket]) -> None:
    """The reason why nothing could be written is not kept to itself."""
    mine, other = ends
    duplex = Duplex(mine, Closing(other, b""), 5.0)
    with pytest.raises(BrokenPipeError):
        duplex.readinto(bytearray(10))


def test_nobody_reads_but_says_why(ends: tuple[socket.socket, socket.socket]) -> None:
    """What the other side said before it went is read to its end."""
    mine, other = ends
    file = Duplex(mine, Closing(other, b"no"), 5.0).makefile()
    assert file.read() == b"no"
