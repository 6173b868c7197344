"""How much the log says: `meshproto.core.notes`."""

from meshproto.core.notes import NOTE_S, Notes


def test_a_line_now_and_then() -> None:
    """One for each key and NOTE_S, the next with the number of those that were left out."""
    notes = Notes()
    assert [notes.line("a", "odd", at) for at in (0.0, 1.0, NOTE_S - 0.1)] == ["odd", None, None]
    assert notes.line("b", "odd", 1.0) == "odd"
    assert notes.line("a", "odd", NOTE_S) == "odd (and 2 more since the last such line)"
    assert notes.line("a", "odd", 2 * NOTE_S) == "odd"


def test_a_few_lines() -> None:
    """Where more than one may be of use: so many within the time, then none."""
    notes = Notes(10.0, lines_max=3)
    said = [notes.line("a", str(number), number) for number in range(12)]
    assert said[:3] == ["0", "1", "2"]
    assert said[3:10] == [None] * 7
    assert said[10:] == ["10 (and 7 more since the last such line)", "11"]


def test_a_clock_that_steps_back() -> None:
    """It silences nobody until the time it showed before has come again."""
    notes = Notes()
    notes.line("a", "odd", 1000.0)
    assert notes.line("a", "odd", 0.0) == "odd"
    assert notes.line("a", "odd", 1.0) is None


def test_what_is_remembered_is_bounded() -> None:
    """Of more than keys_max the one that got a line longest ago is forgotten, however often it was left out since."""
    notes = Notes(keys_max=2)
    notes.line("a", "odd", 0.0)
    notes.line("b", "odd", 1.0)
    notes.line("a", "odd", 2.0)
    notes.line("c", "odd", 3.0)
    assert notes.line("b", "odd", 4.0) is None
    assert notes.line("a", "odd", 4.0) == "odd"
