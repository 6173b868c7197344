"""A configuration file: what stands in it becomes what would have been typed; every mistake is told with its place."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproto.core import configuration
from meshproto.core.configuration import (
    COMMAND,
    ENDPOINT,
    FILE_BYTES_MAX,
    NUMBER,
    PATH,
    SWITCH,
    TEXT,
    TEXTS,
    parse,
    path_or,
)
from meshproto.errors import BadParams

KINDS = {
    "name": TEXT,
    "port": NUMBER,
    "seed": TEXTS,
    "names": SWITCH,
    "ca": PATH,
    "accept": path_or("anyone", "contacts"),
    "listen": ENDPOINT,
    "deliver-exec": COMMAND,
    "keep-days": NUMBER,
}
FOLDER = Path("/etc/my mesh")


def read(text: str, folder: Path = FOLDER) -> Any:
    return parse(text.encode(), KINDS, folder)


@pytest.mark.parametrize(
    ("text", "option", "value"),
    [
        ('name = "UserX"', "name", "UserX"),
        ("port = 3000", "port", "3000"),
        ("keep-days = 0.5", "keep-days", "0.5"),
        ('seed = ["a:1", "tls:b:2"]', "seed", ["a:1", "tls:b:2"]),
        ("seed = []", "seed", []),
        ("names = true", "names", "yes"),
        ("names = false", "names", "no"),
        ('ca = "ca.pem"', "ca", "/etc/my mesh/ca.pem"),
        ('ca = "/ca.pem"', "ca", "/ca.pem"),
        ('accept = "contacts"', "accept", "contacts"),
        ('accept = "./contacts"', "accept", "/etc/my mesh/contacts"),
        ('listen = "tcp:3000"', "listen", "tcp:3000"),
        ('listen = "unix:a.sock:mode=660"', "listen", "unix:/etc/my mesh/a.sock:mode=660"),
        ('listen = "unix:/a.sock"', "listen", "unix:/a.sock"),
        (
            'listen = "ssl:1:privateKey=k:certKey=/c:extraCertChain=e"',
            "listen",
            "ssl:1:privateKey=/etc/my mesh/k:certKey=/c:extraCertChain=/etc/my mesh/e",
        ),
        ('deliver-exec = "./on-message -v"', "deliver-exec", "'/etc/my mesh/'./on-message -v"),
        ('deliver-exec = "logger -t mesh"', "deliver-exec", "logger -t mesh"),
    ],
)
def test_what_stands_there(text: str, option: str, value: Any) -> None:
    """Each kind of setting as it would have been typed, its paths from the folder of the file."""
    assert read(text) == {option: value}


def test_a_folder_with_a_colon() -> None:
    """What means something in an endpoint is quoted."""
    assert read('listen = "unix:s"', Path("/a:b\\c")) == {"listen": r"unix:/a\:b\\c/s"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\nprot = 1", "line 2: prot: there is no such setting: did you mean port?"),
        ("keep_days = 1", "line 1: keep_days: there is no such setting: did you mean keep-days?"),
        ('Name = "x"', "line 1: Name: there is no such setting: did you mean name?"),
        ("[tls]\nx = 1", "line 1: tls: there is no such setting; there are accept, ca, "),
        ('"a b" = 1', "line 1: 'a b': there is no such setting; there are"),
        ('port = "3000"', "line 1: port: it is a number, such as 3000, not text ('3000')"),
        ("port = true", "line 1: port: it is a number, such as 3000, not true or false (True)"),
        ("name = 7", 'line 1: name: it is text, such as "UserX", not a number (7)'),
        ('seed = "a:1"', "line 1: seed: it is a list of texts"),
        ('seed = ["a:1", 2]', "line 1: seed: it is a list of texts"),
        ('names = "yes"', "line 1: names: it is true or false, not text ('yes')"),
        ("names.x = 1", "line 1: names: it is true or false, not a table"),
        ("port = 2026-01-01", "line 1: port: it is a number, such as 3000, not a date or a time"),
        ("port = ", "it is no TOML: Invalid value (at end of document)"),
        ("port = " + "1" * 5000, "it is no TOML: Exceeds the limit"),
        ("port = 0x" + "f" * 5000, "line 1: port: it is too large a number"),
        ("name = 0x" + "f" * 5000, 'line 1: name: it is text, such as "UserX", not a number'),
        ("seed = " + "[" * 10_000, "it is no TOML: maximum recursion depth exceeded"),
        ('ca = "a\\u0000b"', "line 1: ca: there is a character NUL in it"),
        ('seed = ["a:1", "a\\u0000b:1"]', "line 1: seed: there is a character NUL in it"),
        ("port = 1\nport = 2", "it is no TOML: Cannot overwrite a value (at "),
    ],
)
def test_mistakes(text: str, says: str) -> None:
    """Each is told with its line and its name, what it should be, and what is near."""
    with pytest.raises(BadParams) as wrong:
        read(text)
    assert wrong.value.detail.startswith(says)
    assert "\n" not in wrong.value.detail


def test_no_text() -> None:
    """What is no UTF-8 is told where it stops being it."""
    with pytest.raises(BadParams, match="it is not UTF-8: invalid start byte at byte 2"):
        parse(b"a \xff", KINDS, FOLDER)


def test_too_large() -> None:
    """A file of FILE_BYTES_MAX bytes is read, a larger one is not."""
    assert parse(b"#" * FILE_BYTES_MAX, KINDS, FOLDER) == {}
    with pytest.raises(BadParams, match="too large for a configuration: at most 1048576 bytes"):
        parse(b"#" * (FILE_BYTES_MAX + 1), KINDS, FOLDER)


def test_a_long_value_is_not_shown() -> None:
    """Nor what is perhaps a secret in the wrong place."""
    text = "x" * configuration.SHOWN_CHARS_MAX
    with pytest.raises(BadParams) as wrong:
        read(f'port = "{text}"')
    assert text not in wrong.value.detail


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_stands_there(text: bytes) -> None:
    """A file reads, or is refused in one line."""
    try:
        parse(text, KINDS, FOLDER)
    except BadParams as wrong:
        assert "\n" not in wrong.detail
