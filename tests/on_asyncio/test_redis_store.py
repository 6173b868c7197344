"""The shared store in Redis: what happens when nodes are lost, and at its edges."""

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock

from meshproto.errors import BadState, Unavailable
from meshproto.net import redis_store
from meshproto.net.directory_metrics import of_directory
from meshproto.net.exposition import text
from meshproto.net.redis_counters import ERRORS, OPERATIONS
from meshproto.net.redis_lane import BATCH_MAX
from meshproto.net.redis_store import OPERATION_S, PAGE_KEYS, RETRY_AFTER_S, UNDER_WAY_MAX
from tests.net.certificates import self_signed
from tests.on_asyncio.conftest import RedisStores
from tests.redis_rig import Cluster, RedisServer, single
from tests.shared_suite import LONG_MS, Heard, fresh

ROOT = Path(__file__).parent.parent.parent
KEYS = 300
"""Enough that each node of a cluster has some."""


async def filled(store: Any, keys: list[str]) -> None:
    assert all(await gatherResults([store.swap(key, None, key.encode(), LONG_MS) for key in keys]))


async def outcomes(asked: "list[Deferred[Any]]") -> list[Any]:
    """What each gave, errors among them."""
    for one in asked:
        one.addErrback(lambda failure: failure.value)
    return await gatherResults(asked)


async def later() -> None:
    """The next turn of the loop."""
    await Deferred.fromFuture(asyncio.ensure_future(asyncio.sleep(0)))


async def until_found(store: Any, keys: list[str]) -> None:
    """Ask until all are there. Each error has to say when to come back."""
    while True:
        found = await outcomes([store.get(key) for key in keys])
        errors = [one for one in found if isinstance(one, Exception)]
        assert all(isinstance(error, Unavailable) and error.retry_after_s == RETRY_AFTER_S for error in errors), errors
        if not errors:
            return
        await later()


class OwnClock(Clock):
    """A reactor, as far as a store needs one."""

    def callWhenRunning(self, work: Any, *arguments: Any) -> None:
        work(*arguments)


class TestALostMaster:
    async def test_killed(self, on_cluster: RedisStores, the_cluster: Cluster) -> None:
        """What the others have is found meanwhile, in time; what it had is found again once its replica stands in; and
        the store says that something may have changed unheard. No answer takes longer than an operation may."""
        heard, keys = Heard(), [fresh() for _ in range(KEYS)]
        store = await on_cluster.make(heard)
        await filled(store, keys)
        lost = the_cluster.master(f"mesh:{keys[0]}")
        others = [key for key in keys if the_cluster.master(f"mesh:{key}") is not lost]
        lost.kill()
        answers = [store.get(key) for key in keys]
        assert await gatherResults([store.get(key) for key in others]) == [key.encode() for key in others]
        await outcomes(answers)
        await until_found(store, keys)
        assert await gatherResults([store.get(key) for key in keys]) == [key.encode() for key in keys]
        assert all(await gatherResults([store.swap(key, key.encode(), b"2", LONG_MS) for key in keys]))
        await heard.at_least(1)
        assert store.counters.outages >= 1
        the_cluster.wait_for_failover(lost)
        the_cluster.restart(lost)

    async def test_frozen(self, on_cluster: RedisStores, the_cluster: Cluster) -> None:
        """The same of one whose machine still takes connections, and never answers."""
        heard, keys = Heard(), [fresh() for _ in range(KEYS)]
        store = await on_cluster.make(heard)
        await filled(store, keys)
        lost = the_cluster.master(f"mesh:{keys[0]}")
        others = [key for key in keys if the_cluster.master(f"mesh:{key}") is not lost]
        lost.freeze()
        answers = [store.get(key) for key in keys]
        assert await gatherResults([store.get(key) for key in others]) == [key.encode() for key in others]
        await outcomes(answers)
        await until_found(store, keys)
        await heard.at_least(1)
        lost.thaw()
        the_cluster.wait_until_whole()

    async def test_a_swap_of_which_nobody_knows(self, on_cluster: RedisStores, the_cluster: Cluster) -> None:
        """What was sent and not answered is not sent again: it may have been done."""
        key = fresh()
        store = await on_cluster.make()
        await filled(store, [key])
        lost = the_cluster.master(f"mesh:{key}")
        lost.freeze()
        (error,) = await outcomes([store.swap(key, key.encode(), b"2", LONG_MS)])
        assert isinstance(error, Unavailable) and "whether it was done nobody knows" in error.detail
        assert store.counters.errors == {"unknown": 1}
        lost.kill()
        await until_found(store, [key])
        the_cluster.wait_for_failover(lost)
        the_cluster.restart(lost)

    async def test_the_subscription_moves_to_another_node(self, on_cluster: RedisStores, the_cluster: Cluster) -> None:
        """Whichever node it was at: the store says that it may have missed something, and what is written from then on
        is heard."""
        heard, key = Heard(), fresh()
        store, other = await on_cluster.make(heard), await on_cluster.make()
        store.watch([key])
        await heard.at_least(1, key)
        lost = the_cluster.subscribed(f"mesh:{key}")
        lost.kill()
        await heard.at_least(1)
        await until_found(other, [key])
        assert await other.swap(key, None, b"1", LONG_MS)
        await heard.at_least(2, key)
        the_cluster.restart(lost)


