"""The load generator, `bench/load.c`, against tiny servers of this process; how fast it is is not asserted."""

import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import compiled
from bench.load import Load, LoadFailed, Plan, Protocol, http_request, redis_request, run, write_requests

try:
    compiled.compiler()
except compiled.NoCompiler as reason:
    pytestmark = pytest.mark.skip(reason=str(reason))

Serve = Callable[[socketserver.BaseRequestHandler], None]
Ask = Callable[..., Load]


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    """Have the load generator ask a server: `serve` deals with one connection, in a thread."""
    servers: list[socketserver.ThreadingTCPServer] = []

    def against(protocol: Protocol, serve: Serve, requests: list[bytes], expected: str, plan: Plan) -> Load:
        handler = type("Handler", (socketserver.BaseRequestHandler,), {"handle": serve})
        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        write_requests(tmp_path / "requests", requests)
        return run(protocol, f"127.0.0.1:{server.server_address[1]}", tmp_path / "requests", expected, plan)

    yield against
    for server in servers:
        server.shutdown()
        server.server_close()


def lines(answer: Callable[[bytes], bytes]) -> Serve:
    """A server that answers each line."""

    def serve(handler: socketserver.BaseRequestHandler) -> None:
        for line in handler.request.makefile("rb"):
            handler.request.sendall(answer(line))

    return serve


def test_an_answer_that_is_not_what_was_expected_is_an_error(ask: Ask) -> None:
    """It is counted apart, the first is shown, and only right answers make the rate and the latencies."""
    answers = {b"Anna\n": b'{"result":"here"}\n', b"Bert\n": b'{"error":"429 \\ slow down"}\n'}
    load = ask("line", lines(answers.__getitem__), list(answers), '"result"', Plan(count=100))
    assert (load.answers, load.errors) == (50, 50)
    assert load.wrong == "{'error':'429 . slow down'}."
    assert load.bytes_in == 50 * sum(map(len, answers.values()))
    assert 0 < load.p50_us <= load.p99_us
    assert 0 < load.max_us <= 1e6 * load.seconds
    none = ask("line", lines(answers.__getitem__), [b"Bert\n"], '"result"', Plan(count=10))
    assert (none.per_s, none.p50_us, none.max_us) == (0, 0, 0)


def test_each_connection_has_a_slice_of_its_own_and_begins_again(ask: Ask) -> None:
    """Two connections that share three requests begin apart, and go round."""
    heard: dict[int, list[bytes]] = {}

    def serve(handler: socketserver.BaseRequestHandler) -> None:
        for line in handler.request.makefile("rb"):
            heard.setdefault(handler.client_address[1], []).append(line)
            handler.request.sendall(line)

    requests = [b"1\n", b"2\n", b"3\n"]
    ask("line", serve, requests, "", Plan(connections=2, count=40))
    for begins_at, got in enumerate(sorted(heard.values())):
        assert got == [requests[(begins_at + number) % 3] for number in range(len(got))]
    assert sorted(map(len, heard.values()))[0] > 0
    assert sum(map(len, heard.values())) == 40


def test_the_depth_is_reached_and_not_exceeded(ask: Ask) -> None:
    """A server that answers only when so many requests are there is answered with as many more, also where the file of
    requests ends in the middle."""
    depth, most = 5, 0

    def serve(handler: socketserver.BaseRequestHandler) -> None:
        nonlocal most
        waiting = b""
        while data := handler.request.recv(4096):
            waiting += data
            most = max(most, waiting.count(b"\n"))
            while waiting.count(b"\n") >= depth:
                handler.request.sendall(b"".join(waiting.splitlines(keepends=True)[:depth]))
                waiting = b"".join(waiting.splitlines(keepends=True)[depth:])

    load = ask("line", serve, [b"a\n", b"bb\n", b"ccc\n"], "", Plan(depth=depth, count=200))
    assert (load.answers, most) == (200, depth)


def test_redis_answers_end_where_resp_says(ask: Ask) -> None:
    """A bulk string with line ends in it, nil, a number, an error, and an array of arrays, in one piece and in
    pieces."""
    answers = [b"$8\r\na\r\nb\r\nc1\r\n", b"$-1\r\n", b":1\r\n", b"-ERR 1\r\n", b"*2\r\n*1\r\n$1\r\n1\r\n$-1\r\n"]

    def serve(handler: socketserver.BaseRequestHandler) -> None:
        for number, _ in enumerate(handler.request.makefile("rb")):
            answer = answers[number % len(answers)]
            for piece in [answer] if number % 2 else [answer[at : at + 1] for at in range(len(answer))]:
                handler.request.sendall(piece)

    load = ask("redis", serve, [b"1\n"], "1", Plan(depth=3, count=50))
    assert (load.answers, load.errors, load.bytes_in) == (50, 0, 10 * sum(map(len, answers)))
    assert redis_request(b"GET", b"Anna") == b"*2\r\n$3\r\nGET\r\n$4\r\nAnna\r\n"


