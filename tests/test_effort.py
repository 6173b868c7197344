"""Nothing takes much more than what is on record, and that would be seen (:mod:`bench.effort`)."""

import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from twisted.logger import globalLogBeginner
from twisted.test.iosim import FakeTransport

from bench import effort
from bench.effort_count import Counts, Disk, Meter, keeping
from bench.effort_operations import bulk, lone_sends
from bench.effort_world import CountedHost
from tests.disk import Trouble, TroubledConnection, TroubledSync
from tests.network import Network

ROOT = Path(__file__).parent.parent
HASH_SEEDS = ("1", "2")
MEMORY_TOLERANCE = 0.05

Runs = list[effort.Record]

bytecodes = pytest.mark.skipif(
    effort.PYTHON_HERE != effort.PYTHON,
    reason=f"bytecodes are counted with CPython {effort.PYTHON}, this is {effort.PYTHON_HERE}",
)


@pytest.fixture(scope="module")
def runs() -> Runs:
    """Two, in processes of their own: what other tests leave behind and their order make no difference."""
    command = [sys.executable, "-m", "bench.effort", "--json"]
    started = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE)
        for seed in HASH_SEEDS
    ]
    printed = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    return [msgspec.json.decode(text, type=effort.Record) for text in printed]


def test_nothing_takes_much_more_than_on_record(runs: Runs) -> None:
    """Nor much less, which is to be recorded; with another minor version of Python, bytecodes left aside."""
    record, now = effort.read_record(), runs[0]
    found = effort.complaints(record, now)
    assert not found, "\n".join(["", *found, effort.advice(record, now)])


def test_the_record_is_of_the_python_that_ci_runs() -> None:
    """The guard would be blind to bytecodes there otherwise."""
    assert effort.read_record().python == effort.PYTHON


def test_two_runs_count_the_same(runs: Runs) -> None:
    """To the unit, though strings have other hashes; memory to some percent."""
    one, other = runs
    assert one.operations.keys() == other.operations.keys()
    for operation, counts in one.operations.items():
        again = other.operations[operation]
        assert msgspec.structs.replace(counts, kept_bytes=0) == msgspec.structs.replace(again, kept_bytes=0)
        assert again.kept_bytes == pytest.approx(counts.kept_bytes, rel=MEMORY_TOLERANCE)


# -- what has become worse is seen --------------------------------------------------------------------------------

PLANTED = """
import json, nacl.bindings

def planted(receive, work):
    def received(data):
        for line in data.splitlines():
            work(line)
        receive(data)
    return received

def a_json_round_trip(line):
    json.loads(json.dumps(line.decode("latin-1")))

def a_loop(line):
    for _ in range(150):
        pass

def a_signature(line):
    nacl.bindings.crypto_sign(line, key)

key = nacl.bindings.crypto_sign_seed_keypair(bytes(32))[1]
"""


def plant(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """From now on whoever is listened to does this for each line that comes. The code has a file of its own, or it
    would be a test's, which does not count."""
    names: dict[str, Any] = {}
    exec(compile(PLANTED, "planted.py", "exec"), names)
    listen = CountedHost.listenTCP

    def listen_planted(self: CountedHost, port: int, factory: Any, *args: Any, **kwargs: Any) -> Any:
        build = factory.buildProtocol

        def build_planted(address: object) -> Any:
            protocol = build(address)
            protocol.dataReceived = names["planted"](protocol.dataReceived, names[what])
            return protocol

        factory.buildProtocol = build_planted
        return listen(self, port, factory, *args, **kwargs)

    monkeypatch.setattr(CountedHost, "listenTCP", listen_planted)


@pytest.fixture(scope="module")
def stream() -> effort.Record:
    """What a stream takes when all is well, and what is done once in a process was done."""
    effort.measured([bulk])
    return effort.measured([bulk])


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("a_json_round_trip", "json"),
        pytest.param("a_loop", "bytecodes", marks=bytecodes),
        ("a_signature", "crypto"),
    ],
)
def test_what_is_done_once_more_for_each_line_is_seen(
    stream: effort.Record, monkeypatch: pytest.MonkeyPatch, what: str, kind: str
) -> None:
    plant(monkeypatch, what)
    found = effort.complaints(stream, effort.measured([bulk]))
    assert any(one.startswith("line of a stream of 1000: sender:") and f" {kind}, " in one for one in found), found


@bytecodes
def test_the_same_again_counts_the_same(stream: effort.Record) -> None:
    """Also within one process, which has done other things meanwhile."""
    effort.measured([lone_sends])
    assert effort.measured([bulk]) == stream


