"""Unix sockets: whose they are, and what becomes of one that is there already."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol

from meshproto.errors import BadState
from meshproto.net.listening import host_port, listen
from meshproto.net.unix_socket import PATH_BYTES_MAX, UnixSockets, is_unix, socket_path


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def opened(described: str) -> IListeningPort:
    from twisted.internet import reactor

    return listen(serverFromString(UnixSockets(reactor), described), Factory.forProtocol(Protocol), described)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize(("more", "expected"), [("", 0o600), (":mode=660", 0o660), (":640", 0o640), (":666", 0o600)])
async def test_its_owners_alone(tmp_path: Path, more: str, expected: int) -> None:
    """Whatever the umask, a socket has mode 0600 unless the endpoint says another; Twisted's own default does not
    count. It is gone when listening ends."""
    path = tmp_path / "s"
    port = opened(f"unix:{path}{more}")
    assert mode(path) == expected
    assert socket_path(port) == str(path)
    assert host_port(port) is None
    await maybeDeferred(port.stopListening)
    assert list(tmp_path.iterdir()) == []


async def test_what_a_dead_process_left_is_replaced(tmp_path: Path) -> None:
    """A socket that nobody listens on any more is no reason not to start."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    port = opened(f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    await maybeDeferred(port.stopListening)


def test_one_in_use_is_left_alone(tmp_path: Path) -> None:
    """Where another process listens the path is told, and that process goes on."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(BadState, match=rf"^cannot listen on unix:{path}: another process listens there: stop it"):
            opened(f"unix:{path}")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """A file in the way is not removed."""
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(BadState, match=r"what is there is no socket: give another path$"):
        opened(f"unix:{path}")
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("path", "reason"),
    [("no/such/directory/s", "No such file or directory"), ("x" * PATH_BYTES_MAX, f"at most {PATH_BYTES_MAX} bytes")],
)
def test_a_path_that_cannot_be(tmp_path: Path, path: str, reason: str) -> None:
    """A path without a directory, or longer than the system takes, is told with the reason."""
    with pytest.raises(BadState, match=rf"^cannot listen on .*: .*{reason}$"):
        opened(f"unix:{tmp_path / path}")


def test_which_endpoints_are_meant() -> None:
    """Only an endpoint whose file we make ourselves is as good as loopback."""
    assert is_unix("unix:/run/s")
    assert is_unix("UNIX:/run/s")
    assert not is_unix("tcp:80")
    assert not is_unix("systemd:domain=UNIX:index=0")
    assert not is_unix("haproxy:unix:/run/s")
