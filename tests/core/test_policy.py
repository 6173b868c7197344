"""Lists of names: what a line means, and what is said of one that means nothing."""

import pytest

from meshproto.core import policy
from meshproto.core.identity import FINGERPRINT_CHARS
from meshproto.core.policy import Names
from meshproto.errors import BadParams
from tests.core.users import user

ADA, BOB = user(1), user(2)


def test_a_name_alone_is_any_key() -> None:
    """Case does not count, nor do blank lines, space, and what comes after #."""
    names = Names.parse("# friends\n\n  Ada  # from work\r\nBOB#\n")
    assert names.allow("ada", ADA.key)
    assert names.allow("ADA", BOB.key)
    assert names.allow("Bob", BOB.key)
    assert not names.allow("friends", BOB.key)


def test_a_fingerprint_is_one_key() -> None:
    """With a fingerprint behind it the name stands for that key alone; several lines for several keys; a line without
    one for all, wherever it stands."""
    one = f"Ada~{ADA.fingerprint.upper()}"
    names = Names.parse(one)
    assert names.allow("Ada", ADA.key)
    assert not names.allow("Ada", BOB.key)
    assert not names.allow("Bob", ADA.key)
    assert Names.parse(f"{one}\nada~{BOB.fingerprint}").allow("Ada", BOB.key)
    assert Names.parse(f"{one}\nAda").allow("Ada", BOB.key)
    assert Names.parse(f"Ada\n{one}").allow("Ada", BOB.key)


def test_an_empty_list_is_nobody() -> None:
    assert not Names.parse("# nobody yet\n").allow("Ada", ADA.key)


@pytest.mark.parametrize(
    "line", ["Ada Bob", "Ada~", "~" + "a" * FINGERPRINT_CHARS, "Ada~1234567890123456", "x" * 65, "Ad\xe4", "Ada\x00"]
)
def test_a_line_that_is_neither_is_named(line: str) -> None:
    """The error says which line, and what it should be."""
    with pytest.raises(BadParams, match=r"line 3: .*NAME~FINGERPRINT"):
        Names.parse(f"# a list\nBob\n{line}\n")


def test_a_list_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of as many names as may be is taken; one name more is refused."""
    monkeypatch.setattr(policy, "NAMES_MAX", 3)
    assert Names.parse("a\nb\nc\nA").allow("c", ADA.key)
    with pytest.raises(BadParams, match="line 4: a list has at most 3 names"):
        Names.parse("a\nb\nc\nd")
