"""Which node of a store has which part of its keys: the slots of a cluster, or all of them on a single server."""

import asyncio
import math
import random
from collections.abc import Iterable
from typing import Any, Final

from redis.asyncio.connection import Connection
from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import RedisError, ResponseError
from twisted.logger import Logger

from meshproto.errors import BadState
from meshproto.net.redis_address import RedisAddress
from meshproto.net.redis_connection import FAILURES, Connecting, failure_words, is_hopeless, nobody_listens
from meshproto.net.redis_lane import Lane, Lost, Told

SLOTS: Final = REDIS_CLUSTER_HASH_SLOTS
ASKED_S: Final = 0.5
"""For one node to tell which has what: a node that hangs must not use up the time there is for an operation."""

Host = tuple[str, int]


class NoPlace(RedisError):
    """No node could say which has what."""


class Places:
    """`lanes`: to every node that has keys, or had some a moment ago. Redirections are taken up one by one with
    :meth:`moved`; :meth:`refresh` asks the cluster anew."""

    log = Logger()

    def __init__(self, address: RedisAddress, connecting: Connecting, told: Told, lost: Lost) -> None:
        self.lanes: dict[Host, Lane] = {}
        self.hosts: list[Host] = []
        self.of_slot: list[Lane | None] = [None] * SLOTS
        self.known = False
        self._address = address
        self._connecting = connecting
        self._told = told
        self._lost = lost

    def lane(self, host: Host) -> Lane:
        lane = self.lanes.get(host)
        if lane is None:
            lane = self.lanes[host] = Lane(*host, self._connecting.to(*host), self._told, self._lost)
        return lane

    def shards(self) -> list[int]:
        """A slot of each master."""
        return list({lane: slot for slot, lane in enumerate(self.of_slot) if lane is not None}.values())

    def broken(self) -> list[Lane]:
        return [lane for lane in self.lanes.values() if lane.broken_since is not None]

    def moved(self, slot: int, host: Host) -> Lane:
        lane = self.of_slot[slot] = self.lane(host)
        return lane

    async def refresh(self) -> None:
        """Ask the nodes that are known, and those of the address, until one says who has what. Raises
        :class:`NoPlace`, or :class:`BadState` for what waiting does not mend."""
        said: list[str] = []
        broken = {host for host, lane in self.lanes.items() if lane.broken_since is not None}
        hosts = [*dict.fromkeys((*self.hosts, *self._address.hosts))]
        for host in sorted(random.sample(hosts, len(hosts)), key=broken.__contains__):
            try:
                async with asyncio.timeout(ASKED_S):
                    found = await self._ask(host)
            except FAILURES as error:
                words = failure_words(*host, error)
                if not self.known and is_hopeless(error):
                    raise BadState(words) from None
                said.append(words + self._hint(error))
            else:
                if found:
                    self._take(found)
                    return
                said.append(f"{host[0]}:{host[1]} is in a cluster that has no slots")
        raise NoPlace("; ".join(said))

    def _hint(self, error: BaseException) -> str:
        """A server that speaks TLS hangs up on one who does not, and one that does not waits for ever."""
        if self.known or nobody_listens(error):
            return ""
        if self._address.tls:
            return " (if it does not speak TLS, its address begins with redis://)"
        return " (if it speaks TLS, its address begins with rediss://)"

    async def _ask(self, host: Host) -> list[tuple[int, int, Host, list[Host]]]:
        """First and last slot, the master, its replicas."""
        connection = self._connecting.to(*host)
        try:
            await connection.connect()
            rows = await _answer(connection, "CLUSTER", "SLOTS")
        except ResponseError as refused:
            if "cluster support disabled" not in str(refused):
                raise
            if len(self._address.hosts) > 1:
                raise BadState(f"{host[0]}:{host[1]} is no cluster: give --directory that one address alone") from None
            return [(0, SLOTS - 1, host, [])]
        finally:
            await connection.disconnect(nowait=True)
        return [
            (first, last, _host(master, host), [_host(one, host) for one in rest])
            for first, last, master, *rest in rows
        ]

    def _take(self, ranges: Iterable[tuple[int, int, Host, list[Host]]]) -> None:
        of_slot: list[Lane | None] = [None] * SLOTS
        hosts: dict[Host, None] = {}
        for first, last, master, replicas in ranges:
            of_slot[first : last + 1] = [self.lane(master)] * (last + 1 - first)
            hosts.update(dict.fromkeys((master, *replicas)))
        self.of_slot, self.hosts, self.known = of_slot, list(hosts), True
        used = set(of_slot)
        for host in [host for host, lane in self.lanes.items() if lane not in used]:
            self.lanes.pop(host).leave()

    def connection(self) -> Connection:
        """To any node, rather not to one that is known to be lost."""
        hosts = self.hosts or list(self._address.hosts)
        good = [host for host in hosts if (lane := self.lanes.get(host)) is None or lane.broken_since is None]
        return self._connecting.to(*random.choice(good or hosts))

    async def close(self) -> None:
        for lane in list(self.lanes.values()):
            await lane.close()
        self.lanes.clear()


async def _answer(connection: Connection, *words: str) -> Any:
    await connection.send_command(*words, check_health=False)
    return await connection.read_response(disable_decoding=True, timeout=math.inf)


def _host(row: list[Any], asked: Host) -> Host:
    """A node that has not been told its own address is at the one that it was asked at."""
    host = bytes(row[0] or b"").decode("ascii") if row[0] not in (b"", b"?", None) else asked[0]
    return host, int(row[1])
