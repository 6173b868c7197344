"""A configuration file: TOML with the names of the command line's options, one setting a line and no tables.

    name = "UserX"
    port = 3000
    seed = ["seed1.example:5001", "seed2.example:5001"]

What is in it becomes what would have been typed, and is checked as that is. A relative path is relative to the file's
folder, wherever the program is started: a file and what it names move together.
"""

import difflib
import re
import shlex
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from meshproto.errors import BadParams

FILE_BYTES_MAX: Final = 1024 * 1024
"""A thousand addresses, each with a remark, have room in a tenth of it. A larger file is another one."""
SHOWN_CHARS_MAX: Final = 24
"""Of a value that is wrong: fewer than any key has that somebody has written here instead of into a file of its own."""
NAME_CHARS_MAX: Final = 40
NUMBER_BITS_MAX: Final = 64
"""Written in hexadecimal a number may be of any size, and is then none that Python would show."""

_CALLED: Final[dict[type, str]] = {
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
_ENDPOINT_FILE: Final = re.compile(r"\b((?:privateKey|certKey|extraCertChain)=)(?!/)")
_UNIX_SOCKET: Final = re.compile(r"^(unix:(?:address=)?)(?!/)", re.IGNORECASE)
_OWN_FOLDER: Final = re.compile(r"^(?=\.{1,2}/)")

Resolve = Callable[[str, Path], str]
"""The text of a setting with its paths made whole, from the folder of the file."""


class Kind(NamedTuple):
    """What may stand behind an option's name. `called`: in words for who has written something else."""

    types: tuple[type, ...]
    called: str
    resolve: Resolve = lambda text, _: text


def _path(text: str, folder: Path) -> str:
    return str(folder / text)


def _endpoint(text: str, folder: Path) -> str:
    """A Twisted endpoint string, in which `:` and a backslash are quoted by one."""
    quoted = re.sub(r"([\\:])", r"\\\1", f"{folder}/")
    for relative in (_ENDPOINT_FILE, _UNIX_SOCKET):
        text = relative.sub(lambda found: found[1] + quoted, text)
    return text


def _command(text: str, folder: Path) -> str:
    return _OWN_FOLDER.sub(lambda _: shlex.quote(f"{folder}/"), text)


def path_or(*words: str) -> Kind:
    """A file, unless it is one of these words."""
    return Kind((str,), "text", lambda text, folder: text if text in words else _path(text, folder))


TEXT: Final = Kind((str,), 'text, such as "UserX"')
NUMBER: Final = Kind((int, float), "a number, such as 3000")
SWITCH: Final = Kind((bool,), "true or false")
TEXTS: Final = Kind((list,), 'a list of texts, such as ["seed1.example:5001"]')
PATH: Final = Kind((str,), "a path, in quotes", _path)
ENDPOINT: Final = Kind((str,), 'a Twisted server endpoint, such as "tcp:3000"', _endpoint)
COMMAND: Final = Kind((str,), "a command line, in quotes", _command)

Setting = str | list[str]


def parse(text: bytes, kinds: Mapping[str, Kind], folder: Path) -> dict[str, Setting]:
    """The settings, by option, each as it would have been typed. Raises :class:`BadParams`, which names the line and
    the option."""
    if len(text) > FILE_BYTES_MAX:
        raise BadParams(f"it is too large for a configuration: at most {FILE_BYTES_MAX} bytes")
    try:
        written = text.decode("utf-8-sig")
        document = tomllib.loads(written)
    except UnicodeDecodeError as reason:
        raise BadParams(f"it is not UTF-8: {reason.reason} at byte {reason.start}") from None
    except (ValueError, RecursionError) as reason:  # of TOML itself, or what Python has no number or no stack for
        raise BadParams(f"it is no TOML: {reason}") from None
    settings = {}
    for option, value in document.items():
        try:
            settings[option] = _setting(option, value, kinds, folder)
        except BadParams as wrong:
            raise BadParams(place(written, option) + wrong.detail) from None
    return settings


def place(text: str, option: str) -> str:
    """`line 3: port:` and a space; without the line where it is not found, which it is if it was written as anybody
    would."""
    begins = re.compile(rf"\s*\[?\s*[\"']?{re.escape(option)}[\"']?\s*[=.\]]")
    line = next((number for number, line in enumerate(text.splitlines(), 1) if begins.match(line)), None)
    plain = re.fullmatch(rf"[\w-]{{1,{NAME_CHARS_MAX}}}", option)
    name = option if plain else repr(option[:NAME_CHARS_MAX])
    return f"{name}: " if line is None else f"line {line}: {name}: "


def _setting(option: str, value: Any, kinds: Mapping[str, Kind], folder: Path) -> Setting:
    kind = kinds.get(option)
    if kind is None:
        raise BadParams(f"there is no such setting{near(option, kinds)}")
    if type(value) not in kind.types or (type(value) is list and any(type(one) is not str for one in value)):
        raise BadParams(f"it is {kind.called}, not {_CALLED.get(type(value), 'a date or a time')}{_shown(value)}")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if _is_huge(value):
        raise BadParams("it is too large a number")
    if any("\0" in text for text in (value if isinstance(value, list) else (str(value),))):
        raise BadParams("there is a character NUL in it, which no file's name and no address has")
    return value if isinstance(value, list) else kind.resolve(str(value), folder)


def _is_huge(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > NUMBER_BITS_MAX


def near(option: str, known: Collection[str]) -> str:
    """`: did you mean port?`, or nothing when no other is near."""
    found = difflib.get_close_matches(option[:NAME_CHARS_MAX].lower().replace("_", "-"), known, n=1)
    return f": did you mean {found[0]}?" if found else f"; there are {', '.join(sorted(known))}"


def _shown(value: Any) -> str:
    text = "" if isinstance(value, dict) or _is_huge(value) else repr(value)
    return f" ({text})" if 0 < len(text) <= SHOWN_CHARS_MAX else ""
