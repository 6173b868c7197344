"""The documents as a site: it is built without a warning, and every link in it leads somewhere."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.docs_support import DOCUMENTS, ROOT

BUILD_S = 300.0


class Page(HTMLParser):
    """The links of a page, and what can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        self.links += [given[key] for key in ("href", "src") if given.get(key)]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    to = tmp_path_factory.mktemp("site")
    made = subprocess.run(
        [sys.executable, "-m", "docs.site", "--to", str(to)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    assert (made.returncode, made.stderr) == (0, "")
    yield to / "html"


@pytest.fixture(scope="module")
def pages(html: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(html.rglob("*.html"))}


def test_every_link_leads_somewhere(pages: dict[Path, Page]) -> None:
    """To a page or a file of the site, and to a place in it where it names one. Nothing is loaded from elsewhere."""
    for path, page in pages.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"\w+:|//", target):
                continue
            file = (path.parent / unquote(target.partition("?")[0])).resolve() if target else path
            assert file.is_file(), f"{path.name}: {link}"
            if anchor and file in pages:
                assert unquote(anchor) in pages[file].anchors, f"{path.name}: {link}"


def test_every_document_is_there(html: Path, pages: dict[Path, Page]) -> None:
    """And so is the reference of what others build on; each is reached from the front page's contents."""
    for document in DOCUMENTS:
        place = document.relative_to(ROOT).with_suffix(".html")
        where = html / ("index.html" if place.as_posix() == "docs/index.html" else place)
        assert where in pages, document.name
        assert where == html / "index.html" or str(where.relative_to(html)) in pages[html / "index.html"].links
    wire = (html / "reference" / "wire.html").read_text(encoding="utf-8")
    assert "meshproto.wire.decode_request" in wire


def test_nothing_is_loaded_from_elsewhere(html: Path) -> None:
    """Scripts, styles and pictures come with the site: it works where there is no network."""
    for path in html.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="([^"]+)"', path.read_text("utf-8")
        )
        assert not [link for link in loaded if re.match(r"\w+:|//", link)], path.name
