"""Who may write to a node: the owner of the name that stands under a message, and whom the node's owner accepts."""

import json
from typing import Any

import pytest
from msgspec import Raw
from twisted.internet.defer import CancelledError, ensureDeferred, succeed
from twisted.python.failure import Failure

from meshproto.core.envelope import Letter, seal
from meshproto.core.identity import Identity, b64, verify
from meshproto.core.lookup import MISSING_TTL_S
from meshproto.core.policy import Names
from meshproto.errors import SlowDown
from meshproto.net import writers
from meshproto.net.writers import CONTACTS, OWNER_TTL_S, Accept, Writers
from tests.core.users import user
from tests.world import Answer, World

MALLORY = user(99)


@pytest.fixture
def world() -> World:
    world = World(31)
    world.add_seed("seedX")
    world.add_user("UserX", seeds=["seedX"])
    world.add_user("Bobby", seeds=["seedX"])
    world.run_until(world.registered)
    return world


def batch(world: World, name: str, identity: Identity, text: str = "Hello", to: str = "UserX") -> bytes:
    """From whoever has these keys, under this name."""
    recipient = verify(world.users[to].seeds.own_record())
    own = identity.sign(name, ["http://192.0.2.66:3000"], 1)
    letter = Letter(f"id {text}", Raw(json.dumps(text).encode()), 0)
    return seal([letter], identity, own, recipient, world.rng.randbytes).body


def write(world: World, name: str, identity: Identity, to: str = "UserX") -> Answer:
    return world.post(to, "/deliver", batch(world, name, identity, to=to))


def refusal(answer: Answer) -> tuple[int, str, str]:
    return answer.code, answer.json["title"], answer.json["detail"]


