"""The HTTP face of a user node: what it takes, what it answers, whom it lets in."""

import json
from typing import Any

import pytest

from meshproto.core.envelope import DEPTH_MAX, MESSAGE_BYTES_MAX, SEALED_BYTES_MAX
from meshproto.core.outbox import RECIPIENT_MESSAGES_MAX
from meshproto.net import front, history_front, public_front, receiving
from meshproto.net.asked import SEND_BYTES_MAX, TO_NAMES_MAX
from meshproto.net.door import Door
from meshproto.net.http_channel import DISCARD_BYTES_MAX
from tests.world import Answer, World

both_ways = pytest.mark.usefixtures("way")


@pytest.fixture
def world() -> World:
    world = World(11)
    world.add_seed("seedX")
    world.add_user("UserX", seeds=["seedX"])
    world.add_user("Bobby", seeds=["seedX"])
    world.run_until(world.registered)
    return world


def problem(answer: Answer) -> tuple[int, str]:
    """Status and title of a problem document, which has the form of RFC 9457."""
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["status"] == answer.code
    assert answer.json["type"] == "about:blank"
    assert answer.json["detail"]
    return answer.code, answer.json["title"]


# -- sending ------------------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("message", ["text", "", 0, None, False, [], {"a": [1, 2.5, {"b": "ü"}]}, "\u2028\U0001f600"])
def test_any_json_is_a_message(world: World, message: Any) -> None:
    """Whatever JSON was sent is what is read."""
    assert world.send("Bobby", "UserX", message).code == 200
    assert world.inbox("UserX") == [message]


@both_ways
def test_ids_rise_with_time(world: World) -> None:
    """An id that the node makes is higher than those of the milliseconds before, and has random characters."""
    ids = []
    for _ in range(5):
        ids.append(world.send("Bobby", "UserX", "text").json["id"])
        world.run(0.002)
    assert ids == sorted(ids)
    assert {len(id_) for id_ in ids} == {32}
    assert len({id_[12:] for id_ in ids}) == len(ids)


@both_ways
def test_curl_says_form(world: World) -> None:
    """The content type that curl -d gives by itself does not matter, nor does a body with % and & in it."""
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert world.post("Bobby", "/send", {"to": "UserX", "message": "100%&a=b+c"}, **form).code == 200
    assert world.post("Bobby", "/send/UserX", b"disk 100% full & more", **form).code == 200
    assert world.inbox("UserX") == ["100%&a=b+c", "disk 100% full & more"]


def test_raw_body_with_options(world: World) -> None:
    """POST /send/NAME takes id, type, ttl and wait from the query."""
    answer = world.post("Bobby", "/send/UserX?id=one&type=alarm&wait=1&ttl=60", b"disk full")
    assert answer.json == {"id": "one", "to": "UserX", "status": "delivered"}
    (message,) = world.get("UserX", "/inbox").json["messages"]
    assert (message["id"], message["type"], message["message"]) == ("one", "alarm", "disk full")
    assert message["from"] == {"name": "Bobby", "key": world.get("UserX", "/lookup/Bobby").json["key"]}
    assert message["sent_at"] <= message["received_at"]


@both_ways
def test_the_same_id_is_the_same_message(world: World) -> None:
    """A message sent again under its id is answered as before and arrives once, also as Idempotency-Key; with another
    text it is refused."""
    body = {"to": "UserX", "message": "once", "id": "k1"}
    first = world.post("Bobby", "/send", body)
    assert world.post("Bobby", "/send", body).json == first.json
    assert world.post("Bobby", "/send", {"to": "UserX", "message": "once"}, **{"Idempotency-Key": "k1"}).code == 200
    assert problem(world.post("Bobby", "/send", {**body, "message": "twice"})) == (409, "id reused")
    assert world.inbox("UserX") == ["once"]


@both_ways
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"to": "UserX"}',
        b'{"message": "x"}',
        b'{"to": "UserX", "message": "\xff"}',
        b'{"to": 5, "message": "x"}',
        b'{"to": [], "message": "x"}',
        b'{"to": "no such\\nname", "message": "x"}',
        b'{"to": "UserX", "message": "x", "wait": -1}',
        b'{"to": "UserX", "message": "x", "wait": 1e9}',
        b'{"to": "UserX", "message": "x", "ttl": 0}',
        b'{"to": "UserX", "message": "x", "id": ""}',
        b'{"to": "UserX", "message": NaN}',
        b'{"to": "UserX", "message": [1e999]}',
        b'{"to": "UserX", "message": ' + b"1" * 5000 + b"}",
        b'{"to": "UserX", "message": "x", "wait": 1e999}',
        b'{"to": "UserX", "message": "x", "wait": ' + b"1" * 5000 + b"}",
        b'{"to": "UserX", "message": "x", "ttl": -0}',
        json.dumps({"to": "UserX", "message": "x", "id": "i" * 129}).encode(),
        json.dumps({"to": ["UserX"] * (TO_NAMES_MAX + 1), "message": "x"}).encode(),
        b'{"to": "UserX", "message": ' + b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1) + b"}",
        b'{"to": "UserX", "message": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
)
def test_a_bad_body_is_refused(world: World, body: bytes) -> None:
    """A body that does not read is answered 400 with a sentence, and nothing is kept."""
    assert problem(world.post("Bobby", "/send", body)) == (400, "bad params")
    assert world.get("Bobby", "/outbox").json["messages"] == []


