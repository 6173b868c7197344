"""What an attacker found: each once stopped a node or a seed, and is refused now."""

import random

import pytest
from msgspec import Raw

from meshproto import wire
from meshproto.core.directory import CLAIM_TTL_S
from meshproto.core.gossip import CLOCK_AHEAD_S
from meshproto.core.peering import Peering
from meshproto.errors import BadParams
from tests.core.seed_mesh import Client, SeedMesh
from tests.core.users import forged, signed, value_of

NOW_S = 1_795_000_000.0
NOW_MS = int(NOW_S * 1000)


def peering(name: str = "seedX") -> Peering:
    return Peering(name, f"{name}:5001", now=NOW_S, rng=random.Random(1), bootstrap=[], forget_s=CLAIM_TTL_S)


@pytest.mark.parametrize("address", ["[::%é]:80", "sé:1", "a b:1", "a/b:1", "\n:1"])
def test_a_host_is_ascii(address: str) -> None:
    """An address that no socket takes is refused where it is read."""
    with pytest.raises(BadParams):
        wire.split_address(address)


def test_nobody_lives_in_the_future() -> None:
    """A generation from beyond the clock's doubt is not believed, neither of oneself nor of others."""
    mine = peering()
    before = mine.gossip.own.generation
    ahead = int((NOW_S + CLOCK_AHEAD_S) * 1000) + 1
    for told in (wire.Summary(ahead, 0, 0, 0), wire.Summary(before, int(CLOCK_AHEAD_S) + 1, 0, 0)):
        mine.hear({"seedX": told, "seedY": told}, [], NOW_S, teller="seedY", pushed=False)
        assert (mine.gossip.own.generation, mine.gossip.own.heartbeat) == (before, 0)
        assert "seedY" not in mine.gossip.spaces


def test_a_cell_that_fits_no_line_is_not_taken() -> None:
    """Whoever tells of a larger value than seeds pass on is not believed, so that nobody has to pass it on."""
    mine = peering()
    for size, known in ((wire.CELL_BYTES_MAX - 2, True), (wire.CELL_BYTES_MAX + 1, False)):
        cell = wire.Cell("a", 1, Raw(b'"' + b"x" * size + b'"'))
        name = f"seed{size}"
        delta = wire.Delta(name, NOW_MS, 0, 1, 1, 0, [cell])
        mine.hear({name: wire.Summary(NOW_MS, 0, 1)}, [delta], NOW_S, teller=None, pushed=False)
        assert ("a" in mine.gossip.spaces[name].values) is known


def test_the_answer_to_seeds_fits_in_a_line() -> None:
    """However many seeds with however long addresses: those that fit are named, this one first."""
    mesh = SeedMesh("seedA")
    peers = mesh["seedA"].seed.peering
    for number in range(900):
        facts = Raw(wire.encode_value(wire.SeedFacts("a" * 200 + ":1")))
        generation = int(mesh.now * 1000)
        delta = wire.Delta(f"e{number}", generation, 0, 1, 1, 0, [wire.Cell("@", 1, facts)])
        digest = {f"e{number}": wire.Summary(generation, 0, 1)}
        peers.hear(digest, [delta], mesh.now, teller=None, pushed=False)
    answer = Client(mesh, "seedA").call("seeds", wire.Nothing(), wire.SeedsResult)
    assert answer.seeds[0].name == "seedA"
    assert 100 < len(answer.seeds) < 900
    assert len(wire.encode_result(1, answer)) < wire.LINE_BYTES_MAX


def test_a_record_that_was_looked_up_registers_nobody() -> None:
    """A stranger who sends a user's public record again, over a link of their own, cannot take them offline."""
    mesh = SeedMesh("seedA")
    owner, stranger = Client(mesh, "seedA"), Client(mesh, "seedA")
    owner.register("UserX", 1)
    found = stranger.lookup("UserX")
    refused = stranger.refused("register", found.signed)
    assert (refused.code, refused.message) == (409, "stale record")
    stranger.close()
    assert owner.lookup("UserX").online
    assert owner.call("register", signed("UserX", 1), wire.RegisterResult).seed == "seedA"