def count_lookups(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that UserX asks the seeds for from now on."""
    finding = world.users["UserX"].seeds._finding
    asked: list[str] = []
    search = finding._search

    def counted(name: str, print_: str | None) -> Any:
        asked.append(name)
        return search(name, print_)

    monkeypatch.setattr(finding, "_search", counted)
    return asked


def restart_without_seeds(world: World) -> None:
    """UserX begins anew, with the limits as they are now, and then cannot reach a seed."""
    world.crash("UserX")
    world.restart("UserX")
    world.run_until(world.registered)
    world.cut("UserX", "seedX")


def flood(world: World, many: int) -> list[Answer]:
    """Invented names from one address: the answers, as they come."""
    answers: list[Answer] = []
    for number in range(many):
        sent = world.request("POST", "UserX", "/deliver", batch(world, f"Mallory{number}", MALLORY))
        sent.addCallback(answers.append)
    world.settle()
    return answers


def invent(world: World, to: str, name: str, network: str) -> list[BaseException]:
    """A batch under an invented name, from a network: the refusal, when it comes."""
    errors: list[BaseException] = []

    def failed(failure: Failure) -> None:
        assert failure.value is not None
        errors.append(failure.value)

    work = ensureDeferred(world.users[to].receiving.deliver(batch(world, name, MALLORY, to=to), network))
    work.addErrback(failed)
    return errors


def under_way(world: World, user: str = "UserX") -> int:
    """How many names are looked up at this moment."""
    return len(world.users[user].seeds._finding._searches)


class TestOwner:
    def test_nobody_writes_under_the_name_of_another(self, world: World) -> None:
        """Before Bobby has ever written, nobody else can be taken for Bobby; then Bobby is."""
        for name in ("Bobby", "BOBBY", "bobby"):
            answer = write(world, name, MALLORY)
            assert refusal(answer) == (403, "not the owner of the name", f"the name {name} belongs to another key")
        assert world.inbox("UserX") == []
        assert world.get("UserX", "/contacts").json["contacts"] == []
        assert world.send("Bobby", "UserX", "it is me").code == 200
        assert world.inbox("UserX") == ["it is me"]

    def test_a_name_that_no_seed_knows(self, world: World) -> None:
        """It may be known soon: the sender is told when to try again, and nothing is pinned."""
        answer = write(world, "Mallory", MALLORY)
        assert refusal(answer) == (503, "unavailable", "no seed knows Mallory yet: register, and try again")
        assert answer.headers["retry-after"] == "1"
        assert world.get("UserX", "/contacts").json["contacts"] == []

    def test_no_seed_can_be_asked(self, world: World) -> None:
        """A stranger waits until one can, and then arrives; a contact does not wait."""
        world.add_user("Cyd", seeds=["seedX"])
        world.run_until(world.registered)
        assert world.send("Bobby", "UserX", "first").code == 200
        assert world.get("Cyd", "/lookup/UserX").code == 200
        world.cut("UserX", "seedX")
        world.run(120)
        waits = world.send("Cyd", "UserX", "second", wait=8)
        assert waits.code == 202
        assert "no address of Cyd is known" in waits.json["reason"]
        assert world.send("Bobby", "UserX", "third").code == 200
        world.heal()
        world.run_until(lambda: world.inbox("UserX") == ["first", "third", "second"], 600)

    def test_a_contact_is_not_looked_up(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not even when the record is a newer one."""
        world.send("Bobby", "UserX", "first")
        asked = count_lookups(world, monkeypatch)
        world.stop("Bobby")
        world.restart("Bobby")
        world.run_until(world.registered)
        assert world.send("Bobby", "UserX", "second").code == 200
        assert asked == []

    def test_the_own_user_is_no_stranger(self, world: World) -> None:
        """Whoever writes to themselves needs no seed for it, and no permission."""
        world.add_user("Dan", seeds=["seedX"], accept=CONTACTS)
        world.run_until(world.registered)
        own = world.identities["Dan"]
        assert write(world, "Dan", own, to="Dan").code == 200

    def test_the_own_name_is_nobody_elses(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also when a seed says so, and however it is written."""
        monkeypatch.setattr(Writers, "_owner", lambda *_: succeed(b64(MALLORY.key)))
        for name in ("UserX", "userx"):
            answer = write(world, name, MALLORY)
            assert refusal(answer) == (403, "not the owner of the name", "that is this node's own name")
        assert write(world, "Mallory", MALLORY).code == 200

    def test_a_flood_of_one_name_is_one_lookup(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """The seeds' word counts for a while, and is asked for again after it."""
        asked = count_lookups(world, monkeypatch)
        for _ in range(10):
            assert write(world, "Bobby", MALLORY).code == 403
            assert write(world, "Nobody", MALLORY).code == 503
        assert sorted(asked) == ["Bobby", "Nobody"]
        world.run(MISSING_TTL_S)
        assert write(world, "Nobody", MALLORY).code == 503
        world.run(OWNER_TTL_S)
        assert write(world, "Bobby", MALLORY).code == 403
        assert sorted(asked) == ["Bobby", "Bobby", "Nobody", "Nobody"]

    def test_a_flood_of_names_is_so_many_lookups(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """While no seed answers LOOKUPS_MAX strangers are looked up at a time, and the others told to come back; a
        contact is not."""
        monkeypatch.setattr(writers, "LOOKUPS_MAX", 3)
        world.send("Bobby", "UserX", "first")
        restart_without_seeds(world)
        answers = flood(world, 5)
        assert [refusal(answer)[:2] for answer in answers] == [(429, "slow down")] * 2
        assert answers[0].headers["retry-after"] == "1"
        assert under_way(world) == 3
        assert world.send("Bobby", "UserX", "second").code == 200
        world.run(30)
        assert sorted(answer.code for answer in answers) == [429, 429, 503, 503, 503]
        assert under_way(world) == 0

    def test_a_flood_of_one_network_leaves_lookups_to_others(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever invents names is told to come back, and a stranger from elsewhere is looked up meanwhile."""
        monkeypatch.setattr(writers, "LOOKUPS_PER_NETWORK_MAX", 2)
        world.add_user("Cyd", seeds=["seedX"])
        world.run_until(world.registered)
        assert world.get("Cyd", "/lookup/UserX").code == 200
        restart_without_seeds(world)
        answers = flood(world, 5)
        assert [answer.code for answer in answers] == [429] * 3
        assert under_way(world) == 2
        waits = world.send("Cyd", "UserX", "hello", wait=8)
        assert "no address of Cyd is known" in waits.json["reason"]

    def test_who_is_known_gets_in_while_invented_names_are_looked_up(self, world: World) -> None:
        """A given seed is silent, so that each invented name is looked up for seconds. All the places are theirs, and a
        first message arrives at once; so do those that come while more names are invented."""
        world.add_seed("seedZ")
        world.add_user("Zed", seeds=["seedX", "seedZ"])
        world.cut("Zed", "seedZ")
        for name in ("Cyd", "Dan", "Eve"):
            world.add_user(name, seeds=["seedX"])
        world.run_until(world.registered)
        networks = writers.LOOKUPS_MAX // writers.LOOKUPS_PER_NETWORK_MAX
        for number, name in enumerate(("Cyd", "Dan", "Eve")):
            refused = [
                invent(world, "Zed", f"Mallory{number}-{network}-{again}", network=f"10.66.0.{network}")
                for again in range(writers.LOOKUPS_PER_NETWORK_MAX + 1)
                for network in range(networks)
            ]
            world.settle()
            assert under_way(world, "Zed") == writers.LOOKUPS_MAX
            assert world.send(name, "Zed", name, wait=1).code == 200
            assert sum(bool(one) for one in refused) >= networks
            assert {type(error) for one in refused for error in one} == {SlowDown}
        assert world.inbox("Zed") == ["Cyd", "Dan", "Eve"]
        world.run(10)
        assert under_way(world, "Zed") == 0

    def test_large_batches_of_strangers_leave_room(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """While no seed answers they wait, LOOKUPS_BYTES_MAX together: of more the longest-waiting ones of the network
        that holds most are told to come back."""
        size = len(batch(world, "Mallory0", MALLORY))
        monkeypatch.setattr(writers, "LOOKUPS_BYTES_MAX", 3 * size)
        restart_without_seeds(world)
        refused = [invent(world, "UserX", f"Mallory{number}", f"10.66.0.{number // 3}") for number in range(4)]
        world.settle()
        assert [[type(error) for error in one] for one in refused] == [[SlowDown], [], [], []]

    def test_who_hangs_up_leaves_the_place(self, world: World) -> None:
        """A lookup for a request that nobody waits for any more ends with it."""
        restart_without_seeds(world)
        work = ensureDeferred(world.users["UserX"].receiving.deliver(batch(world, "Mallory", MALLORY), "10.66.0.1"))
        world.settle()
        assert under_way(world) == 1
        work.addErrback(lambda failure: failure.trap(CancelledError))
        work.cancel()
        assert under_way(world) == 0

    def test_what_is_remembered_has_an_end(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(writers, "OWNERS_MAX", 3)
        asked = count_lookups(world, monkeypatch)
        for name in ("a", "b", "c", "d", "d", "a"):
            assert write(world, name, MALLORY).code == 503
        assert asked == ["a", "b", "c", "d", "a"]


class TestAccept:
    @pytest.fixture
    def world(self, world: World) -> World:
        listed = Names.parse(f"Bobby~{world.identities['Bobby'].fingerprint}\nDan\n")
        world.add_user("Cyd", seeds=["seedX"], accept=CONTACTS)
        world.add_user("Dan", seeds=["seedX"], accept=Accept(True, listed))
        world.run_until(world.registered)
        return world

    def test_contacts_alone(self, world: World) -> None:
        """Whoever the owner has written to may write; nobody else, and they are told so."""
        refused = world.send("Bobby", "Cyd", "may I?", wait=1)
        assert refused.code == 202
        assert "Bobby may not write to this node" in refused.json["reason"]
        assert world.get("Cyd", "/contacts").json["contacts"] == []
        assert world.send("Cyd", "Bobby", "you may").code == 200
        world.run_until(lambda: world.inbox("Cyd") == ["may I?"], 600)
        assert refusal(write(world, "UserX", world.identities["UserX"], to="Cyd"))[0] == 403

    def test_trusted_contacts(self, world: World) -> None:
        """A key that the owner has trusted may write."""
        wanted = {"fingerprint": world.identities["Bobby"].fingerprint}
        assert world.ask("PUT", "Cyd", "/contacts/Bobby", wanted).code == 200
        assert world.send("Bobby", "Cyd", "thank you").code == 200

    def test_the_list_alone(self, world: World) -> None:
        """Whoever is on it may write; nobody else, contact or not."""
        assert world.send("Bobby", "Dan", "I am on it").code == 200
        assert world.send("Dan", "UserX", "you are not").code == 200
        answer = write(world, "UserX", world.identities["UserX"], to="Dan")
        assert refusal(answer) == (403, "Forbidden", "UserX may not write to this node")

    def test_a_name_on_the_list_is_its_owners(self, world: World) -> None:
        """That a name is on the list helps nobody who has another key."""
        assert refusal(write(world, "Bobby", MALLORY, to="Dan"))[2] == "Bobby may not write to this node"
        assert refusal(write(world, "Dan", MALLORY, to="Dan"))[1] == "not the owner of the name"
