"""What `--lan` makes of the other options, and where a node listens with it."""

import re
from ipaddress import IPv4Interface
from typing import Any

import pytest
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.python.usage import UsageError

from meshproto import seed_tap, tap, user_tap
from meshproto.core.nearby import is_lan
from meshproto.errors import BadState
from meshproto.net.interfaces import lan_interfaces
from meshproto.tap import NodeOptions
from meshproto.wire import NAME_PATTERN

HOME = [IPv4Interface("192.168.7.9/24")]
BOTH = [*HOME, IPv4Interface("10.1.2.3/8")]


class Port:
    """A listening port, until it is closed."""

    def __init__(self, host: str, number: int) -> None:
        self.host = host
        self.number = number
        self.closed = False

    def getHost(self) -> Any:
        return self

    @property
    def port(self) -> int:
        return self.number

    def stopListening(self) -> None:
        self.closed = True


class Reactor(MemoryReactorClock):
    """One of its addresses may be another program's."""

    taken = ""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[Port] = []

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        if interface == self.taken:
            raise OSError(98, "Address already in use")
        self.opened.append(Port(interface, port))
        return self.opened[-1]


def parsed(options: NodeOptions, *given: str, **environ: str) -> NodeOptions:
    options.environ = environ  # type: ignore[misc]
    options.parse(["--name", "UserX", *given])
    return options


def node(*given: str) -> tap.NodeService:
    return tap.NodeService(parsed(user_tap.Options(), "--lan", *given), Reactor())


class TestOptions:
    @pytest.mark.parametrize("kind", [seed_tap.Options, user_tap.Options])
    def test_by_option_or_environment(self, kind: Any) -> None:
        assert parsed(kind(), "--lan")["lan"] is True
        assert parsed(kind(), MESH_LAN="yes")["lan"] is True
        assert parsed(kind(), MESH_LAN="no")["lan"] is False
        assert parsed(kind())["lan"] is False
        with pytest.raises(UsageError, match=r"--lan \(or MESH_LAN\): 'perhaps' is neither yes nor no"):
            parsed(kind(), MESH_LAN="perhaps")

    def test_a_user_needs_no_seed(self) -> None:
        """None is given where they are looked for, unless somebody gives one."""
        assert parsed(user_tap.Options(), "--lan")["seed"] == []
        assert parsed(user_tap.Options(), MESH_LAN="yes")["seed"] == []
        assert parsed(user_tap.Options(), "--lan", "--seed", "a:1")["seed"] == ["a:1"]
        assert parsed(user_tap.Options(), "--lan", MESH_SEEDS="a:1")["seed"] == ["a:1"]
        assert parsed(user_tap.Options())["seed"] == ["localhost:5001"]

    @pytest.mark.parametrize("host", ["machine", "UPPER_and.domain", "ä" * 100, ""])
    def test_seeds_of_two_machines_have_two_names(self, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Unless one is given, the machine's is in it."""
        monkeypatch.setattr("socket.gethostname", lambda: host)
        for given, environ in ((["--lan"], {}), ([], {"MESH_LAN": "yes"})):
            options = seed_tap.Options()
            options.environ = environ  # type: ignore[misc]
            options.parseOptions(given)
            assert options["name"].startswith("seed-")
            assert options["name"].endswith("-5001")
            assert len(options["name"]) > len("seed--5001")
            assert re.match(NAME_PATTERN, options["name"])


class TestListening:
    def test_at_the_addresses_that_there_are(self) -> None:
        """On each local network, and on those alone; what is gone is closed, what is new is opened."""
        service = node()
        assert service.follow(("127.0.0.1", 3000), BOTH, Factory()) == ["192.168.7.9", "10.1.2.3"]
        assert service.follow(("127.0.0.1", 3000), HOME, Factory()) == ["192.168.7.9"]
        opened = [(port.host, port.number, port.closed) for port in service.reactor.opened]
        assert opened == [("192.168.7.9", 3000, False), ("10.1.2.3", 3000, True)]
        assert service.ports == service.reactor.opened[:1]

    def test_an_address_where_another_program_listens(self) -> None:
        """It is said, and not advertised."""
        service = node()
        service.reactor.taken = "192.168.7.9"
        assert service.follow(("127.0.0.1", 3000), BOTH, Factory()) == ["10.1.2.3"]

    def test_where_the_operator_said(self) -> None:
        """At one address, or at all: then nothing else is opened."""
        service = node("--listen", "tcp:3000")
        assert service.follow(("0.0.0.0", 3000), BOTH, Factory()) == ["192.168.7.9", "10.1.2.3"]
        assert service.follow(("10.1.2.3", 3000), BOTH, Factory()) == ["10.1.2.3"]
        assert service.follow(("10.1.2.4", 3000), BOTH, Factory()) == []
        assert service.reactor.opened == []

    @pytest.mark.parametrize("host", ["127.0.0.1", "8.8.8.8", "::1"])
    def test_an_endpoint_that_no_neighbour_reaches(self, host: str) -> None:
        """It is refused: what is announced would lead nowhere."""
        with pytest.raises(BadState, match="--lan: tcp:3000 is not of a local network"):
            node("--listen", "tcp:3000").lan_port((host, 3000))
        with pytest.raises(BadState, match="--lan: unix:x is not of a network"):
            node("--listen", "unix:x").lan_port(None)


def test_this_machine() -> None:
    """Whatever networks it is on, only local ones count."""
    assert all(is_lan(str(interface.ip)) for interface in lan_interfaces())
