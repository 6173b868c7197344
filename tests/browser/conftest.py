"""One browser for all of these tests, and a mesh of real processes for each module."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from meshproto.cli.processes import Children, until
from meshproto.client.node import Node
from tests.browser.page import MISSING, WIDE, Page, chrome

Start = Callable[..., Node]
Open = Callable[..., Page]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    if MISSING:
        pytest.skip(f"no {' and no '.join(MISSING)} on this machine")
    with chrome(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In which each node has its state, by its name."""
    return tmp_path_factory.mktemp("mesh")


@pytest.fixture(scope="module")
def children(directory: Path) -> Iterator[Children]:
    with Children(directory) as started:
        yield started
        for child in started.all.values():
            assert "Traceback" not in child.log.read_text(), child.last_words()


@pytest.fixture(scope="module")
def seed(children: Children) -> str:
    return children.start("meshseed", "seedX")


@pytest.fixture(scope="module")
def start(children: Children, seed: str) -> Start:
    """Starts a user's node, and waits until it is registered."""

    def started(name: str, *options: str, port: int = 0) -> Node:
        node = Node(children.start("meshuser", name, "--seed", seed, *options, port=port))
        until(partial(registered, node), f"{name} is registered")
        return node

    return started


def registered(node: Node) -> bool | None:
    return node.status().document["registered"] or None


@pytest.fixture
def browse(driver: Chrome) -> Iterator[Open]:
    """Opens a node's page in a window of its own."""
    pages: list[Page] = []

    def opened(node: Node, path: str = "#/", size: tuple[int, int] = WIDE, *, dark: bool = False) -> Page:
        pages.append(Page(driver, node.url, size, dark=dark))
        return pages[-1].open(path)

    yield opened
    for page in pages:
        page.close()
