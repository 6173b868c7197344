"""Lookups by the load generator in C, for those who answer faster than Python can ask."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench import load as generator
from bench.compiled import NoCompiler
from bench.figures import Sample
from bench.peers.contest import Load
from bench.peers.exchange import WARM_UP_S
from bench.peers.machine import Unavailable
from bench.servers import LOAD_CORE
from meshproto.cli.processes import Failed

ASKED: Final = 100_000
"""Different names, out of all: enough that no cache has them, and the requests stay small beside the server."""


def ask(
    protocol: generator.Protocol,
    port: int,
    requests: Path,
    expected: str,
    load: Load,
    seconds: float,
    pids: Sequence[int],
) -> Sample:
    """Raises :class:`Failed` when a single answer is not what it has to be. Each connection comes from an address
    of its own, since a seed bounds what one address may ask."""
    plan = generator.Plan(
        load.connections, load.depth, load.connections, warmup=WARM_UP_S, seconds=seconds, core=LOAD_CORE
    )
    return _run(protocol, port, requests, expected, plan, pids)


def ask_each(protocol: generator.Protocol, port: int, requests: Path, expected: str) -> None:
    """Each name once: a seed checks a signature when it first answers with it."""
    plan = generator.Plan(connections=16, depth=64, sources=16, count=ASKED, core=LOAD_CORE)
    _run(protocol, port, requests, expected, plan, ())


def _run(
    protocol: generator.Protocol, port: int, requests: Path, expected: str, plan: generator.Plan, pids: Sequence[int]
) -> Sample:
    try:
        found = generator.run(protocol, f"127.0.0.1:{port}", requests, expected, plan, pids)
    except NoCompiler as reason:
        raise Unavailable(str(reason)) from reason
    except generator.LoadFailed as reason:
        raise Failed(str(reason)) from reason
    if found.errors:
        raise Failed(f"{found.errors} lookups were answered otherwise: {found.wrong}")
    return {
        "per_s": found.per_s,
        "server_us": sum(found.server_us(number) for number in range(len(pids))),
        "load_us": found.load_us,
        "load_share": found.load_cpu_s / found.seconds,
        "p50_us": found.p50_us,
        "p99_us": found.p99_us,
    }
