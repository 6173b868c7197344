"""Tests that need Twisted's asyncio reactor, which a process has or has not: they run in one of their own, with

    python -m pytest --reactor=asyncio tests/on_asyncio

and within the suite as tests/net/test_redis_store.py.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import ensureDeferred

from meshproto.core.shared import SharedStore
from meshproto.net.redis_address import RedisAddress
from tests.redis_rig import MISSING, Cluster, RedisServer, cluster, single
from tests.shared_suite import Heard, Stores


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """On any other reactor there is nothing here."""
    return config.getoption("--reactor") != "asyncio" or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if MISSING:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(scope="session")
def the_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One for all tests; whoever breaks it mends it."""
    with cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="session")
def the_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with single(tmp_path_factory.mktemp("single") / "0") as running:
        yield running


class RedisStores(Stores):
    """Stores at one address; closed at the end of the test."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.made: list[Any] = []

    async def make(
        self, heard: Heard | None = None, address: str | None = None, reactor: Any = None, **options: Any
    ) -> Any:
        from twisted.internet import reactor as real

        from meshproto.net.redis_store import RedisStore

        heard = heard or Heard()
        parsed = RedisAddress.parse(address or self.address)
        store = RedisStore(parsed, reactor or real, heard.changed, heard.resumed, **options)
        self.made.append(store)
        await store.open()
        return store

    async def expire(self, store: SharedStore, key: str) -> None:
        while await store.get(key) is not None:
            pass

    async def close(self) -> None:
        for store in self.made:
            await store.close()


@pytest.fixture
def on_cluster(the_cluster: Cluster) -> Iterator[RedisStores]:
    made = RedisStores(f"redis://{the_cluster.addresses()}")
    yield made
    pytest_twisted.blockon(ensureDeferred(made.close()))


@pytest.fixture
def on_server(the_server: RedisServer) -> Iterator[RedisStores]:
    made = RedisStores(f"redis://{the_server.address}")
    yield made
    pytest_twisted.blockon(ensureDeferred(made.close()))