@pytest.mark.parametrize(
    "path",
    [
        "/send/UserX?wait=soon",
        "/send/UserX?ttl=-1",
        "/send/User%20X",
        "/send/UserX?id=",
        "/send/UserX?wait=1e999",
        "/send/UserX?ttl=" + "1" * 5000,
        "/send/UserX?wait=nan",
    ],
)
def test_a_bad_query_is_refused(world: World, path: str) -> None:
    """What stands in the path or query of /send/NAME is checked like the body of /send."""
    assert problem(world.post("Bobby", path, b"text"))[0] == 400


@pytest.mark.parametrize("number", ["1" * 5000, "1e999", "-0.5", "nan", "9" * 16])
def test_a_number_in_a_query_is_bounded(world: World, number: str) -> None:
    """A number that no cursor can be is answered 400, however long."""
    for path in ("/inbox?after=", "/inbox?limit=", "/outbox?after="):
        assert problem(world.get("Bobby", path + number))[0] == 400


def test_bytes_that_are_no_text_are_refused(world: World) -> None:
    """A raw body that is not UTF-8 is refused with a hint."""
    answer = world.post("Bobby", "/send/UserX", b"\xff\x00")
    assert problem(answer) == (400, "bad params")
    assert "base64" in answer.json["detail"]


@both_ways
def test_the_largest_message(world: World) -> None:
    """A message of full size arrives; one byte more is 413; and a body beyond what any route takes is 413 too."""
    text = "x" * (MESSAGE_BYTES_MAX - 2)
    assert world.send("Bobby", "UserX", text).code == 200
    assert problem(world.send("Bobby", "UserX", text + "x")) == (413, "too large")
    assert problem(world.post("Bobby", "/send", b" " * (SEND_BYTES_MAX + 1))) == (413, "too large")
    assert problem(world.post("Bobby", "/deliver", b" " * (SEALED_BYTES_MAX + 1))) == (413, "too large")
    assert world.inbox("UserX") == [text]


@both_ways
def test_a_huge_body_is_cut_off(world: World) -> None:
    """A client that announces more than we would throw away is answered 413 at once and hung up on."""
    answer = world.post("Bobby", "/deliver", b" " * (DISCARD_BYTES_MAX + 1))
    assert (answer.code, answer.json["title"]) == (413, "too large")


@both_ways
def test_a_full_queue_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """When too many messages wait for one recipient, or in all, /send answers 429 and when to come back."""
    assert RECIPIENT_MESSAGES_MAX > 2
    world.send("Bobby", "UserX", "known")
    world.stop("UserX")
    monkeypatch.setattr("meshproto.core.outbox.RECIPIENT_MESSAGES_MAX", 2)
    assert [world.send("Bobby", "UserX", n, wait=0).code for n in range(2)] == [202, 202]
    answer = world.send("Bobby", "UserX", "too many", wait=0)
    assert problem(answer) == (429, "slow down")
    assert int(answer.headers["retry-after"]) > 0
    assert world.send("Bobby", "Bobby", "others go on").code == 200
    monkeypatch.setattr("meshproto.core.outbox.OUTBOX_MESSAGES_MAX", 2)
    assert problem(world.send("Bobby", "Bobby", "all full", wait=0)) == (429, "slow down")


