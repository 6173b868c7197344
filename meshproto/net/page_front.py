"""The page of a user node: its files, which are nobody's secret. What it shows it asks for by the owner's routes, and
so it is served wherever those are, and without the token: the page is what asks for that."""

from typing import Final

from klein import Klein
from twisted.web.iweb import IRequest

from meshproto.net.http import answer_errors
from meshproto.net.web_files import WebFiles

PAGE: Final = b"/"
FILES: Final = b"/page/"


def is_page(path: bytes) -> bool:
    return path == PAGE or path.startswith(FILES)


class PageFront:
    app = Klein()

    def __init__(self) -> None:
        self._files = WebFiles("user")

    @app.route(PAGE.decode(), methods=["GET"])
    def page(self, request: IRequest) -> bytes:
        return self._files.answer(request, "index.html")

    @app.route(f"{FILES.decode()}<name>", methods=["GET"])
    def file(self, request: IRequest, name: str) -> bytes:
        return self._files.answer(request, name)


answer_errors(PageFront.app)
