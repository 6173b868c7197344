"""The course of :mod:`bench.peers` in little, with ours alone; what it takes is not asserted. What it says to the
others is tried against what they would say: their protocols, in pieces of any size."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import compiled, million, report
from bench.figures import Figure, Machine, Row
from bench.load import redis_request
from bench.peers import __main__ as peers
from bench.peers import dns, exchange, machine, mosquitto, nats, ours, packages, prosody, rabbitmq, redis, told
from bench.peers.contest import VALUE_BYTES
from bench.peers.exchange import Exchange, message
from meshproto.cli.processes import Failed, until
from meshproto.wire import LookupResult, encode_value

ROOT = Path(__file__).parent.parent
LARGE = ("64c d16", "512 in flight", "512 connections", "4,096 in flight")
"""What `--quick` leaves out."""
QUICK = ["--quick", "--no-install", "--names", "300", "--only", "ours"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warm-up; any kind of file system will do."""
    monkeypatch.setattr(exchange, "WARM_UP_S", 0.0)
    monkeypatch.setattr(machine, "DEVICELESS", frozenset())


def test_ours_are_measured(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of ours has a row for each load, with every figure; the table says the same as the JSON; all is cleared
    away, and the process may use all its cores again."""
    file, place, cores = tmp_path / "rows.json", tmp_path / "place", os.sched_getaffinity(0)
    place.mkdir()
    assert peers.main([*QUICK, "--state", str(place), "--json", str(file)]) == 0
    found = msgspec.json.decode(file.read_bytes(), type=told.Told)
    systems = {system.what: system for system in found.systems}
    expected = {(peer.title, load.label) for peer in peers.PEERS if peer.key == "ours" for load in peer.loads}
    expected = {(what, case) for what, case in expected if case not in LARGE}
    if not _compiler():
        assert "compiler" in systems[ours.Seed.title].missing
        expected = {(what, case) for what, case in expected if what != ours.Seed.title}
    assert {(row.what, row.case) for row in found.rows} == expected
    figures = {"per_s", "p50_us", "p99_us", "server_us", "load_us", "load_share"}
    assert all(row.figures.keys() == figures and row.figures["per_s"].least > 0 for row in found.rows)
    assert not any(row.limit for row in found.rows)
    assert [system.durable for system in found.systems] == [False, True, True, True, True]
    assert capsys.readouterr().out == told.text(found) + "\n"
    assert list(place.iterdir()) == []
    assert os.sched_getaffinity(0) == cores


def _compiler() -> bool:
    try:
        compiled.compiler()
    except compiled.NoCompiler:
        return False
    return True


def test_an_interruption_ends_all_servers(tmp_path: Path) -> None:
    """Ctrl-C while they run: none is left, nor is any of their files."""
    command = [
        sys.executable,
        "-m",
        "bench.peers",
        *QUICK,
        "--seconds",
        "60",
        "--rounds",
        "9",
        "--state",
        str(tmp_path),
    ]
    command.remove("--quick")
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, process_group=0)
    assert started.stderr is not None
    try:
        for line in started.stderr:
            if line.startswith("  "):  # the first measurement
                break
        else:
            pytest.skip("the load cannot be made here")
        children = machine.family(started.pid) - {started.pid}
        assert children
        os.kill(started.pid, signal.SIGINT)
        started.wait(60)
    finally:
        started.kill()
        started.stderr.close()
        started.wait()
    assert not any(map(_runs, children))
    assert list(tmp_path.iterdir()) == []


def _runs(pid: int) -> bool:
    """It has not ended, whether or not somebody has taken note of its end."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_name_is_looked_up_for_as_much_everywhere() -> None:
    """What the others store is as long as what a seed answers with, within what its numbers vary by."""
    entry = million.entry_of(7, random.Random(7))
    result = LookupResult(entry.record, entry.sig, entry.since, "old", False, entry.seen)
    assert abs(len(encode_value(result)) - VALUE_BYTES) < 10


# -- what the others say ------------------------------------------------------------------------------------------

Receive = Callable[[bytes], tuple[Iterable[int], bytes]]


def _nats(numbers: Sequence[int]) -> tuple[Receive, bytes]:
    end = nats.Publish(3)
    return end.receive, b"".join(
        b'MSG _INBOX.3.%d 1 25\r\n{"stream":"BOX", "seq":%d}\r\n' % (n, n % 10) for n in numbers
    )


def _nats_reader(numbers: Sequence[int]) -> tuple[Receive, bytes]:
    heads = [b"MSG box.UserX 1 $JS.ACK.7 256\r\n", b"PING\r\nMSG box.UserX 1 $JS.ACK.7 256\r\n"]
    return nats.Consume().receive, b"".join(heads[n % 2] + message(n) + b"\r\n" for n in numbers)


def _mqtt(numbers: Sequence[int]) -> tuple[Receive, bytes]:
    return mosquitto.Subscriber().receive, mosquitto.Publish().send(numbers)


def _mqtt_sender(numbers: Sequence[int]) -> tuple[Receive, bytes]:
    end = mosquitto.Publish()
    end.send(numbers)
    return end.receive, b"".join(mosquitto.packet(mosquitto.PUBACK, (n + 1).to_bytes(2, "big")) for n in numbers)


def _amqp(numbers: Sequence[int]) -> tuple[Receive, bytes]:
    deliver = rabbitmq.method(
        rabbitmq.DELIVER, rabbitmq.short(b"reader") + b"\0" * 8 + b"\0\0" + rabbitmq.short(b"UserX")
    )
    header = rabbitmq.frame(rabbitmq.HEADER, 1, b"\0" * 14)
    bodies = (rabbitmq.frame(rabbitmq.BODY, 1, message(n)) for n in numbers)
    return rabbitmq.Consumer().receive, b"".join(deliver + header + body for body in bodies)


def _amqp_sender(numbers: Sequence[int]) -> tuple[Receive, bytes]:
    """The first is confirmed alone, the others all at once."""
    end = rabbitmq.Publisher()
    end.send(numbers)
    tags = dict.fromkeys((1, len(numbers)))
    confirms = (rabbitmq.method(rabbitmq.ACK, tag.to_bytes(8, "big") + bytes([tag > 1])) for tag in tags)
    return end.receive, b"".join(confirms)


def _redis(numbers: Sequence[int]) -> tuple[Receive, bytes]:
    entries = b"".join(b"*2\r\n$3\r\n1-%d\r\n%b" % (n % 10, redis_request(b"m", message(n))) for n in numbers)
    return redis.Take().receive, b":5\r\n*1\r\n*2\r\n$3\r\nbox\r\n*%d\r\n%b" % (len(numbers), entries)


def _redis_sender(numbers: Sequence[int]) -> tuple[Receive, bytes]:
    end = redis.Add()
    end.send(numbers)
    return end.receive, b"$3\r\n1-1\r\n" * len(numbers)


def _xmpp(numbers: Sequence[int]) -> tuple[Receive, bytes]:
    return prosody.Reader().receive, prosody.Sender().send(numbers)


def _xmpp_sender(numbers: Sequence[int]) -> tuple[Receive, bytes]:
    end = prosody.Sender()
    end.send(numbers)
    return end.receive, b"<a h='1' xmlns='urn:xmpp:sm:3'/><a xmlns='urn:xmpp:sm:3' h='%d'/>" % len(numbers)


def _dns(numbers: Sequence[int]) -> tuple[Receive, bytes]:
    end = dns.Questions(0, ["user0000001"])
    end.send(numbers)
    answers = (n.to_bytes(2, "big") + b"\x84\0\0\1\0\1\0\0\0\0" + b"x" * 400 for n in numbers)
    return end.receive, b"".join(len(answer).to_bytes(2, "big") + answer for answer in answers)


def _http(numbers: Sequence[int]) -> tuple[Receive, bytes]:
    """Chunked, and with a length, in turns."""
    bodies = (b'{"messages":[{"message":"%b"}],"next":5}' % message(n) for n in numbers)
    heads = (b"Transfer-Encoding: chunked\r\n\r\n", b"content-length: %d\r\n\r\n")
    said = b""
    for n, body in enumerate(bodies):
        head = heads[1] % len(body) if n % 2 else heads[0]
        whole = body if n % 2 else b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (body[:5], len(body) - 5, body[5:])
        said += b"HTTP/1.1 200 OK\r\n" + head + whole
    return ours.Inbox().receive, said


def _stream(numbers: Sequence[int]) -> tuple[Receive, bytes]:
    end = ours.Lines()
    end.send(numbers)
    lines = b'{"id":"1","to":"UserX","status":"delivered"}\n' * len(numbers)
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (lines[:50], lines[50:]) if part)
    return end.receive, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body


