"""Listening on a unix socket that is its owner's alone and outlives no process."""

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any, Final, cast

from twisted.internet.address import UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory

OWNERS_MODE: Final = 0o600
TWISTEDS_MODE: Final = 0o666
"""What an endpoint string means that gives no mode. Whoever may open the socket is the owner, so it is not ours."""
PROBE_S: Final = 1.0
"""How long a socket that is in the way may take to answer; one whose backlog is full is in use."""

PATH_BYTES_MAX: Final = 107
"""What Linux has room for (`sun_path`, unix(7)), with the NUL at the end."""


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
        :class:`CannotListenError`."""
        try:
            _make_room(Path(address))
        except OSError as reason:
            raise CannotListenError(None, address, reason) from None
        mode = OWNERS_MODE if mode == TWISTEDS_MODE else mode
        port: IListeningPort = self._reactor.listenUNIX(address, factory, backlog=backlog, mode=mode, wantPID=False)
        return port


def _make_room(path: Path) -> None:
    """Removes the socket that a process has left behind when it was killed. Raises :class:`OSError`."""
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, f"the path of a socket has at most {PATH_BYTES_MAX} bytes")
    path.parent.stat()
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "what is there is no socket: give another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "another process listens there: stop it, or give another path")
