"""What a supervisor is told, on real sockets, by a clock that the test moves."""

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from meshproto.net.database_file import connect
from meshproto.net.supervisor import BEATS, STATUS_S, VALUE_CHARS_MAX, Supervisor, Vigil
from meshproto.net.syncing import SyncThread
from meshproto.tap import NodeOptions, NodeService

PROCESS = 4711
WATCHDOG_S = 60.0


class Systemd:
    def __init__(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(name)
        self.socket.setblocking(False)
        self.environ = {
            "NOTIFY_SOCKET": name.replace("\0", "@"),
            "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
            "WATCHDOG_PID": str(PROCESS),
            "PATH": "/bin",
        }

    def heard(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@implementer(ILogObserver)
class Logged:
    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        self.events.append(event)


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    systemd = Systemd(str(tmp_path / "notify") if request.param == "path" else f"\0{tmp_path}/notify")
    yield systemd
    systemd.socket.close()


def test_what_is_told(systemd: Systemd) -> None:
    """Each fact a line, in one message; and a status that is the same is told once."""
    supervisor = Supervisor(systemd.environ, PROCESS)
    supervisor.tell(ready=1, status="good")
    supervisor.status("3 waiting")
    supervisor.status("3 waiting")
    supervisor.reloading()
    supervisor.close()
    supervisor.tell(stopping=1)  # nobody is there any more to be told
    first, second, third = systemd.heard()
    assert (first, second) == ("READY=1\nSTATUS=good", "STATUS=3 waiting")
    assert third.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert systemd.environ == {"PATH": "/bin"}  # what a command of the owner's gets


def test_nobody_elses_words_are_facts(systemd: Systemd) -> None:
    """A line of its own in a status would have systemd mind another process, or kill this one."""
    supervisor = Supervisor(systemd.environ, PROCESS)
    supervisor.status("the seed says: no\nMAINPID=1\rWATCHDOG=trigger")
    supervisor.status("x" * 10 * VALUE_CHARS_MAX)
    supervisor.close()
    first, second = systemd.heard()
    assert first == r"STATUS=the seed says: no\nMAINPID=1\rWATCHDOG=trigger"
    assert second == "STATUS=" + "x" * VALUE_CHARS_MAX


class _Node(NodeService):
    running = True

    def take(self, fresh: NodeOptions) -> set[str]:
        raise ZeroDivisionError


def test_the_end_of_a_reload_is_told_whatever_happens(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd waits for it, and takes the whole node for failed when it does not come."""
    monkeypatch.setattr(NodeOptions, "again", lambda _: None)
    node = _Node(NodeOptions(), Clock())
    node._supervisor = Supervisor(systemd.environ, PROCESS)
    with pytest.raises(ZeroDivisionError):
        node.reload()
    node._supervisor.close()
    reloading, ready = systemd.heard()
    assert reloading.startswith("RELOADING=1") and ready == "READY=1"


def test_as_long_as_it_lives(systemd: Systemd, tmp_path: Path) -> None:
    """Twice in the time that is waited for a sign of life, and no more once the thread that syncs is gone, which the
    log says once."""
    connection = connect(tmp_path / "a.db", "CREATE TABLE a (a)", 1)
    ended: list[object] = []
    syncing = SyncThread(connection, SimpleNamespace(callFromThread=lambda *told: ended.append(told)))  # type: ignore[arg-type]
    clock, supervisor = Clock(), Supervisor(systemd.environ, PROCESS)
    vigil = Vigil(supervisor, clock, lambda: "well", lambda: syncing.alive)
    vigil.start()
    assert systemd.heard() == ["STATUS=well", "WATCHDOG=1"]
    clock.pump([WATCHDOG_S / BEATS] * 3)
    assert systemd.heard() == ["WATCHDOG=1"] * 3
    syncing.close(lambda _: None)
    syncing._thread.join()
    logged = Logged()
    globalLogPublisher.addObserver(logged)
    clock.pump([WATCHDOG_S] * 3)
    globalLogPublisher.removeObserver(logged)
    assert systemd.heard() == []
    assert [event["log_level"].name for event in logged.events] == ["error"]
    vigil.stop()
    supervisor.close()
    assert not clock.getDelayedCalls()


def test_how_it_is(systemd: Systemd) -> None:
    """Looked at every STATUS_S, told when it is another."""
    status = ["a"]
    clock, supervisor = Clock(), Supervisor(systemd.environ | {"WATCHDOG_PID": "1"}, PROCESS)
    vigil = Vigil(supervisor, clock, lambda: status[0], lambda: True)
    vigil.start()
    clock.advance(STATUS_S)
    status[0] = "b"
    clock.advance(STATUS_S)
    vigil.stop()
    supervisor.close()
    assert systemd.heard() == ["STATUS=a", "STATUS=b"]  # the watchdog is another process's


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "1000"},
        {"WATCHDOG_USEC": "much", "NOTIFY_SOCKET": ""},
        *({"WATCHDOG_USEC": odd, "NOTIFY_SOCKET": "/nowhere"} for odd in ("much", "-1", "²", "9" * 400, "")),
    ],
)
def test_nobody_is_there(environ: dict[str, str]) -> None:
    """Without a supervisor nothing is told, and no sign of life is planned."""
    supervisor = Supervisor(environ, PROCESS)
    supervisor.tell(ready=1)
    supervisor.close()
    assert supervisor.watchdog_s == 0


def test_one_that_does_not_hear(tmp_path: Path) -> None:
    """Who is gone, or does not read, holds nobody up; the log says so once."""
    logged = Logged()
    globalLogPublisher.addObserver(logged)
    supervisor = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "nobody")}, PROCESS)
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as deaf:
        supervisor.tell(ready=1)
        supervisor.tell(ready=1)
        deaf.bind(str(tmp_path / "nobody"))
        for _ in range(10_000):
            supervisor.tell(watchdog=1)
    supervisor.close()
    globalLogPublisher.removeObserver(logged)
    assert len(logged.events) == 2
