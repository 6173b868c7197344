"""Whoever has left does not come back: found by `python -m bench.soak`, told here step by step."""

import pytest

from tests.core.seed_mesh import Client, SeedMesh
from tests.core.users import key_of

NAMES = ["seedA", "seedB", "seedC"]
SETTLED_S = 10.0


@pytest.fixture
def mesh() -> SeedMesh:
    mesh = SeedMesh(*NAMES)
    mesh.advance(SETTLED_S)
    return mesh


def owners(mesh: SeedMesh) -> set[str]:
    """Whose the name is, at every seed."""
    return {Client(mesh, name).lookup("UserX").record.partition('"key":"')[2].partition('"')[0] for name in NAMES}


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
    Client(mesh, "seedA").register("UserX", 1)
    mesh.advance(SETTLED_S)
    mesh.stop("seedA")
    moved = Client(mesh, "seedB")
    moved.register("UserX", 2)
    moved.unregister("UserX", 3)
    mesh.advance(SETTLED_S)
    Client(mesh, "seedC").register("UserX", 4, owner=2)
    mesh.advance(SETTLED_S)
    mesh.start("seedA")
    mesh.advance(SETTLED_S)
    assert owners(mesh) == {key_of(2)}
