"""What others put on the network, as the library hands it over: it must not end the thread that it comes in."""

from collections.abc import Iterator
from typing import Any

import pytest
from zeroconf import BadTypeInNameException, ServiceInfo, ServiceStateChange

from meshproto.core.nearby import SERVICE, Announcement
from meshproto.net import multicast
from meshproto.net.multicast import MUTE_MAX, Multicast

ADDED = ServiceStateChange.Added
REMOVED = ServiceStateChange.Removed


class Library:
    """In place of its sockets and its thread: calls back when it is told to."""

    changed: Any

    def __init__(self, *_: object, handlers: Any = (), **__: object) -> None:
        if handlers:
            Library.changed = handlers[0]


class Told(ServiceInfo):
    """What the network says of a name: everything at once, only when it is asked, or nothing."""

    asked = 0

    def load_from_cache(self, zeroconf: Any, now: float | None = None) -> bool:
        return "whole" in self.name

    def request(self, zc: Any, timeout: float, *_: Any, **__: Any) -> bool:
        Told.asked += 1
        return "asked" in self.name


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    for name, stand_in in (("Zeroconf", Library), ("ServiceBrowser", Library), ("ServiceInfo", Told)):
        monkeypatch.setattr(multicast, name, stand_in)
    Told.asked = 0
    labels: list[str] = []

    def take(said: Announcement) -> None:
        labels.append(said.label)

    Multicast(["192.0.2.1"], take, lambda label: labels.append(f"-{label}"))
    yield labels


def change(name: str, state: ServiceStateChange = ADDED) -> None:
    Library.changed(Library(), SERVICE, name, state)


def test_what_is_said_at_once_and_what_has_to_be_asked(heard: list[str]) -> None:
    change(f"whole.{SERVICE}")
    change(f"asked.{SERVICE}")
    change(f"whole.{SERVICE}", REMOVED)
    assert heard == ["whole", "asked", "-whole"]
    assert Told.asked == 1


@pytest.mark.parametrize("name", ["evil._http._tcp.local.", "x", ""])
def test_a_name_that_is_no_seeds(heard: list[str], name: str) -> None:
    """The library hands over whatever a pointer to a seed points to, and refuses to look at it afterwards."""
    with pytest.raises(BadTypeInNameException):
        ServiceInfo(SERVICE, name)
    change(name)
    change(f"whole.{SERVICE}")
    assert heard == ["whole"]


def test_mute_max(heard: list[str]) -> None:
    """Each name without anything behind it is waited for: whoever invents them holds up the others for so long only."""
    for number in range(MUTE_MAX + 5):
        change(f"mute{number}.{SERVICE}")
    assert Told.asked == MUTE_MAX
    change(f"whole.{SERVICE}")
    assert heard == ["whole"]
