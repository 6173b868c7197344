"""What both clients share, by itself."""

import json
import os
from pathlib import Path

import pytest

from meshproto.client import BadCursor, Conflict, Message, Problem
from meshproto.client.asking import RESULT_BYTES_MAX, Lines
from meshproto.client.cursor import FILE_BYTES_MAX, Cursor, CursorFile
from meshproto.client.errors import Unreachable, problem
from meshproto.client.following import Following
from meshproto.client.http1 import HEAD_BYTES_MAX, BadAnswer, ResponseReader
from meshproto.client.results import Draft, fingerprint
from meshproto.client.retrying import JITTER, Patience
from meshproto.client.settings import BadSetting, settings
from meshproto.client.steps import answer_id
from meshproto.client.under_way import AHEAD_BYTES, LINE_BYTES_MAX, IteratedDrafts
from meshproto.core import identity
from meshproto.core.identity import unb64
from meshproto.net.asked import SEND_BYTES_MAX
from meshproto.wire import ID_CHARS_MAX

KEY = "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"


def test_the_fingerprint_is_the_cores() -> None:
    assert fingerprint(KEY) == identity.fingerprint(unb64(KEY)) == "kzdvvj2umnduyauf"


def test_the_limit_of_a_line_is_the_nodes() -> None:
    """A line that the node would take is never cut."""
    assert LINE_BYTES_MAX == SEND_BYTES_MAX


def message(message_id: str, key: str = KEY) -> Message:
    return Message(1, message_id, "UserX", key, "", None, 0, 0, {})


def test_the_id_of_an_answer() -> None:
    """One for each message, sender and part; always the same; short enough whatever the message's id is."""
    ids = [
        answer_id(message("a")),
        answer_id(message("b")),
        answer_id(message("a", "other")),
        answer_id(message("a"), "2"),
        answer_id(message("x" * ID_CHARS_MAX)),
    ]
    assert len(set(ids)) == len(ids)
    assert answer_id(message("a")) == ids[0]
    assert max(map(len, ids)) <= ID_CHARS_MAX


def test_patience() -> None:
    """Each pause is twice the last, up to the longest, give or take; a sign of life begins anew; in the end the error
    is raised."""
    now = 0.0
    error = Unreachable("url", "reason")
    patience = Patience(lambda: now, first_s=1, max_s=3, give_up_s=10, chance=None)
    assert [patience.lost(error) for _ in range(4)] == [1, 2, 3, 3]
    patience.back()
    assert patience.lost(error) == 1
    now = 9.9
    assert patience.lost(error) == 2
    now = 10
    with pytest.raises(Unreachable):
        patience.lost(error)
    for chance in (0.0, 1.0):
        jittered = Patience(lambda: now, first_s=1, max_s=3, chance=lambda chance=chance: chance)  # type: ignore[misc]
        assert jittered.lost(error) == 1 - JITTER + 2 * JITTER * chance


def test_a_kind_for_every_status() -> None:
    """What has none of its own is a Problem; a conflict that is new to the client is one."""
    assert type(problem(418, "teapot", "")) is Problem
    assert type(problem(409, "something new", "")) is Conflict


def test_drafts_are_bounded_by_their_bytes() -> None:
    """However long they are: no more are taken than may be under way."""
    lines = IteratedDrafts((Draft("UserX", "x" * 300_000) for _ in range(100)), lambda: "id")
    size = sum(len(piece) for piece in iter(lines.next_bytes, b""))
    assert size <= AHEAD_BYTES + LINE_BYTES_MAX
    assert not lines.ended


def test_a_result_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is not read."""
    lines = Lines("url")
    with pytest.raises(Unreachable, match="longer than"):
        for _ in range(3):
            list(lines.feed(b"x" * (RESULT_BYTES_MAX // 2)))


class TestCursorFile:
    def test_it_is_what_was_written(self, tmp_path: Path) -> None:
        """Also with a name that is relative."""
        file = CursorFile(tmp_path / "cursor")
        assert file.read() is None
        file.write(Cursor("node", 7))
        file.write(Cursor("node", 8))
        assert file.read() == Cursor("node", 8)
        assert os.listdir(tmp_path) == ["cursor"]  # noqa: PTH208

    def test_it_is_on_the_disk_before_the_old_one_goes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A disk that refuses leaves the old one, and nothing else."""
        file = CursorFile(tmp_path / "cursor")
        file.write(Cursor("node", 7))
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            file.write(Cursor("node", 8))
        assert file.read() == Cursor("node", 7)
        assert [one.name for one in tmp_path.iterdir()] == ["cursor"]

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            json.dumps({"node": "x"}).encode(),
            b"[" * FILE_BYTES_MAX,
            b"[]",
            b"\xff\xfe\x00",
            b'{"node": "x", "after": -1}',
            b'{"node": "x", "after": true}',
            b'{"node": "x", "after": ' + b"9" * 5000 + b"}",
            b'{"node": "x", "after": 1}'.ljust(FILE_BYTES_MAX + 1) + b"}",
        ],
    )
    def test_what_is_none(self, tmp_path: Path, content: bytes) -> None:
        """Half a file, or somebody else's, is not taken for the beginning of the inbox."""
        (tmp_path / "cursor").write_bytes(content)
        with pytest.raises(BadCursor, match="remove it to begin anew"):
            CursorFile(tmp_path / "cursor").read()

    def test_a_file_without_end(self) -> None:
        """Is not read to it."""
        with pytest.raises(BadCursor):
            CursorFile("/dev/zero").read()

    def test_nobodys_link_is_followed(self, tmp_path: Path) -> None:
        """In a directory where others can write, too; and what one left that was killed is in nobody's way."""
        other = tmp_path / "other"
        other.write_text("mine")
        (tmp_path / f"cursor.{os.getpid()}").symlink_to(other)
        CursorFile(tmp_path / "cursor").write(Cursor("node", 7))
        assert other.read_text() == "mine"
        assert CursorFile(tmp_path / "cursor").read() == Cursor("node", 7)


