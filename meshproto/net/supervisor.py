"""What systemd is told, and whoever else listens on `NOTIFY_SOCKET` (sd_notify(3)): that the node serves, how it is,
that it lives, and that it stops.

**What a hung node is.** One that can no longer do what it is there for, and would not by waiting: its reactor does not
turn, so nobody is answered; or the thread that syncs is gone, so nothing is acknowledged ever again. Either ends the
messages that say that it lives, and the supervisor starts it anew. A disk that is slow, full or refuses is none:
the node says so (`disk` in its status), goes on reading, and recovers by itself; to be killed would not make the disk
answer sooner. Nor is a node without a seed: it tries.
"""

import re
import socket
from collections.abc import Callable, MutableMapping
from time import monotonic_ns
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from meshproto.errors import quoted

STATUS_S: Final = 5.0
"""How often it is looked whether there is something else to say of the node."""
VALUE_CHARS_MAX: Final = 1000
"""Of what a status says. It has words of seeds in it, which may be anybody's: of a line of its own the supervisor would
make a fact, such as which process it is to mind."""
BEATS: Final = 2
"""Signs of life in the time that the supervisor waits for one, as sd_watchdog_enabled(3) asks for."""


class Supervisor:
    """`environ` loses what was in it for this process alone: the commands that it starts are not supervised."""

    log = Logger()

    def __init__(self, environ: MutableMapping[str, str], process: int) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        watchdog_us = environ.pop("WATCHDOG_USEC", "0")
        mine = environ.pop("WATCHDOG_PID", str(process)) == str(process)
        told = mine and re.fullmatch(r"[0-9]{1,18}", watchdog_us) and self._address
        self.watchdog_s = int(watchdog_us) / 1e6 if told else 0.0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._address else None
        self._deaf = False
        self._status = ""

    def tell(self, **facts: object) -> None:
        """`ready=1` is told as `READY=1`. Does not wait: who does not read loses what is told."""
        if self._socket is None:
            return
        text = "\n".join(f"{fact.upper()}={quoted(str(value), VALUE_CHARS_MAX)}" for fact, value in facts.items())
        try:
            self._socket.sendto(text.encode("utf-8", "replace"), socket.MSG_DONTWAIT, self._address)
        except OSError as reason:
            if not self._deaf:
                self.log.warn("the supervisor does not hear: {reason}", reason=reason.strerror or str(reason))
            self._deaf = True
        else:
            self._deaf = False

    def status(self, line: str) -> None:
        """In one line how the node is; told when it is another than before."""
        if line != self._status:
            self._status = line
            self.tell(status=line)

    def reloading(self) -> None:
        """Until `ready=1` is told again."""
        self.tell(reloading=1, monotonic_usec=monotonic_ns() // 1000)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Vigil:
    """Tells the supervisor how the node is, and as long as it is `alive` that it lives."""

    log = Logger()

    def __init__(
        self, supervisor: Supervisor, clock: Any, status: Callable[[], str], alive: Callable[[], bool]
    ) -> None:
        self._supervisor = supervisor
        self._status = status
        self._alive = alive
        self._hung = False
        self._calls = [(LoopingCall(self._look), STATUS_S)]
        if supervisor.watchdog_s:
            self._calls.append((LoopingCall(self._beat), supervisor.watchdog_s / BEATS))
        for call, _ in self._calls:
            call.clock = clock

    def start(self) -> None:
        for call, interval_s in self._calls:
            beating: Deferred[LoopingCall] = call.start(interval_s)
            beating.addErrback(lambda failure: self.log.failure("a bug", failure=failure))

    def stop(self) -> None:
        for call, _ in self._calls:
            if call.running:
                call.stop()

    def _look(self) -> None:
        self._supervisor.status(self._status())

    def _beat(self) -> None:
        if self._alive():
            self._supervisor.tell(watchdog=1)
        elif not self._hung:
            self._hung = True
            self.log.error("the thread that writes to the disk is gone: the supervisor is told no more that this lives")