# -- the comparison -----------------------------------------------------------------------------------------------


def record(python: str = "3.11", sqlite: str = "3.40.1", **operations: Counts) -> effort.Record:
    return effort.Record(python, sqlite, operations)


SEND = Counts(of=10, bytecodes=10_000, c_calls=500, synced=10, timers=1)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"bytecodes": 12_000}, []),
        ({"bytecodes": 12_001}, ["send: 1,200 bytecodes, on record 1,000 (+20 %)"]),
        ({"bytecodes": 8_000}, []),
        ({"bytecodes": 7_990}, ["send: 799 bytecodes, on record 1,000 (-20 %)"]),
        ({"synced": 20}, ["send: 2 synced, on record 1 (+100 %)"]),
        ({"crypto": 10}, ["send: 1 crypto, on record 0 (none on record)"]),
        ({"timers": 2}, []),  # a tenth of a timer
        ({"of": 20, "bytecodes": 20_000, "c_calls": 1000, "synced": 20, "timers": 2}, []),
    ],
)
def test_what_is_complained_of(change: dict[str, int], found: list[str]) -> None:
    """More than a fifth, either way, each time that the operation is done, if it is worth speaking of."""
    now = record(send=msgspec.structs.replace(SEND, **change))
    assert effort.complaints(record(send=SEND), now) == found


def test_what_is_not_on_record_and_what_is_only_there() -> None:
    assert effort.complaints(record(send=SEND), record(look=SEND)) == ["look: not on record", "send: only on record"]


def test_bytecodes_of_another_python_are_not_compared() -> None:
    """All else is."""
    now = record(python="3.12", send=msgspec.structs.replace(SEND, bytecodes=20_000, c_calls=2000))
    assert effort.complaints(record(send=SEND), now) == ["send: 200 c_calls, on record 50 (+300 %)"]


def test_the_advice_names_the_command_and_another_sqlite() -> None:
    assert "--write" in effort.advice(record(), record())
    assert effort.advice(record(), record(sqlite="3.45.0")).startswith("SQLite is 3.45.0 here, and was 3.40.1. ")


def test_the_record_reads_as_it_was_written() -> None:
    """With a line for each operation."""
    whole = record(send=SEND, look=SEND)
    text = effort.written(whole)
    assert msgspec.json.decode(text, type=effort.Record) == whole
    assert len(text.splitlines()) == 2 + len(whole.operations)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[effort.Record], None]:
    """What will be measured. The record is another file, which is not there yet."""
    monkeypatch.setattr(effort, "RECORD", tmp_path / "effort.json")
    monkeypatch.setattr(effort, "PYTHON_HERE", effort.PYTHON)
    monkeypatch.setattr(globalLogBeginner, "beginLoggingTo", lambda *_, **__: None)
    return lambda now: monkeypatch.setattr(effort, "measured", lambda: now)


def test_the_command(counted: Callable[[effort.Record], None], capsys: pytest.CaptureFixture[str]) -> None:
    """Shows what is counted and what is different; says by its exit code whether that may stay; records anew."""
    counted(record(send=SEND))
    assert effort.main([]) == 0
    assert effort.main(["--write"]) == 0
    assert effort.main([]) == 0
    assert "| send | 1,000 | 50 | " in capsys.readouterr().out
    counted(record(send=msgspec.structs.replace(SEND, bytecodes=13_000)))
    assert effort.main([]) == 1
    said = capsys.readouterr().out
    assert "| send | 1,300 (+30 %) | 50 | " in said
    assert "send: 1,300 bytecodes, on record 1,000 (+30 %)\n" in said
    assert effort.main(["--write"]) == 0
    assert effort.main([]) == 0


