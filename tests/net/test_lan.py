"""The shell around multicast DNS, with one that is none: what is asked of it, and when."""

import errno
import socket
from collections.abc import Callable
from ipaddress import IPv4Interface
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from meshproto.core.nearby import Announcement, Nearby, told
from meshproto.errors import BadState
from meshproto.net.interfaces import lan_interfaces
from meshproto.net.lan import ANNOUNCE_AGAIN_S, LOOK_S, TELL_S, Lan
from tests.net.far import result_of

HOME = [IPv4Interface("192.168.7.9/24")]
AWAY = [IPv4Interface("10.1.2.3/8")]


class Reactor(Clock):
    """Calls from threads come at once: there is no other thread."""

    def callFromThread(self, what: Callable[[], None]) -> None:
        what()


class Speaker:
    """A :class:`meshproto.net.lan.Speaker`, and what was asked of it."""

    def __init__(self, rig: "Rig", hosts: list[str], heard: Any, withdrawn: Any) -> None:
        self.rig = rig
        self.hosts = hosts
        self.heard = heard
        self.withdrawn = withdrawn
        self.said: list[Announcement] = []
        self.closed = False

    def announce(self, said: Announcement) -> None:
        if self.rig.taken:
            raise BadState("another seed is called so")
        self.said.append(said)

    def close(self) -> None:
        self.closed = True


class Rig:
    def __init__(self, *, announces: bool = True) -> None:
        self.clock = Reactor()
        self.here = HOME
        self.taken = False
        self.broken = False
        self.speakers: list[Speaker] = []
        self.moves: list[list[str]] = []
        self.found: list[list[str]] = []
        self.lan = Lan(
            self.clock,
            Nearby(),
            moved=self.moved,
            announce=self.announcement if announces else None,
            found=self.found.append,
            interfaces=lambda: self.here,
            open_=self.open,
            in_thread=maybeDeferred,
        )
        self.lan.startService()

    def moved(self, here: list[IPv4Interface]) -> list[str]:
        self.moves.append([str(interface.ip) for interface in here])
        return self.moves[-1]

    def announcement(self, hosts: list[str]) -> Announcement:
        return Announcement("seedX", tuple(hosts), 5001, told("seedX", "", tls=False))

    def open(self, hosts: list[str], heard: Any, withdrawn: Any) -> Speaker:
        if self.broken:
            raise BadState("multicast DNS does not work")
        self.speakers.append(Speaker(self, hosts, heard, withdrawn))
        return self.speakers[-1]

    @property
    def speaker(self) -> Speaker:
        return self.speakers[-1]

    def hears(self, label: str, host: str) -> None:
        self.speaker.heard(Announcement(label, (host,), 5001, told("seedY", "", tls=False)))

    def tell(self) -> list[str]:
        self.clock.advance(TELL_S)
        return self.found[-1]


class TestAnnouncing:
    def test_where_the_node_listens(self) -> None:
        rig = Rig()
        assert (rig.speaker.hosts, rig.moves) == (["192.168.7.9"], [["192.168.7.9"]])
        assert [said.hosts for said in rig.speaker.said] == [("192.168.7.9",)]
        result_of(rig.lan.stopService())

    def test_a_user_announces_nothing(self) -> None:
        rig = Rig(announces=False)
        assert not rig.speaker.said
        result_of(rig.lan.stopService())

    def test_stopped(self) -> None:
        """What was announced is withdrawn, and no timer is left."""
        rig = Rig()
        rig.hears("seedY", "192.168.7.1")
        result_of(rig.lan.stopService())
        assert rig.speaker.closed
        assert not rig.clock.getDelayedCalls()

    def test_stopped_while_it_begins(self) -> None:
        """What a thread still works on is closed when it is done."""
        rig = Rig()
        waiting: Deferred[Any] = Deferred()
        rig.lan._in_thread = lambda *_: waiting
        rig.here = AWAY
        rig.clock.advance(LOOK_S)
        stopping = rig.lan.stopService()
        assert not stopping.called
        rig.lan._in_thread = maybeDeferred
        waiting.callback(None)
        result_of(stopping)
        assert rig.speakers[-1].hosts == ["10.1.2.3"]
        assert rig.speakers[-1].closed

    def test_a_name_that_another_has(self) -> None:
        """It is tried again, in case that one has gone; meanwhile others are found all the same."""
        rig = Rig()
        rig.taken = True
        rig.here = AWAY
        rig.clock.advance(LOOK_S)
        rig.hears("seedY", "10.0.0.1")
        assert rig.tell() == ["10.0.0.1:5001"]
        rig.taken = False
        rig.clock.pump([LOOK_S] * int(ANNOUNCE_AGAIN_S / LOOK_S - 1))
        assert not rig.speaker.said
        rig.clock.pump([LOOK_S] * 2)
        assert len(rig.speaker.said) == 1
        result_of(rig.lan.stopService())


