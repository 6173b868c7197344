"""Many messages in one streamed request."""

import json
from typing import Any

import pytest

from meshproto.core.inbox import WAIT_S_MAX
from meshproto.net import bulk
from meshproto.net.asked import SEND_BYTES_MAX
from meshproto.net.door import Door
from meshproto.net.http_channel import DISCARD_BYTES_MAX, DRAIN_S, IDLE_TIMEOUT_S
from meshproto.net.outflow import STALL_S, Outflow
from tests.net.raw_http import RawHTTP
from tests.world import World


@pytest.fixture
def world() -> World:
    world = World(3)
    world.add_seed("seedX")
    world.add_user("UserX", seeds=["seedX"])
    world.add_user("Bobby", seeds=["seedX"])
    world.run_until(world.registered)
    return world


@pytest.fixture
def client(world: World) -> RawHTTP:
    client = RawHTTP(world, "Bobby")
    client.begin()
    return client


def message(number: int, to: str = "UserX", **more: Any) -> dict[str, Any]:
    return {"to": to, "message": number, "id": f"id{number}", **more}


def test_as_it_goes(world: World, client: RawHTTP) -> None:
    """Results come while the stream is still open, each with what /send would have said."""
    client.lines(message(1))
    world.run(0.1)
    assert client.status == 200
    assert b"application/x-ndjson" in client.heard
    assert client.results == [{"id": "id1", "to": "UserX", "status": "delivered"}]
    client.lines(message(2), message(3))
    world.run(0.1)
    assert [result["id"] for result in client.results] == ["id1", "id2", "id3"]
    assert not client.over
    client.end()
    assert client.over
    assert world.inbox("UserX") == [1, 2, 3]


def test_order(world: World, client: RawHTTP) -> None:
    """A thousand lines arrive in their order, and are answered in it, however the bytes were cut."""
    text = b"".join(json.dumps(message(number)).encode() + b"\n" for number in range(1000))
    for at in range(0, len(text), 777):
        client.chunk(text[at : at + 777])
    client.end()
    world.run(1)
    assert [result["id"] for result in client.results] == [f"id{number}" for number in range(1000)]
    assert {result["status"] for result in client.results} == {"delivered"}
    assert world.inbox("UserX") == list(range(1000))


BAD = [
    (b"nonsense", 400, "bad params", "the line does not read"),
    (b'{"to": "UserX"}', 400, "bad params", "message"),
    (b'{"to": ["UserX"], "message": 1}', 400, "bad params", "one name"),
    (b'{"to": "a b", "message": 1}', 400, "bad params", "neither a name"),
    (b'{"to": "UserX", "message": 1, "wait": 61}', 400, "bad params", "wait"),
    (b'{"to": "Nobody", "message": 1}', 404, "User Not Found", "no seed knows"),
    (b'{"to": "UserX", "message": "' + b"\xff" + b'"}', 400, "bad params", "utf-8"),
    (b'{"to": "UserX", "message": "' + b"x" * SEND_BYTES_MAX + b'"}', 413, "too large", "the line is longer"),
    (b'{"to": "UserX", "message": ' + b"[" * 101 + b"]" * 101 + b"}", 400, "bad params", "nested"),
]


@pytest.mark.parametrize(("line", "code", "title", "reason"), BAD)
def test_a_bad_line(world: World, client: RawHTTP, line: bytes, code: int, title: str, reason: str) -> None:
    """A line that is wrong is answered in its place with its number, and the stream goes on."""
    client.lines(message(1))
    client.chunk(b"\n" + line + b"\n")
    client.lines(message(2))
    client.end()
    world.run(1)
    first, failed, last = client.results
    assert (first["id"], last["id"]) == ("id1", "id2")
    assert (failed["line"], failed["status"], failed["code"], failed["title"]) == (3, "failed", code, title)
    assert reason in failed["reason"]
    assert world.inbox("UserX") == [1, 2]


def test_an_id_reused(world: World, client: RawHTTP) -> None:
    """The same line twice is one message; another text under the same id is refused, with what could be read."""
    client.lines(message(1), message(1), message(2) | {"id": "id1"})
    client.end()
    world.run(1)
    first, again, other = client.results
    assert first == again
    assert (other["line"], other["id"], other["to"], other["code"]) == (3, "id1", "UserX", 409)
    assert world.inbox("UserX") == [1]


def test_no_id(world: World, client: RawHTTP) -> None:
    """A line without an id gets one of its own."""
    client.lines({"to": "UserX", "message": 1}, {"to": "UserX", "message": 1})
    client.end()
    world.run(1)
    assert len({result["id"] for result in client.results}) == 2
    assert world.inbox("UserX") == [1, 1]


