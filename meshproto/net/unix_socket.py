"""Listening on a unix socket that is its owner's alone and outlives no process."""

import os
import socket
import stat
from pathlib import Path
from typing import Any, Final, cast

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IListeningPort, IProtocolFactory

from meshproto.errors import BadState

OWNERS_MODE: Final = 0o600
TWISTEDS_MODE: Final = 0o666
"""What an endpoint string means that gives no mode. Whoever may open the socket is the owner, so it is not ours."""
PROBE_S: Final = 1.0
"""How long a socket that is in the way may take to answer; one whose backlog is full is in use."""


def is_unix(described: str) -> bool:
    """Whether an endpoint string is of a unix socket."""
    return described.partition(":")[0].lower() == "unix"


def socket_path(port: IListeningPort) -> str:
    return str(Path(os.fsdecode(cast(UNIXAddress, port.getHost()).name or b"")).absolute())


class UnixSockets:
    """A reactor for endpoint strings that begin with `unix:`. Twisted changes the mode before it listens, so there is
    no moment in which others could connect."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def listenUNIX(
        self,
        address: str,
        factory: IProtocolFactory,
        backlog: int,
        mode: int,
        wantPID: bool,  # noqa: N803 -- Twisted's
    ) -> IListeningPort:
        """Without Twisted's lock file, which takes any process that has a dead one's number for it. Raises
        :class:`BadState`."""
        _make_room(Path(address))
        mode = OWNERS_MODE if mode == TWISTEDS_MODE else mode
        try:
            port: IListeningPort = self._reactor.listenUNIX(address, factory, backlog=backlog, mode=mode, wantPID=False)
        except OSError as reason:
            raise BadState(f"cannot listen on {address}: {reason.strerror or reason}") from None
        return port


def _make_room(path: Path) -> None:
    """Removes the socket that a process has left behind when it was killed. Raises :class:`BadState`."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise BadState(f"{path} is in the way of the socket and is none: give another path")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PROBE_S)
            probe.connect(str(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink()
        return
    except OSError as reason:
        raise BadState(f"the socket {path} cannot be used: {reason.strerror or reason}") from None
    raise BadState(f"another process listens on {path}: stop it, or give another path")