class TestFollowing:
    """By what a node tells that repeats itself, or is none."""

    @pytest.fixture
    def following(self) -> Following:
        return Following("url", "message", Patience(lambda: 0.0, first_s=1, max_s=8, chance=None), after=5)

    def event(self, cursor: object) -> dict[str, object]:
        told = {"cursor": cursor, "id": "x", "from": {"name": "Bobby", "key": KEY}, "message": 1}
        return {"event": "message", **told, "sent_at": 1, "received_at": 1}

    def test_none_comes_twice(self, following: Following) -> None:
        """Cursors may be left out; one that was there, or lies before, is no news."""
        heard = [following.heard(self.event(cursor)) for cursor in (5, 6, 6, 9, 7, 10)]
        assert heard == [False, True, False, True, False, True]
        assert following.after == 10

    @pytest.mark.parametrize(
        "event",
        [
            {},
            {"event": "message"},
            {"event": "message", "cursor": 6},
            {"event": "message", "cursor": "x", "id": 1, "from": {}},
            {"event": "message", "cursor": 6, "id": "x", "from": None, "message": 1, "sent_at": 1, "received_at": 1},
            {"event": "end"},
            {"event": "end", "status": [], "title": "", "detail": ""},
        ],
    )
    def test_what_does_not_read(self, following: Following, event: dict[str, object]) -> None:
        """Is not passed over: the next stream begins with it, after ever longer pauses."""
        following.heard({"event": "alive"})
        pauses = []
        for _ in range(3):
            with pytest.raises(Unreachable, match="not a user node's") as error:
                following.heard(event)
            pauses.append(following.lost(error.value)[0])
        assert following.after == 5
        assert pauses == [1, 2, 4]


@pytest.mark.parametrize("token", ["a\r\nX-Other: 1", "ü", "a\0"])
def test_a_token_is_one_line(token: str) -> None:
    """Else it would say more than a header does."""
    with pytest.raises(BadSetting):
        settings("http://127.0.0.1:1", token, None, None)


class TestResponseReader:
    def test_what_comes_behind_is_not_kept(self) -> None:
        """Fields behind a body have no bound, and another answer is not a part of this one."""
        reader = ResponseReader()
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert reader.feed(head + b"2\r\nhi\r\n0\r\n") == b"hi"
        for number in range(100):
            reader.feed(b"X-%d: %s\r\n" % (number, b"x" * 1000))
        assert reader._heard.fields.keys() == ["Transfer-Encoding"]
        assert reader.feed(b"\r\n" + self.ANSWER) == b""
        assert reader.is_complete and reader.head is not None and reader.head.status == 200

    ANSWER = b"HTTP/1.1 429 Slow\r\nContent-Type: a/b; c=d\r\nRetry-After: 7\r\nContent-Length: 5\r\n\r\nhello"

    @pytest.mark.parametrize("size", [1, 2, 7, 1000])
    def test_in_whatever_pieces(self, size: int) -> None:
        """The head, then the body, then its end."""
        reader = ResponseReader()
        body = b"".join(reader.feed(self.ANSWER[at : at + size]) for at in range(0, len(self.ANSWER), size))
        assert (body, reader.is_complete, tuple(reader.head or ())) == (b"hello", True, (429, "Slow", "a/b", "7"))

    def test_one_that_ends_with_its_connection(self) -> None:
        """Is whole, unless it said how long it would be."""
        reader = ResponseReader()
        assert reader.feed(b"HTTP/1.1 200 OK\r\n\r\nhello") == b"hello"
        reader.end()
        for text in (b"", b"HTTP/1.1 200 OK\r\n", self.ANSWER[:-1]):
            reader = ResponseReader()
            if text:
                reader.feed(text)
            with pytest.raises(BadAnswer, match=r"half-way|hung up"):
                reader.end()

    def test_what_is_no_http(self) -> None:
        for text in (b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEAD_BYTES_MAX):
            with pytest.raises(BadAnswer, match=r"not HTTP|longer than"):
                ResponseReader().feed(text)
