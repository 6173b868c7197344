"""One who asks quietly, beside many who pipeline all they can, at a real seed: `python -m bench.fairness`."""

import argparse
import multiprocessing
import os
import selectors
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from bench.million import Client, Measured, cpu_s, table
from meshproto.cli.processes import Children
from meshproto.wire import split_address

LINKS: Final = 64
DEPTH: Final = 64
SECONDS: Final = 5.0
PAUSE_S: Final = 0.005
"""Between two quiet requests."""
RECEIVE_BYTES: Final = 256 * 1024
HELLO: Final = b'{"jsonrpc":"2.0","method":"hello","params":{"version":1,"role":"user"}}\n'
REQUEST: Final = b'{"jsonrpc":"2.0","id":1,"method":"lookup","params":{"name":"Nobody"}}\n'


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mesh-fairness-") as directory, Children(Path(directory)) as children:
        address = children.start("meshseed", "seedX")
        pid = children.all["seedX"].process.pid
        rows = _quiet(address, "nobody else", options.seconds)
        before_s = cpu_s(pid)
        alone = _flood(address, 1, options.depth, options.seconds)
        rows.append(Measured("one that pipelines alone", alone, "lookups/s"))
        each_us = 1e6 * (cpu_s(pid) - before_s) / (alone * options.seconds)
        rows.append(Measured("processor time of the seed, each of these", each_us, "us"))
        results: Any = multiprocessing.SimpleQueue()
        crowd = multiprocessing.Process(
            target=_crowd, args=(results, address, options.links, options.depth, options.seconds + 1), daemon=True
        )
        crowd.start()
        time.sleep(0.5)
        rows += _quiet(address, f"{options.links} that pipeline {options.depth}", options.seconds)
        rows.append(Measured("the others together", results.get(), "lookups/s"))
        crowd.join()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print(table(rows))
    return 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.fairness", description=__doc__)
    options.add_argument("--links", type=int, default=LINKS, help="that pipeline (%(default)d)")
    options.add_argument("--depth", type=int, default=DEPTH, help="requests under way on each (%(default)d)")
    options.add_argument("--seconds", type=float, default=SECONDS, help="for each part (%(default)g)")
    return options


def _quiet(address: str, beside: str, seconds: float) -> list[Measured]:
    took_ms = []
    with Client(address) as client:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            client.call("lookup", {"name": "Nobody"})
            took_ms.append(1000 * (time.monotonic() - began))
            time.sleep(PAUSE_S)
    cuts = statistics.quantiles(took_ms, n=100)
    return [
        Measured(f"a quiet lookup beside {beside}, p50", cuts[49], "ms"),
        Measured(f"a quiet lookup beside {beside}, p99", cuts[98], "ms"),
    ]


def _crowd(results: Any, address: str, links: int, depth: int, seconds: float) -> None:
    results.put(_flood(address, links, depth, seconds))


def _flood(address: str, links: int, depth: int, seconds: float) -> float:
    """Answers a second, over links on each of which `depth` requests are always under way."""
    selector, answers = selectors.DefaultSelector(), 0
    for _ in range(links):
        connection = socket.create_connection(split_address(address))
        connection.sendall(HELLO + REQUEST * depth)
        selector.register(connection, selectors.EVENT_READ)
    began = time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        for key, _ in selector.select(1.0):
            connection = key.fileobj  # type: ignore[assignment]
            got = connection.recv(RECEIVE_BYTES).count(b"\n")
            if not got:
                raise ConnectionError("the seed has hung up")
            connection.sendall(REQUEST * got)
            answers += got
    for key in list(selector.get_map().values()):
        key.fileobj.close()  # type: ignore[union-attr]
    return answers / (now - began)


if __name__ == "__main__":
    sys.exit(main())
