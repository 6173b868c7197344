"""A key that changes: what stops, what is told, and how the owner goes on."""

from collections.abc import Iterator
from typing import Any

import pytest
import treq
from msgspec import Raw
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from meshproto.core.envelope import Letter, seal
from meshproto.core.identity import Identity, grouped, verify
from meshproto.core.lookup import Located
from meshproto.core.names import Embedded
from tests.qr_reader import read_svg
from tests.world import USER_PORT, Answer, World


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What the log says loudly."""
    said: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event["log_level"].name == "warn" and "KEY" in (text := formatEvent(event)):
            said.append(text)

    globalLogPublisher.addObserver(observe)
    yield said
    globalLogPublisher.removeObserver(observe)


def mesh() -> World:
    """Bobby and UserX at one seed, who have exchanged a message each way."""
    world = World(1)
    world.add_seed("seedX")
    for name in ("Bobby", "UserX"):
        world.add_user(name, seeds=["seedX"])
    world.run_until(world.registered)
    assert world.send("Bobby", "UserX", "first").code == 200
    assert world.send("UserX", "Bobby", "first").code == 200
    world.run(1)  # so that whatever is signed from now on is newer
    return world


def change_key(world: World, run_s: float = 90) -> tuple[str, str]:
    """UserX loses the key, and the seed its memory; the old fingerprint and the new one. `run_s`: until what Bobby's
    node remembers of the old address is over, and what waits was tried."""
    old = world.identities["UserX"].fingerprint
    for name in [name for name in ("seedX", "UserX") if name in world.seeds or name in world.users]:
        world.crash(name)
    world.forget_disk("seedX", "UserX")
    world.identities["UserX"] = Identity.create(world.rng.randbytes, world.hosts["UserX"].now_ms())
    for name in ("seedX", "UserX"):
        world.restart(name)
    world.run_until(world.registered)
    world.run(run_s)
    return old, world.identities["UserX"].fingerprint


def contact(world: World, name: str = "UserX") -> Any:
    return world.get("Bobby", f"/contacts/{name}").json


def trust(world: World, print_: str, name: str = "UserX") -> Answer:
    return world.ask("PUT", "Bobby", f"/contacts/{name}", {"fingerprint": print_})


def test_a_changed_key_stops_delivery_both_ways_and_is_told_once(warnings: list[str]) -> None:
    """Nothing goes to the new key or comes from it; both fingerprints stand in the log once, in /contacts, and are
    counted in /status."""
    world = mesh()
    assert world.get("Bobby", "/status").json["contacts"] == {"key_changed": 0}
    old, new = change_key(world)
    for number in range(3):
        answer = world.send("Bobby", "UserX", number)
        assert (answer.code, answer.json["title"]) == (409, "key changed")
    world.send("UserX", "Bobby", "let me in", wait=1)
    assert world.inbox("UserX") == [] and world.inbox("Bobby") == ["first"]
    known = contact(world)
    assert (known["fingerprint"], known["groups"], known["verified_at"]) == (old, grouped(old), None)
    assert (known["offered"]["fingerprint"], known["offered"]["groups"]) == (new, grouped(new))
    assert known["offered"]["seen_at"] > known["first_seen"]
    assert [one["offered"] for one in world.get("Bobby", "/contacts").json["contacts"]] == [known["offered"]]
    assert world.get("Bobby", "/status").json["contacts"] == {"key_changed": 1}
    (line,) = warnings
    assert old in line and new in line


def test_a_changed_key_is_seen_in_mail_too(warnings: list[str]) -> None:
    """A batch under a contact's name that another key has sealed is refused and the key remembered, but only once,
    whatever keys come after it."""
    world = mesh()
    _, new = change_key(world)
    world.send("UserX", "Bobby", "let me in", id="in", wait=1)
    assert "is known here with the key" in world.get("UserX", "/outbox/in").json["reason"]
    assert contact(world)["offered"]["fingerprint"] == new
    world.run(300)
    forged(world, Identity.create(world.rng.randbytes, 0))
    assert contact(world)["offered"]["fingerprint"] == new
    assert len(warnings) == 1


def forged(world: World, mallory: Identity, seq: int | None = None) -> Answer:
    """A batch under UserX's name, sealed for Bobby by somebody else."""
    seq = world.hosts["Bobby"].now_ms() if seq is None else seq
    record = mallory.sign("UserX", ["http://10.9.9.9:3000"], seq)
    to = verify(world.users["Bobby"].seeds.own_record())
    letter = Letter("forged", Raw(b'"pay Mallory"'), 1)
    pending = seal([letter], mallory, record, to, world.rng.randbytes)
    return world.ask("POST", "Bobby", "/deliver", pending.body)


