"""A user node's database on a fake clock, for whoever tests a table of it; and both ways that requests may go."""

from collections.abc import Iterator

import pytest

from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION, UserStore
from tests.net.on_clock import OnClock


@pytest.fixture
def disk() -> Iterator[OnClock]:
    disk = OnClock(SCHEMA, SCHEMA_VERSION)
    yield disk
    disk.close()


@pytest.fixture
def store(disk: OnClock) -> UserStore:
    return UserStore(disk.database)


@pytest.fixture(params=["the short way", "Klein's way"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whichever way a node serves its requests, it has to be the same. For all nodes that are made from now on."""
    from meshproto.net.front import Front
    from meshproto.net.public_front import PublicFront

    if request.param == "Klein's way":
        monkeypatch.setattr("meshproto.net.face.SHORT_WAY", {Front: {}, PublicFront: {}})
    return str(request.param)
