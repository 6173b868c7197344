"""What a seed counts of what it is asked."""

import pytest

from meshproto.core.rates import REQUESTS, REQUESTS_AT_ONCE
from meshproto.core.seed import Settings
from meshproto.core.seed_tally import NotRegistered, SeedTally
from meshproto.core.sessions import Role
from meshproto.errors import (
    BadParams,
    BadSignature,
    Forbidden,
    MeshError,
    NameTaken,
    SlowDown,
    StaleRecord,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from meshproto.wire import LookupResult, NameParams, Nothing, RegisterResult, SeedsResult, StatusResult, WatchParams
from tests.core.seed_mesh import Client, SeedMesh
from tests.core.users import forged, signed


def test_lookups_and_registrations() -> None:
    """Found or not, by the short way or the long one; accepted, or refused and why."""
    mesh = SeedMesh("seedA")
    client = Client(mesh, "seedA")
    tally = mesh["seedA"].seed.tally
    client.call("register", signed("UserX", 2), RegisterResult)
    client.call("lookup", NameParams("UserX"), LookupResult)
    client.refused("lookup", NameParams("Nobody"))
    client.refused("register", forged(signed("UserX", 3)))
    client.refused("register", signed("UserX", 1))
    client.refused("register", signed("UserX", 4, owner=2))
    assert (tally.lookups, tally.missed, tally.registrations) == (2, 1, 1)
    assert tally.not_registered == {
        NotRegistered.BAD_SIGNATURE: 1,
        NotRegistered.STALE_RECORD: 1,
        NotRegistered.NAME_TAKEN: 1,
    }
    line = b'{"jsonrpc":"2.0","id":1,"method":"lookup","params":{"name":"%b"}}'
    seed, link = mesh["seedA"].seed, client.link
    assert len(seed.answers(link, [line % b"Nobody"] * 3, mesh.now)) == 3
    assert (tally.lookups, tally.missed) == (5, 4)
    client.call("status", Nothing(), StatusResult)
    assert mesh["seedA"].seed.status(mesh.now).lookups == 5


def test_those_who_ask_too_much() -> None:
    mesh = SeedMesh("seedA")
    client = Client(mesh, "seedA", trusted=False)
    tally = mesh["seedA"].seed.tally
    for _ in range(int(REQUESTS.burst - REQUESTS_AT_ONCE) // 4000):
        client.call("seeds", Nothing(), SeedsResult)
    assert tally.slowed == 0
    for _ in range(2):
        client.refused("seeds", Nothing())
    assert tally.slowed >= 1 and not tally.not_registered


def test_links_by_what_they_are_for() -> None:
    """A guest until they register or watch."""
    mesh = SeedMesh("seedA")
    clients = [Client(mesh, "seedA") for _ in range(3)]
    seed = mesh["seedA"].seed
    assert seed.links() == {Role.GUEST: 3}
    clients[0].call("register", signed("UserX", 1), RegisterResult)
    clients[1].call("watch", WatchParams(["UserX"]), Nothing)
    assert seed.links() == {Role.USER: 2, Role.GUEST: 1}


def test_who_may_not_register() -> None:
    mesh = SeedMesh("seedA", settings=Settings(may_register=lambda name, key: False))
    Client(mesh, "seedA").refused("register", signed("UserX", 1))
    assert mesh["seedA"].seed.tally.not_registered == {NotRegistered.NOT_ALLOWED: 1}


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (BadSignature(), NotRegistered.BAD_SIGNATURE),
        (NameTaken(), NotRegistered.NAME_TAKEN),
        (StaleRecord(), NotRegistered.STALE_RECORD),
        (Unauthorized(), NotRegistered.NOT_ALLOWED),
        (Forbidden(), NotRegistered.NOT_ALLOWED),
        (SlowDown(), NotRegistered.TOO_MANY),
        (BadParams(), NotRegistered.BAD_RECORD),
        (TooLarge(), NotRegistered.BAD_RECORD),
        (Unavailable(), NotRegistered.OTHER),
    ],
)
def test_every_refusal_has_a_cause(error: MeshError, why: NotRegistered) -> None:
    tally = SeedTally()
    tally.refused_to_register(error)
    assert tally.not_registered == {why: 1}
