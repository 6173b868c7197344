"""What code makes the interpreter, SQLite and the network do, counted without a clock.

A :class:`Meter` traces the thread that it is started in. Each piece of work belongs to a node (:meth:`Meter.run`), so
that a sender's is told apart from its recipient's. What the fake world does itself (`tests/`, `bench/`, Twisted's
doubles) belongs to nobody, nor does what it calls; only where it calls back into a node does that node's work go on.
"""

import gc
import itertools
import json.decoder
import json.encoder
import operator
import re
import sqlite3
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, TypeVar

import twisted.internet.task
import twisted.internet.testing
import twisted.test.iosim
from msgspec import Struct

import meshproto
from tests.disk import TroubledSync

T = TypeVar("T")

_ROOT: Final = Path(__file__).parents[1]
_OWN: Final = str(Path(meshproto.__file__).parent)
_FAKES: Final = (
    str(_ROOT / "tests"),
    str(_ROOT / "bench"),
    *(str(fake.__file__) for fake in (twisted.internet.task, twisted.internet.testing, twisted.test.iosim)),
    tracemalloc.__file__,
)
_STEPS_MAX: Final = 10**12
_PUBLIC_KEY: Final = re.compile("crypto_(sign|scalarmult|box(?!.*_afternm))")
"""To sign, to verify, to agree on a key: ten times as dear as to seal with a key that is there."""
_FULL: Final = 2
"""What `PRAGMA synchronous` answers when a commit syncs; 3 does so too."""