SPOKEN = (
    _nats,
    _nats_reader,
    _mqtt,
    _mqtt_sender,
    _amqp,
    _amqp_sender,
    _redis,
    _redis_sender,
    _xmpp,
    _xmpp_sender,
    _dns,
    _http,
    _stream,
)


@given(spoken=st.sampled_from(SPOKEN), data=st.data(), count=st.integers(1, 6))
def test_what_others_say_may_come_in_pieces(
    spoken: Callable[[Sequence[int]], tuple[Receive, bytes]], data: st.DataObject, count: int
) -> None:
    """Whatever the pieces, each message is told of once, in order."""
    numbers = range(count)
    receive, said = spoken(numbers)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=5)))
    found: list[int] = []
    for begin, end in zip([0, *cuts], [*cuts, len(said)], strict=True):
        found += receive(said[begin:end])[0]
    assert found == list(numbers)


def test_a_refusal_is_no_answer() -> None:
    """An error instead of an acknowledgement ends the measurement, in every protocol that has one."""
    refusals: list[tuple[Receive, bytes]] = [
        (nats.Publish(0).receive, b'MSG _INBOX.0.1 1 12\r\n{"error":{}}\r\n'),
        (nats.Publish(0).receive, b"-ERR 'Authorization Violation'\r\n"),
        (redis.Add().receive, b"-OOM command not allowed\r\n"),
        (rabbitmq.Publisher().receive, rabbitmq.method((20, 40), b"\0" * 9)),
        (ours.Post().receive, b'HTTP/1.1 202 Accepted\r\nContent-Length: 19\r\n\r\n{"status":"queued"}'),
        (ours.Lines().receive, b'HTTP/1.1 200 OK\r\n\r\n14\r\n{"status":"queued"}\n\r\n'),
        (redis.Add().receive, b"$3\r\n1-1\r\n"),  # to nothing
        (dns.Questions(0, ["a"]).receive, b"\0\x0c\0\1\x84\3\0\1\0\0\0\0\0\0"),
    ]
    for receive, said in refusals:
        with pytest.raises(Failed):
            receive(said)