class TestMoving:
    async def test_a_planned_fail_over(self, on_cluster: RedisStores, the_cluster: Cluster) -> None:
        """Nobody is lost: what was asked goes where the keys are now, and no operation fails."""
        keys = [fresh() for _ in range(KEYS)]
        store = await on_cluster.make()
        await filled(store, keys)
        master = the_cluster.master(f"mesh:{keys[0]}")
        the_cluster.replica_of(master).ask("CLUSTER", "FAILOVER")
        while the_cluster.master(f"mesh:{keys[0]}") is master:
            assert await gatherResults([store.get(key) for key in keys]) == [key.encode() for key in keys]
        assert await gatherResults([store.get(key) for key in keys]) == [key.encode() for key in keys]
        assert not store.counters.errors
        the_cluster.wait_until_whole()

    async def test_a_slot_on_its_way(self, on_cluster: RedisStores, the_cluster: Cluster) -> None:
        """While a slot moves, a key is found at whichever of the two has it, and written where it goes."""
        key, absent = "{moving}-a", "{moving}-b"
        store = await on_cluster.make()
        assert await store.swap(key, None, b"1", LONG_MS)
        with the_cluster.moving(f"mesh:{key}") as move:
            assert await store.get(key) == b"1"
            assert await store.get(absent) is None
            assert await store.swap(absent, None, b"2", LONG_MS)
            move([f"mesh:{key}"])
            assert await store.get(key) == b"1"
        assert await store.get(key) == b"1"
        assert await store.get(absent) == b"2"
        assert not store.counters.errors


class TestGone:
    async def test_unavailable_in_time_and_back_by_itself(self, tmp_path: Path) -> None:
        """Everything says so within the time an operation may take; after that time at once; and it goes on by itself
        when the server is there again."""
        with single(tmp_path / "0") as server:
            heard, key = Heard(), fresh()
            stores = RedisStores(f"redis://{server.address}")
            store = await stores.make(heard)
            store.watch([key])
            await heard.at_least(1, key)
            server.kill()
            asked = [store.get(key), store.swap(key, None, b"1", LONG_MS), store.count(), store.identity()]
            errors = await outcomes(asked)
            assert all(isinstance(error, Unavailable) for error in errors), errors
            while not store.counters.errors["gone"]:
                await outcomes([store.get(key)])
            server.start()
            await heard.at_least(2)  # of the commands, and of the subscription
            assert await store.swap(key, None, b"1", LONG_MS)
            await heard.at_least(2, key)
            await stores.close()

    async def test_nobody_is_there_when_it_opens(self, tmp_path: Path) -> None:
        """It says so after the time an operation may take, and works by itself as soon as somebody is."""
        server = RedisServer(tmp_path / "0")
        stores = RedisStores(f"redis://{server.address}")
        with pytest.raises(Unavailable, match="Connect call failed"):
            await stores.make()
        (store,) = stores.made
        server.start()
        await until_found(store, [fresh()])
        await stores.close()
        server.kill()

    async def test_what_hangs_is_given_up_in_time(self, on_server: RedisStores, the_server: RedisServer) -> None:
        """On a fake clock: whatever it is, just when an operation may take no longer, and not before."""
        clock = OwnClock()
        store = await on_server.make(reactor=clock)
        the_server.freeze()
        try:
            asked = [store.get("a"), store.swap("a", None, b"1", LONG_MS)]
            clock.advance(OPERATION_S / 2)
            asked.append(store.get("a"))
            clock.advance(OPERATION_S / 2 - 0.01)
            assert not any(one.called for one in asked)
            clock.advance(0.02)
            assert [one.called for one in asked] == [True, True, False]
            clock.advance(OPERATION_S / 2)
            assert [type(one) for one in await outcomes(asked)] == [Unavailable] * 3
            assert store.counters.errors == {"slow": 3}
        finally:
            the_server.thaw()

    async def test_too_much_under_way(self, on_server: RedisStores, the_server: RedisServer) -> None:
        """One more than may be is refused at once; the others are answered, for which there is time on a fake clock."""
        store = await on_server.make(reactor=OwnClock())
        the_server.freeze()
        asked = [store.get("a") for _ in range(UNDER_WAY_MAX)]
        (error,) = await outcomes([store.get("a")])
        assert isinstance(error, Unavailable) and store.counters.errors == {"busy": 1}
        the_server.thaw()
        assert set(await gatherResults(asked)) == {None}
        assert await store.get("a") is None

    async def test_what_is_under_way_when_it_closes(self, on_server: RedisStores, the_server: RedisServer) -> None:
        store = await on_server.make()
        asked = [store.get("a"), store.swap("a", b"?", None, LONG_MS)]
        await store.close()
        assert [type(one) for one in await outcomes([*asked, store.get("a")])] == [Unavailable] * 3