def test_http_answers_end_where_their_head_says(ask: Ask) -> None:
    """By length, whatever its case, or in chunks, in one piece and in pieces; the status is part of the answer, so that
    an error is not taken for a success."""
    good = b"HTTP/1.1 200 OK\r\nX-Content-Length: 1\r\ncontent-LENGTH:  11\r\n\r\ndelivered\r\n"
    bad = b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\ndelivered\n\r\nB\r\n0123456789\n\r\n0\r\n\r\n"

    def serve(handler: socketserver.BaseRequestHandler) -> None:
        file = handler.request.makefile("rb")
        while request_line := file.readline():
            headers = dict(line.strip().split(b": ") for line in iter(file.readline, b"\r\n"))
            answer = {b"{}": good, b"?": bad, b"": chunked}[file.read(int(headers[b"Content-Length"]))]
            targets.append(request_line)
            for piece in [answer] if len(targets) % 2 else [answer[at : at + 1] for at in range(len(answer))]:
                handler.request.sendall(piece)

    targets: list[bytes] = []
    requests = [http_request("/send", b"{}"), http_request("/send", b"?"), http_request("/?", b"", method="GET")]
    load = ask("http", serve, requests, "delivered", Plan(depth=3, count=30))
    assert (load.answers, load.errors, load.bytes_in) == (20, 10, 10 * len(good + bad + chunked))
    assert load.wrong == "HTTP/1.1 429 Too Many..Content-Length: 0...."
    assert set(targets) == {b"POST /send HTTP/1.1\r\n", b"GET /? HTTP/1.1\r\n"}


def test_connections_may_come_from_several_addresses(ask: Ask) -> None:
    """In turns, so that what a server allows one address is not what is measured."""
    hosts: list[str] = []

    def serve(handler: socketserver.BaseRequestHandler) -> None:
        hosts.append(handler.client_address[0])
        lines(lambda line: line)(handler)

    ask("line", serve, [b"1\n"], "1", Plan(connections=4, sources=2, count=40))
    assert sorted(hosts) == ["127.7.0.1", "127.7.0.1", "127.7.0.2", "127.7.0.2"]


def test_a_time_instead_of_a_number(ask: Ask) -> None:
    """What it counts, it has counted in that time, and the CPU time of a process is told."""
    load = ask("line", lines(lambda line: line), [b"1\n"], "1", Plan(warmup=0.02, seconds=0.05))
    assert load.answers > 0
    assert load.seconds >= 0.05
    assert load.per_s == pytest.approx(load.answers / load.seconds, rel=0.01)
    assert load.load_us > 0


@pytest.mark.parametrize(
    ("protocol", "answer", "why"),
    [
        ("line", None, "the server hung up: it closed the connection (0 answers so far)"),
        ("line", b"1\n1\n1\n", "an answer to nothing: 1"),
        ("http", b"HTTP/1.1 200 OK\r\n\r\n", "an answer whose end cannot be known: HTTP/1.1 200 OK"),
    ],
)
def test_what_ends_it(ask: Ask, protocol: Protocol, answer: bytes | None, why: str) -> None:
    """A server that does not keep to the protocol: a failed run is never a figure."""

    def serve(handler: socketserver.BaseRequestHandler) -> None:
        handler.request.recv(1)
        if answer is not None:
            handler.request.sendall(answer)
            handler.request.recv(1)

    with pytest.raises(LoadFailed) as failed:
        ask(protocol, serve, [b"1"], "", Plan(depth=2, count=10))
    assert f"load: {why}" in str(failed.value)


def test_what_it_is_given_is_checked(tmp_path: Path) -> None:
    """A file that is none of requests, a port where nobody listens, a protocol and options that it does not have."""
    broken, good = tmp_path / "broken", tmp_path / "good"
    broken.write_bytes(b"\x05\0\0\0abc")
    write_requests(good, [b"1\n"])
    for protocol, requests, plan, why in (
        ("line", broken, Plan(), "no request at byte 0"),
        ("line", tmp_path / "none", Plan(), "No such file"),
        ("line", good, Plan(), "cannot connect"),
        ("smtp", good, Plan(), "the protocols are"),
        ("line", good, Plan(connections=0), "connections 0"),
    ):
        with pytest.raises(LoadFailed, match=why):
            run(protocol, "127.0.0.1:1", requests, "", plan)  # type: ignore[arg-type]


def test_without_a_compiler_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And a program that is there already needs none."""
    compiled.program("load")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert compiled.program("load").exists()
    monkeypatch.setattr(compiled, "BINARIES", tmp_path)
    with pytest.raises(compiled.NoCompiler, match="apt-get install gcc, or set CC"):
        compiled.program("load")
