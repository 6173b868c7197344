"""What a directory in a Redis Cluster takes, and how fast it answers: `python -m bench.directory`.

Six processes of this machine, three masters and a replica each, and so many names in them, of the size that records
have. Told are the memory a name on both sides, how many gets a second one seed's client makes (in batches of several
sizes: what comes to a seed within one turn), its CPU time a get, and redis-benchmark's GET in the same run.
"""

import argparse
import asyncio
import itertools
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from twisted.internet.asyncioreactor import install
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.task import react

from bench.figures import say
from bench.load import redis_request
from bench.peers.exchange import connect
from bench.peers.redis import replies_to
from meshproto.net.redis_address import RedisAddress
from meshproto.net.redis_store import PREFIX, RedisStore
from tests.redis_rig import MISSING, Cluster, RedisServer, cluster

NAMES: Final = 200_000
VALUE_BYTES: Final = 400
"""A signed record of a user node with one address, and what a seed knows of it."""
FILL_AT_A_TIME: Final = 2000
BATCHES: Final = (1, 8, 64, 512)
SECONDS: Final = 2.0
ROUNDS: Final = 3
SLOTS: Final = 16384
BENCHMARK: Final = ("--cluster", "-t", "set,get", "-n", "200000", "-r", "100000", "-P", "64", "-c", "8", "-q")


def name_of(number: int) -> str:
    return f"user{number:09}"


def value_of(number: int) -> bytes:
    """Nothing that a database could make smaller."""
    return random.Random(number).randbytes(VALUE_BYTES // 2).hex().encode()


def fill(running: Cluster, names: int) -> None:
    """Each master by pipelines of its own."""
    from redis.crc import key_slot  # noqa: PLC0415 - with the extra

    owners: list[RedisServer] = [running.servers[0]] * SLOTS
    for first, last, (_, port, *_rest), *_ in running.servers[0].ask("CLUSTER", "SLOTS"):
        owners[first : last + 1] = [next(s for s in running.servers if s.port == port)] * (last + 1 - first)
    links = {server: connect(server.port) for server in set(owners)}
    waiting: dict[RedisServer, list[bytes]] = {server: [] for server in links}
    for number in range(names):
        key = PREFIX + name_of(number).encode()
        server = owners[key_slot(key)]
        waiting[server].append(redis_request(b"SET", key, value_of(number), b"EX", b"2592000"))
        if len(waiting[server]) == FILL_AT_A_TIME:
            _send(links[server], waiting[server])
    for server, link in links.items():
        _send(link, waiting[server])
        link.close()


def _send(link: Any, requests: list[bytes]) -> None:
    if requests:
        link.sendall(b"".join(requests))
        replies_to(link, len(requests))
        requests.clear()


def memory(servers: list[RedisServer]) -> int:
    used = (re.search(rb"used_memory:(\d+)", server.ask("INFO", "memory")) for server in servers)
    return sum(int(found[1]) for found in used if found)


async def gets(store: RedisStore, names: int, batch: int) -> tuple[float, float]:
    """Gets a second, and microseconds of CPU each, of random names; so many at a time."""
    numbers: Iterator[int] = iter(lambda: random.randrange(names), -1)
    done, began, used = 0, time.perf_counter(), _cpu_s()
    while (seconds := time.perf_counter() - began) < SECONDS:
        asked = [store.get(name_of(number)) for number in itertools.islice(numbers, batch)]
        found = await gatherResults(asked)
        if None in found:
            raise SystemExit("a name is missing")
        done += batch
        await Deferred.fromFuture(asyncio.ensure_future(asyncio.sleep(0)))
    return done / seconds, (_cpu_s() - used) / done * 1e6


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def measure(reactor: Any, running: Cluster, names: int) -> None:
    address = RedisAddress.parse(f"redis://{running.addresses()}")
    store = RedisStore(address, reactor, lambda _: None, lambda: None)
    await store.open()
    rates: dict[int, list[tuple[float, float]]] = {batch: [] for batch in BATCHES}
    for _ in range(ROUNDS):
        for batch in BATCHES:
            rates[batch].append(await gets(store, names, batch))
    await store.close()
    for batch, found in rates.items():
        per_s, cpu_us = (sorted(column)[ROUNDS // 2] for column in zip(*found, strict=True))
        say(f"{batch:4} gets at a time: {per_s:9,.0f}/s, {cpu_us:5.1f} us of CPU each in the seed")


def redis_benchmark(running: Cluster) -> None:
    command = [str(shutil.which("redis-benchmark")), "-p", str(running.servers[0].port), *BENCHMARK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for what, per_s in re.findall(r"(SET|GET): ([\d.]+) requests per second", done.stdout):
        say(f"redis-benchmark {what}, 8 connections, 64 deep: {float(per_s):,.0f}/s")


def main() -> int:
    parser = argparse.ArgumentParser("bench.directory", description=__doc__)
    parser.add_argument("--names", type=int, default=NAMES, help=f"in the cluster ({NAMES:,})")
    names = parser.parse_args().names
    if MISSING:
        sys.exit(MISSING)
    with tempfile.TemporaryDirectory(prefix="mesh-directory-") as folder, cluster(Path(folder)) as running:
        masters = running.masters()
        replicas = [server for server in running.servers if server not in masters]
        before = memory(masters), memory(replicas)
        began = time.perf_counter()
        fill(running, names)
        say(f"{names:,} names of {VALUE_BYTES} bytes are in after {time.perf_counter() - began:.1f} s")
        running.wait_until_whole()
        for what, servers, empty in (("masters", masters, before[0]), ("replicas", replicas, before[1])):
            say(f"{(memory(servers) - empty) / names:.0f} bytes a name in the {what}")
        react(lambda reactor: ensureDeferred(measure_then_benchmark(reactor, running, names)))
    return 0


async def measure_then_benchmark(reactor: Any, running: Cluster, names: int) -> None:
    await measure(reactor, running, names)
    redis_benchmark(running)


if __name__ == "__main__":
    install()
    main()
