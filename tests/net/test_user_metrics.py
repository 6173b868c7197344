"""GET /metrics of a user node: what happens is counted, where it happens, once."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshproto.core.outbox import OUTBOX_MESSAGES_MAX
from meshproto.errors import (
    BadParams,
    IdReused,
    KeyChanged,
    MeshError,
    NoAnswer,
    NobodyListens,
    NoSeedAnswers,
    NotInTime,
    PeerError,
    PeerRefused,
    ShuttingDown,
    SlowDown,
    TLSFailed,
    Unavailable,
    Unreachable,
    UserNotFound,
)
from meshproto.net.causes import Cause, cause_of
from meshproto.net.exposition import CONTENT_TYPE
from meshproto.net.retention import Keep
from tests.prometheus import Page, read
from tests.world import World

USER = "meshproto_user_"


@pytest.fixture
def world() -> Iterator[World]:
    """UserX and Bobby at seedX; nothing has happened yet."""
    world = World(8)
    world.add_seed("seedX")
    for name in ("UserX", "Bobby"):
        world.add_user(name, ["seedX"])
    world.run_until(world.registered)
    world.run(2)
    yield world
    world.close()


def page(world: World, user: str) -> Page:
    kind, text = world.text(user, "/metrics")
    assert kind == CONTENT_TYPE.decode()
    return read(text)


def changes(world: World, user: str, work: Callable[[], object]) -> dict[str, float]:
    """By how much each series is more afterwards, without its prefix; those of time, and of the page itself, apart."""
    before = page(world, user).values
    work()
    after = page(world, user).values
    apart = ("process_", f"{USER}uptime", f'{USER}http_requests_total{{part="owner"', f"{USER}commit")
    return {
        name.removeprefix(USER): value - before[name]
        for name, value in after.items()
        if value != before[name] and not name.startswith(apart) and "_bucket" not in name
    }


def test_a_message_that_arrives(world: World) -> None:
    """Both nodes count it once, in what they have done and in how long it took."""
    sent = changes(world, "UserX", lambda: world.send("UserX", "Bobby", "hello"))
    assert sent.pop("delivery_seconds_count") == 1
    assert sent.pop("delivery_seconds_sum", 0) < 1
    assert sent == {
        "accepted_total": 1,
        "attempts_total": 1,
        'ended_total{status="delivered"}': 1,
        'lookups_total{result="seed"}': 1,
        'lookups_total{result="cache"}': 1,
        'http_requests_total{part="send",code="2xx"}': 1,
    }
    came = changes(world, "Bobby", lambda: world.send("UserX", "Bobby", "again"))
    assert came == {"received_total": 1, 'http_requests_total{part="deliver",code="2xx"}': 1}


def test_who_is_away_lets_the_oldest_grow_old(world: World) -> None:
    """What waits, for how many, for how long, and why the attempts fail; when it arrives it has taken that long."""
    world.send("UserX", "Bobby", "hello")
    world.crash("Bobby")
    world.settle()

    def wait() -> None:
        world.send("UserX", "Bobby", "are you there", wait=0)
        world.run(100)

    waited = changes(world, "UserX", wait)
    assert waited["waiting"] == waited["waiting_recipients"] == waited["failing_recipients"] == 1
    assert 100 <= waited["oldest_waiting_seconds"] < 102
    assert waited['failures_total{cause="unreachable"}'] == waited["attempts_total"] > 1

    def come_back() -> None:
        world.restart("Bobby")
        world.run(5)

    arrived = changes(world, "UserX", come_back)
    assert arrived["waiting"] == arrived["failing_recipients"] == -1
    assert arrived['ended_total{status="delivered"}'] == arrived["delivery_seconds_count"] == 1
    assert 100 <= arrived["delivery_seconds_sum"] < 110
    assert page(world, "UserX").values[f"{USER}oldest_waiting_seconds"] == 0


def test_ends_that_are_not_deliveries(world: World) -> None:
    """Expired and cancelled ones have a count each, and none of delivery."""
    world.send("UserX", "Bobby", "hello")
    world.crash("Bobby")
    world.settle()

    def end() -> None:
        world.send("UserX", "Bobby", "soon over", ttl=10, wait=0)
        world.send("UserX", "Bobby", "not meant", id="wrong", wait=0)
        world.ask("DELETE", "UserX", "/outbox/wrong")
        world.run(90)

    ended = changes(world, "UserX", end)
    assert ended['ended_total{status="expired"}'] == ended['ended_total{status="cancelled"}'] == 1
    assert "delivery_seconds_count" not in ended and 'ended_total{status="delivered"}' not in ended


def test_what_is_not_accepted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By cause, alone or among several; and nothing of it counts as accepted."""
    world.send("UserX", "Bobby", "first", id="1")

    def ask() -> None:
        assert world.send("UserX", "Nobody", "hello").code == 404
        assert world.post("UserX", "/send", {"to": ["Nobody", "Bobby"], "message": "hello"}).code == 207
        assert world.send("UserX", "Bobby", "another", id="1").code == 409
        monkeypatch.setattr("meshproto.core.outbox.OUTBOX_MESSAGES_MAX", 0)
        assert world.send("UserX", "Bobby", "hello").code == 429

    refused = changes(world, "UserX", ask)
    assert {name: count for name, count in refused.items() if name.startswith(("not_acc", "acc"))} == {
        "accepted_total": 1,
        'not_accepted_total{cause="not_found"}': 2,
        'not_accepted_total{cause="id_reused"}': 1,
        'not_accepted_total{cause="full"}': 1,
    }
    assert refused['http_requests_total{part="send",code="4xx"}'] == 3
    assert OUTBOX_MESSAGES_MAX > 0


