"""`--log-format json`: the log as one JSON object a line, for programs that collect logs.

    {"time": "2026-11-28T20:51:39.123Z", "level": "info", "logger": "meshproto.net.seeds", "message": "...", ...}

Besides these four an event's own fields, as far as they are texts, numbers or truth values: nothing else is asked how
it would like to be shown, since that may be anything. All of a line is ASCII: whatever somebody else has chosen is
escaped, so that nobody writes lines of their own into the log, nor moves the cursor of who reads it.
"""

import json
import math
import sys
import syslog
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from twisted.logger import FileLogObserver, ILogObserver, LogEvent, LogLevel, formatEvent
from zope.interface import implementer

FIELD_CHARS_MAX: Final = 4000
"""Of one field, or of the message: a line is some kilobytes at most."""
TRACEBACK_CHARS_MAX: Final = 20_000
NUMBER_BITS_MAX: Final = 64
"""Of a whole number: a longer one is no measure of anything, and at some length Python does not write it any more."""
_PRIORITIES: Final = {
    LogLevel.debug: syslog.LOG_DEBUG,
    LogLevel.info: syslog.LOG_INFO,
    LogLevel.warn: syslog.LOG_WARNING,
    LogLevel.error: syslog.LOG_ERR,
    LogLevel.critical: syslog.LOG_CRIT,
}
_OWN: Final = frozenset({"time", "level", "logger", "message", "traceback"})
_LEGACY: Final = frozenset({"isError", "format", "system", "printed", "why"})
"""What Twisted's former way of logging adds to an event."""
_escape: Final = json.JSONEncoder(separators=(",", ":")).encode


def json_line(event: LogEvent) -> str:
    """With its newline. Never raises."""
    when = datetime.fromtimestamp(event.get("log_time", 0.0), UTC)
    level = event.get("log_level") or LogLevel.info
    line: dict[str, Any] = {
        "time": f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03d}Z",
        "level": level.name,
        "logger": str(event.get("log_namespace", "-"))[:FIELD_CHARS_MAX],
        "message": formatEvent(event)[:FIELD_CHARS_MAX],
    }
    failure = event.get("log_failure")
    if failure is not None:
        line["traceback"] = failure.getTraceback()[-TRACEBACK_CHARS_MAX:]
    for name, value in event.items():
        if not name.startswith("log_") and name not in _OWN and name not in _LEGACY and _is_plain(value):
            line[name] = value[:FIELD_CHARS_MAX] if isinstance(value, str) else value
    return _escape(line).replace("\x7f", "\\u007f") + "\n"


def _is_plain(value: object) -> bool:
    if isinstance(value, int):
        return value.bit_length() <= NUMBER_BITS_MAX
    return isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))


@implementer(ILogObserver)
class _Syslog:
    """A line is a message of the priority that its level has."""

    def __init__(self, prefix: str) -> None:
        syslog.openlog(prefix, 0, syslog.LOG_DAEMON)

    def __call__(self, event: LogEvent) -> None:
        syslog.syslog(_PRIORITIES.get(event.get("log_level"), syslog.LOG_INFO), json_line(event).rstrip("\n"))


def json_observer(twistd: Mapping[str, Any]) -> ILogObserver:
    """Writes where twistd would by these options of its own; not to a file, which :mod:`meshproto.net.log_file` is
    for."""
    if twistd.get("syslog"):
        return _Syslog(twistd.get("prefix") or "")
    if twistd.get("logfile") == "-" and not twistd.get("nodaemon"):
        raise SystemExit("a daemon cannot log to standard output: give another --logfile, or -n")
    return FileLogObserver(sys.stdout, json_line)