class TestFinding:
    def test_what_comes_together_is_told_together(self) -> None:
        """A flood of announcements is one change in TELL_S; what changes nothing is none."""
        rig = Rig()
        for number in range(1, 4):
            rig.hears(f"seed{number}", f"192.168.7.{number}")
        assert rig.tell() == [f"192.168.7.{number}:5001" for number in range(1, 4)]
        for _ in range(1000):
            rig.speaker.withdrawn("seed1")
            rig.hears("seed1", "192.168.7.99")
        assert not rig.found[1:]
        assert rig.tell()[-1] == "192.168.7.99:5001"
        rig.hears("seed1", "192.168.7.99")
        rig.tell()
        assert len(rig.found) == 2
        result_of(rig.lan.stopService())

    def test_who_takes_leave(self) -> None:
        rig = Rig()
        rig.hears("seedY", "192.168.7.1")
        rig.tell()
        rig.speaker.withdrawn("seedY")
        assert rig.tell() == []
        result_of(rig.lan.stopService())


class TestMoving:
    def test_to_another_network(self) -> None:
        """All begins anew there; what the former network still says is not heard."""
        rig = Rig()
        rig.hears("seedY", "192.168.7.1")
        rig.tell()
        rig.here = AWAY
        rig.clock.advance(LOOK_S)
        first, second = rig.speakers
        assert first.closed
        assert (second.hosts, rig.moves[-1]) == (["10.1.2.3"], ["10.1.2.3"])
        assert rig.tell() == []
        first.heard(Announcement("late", ("10.0.0.9",), 5001, told("late", "", tls=False)))
        rig.clock.advance(TELL_S)
        assert rig.found[-1] == []
        result_of(rig.lan.stopService())

    def test_to_none_and_back(self) -> None:
        """Without a local network nothing is spoken; when there is one it begins."""
        rig = Rig()
        rig.here = []
        rig.clock.advance(LOOK_S)
        assert rig.speaker.closed
        assert len(rig.speakers) == 1
        rig.here = HOME
        rig.clock.advance(LOOK_S)
        assert [said.hosts for said in rig.speaker.said] == [("192.168.7.9",)]
        result_of(rig.lan.stopService())

    def test_a_system_that_does_not_let_it(self) -> None:
        """It is said, once, and tried again."""
        rig = Rig()
        rig.broken = True
        rig.here = AWAY
        rig.clock.pump([LOOK_S] * 3)
        assert len(rig.speakers) == 1
        rig.broken = False
        rig.clock.advance(LOOK_S)
        assert rig.speaker.hosts == ["10.1.2.3"]
        result_of(rig.lan.stopService())


def test_addresses_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while strangers hold all file descriptors: it is looked again."""

    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    rig = Rig()
    rig.lan._interfaces = lan_interfaces
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", none_left)
        with pytest.raises(BadState, match="cannot be read: Too many open files"):
            lan_interfaces()
        rig.clock.advance(LOOK_S)
    rig.lan._interfaces = lambda: AWAY
    rig.clock.advance(LOOK_S)
    assert rig.moves[-1] == ["10.1.2.3"]
    result_of(rig.lan.stopService())