@both_ways
def test_names_are_looked_up_a_few_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not more than LOOKUPS_MAX at once, and each gets its answer."""
    monkeypatch.setattr("meshproto.net.accepting.LOOKUPS_MAX", 1)
    answer = world.post("Bobby", "/send", {"to": ["UserX", "Nobody", "Bobby"], "message": "x"})
    assert [one["status"] for one in answer.json["results"]] == ["delivered", "failed", "delivered"]


# -- reading ------------------------------------------------------------------------------------------------------


def test_pages_of_the_inbox(world: World) -> None:
    """`next` goes into `after` until a page is empty, and then stays; `from` and `limit` choose."""
    for number in range(5):
        world.send("Bobby", "UserX", number)
    world.send("UserX", "UserX", "note to self")
    page = world.get("UserX", "/inbox?limit=2").json
    assert [message["message"] for message in page["messages"]] == [0, 1]
    page = world.get("UserX", f"/inbox?limit=10&after={page['next']}&from=bobby").json
    assert [message["message"] for message in page["messages"]] == [2, 3, 4]
    last = world.get("UserX", "/inbox").json["next"]
    assert world.get("UserX", f"/inbox?after={last}").json == {"messages": [], "next": last}


def test_a_long_poll_ends_with_the_message(world: World) -> None:
    """GET /inbox?wait= is answered as soon as a message is there, and empty when the time is over."""
    pending = world.request("GET", "UserX", "/inbox?wait=30")
    world.run(3)
    world.send("Bobby", "UserX", "now")
    assert [message["message"] for message in world.wait(pending, 0.5).json["messages"]] == ["now"]
    started = world.clock.seconds()
    assert world.get("UserX", "/inbox?wait=7&after=1").json == {"messages": [], "next": 1}
    assert world.clock.seconds() - started == pytest.approx(7)


def test_a_reader_that_hangs_up_costs_nothing(world: World) -> None:
    """A long poll whose client goes away is not waited for any more."""
    for _ in range(3):
        pending = world.request("GET", "UserX", "/inbox?wait=30")
        world.run(1)
        pending.addErrback(lambda _: None)
        pending.cancel()
        world.run(1)
    assert not world.users["UserX"].receiving._readers._waiting


def test_a_long_poll_ends_when_the_node_stops(world: World) -> None:
    """Whoever waits for a message when the node stops is answered at once, with what there is."""
    pending = world.request("GET", "UserX", "/inbox?wait=30")
    world.run(1)
    world.users["UserX"].receiving.stop()
    assert world.wait(pending, 0.1).json == {"messages": [], "next": 0}


def test_too_many_readers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long polls have a limit; past it the answer is 429, and a plain GET still works."""
    monkeypatch.setattr(world.users["UserX"].receiving._readers, "_waiters_max", 1)
    assert receiving.READERS_MAX > 1
    first = world.request("GET", "UserX", "/inbox?wait=30")
    world.run(1)
    assert problem(world.get("UserX", "/inbox?wait=30")) == (429, "slow down")
    assert world.get("UserX", "/inbox").code == 200
    world.wait(first)


@pytest.mark.parametrize("query", ["after=x", "after=-1", "limit=0", "limit=1001", "wait=61", "wait=x", "from=a%20b"])
def test_a_bad_inbox_query(world: World, query: str) -> None:
    """What does not fit in a query is refused with a sentence."""
    assert problem(world.get("UserX", f"/inbox?{query}"))[0] == 400


def test_the_outbox_shows_each_message(world: World) -> None:
    """A waiting message shows how far it came and why it is not further, its recipient's queue when it is tried next;
    a delivered one is delivered; an unknown one is 404."""
    world.send("Bobby", "UserX", "one", id="one")
    world.stop("UserX")
    world.send("Bobby", "UserX", "two", id="two", wait=0)
    world.run(2)
    assert world.get("Bobby", "/outbox/one").json["status"] == "delivered"
    two = world.get("Bobby", "/outbox/two").json
    assert two["status"] == "delivering"
    assert "refused" in two["reason"]
    listing = world.get("Bobby", "/outbox?status=waiting").json
    assert [message["id"] for message in listing["messages"]] == ["two"]
    (queue,) = listing["recipients"]
    assert (queue["to"], queue["waiting"]) == ("UserX", 1)
    assert queue["attempts"] >= 1 and queue["next_try_at"] > world.clock.seconds() * 1000
    assert problem(world.get("Bobby", "/outbox/three")) == (404, "Not Found")


def test_lookup_seeds_contacts_and_status(world: World) -> None:
    """The owner sees the mesh as the node sees it."""
    found = world.get("Bobby", "/lookup/userx").json
    assert (found["name"], found["home"], found["online"]) == ("UserX", "seedX", True)
    assert found["address"] == f"UserX~{world.identities['UserX'].fingerprint}"
    assert problem(world.get("Bobby", "/lookup/Nobody")) == (404, "User Not Found")
    world.run(1)
    (seed,) = world.get("Bobby", "/seeds").json["seeds"]
    assert (seed["name"], seed["alive"], seed["users"], seed["home"]) == ("seedX", True, 2, True)
    assert world.get("Bobby", "/contacts").json == {"contacts": []}
    world.send("Bobby", "UserX", "hello")
    (contact,) = world.get("UserX", "/contacts").json["contacts"]
    assert (contact["name"], contact["fingerprint"]) == ("Bobby", world.identities["Bobby"].fingerprint)
    status = world.get("Bobby", "/status").json
    assert status["name"] == "Bobby" and status["registered"] and status["home"]["name"] == "seedX"
    assert status["outbox"] == {"waiting": 0, "recipients": 0, "oldest_at": None}


