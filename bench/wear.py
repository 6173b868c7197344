"""What those who are served notice of a crowd that only holds connections: `python -m bench.wear`.

A seed and two users' nodes, each a process; the crowd (:mod:`bench.crowd`) is one more. First against the seed, while
somebody looks names up there, over a connection that stays and over a new one each time; then against UserX's node,
while Bobby writes to UserX and UserX to Bobby. Quiet and crowded stand beside each other, and none may fail.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from bench.backlog import percentile
from bench.crowd import BACK_S
from bench.million import Client, Measured, memory_bytes, table
from meshproto.cli.processes import Children, Failed, until
from meshproto.client.node import Node

SEED: Final = "seedX"
RECIPIENT: Final = "UserX"
SENDER: Final = "Bobby"
IDLE: Final = 5000
SLOW: Final = 500
HOSTS: Final = 50
SECONDS: Final = 20.0
"""Of measuring, quiet and crowded each."""
PAUSE_S: Final = 0.002
"""Between two requests: those who are measured do not fill the machine themselves."""
RATIO_MAX: Final = 3.0
ANSWER_S_MAX: Final = 30.0
TO_COME_S: Final = 4.0
"""What a crowd takes to be there, at most, besides the time for dialling."""


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mesh-wear-") as directory, Children(Path(directory)) as children:
        wear = Wear(children, options)
        rows = [*wear.at_the_seed(), *wear.at_the_node()]
    print(f"{options.idle:,} idle and {options.slow:,} slow from {options.hosts} addresses, {os.cpu_count()} cores\n")
    print(table(rows))
    return 1 if any(row.missed for row in rows) else 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.wear", description=__doc__)
    options.add_argument("--idle", type=int, default=IDLE, help="connections that say nothing (%(default)d)")
    options.add_argument("--slow", type=int, default=SLOW, help="connections that say a byte a second (%(default)d)")
    options.add_argument("--hosts", type=int, default=HOSTS, help="addresses that they come from (%(default)d)")
    options.add_argument(
        "--back", type=float, default=BACK_S, help="when who was sent away is back, in s (%(default)g)"
    )
    options.add_argument("--seconds", type=float, default=SECONDS, help="of measuring (%(default)g)")
    return options


class Wear:
    def __init__(self, children: Children, options: argparse.Namespace) -> None:
        self._children = children
        self._options = options
        self._seed = children.start("meshseed", SEED)
        self._urls = {name: children.start("meshuser", name, "--seed", self._seed) for name in (RECIPIENT, SENDER)}
        for name, url in self._urls.items():
            node = Node(url)
            until(lambda node=node: node.status().document["registered"] or None, f"{name} is registered")  # type: ignore[misc]
        for sender, to in ((SENDER, RECIPIENT), (RECIPIENT, SENDER)):
            Node(self._urls[sender]).send(to, "hello")

    def at_the_seed(self) -> Iterator[Measured]:
        """Look-ups, one after the other."""
        with Client(self._seed) as stays:

            def look_up(seed: Client) -> bool:
                return seed.call("lookup", {"name": RECIPIENT})["result"]["home"] == SEED  # type: ignore[no-any-return]

            def look_up_anew() -> bool:
                with Client(self._seed) as seed:
                    return look_up(seed)

            real = {"look-up": lambda: look_up(stays), "look-up over a new connection": look_up_anew}
            yield from self._compare(SEED, self._seed, "lines", real)

    def at_the_node(self) -> Iterator[Measured]:
        """Messages, from their acceptance to the acknowledgement."""
        with (
            closing(_Writer(self._urls[SENDER], RECIPIENT)) as inward,
            closing(_Writer(self._urls[RECIPIENT], SENDER)) as out,
        ):
            real = {f"message to {RECIPIENT}": inward.send, f"message of {RECIPIENT}": out.send}
            yield from self._compare(RECIPIENT, self._urls[RECIPIENT].removeprefix("http://"), "http", real)

    def _compare(self, name: str, address: str, kind: str, real: dict[str, Callable[[], bool]]) -> Iterator[Measured]:
        pid = self._children.all[name].process.pid
        quiet = self._measure(real)
        before = memory_bytes(pid)[0]
        crowd = self._come(address, kind)
        crowded = self._measure(real)
        during = memory_bytes(pid)[0]
        said, _ = crowd.communicate(timeout=ANSWER_S_MAX + self._options.seconds)
        told: dict[str, int] = json.loads(said.splitlines()[-1])
        for what in real:
            for percent in (50, 99):
                yield Measured(f"{what}, quiet: p{percent}", percentile(quiet[what], percent) * 1000, "ms")
                yield Measured(f"{what}, crowded: p{percent}", percentile(crowded[what], percent) * 1000, "ms")
            ratio = percentile(crowded[what], 99) / percentile(quiet[what], 99)
            yield Measured(f"{what}: p99, crowded to quiet", ratio, target=RATIO_MAX)
            yield Measured(f"{what}, crowded: how many", len(crowded[what]))
            yield Measured(f"{what}: failed", crowded[what].count(float("inf")), target=0)
        yield Measured(f"of the crowd at {name} at a time, at most", told["most"])
        yield Measured(f"of the crowd sent away by {name}", told["ended"])
        yield Measured(f"memory of {name} before", before / 1e6, "MB")
        yield Measured(f"memory of {name} during", during / 1e6, "MB")

    def _come(self, address: str, kind: str) -> "subprocess.Popen[str]":
        options = self._options
        command = [sys.executable, "-m", "bench.crowd", address, kind]
        seconds = options.seconds + TO_COME_S + (options.idle + options.slow) / 1000
        command += [
            f"--idle={options.idle}",
            f"--slow={options.slow}",
            f"--hosts={options.hosts}",
            f"--back={options.back}",
            f"--seconds={seconds}",
        ]
        crowd = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        assert crowd.stdout is not None
        if not crowd.stdout.readline():
            raise Failed("the crowd did not come")
        return crowd

    def _measure(self, real: dict[str, Callable[[], bool]]) -> dict[str, list[float]]:
        """Seconds that each took; infinite when it failed."""
        took: dict[str, list[float]] = {what: [] for what in real}
        ends_at = time.monotonic() + self._options.seconds
        while time.monotonic() < ends_at:
            for what, do in real.items():
                began = time.perf_counter()
                try:
                    done = do()
                except (OSError, Failed, KeyError, http.client.HTTPException) as reason:
                    print(f"{what}: {reason!r}", file=sys.stderr)
                    done = False
                took[what].append(time.perf_counter() - began if done else float("inf"))
                time.sleep(PAUSE_S)
        return took


class _Writer:
    """Writes over one connection to its node."""

    def __init__(self, url: str, to: str) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=ANSWER_S_MAX)
        self._to = to

    def send(self) -> bool:
        self._connection.request("POST", "/send", json.dumps({"to": self._to, "message": "x", "wait": ANSWER_S_MAX}))
        answer: Any = json.loads(self._connection.getresponse().read())
        return bool(answer["status"] == "delivered")

    def close(self) -> None:
        self._connection.close()


if __name__ == "__main__":
    sys.exit(main())