def test_what_comes_again(world: World) -> None:
    """A batch whose answer was lost comes once more: it is counted as what it is, and received once."""
    world.send("UserX", "Bobby", "hello")

    def lose() -> None:
        world.troubles["Bobby"].doubts = 1.0
        world.send("UserX", "Bobby", "again", wait=0)
        world.run(1)
        world.troubles["Bobby"].mend()
        world.run(30)

    came = changes(world, "Bobby", lose)
    assert world.inbox("Bobby") == ["hello", "again"]
    assert came["received_again_total"] >= 1


def test_a_disk_that_refuses(world: World) -> None:
    """It says so, and goes on telling all else; commits are timed when they are synced."""
    before = page(world, "UserX").values
    world.troubles["UserX"].refuses = 1.0
    assert world.send("UserX", "Bobby", "hello").code == 503
    values = page(world, "UserX").values
    assert values[f"{USER}disk_refuses"] == 1 and values[f"{USER}commit_failures_total"] >= 1
    assert values[f'{USER}not_accepted_total{{cause="disk"}}'] == 1
    assert values[f"{USER}commit_seconds_count"] == before[f"{USER}commit_seconds_count"]
    world.troubles["UserX"].mend()
    world.send("UserX", "Bobby", "hello")
    values = page(world, "UserX").values
    assert values[f"{USER}disk_refuses"] == 0
    assert values[f"{USER}commit_seconds_count"] > before[f"{USER}commit_seconds_count"]


def test_the_mesh_as_it_knows_it(world: World) -> None:
    """Registered, then not; no seed, and nobody known; no seed, and somebody known from before."""
    world.send("UserX", "Bobby", "hello")
    world.run(61)
    values = page(world, "UserX").values
    assert values[f"{USER}registered"] == values[f"{USER}seeds"] == values[f"{USER}seeds_alive"] == 1

    def without_a_seed() -> None:
        world.crash("seedX")
        world.run(40)
        assert world.get("UserX", "/lookup/Bobby").code == 200
        assert world.get("UserX", "/lookup/Stranger").code == 503

    changed = changes(world, "UserX", without_a_seed)
    assert changed["registered"] == -1
    assert changed['lookups_total{result="last_known"}'] == changed['lookups_total{result="no_seed"}'] == 1


