"""Where a client finds its node: as it is told, else as the command `mesh` is, by the environment."""

import os
from dataclasses import dataclass
from pathlib import Path

from meshproto.client.asking import NODE_PORT, Place

DEFAULT_NODE = f"http://127.0.0.1:{NODE_PORT}"
NODE_VARIABLE = "MESH_NODE"
TOKEN_FILE_VARIABLE = "MESH_TOKEN_FILE"  # noqa: S105 -- the name of a variable
CA_VARIABLE = "MESH_CA"
TOKEN_BYTES_MAX = 4096  # a token is some dozens of bytes; a longer file is some other file

PathLike = str | os.PathLike[str]


class BadSetting(Exception):
    """A file that was given and cannot be used: what is wrong with it."""


@dataclass(frozen=True)
class Settings:
    """`ca`: a file with certificates (PEM) of those who are trusted with https, in place of the system's."""

    place: Place
    token: str | None
    ca: Path | None


def settings(url: str | None, token: str | None, token_file: PathLike | None, ca: PathLike | None) -> Settings:
    """Raises :class:`BadSetting`, and ValueError for what is no address."""
    token_file = token_file or os.environ.get(TOKEN_FILE_VARIABLE) or None
    ca = ca or os.environ.get(CA_VARIABLE) or None
    if token is None and token_file is not None:
        token = read_token(Path(token_file))
    if token is not None and not (token.isascii() and token.isprintable()):
        raise BadSetting("a token is one line of ASCII")
    place = Place(url or os.environ.get(NODE_VARIABLE) or DEFAULT_NODE)
    return Settings(place, token, None if ca is None else Path(ca))


def read_token(path: Path) -> str:
    """Raises :class:`BadSetting`."""
    try:
        with path.open("rb") as file:
            token = file.read(TOKEN_BYTES_MAX + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadSetting(f"{path} cannot be read as a token: {reason}") from error
    if not token.isprintable() or not 0 < len(token) <= TOKEN_BYTES_MAX:
        raise BadSetting(f"{path} does not hold one line with a token.")
    return token
