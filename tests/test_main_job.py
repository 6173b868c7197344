"""The main job and its failures, in the fake world."""

import pytest

from tests.world import World


def two_and_two(seed: int = 1) -> World:
    """Two seeds that know each other, UserX at the one and Bobby at the other."""
    world = World(seed)
    world.add_seed("seedX")
    world.add_seed("seedY", peers=["seedX"])
    world.add_user("UserX", seeds=["seedX"])
    world.add_user("Bobby", seeds=["seedY"])
    world.run_until(world.registered)
    world.run(2)
    return world


def test_a_message_is_delivered() -> None:
    """Bobby's /send is answered 200 delivered, and the message is in UserX's inbox."""
    world = two_and_two()
    answer = world.send("Bobby", "UserX", "Hello UserX, It is nice to meet you")
    assert (answer.code, answer.json["status"], answer.json["to"]) == (200, "delivered", "UserX")
    assert world.inbox("UserX") == ["Hello UserX, It is nice to meet you"]


def test_the_same_seed_gives_the_same_world() -> None:
    """Two runs with one seed end with the same clock, records and homes."""

    def story() -> list[object]:
        world = two_and_two(seed=7)
        world.send("Bobby", "UserX", "once", id="a")
        world.crash("seedX")
        world.run(20)
        return [world.clock.seconds(), world.lookup("seedY", "UserX"), world.get("UserX", "/inbox").json]

    assert story() == story()


def test_nobody() -> None:
    """A name that no seed knows is answered 404, and nothing is kept."""
    world = two_and_two()
    answer = world.send("Bobby", "Nobody", "Hello?")
    assert (answer.code, answer.json["title"]) == (404, "User Not Found")
    assert answer.headers["content-type"] == "application/problem+json"
    assert world.get("Bobby", "/outbox").json == {"messages": [], "next": None, "recipients": []}


def test_names_do_not_care_about_case() -> None:
    """A message to userx reaches UserX."""
    world = two_and_two()
    assert world.send("Bobby", "userx", "hi").code == 200
    assert world.inbox("UserX") == ["hi"]


@pytest.mark.parametrize("away_s", [1, 30, 3600])
def test_someone_away_gets_it_at_once_when_they_return(away_s: float) -> None:
    """A message for someone away is answered 202, and is there within two seconds of their return, however long they
    were away and whichever seed they return to."""
    world = two_and_two()
    world.send("Bobby", "UserX", "first")
    world.crash("UserX")
    world.run(1)
    answer = world.send("Bobby", "UserX", "second", wait=0)
    assert (answer.code, answer.json["status"]) == (202, "queued")
    world.run(away_s)
    world.restart("UserX")
    assert world.run_until(lambda: world.users["Bobby"].sending.outbox.waiting == 0) < 2
    assert world.inbox("UserX") == ["first", "second"]


def test_wait_says_what_happened_meanwhile() -> None:
    """/send waits for the recipient's return for as long as it was told to, and then says delivered."""
    world = two_and_two()
    world.send("Bobby", "UserX", "first")
    world.stop("UserX")
    pending = world.request("POST", "Bobby", "/send", {"to": "UserX", "message": "second", "wait": 30})
    world.run(10)
    world.restart("UserX")
    answer = world.wait(pending)
    assert (answer.code, answer.json["status"]) == (200, "delivered")


@pytest.mark.parametrize("seed", range(5))
def test_a_dead_seed_hides_nobody(seed: int) -> None:
    """With either seed dead, both users are registered again at the other within 15 s and reach each other."""
    world = two_and_two(seed)
    world.crash(["seedX", "seedY"][seed % 2])
    world.run(15)
    assert world.registered()
    assert world.send("Bobby", "UserX", "there?").code == 200
    assert world.send("UserX", "Bobby", "here!").code == 200


def test_a_seed_alone_knows_everyone() -> None:
    """Each seed answers for the users of the other, which gossip has told it of."""
    world = two_and_two()
    for seed in ("seedX", "seedY"):
        for user in ("UserX", "Bobby"):
            found = world.lookup(seed, user)
            assert found is not None and found.online


