"""--log-format json: what a line is, and where it goes."""

import io
import json
import sys
import syslog
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import ILogObserver, Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from meshproto.net.json_log import FIELD_CHARS_MAX, json_line, json_observer


def logged(tell: Callable[[Logger], object]) -> dict[str, Any]:
    """What a call of a logger writes."""
    events: list[Any] = []
    tell(Logger("meshproto.some.part", observer=events.append))  # type: ignore[arg-type]
    (event,) = events
    line = json_line({**event, "log_time": 1795899948.4206})
    assert line.count("\n") == 1 and line.endswith("\n") and line.isascii()
    told = json.loads(line)
    assert isinstance(told, dict)
    return told


def test_a_line() -> None:
    """Time in UTC to the millisecond, level, logger, message, then the event's own fields."""
    told = logged(lambda log: log.warn("{name} waits for {count}", name="UserX", count=3, ratio=0.5, quick=True))
    assert told == {
        "time": "2026-11-28T21:05:48.420Z",
        "level": "warn",
        "logger": "meshproto.some.part",
        "message": "UserX waits for 3",
        "name": "UserX",
        "count": 3,
        "ratio": 0.5,
        "quick": True,
    }


def test_only_plain_values_are_fields() -> None:
    """What something else would say of itself nobody knows."""

    class Request:
        def __repr__(self) -> str:
            return "a secret"

    told = logged(lambda log: log.info("it came", request=Request(), body=b"a secret", nan=float("nan"), many=["x"]))
    assert told.keys() == {"time", "level", "logger", "message"}


def test_an_events_own_fields_do_not_take_the_place_of_ours() -> None:
    told = logged(lambda log: log.info("real", time="never", logger="x", message="false", traceback="y"))
    assert (told["message"], told["logger"]) == ("real", "meshproto.some.part")
    assert told["time"].startswith("2026") and "traceback" not in told


def test_an_exception_has_its_traceback() -> None:
    """And what the code around it had in its hands is not in it."""

    def tell(log: Logger) -> None:
        secret = "in a variable"
        try:
            raise ValueError("wrong" + secret[:0])
        except ValueError:
            log.failure("a bug in {what}", failure=Failure(captureVars=True), what="it")

    told = logged(tell)
    assert (told["level"], told["message"], told["what"]) == ("critical", "a bug in it", "it")
    assert told["traceback"].startswith("Traceback") and "ValueError: wrong" in told["traceback"]
    assert "in a variable" not in json.dumps(told)


def test_what_does_not_format_is_a_line_all_the_same() -> None:
    assert "Unable to format" in logged(lambda log: log.info("{nothing}"))["message"]
    assert json.loads(json_line({}))["level"] == "info"


def test_it_is_bounded() -> None:
    told = logged(lambda log: log.info("{text}", text="x" * 10 * FIELD_CHARS_MAX))
    assert len(told["message"]) == len(told["text"]) == FIELD_CHARS_MAX


def test_a_number_that_python_does_not_write() -> None:
    told = logged(lambda log: log.info("much", count=10**5000, size=2**63))
    assert "count" not in told and told["size"] == 2**63


@given(
    st.dictionaries(st.text(max_size=5), st.text() | st.floats() | st.integers() | st.binary(), max_size=5), st.text()
)
def test_nobody_writes_a_line_of_their_own(fields: dict[str, Any], said: str) -> None:
    """Whatever is in an event: one line of printable ASCII, which is JSON."""
    line = json_line({**fields, "log_format": "{said}", "said": said, "log_level": LogLevel.info, "log_time": 1.0})
    assert line.endswith("\n") and line[:-1].isprintable() and line.isascii()
    assert json.loads(line)["message"] == said[:FIELD_CHARS_MAX]


# -- where it goes ------------------------------------------------------------------------------------------------

EVENT = {"log_format": "it", "log_level": LogLevel.error, "log_time": 1.0, "log_namespace": "part"}
LINE = '{"time":"1970-01-01T00:00:01.000Z","level":"error","logger":"part","message":"it"}\n'


@pytest.mark.parametrize("logfile", [None, "", "-"])
def test_standard_output(logfile: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the foreground, unless there is a file."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    observer = json_observer({"nodaemon": True, "logfile": logfile})
    verifyObject(ILogObserver, observer)
    observer(EVENT)
    assert out.getvalue() == LINE


def test_a_daemon_has_no_standard_output() -> None:
    with pytest.raises(SystemExit, match="daemon"):
        json_observer({"nodaemon": False, "logfile": "-"})


def test_syslog(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object is a message, of the priority that its level has."""
    opened: list[Any] = []
    said: list[Any] = []
    monkeypatch.setattr(syslog, "openlog", lambda *given: opened.append(given))
    monkeypatch.setattr(syslog, "syslog", lambda *given: said.append(given))
    observer = json_observer({"syslog": True, "prefix": "mesh"})
    verifyObject(ILogObserver, observer)
    observer(EVENT)
    observer({**EVENT, "log_level": None})
    assert opened == [("mesh", 0, syslog.LOG_DAEMON)]
    assert said[0] == (syslog.LOG_ERR, LINE[:-1]) and said[1][0] == syslog.LOG_INFO
