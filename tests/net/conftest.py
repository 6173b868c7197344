"""A user node's database on a fake clock, for whoever tests a table of it."""

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
