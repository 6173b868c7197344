"""What schemathesis is told to do otherwise: nobody waits a minute for a message that does not come."""

import json
from typing import Any

import schemathesis

WAIT_S_MAX = 0.05


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> bytes:
    """A stream of messages is the text that it is; anything else would be a line of JSON."""
    return (value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "surrogatepass")


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    for given in (case.query, case.body):
        if isinstance(given, dict) and _is_longer(given.get("wait")):
            given["wait"] = WAIT_S_MAX


def _is_longer(value: Any) -> bool:
    try:
        return WAIT_S_MAX < float(value) < float("inf")
    except (TypeError, ValueError):
        return False
