"""Many nodes in one process, where a process each would take more memory than there is: `python -m bench.many`.

Each is what `twistd meshuser` or `twistd meshseed` runs, with its own keys, port and database (and the thread that
waits for the disk) in a directory of its own; only the reactor and the interpreter are shared. Says `ready` once all
are registered, or listen, and serves until it is killed. They are called user0000, seed0000 and so on.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any, Final

from twisted.logger import FileLogObserver, LogEvent, LogLevel, formatEventAsClassicLogText, globalLogBeginner

from meshproto import seed_tap, user_tap
from meshproto.net.node import UserNode

POLL_S: Final = 0.05


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    from twisted.internet import reactor as started  # noqa: PLC0415 -- in this process alone

    reactor: Any = started
    globalLogBeginner.beginLoggingTo([FileLogObserver(sys.stderr, _errors)], redirectStandardIO=False)
    logging.captureWarnings(True)
    services: list[Any] = []

    def start() -> None:
        """One after the other: those that run have their turns in between."""
        if len(services) == options.count:
            tell()
            return
        service = _service(options, len(services))
        services.append(service)
        service.privilegedStartService()
        service.startService()
        reactor.callLater(0, start)

    def tell() -> None:
        if all(_is_ready(service.inner) for service in services):
            print("ready", flush=True)
        else:
            reactor.callLater(POLL_S, tell)

    reactor.callWhenRunning(start)
    reactor.run()


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.many", description=__doc__)
    options.add_argument("kind", choices=["users", "seeds"])
    options.add_argument("count", type=int)
    options.add_argument("state", type=Path, metavar="DIR", help="where each has its directory")
    options.add_argument("seed", help="HOST:PORT of a seed: the users' home, the seeds' first peer")
    return options


def name_of(kind: str, number: int) -> str:
    return f"{kind.removesuffix('s')}{number:04}"


def _service(options: argparse.Namespace, number: int) -> Any:
    users = options.kind == "users"
    tap: Any = user_tap if users else seed_tap
    name = name_of(options.kind, number)
    given = tap.Options()
    flag = "--seed" if users else "--peer"
    given.parseOptions(["--name", name, "--port", "0", "--state", str(options.state / name), flag, options.seed])
    return tap.makeService(given)


def _is_ready(node: Any) -> bool:
    return node.seeds.home is not None if isinstance(node, UserNode) else node is not None


def _errors(event: LogEvent) -> str | None:
    """What hundreds of nodes say in the ordinary course of things is no use to anyone."""
    return formatEventAsClassicLogText(event) if event["log_level"] >= LogLevel.error else None


if __name__ == "__main__":
    main()
