"""What waits, as the owner sees and changes it, and as time goes by."""

from typing import Any
from urllib.parse import quote

import pytest
from twisted.internet.defer import fail

from meshproto.errors import Unavailable
from meshproto.net import sending
from meshproto.net.outbox_table import OutboxTable
from tests.world import World

DAY_S = 86400.0


@pytest.fixture
def world() -> World:
    world = World(5)
    world.add_seed("seedX")
    for name in ("UserX", "Bobby", "Zoe"):
        world.add_user(name, seeds=["seedX"])
    world.run_until(world.registered)
    world.send("Bobby", "UserX", "known")
    return world


def away(world: World, *ids: str, **more: Any) -> None:
    """UserX is away, and messages wait for them."""
    world.crash("UserX")
    for message_id in ids:
        assert world.send("Bobby", "UserX", message_id, id=message_id, wait=0, **more).code == 202
    world.run(3)


def delete(world: World, path: str) -> Any:
    return world.ask("DELETE", "Bobby", path)


class TestCancel:
    def test_what_waits(self, world: World) -> None:
        """A cancelled message never arrives, those around it do, and it says what became of it."""
        away(world, "a", "b", "c")
        answer = delete(world, "/outbox/b")
        assert (answer.code, answer.json["status"]) == (200, "cancelled")
        world.restart("UserX")
        world.run(5)
        assert world.inbox("UserX") == ["known", "a", "c"]
        assert world.get("Bobby", "/outbox/b").json["status"] == "cancelled"
        assert [one["id"] for one in world.get("Bobby", "/outbox?status=cancelled").json["messages"]] == ["b"]

    def test_twice(self, world: World) -> None:
        """To cancel what is cancelled is no error, also across a restart."""
        away(world, "a")
        assert delete(world, "/outbox/a").code == 200
        world.crash("Bobby")
        world.restart("Bobby")
        assert (delete(world, "/outbox/a").code, world.get("Bobby", "/outbox").json["recipients"]) == (200, [])

    def test_what_was_delivered(self, world: World) -> None:
        """A delivered message stays delivered, and the answer says so."""
        world.send("Bobby", "UserX", "a", id="a")
        answer = delete(world, "/outbox/a")
        assert (answer.code, answer.json["title"]) == (409, "message delivered")

    def test_nobody_knows_it(self, world: World) -> None:
        """An id that was never used is 404."""
        assert delete(world, "/outbox/zzz").code == 404

    def test_for_one_of_several(self, world: World) -> None:
        """Of a message to several one can be cancelled, or all that wait, each with its own answer."""
        for name in ("UserX", "Zoe"):
            world.crash(name)
        world.post("Bobby", "/send", {"to": ["UserX", "Zoe"], "message": "x", "id": "a", "wait": 0})
        world.run(3)
        assert delete(world, "/outbox/a?to=Zoe").json["status"] == "cancelled"
        both = delete(world, "/outbox/a")
        assert both.code == 207
        assert [one["status"] for one in both.json["results"]] == ["cancelled", "cancelled"]

    def test_for_several_of_whom_one_has_it(self, world: World) -> None:
        """Each is told how it ended."""
        world.crash("Zoe")
        world.post("Bobby", "/send", {"to": ["UserX", "Zoe"], "message": "x", "id": "a", "wait": 1})
        answer = delete(world, "/outbox/a")
        assert (answer.code, [one["status"] for one in answer.json["results"]]) == (207, ["delivered", "cancelled"])

    def test_under_way(self, world: World) -> None:
        """A message that is being delivered at this moment is cancelled when that fails, and not before."""
        world.cut("Bobby", "UserX")
        world.send("Bobby", "UserX", "a", id="a", wait=1)
        answer = delete(world, "/outbox/a")
        assert (answer.code, answer.json["status"]) == (202, "delivering")
        assert "being delivered" in answer.json["reason"]
        world.run(40)
        assert world.get("Bobby", "/outbox/a").json["status"] == "cancelled"

    def test_what_may_have_arrived(self, world: World) -> None:
        """When an attempt was made whose answer never came the reason says that it may have arrived."""
        world.cut("Bobby", "UserX")
        world.send("Bobby", "UserX", "a", id="a", wait=1)
        world.run(40)
        assert "may have arrived" in delete(world, "/outbox/a").json["reason"]

    def test_what_may_have_arrived_before_the_lookup_failed(self, world: World) -> None:
        """Also when the same attempt failed in another way in the end."""
        world.cut("Bobby", "UserX")
        world.send("Bobby", "UserX", "a", id="a", wait=1)
        world.cut("UserX", "seedX")
        world.crash("seedX")
        world.forget_disk("seedX")
        world.restart("seedX")
        world.run(90)
        assert world.get("Bobby", "/outbox").json["recipients"][0]["reason"] == "no seed knows UserX"
        assert "may have arrived" in delete(world, "/outbox/a").json["reason"]

    def test_the_disk_refuses(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """When the disk does not take it the answer says so, and not that it is being delivered."""
        away(world, "a")
        refused = Unavailable("the disk does not take it")
        monkeypatch.setattr(OutboxTable, "finish", lambda *_: fail(refused))
        answer = delete(world, "/outbox/a")
        assert (answer.code, "disk" in answer.json["detail"]) == (503, True)
        assert world.get("Bobby", "/outbox/a").json["status"] == "delivering"

    @pytest.mark.parametrize("message_id", ["/a", "//", "a/b/", "a b", "%2F", "ä?#", "retry"])
    def test_any_id(self, world: World, message_id: str) -> None:
        """Whatever the id is, it is found and cancelled under it."""
        away(world, message_id)
        path = f"/outbox/{quote(message_id, safe='')}"
        assert world.get("Bobby", path).json["id"] == message_id
        assert delete(world, path).json["status"] == "cancelled"

    def test_nobody_is_watched_in_vain(self, world: World) -> None:
        """With the last message that waits for someone the watch for them ends."""
        away(world, "a")
        watched = world.users["Bobby"].seeds._watching._names
        assert watched.keys() == {"bobby", "userx"}  # a node watches its own name too
        delete(world, "/outbox/a")
        assert watched.keys() == {"bobby"}

    def test_nothing_went_out(self, world: World) -> None:
        """When nobody was ever connected to, no doubt is spread."""
        away(world, "a")
        assert "arrived" not in delete(world, "/outbox/a").json["reason"]


class TestRetry:
    def test_at_once(self, world: World) -> None:
        """A recipient that nobody has heard of is tried at once, however long the wait had become."""
        world.cut("UserX", "seedX")
        world.cut("Bobby", "UserX")
        world.send("Bobby", "UserX", "a", wait=0)
        world.run(1500)
        world.heal()
        world.cut("UserX", "seedX")
        assert world.get("Bobby", "/outbox").json["recipients"][0]["attempts"] > 5
        answer = world.post("Bobby", "/outbox/retry?to=userx", b"")
        assert (answer.code, answer.json) == (200, {"retried": ["UserX"], "waiting": 1})
        world.run(0.5)
        assert world.inbox("UserX") == ["known", "a"]

    def test_all(self, world: World) -> None:
        """Without a name everybody is tried; nothing waits: an empty list."""
        assert world.post("Bobby", "/outbox/retry", b"").json == {"retried": [], "waiting": 0}
        away(world, "a", "b")
        assert world.post("Bobby", "/outbox/retry", b"").json == {"retried": ["UserX"], "waiting": 2}

    def test_nobody(self, world: World) -> None:
        """Nothing waits for that name: 404 says so."""
        answer = world.post("Bobby", "/outbox/retry?to=Zoe", b"")
        assert (answer.code, answer.json["detail"]) == (404, "nothing waits for Zoe")


class TestListing:
    def test_pages_and_filters(self, world: World) -> None:
        """`next` goes into `after` until it is null, in each of the listings."""
        away(world, "a", "b", "c")
        for query, expected in (("status=waiting&", "abc"), ("to=userx&status=waiting&", "abc"), ("to=Zoe&", "")):
            found, after = "", ""
            while True:
                page = world.get("Bobby", f"/outbox?{query}limit=2{after}").json
                found += "".join(one["id"] for one in page["messages"])
                if page["next"] is None:
                    break
                after = f"&after={page['next']}"
            assert found == expected

    def test_who_waits_longest(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of more than RECIPIENTS_SHOWN_MAX who wait those are shown who have waited longest."""
        monkeypatch.setattr("meshproto.net.front.RECIPIENTS_SHOWN_MAX", 1)
        world.crash("Zoe")
        world.send("Bobby", "Zoe", "a", wait=0)
        world.run(1)
        away(world, "b")
        assert [queue["to"] for queue in world.get("Bobby", "/outbox").json["recipients"]] == ["Zoe"]

    def test_a_bad_query(self, world: World) -> None:
        """A status there is none of, or no number, is refused with a sentence."""
        for query in ("status=lost", "after=x", "limit=0", "to=a%20b"):
            assert world.get("Bobby", f"/outbox?{query}").code == 400


class TestExpiry:
    def test_on_time(self, world: World) -> None:
        """A message expires when its time is over, whenever the next attempt would have been."""
        away(world, "a", ttl=100)
        world.run(96.9)
        assert world.get("Bobby", "/outbox/a").json["status"] == "delivering"
        world.run(0.2)
        shown = world.get("Bobby", "/outbox/a").json
        assert (shown["status"], "refused" in shown["reason"]) == ("expired", True)
        assert world.get("Bobby", "/outbox").json["recipients"] == []

    def test_behind_others(self, world: World) -> None:
        """Also when those before it wait on."""
        away(world, "a")
        world.send("Bobby", "UserX", "b", id="b", ttl=5, wait=0)
        world.run(6)
        world.restart("UserX")
        world.run(5)
        assert world.inbox("UserX") == ["known", "a"]

    def test_while_the_node_was_down(self, world: World) -> None:
        """What expired while the sender's node was down is not sent when it is back."""
        away(world, "a", ttl=10)
        world.crash("Bobby")
        world.run(60)
        world.restart("UserX")
        world.restart("Bobby")
        world.run(5)
        assert world.inbox("UserX") == ["known"]
        assert world.get("Bobby", "/outbox/a").json["status"] == "expired"

    def test_the_clock_set_forward(self, world: World) -> None:
        """A week in a moment: what is over by the wall clock expires within EXPIRY_LOOK_S."""
        away(world, "a")
        world.hosts["Bobby"].ahead_s += 8 * DAY_S
        world.run(sending.EXPIRY_LOOK_S)
        assert world.get("Bobby", "/outbox/a").json["status"] == "expired"


class TestClocks:
    @pytest.mark.parametrize("step_s", [-DAY_S, DAY_S])
    @pytest.mark.parametrize("whose", ["Bobby", "UserX"])
    def test_a_clock_that_is_set(self, world: World, whose: str, step_s: float) -> None:
        """Neither what waits nor what comes stands still when somebody sets the clock by a day."""
        world.crash("UserX")
        world.send("Bobby", "UserX", "a", wait=0)
        world.run(20)
        world.hosts[whose].ahead_s += step_s
        world.restart("UserX")
        world.run(3)
        assert world.send("Bobby", "UserX", "b").code == 200
        assert world.inbox("UserX") == ["known", "a", "b"]

    def test_the_next_try_is_told_by_the_wall_clock(self, world: World) -> None:
        """Whatever clock the node waits by."""
        world.hosts["Bobby"].ahead_s = 1000.0
        away(world, "a")
        (queue,) = world.get("Bobby", "/outbox").json["recipients"]
        assert 0 < queue["next_try_at"] - world.hosts["Bobby"].now_ms() < 4000


def test_what_is_shown_after_a_restart(world: World) -> None:
    """A state never goes back: what waited before a restart counts as delivering, it may have been on its way."""
    away(world, "a")
    assert world.get("Bobby", "/outbox/a").json["status"] == "delivering"
    world.crash("Bobby")
    world.restart("Bobby")
    world.settle()
    assert world.get("Bobby", "/outbox/a").json["status"] == "delivering"
