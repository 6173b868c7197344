"""Answers to HTTP requests, read in whatever pieces they come."""

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshproto.errors import NoAnswer, PeerError
from meshproto.net.http_answer import HEAD_BYTES_MAX, WORDS_CHARS_MAX, Answer, Reader

BODY_BYTES_MAX = 1000

tokens = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,12}", fullmatch=True).filter(
    lambda name: name.lower() not in ("connection", "content-length", "content-encoding", "transfer-encoding")
)
values = st.from_regex(r"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True)
fields = st.lists(st.tuples(tokens, values), max_size=5)
bodies = st.binary(min_size=1, max_size=100)
statuses = st.sampled_from([200, 201, 400, 403, 404, 413, 429, 500, 503, 599, 999])


def read(pieces: Iterable[bytes], ends: bool = False) -> tuple[Answer | None, bool]:
    """The answer, if there is one; and whether the connection may be used again."""
    reader = Reader(BODY_BYTES_MAX)
    for piece in pieces:
        answer = reader.feed(piece)
        if answer is not None:
            return answer, reader.reusable
    return (reader.end(), False) if ends else (None, False)


def refused(data: bytes) -> str:
    """What is said of it, however it comes; nothing is read of it in pieces that is not read at once."""
    with pytest.raises(PeerError) as raised:
        read([data])
    with pytest.raises(PeerError) as raised_later:
        read(data[at : at + 1] for at in range(len(data)))
    assert type(raised.value) is type(raised_later.value)
    return raised.value.detail


def pieces_of(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


def head(status: int, lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\r\n" for line in (b"HTTP/1.1 %d Thus" % status, *lines)) + b"\r\n"


def chunked(parts: Iterable[bytes], trailers: bytes = b"") -> bytes:
    return b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailers + b"\r\n"


# -- answers ------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(statuses, fields, bodies, st.sampled_from(["length", "chunks", "end"]), st.lists(st.integers(0), max_size=6))
@example(200, [], b"\r\n\r\n", "length", [30, 31, 32])
def test_an_answer_in_any_pieces(
    status: int, named: list[tuple[str, str]], body: bytes, framing: str, cuts: list[int]
) -> None:
    """However its body is framed and wherever it is cut: the answer is the same, and complete with its last byte."""
    lines = [f"{name}: {value}".encode() for name, value in named]
    framed = {
        "length": head(status, [*lines, b"CONTENT-length:%d" % len(body)]) + body,
        "chunks": head(status, [*lines, b"Transfer-Encoding: Chunked"])
        + chunked([body[at : at + 7] for at in range(0, len(body), 7)], b"X: y\r\n"),
        "end": head(status, lines) + body,
    }[framing]
    answer, reusable = read(pieces_of(framed, cuts), ends=framing == "end")
    assert answer is not None and (answer.status, answer.body) == (status, body)
    assert reusable == (framing != "end")
    for name, value in named:
        assert (name.lower().encode(), value.encode()) in answer.headers
    assert framing == "end" or read([framed[:-1]]) == (None, False)


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            [
                b"HTTP/1.1 200 OK\r\n",
                b"HTTP/1.1 100 Go on\r\n\r\n",
                b"Content-Length: 2\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Connection: close\r\n",
                b"\r\n",
                b"{}",
                b"2\r\n{}\r\n",
                b"0\r\n\r\n",
                b"\n",
                b"\x00",
                b" ",
                b"x: y\r\n",
                b"HTTP/1.1 204 \r\n\r\n",
            ]
        )
        | st.binary(max_size=8),
        max_size=12,
    ).map(b"".join),
    st.lists(st.integers(0), max_size=6),
)
def test_anything_else_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    """Whatever comes: an answer, a wait for more, or one of the two errors; and the same one in whatever pieces, except
    that what follows an answer is not seen before it comes."""

    def outcome(pieces: Iterable[bytes]) -> object:
        try:
            return read(pieces, ends=True)[0]
        except PeerError as error:
            return type(error)

    assert outcome([data]) == outcome(pieces_of(data, cuts))