def test_a_node_that_gets_nothing_is_not_registered(world: World) -> None:
    """When another has its key and what is sent to it: at a seed as it is, that is what an alert has to tell."""
    seeds = world.users["UserX"].seeds
    changed = changes(world, "UserX", lambda: setattr(seeds, "_double", "another node has this one's key"))
    assert seeds.home is not None
    assert changed["registered"] == -1


def test_who_reads(world: World) -> None:
    """Streams and long polls are there as long as they are open."""
    stream = world.request("GET", "Bobby", "/inbox/stream")
    poll = world.request("GET", "Bobby", "/inbox?after=0&wait=30")
    world.settle()
    values = page(world, "Bobby").values
    assert values[f"{USER}stream_readers"] == values[f"{USER}inbox_polls"] == 1
    world.users["Bobby"].front.stop()
    world.users["Bobby"].receiving.stop()
    world.wait(poll)
    world.settle()
    stream.cancel()
    stream.addErrback(lambda _: None)
    values = page(world, "Bobby").values
    assert values[f"{USER}stream_readers"] == values[f"{USER}inbox_polls"] == 0


def test_programs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far each is behind. When the disk does not tell, all else is told."""
    shown = [{"kind": "deliver-to", "behind": 3, "attempts": 2}]

    async def tell() -> list[dict[str, Any]]:
        if not shown:
            raise Unavailable("the disk")
        return shown

    monkeypatch.setattr(world.users["UserX"].programs, "shown", tell)
    values = page(world, "UserX").values
    assert values[f'{USER}program_behind{{kind="deliver-to"}}'] == 3
    assert values[f'{USER}program_attempts{{kind="deliver-to"}}'] == 2
    shown.clear()
    values = page(world, "UserX").values
    assert f"{USER}waiting" in values and not any("program" in name for name in values)


def test_what_is_deleted() -> None:
    """By retention: of the inbox, and of the outbox what has ended."""
    with_keep = World(9)
    with_keep.add_seed("seedX")
    with_keep.add_user("UserX", ["seedX"], keep=Keep(days=1))
    with_keep.run_until(with_keep.registered)
    with_keep.run(2)
    with_keep.send("UserX", "UserX", "note")
    with_keep.crash("seedX")  # which would gossip all that time, and has no part in this
    with_keep.run(2 * 86400)
    values = page(with_keep, "UserX").values
    assert values[f'{USER}deleted_total{{what="inbox"}}'] == values[f'{USER}deleted_total{{what="outbox"}}'] == 1
    with_keep.close()


def test_its_size_does_not_grow_with_those_it_knows(world: World) -> None:
    """No correspondent has a time series of their own."""
    before = page(world, "UserX").values.keys()
    for number in range(20):
        world.add_user(f"Friend{number}", ["seedX"])
    world.run(5)
    for number in range(20):
        assert world.send("UserX", f"Friend{number}", "hello").code == 200
    assert page(world, "UserX").values.keys() == before


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (Unreachable(), Cause.UNREACHABLE),
        (NobodyListens(), Cause.UNREACHABLE),
        (NotInTime(), Cause.TIMEOUT),
        (TLSFailed(), Cause.TLS),
        (NoAnswer(), Cause.NO_ANSWER),
        (PeerRefused(503, "full"), Cause.REFUSED),
        (PeerError(), Cause.BAD_ANSWER),
        (UserNotFound(), Cause.NOT_FOUND),
        (NoSeedAnswers(), Cause.NO_SEED),
        (KeyChanged(), Cause.KEY_CHANGED),
        (SlowDown(), Cause.FULL),
        (IdReused(), Cause.ID_REUSED),
        (Unavailable(), Cause.DISK),
        (ShuttingDown(), Cause.STOPPED),
        (BadParams(), Cause.OTHER),
    ],
)
def test_every_error_has_a_cause(error: MeshError, cause: Cause) -> None:
    """The nearest that there is, and one for whatever else comes."""
    assert cause_of(error) is cause