def test_a_forged_record_that_was_masked_ends_nothing() -> None:
    """A forged claim that nobody has looked at yet, because another entry spoke against it, does not end a user's own
    entry when that other entry is gone and something else comes in."""
    mesh = SeedMesh("seedA")
    owner, liar = Client(mesh, "seedA"), Client(mesh, "seedA")
    owner.register("UserX", 1)
    liar.call("hello", wire.HelloParams(1, "seed", "liar"), wire.HelloResult)
    now = int(mesh.now * 1000)
    versions = dict.fromkeys("xyz", 0)

    def says(seed: str, value: bytes) -> None:
        versions[seed] += 1
        upto = versions[seed]
        delta = wire.Delta(seed, now, upto - 1, upto, upto, 0, [wire.Cell("userx", upto, Raw(value))])
        liar.tell("gossip", wire.GossipParams({seed: wire.Summary(now, 0, upto)}, [delta]))

    farewells = (signed("UserX", 9, owner=6, gone=True),)
    says("y", wire.encode_value(value_of(signed("UserX", 1, owner=5), since=now + 9, seen=now, farewells=farewells)))
    says("x", wire.encode_value(value_of(forged(signed("UserX", 1, owner=6)), since=5, seen=now)))
    says("y", b"null")
    says("z", wire.encode_value(value_of(signed("UserX", 1, owner=7), since=now + 9, seen=now)))
    assert owner.lookup("UserX").signed == signed("UserX", 1)
    assert list(mesh["seedA"].disk) == ["userx"]


def test_a_record_that_was_looked_up_registers_nobody_elsewhere() -> None:
    """Nor does it keep a user online who is away, when it is sent to another seed than their own."""
    mesh = SeedMesh("seedA", "seedB")
    mesh.advance(10.0)
    owner, stranger = Client(mesh, "seedA"), Client(mesh, "seedB")
    owner.register("UserX", 1)
    owner.close()
    mesh.advance(10.0)
    assert stranger.refused("register", stranger.lookup("UserX").signed).message == "stale record"
    mesh.advance(10.0)
    assert not stranger.lookup("UserX").online


@pytest.mark.parametrize("key", ["", "UserX", "a b", "\u0001", "x" * 65, "@@", "\u00e9"])
def test_a_key_that_is_no_name(key: str) -> None:
    """In JSON it may be six times as long as what is counted: a line would outgrow its limit."""
    cell = wire.encode_value([key, 1, None])
    delta = b'["seedY",1,0,1,1,0,[%b]]' % cell
    line = b'{"jsonrpc":"2.0","id":1,"method":"gossip","params":{"digest":{},"delta":[%b]}}' % delta
    with pytest.raises(wire.LineError):
        wire.decode_request(line)


def test_a_claim_is_not_made_older_by_anothers() -> None:
    """What was looked at only because of a forged record beside it says nothing of the owner's claim: the `since` of
    another key, which has left, is not taken over."""
    mesh = SeedMesh("seedA")
    owner, liar = Client(mesh, "seedA"), Client(mesh, "seedA")
    since = owner.register("UserX", 1).since
    liar.call("hello", wire.HelloParams(1, "seed", "liar"), wire.HelloResult)
    now = int(mesh.now * 1000)

    def tell(**values: wire.EntryValue) -> None:
        deltas = [
            wire.Delta(seed, now, 0, 1, 1, 0, [wire.Cell("userx", 1, Raw(wire.encode_value(value)))])
            for seed, value in values.items()
        ]
        digest = {seed: wire.Summary(now, 0, 1) for seed in values}
        liar.tell("gossip", wire.GossipParams(digest, deltas))

    left = (signed("UserX", 9, owner=7, gone=True),)
    tell(y=value_of(signed("UserX", 1, owner=5), since=now + 9, seen=now, farewells=left))
    tell(
        z=value_of(signed("UserX", 1, owner=7), since=5, seen=now),
        x=value_of(forged(signed("UserX", 1, owner=6)), since=3, seen=now),
    )
    assert owner.lookup("UserX").since == since
    assert mesh["seedA"].disk["userx"].since == since
