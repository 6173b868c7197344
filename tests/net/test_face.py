"""What each listener of a user node serves, and to whom."""

import pytest

from meshproto.net.door import Door
from meshproto.net.face import Face, site
from meshproto.net.http import LOOPBACK_HOSTS
from tests.net.test_front import OWNERS, problem
from tests.world import USER_PORT, Answer, World

PUBLIC = [("POST", "/deliver"), ("GET", "/.well-known/meshproto"), ("GET", "/healthz")]


@pytest.fixture
def world() -> World:
    world = World(11)
    world.add_seed("seedX")
    world.add_user("UserX", seeds=["seedX"])
    world.add_user("Bobby", seeds=["seedX"])
    world.run_until(world.registered)
    return world


def ask(world: World, method: str, path: str, **headers: str) -> Answer:
    return world.ask(method, "Bobby", path, {"to": "UserX", "message": "x"}, **headers)


@pytest.mark.parametrize(("method", "path"), OWNERS)
def test_where_nobody_is_the_owner_the_owners_routes_are_unknown(world: World, method: str, path: str) -> None:
    """A listener without a door, as the one for peers beside --api, answers the owner's routes as it does unknown
    ones, also to somebody with a token."""
    world.users["Bobby"].face.door = None
    for headers in ({}, {"authorization": "Bearer secret"}):
        answer = ask(world, method, path, **headers)
        assert problem(answer) == (404, "Not Found")
        assert answer.json["detail"] == f"{method} {path}: there is no such route here"
    assert world.get("UserX", "/inbox").json["messages"] == []


@pytest.mark.parametrize(("method", "path"), OWNERS)
def test_nor_are_they_at_addresses_of_the_local_network(world: World, method: str, path: str) -> None:
    """What --lan opens there has no owner's part, though the node has a door elsewhere; what peers need is there."""
    host, node = world.hosts["Bobby"], world.users["Bobby"]
    host.tcpServers.clear()
    host.listenTCP(USER_PORT, node.public_site)
    assert node.face.door is not None
    assert problem(ask(world, method, path)) == (404, "Not Found")
    assert world.get("Bobby", "/healthz").code == 200
    assert world.send("UserX", "Bobby", "Hello").json["status"] == "delivered"


def test_a_stream_finds_no_door_either(world: World) -> None:
    """A streamed /send is as unknown there."""
    world.users["Bobby"].face.door = None
    assert problem(ask(world, "POST", "/send", **{"content-type": "application/x-ndjson"})) == (404, "Not Found")


def test_peers_are_served_without_a_door(world: World) -> None:
    """Messages come in, and health and record are told, where the owner's part is elsewhere."""
    world.users["Bobby"].face.door = None
    assert world.send("UserX", "Bobby", "hello").code == 200
    assert ask(world, "GET", "/healthz").code == 200
    assert ask(world, "GET", "/.well-known/meshproto").code == 200


def test_the_owners_own_listener_serves_nobody_else(world: World) -> None:
    """A listener that is the owner's alone has the owner's routes, behind its own door, and no public ones."""
    host, node = world.hosts["Bobby"], world.users["Bobby"]
    host.tcpServers.clear()
    host.listenTCP(USER_PORT, site(Face(None, node.front, Door("secret", LOOPBACK_HOSTS)), host))
    token = {"authorization": "Bearer secret"}
    assert world.get("Bobby", "/status", **token).code == 200
    assert problem(world.get("Bobby", "/status")) == (401, "Unauthorized")
    for method, path in PUBLIC:
        assert problem(ask(world, method, path, **token)) == (404, "Not Found")


def test_a_listener_that_was_given_no_door_is_closed(world: World) -> None:
    """Until there is a door the owner's own listener lets nobody in."""
    host, node = world.hosts["Bobby"], world.users["Bobby"]
    host.tcpServers.clear()
    host.listenTCP(USER_PORT, site(Face(None, node.front), host))
    for method, path in OWNERS:
        assert problem(ask(world, method, path)) == (403, "Forbidden")


def test_what_the_owner_reads_stays_out_of_caches_and_other_pages(world: World) -> None:
    """A browser without Sec-Fetch-Site neither stores the owner's answers nor hands them to another page."""
    headers = world.get("Bobby", "/inbox").headers
    assert headers["cache-control"] == "no-store"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-content-type-options"] == "nosniff"
