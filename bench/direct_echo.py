"""What Twisted allows a server of lines: it gives back what comes, straight to the socket, and does nothing else:
`python -m bench.direct_echo`. Prints its port, and serves until it is killed."""

from typing import Any

from twisted.internet.protocol import Protocol, ServerFactory

from meshproto.net import direct


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        direct.write(self.transport, data)


def main() -> None:
    from twisted.internet import reactor as started  # noqa: PLC0415 -- in this process alone

    reactor: Any = started
    port = reactor.listenTCP(0, ServerFactory.forProtocol(Echo), interface="127.0.0.1")
    print(port.getHost().port, flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
