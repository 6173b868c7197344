"""The suite of every shared store, on a real cluster and on a single server."""

import pytest

from tests.on_asyncio.conftest import RedisStores
from tests.shared_suite import SharedStoreSuite


class TestCluster(SharedStoreSuite):
    @pytest.fixture
    def stores(self, on_cluster: RedisStores) -> RedisStores:
        return on_cluster


class TestServer(SharedStoreSuite):
    @pytest.fixture
    def stores(self, on_server: RedisStores) -> RedisStores:
        return on_server
