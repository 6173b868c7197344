"""Multicast DNS, as the library zeroconf speaks it: what a seed announces, and what others do.

The library has a thread of its own, and its calls wait: all of this is called in threads, and calls back in them.
"""

import socket
from collections.abc import Callable
from typing import Final

from zeroconf import Error, IPVersion, NonUniqueNameException, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from meshproto.core.nearby import SERVICE, Announcement
from meshproto.errors import BadState

ASK_MS: Final = 1500
"""For what an announcement does not say at once: whoever has made it is on the same network."""
MUTE_MAX: Final = 32
"""Names that tell nothing when they are asked, and hold up those behind them. After so many nobody is asked any more,
until the machine's addresses change: seeds tell everything when they announce themselves."""


class Multicast:
    """Listens at this machine's addresses `hosts`, until :meth:`close`. `heard` and `withdrawn` get what others
    announce. Raises :class:`BadState` when the system does not let it."""

    def __init__(
        self, hosts: list[str], heard: Callable[[Announcement], None], withdrawn: Callable[[str], None]
    ) -> None:
        self._heard = heard
        self._withdrawn = withdrawn
        self._mute = 0
        try:
            self._zeroconf = Zeroconf(interfaces=hosts, ip_version=IPVersion.V4Only)
        except OSError as reason:
            raise BadState(f"multicast DNS does not work on {', '.join(hosts)}: {reason.strerror}") from None
        self._browser = ServiceBrowser(self._zeroconf, SERVICE, handlers=[self._changed])

    def announce(self, said: Announcement) -> None:
        """Until :meth:`close`. Raises :class:`BadState` when another machine announces the same label."""
        info = ServiceInfo(
            SERVICE,
            f"{said.label}.{SERVICE}",
            port=said.port,
            properties=dict(said.text),
            server=f"{said.label}.local.",
            addresses=[socket.inet_aton(host) for host in said.hosts],
        )
        try:
            self._zeroconf.register_service(info)
        except NonUniqueNameException:
            other = f"another seed on this network is called {said.text['name']} too"
            raise BadState(f"{other}: give each a name of its own with --name") from None
        except Error as reason:
            raise BadState(f"the seed could not be announced: {reason or type(reason).__name__}") from None

    def close(self) -> None:
        """What was announced is withdrawn."""
        self._zeroconf.close()

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        label = name.removesuffix(f".{SERVICE}")
        if state_change is ServiceStateChange.Removed:
            self._withdrawn(label)
            return
        try:
            info = ServiceInfo(service_type, name)
            known = info.load_from_cache(zeroconf) or self._ask(zeroconf, info)
        except Error:
            return  # a name that is none of ours, or this is closing; what is raised here ends the library's thread
        if known:
            hosts = tuple(info.parsed_addresses(IPVersion.V4Only))
            self._heard(Announcement(label, hosts, info.port or 0, _text(info.properties)))

    def _ask(self, zeroconf: Zeroconf, info: ServiceInfo) -> bool:
        if self._mute >= MUTE_MAX:
            return False
        answered = info.request(zeroconf, ASK_MS)
        self._mute += not answered
        return answered


def _text(properties: dict[bytes, bytes | None]) -> dict[str, str]:
    return {
        key.decode("utf-8", "replace"): (value or b"").decode("utf-8", "replace") for key, value in properties.items()
    }
