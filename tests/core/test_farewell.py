"""Whoever has left does not come back: found by `python -m bench.soak`, told here step by step."""

import pytest
from msgspec import UNSET

from meshproto.core.identity import RECORD_DOMAIN, b64
from meshproto.wire import CELL_BYTES_MAX, Nothing, RegisterResult, SignedRecord
from tests.core.seed_mesh import Client, SeedMesh
from tests.core.users import key_of, signed, user

NAMES = ["seedA", "seedB", "seedC"]
SETTLED_S = 10.0


@pytest.fixture
def mesh() -> SeedMesh:
    mesh = SeedMesh(*NAMES)
    mesh.advance(SETTLED_S)
    return mesh


def owners(mesh: SeedMesh, *seeds: str) -> set[str]:
    """Whose the name is, at these seeds, or at every one."""
    found = [Client(mesh, name).lookup("UserX").record for name in seeds or NAMES]
    return {record.partition('"key":"')[2].partition('"')[0] for record in found}


def leave_while_the_former_home_is_down(mesh: SeedMesh) -> None:
    """A user of seedA, which then dies with the entry on its disk, moves to seedB and leaves there."""
    Client(mesh, "seedA").register("UserX", 1)
    mesh.advance(SETTLED_S)
    mesh.stop("seedA")
    moved = Client(mesh, "seedB")
    moved.register("UserX", 2)
    moved.unregister("UserX", 3)


def test_a_move_and_a_farewell_in_one_breath(mesh: SeedMesh) -> None:
    """A seed that hears of the move only together with the farewell lets go of the user too; else its entry would own
    the name again as soon as somebody else's takes the farewell's place."""
    Client(mesh, "seedA").register("UserX", 1)
    mesh.advance(SETTLED_S)
    moved = Client(mesh, "seedB")
    moved.register("UserX", 2)
    moved.unregister("UserX", 3)
    mesh.advance(SETTLED_S)
    Client(mesh, "seedB").register("UserX", 4, owner=2)
    mesh.advance(SETTLED_S)
    assert owners(mesh) == {key_of(2)}


def test_a_farewell_outlives_the_next_owner(mesh: SeedMesh) -> None:
    """A seed that was down when the user moved and left comes back with the old entry on its disk: the farewell still
    speaks against it, although the name has had a new owner since."""
    leave_while_the_former_home_is_down(mesh)
    mesh.advance(SETTLED_S)
    Client(mesh, "seedC").register("UserX", 4, owner=2)
    mesh.advance(SETTLED_S)
    mesh.start("seedA")
    mesh.advance(SETTLED_S)
    assert owners(mesh) == {key_of(2)}


def test_a_name_that_is_taken_where_the_farewell_stands(mesh: SeedMesh) -> None:
    """The next owner's entry takes the farewell's place at that seed, and carries it: the former home, which was down,
    does not bring the old owner back. Nor does anybody who sends the old record again."""
    leave_while_the_former_home_is_down(mesh)
    for owner in (2, 3):
        following = Client(mesh, "seedB")
        following.register("UserX", 1, owner=owner)
        mesh.advance(SETTLED_S)
        assert owners(mesh, "seedB", "seedC") == {key_of(owner)}
        if owner == 2:
            following.unregister("UserX", 2, owner=owner)
    mesh.start("seedA")
    mesh.advance(SETTLED_S)
    assert owners(mesh) == {key_of(3)}
    assert mesh["seedA"].disk == {}
    following.unregister("UserX", 2, owner=3)
    mesh.advance(SETTLED_S)
    assert Client(mesh, "seedB").refused("register", signed("UserX", 2)).message == "stale record"


def test_the_farewell_goes_along_when_the_next_owner_moves(mesh: SeedMesh) -> None:
    """It stands in the entry at the new home too, and on its disk."""
    Client(mesh, "seedA").register("UserX", 1)
    mesh.advance(SETTLED_S)
    mesh.stop("seedA")
    Client(mesh, "seedB").unregister("UserX", 2)
    Client(mesh, "seedB").register("UserX", 1, owner=2)
    mesh.advance(SETTLED_S)
    Client(mesh, "seedC").register("UserX", 2, owner=2)
    mesh.advance(SETTLED_S)
    assert mesh["seedB"].disk == {}
    mesh.stop("seedC")
    mesh.start("seedC")
    mesh.start("seedA")
    mesh.advance(SETTLED_S)
    assert owners(mesh) == {key_of(2)}