class Counts(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `of` operations took, all together.

    `bytecodes` that CPython executed; `c_calls`, to functions written in C, of which `json` are to an encoder or
    decoder, and `crypto` to what libsodium does with public keys; SQL `statements`, and the `steps` of SQLite's virtual
    machine for them; `commits` that wrote something, the `pages` that they wrote, and how often it had to be `synced`;
    `timers` set; `writes` to connections, and the `sent_bytes` in them; `kept_bytes` of memory afterwards."""

    of: int
    bytecodes: int = 0
    c_calls: int = 0
    json: int = 0
    crypto: int = 0
    statements: int = 0
    steps: int = 0
    commits: int = 0
    synced: int = 0
    pages: int = 0
    timers: int = 0
    writes: int = 0
    sent_bytes: int = 0
    kept_bytes: int = 0


class Tally:
    """What one function did for one node. It is the trace function of the function's frames."""

    __slots__ = ("bytecodes", "c_calls", "calls", "code", "node")

    def __init__(self, node: str, code: CodeType) -> None:
        self.node = node
        self.code = code
        self.calls = self.bytecodes = self.c_calls = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> "Tally":
        if event == "opcode":
            self.bytecodes += 1
        return self


class _Kind(Enum):
    """Whose a function is."""

    OWN = auto()
    LIBRARY = auto()
    FAKE = auto()
    JSON = auto()
    WRITE = auto()
    SYNC = auto()


class Meter:
    """`tallies`: by node and function; `events`: by node and name. Both of the last :meth:`counting`."""

    def __init__(self) -> None:
        self.tallies: dict[tuple[str, int], Tally] = {}
        self.events: Counter[tuple[str, str]] = Counter()
        self._at_work: str | None = None
        self._kinds: dict[int, tuple[CodeType, _Kind]] = {}  # by id: to hash a code object takes long
        self._nobodys: set[str] = set()

    def run(self, node: str, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Do a piece of a node's work."""
        before, self._at_work = self._at_work, node
        try:
            return work(*args, **kwargs)
        finally:
            self._at_work = before

    def count(self, node: str, event: str, amount: int = 1) -> None:
        self.events[node, event] += amount

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Forget what was counted before, and count. Garbage is not collected meanwhile: when that happens depends on
        everything else in the process."""
        gc.collect()
        gc.disable()
        self.tallies.clear()
        self.events.clear()
        tracing, profiling = sys.gettrace(), sys.getprofile()
        sys.setprofile(self._profile)
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(tracing)
            sys.setprofile(profiling)
            gc.enable()
        assert not self._nobodys, f"nobody knows whose work this is: {sorted(self._nobodys)}"

    def of(self, node: str) -> dict[str, int]:
        """What was counted of a node."""
        tallies = [tally for tally in self.tallies.values() if tally.node == node]
        counted = {event: amount for (whose, event), amount in self.events.items() if whose == node}
        counted["bytecodes"] = sum(tally.bytecodes for tally in tallies)
        counted["c_calls"] = sum(tally.c_calls for tally in tallies)
        return counted

    def _trace(self, frame: FrameType, event: str, argument: object) -> Tally | None:
        """Called for each call of a Python function, and each time that a coroutine goes on."""
        code, node = frame.f_code, self._at_work
        kind = self._kind(code)
        if node is None:
            if kind is _Kind.OWN:
                self._nobodys.add(code.co_qualname)
            return None
        if kind is _Kind.WRITE:
            self.count(node, "writes")
            self.count(node, "sent_bytes", len(frame.f_locals["data"]))
            return None
        if kind is _Kind.SYNC:
            self.count(node, "synced")
            return None
        if kind is _Kind.FAKE or (kind is not _Kind.OWN and not _counts(frame.f_back)):
            return None
        if kind is _Kind.JSON:
            self.count(node, "json")
        tally = self.tallies.get((node, id(code)))
        if tally is None:
            tally = self.tallies[node, id(code)] = Tally(node, code)
        tally.calls += 1
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return tally

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        tally = frame.f_trace
        if event != "c_call" or not isinstance(tally, Tally):
            return
        tally.c_calls += 1
        module = argument.__module__ or type(argument.__self__).__module__
        if module.startswith("msgspec"):
            self.count(tally.node, "json")
        elif module == "_sodium" and _PUBLIC_KEY.match(argument.__name__):
            self.count(tally.node, "crypto")

    def _kind(self, code: CodeType) -> _Kind:
        known = self._kinds.get(id(code))
        if known is None:
            known = self._kinds[id(code)] = (code, _kind_of(code))
        return known[1]


def _kind_of(code: CodeType) -> _Kind:
    if code is twisted.test.iosim.FakeTransport.write.__code__:
        return _Kind.WRITE
    if code is TroubledSync.sync.__code__:
        return _Kind.SYNC
    if code in (json.encoder.JSONEncoder.encode.__code__, json.decoder.JSONDecoder.raw_decode.__code__):
        return _Kind.JSON
    if code.co_filename.startswith(_OWN):
        return _Kind.OWN
    return _Kind.FAKE if code.co_filename.startswith(_FAKES) else _Kind.LIBRARY


def _counts(caller: FrameType | None) -> bool:
    """Whether what is called from here is a node's work."""
    return caller is not None and (caller.f_code is Meter.run.__code__ or isinstance(caller.f_trace, Tally))


class Disk:
    """Listens to a connection of SQLite."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._counted: Counter[str] = Counter()
        self._in_transaction = self._has_written = False
        (level,) = connection.execute("PRAGMA synchronous").fetchone()
        self._syncs = level >= _FULL
        self._steps = itertools.repeat(None, _STEPS_MAX)  # a counter in C: a Python function for each step takes long
        connection.set_trace_callback(self._heard)
        connection.set_progress_handler(self._steps.__next__, 1)

    def counted(self) -> Counter[str]:
        """Since the connection was made."""
        return self._counted + Counter(steps=_STEPS_MAX - operator.length_hint(self._steps))

    def _heard(self, sql: str) -> None:
        self._counted["statements"] += 1
        match sql.split(maxsplit=1)[0].upper():
            case "BEGIN":
                self._in_transaction, self._has_written = True, False
            case "INSERT" | "UPDATE" | "DELETE" | "REPLACE" | "WITH":
                self._has_written = True
                if not self._in_transaction:
                    self._committed()
            case "COMMIT" | "END":
                self._in_transaction = False
                if self._has_written:
                    self._committed()
            case "PRAGMA" if level := re.match(r"PRAGMA synchronous\s*=\s*(\w+)", sql, re.IGNORECASE):
                self._syncs = level[1].upper() in ("FULL", "EXTRA", "2", "3")

    def _committed(self) -> None:
        self._counted["commits"] += 1
        self._counted["synced"] += self._syncs


class Kept:
    """`bytes`: of what was allocated meanwhile, by code that is not the fake world's, what is there still."""

    bytes = 0


@contextmanager
def keeping() -> Iterator[Kept]:
    gc.collect()
    kept = Kept()
    tracemalloc.start()
    try:
        yield kept
        gc.collect()
        snapshot = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    kept.bytes = sum(
        trace.size for trace in snapshot.traces if not trace.traceback[0].filename.startswith(("<", *_FAKES))
    )