def test_the_walk_finds_whom_the_home_seed_does_not_know() -> None:
    """Between two seeds that have never heard of each other, a lookup finds the user at the second one."""
    world = World(3)
    world.add_seed("seedX")
    world.add_seed("seedY")
    world.add_user("UserX", seeds=["seedX"])
    world.add_user("Bobby", seeds=["seedY", "seedX"])
    world.run_until(world.registered)
    assert world.lookup("seedY", "UserX") is None
    assert world.send("Bobby", "UserX", "found").code == 200
    assert world.send("Bobby", "Nobody", "lost").code == 404


def test_not_found_is_said_only_by_those_who_were_reached() -> None:
    """When one seed says 404 and the other is dead, the answer is User Not Found; when both are dead, 503."""
    world = two_and_two()
    world.crash("seedX")
    world.run(10)
    assert world.send("Bobby", "Nobody", "?").code == 404
    world.crash("seedY")
    world.run(5)
    answer = world.send("Bobby", "Nobody", "?")
    assert (answer.code, answer.json["title"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "5"


def test_without_any_seed_the_last_known_address_serves() -> None:
    """Two users who know each other go on talking when every seed is dead, also after a restart of the sender."""
    world = two_and_two()
    world.send("Bobby", "UserX", "one")
    world.crash("seedX")
    world.crash("seedY")
    world.run(120)
    assert world.send("Bobby", "UserX", "two").code == 200
    world.crash("Bobby")
    world.restart("Bobby")
    assert world.send("Bobby", "UserX", "three").code == 200
    assert world.inbox("UserX") == ["one", "two", "three"]


def test_what_was_delivered_survives_both_nodes() -> None:
    """A message that was answered delivered is in the inbox after both nodes died."""
    world = two_and_two()
    assert world.send("Bobby", "UserX", "kept").code == 200
    world.crash("UserX")
    world.crash("Bobby")
    world.restart("UserX")
    world.restart("Bobby")
    world.run(5)
    assert world.inbox("UserX") == ["kept"]


def test_what_was_queued_survives_the_sender() -> None:
    """A message that was answered queued is delivered after its sender's node died and came back."""
    world = two_and_two()
    world.send("Bobby", "UserX", "first")
    world.stop("UserX")
    assert world.send("Bobby", "UserX", "later", wait=0).code == 202
    world.crash("Bobby")
    world.restart("Bobby")
    world.run(5)
    world.restart("UserX")
    world.run(2)
    assert world.inbox("UserX") == ["first", "later"]


def test_a_lost_acknowledgement_doubles_nothing() -> None:
    """When the network breaks between a delivery and its acknowledgement, the repeat does not arrive twice."""
    world = two_and_two()
    world.send("Bobby", "UserX", "first")
    pending = world.request("POST", "Bobby", "/send", {"to": "UserX", "message": "second", "wait": 60})
    world.step_until(lambda: world.on_disk("UserX", "SELECT count(*) FROM inbox") == 2)
    world.cut("Bobby", "UserX")
    world.run(20)
    assert world.get("Bobby", "/outbox").json["recipients"][0]["waiting"] == 1
    world.heal()
    assert world.wait(pending).code == 200
    assert world.inbox("UserX") == ["first", "second"]


def test_whoever_hangs_up_changes_nothing() -> None:
    """A client that goes away in the middle of /send: what was accepted is delivered."""
    world = two_and_two()
    world.send("Bobby", "UserX", "first")
    world.stop("UserX")
    pending = world.request("POST", "Bobby", "/send", {"to": "UserX", "message": "second", "wait": 30})
    world.run(1)
    pending.addErrback(lambda _: None)
    pending.cancel()
    world.run(1)
    world.restart("UserX")
    world.run(2)
    assert world.inbox("UserX") == ["first", "second"]


def test_a_thousand_in_order() -> None:
    """A thousand messages sent one after another arrive once, in order."""
    world = two_and_two()
    for number in range(1000):
        assert world.send("Bobby", "UserX", number).code == 200
    assert world.inbox("UserX") == list(range(1000))


def test_a_burst_in_order() -> None:
    """Five hundred sends at the same time arrive once each, in the order in which they were accepted."""
    world = two_and_two()
    pending = [world.request("POST", "Bobby", "/send", {"to": "UserX", "message": n}) for n in range(500)]
    assert {world.wait(answer).code for answer in pending} == {200}
    assert world.inbox("UserX") == list(range(500))


def test_a_name_belongs_to_its_first_key() -> None:
    """A second node with the name and another key is refused, and says so in its status."""
    world = two_and_two()
    world.add_user("Impostor", seeds=["seedY"])
    node = world.users["Impostor"]
    node.seeds.user = "UserX"
    world.run(10)
    status = world.get("Impostor", "/status").json
    assert status["registered"] is False
    assert "belongs to another key" in status["problem"]
    assert world.send("Bobby", "UserX", "still you").code == 200
    assert world.inbox("UserX") == ["still you"]


def test_a_changed_key_stops_delivery_until_it_is_trusted() -> None:
    """After UserX has lost the key and the seeds their memory, Bobby's node refuses to send until told to trust."""
    world = two_and_two()
    world.send("Bobby", "UserX", "to the first key")
    other = two_and_two(seed=99)
    world.crash("seedX")
    world.crash("seedY")
    world.crash("UserX")
    world.forget_disk("seedX", "seedY", "UserX")
    world.identities["UserX"] = other.identities["UserX"]
    for name in ("seedX", "seedY", "UserX"):
        world.restart(name)
    world.run(90)
    answer = world.send("Bobby", "UserX", "to whom?")
    assert (answer.code, answer.json["title"]) == (409, "key changed")
    found = world.identities["UserX"].fingerprint
    assert found in answer.json["detail"]
    wrong = world.ask("PUT", "Bobby", "/contacts/UserX", {"fingerprint": "a" * 16})
    assert (wrong.code, wrong.json["title"]) == (409, "key changed")
    assert world.ask("PUT", "Bobby", "/contacts/UserX", {"fingerprint": found}).code == 200
    assert world.send("Bobby", "UserX", "to the second key").code == 200
    assert world.inbox("UserX") == ["to the second key"]


def test_the_home_is_lost_silently() -> None:
    """A home seed that is cut off without a word is left for another, within two pings and their timeouts."""
    world = two_and_two()
    world.run(40)
    home = world.users["UserX"].seeds.home
    assert home is not None
    world.cut("UserX", home.name)
    world.run(30)
    now_home = world.users["UserX"].seeds.home
    assert now_home is not None and now_home.name != home.name
    assert world.send("Bobby", "UserX", "moved").code == 200


def test_fingerprints_are_strict() -> None:
    """UserX~fingerprint is sent to that key alone."""
    world = two_and_two()
    right = f"UserX~{world.identities['UserX'].fingerprint}"
    wrong = f"UserX~{world.identities['Bobby'].fingerprint}"
    assert world.send("Bobby", right, "you").code == 200
    assert world.send("Bobby", wrong, "not you").json["title"] == "key changed"
    assert world.inbox("UserX") == ["you"]


def test_several_recipients() -> None:
    """A list of names is answered 207 with what came of each."""
    world = two_and_two()
    answer = world.post("Bobby", "/send", {"to": ["UserX", "Nobody", "Bobby", "bad name"], "message": "all"})
    assert answer.code == 207
    results = {result["to"]: result for result in answer.json["results"]}
    assert results["UserX"]["status"] == results["Bobby"]["status"] == "delivered"
    assert (results["Nobody"]["status"], results["Nobody"]["code"]) == ("failed", 404)
    assert results["bad name"]["code"] == 400
    assert world.inbox("UserX") == world.inbox("Bobby") == ["all"]


def test_a_message_expires() -> None:
    """A message whose ttl is over is reported as expired, with the reason, and is not delivered any more."""
    world = two_and_two()
    world.send("Bobby", "UserX", "first")
    world.stop("UserX")
    message_id = world.send("Bobby", "UserX", "hurry", ttl=5, wait=0).json["id"]
    world.run(400)
    kept = world.get("Bobby", f"/outbox/{message_id}").json
    assert kept["status"] == "expired"
    assert kept["reason"]
    world.restart("UserX")
    world.run(10)
    assert world.inbox("UserX") == ["first"]


def test_a_seed_keeps_claims_over_a_restart() -> None:
    """A user who is away is still found, offline, after the only seed was killed and came back; the name is kept."""
    world = World(5)
    world.add_seed("seedX")
    world.add_user("UserX", seeds=["seedX"])
    world.run_until(world.registered)
    world.stop("UserX")
    world.crash("seedX")
    world.restart("seedX")
    world.run(1)
    found = world.lookup("seedX", "UserX")
    assert found is not None and not found.online
    world.add_user("Impostor", seeds=["seedX"])
    world.users["Impostor"].seeds.user = "UserX"
    world.run(10)
    assert world.users["Impostor"].seeds.home is None