class TestAtTheDoor:
    async def test_a_password(self, tmp_path: Path) -> None:
        """The right one, and one clear line for a wrong one and for none."""
        with single(tmp_path / "0", "--requirepass", "open sesame") as server:
            stores = RedisStores(f"redis://:open%20sesame@{server.address}")
            store = await stores.make()
            assert await store.get(fresh()) is None
            with pytest.raises(BadState) as wrong:
                await stores.make(address=f"redis://:shut@{server.address}")
            assert f"{server.address} refuses the user or the password" in wrong.value.detail
            assert "shut" not in wrong.value.detail and "\n" not in wrong.value.detail
            with pytest.raises(BadState, match="Authentication required"):
                await stores.make(address=f"redis://{server.address}")
            await stores.close()

    async def test_a_user_who_may_do_no_more_than_is_needed(self, the_server: RedisServer) -> None:
        """What docs/cluster.md says that the store's user needs is enough."""
        said = (ROOT / "docs" / "cluster.md").read_text("utf-8")
        found = re.search(r"Its user\nneeds the commands (.*?), on the", said, re.DOTALL)
        assert found is not None
        commands = [
            word.strip().lower().replace(" ", "|") for word in re.split(r",|\band\b", found[1].replace("\n", " "))
        ]
        rights = ("resetkeys", "~mesh:*", "~mesh-directory", "resetchannels", "&mesh:*", "-@all")
        the_server.ask("ACL", "SETUSER", "seeds", "on", ">open", *rights, *(f"+{command}" for command in commands))
        heard, key = Heard(), fresh()
        stores = RedisStores(f"redis://seeds:open@{the_server.address}")
        store = await stores.make(heard)
        store.watch([key])
        await heard.at_least(1, key)
        assert await store.swap(key, None, b"1", LONG_MS)
        assert await store.swap(key, await store.get(key), None, LONG_MS)
        await heard.at_least(3, key)
        store.unwatch([key])
        assert await store.identity() and await store.count() >= 0
        await stores.close()

    async def test_tls(self, tmp_path: Path) -> None:
        """With the certificate that signed it; one clear line without it, for another host, and for plain text."""
        pem = tmp_path / "both.pem"
        pem.write_bytes(self_signed("127.0.0.1"))
        other = tmp_path / "other.pem"
        other.write_bytes(self_signed("127.0.0.1"))
        options = ("--tls-cert-file", str(pem), "--tls-key-file", str(pem), "--tls-ca-cert-file", str(pem))
        with single(tmp_path / "0", *options, "--tls-auth-clients", "no", plain=False) as server:
            stores = RedisStores(f"rediss://{server.address}")
            heard, key = Heard(), fresh()
            store = await stores.make(heard, ca=pem)
            store.watch([key])
            await heard.at_least(1, key)
            assert await store.swap(key, None, b"1", LONG_MS)
            await heard.at_least(2, key)
            with pytest.raises(BadState, match="from nobody who is trusted here: give --ca"):
                await stores.make(ca=other)
            with pytest.raises(BadState, match="is not for that host"):
                await stores.make(ca=pem, address=f"rediss://localhost:{server.port}")
            with pytest.raises(Unavailable, match="if it speaks TLS, its address begins with rediss://"):
                await stores.make(address=f"redis://{server.address}")
            await stores.close()

    async def test_tls_with_one_that_has_none(self, the_server: RedisServer) -> None:
        """It says nothing at all to a beginning that it does not understand."""
        stores = RedisStores(f"rediss://{the_server.address}")
        with pytest.raises(Unavailable, match="if it does not speak TLS, its address begins with redis://"):
            await stores.make()
        await stores.close()

    async def test_several_addresses_of_no_cluster(self, the_server: RedisServer) -> None:
        stores = RedisStores(f"redis://{the_server.address},localhost:{the_server.port}")
        with pytest.raises(BadState, match="is no cluster"):
            await stores.make()
        await stores.close()