def test_a_stranger_cannot_stop_the_mail_to_a_contact() -> None:
    """A forged batch under a contact's name is refused and told of; what goes to the contact and comes from them goes
    on."""
    world = mesh()
    answer = forged(world, Identity.create(world.rng.randbytes, 0))
    assert (answer.code, answer.json["title"]) == (409, "key changed")
    assert world.get("Bobby", "/status").json["contacts"] == {"key_changed": 1}
    assert world.send("Bobby", "UserX", "second").code == 200
    assert world.send("UserX", "Bobby", "second").code == 200
    assert world.inbox("Bobby") == ["first", "second"]


def test_an_old_batch_is_no_news(warnings: list[str]) -> None:
    """A record older than the pinned one, repeated by somebody, is refused and is no changed key."""
    world = mesh()
    assert forged(world, Identity.create(world.rng.randbytes, 0), seq=1).code == 409
    assert contact(world)["offered"] is None
    assert warnings == []


def test_an_older_record_of_a_contact_is_refused() -> None:
    """Whoever has got hold of a mail key writes no longer than until the node has heard of the next record: the own
    node of a contact has seals with the newest."""
    world = mesh()
    thief = world.identities["UserX"]
    assert forged(world, thief, seq=1).json["title"] == "stale record"
    assert world.inbox("Bobby") == ["first"]
    assert world.send("UserX", "Bobby", "second").code == 200