# -- the load -----------------------------------------------------------------------------------------------------


class _Scripted:
    """A sender whose other end is this process: what is read is the numbers that are acknowledged."""

    def send(self, numbers: Sequence[int]) -> bytes:
        return bytes(numbers)

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        return list(data), b""


@pytest.mark.parametrize(("said", "told_"), [(b"\0\0", "came twice"), (b"\7", "came twice"), (b"", "hung up")])
def test_what_nobody_sent_and_who_hangs_up(said: bytes, told_: str) -> None:
    """Are told instead of being counted."""
    near, far = socket.socketpair()
    far.sendall(said)
    far.shutdown(socket.SHUT_WR)
    with far, pytest.raises(Failed, match=told_):
        Exchange([(near, _Scripted())]).run(1, 1.0, lambda: 0.0)


# -- what is needed, and what was found ---------------------------------------------------------------------------


def test_who_cannot_install_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without apt-get, and without being root; what is there already needs neither."""
    monkeypatch.setattr(packages, "debian_version", {"there": "1.0"}.get)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    packages.install(["there"])
    with pytest.raises(packages.NotInstalled, match="no apt-get here to install nats-server"):
        packages.install(["there", "nats-server"])
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(packages.NotInstalled, match="as root: apt-get install --no-install-recommends nats-server"):
        packages.install(["nats-server"])


def test_a_disk_that_is_none_is_refused() -> None:
    """Nobody's fsync is measured in memory."""
    with pytest.raises(Failed, match="where fsync costs nothing"):
        machine.real_disk(Path("/dev/shm"))


def test_a_servers_own_processes_end_with_it(tmp_path: Path) -> None:
    """Also those that left its group and do not notice that it has ended."""
    with machine.Servers(tmp_path) as servers:
        child = servers.run("parent", "sh", "-c", "setsid sleep 1000 & wait")
        pids = until(lambda: found if len(found := machine.family(child.process.pid)) > 1 else None, "it has a child")
    assert not any(Path(f"/proc/{pid}/cwd").exists() for pid in pids)


def test_ports_are_given_once() -> None:
    assert len({machine.free_port() for _ in range(100)}) == 100


def _told(missing: str = "") -> told.Told:
    def figures(**values: float) -> dict[str, Figure]:
        return {name: Figure(value, value, value) for name, value in values.items()}

    common = {"p50_us": 500.0, "server_us": 20.0, "load_share": 0.25}
    rows = [
        Row("1 in flight", "meshproto, streamed", figures(per_s=3000, **common)),
        Row("1 in flight", "Post", figures(per_s=1500, stream_to=2.0, **common), True),
    ]
    systems = [
        told.System("meshproto, streamed", "ours", "message", "fsynced", True, "stream_to", "0.1"),
        told.System("Post", "post", "message", "taken", False, version="3.7"),
        told.System("Gone", "gone", "message", "taken", False, missing="not installed"),
    ]
    about = Machine("a processor", 2, "3.11", 0.1)
    return told.Told(program="peers", date="2026-11-28", machine=about, rounds=3, rows=rows, systems=systems)


def test_the_tables(tmp_path: Path) -> None:
    """Ours stand out, others have their version, who is missing has a reason; and how many times as many we do. All of
    it goes into the document."""
    text = told.text(_told())
    assert "| **meshproto, streamed** | 3,000 | 0.5 | 20 | 25 % | yes | fsynced |" in text
    assert "| Post 3.7 | 1,500 | 0.5 | 20 | 25 % | no | taken |" in text
    assert "| Gone |  |  |  |  |  | taken; not measured: not installed |" in text
    assert text.endswith("| beside | streamed: 1 in flight |\n|---|---|\n| Post | 2 |")
    (tmp_path / "peers.json").write_bytes(msgspec.json.encode(_told()))
    document = "before\n<!-- bench: peers -->\nold\n<!-- end -->\nafter\n"
    assert report.filled(document, tmp_path) == document.replace("old", text)


def test_only_those_who_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    """`--only` knows its keys."""
    with pytest.raises(SystemExit):
        peers.parse(["--only", "redis,kafka"])
    assert "kafka: not one of ours, redis, nats" in capsys.readouterr().err
