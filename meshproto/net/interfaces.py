"""Which addresses this machine has on local networks."""

import socket
from contextlib import closing
from ipaddress import IPv4Interface
from typing import Final

import ifaddr

from meshproto.core.nearby import ADDRESSES_MAX, is_lan
from meshproto.errors import BadState

MDNS: Final = ("224.0.0.251", 5353)
"""The group of multicast DNS (RFC 6762, 3). The system says from where it would be spoken to; nothing is sent."""


def lan_interfaces() -> list[IPv4Interface]:
    """The one that leads to the rest of the world first, where there is one; then in the system's order. Raises
    :class:`BadState` when the system does not say, as where all file descriptors are in use."""
    try:
        found = [
            IPv4Interface((str(address.ip), address.network_prefix))
            for adapter in ifaddr.get_adapters()
            for address in adapter.ips
            if address.is_IPv4 and is_lan(str(address.ip))
        ]
        first = _first_choice()
    except OSError as reason:
        raise BadState(f"this machine's addresses cannot be read: {reason.strerror}") from None
    return sorted(found, key=lambda interface: str(interface.ip) != first)[:ADDRESSES_MAX]


def _first_choice() -> str | None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as asked:
        try:
            asked.connect(MDNS)
        except OSError:  # no route
            return None
        return str(asked.getsockname()[0])