def test_what_a_head_has() -> None:
    """Names in any case, the first of a name, values without the blanks around them."""
    answer, _ = read([head(503, [b"Retry-AFTER:  7 ", b"retry-after: 8", b"Content-Length: 0"])])
    assert answer is not None
    assert (answer.status, answer.header(b"retry-after"), answer.header(b"x"), answer.body) == (503, b"7", None, b"")


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body(status: int) -> None:
    """Whatever length they speak of."""
    assert read([head(status, [b"Content-Length: 5"])]) == (Answer(status, [(b"content-length", b"5")], b""), True)


@pytest.mark.parametrize("interim", [100, 102, 103, 199])
def test_interim_answers_are_passed_over(interim: int) -> None:
    """One, or several, with headers of their own."""
    between = head(interim, [b"Link: x", b"Content-Encoding: gzip"])
    for pieces in ([between * 3 + OK], [between, between + OK[:5], OK[5:]]):
        assert read(pieces) == (Answer(200, [(b"content-length", b"2")], b"{}"), True)


OK = head(200, [b"Content-Length: 2"]) + b"{}"
CHUNKS = head(200, [b"Transfer-Encoding: chunked"]) + chunked([b"{}"])


@pytest.mark.parametrize("answer", [OK, CHUNKS, head(204, [])], ids=["length", "chunks", "none"])
@pytest.mark.parametrize("more", [OK, CHUNKS, b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"x", b"\x00", b"H", b" "])
def test_what_follows_an_answer(answer: bytes, more: bytes) -> None:
    """Is no part of it, and nothing comes after it on that connection."""
    alone, reusable = read([answer])
    assert alone is not None and reusable
    assert read([answer + more]) == (alone, False)
    for at in range(1, len(answer)):
        assert read([answer[:at], answer[at:] + more]) == (alone, False)


@pytest.mark.parametrize(
    "says",
    [
        head(200, [b"Connection: close", b"Content-Length: 2"]) + b"{}",
        head(200, [b"Connection: x, Close", b"Content-Length: 2"]) + b"{}",
        OK.replace(b"1.1", b"1.0"),
        OK.replace(b"1.1", b"1.0").replace(b"\r\n", b"\r\nConnection: keep-alive\r\n", 1),
        CHUNKS.replace(b"\r\n", b"\r\nConnection: close\r\n", 1),
    ],
)
def test_the_last_of_a_connection(says: bytes) -> None:
    """So the peer wants it, or it speaks HTTP/1.0."""
    answer, reusable = read([says])
    assert answer is not None and answer.body == b"{}" and not reusable


@pytest.mark.parametrize("begun", [b"", b"HTTP", OK[:-1], head(200, [b"Content-Length: 2"]), CHUNKS[:-1], CHUNKS[:-5]])
def test_an_end_in_the_middle_is_no_answer(begun: bytes) -> None:
    assert read([begun], ends=True) == (None, False)


# -- what is none -------------------------------------------------------------------------------------------------

BAD_HEADS = [
    b"\r\n" + OK,
    b" " + OK,
    b"ICY 200 OK\r\n\r\n",
    b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/0.9 200 OK\r\n\r\n",
    b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 099 OK\r\n\r\n",
    b"HTTP/1.1 000 OK\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1 abc OK\r\n\r\n",
    b"HTTP/1.1 200 O\rK\r\n\r\n",
    b"HTTP/1.1  200 OK\r\n\r\n",
    b"POST /deliver HTTP/1.1\r\nHost: x\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    b'{"jsonrpc":"2.0"}\r\n\r\n',
    b"\x16\x03\x01\x00\r\n\r\n",
    head(200, [b"X : y"]),
    head(200, [b"no colon"]),
    head(200, [b": y"]),
    head(200, [b"X: y", b" folded"]),
    head(200, [b"X: \x00"]),
    head(200, [b"X: \x1b[2J"]),
    head(200, [b"X: y\nContent-Length: 2"]),
    head(200, [b"Content-Length: 2", b"Content-Length: 2"]),
    head(200, [b"Content-Length: 2", b"Content-Length: 3"]),
    head(200, [b"Content-Length: 2, 2"]),
    head(200, [b"Content-Length: +2"]),
    head(200, [b"Content-Length: -2"]),
    head(200, [b"Content-Length: 0x2"]),
    head(200, [b"Content-Length: 2 2"]),
    head(200, [b"Content-Length:"]),
    head(200, [b"Content-Length: " + b"9" * 100]),
    head(200, [b"Content-Length: 2", b"Transfer-Encoding: chunked"]),
    head(200, [b"Transfer-Encoding: chunked", b"Content-Length: 2"]),
    head(101, []),
    head(101, [b"Connection: upgrade", b"Upgrade: h2c"]),
]
BAD_CHUNKS = [
    b"x\r\n",
    b"-2\r\n{}\r\n",
    b"2\n{}\r\n",
    b"2\r\n{}\n",
    b"2\r\n{}x",
    b"2 \r\n{}\r\n",
    b"\r\n",
    b"0\r\nX\r\n\r\n",
    b"f" * 17 + b"\r\n",
]