def test_another_python_does_not_record(
    counted: Callable[[effort.Record], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(effort, "PYTHON_HERE", "3.99")
    with pytest.raises(SystemExit):
        effort.main(["--write"])
    assert f"the record is of Python {effort.PYTHON}, this is 3.99" in capsys.readouterr().err


def test_which_functions_do_most(
    counted: Callable[[effort.Record], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(effort, "OPERATIONS", (lone_sends,))
    assert effort.main(["--functions", "one at a time: sender"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == "POST /send, one at a time: sender: bytecodes, C calls, calls"
    assert len(rows) == effort.FUNCTIONS_SHOWN
    figures = [float(row.split()[0].replace(",", "")) for row in rows]
    assert figures == sorted(figures, reverse=True)


# -- the counting -------------------------------------------------------------------------------------------------

WORK = """
import json

def work(times):
    for _ in range(times):
        len("")
    return times

def tell(write):
    write(json.dumps({}).encode())
"""


@pytest.fixture
def work() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(WORK, "work.py", "exec"), names)
    return names


@bytecodes
def test_work_is_counted_where_it_belongs(work: dict[str, Any]) -> None:
    """Each round of the loop is as many bytecodes as any other, and one call; nobody's work is not counted."""
    meter = Meter()
    counts = []
    for times in (10, 20, 30):
        with meter.counting():
            assert meter.run("Anna", work["work"], times) == times
            meter.run("Bert", work["work"], 1)
            work["work"](1000)
        counts.append(meter.of("Anna"))
    assert [each["c_calls"] for each in counts] == [10, 20, 30]
    assert counts[2]["bytecodes"] - counts[1]["bytecodes"] == counts[1]["bytecodes"] - counts[0]["bytecodes"] > 10
    assert meter.of("Bert")["c_calls"] == 1
    assert meter.of("Emil") == {"bytecodes": 0, "c_calls": 0}


def test_our_own_code_that_nobody_runs_is_a_mistake_of_the_bench() -> None:
    from meshproto.wire import fold

    with pytest.raises(AssertionError, match="nobody knows whose work this is: \\['fold'\\]"), Meter().counting():
        fold("Anna")


def test_what_the_doubles_are_asked_for(work: dict[str, Any], connection: sqlite3.Connection) -> None:
    """Timers, writes and syncs are the fake world's; that they are wanted is the node's. And JSON by Python's own."""
    network = Network()
    meter = Meter()
    trouble = Trouble(random.Random(1))
    anna = CountedHost(network.add_host("Anna"), network.clock, meter)
    transport = FakeTransport(None, False)
    sync = TroubledSync(TroubledConnection(connection, trouble), trouble)
    with meter.counting():
        anna.callLater(0, work["tell"], transport.write)
        network.settle()
        meter.run("Anna", sync.sync, lambda _: None, small=True)
    counted = meter.of("Anna")
    assert counted.pop("bytecodes") and counted.pop("c_calls")
    assert counted == {"timers": 1, "json": 1, "writes": 1, "sent_bytes": 2, "synced": 1}


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as made:
        made.execute("CREATE TABLE numbers (number INTEGER PRIMARY KEY)")
        yield made


@pytest.mark.parametrize(
    ("statements", "commits", "synced"),
    [
        (["INSERT INTO numbers VALUES (1)"], 1, 1),
        (["BEGIN", "INSERT INTO numbers VALUES (1)", "INSERT INTO numbers VALUES (2)", "COMMIT"], 1, 1),
        (["PRAGMA synchronous=NORMAL", "BEGIN", "INSERT INTO numbers VALUES (1)", "COMMIT"], 1, 0),
        (["BEGIN", "SELECT * FROM numbers", "COMMIT"], 0, 0),
        (["BEGIN", "INSERT INTO numbers VALUES (1)", "ROLLBACK"], 0, 0),
    ],
)
def test_what_a_disk_has_to_do(
    connection: sqlite3.Connection, statements: list[str], commits: int, synced: int
) -> None:
    """A commit counts when it writes; whether it syncs was said before."""
    disk = Disk(connection)
    for sql in statements:
        connection.execute(sql)
    found = disk.counted()
    assert (found["statements"], found["commits"], found["synced"]) == (len(statements), commits, synced)


def test_steps_grow_with_the_rows_that_are_looked_at(connection: sqlite3.Connection) -> None:
    connection.executemany("INSERT INTO numbers VALUES (?)", [(number,) for number in range(100)])
    disk = Disk(connection)
    steps = [0]
    for rows in (10, 20, 30):
        connection.execute("SELECT sum(number) FROM numbers WHERE number<?", (rows,)).fetchall()
        steps.append(disk.counted()["steps"])
    first, second, third = (after - before for before, after in pairwise(steps))
    assert third - second == second - first >= 10


def test_memory_that_is_still_there(work: dict[str, Any]) -> None:
    exec(compile("def keep(): return [bytes(1000) for _ in range(100)]", "work.py", "exec"), work)
    with keeping() as nothing:
        work["keep"]()
    with keeping() as something:
        held = work["keep"]()
    assert nothing.bytes < 1000
    assert 100_000 < something.bytes < 110_000
    assert len(held) == 100
