"""How far a message may be sent: the kinds of IP addresses, and which of them a user's record may lead to.

A record's URIs are what its user wants them to be. Who sends to that user makes a request of them, from a machine that
can reach more than the user could: programs on it that ask nobody for a password, and on a rented one the service that
gives the machine's credentials away (server-side request forgery, CWE-918). So a seed takes such addresses only from
where they lead, and a user's node asks of every address it is about to connect to whether this record may lead there.

A host may be spelled in many ways. Here it is read as resolvers read it; what is a name for them is None, and its
addresses are asked about when it is dialled.
"""

import ipaddress
import re
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from meshproto.errors import Forbidden

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Kind(Enum):
    """`value`: what is said of such an address."""

    NEVER = "an address to which messages are never sent"
    LOOPBACK = "a loopback address: every machine's own"
    LINK_LOCAL = "a link-local address: it means something else in every network"
    OTHER = "an address"


Reach = frozenset[Kind]
"""The kinds of addresses to which something may be sent."""

FAR: Final[Reach] = frozenset({Kind.OTHER})
LOCAL: Final = frozenset({Kind.LOOPBACK, Kind.LINK_LOCAL})
"""What only means something on a machine or a link."""

METADATA: Final = frozenset(
    map(
        ipaddress.ip_address,
        (
            "169.254.169.254",  # AWS, Google Cloud, Azure, OpenStack and most others
            "fd00:ec2::254",  # AWS, over IPv6
            "fd20:ce::254",  # Google Cloud, over IPv6
            "fe80::a9fe:a9fe",  # OpenStack, over IPv6
            "169.254.170.2",  # AWS: the credentials of a container (ECS)
            "169.254.170.23",  # AWS: those of a pod (EKS)
            "fd00:ec2::23",  # the same over IPv6
            "100.100.100.200",  # Alibaba Cloud
            "168.63.129.16",  # Azure: the agent's own channel to its host
            "192.0.0.192",  # Oracle Cloud, its first generation
        ),
    )
)
"""Where clouds tell a machine its credentials, as their manuals say. Whatever else answers there, no user does."""

_NEVER: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",  # RFC 1122, 3.2.1.3: "this host"; Linux takes 0.0.0.0 for itself
            "224.0.0.0/4",  # RFC 5771: multicast
            "240.0.0.0/4",  # RFC 1112, 4, and RFC 919: reserved, and the broadcast address
            "::/128",  # RFC 4291, 2.5.2: unspecified
            "ff00::/8",  # RFC 4291, 2.7: multicast
        ),
    )
)
_EMBEDDING: Final = tuple(
    (ipaddress.IPv6Network(network), right_bits)
    for network, right_bits in (
        ("::ffff:0:0/96", 0),  # RFC 4291, 2.5.5.2: mapped
        ("::/96", 0),  # RFC 4291, 2.5.5.1: compatible
        ("::ffff:0:0:0/96", 0),  # RFC 7915: translated
        ("64:ff9b::/96", 0),  # RFC 6052: NAT64
        ("64:ff9b:1::/48", 0),  # RFC 8215: NAT64 of one's own
        ("2002::/16", 80),  # RFC 3056: 6to4
    )
)
"""IPv6 networks whose addresses stand for an IPv4 address, and how many bits are to the right of that."""
HOSTS_REMEMBERED_MAX: Final = 2048
"""Hosts, and URIs, whose kind is remembered, at a few hundred bytes: each delivery asks for two, and to read an address
takes as long as to seal a message."""
_TEREDO: Final = ipaddress.IPv6Network("2001::/32")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*")


@lru_cache(HOSTS_REMEMBERED_MAX)
def kind_of(host: str) -> Kind | None:
    """The kind of a URI's host, or of an IP address; None: a name."""
    host = host.removeprefix("[").removesuffix("]").partition("%")[0].removesuffix(".").lower()
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, 6.3
        return Kind.LOOPBACK
    address = _address(host)
    return None if address is None else _kind(address)


@lru_cache(HOSTS_REMEMBERED_MAX)
def _kind_at(uri: str) -> Kind | None:
    return kind_of(urlsplit(uri).hostname or "")


def check_origin(uris: Iterable[str], host: str) -> None:
    """Raises :class:`Forbidden` unless somebody at `host` may register the URIs: an address that only means something
    on a machine or a link is taken from there. `host`: an IP address; `""`: this machine, as through a unix socket."""
    origin = kind_of(host) if host else Kind.LOOPBACK
    for uri in uris:
        kind = _kind_at(uri)
        if kind is Kind.NEVER:
            raise Forbidden(f"{uri[:100]} is {kind.value}: advertise one at which others reach this node")
        if kind in LOCAL and kind is not origin:
            raise Forbidden(
                f"{uri[:100]} is {kind.value}, and this does not come from there: advertise one that others reach"
            )


def reach_of(uri: str, own_uris: Iterable[str], *, neighbour: bool) -> Reach:
    """How far a message to a record's URI may be sent: to a loopback or link-local address only if the URI itself says
    so, since what a name leads to may have changed after a seed has seen it (DNS rebinding). `own_uris`: where this
    node says it can be reached, which is where those who are to reach it are too. `neighbour`: the recipient is
    registered at a seed on this machine, which has made sure of where the registration came from."""
    kind = _kind_at(uri)
    if kind not in LOCAL:
        return FAR
    own = {_kind_at(own_uri) for own_uri in own_uris}
    return FAR | {kind} if neighbour or kind in own else FAR


def _kind(address: _Address) -> Kind:
    if address in METADATA or any(address in network for network in _NEVER):
        return Kind.NEVER
    if address.is_loopback:
        return Kind.LOOPBACK
    if isinstance(address, ipaddress.IPv6Address):
        embedded = _embedded(address)
        if embedded is not None:
            return _kind(embedded)
    return Kind.LINK_LOCAL if address.is_link_local else Kind.OTHER


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _TEREDO:  # RFC 4380, 4: the client's address, each bit turned
        return ipaddress.IPv4Address(~int(address) & 0xFFFFFFFF)
    for network, right_bits in _EMBEDDING:
        if address in network:
            return ipaddress.IPv4Address(int(address) >> right_bits & 0xFFFFFFFF)
    return None


def _address(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return _by_parts(host)


def _by_parts(host: str) -> ipaddress.IPv4Address | None:
    """What inet_aton makes of it (POSIX, inet_addr): one to four numbers, also octal or hexadecimal, of which the last
    one fills what is left: `127.1`, `0x7f.1`, `2130706433`."""
    parts = host.split(".")
    if len(parts) > 4 or not all(map(_NUMBER.fullmatch, parts)):
        return None
    *first, last = [_number(part) for part in parts]
    last_bits = 8 * (4 - len(first))
    if any(number > 255 for number in first) or last >> last_bits:
        return None
    left = sum(number << 24 - 8 * place for place, number in enumerate(first))
    return ipaddress.IPv4Address(left + last)


def _number(text: str) -> int:
    return int(text, 16 if text[:2] in ("0x", "0X") else 8 if text.startswith("0") else 10)