@pytest.mark.parametrize(
    "data", [*BAD_HEADS, *(head(200, [b"Transfer-Encoding: chunked"]) + bad for bad in BAD_CHUNKS)]
)
def test_what_is_no_answer(data: bytes) -> None:
    """Is told so, in words that are short and safe; nothing of it is read as something else."""
    with pytest.raises(NoAnswer):
        read([data])
    detail = refused(data)
    assert detail.startswith("what answers does not speak HTTP/1: ") and detail.isprintable()
    assert len(detail) < 60 + WORDS_CHARS_MAX


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Encoding: gzip",
        b"Content-Encoding: identity, br",
        b"Content-Encoding:",
        b"Transfer-Encoding: gzip",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, gzip",
        b"Transfer-Encoding: identity",
    ],
)
def test_an_encoded_answer(line: bytes) -> None:
    """Is refused with its head."""
    assert "is encoded" in refused(head(200, [line]))


# -- how long it may be -------------------------------------------------------------------------------------------


def test_head_bytes_max() -> None:
    """To the byte, also when there was an interim answer before it."""
    bare = head(200, [b"Content-Length: 0", b"X: "])
    largest = bare.replace(b"X: ", b"X: " + b"x" * (HEAD_BYTES_MAX - len(bare)))
    for before in (b"", head(103, [])):
        assert read([before + largest])[1]
        assert "the head of the peer's answer is longer" in refused(before + largest.replace(b"X: ", b"X: x"))
    assert "the head of the peer's answer is longer" in refused(b"HTTP/1.1 200 " + b"x" * HEAD_BYTES_MAX)


def test_body_bytes_max() -> None:
    """To the byte, however it is framed; with a Content-Length it is refused before any of it comes."""
    body = b"x" * BODY_BYTES_MAX
    for framed in (
        head(200, [b"Content-Length: %d" % len(body)]) + body,
        head(200, [b"Transfer-Encoding: chunked"]) + chunked([body]),
        head(200, []) + body,
    ):
        answer, _ = read([framed], ends=True)
        assert answer is not None and answer.body == body
    longer = f"the peer's answer is longer than {BODY_BYTES_MAX} bytes"
    assert refused(head(200, [b"Content-Length: %d" % (len(body) + 1)])) == longer
    assert refused(head(200, [b"Transfer-Encoding: chunked"]) + chunked([body, b"x"])) == longer
    assert refused(head(200, []) + body + b"x") == longer


@pytest.mark.parametrize("endless", [head(103, []), b"HTTP/1.1 100 \r\n\r\n"])
def test_interim_answers_end(endless: bytes) -> None:
    """All that comes counts."""
    assert f"longer than {BODY_BYTES_MAX}" in refused(endless * (HEAD_BYTES_MAX // 10))


def test_what_frames_chunks_counts() -> None:
    """A megabyte of chunk extensions around a small body is not read; nor are endless trailers."""
    begun = head(200, [b"Transfer-Encoding: chunked"])
    for endless in (b"1;%b\r\nx\r\n" % (b"x" * 1000) * 20, b"0\r\n" + b"X: y\r\n" * 4000, b"0\r\nX: " + b"y" * 20_000):
        assert f"longer than {BODY_BYTES_MAX}" in refused(begun + endless)
