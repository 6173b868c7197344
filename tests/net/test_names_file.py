"""A list of names in a file: read at the start, and again when it changes."""

import os
from pathlib import Path

import pytest
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from meshproto.errors import BadState
from meshproto.net import names_file
from meshproto.net.names_file import LOOK_S, NamesFile
from tests.core.users import user

KEY = user(1).key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "friends"
    path.write_text("Ada\n")
    return path


def replace(path: Path, text: str) -> None:
    """As an editor does: a new file in its place."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def test_a_change_counts_within_a_second(path: Path) -> None:
    """Between two looks the file is left alone."""
    clock = Clock()
    names = NamesFile(path, clock)
    replace(path, "Bob\n")
    assert names.allow("Ada", KEY)
    clock.advance(LOOK_S)
    assert not names.allow("Ada", KEY)
    assert names.allow("Bob", KEY)


def test_the_same_time_and_size_are_not_the_same_file(path: Path) -> None:
    """A file put in the place of another is seen, though its time is the other's and its size too."""
    clock = Clock()
    names = NamesFile(path, clock)
    before = path.stat()
    replace(path, "Bob\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    clock.advance(LOOK_S)
    assert names.allow("Bob", KEY)


@pytest.mark.parametrize(("text", "said"), [("Ada\nno name\n", "line 2: 'no name'"), (None, "cannot be read")])
def test_a_broken_version_does_not_count(path: Path, text: str | None, said: str) -> None:
    """The list before it stays, which is said once; and the next good version counts."""
    clock = Clock()
    names = NamesFile(path, clock)
    if text is None:
        path.unlink()
    else:
        replace(path, text)
    with capturedLogs() as logged:
        for _ in range(3):
            clock.advance(LOOK_S)
            assert names.allow("Ada", KEY)
    (line,) = [formatEvent(event) or "" for event in logged]
    assert str(path) in line
    assert said in line
    replace(path, "Bob\n")
    clock.advance(LOOK_S)
    assert names.allow("Bob", KEY)


@pytest.mark.parametrize(
    ("data", "said"), [(b"Ada\n\nno name", "line 3"), (b"\xff", "not UTF-8"), (b"#" * 101, "at most 100 bytes")]
)
def test_a_file_that_does_not_read_at_first(
    path: Path, data: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_file, "FILE_BYTES_MAX", 100)
    path.write_bytes(data)
    with pytest.raises(BadState, match=said):
        NamesFile(path, Clock())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadState, match="nobody cannot be read: No such file"):
        NamesFile(tmp_path / "nobody", Clock())