class TestWhatIsCounted:
    async def test_docs_tell_of_each(self, on_server: RedisStores) -> None:
        """Of each metric and each value of its label; and what was asked is counted."""
        store = await on_server.make()
        await store.get(fresh())
        page = text(of_directory(store.counters))
        assert 'meshproto_seed_directory_operations_total{operation="get"} 1' in page
        assert "meshproto_seed_directory_seconds_count 1" in page
        said = (ROOT / "docs" / "cluster.md").read_text("utf-8")
        told = set(re.findall(r"^\| `(meshproto_seed_\w+)` \| (\w+) \|", said, re.MULTILINE))
        assert told == set(re.findall(r"^# TYPE (\S+) (\w+)$", page, re.MULTILINE))
        assert all(f"`{cause}`" in said for cause in ERRORS) and all(kind in said for kind in OPERATIONS)


class TestReadingAll:
    async def test_every_name_once(self, on_cluster: RedisStores, the_cluster: Cluster) -> None:
        """Of every node, and nothing but names."""
        store = await on_cluster.make()
        keys = [fresh() for _ in range(3 * PAGE_KEYS)]
        await filled(store, keys)
        await store.identity()
        read: list[tuple[str, bytes]] = []
        await store.read_all(read.extend)
        found = dict(read)
        assert {key: found.get(key) for key in keys} == {key: key.encode() for key in keys}
        assert all(not key.startswith("mesh") for key in found)


class TestEdges:
    async def test_more_than_a_batch(self, on_server: RedisStores) -> None:
        """In one turn: answered in order, whatever their size."""
        store = await on_server.make()
        keys = [fresh() for _ in range(2 * BATCH_MAX + 1)]
        values = [os.urandom(number % 700) for number in range(len(keys))]
        swaps = [store.swap(key, None, value, LONG_MS) for key, value in zip(keys, values, strict=True)]
        assert all(await gatherResults(swaps))
        assert await gatherResults([store.get(key) for key in keys]) == values
        assert store.counters.answered == 2 * len(keys) == sum(store.counters.within)

    async def test_a_node_that_forgot_the_script(self, on_server: RedisStores, the_server: RedisServer) -> None:
        store = await on_server.make()
        for _ in range(2):
            the_server.ask("SCRIPT", "FLUSH")
            assert await store.swap(fresh(), None, b"1", LONG_MS)

    async def test_a_node_that_refuses(self, tmp_path: Path) -> None:
        """In its own words: it is full."""
        with single(tmp_path / "0", "--maxmemory", "1") as server:
            stores = RedisStores(f"redis://{server.address}")
            store = await stores.make()
            (error,) = await outcomes([store.swap(fresh(), None, b"1", LONG_MS)])
            assert isinstance(error, Unavailable) and "maxmemory" in error.detail
            assert store.counters.errors == {"refused": 1}
            await stores.close()

    async def test_many_keys_are_watched(self, on_cluster: RedisStores, monkeypatch: pytest.MonkeyPatch) -> None:
        """More than one command has room for, and what comes and goes in between."""
        monkeypatch.setattr("meshproto.net.redis_news.AT_A_TIME", 7)
        heard = Heard()
        store = await on_cluster.make(heard)
        keys = [fresh() for _ in range(100)]
        store.watch(keys[:50])
        store.watch(keys)
        store.unwatch(keys[:10])
        store.watch(keys[:10])
        await gatherResults([heard.at_least(1, key) for key in keys])

    def test_the_names_of_the_constants(self) -> None:
        """An operation has time for two tries."""
        from meshproto.net.redis_connection import CONNECT_S
        from meshproto.net.redis_lane import ANSWER_S

        assert 2 * max(CONNECT_S, ANSWER_S) <= redis_store.OPERATION_S
