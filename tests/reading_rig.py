"""A node as twistd runs it, that says how it reads: `python -m tests.reading_rig PLUGIN OPTIONS...`. First the port
that it listens on, and whether connections to it are read from together; then, whenever a seed looks at the lines of
several links in one go, how many, and how many of them it answers."""

import sys
from typing import Any

from twisted.internet import reactor as started
from twisted.internet import tcp

from meshproto import seed_tap, user_tap
from meshproto.net.seeding import SeedService

TAPS: Any = {"meshseed": seed_tap, "meshuser": user_tap}


def say(*what: object) -> None:
    sys.stdout.write(" ".join(map(str, what)) + "\n")
    sys.stdout.flush()


def main() -> None:
    reactor: Any = started
    tap = TAPS[sys.argv[1]]
    options = tap.Options()
    options.parseOptions(sys.argv[2:])
    real = SeedService.answers_each

    def answers_each(self: SeedService, links: Any, lines: list[bytes]) -> list[bytes]:
        answers = real(self, links, lines)
        say(len(lines), len(answers))
        return answers

    SeedService.answers_each = answers_each  # type: ignore[method-assign]

    def start() -> None:
        service = tap.makeService(options)
        service.privilegedStartService()
        service.startService()
        port = service.ports[0]
        say(port.getHost().port, port.transport is not tcp.Server)

    reactor.callWhenRunning(start)
    reactor.run()


if __name__ == "__main__":
    main()
