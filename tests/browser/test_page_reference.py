"""The page on which the node's HTTP is read: complete, to be tried, to be copied, for everybody."""

import re
import subprocess
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from meshproto.cli.processes import Children
from meshproto.client.node import Node
from meshproto.net.contract import OPERATIONS
from tests.browser.conftest import Open, Start
from tests.browser.page import PHONE, WIDE, Page
from tests.browser.test_page_use import axe, press, violations

__all__ = ["axe"]

PATH = "page/reference.html"
OPENED = ("post-send", "get-inbox-stream", "delete-outbox-id", "get-lookup-name", "shape-SendBody", "shape-Item")


@pytest.fixture(scope="module")
def userx(start: Start) -> Node:
    return start("UserX")


Read = Callable[..., Page]


@pytest.fixture
def read(driver: Chrome, userx: Node) -> Iterator[Read]:
    """Opens the reference, and waits until all of it is there."""
    pages: list[Page] = []

    def opened(fragment: str = "", size: tuple[int, int] = WIDE, *, dark: bool = False) -> Page:
        page = Page(driver, userx.url, size, dark=dark)
        pages.append(page)
        page.complaints(), page.requests()
        page.front().get(f"{userx.url}/{PATH}{fragment}")
        page.one("#operations .operation")
        return page

    yield opened
    for page in pages:
        page.close()


def test_all_operations_are_there(userx: Node, read: Read) -> None:
    """In the contents and in the page, in groups; nothing is asked of anybody else, and nobody complains."""
    page = read()
    wanted = [(one.method.upper(), one.path) for one in OPERATIONS]
    for selector in ("#contents li", "#operations .operation:not([id^=shape])"):
        found = [
            (one.find_element(By.CSS_SELECTOR, ".verb").text, one.find_element(By.CSS_SELECTOR, "code, h3").text)
            for one in page.all(selector)
        ]
        assert sorted(found) == sorted(wanted)
    assert {urlsplit(url).netloc for url in page.requests()} == {urlsplit(userx.url).netloc}
    assert page.complaints() == []


def test_from_the_nodes_page_and_back(userx: Node, browse: Open) -> None:
    page = browse(userx, path="#/me")
    page.click('a[href="page/reference.html"]').one("#operations .operation")
    page.click('a[href="../#/"]').live()


def test_an_operation_that_the_address_names(userx: Node, read: Read) -> None:
    """Is open and stands where one looks: parameters, body, answers with examples, and links to the shapes."""
    page = read("#delete-outbox-id")
    assert page.run("return document.activeElement.parentElement.id") == "delete-outbox-id"
    text = page.text("#delete-outbox-id")
    for words in ("Cancel a message", "id\npath, needed", "only this recipient", "409 Conflict"):
        assert words in text
    page.click('#delete-outbox-id a[href="#shape-Outcome"]')
    page.shows("#shape-Outcome", "How far a message has come")
    page.run("window.failed = []; addEventListener('error', ({ message }) => window.failed.push(message))")
    page.run("location.hash = '#%'")
    page.run("location.hash = '#get-status'")
    page.shows("#get-status", "Answers")
    assert page.run("return window.failed") == []


def test_a_line_to_copy_does_what_is_told(userx: Node, read: Read) -> None:
    """It names this node, and a shell takes it as it is."""
    page = read("#post-send")
    line = page.text("#post-send .command code").replace('"Bobby"', '"UserX"')
    assert line.startswith(f"curl {userx.url}/send --data-binary '")
    done = subprocess.run(["sh", "-c", f"{line} -s"], capture_output=True, text=True, timeout=60, check=True)
    assert '"status":"delivered"' in done.stdout


def test_a_question_is_tried(userx: Node, read: Read) -> None:
    """With the node's answer, or its error; what changes something, and what does not end, cannot be tried."""
    page = read("#get-status")
    page.click("#try-get-status button").shows("#try-get-status .sample", '"name": "UserX"')
    page.front().execute_script("location.hash = '#get-lookup-name'")
    page.one("#try-get-lookup-name input").send_keys("Nobody", Keys.ENTER)
    page.shows("#try-get-lookup-name", "404 User Not Found")
    for path in ("post-send", "get-inbox-stream", "get-qr", "delete-contacts-name"):
        page.front().execute_script("location.hash = arguments[0]", f"#{path}")
        page.shows(f"#{path}", "From a shell")
        assert page.all(f"#try-{path}") == []


def test_words_narrow_it(userx: Node, read: Read) -> None:
    """To the operations that have all of them."""
    page = read()
    page.one("#filter").send_keys("inbox stream")
    page.shows("#contents", r"^Receiving\nGET\s*/inbox/stream$")
    (left,) = page.all("#operations > section:not([hidden], :last-child) .operation:not([hidden])")
    assert left.get_attribute("id") == "get-inbox-stream"
    assert re.fullmatch(r"1 of \d+ operations", page.text("#news"))


def test_without_a_mouse(userx: Node, read: Read) -> None:
    """The skip link comes first; an operation is opened from its summary."""
    page = read()
    press(page, Keys.TAB)
    assert page.run("return document.activeElement.className") == "skip"
    page.run("document.querySelector('#get-seeds summary').focus()")
    press(page, Keys.ENTER)
    page.shows("#get-seeds", "From a shell")


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_serious_violation(read: Read, axe: str, dark: bool, size: tuple[int, int]) -> None:
    """By axe-core, with operations and shapes open; nothing stands out of a phone's width."""
    page = read(size=size, dark=dark)
    for one in OPENED:
        page.front().execute_script("location.hash = arguments[0]", f"#{one}")
        page.until(lambda one=one: page.run("return document.getElementById(arguments[0]).open", one), one)  # type: ignore[misc]
    assert violations(page, axe) == []
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")


def test_where_the_token_is_asked_for(driver: Chrome, children: Children, seed: str) -> None:
    """It is asked of the reader, and what is tried goes with it."""
    url = children.start("meshuser", "Tess", "--seed", seed, "--api", "tcp:0:interface=0.0.0.0")
    secret = (children.all["Tess"].state / "token").read_text().strip()
    page = Page(driver, f"http://127.0.0.1:{urlsplit(url).port}")
    page.front().get(f"{page.url}/{PATH}#get-status")
    page.shows("dialog", "This node asks for its token")
    page.click("#token").keys(secret, Keys.ENTER)
    page.click("#try-get-status button").shows("#try-get-status .sample", '"name": "Tess"')
    page.close()
