"""What the tests of a node's HTTP connections share."""

import json

from tests.net.raw_http import RawHTTP
from tests.world import World

GET = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
MIB = 2**20


def two_users() -> World:
    """UserX and Bobby, at home."""
    world = World(21)
    world.add_seed("seedX")
    world.add_user("UserX", seeds=["seedX"])
    world.add_user("Bobby", seeds=["seedX"])
    world.run_until(world.registered)
    return world


def post(length: int, path: str = "/deliver") -> bytes:
    """A head that announces a body."""
    return b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % (path.encode(), length)


def refused(client: RawHTTP) -> tuple[int, str]:
    """Status and detail of the one answer on a connection, which is closed then."""
    assert client.closed
    head, _, body = client.heard.partition(b"\r\n\r\n")
    fields = head.split(b"\r\n")
    assert b"Content-Type: application/problem+json" in fields
    assert b"Connection: close" in fields
    assert b"Content-Length: %d" % len(body) in fields
    document = json.loads(body)
    assert document["status"] == client.status
    assert document["title"]
    return client.status, document["detail"]


def answers(client: RawHTTP) -> list[int]:
    """The status of each answer that came on the connection."""
    return [int(part.split(b" ")[1]) for part in client.heard.split(b"HTTP/1.1 ")[1:] for part in [b" " + part]]


def again(world: World) -> None:
    """Bobby's node starts again, with the limits as they are now."""
    world.stop("Bobby")
    world.restart("Bobby")
    world.run_until(world.registered)
