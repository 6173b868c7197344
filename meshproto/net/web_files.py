"""The files of a page, as they are: read once, at the start, and served with what keeps a browser from doing more with
them than it must."""

from importlib.resources import files
from typing import Final

from twisted.web.iweb import IRequest

from meshproto.errors import NotFound

HEADERS: Final = {
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
    b"cache-control": b"no-cache",
    b"content-security-policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}
"""A page needs its own files and the node's routes, and pictures that it was given by these; nothing else, and from
nowhere else."""
_TYPES: Final = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}


class WebFiles:
    """Those of `meshproto/web/FOLDER`."""

    def __init__(self, folder: str) -> None:
        self._files = {file.name: file.read_bytes() for file in (files("meshproto") / "web" / folder).iterdir()}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    def answer(self, request: IRequest, name: str) -> bytes:
        """Raises :class:`NotFound`."""
        if name not in self._files:
            raise NotFound(f"the page has no file {name[:100]!r}")
        for field, value in HEADERS.items():
            request.setHeader(field, value)
        request.setHeader(b"content-type", _TYPES[name.rpartition(".")[2]])
        return self._files[name]
