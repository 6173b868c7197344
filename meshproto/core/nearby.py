"""Seeds on the local network, as they announce themselves there: DNS-SD (RFC 6763) over multicast DNS (RFC 6762).

Whoever is on the network can announce anything, in anybody's name, and nobody vouches for it. So an announcement is a
hint where a seed may be, and no more: what is taken of it is one address on a network that this machine is on itself,
and only where local networks have their addresses. Who answers there still has to be a seed, prove the mesh key where
there is one, and hand out records that their users have signed.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Final

from msgspec import Struct

from meshproto.core.reach import Kind, kind_of
from meshproto.wire import NAME_PATTERN, PROTOCOL_VERSION, TLS_PREFIX

SERVICE: Final = "_meshproto-seed._tcp.local."
NEARBY_MAX: Final = 32
"""Seeds that are kept: a mesh needs two or three on one network, and who invents them gets no further."""
ADDRESSES_MAX: Final = 16
"""Of one announcement that are looked at: a machine with so many networks announces the first ones."""
LABEL_CHARS_MAX: Final = 63
"""Of a label of DNS (RFC 1035, 2.3.4)."""
LAN_NETWORKS: Final = tuple(
    map(
        IPv4Network,
        (
            "10.0.0.0/8",  # RFC 1918, 3: private
            "172.16.0.0/12",
            "192.168.0.0/16",
            "169.254.0.0/16",  # RFC 3927: two machines and a cable
        ),
    )
)
_MARK = re.compile(r"[0-9a-f]{16}|")


class Announcement(Struct, frozen=True):
    """`label`: what tells it from others of the network; `text`: what a seed says of itself (:func:`told`)."""

    label: str
    hosts: tuple[str, ...]
    port: int
    text: dict[str, str]


def told(name: str, mark: str, *, tls: bool) -> dict[str, str]:
    """What a seed says of itself. `mark`: of its mesh key (:meth:`meshproto.core.meshkey.Keyring.marks`); `""`: it has
    none."""
    return {"version": str(PROTOCOL_VERSION), "name": name, "mesh": mark, "tls": "yes" if tls else "no"}


def label_of(name: str) -> str:
    """A name as one label of DNS, in which a dot would end it."""
    return name.replace(".", "-")[:LABEL_CHARS_MAX]


def is_lan(host: str) -> bool:
    """Whether an IP address is one that local networks have."""
    try:
        address = IPv4Address(host)
    except ValueError:
        return False
    return any(address in network for network in LAN_NETWORKS) and kind_of(host) is not Kind.NEVER


class _Seed(Struct, frozen=True):
    name: str
    hosts: tuple[str, ...]
    port: int
    tls: bool


class Nearby:
    """`own`: the name of this seed, whose own announcement is none; `marks`: those of its mesh keys, `("",)` without
    one. A user's node has neither: it takes the seeds of any mesh."""

    def __init__(self, own: str = "", marks: Iterable[str] | None = None) -> None:
        self._own = own
        self._marks = None if marks is None else frozenset(marks)
        self._here: tuple[IPv4Interface, ...] = ()
        self._seeds: dict[str, _Seed] = {}  # label -> what was announced

    def move(self, here: Iterable[IPv4Interface]) -> None:
        """This machine's addresses on local networks, and so what counts as near. What was heard elsewhere is over."""
        self._here = tuple(here)
        self._seeds.clear()

    def heard(self, said: Announcement) -> None:
        """The first that came stay: nobody drives them out by announcing more."""
        seed = self._read(said)
        if seed is None:
            self._seeds.pop(said.label, None)
        elif said.label in self._seeds or len(self._seeds) < NEARBY_MAX:
            self._seeds[said.label] = seed

    def withdrawn(self, label: str) -> None:
        """A seed takes its leave, or was not heard for so long as it said it would be there."""
        self._seeds.pop(label, None)

    def addresses(self) -> list[str]:
        """Where the seeds are: an address each."""
        near = ((seed, self._near(seed.hosts)) for seed in self._seeds.values())
        return list(dict.fromkeys(f"{TLS_PREFIX if seed.tls else ''}{host}:{seed.port}" for seed, host in near if host))

    def _read(self, said: Announcement) -> _Seed | None:
        text = said.text
        name, mark, tls = text.get("name", ""), text.get("mesh", ""), text.get("tls", "no")
        if text.get("version") != str(PROTOCOL_VERSION) or not 0 < said.port < 65536 or tls not in ("yes", "no"):
            return None
        if not re.match(NAME_PATTERN, name) or not _MARK.fullmatch(mark) or name == self._own:
            return None
        if self._marks is not None and mark not in self._marks:
            return None  # another mesh
        hosts = tuple(host for host in said.hosts[:ADDRESSES_MAX] if is_lan(host))
        return _Seed(name, hosts, said.port, tls == "yes")

    def _near(self, hosts: Iterable[str]) -> str | None:
        """Of a machine's addresses one on a network that this one is on, too. One that this machine has itself (as of
        a bridge for containers, which many have) is the last choice: it leads to another only on another."""
        near = [host for host in hosts if any(IPv4Address(host) in here.network for here in self._here)]
        own = {str(here.ip) for here in self._here}
        return next((host for host in (*(host for host in near if host not in own), *near)), None)
