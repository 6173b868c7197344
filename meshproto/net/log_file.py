"""The log file of `twistd --logfile`, for a tool that moves it away.

Twisted's own is renamed each time it has a megabyte, keeps all there ever were, and on SIGUSR1 is renamed once more:
none of which goes together with logrotate. This one is opened anew where it was. It still bounds itself, far above what
a tool leaves it, so that a node without one does not fill the disk.
"""

import os
from pathlib import Path
from typing import Any, Final

from twisted.logger import Logger
from twisted.python.logfile import LogFile

ROTATE_BYTES: Final = 64 * 1024 * 1024
"""Months of a node's log, a day of a seed's whose strangers misbehave."""
ROTATED_FILES_MAX: Final = 4
MODE: Final = 0o600
"""Names and addresses of those who write to this node are nobody else's."""


def log_path(twistd: Any) -> Path | None:
    """Where twistd was told to log: its options; None: not to a file, or by a logger of somebody else's."""
    if twistd is None or twistd.get("syslog") or twistd.get("logger") or twistd.get("logfile") == "-":
        return None
    if twistd.get("logfile"):
        return Path(twistd["logfile"]).absolute()
    return None if twistd.get("nodaemon") else Path("twistd.log").absolute()


class Log(LogFile):
    log = Logger()

    def reopen(self) -> None:
        """Write on where it was, in a new file if that is gone. The one before stays in use when it cannot be opened,
        as after root was given up."""
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE))
        except OSError as reason:
            self.log.error("{path} cannot be opened anew: {reason}", path=self.path, reason=reason.strerror)
        else:
            super().reopen()


def open_log(path: Path) -> Log:
    return Log(path.name, str(path.parent), ROTATE_BYTES, MODE, ROTATED_FILES_MAX)
