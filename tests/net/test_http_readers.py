"""Whatever is taken for a request here is taken for the same one by others: by Twisted's parser and by llhttp, which
most servers and proxies are made of. So nobody who stands between sees another request than we do, and nothing is taken
that Twisted's strict parser refuses."""

import re
from contextlib import suppress
from io import BytesIO
from itertools import takewhile
from typing import Any

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.testing import StringTransport
from twisted.web.http import HTTPChannel, Request

from meshproto.core.http1 import Reader
from meshproto.errors import MeshError

NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
"""Stands behind each request: who reads too much or too little of that does not see it."""

TAB_AT_THE_END = re.compile(rb"\t[ \t]*\r\n")
"""Of a field's value, where it is a blank like another (RFC 9110, section 5.6.3); llhttp refuses it in some fields."""

Asked = tuple[bytes, bytes, bytes]
"""Method, target and body."""


def ours(text: bytes) -> list[Asked]:
    """Raises :class:`MeshError`."""
    reader, found = Reader(), []
    reader.feed(text)
    while (head := reader.head()) is not None:
        body = b""
        while piece := reader.piece():
            body += piece
        if piece is None:
            break
        found.append((head.method, head.target, body))
        if not head.keeps_open:
            break
    return found


def twisteds(text: bytes) -> list[Asked]:
    """What it takes before it refuses something."""
    found: list[Asked] = []

    class Noted(Request):
        def gotLength(self, length: int | None) -> None:
            self.content = BytesIO()  # of a body in chunks it would be a file, which a request cut short leaves open

        def process(self) -> None:
            assert self.content is not None
            found.append((self.method, self.uri, self.content.read()))
            self.finish()

    channel: Any = HTTPChannel()
    channel.requestFactory = Noted
    channel.timeOut = None
    transport = StringTransport()
    channel.makeConnection(transport)
    channel.dataReceived(text)
    return found


def llhttps(text: bytes) -> list[Asked]:
    """Likewise."""
    found: list[Asked] = []

    class Noted:
        def on_message_begin(self) -> None:
            self.target = self.body = b""

        def on_url(self, url: bytes) -> None:
            self.target += url

        def on_body(self, body: bytes) -> None:
            self.body += body

        def on_message_complete(self) -> None:
            found.append((parser.get_method(), self.target, self.body))

    parser = httptools.HttpRequestParser(Noted())
    with suppress(httptools.HttpParserError):
        parser.feed_data(text)
    return found


def agree(text: bytes) -> None:
    try:
        seen = ours(text)
    except MeshError:
        return
    theirs = twisteds(text)
    if b"connection" in text.lower():
        # Whether another request may follow is what Twisted reads out of that in a way of its own: of the first of
        # several fields, cut at blanks. What a request is does not depend on it.
        both = max(1, min(len(seen), len(theirs)))
        assert theirs[:both] == seen[:both], text
    else:
        assert theirs == seen, text
    if not TAB_AT_THE_END.search(text):
        known = list(takewhile(lambda asked: asked[0] in LLHTTP_KNOWS, seen))
        assert llhttps(text)[: len(known)] == known, text


LLHTTP_KNOWS = [b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH"]
METHODS = st.sampled_from([*LLHTTP_KNOWS, b"ODD"])
TARGETS = st.sampled_from([b"/", b"/a?b=c", b"/%00", b"//", b"*", b"http://a/", b"/a#b", b"/a\x00", b"/\xff", b"x"])
VERSIONS = st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b""])
NAMES = st.sampled_from([b"Host", b"X", b"Content-Length", b"Transfer-Encoding", b"transfer-encoding", b"Connection"])
LENGTHS = [b"", b"0", b"1", b"3", b"5", b"05", b"+3", b"3, 3", b"3 3", b"0x3"]
CODINGS = [b"chunked", b"Chunked", b"gzip, chunked", b"chunked, identity", b"\x0bchunked", b"identity"]
OTHERS = [b"a", b"close", b"keep-alive", b"a\x00", b"a\x7f", b"a\rb", b"a\nb", b"\xff", b"a\tb"]
VALUES = st.sampled_from([*LENGTHS, *CODINGS, *OTHERS])
COLONS = st.sampled_from([b": "] * 8 + [b":", b" :", b":\t", b": \t ", b"\t:", b"", b": \r\n ", b"\r\n:"])
ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n ", b" \r\n", b"\r\n\r\n"])
SIZES = st.sampled_from([b"0", b"1", b"3", b"03", b"A", b"a", b"3 ", b" 3", b"3;x", b"3;x=y", b"0x3", b"-1", b"", b"g"])
DATA = st.sampled_from([b"abc", b"a", b"", b"0\r\n\r\n", b"\r\n", b"0123456789", NEXT])

lines = st.tuples(NAMES, COLONS, VALUES, ENDS).map(b"".join)
chunks = st.tuples(SIZES, ENDS, DATA, ENDS).map(b"".join)
requests = st.tuples(
    METHODS,
    st.just(b" "),
    TARGETS,
    st.just(b" "),
    VERSIONS,
    ENDS,
    st.lists(lines, max_size=4).map(b"".join),
    ENDS,
    st.one_of(DATA, st.lists(chunks, max_size=4).map(b"".join)),
    st.sampled_from([b"", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\n\n", b"0\r\n"]),
    st.just(NEXT),
).map(b"".join)


@example(b"\r\n" + NEXT)
@example(b"POST / HTTP/1.1\r\nContent-Length: 3\r\nConnection: \r\nConnection: close\r\n\r\nabc" + NEXT)
@example(b"POST / HTTP/1.1\r\nContent-Length: 3\r\nConnection: 0 close\r\n\r\nabc" + NEXT)
@example(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\t\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + NEXT)
@example(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nX: y\r\n\r\n" + NEXT)
@given(requests)
def test_what_is_taken_is_taken_by_all_and_is_the_same(text: bytes) -> None:
    agree(text)


LIKELY = st.tuples(
    st.just(b"POST / HTTP/1.1\r\n"),
    st.sampled_from([b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b""]),
    st.lists(lines, max_size=2).map(b"".join),
    st.just(b"\r\n"),
    st.sampled_from([b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"", b"1;x\r\na\r\n0\r\nX: y\r\n\r\n"]),
    st.just(NEXT),
).map(b"".join)


@given(LIKELY, st.data())
def test_a_byte_amiss(text: bytes, data: st.DataObject) -> None:
    """Likewise of requests that were right before one byte of them was changed, taken away or put in."""
    at = data.draw(st.integers(0, len(text) - 1))
    put = data.draw(st.sampled_from([b"", b"\r", b"\n", b" ", b"\t", b"\x00", b":", b"0", b"a", b"\xff", b";"]))
    agree(text[:at] + put + text[at + data.draw(st.integers(0, 1)) :])


@pytest.mark.parametrize("reader", [ours, twisteds, llhttps])
def test_the_readers_read(reader: Any) -> None:
    """Else they would agree too."""
    text = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + NEXT
    assert reader(text) == [(b"POST", b"/a", b"abc"), (b"GET", b"/next", b"")]
    assert reader(b"PUT /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nab" + NEXT)[0] == (b"PUT", b"/a", b"ab")