def test_the_last_line_needs_no_newline(world: World, client: RawHTTP) -> None:
    """Of a stream that ends in good order."""
    client.chunk(json.dumps(message(1)).encode())
    client.end()
    world.run(1)
    assert world.inbox("UserX") == [1]


def test_broken_off(world: World, client: RawHTTP) -> None:
    """When the connection breaks, what was accepted stays, and half a line is nothing."""
    client.lines(message(1))
    client.chunk(json.dumps(message(2)).encode())
    client.hang_up()
    world.run(1)
    assert world.inbox("UserX") == [1]
    assert world.get("Bobby", "/outbox/id2").code == 404


def test_nothing(world: World, client: RawHTTP) -> None:
    """A stream without a line has no results."""
    client.end()
    world.run(1)
    assert (client.status, client.results, client.over) == (200, [], True)


def test_with_a_length(world: World) -> None:
    """A stream may come with a Content-Length, as curl sends a file; then the connection goes on."""
    client = RawHTTP(world, "Bobby")
    body = b"".join(json.dumps(message(number)).encode() + b"\n" for number in range(3))
    head = b"POST /send HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-ndjson; charset=utf-8\r\n"
    client.say(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    world.run(1)
    assert [result["status"] for result in client.results] == ["delivered"] * 3
    client.heard = b""
    client.say(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    world.run(1)
    assert client.status == 200


def test_someone_away(world: World, client: RawHTTP) -> None:
    """Lines to someone who is known to be away are queued without waiting for each of them."""
    world.send("Bobby", "UserX", "known")
    world.crash("UserX")
    started = world.clock.seconds()
    client.lines(*(message(number) for number in range(50)))
    client.lines(*(message(number) for number in range(50, 100)))
    client.end()
    world.run_until(lambda: client.over)
    assert {result["status"] for result in client.results} == {"queued"}
    assert len(client.results) == 100
    assert world.clock.seconds() - started < 11
    world.restart("UserX")
    world.run(3)
    assert world.inbox("UserX")[1:] == list(range(100))


def test_the_window(world: World, client: RawHTTP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not more than WINDOW_LINES results, and a group, are due at a time: the rest is not read before."""
    monkeypatch.setattr(bulk, "WINDOW_LINES", 10)
    monkeypatch.setattr(bulk, "GROUP_LINES_MAX", 5)
    monkeypatch.setattr(bulk, "BUFFER_BYTES_MAX", 200)
    world.send("Bobby", "UserX", "known")
    world.cut("Bobby", "UserX")
    for number in range(100):
        client.lines(message(number, wait=5))
    world.run(1)
    assert world.on_disk("Bobby", "SELECT count(*) FROM outbox WHERE status='queued'") <= 15
    world.heal()
    client.end()
    world.run(60)
    assert len(client.results) == 100
    assert world.inbox("UserX")[1:] == list(range(100))


def test_a_long_wait(world: World, client: RawHTTP) -> None:
    """A stream is not idle while a result is due, however long its line may wait."""
    world.send("Bobby", "UserX", "known")
    world.cut("Bobby", "UserX")
    client.lines(message(1, wait=WAIT_S_MAX))
    world.run(WAIT_S_MAX + 1)
    assert [result["status"] for result in client.results] == ["queued"]
    assert not client.closed
    world.run(IDLE_TIMEOUT_S)
    assert client.closed


def test_room(world: World, client: RawHTTP, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the outbox is full of what is being delivered the stream waits for room."""
    monkeypatch.setattr("meshproto.core.outbox.RECIPIENT_MESSAGES_MAX", 3)
    client.lines(*(message(number) for number in range(20)))
    client.end()
    world.run(10)
    assert {result["status"] for result in client.results} == {"delivered"}
    assert world.inbox("UserX") == list(range(20))


def test_no_room(world: World, client: RawHTTP, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is full for someone who is away the line is answered 429, and when to come back; others go on."""
    monkeypatch.setattr("meshproto.core.outbox.RECIPIENT_MESSAGES_MAX", 2)
    world.send("Bobby", "UserX", "known")
    world.crash("UserX")
    world.send("Bobby", "UserX", "waits", id="waits", wait=3)
    client.lines(message(1), message(2), message(3, to="Bobby"))
    client.end()
    world.run(10)
    taken, refused, other = client.results
    assert taken["status"] == "queued"
    assert (refused["code"], refused["id"], refused["retry_after"]) == (429, "id2", 5)
    assert other["status"] == "delivered"


def test_no_room_for_long(world: World, client: RawHTTP, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line waits ROOM_WAIT_S for room, and is then answered 429."""
    monkeypatch.setattr("meshproto.core.outbox.RECIPIENT_MESSAGES_MAX", 1)
    monkeypatch.setattr(bulk, "ROOM_WAIT_S", 3.0)
    world.send("Bobby", "UserX", "known")
    world.cut("Bobby", "UserX")  # what is sent hangs, so nobody knows yet that UserX is away
    client.lines(message(1, wait=0), message(2, wait=0))
    world.run(2.5)
    assert client.results == []
    world.run(1)
    assert [result.get("code") for result in client.results] == [None, 429]


def test_a_full_disk(world: World, client: RawHTTP) -> None:
    """When the disk refuses, every line of the group says so, and nothing of it is kept."""
    world.run(1)
    world.users["Bobby"]._store.outbox._database.close()
    client.lines(message(1), message(2))
    client.end()
    world.run(1)
    assert [(result["code"], result["line"]) for result in client.results] == [(503, 1), (503, 2)]


@pytest.mark.parametrize("ends", [True, False])
def test_the_door(world: World, ends: bool) -> None:
    """Who is not the owner is refused, also before the end of their stream, and nothing is sent."""
    world.users["Bobby"].face.door = Door("secret", ["bobby.example"])
    client = RawHTTP(world, "Bobby")
    client.begin()
    client.lines(message(1))
    if ends:
        client.end()
    world.run(DRAIN_S + 1)
    assert client.status == 401
    assert client.closed is not ends
    assert world.inbox("UserX") == []


def test_a_stranger_cannot_send_for_ever(world: World) -> None:
    """Of a stream that is refused DISCARD_BYTES_MAX are read at most."""
    world.users["Bobby"].face.door = Door("secret", ["bobby.example"])
    client = RawHTTP(world, "Bobby")
    client.begin()
    for _ in range(DISCARD_BYTES_MAX // 2**20 + 2):
        if not client.closed:
            client.chunk(b" " * 2**20)
    world.run(0.1)
    assert client.status == 401
    assert client.closed


def test_another_route(world: World) -> None:
    """The content type makes a stream of POST /send alone; elsewhere it says nothing."""
    client = RawHTTP(world, "Bobby")
    head = b"POST /send/UserX HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-ndjson\r\n"
    client.say(head + b"Content-Length: 2\r\n\r\nhi")
    world.run(1)
    assert client.status == 200
    assert world.inbox("UserX") == ["hi"]


def outflows(monkeypatch: pytest.MonkeyPatch) -> list[Outflow]:
    """Those that are made from now on."""
    made: list[Outflow] = []

    class Made(Outflow):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr("meshproto.net.front.Outflow", Made)
    return made


def test_whoever_has_said_all_and_reads_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within STALL_S they take what there is, or the connection ends."""
    made = outflows(monkeypatch)
    clients = [RawHTTP(world, "Bobby") for _ in range(2)]
    for client in clients:
        client.begin()
        client.lines(message(1))
    world.run(0.1)
    for outflow, client in zip(made, clients, strict=True):
        outflow.pauseProducing()
        client.lines(message(2))
        client.end()
    world.run(STALL_S / 2)
    made[0].resumeProducing()
    world.run(STALL_S / 2 + 1)
    assert [client.closed for client in clients] == [False, True]
    assert [len(client.results) for client in clients] == [2, 1]


def test_expect(world: World) -> None:
    """A client that asks whether it may send is told to go on."""
    client = RawHTTP(world, "Bobby")
    client.begin(Expect="100-continue")
    world.run(0.1)
    assert client.heard.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")


def test_a_client_that_never_reads(world: World, client: RawHTTP, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose client takes no results is idle, however many are due, and is closed like any other."""
    monkeypatch.setattr(Outflow, "blocked", True)
    world.crash("UserX")
    for number in range(20):
        client.lines(message(number, wait=60))
    world.run(IDLE_TIMEOUT_S + 20)
    assert client.closed
    assert client.results == []


def test_stopped_amid_a_stream(world: World, client: RawHTTP) -> None:
    """What still comes of a stream that the node has ended is not taken for another request."""
    client.lines(message(1))
    world.users["Bobby"].front.stop()
    world.settle()
    client.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    world.run(1)
    assert client.closed
    assert client.heard.count(b"HTTP/1.1") == 1


def test_a_slow_reader(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a client does not take its results nothing more is written, and nothing more than a window is accepted."""
    monkeypatch.setattr(bulk, "WINDOW_LINES", 10)
    monkeypatch.setattr(bulk, "GROUP_LINES_MAX", 5)
    made = outflows(monkeypatch)
    client = RawHTTP(world, "Bobby")
    client.begin()
    made[0].pauseProducing()  # as the transport does when its buffer is full
    for number in range(100):
        client.lines(message(number))
    client.end()
    world.run(1)
    assert len(client.results) <= 1
    assert len(world.inbox("UserX")) <= 20
    made[0].resumeProducing()
    world.run(1)
    assert [result["id"] for result in client.results] == [f"id{number}" for number in range(100)]
    assert world.inbox("UserX") == list(range(100))
