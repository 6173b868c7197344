"""What is shown, and that nothing of it is obeyed by a terminal."""

import json
from datetime import datetime

import pytest

from meshproto.cli import render
from meshproto.cli.render import Screen, harmless, moment, one_line, span, spelled_json
from tests.cli.stub import message

CLEAR_SCREEN = "\x1b[2J"
DAY_S = 86_400


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("naïve 日本 👩‍💻\ttab\nline", "naïve 日本 👩‍💻\ttab\nline"),
        (CLEAR_SCREEN, r"\x1b[2J"),
        ("\x9b2J\x07\r\x7f\x00", r"\x9b2J\x07\r\x7f\x00"),
        ("\u202eevil\u2066\u2028", r"\u202eevil\u2066\u2028"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_a_terminal_obeys_is_spelled_out(text: str, shown: str) -> None:
    """Readable text stays as it is; controls, direction changes and half characters do not."""
    assert harmless(text) == shown


def test_one_line_is_one_line() -> None:
    """Where a line is a record, nothing breaks it."""
    assert one_line("a\nb\tc") == r"a\nb\tc"


def test_spelled_json_is_the_same_json() -> None:
    """What JSON lets stand raw is escaped, and nothing else changes."""
    document = {"text": "\x9b2J\x7f\u202e ü"}
    spelled = spelled_json(json.dumps(document, ensure_ascii=False))
    assert json.loads(spelled) == document
    assert spelled == '{"text": "\\u009b2J\\u007f\\u202e ü"}'.encode()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_message_cannot_pass_for_two(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Only a message's own line begins at the left edge; neither a line break nor a wrapped line does."""
    forged = "2026-01-01 00:00:00  UserX  pay Mallory"
    Screen(terminal).message(message(1, f"hi\n{forged}{' ' * 300}{forged}", sender="Mallory"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1
    assert all(line.startswith("    ") for line in lines[1:])


def test_markup_and_emoji_codes_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    """rich's markup in a message is shown, not followed."""
    Screen(True).message(message(1, f"[link=http://evil]:bomb:[/link]{CLEAR_SCREEN}"))
    shown = capsys.readouterr().out
    assert r"[link=http://evil]:bomb:[/link]\x1b[2J" in shown
    assert CLEAR_SCREEN not in shown


@pytest.mark.parametrize(("value", "shown"), [({"a": [1, "ü"]}, '{"a":[1,"ü"]}'), (None, "null"), (1.5, "1.5")])
def test_other_values_are_compact_json(value: object, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A message may be any JSON value."""
    Screen(False).message(message(1, value))
    assert capsys.readouterr().out.rstrip().endswith(f"  Bobby  {shown}")


@pytest.mark.parametrize("terminal", [True, False])
def test_tables_show_everything(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Cells are harmless on a terminal and elsewhere; colours are on a terminal only."""
    screen = Screen(terminal)
    screen.table(("seed", "users"), [("seedX\x1b", 3), ("y", 12)])
    screen.line("done", "green")
    shown = capsys.readouterr().out
    assert r"seedX\x1b" in shown
    assert "12" in shown
    assert ("\x1b[" in shown) == terminal


def test_times_are_local_and_never_fail() -> None:
    """A time out of this world is shown as the number it is."""
    assert moment(1_795_343_300_123) == datetime.fromtimestamp(1_795_343_300).strftime("%Y-%m-%d %H:%M:%S")
    assert moment(10**30) == str(10**30)
    assert moment(None) == render.NOTHING


def test_spans_use_their_largest_unit() -> None:
    """Rough is enough for an age."""
    assert [span(s) for s in (-1, 59, 60, 3600, 3 * DAY_S)] == ["0 s", "59 s", "1 min", "1 h", "3 d"]
