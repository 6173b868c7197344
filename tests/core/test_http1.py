"""What a server takes for a request: `meshproto.core.http1`."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshproto.core import http1
from meshproto.core.http1 import (
    CHUNK_LINE_BYTES_MAX,
    HEAD_BYTES_MAX,
    HEADERS_MAX,
    KNOWN_BYTES_MAX,
    LENGTH_DIGITS_MAX,
    LINE_BYTES_MAX,
    TRAILERS_BYTES_MAX,
    UNREADABLE,
    Head,
    Reader,
)
from meshproto.errors import MeshError

HEAD = b"POST /send?a=b HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def read(text: bytes) -> list[tuple[Head, bytes]]:
    """All whole requests in a text."""
    reader, found = Reader(), []
    reader.feed(text)
    while (head := reader.head()) is not None:
        body = b""
        while piece := reader.piece():
            body += piece
        if piece is None:
            break
        found.append((head, body))
    return found


def refused(text: bytes) -> tuple[int, str]:
    with pytest.raises(MeshError) as error:
        read(text)
    return error.value.code, error.value.detail


class TestHead:
    def test_its_parts(self) -> None:
        head, body = read(
            HEAD + b"X-One: 1\r\nx-two:\t2 2\t \r\nX-ONE: \xff\r\nEmpty:\r\nContent-Length: 3\r\n\r\nabc"
        )[0]
        assert (head.method, head.target, head.version, body) == (b"POST", b"/send?a=b", b"HTTP/1.1", b"abc")
        assert head.fields[b"x-one"] == (b"1", b"\xff")
        assert (head.get(b"x-one"), head.get(b"x-two"), head.get(b"empty"), head.get(b"none")) == (
            b"\xff",
            b"2 2",
            b"",
            None,
        )
        assert (head.length, head.keeps_open, head.expects_continue) == (3, True, False)

    @pytest.mark.parametrize(
        ("line", "keeps_open"),
        [
            (b"GET / HTTP/1.1", True),
            (b"GET / HTTP/1.0", False),
            (b"GET / HTTP/1.0\r\nConnection: keep-alive", False),
            (b"GET / HTTP/1.1\r\nConnection: close", False),
            (b"GET / HTTP/1.1\r\nConnection: x,Close", False),
            (b"GET / HTTP/1.1\r\nConnection: x\r\nConnection: close", False),
            (b"GET / HTTP/1.1\r\nConnection: closed, keep-alive", True),
        ],
    )
    def test_whether_another_request_may_follow(self, line: bytes, keeps_open: bool) -> None:
        assert read(line + b"\r\n\r\n")[0][0].keeps_open is keeps_open

    @pytest.mark.parametrize(
        ("field", "expects"),
        [
            (b"HTTP/1.1\r\nExpect: 100-Continue", True),
            (b"HTTP/1.0\r\nExpect: 100-continue", False),
            (b"HTTP/1.1\r\nExpect: 200-ok", False),
        ],
    )
    def test_whether_it_asks_before_it_sends(self, field: bytes, expects: bool) -> None:
        assert read(b"PUT / " + field + b"\r\n\r\n")[0][0].expects_continue is expects

    def test_an_empty_line_before_it(self) -> None:
        """One is passed over, as some clients send it behind a body; two are none of ours."""
        assert len(read(b"\r\nGET / HTTP/1.1\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n")) == 2
        assert refused(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n") == (400, UNREADABLE)

    @pytest.mark.parametrize(
        "line",
        [
            b"",
            b"GET",
            b"GET /",
            b"GET  / HTTP/1.1",
            b"GET / HTTP/1.1 ",
            b" GET / HTTP/1.1",
            b"GET\t/ HTTP/1.1",
            b"GET / HTTP/0.9",
            b"GET / HTTP/1.2",
            b"GET / HTTP/2.0",
            b"GET / http/1.1",
            b"GET / RTSP/1.0",
            b"G(T / HTTP/1.1",
            b"\xffET / HTTP/1.1",
            b"GET /\xff HTTP/1.1",
            b"GET /\x7f HTTP/1.1",
            b"GET /a b HTTP/1.1",
            b"GET /\x00 HTTP/1.1",
            b"GET / HTTP/1.1\nX: y",
            b"GET / HTTP/1.1\rX: y",
        ],
    )
    def test_lines_that_are_none(self, line: bytes) -> None:
        """Refused when the line is there, before the rest of the head is."""
        assert refused(line + b"\r\n\r\n") == (400, UNREADABLE)
        if line:
            assert refused(line + b"\r\nX") == (400, UNREADABLE)

    @pytest.mark.parametrize(
        "fields",
        [
            b"no colon",
            b": no name",
            b"X : y",
            b" X: y",
            b"X: y\r\n folded",
            b"X: y\r\n\tfolded",
            b"X: a\nY: b",
            b"X: a\rY: b",
            b"X: a\x00b",
            b"X: a\x0bb",
            b"X: a\x7fb",
            b"X\x00: y",
            b"X\xff: y",
            b"X(: y",
            b"X: y\n",
            b"X: y\r",
        ],
    )
    def test_fields_that_are_none(self, fields: bytes) -> None:
        assert refused(HEAD + fields + b"\r\n\r\n") == (400, UNREADABLE)

    @pytest.mark.parametrize("target", [b"x", b"a:80", b"ftp://a/", b"?", b"**"])
    def test_targets_that_are_none(self, target: bytes) -> None:
        assert refused(b"GET " + target + b" HTTP/1.1\r\n\r\n") == (400, "the target of a request begins with /")

    @pytest.mark.parametrize("target", [b"/", b"//", b"*", b"http://a/b", b"https://a", b"/?%00#"])
    def test_targets(self, target: bytes) -> None:
        assert read(b"OPTIONS " + target + b" HTTP/1.1\r\n\r\n")[0][0].target == target

    def test_what_is_not_whole(self) -> None:
        """Nothing of it is told."""
        for at in range(len(HEAD) + 2):
            assert read((HEAD + b"\r\n")[:at]) == []

    def test_line_feeds_alone(self) -> None:
        """Are told at once: whoever types a request by hand is not left to wait."""
        assert refused(b"GET / HTTP/1.1\n") == (400, UNREADABLE)

    def test_a_long_first_line(self) -> None:
        """As long as may be, and a byte more; whole, and while it comes."""
        longest = b"GET /" + b"x" * (LINE_BYTES_MAX - 14) + b" HTTP/1.1"
        assert len(read(longest + b"\r\n\r\n")) == 1
        longer = b"GET /x" + longest[5:]
        for text in (longer + b"\r\n\r\n", longer, longer + b"\r\nX"):
            assert refused(text) == (414, f"the first line of a request has at most {LINE_BYTES_MAX} bytes")

    def test_a_long_field(self) -> None:
        longest = b"X: " + b"x" * (LINE_BYTES_MAX - 3)
        assert len(read(HEAD + longest + b"\r\n\r\n")) == 1
        for text in (HEAD + longest + b"x\r\n\r\n", HEAD + longest + b"x"):
            assert refused(text) == (431, f"a header field has at most {LINE_BYTES_MAX} bytes")

    def test_a_large_head(self) -> None:
        field = b"X: " + b"x" * 1019 + b"\r\n"
        fields = field * ((HEAD_BYTES_MAX - len(HEAD) - 2) // len(field))
        left = HEAD_BYTES_MAX - len(HEAD) - len(fields) - 2
        fields += b"X:" + b" " * (left - 4) + b"\r\n"
        assert len(read(HEAD + fields + b"\r\n")) == 1
        for text in (HEAD + b"Y" + fields + b"\r\n", HEAD + fields + field):
            assert refused(text) == (431, f"the head of a request has at most {HEAD_BYTES_MAX} bytes")

    def test_many_fields(self) -> None:
        fields = b"X:\r\n" * (HEADERS_MAX - 1)
        assert read(HEAD + fields + b"\r\n")[0][0].fields[b"x"] == (b"",) * (HEADERS_MAX - 1)
        assert refused(HEAD + fields + b"X:\r\n\r\n") == (431, f"a request has at most {HEADERS_MAX} header fields")

    def test_what_is_known_is_bounded(self) -> None:
        """Heads that come again are not read again; large ones are not remembered."""
        http1._known.cache_clear()
        first, second = read(2 * (HEAD + b"\r\n"))
        assert first[0] is second[0]
        large = HEAD + b"X: " + b"x" * KNOWN_BYTES_MAX + b"\r\n\r\n"
        first, second = read(2 * large)
        assert first[0] is not second[0]
        assert http1._known.cache_info().currsize == 1
        assert http1._known.cache_info().maxsize == http1.HEADS_KNOWN_MAX


class TestLength:
    def test_none(self) -> None:
        """A request without a length has no body (RFC 9112, section 6.3): what follows is another one."""
        assert [body for _, body in read(2 * (HEAD + b"\r\n"))] == [b"", b""]

    @pytest.mark.parametrize(
        "field", [b"", b" ", b"+2", b"-2", b"0x2", b"2 2", b"2,2", b"2.0", b"\xb2", b"2;", b"2\r\nContent-Length: 2"]
    )
    def test_lengths_that_are_none(self, field: bytes) -> None:
        assert refused(HEAD + b"Content-Length: " + field + b"\r\n\r\n") == (400, "a Content-Length is one number")

    @pytest.mark.parametrize("field", [b"9" * 5000, b"1" + b"0" * LENGTH_DIGITS_MAX])
    def test_a_length_of_many_digits(self, field: bytes) -> None:
        assert refused(HEAD + b"Content-Length: " + field + b"\r\n\r\n")[0] == 413

    def test_the_longest(self) -> None:
        reader = Reader()
        reader.feed(HEAD + b"Content-Length: " + b"9" * LENGTH_DIGITS_MAX + b"\r\n\r\n")
        head = reader.head()
        assert head is not None
        assert head.length == 10**LENGTH_DIGITS_MAX - 1

    @pytest.mark.parametrize(
        "fields",
        [
            b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: chunked, chunked",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: identity",
            b"Transfer-Encoding: xchunked",
            b"Transfer-Encoding: chunked;x",
            b"Transfer-Encoding:",
            b"Transfer-Encoding: chunked\r\nContent-Length: 5",
            b"Content-Length: 5\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: \x0bchunked",
        ],
    )
    def test_codings_that_are_none(self, fields: bytes) -> None:
        assert refused(HEAD + fields + b"\r\n\r\n0\r\n\r\n")[0] == 400

    def test_chunks_of_http_1_0(self) -> None:
        """A proxy that speaks it does not know them (RFC 9112, section 6.1)."""
        assert refused(CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n")[0] == 400


class TestChunks:
    @pytest.mark.parametrize(
        ("chunks", "body"),
        [
            (b"0\r\n\r\n", b""),
            (b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
            (b"A\r\n0123456789\r\n0a\r\n0123456789\r\n000\r\n\r\n", b"0123456789" * 2),
            (b'1;a=b;c="\xff d"\r\nx\r\n0;e\r\n\r\n', b"x"),
            (b"2\r\n\r\n\r\n0\r\nTrailer: x\r\nOther:\r\n\r\n", b"\r\n"),
        ],
    )
    def test_a_body(self, chunks: bytes, body: bytes) -> None:
        """What stands behind it is another request."""
        requests = read(CHUNKED + chunks + b"GET / HTTP/1.1\r\n\r\n")
        assert [(head.method, body) for head, body in requests] == [(b"POST", body), (b"GET", b"")]

    @pytest.mark.parametrize(
        "chunks",
        [
            b"\r\n",
            b"x\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b" 1\r\n",
            b"1 \r\nx\r\n",
            b"1_0\r\n",
            b"1\nx\n0\n\n\r\n",
            b"1\rx\r\n",
            b"1;a\nb\r\nx\r\n",
            b"1;\x00\r\nx\r\n",
            b"1;\r\nx\r\n",
            b"1; x\r\nx\r\n",
            b"1;x=\r\nx\r\n",
            b'1;x="\r\nx\r\n',
            b"1\r\nxy\r\n",
            b"1\r\nx\n\r\n",
            b"f" * 17 + b"\r\n",
            b"0\r\nno trailer\r\n",
            b"0\r\nX : y\r\n",
            b"0\r\nX: a\r\n b\r\n",
            b"0\r\n\n\r\n",
            b"1;" + b"e" * CHUNK_LINE_BYTES_MAX + b"\r\n",
            b"1;" + b"e" * CHUNK_LINE_BYTES_MAX,
            b"0\r\nX:" + b"t" * LINE_BYTES_MAX + b"\r\n",
            b"0\r\n" + (b"X:" + b"t" * 8000 + b"\r\n") * (TRAILERS_BYTES_MAX // 8002 + 1),
        ],
    )
    def test_chunks_that_are_none(self, chunks: bytes) -> None:
        assert refused(CHUNKED + chunks) == (400, UNREADABLE)


PIPELINE = (
    b"GET /1 HTTP/1.1\r\n\r\n"
    b"POST /2 HTTP/1.1\r\nContent-Length: 5\r\n\r\nab\r\nc"
    b"\r\nPOST /3 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n1\r\nd\r\n0\r\nX: y\r\n\r\n"
    b"GET /4 HTTP/1.0\r\n\r\n"
)


@example(cuts=list(range(len(PIPELINE))))
@given(cuts=st.lists(st.integers(0, len(PIPELINE)), max_size=8).map(sorted))
def test_however_it_is_cut(cuts: list[int]) -> None:
    """Requests are what they are, in whatever pieces they come; nothing behind one is looked at before it is asked
    for."""
    reader = Reader()
    found: list[tuple[bytes, bytes]] = []
    coming: tuple[bytes, list[bytes]] | None = None
    for start, end in zip([0, *cuts], [*cuts, len(PIPELINE)], strict=True):
        reader.feed(PIPELINE[start:end])
        while True:
            if coming is None:
                head = reader.head()
                if head is None:
                    break
                coming = (head.target, [])
            piece = reader.piece()
            if piece is None:
                break
            coming[1].append(piece)
            if not piece:
                found.append((coming[0], b"".join(coming[1])))
                coming = None
    assert found == [(b"/1", b""), (b"/2", b"ab\r\nc"), (b"/3", b"abcd"), (b"/4", b"")]
    assert reader.unread == 0


@pytest.mark.parametrize(
    "text", [HEAD + b"\r\n", HEAD + b"Content-Length: 2\r\n\r\nab", CHUNKED + b"2\r\nab\r\n0\r\nX: y\r\n\r\n"]
)
def test_nothing_is_kept_of_what_was_read(text: bytes) -> None:
    """However much came at once."""
    reader = Reader()
    reader.feed(text)
    assert reader.head() is not None
    while reader.piece():
        pass
    assert reader._data == b""


@given(st.binary(max_size=200))
def test_nonsense(text: bytes) -> None:
    """Is refused with a reason, waited for, or, hardly ever, a request."""
    try:
        read(text)
    except MeshError as error:
        assert error.code in (400, 413, 414, 431)