def test_a_claim_in_a_split_of_three(mesh: SeedMesh) -> None:
    """A user claims a name, another key claims it in the second part, and the first moves to the third part, where
    nobody knows of the claim. The first home keeps its entry until the third knows since when: the earlier claim wins
    whichever parts meet first."""
    cut = {frozenset((one, two)) for one in NAMES for two in NAMES if one != two}
    mesh.cut = set(cut)
    Client(mesh, "seedA").register("UserX", 1)
    mesh.advance(1.0)
    Client(mesh, "seedB").register("UserX", 1, owner=2)
    mesh.advance(1.0)
    Client(mesh, "seedC").register("UserX", 2)
    mesh.cut = cut - {frozenset(("seedA", "seedC"))}
    mesh.advance(SETTLED_S)
    assert mesh["seedA"].disk == {}
    mesh.cut.clear()
    mesh.advance(SETTLED_S)
    assert owners(mesh) == {key_of(1)}


def padded(owner: int, seq: int, length: int, *, gone: bool) -> SignedRecord:
    """A record of so many characters: spaces are allowed in it."""
    text = signed("UserX", seq, owner=owner, gone=gone).record
    text = text[0] + " " * (length - len(text)) + text[1:]
    return SignedRecord(text, b64(user(owner).signing.sign(RECORD_DOMAIN + text.encode()).signature))


def test_a_large_record_takes_the_place_of_farewells(mesh: SeedMesh) -> None:
    """Nobody is kept from registering by what others have said before: what has no room in the cell is forgotten, the
    oldest first."""
    for owner in (1, 2, 3):
        client = Client(mesh, "seedB")
        client.register("UserX", 1, owner=owner)
        client.call("unregister", padded(owner, 1 + owner, 1000, gone=True), Nothing)
    Client(mesh, "seedB").call("register", padded(4, 1, 4500, gone=False), RegisterResult)
    mesh.advance(SETTLED_S)
    assert owners(mesh) == {key_of(4)}
    assert [f'"seq":{seq}' in said.record for said, seq in zip(farewells(mesh), (4,), strict=True)] == [True]


def farewells(mesh: SeedMesh) -> tuple[SignedRecord, ...]:
    return mesh["seedB"].disk["userx"].farewells


@pytest.mark.parametrize("method", ["register", "unregister"])
def test_what_fits_no_cell_is_refused(mesh: SeedMesh, method: str) -> None:
    """Other seeds would not take it, and nothing that this seed says after it either."""
    client = Client(mesh, "seedB")
    client.register("UserX", 1)
    large = padded(1, 2, CELL_BYTES_MAX, gone=method == "unregister")
    assert client.refused(method, large).message == "too large"
    mesh.advance(SETTLED_S)
    assert owners(mesh) == {key_of(1)}


@pytest.mark.parametrize("others", [0, 60], ids=["told first", "told last"])
def test_a_move_to_a_seed_that_has_not_heard_yet(mesh: SeedMesh, others: int) -> None:
    """The user's new home takes the farewells over that the former one carried before that lets go, and decides nothing
    before it has heard all of a message: the former owner's entry, at a seed that was down, does not come back."""
    for at in range(others):
        Client(mesh, "seedC").register(f"user{at}")
    Client(mesh, "seedC").register("UserX", 1)
    mesh.advance(SETTLED_S)
    mesh.stop("seedC")
    Client(mesh, "seedA").unregister("UserX", 2)
    Client(mesh, "seedA").register("UserX", 1, owner=2)
    mesh.advance(SETTLED_S)
    mesh.stop("seedB")
    mesh.start("seedB")
    client = Client(mesh, "seedB")
    client.register("UserX", 2, owner=2)
    mesh.advance(SETTLED_S)
    assert owners(mesh, "seedA", "seedB") == {key_of(2)}
    assert mesh["seedA"].disk == {}
    mesh.start("seedC")
    mesh.advance(SETTLED_S)
    assert owners(mesh) == {key_of(2)}
    assert list(mesh["seedB"].disk) == ["userx"]
    assert mesh["seedB"].logs == []


@pytest.mark.parametrize("online", [True, False])
def test_a_record_that_just_fits(mesh: SeedMesh, online: bool) -> None:
    """It fits when its user is away too: `false` is longer than `true`."""
    client = Client(mesh, "seedB")
    for length in range(CELL_BYTES_MAX, 0, -1):
        (answer,) = client.say("register", padded(1, 1, length, gone=False))[-1:]
        if answer.error is UNSET:
            break
    if not online:
        client.close()
    mesh.advance(SETTLED_S)
    assert owners(mesh) == {key_of(1)}
    assert not any(host.logs for host in mesh.hosts.values())