def test_a_seed_that_answers_with_an_older_record_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a contact has shown of themselves since counts more: no mail is sealed for a key that may be stolen."""
    world = mesh()
    old = world.lookup("seedX", "UserX")
    assert old is not None
    world.users["UserX"].keys.rotate(world.hosts["UserX"].now_ms())
    world.run(1)
    assert world.send("UserX", "Bobby", "second").code == 200
    names = world.cores["seedX"]._names
    assert isinstance(names, Embedded)
    monkeypatch.setattr(names.registry, "find", lambda name, now: (old, []))
    located = world.wait(ensureDeferred(world.users["Bobby"].seeds.locate("UserX", fresh=True)))
    assert located.signed == world.users["UserX"].seeds.own_record() != old.signed
    assert world.send("Bobby", "UserX", "sealed for the new one").json["status"] == "delivered"


def test_a_contact_that_was_forgotten_is_looked_up_anew() -> None:
    """Not taken from what was looked up before."""
    world = mesh()
    _, new = change_key(world)
    assert world.send("Bobby", "UserX", "?").code == 409
    world.users["Bobby"].seeds._finding._cache.found("UserX", world.wait(located_before(world)), world.clock.seconds())
    assert world.ask("DELETE", "Bobby", "/contacts/UserX").code == 200
    assert world.users["Bobby"].seeds._finding._cache.get("UserX", world.clock.seconds()) is None
    assert world.send("Bobby", "UserX", "again").json["status"] == "delivered"
    assert contact(world)["fingerprint"] == new


def located_before(world: World) -> "Deferred[Located]":
    return ensureDeferred(world.users["Bobby"].seeds.locate("UserX"))


def test_what_waits_goes_on_after_trust() -> None:
    """Messages queued before the key changed wait, with both fingerprints as the reason, and go on at once when the
    owner trusts the new key."""
    world = mesh()
    world.stop("UserX")
    world.send("Bobby", "UserX", "queued", id="q", wait=0)
    old, new = change_key(world, run_s=400)
    kept = world.get("Bobby", "/outbox/q").json
    assert kept["status"] == "delivering"
    assert old in kept["reason"] and new in kept["reason"]
    assert world.inbox("UserX") == []
    answer = trust(world, new)
    assert answer.code == 200 and answer.json["verified_at"] is not None and answer.json["offered"] is None
    world.settle()
    assert world.inbox("UserX") == ["queued"]
    assert world.send("UserX", "Bobby", "thank you").code == 200
    assert world.get("Bobby", "/status").json["contacts"] == {"key_changed": 0}


def test_the_pinned_key_is_verified() -> None:
    """The fingerprint of the pinned key, however it is written, verifies it; nobody has to be asked."""
    world = mesh()
    print_ = world.identities["UserX"].fingerprint
    world.crash("seedX")
    for written in (print_, grouped(print_), grouped(print_).upper(), grouped(print_).replace("-", " ")):
        assert trust(world, written).code == 200
    assert contact(world)["verified_at"] == world.hosts["Bobby"].now_ms()
    assert world.get("Bobby", f"/contacts/userx~{print_}").json == contact(world)


def test_the_offered_key_is_trusted_without_a_seed() -> None:
    """A key that was seen before is trusted by its fingerprint while no seed can be asked."""
    world = mesh()
    _, new = change_key(world)
    world.send("Bobby", "UserX", "who?")
    world.cut("Bobby", "seedX")
    answer = trust(world, new, f"UserX~{new}")
    assert (answer.code, answer.json["fingerprint"]) == (200, new)
    assert world.send("Bobby", "UserX", "you", wait=30).code == 200


def test_what_was_looked_up_before_is_forgotten_with_trust() -> None:
    """A key that was seen in mail is trusted while the lookup of a moment ago still says the old one: messages go to
    the new key at once."""
    world = mesh()
    _, new = change_key(world, run_s=1)
    world.send("UserX", "Bobby", "let me in", wait=1)
    assert contact(world)["offered"]["fingerprint"] == new
    assert trust(world, new).code == 200
    assert world.send("Bobby", "UserX", "you").code == 200


def test_no_other_key_is_trusted() -> None:
    """A fingerprint that is none of the name's keys changes nothing, and both keys are shown."""
    world = mesh()
    old, new = change_key(world)
    answer = trust(world, "a" * 16)
    assert (answer.code, answer.json["title"]) == (409, "key changed")
    assert old in answer.json["detail"] and new in answer.json["detail"]
    known = contact(world)
    assert (known["fingerprint"], known["offered"]["fingerprint"], known["verified_at"]) == (old, new, None)
    assert trust(world, "0000").code == 400
    assert trust(world, new, f"UserX~{old}").code == 409


def test_a_stranger_is_looked_up_to_be_trusted() -> None:
    """A name that is no contact yet is pinned and verified if it answers with that key; else nothing is kept."""
    world = mesh()
    world.add_user("Eve", seeds=["seedX"])
    world.run_until(world.registered)
    assert trust(world, "a" * 16, "Eve").code == 409
    assert trust(world, "a" * 16, "Nobody").code == 404
    assert world.get("Bobby", "/contacts/Eve").code == 404
    assert trust(world, world.identities["Eve"].fingerprint, "Eve").code == 200
    assert contact(world, "Eve")["verified_at"] is not None


def test_a_contact_is_forgotten() -> None:
    """After DELETE the next key counts; there is nothing to forget twice."""
    world = mesh()
    _, new = change_key(world)
    assert world.send("Bobby", "UserX", "who?").code == 409
    assert world.ask("DELETE", "Bobby", f"/contacts/UserX~{new}").code == 404
    assert world.ask("DELETE", "Bobby", "/contacts/UserX").code == 200
    assert world.ask("DELETE", "Bobby", "/contacts/UserX").code == 404
    assert world.get("Bobby", "/status").json["contacts"] == {"key_changed": 0}
    assert world.send("Bobby", "UserX", "you").code == 200
    assert contact(world)["fingerprint"] == new


