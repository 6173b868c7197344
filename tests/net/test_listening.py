"""Listening, and what is said about where."""

import re
import socket
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol

from meshproto.errors import BadState
from meshproto.net.listening import (
    BACKLOG,
    NEWCOMERS_AT_ONCE,
    host_port,
    idle_max,
    is_loopback,
    join_address,
    listen,
    local_address,
    places_max,
    with_backlog,
)
from tests.test_layers import MODULES


class Endpoint:
    """One whose `listen` answers with what it was given."""

    def __init__(self, answer: "Deferred[Any]") -> None:
        self.answer = answer

    def listen(self, factory: object) -> "Deferred[Any]":
        return self.answer


def test_how_tls_begins_is_said_once() -> None:
    """All three kinds of listeners know it by one constant."""
    telling = [name for name, path in MODULES.items() if re.search(r"\\x16|\b0x16\b", path.read_text("utf-8"))]
    assert telling == ["meshproto.net.listening"]


@pytest.mark.parametrize(("files", "wanted", "places"), [(1000, 20_000, 750), (100_000, 20_000, 20_000), (1, 5, 1)])
def test_no_more_places_than_files(monkeypatch: pytest.MonkeyPatch, files: int, wanted: int, places: int) -> None:
    """Where the system allows few open files there are fewer places, so that it is we who say who goes."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (files, files))
    assert places_max(wanted) == places


@pytest.mark.parametrize(("files", "wanted", "idle"), [(1000, 1024, 125), (100_000, 1024, 1024), (1, 5, 1)])
def test_no_more_idle_than_files(monkeypatch: pytest.MonkeyPatch, files: int, wanted: int, idle: int) -> None:
    """Connections that wait for nothing leave files to those that do."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (files, files))
    assert idle_max(wanted) == idle


async def test_listens() -> None:
    """The port listens when the call returns, and says where."""
    from twisted.internet import reactor

    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    port = listen(endpoint, Factory.forProtocol(Protocol), "here")
    where = host_port(port)
    assert where is not None
    assert where[0] == "127.0.0.1"
    socket.create_connection(where, timeout=5).close()
    await maybeDeferred(port.stopListening)


async def test_newcomers_take_turns_with_others() -> None:
    """However many want to come in at once, NEWCOMERS_AT_ONCE of them are taken in a turn of the reactor."""
    from twisted.internet import reactor

    made: list[Protocol] = []

    class Noted(Protocol):
        def connectionMade(self) -> None:
            made.append(self)

    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1", backlog=100)
    port: Any = listen(endpoint, Factory.forProtocol(Noted), "here")
    where = host_port(port)
    assert where is not None
    callers = [socket.create_connection(where, timeout=5) for _ in range(3 * NEWCOMERS_AT_ONCE)]
    for turn in range(1, 4):
        port.doRead()
        assert len(made) == turn * NEWCOMERS_AT_ONCE
    for caller, protocol in zip(callers, made, strict=True):
        caller.close()
        assert protocol.transport is not None
        protocol.transport.abortConnection()  # type: ignore[attr-defined]
    await maybeDeferred(port.stopListening)


def test_in_use() -> None:
    """Where somebody else listens the endpoint and the reason are told."""
    from twisted.internet import reactor

    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        endpoint = TCP4ServerEndpoint(reactor, number, interface="127.0.0.1")
        with pytest.raises(BadState, match=r"^cannot listen on tcp:taken: Address already in use$"):
            listen(endpoint, Factory.forProtocol(Protocol), "tcp:taken")


@pytest.mark.parametrize("reason", ["no such certificate", "it did not start at once"])
def test_other_reasons(reason: str) -> None:
    """Whatever keeps an endpoint from listening is told, also that it takes its time."""
    answer: Deferred[Any] = fail(ValueError(reason)) if "certificate" in reason else Deferred()
    with pytest.raises(BadState, match=f"^cannot listen on ssl:1: {reason}$"):
        listen(Endpoint(answer), Factory(), "ssl:1")  # type: ignore[arg-type]


def test_without_a_host() -> None:
    """A port that is no HOST:PORT, such as a unix socket, has none."""

    class Port:
        def getHost(self) -> object:
            return object()

    assert host_port(Port()) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("where", "dialled", "loopback"),
    [
        (("127.0.0.1", 1), "127.0.0.1:1", True),
        (("127.1.2.3", 1), "127.1.2.3:1", True),
        (("::1", 1), "[::1]:1", True),
        (("192.0.2.7", 1), "192.0.2.7:1", False),
        (("2001:db8::7", 1), "[2001:db8::7]:1", False),
        (("0.0.0.0", 1), "127.0.0.1:1", False),
        (("::", 1), "127.0.0.1:1", False),
        (("", 1), "127.0.0.1:1", False),
        (("localhost", 1), "localhost:1", False),
    ],
)
def test_addresses(where: tuple[str, int], dialled: str, loopback: bool) -> None:
    """A wildcard is dialled at loopback, an IPv6 address in brackets; only loopback addresses are out of reach of other
    machines, a name is not trusted to be one."""
    assert local_address(where) == dialled
    assert is_loopback(where[0]) == loopback


@pytest.mark.parametrize(
    "described", ["tcp:0:interface=127.0.0.1", "tcp:0", "tcp6:0", "unix:/tmp/x", "ssl:443:certKey=a"]
)
def test_backlog(described: str) -> None:
    """A burst of connections finds room, unless the operator says how much."""
    assert with_backlog(described) == f"{described}:backlog={BACKLOG}"
    assert with_backlog(f"{described}:backlog=5") == f"{described}:backlog=5"
    assert with_backlog("systemd:domain=INET:index=0") == "systemd:domain=INET:index=0"


def test_join() -> None:
    """HOST:PORT, with brackets where the host has colons itself."""
    assert (join_address("seed.example", 5001), join_address("::1", 5001)) == ("seed.example:5001", "[::1]:5001")