def test_anyone_may_know(world: World) -> None:
    """The node's own record and its health are for anyone, whatever name they call it by."""
    elsewhere = {"host": "mesh.example.org", "origin": "https://example.org"}
    told = world.get("Bobby", "/.well-known/meshproto", **elsewhere).json
    assert json.loads(told["record"])["name"] == "Bobby" and told["protocol"] == 1
    assert world.get("Bobby", "/healthz", **elsewhere).json == {"status": "ok"}


def test_no_such_route(world: World) -> None:
    """An unknown path is 404 and a wrong method 405, each as a problem document."""
    assert problem(world.get("Bobby", "/nowhere")) == (404, "Not Found")
    answer = world.get("Bobby", "/send")
    assert problem(answer) == (405, "Method Not Allowed")
    assert answer.headers["allow"] == "OPTIONS, POST"


# -- the owner's door ---------------------------------------------------------------------------------------------

OWNERS = [
    ("POST", "/send"),
    ("POST", "/send/UserX"),
    ("GET", "/inbox"),
    ("GET", "/inbox/stream"),
    ("GET", "/outbox"),
    ("GET", "/outbox/1"),
    ("DELETE", "/outbox/1"),
    ("POST", "/outbox/retry"),
    ("GET", "/history"),
    ("GET", "/history/UserX"),
    ("PUT", "/history/UserX"),
    ("GET", "/search"),
    ("GET", "/lookup/UserX"),
    ("GET", "/seeds"),
    ("GET", "/contacts"),
    ("GET", "/contacts/UserX"),
    ("PUT", "/contacts/UserX"),
    ("DELETE", "/contacts/UserX"),
    ("GET", "/contacts/UserX/qr"),
    ("GET", "/qr"),
    ("GET", "/status"),
    ("GET", "/doctor"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
]


def test_every_route_is_the_owners_or_known_to_be_public() -> None:
    """A route that is added must be put on one of the two lists."""
    routes = {
        (method, rule.rule.replace("<name>", "UserX").replace("<id:message_id>", "1"))
        for app in (front.Front.app, history_front.HistoryFront.app, public_front.PublicFront.app)
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }
    public = {("POST", "/deliver"), ("GET", "/.well-known/meshproto"), ("GET", "/healthz")}
    assert routes == {*OWNERS, *public}


@pytest.mark.parametrize(("method", "path"), OWNERS)
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:3000"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:8080", "host": "localhost:3000"},
        {"sec-fetch-site": "cross-site"},
        {"x-forwarded-for": "192.0.2.1"},
        {"forwarded": "for=192.0.2.1"},
    ],
)
def test_the_door_is_closed_to_pages_and_proxies(world: World, method: str, path: str, headers: dict[str, str]) -> None:
    """A tokenless node refuses the owner's routes to anything that a web page or a proxy may have sent."""
    assert problem(world.ask(method, "Bobby", path, {"to": "UserX", "message": "x"}, **headers)) == (403, "Forbidden")


@pytest.mark.parametrize("host", ["localhost:3000", "localhost", "127.0.0.1:5012", "[::1]:3000", "LOCALHOST:3000"])
def test_the_door_is_open_on_this_machine(world: World, host: str) -> None:
    """The node answers to the names of this machine, and to its own page."""
    assert world.get("Bobby", "/status", host=host).code == 200
    assert world.get("Bobby", "/status", host=host, origin=f"http://{host}").code == 200


@pytest.mark.parametrize(("method", "path"), OWNERS)
def test_the_token(world: World, method: str, path: str) -> None:
    """A node with a token refuses the owner's routes without it, and with another."""
    world.users["Bobby"].face.door = Door("secret", ["bobby.example"])
    body = {"to": "UserX", "message": "x"}
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
        answer = world.ask(method, "Bobby", path, body, host="bobby.example", **headers)
        assert problem(answer) == (401, "Unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_the_token_opens(world: World) -> None:
    """With the token the owner comes in, also through a proxy."""
    world.users["Bobby"].face.door = Door("secret", ["bobby.example"])
    headers = {"authorization": "Bearer secret", "host": "bobby.example", "x-forwarded-for": "192.0.2.1"}
    assert world.get("Bobby", "/status", **headers).code == 200


# -- what peers send ----------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", b'{"sender":{"record":"{}","sig":""},"to":"","box":""}'])
def test_a_bad_batch_is_refused(world: World, body: bytes) -> None:
    """What is not a sealed batch is answered 400, and nothing of it is kept."""
    assert problem(world.post("UserX", "/deliver", body))[0] == 400
    assert world.inbox("UserX") == []