def test_a_full_address_is_strict_to_the_end() -> None:
    """What was sent to UserX~FINGERPRINT is never sealed for another key: after another one was trusted it is refused,
    also over a restart, and the messages beside it for whoever UserX is go out."""
    world = mesh()
    world.stop("UserX")
    old = world.identities["UserX"].fingerprint
    sent = world.send("Bobby", f"UserX~{old.upper()}", "for the old key", id="strict", wait=0)
    assert (sent.code, sent.json["to"]) == (202, f"UserX~{old}")
    world.send("Bobby", "UserX", "for whoever", id="any", wait=0)
    world.crash("Bobby")
    world.restart("Bobby")
    _, new = change_key(world, run_s=400)
    assert trust(world, new).code == 200
    world.settle()
    assert world.inbox("UserX") == ["for whoever"]
    strict = world.get("Bobby", "/outbox/strict").json
    assert strict["status"] == "refused"
    assert f"for UserX~{old} alone" in strict["reason"] and new in strict["reason"]
    assert world.get("Bobby", "/outbox/any").json["status"] == "delivered"
    assert world.get("Bobby", "/outbox").json["recipients"] == []


def test_a_full_address_is_a_name_over_a_restart() -> None:
    """What waits for UserX~FINGERPRINT alone is delivered when UserX is back with that key, also after a restart."""
    world = mesh()
    world.stop("UserX")
    world.send("Bobby", f"UserX~{world.identities['UserX'].fingerprint}", "strict", wait=0)
    world.crash("Bobby")
    world.restart("Bobby")
    world.restart("UserX")
    world.run(30)
    assert world.inbox("UserX") == ["first", "strict"]


def test_an_id_is_of_one_key() -> None:
    """The same id with another fingerprint is not the same message."""
    world = mesh()
    print_ = world.identities["UserX"].fingerprint
    assert world.send("Bobby", "UserX", "text", id="a").code == 200
    again = world.send("Bobby", f"UserX~{print_}", "text", id="a")
    assert (again.code, again.json["title"]) == (409, "id reused")


def test_qr_codes() -> None:
    """The full addresses, the node's own and a contact's, as pictures that a scanner reads; for a name that is no
    contact 404."""
    world = mesh()
    for path, owner in (("/qr", "Bobby"), ("/contacts/userx/qr", "UserX")):
        picture = fetch(world, path)
        assert picture.startswith(b"<?xml")
        address = f"{owner}~{world.identities[owner].fingerprint}"
        assert f"<title>{address}</title>".encode() in picture
        assert read_svg(picture) == address
    assert world.get("Bobby", "/contacts/Nobody/qr").code == 404


def fetch(world: World, path: str) -> bytes:
    """A body that is no JSON."""
    url = f"http://{world.hosts['Bobby'].ip}:{USER_PORT}{path}"
    response = world.wait(world._client.get(url, reactor=world.laptop))
    assert response.headers.getRawHeaders("content-type") == ["image/svg+xml"]
    body: bytes = world.wait(treq.content(response))
    return body


def test_a_disk_that_refuses_does_not_hide_a_changed_key() -> None:
    """That a key has changed is told though it cannot be written down."""
    world = mesh()
    change_key(world)
    world.troubles["Bobby"].refuses = 1.0
    answer = world.send("Bobby", "UserX", "who?")
    assert (answer.code, answer.json["title"]) == (409, "key changed")


def test_the_inbox_of_one_key() -> None:
    """`from=NAME~FINGERPRINT` shows what was written with that key and nothing else, page by page, and waits for that
    key alone; `from=NAME` shows all that was written under the name."""
    world = mesh()
    old, new = change_key(world)
    trust(world, new)
    for number in range(3):
        assert world.send("UserX", "Bobby", number).code == 200

    def texts(query: str) -> list[Any]:
        page = world.get("Bobby", f"/inbox?{query}").json
        return [*(message["message"] for message in page["messages"]), page["next"]]

    assert texts("from=UserX") == ["first", 0, 1, 2, 4]
    assert texts(f"from=userx~{old.upper()}") == ["first", 4]
    assert texts(f"from=UserX~{old}&after=1") == [4]
    assert texts(f"from=UserX~{new}&limit=1") == [0, 2]
    assert texts(f"from=UserX~{new}&limit=2&after=2") == [1, 2, 4]
    assert texts(f"from=UserX~{'a' * 16}") == [4]
    waiting = world.request("GET", "Bobby", f"/inbox?from=UserX~{old}&wait=10&after=4")
    world.send("UserX", "Bobby", "not of that key")
    assert world.wait(waiting, 11).json == {"messages": [], "next": 5}
