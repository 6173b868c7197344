"""A conversation of 100,000 messages: the page holds a few hundred of them, and never keeps the reader waiting.

What keeps a reader waiting is a task on the page's main thread that takes long: the browser itself tells of each of
more than 50 ms (`PerformanceObserver`, entry type `longtask`). Reading, scrolling and searching go on while it watches.
"""

import json
import random
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from msgspec import Raw
from selenium.webdriver.common.keys import Keys
from twisted.internet.task import Clock

from bench.retention import who
from meshproto.cli.processes import until
from meshproto.client.node import Node
from meshproto.core.envelope import Letter
from meshproto.net.database_file import connect
from meshproto.net.store import SQLiteDatabase
from meshproto.net.user_store import SCHEMA, SCHEMA_VERSION, UserStore
from tests.browser.conftest import Open, Start
from tests.browser.page import PHONE, WAIT_S, WIDE, Page

MESSAGES = 100_000
OTHERS = 130
BATCH = 1000
MINUTE_MS = 60_000
INDEXED_S = 300.0
TASK_MS_MAX = 200
DRAWN_MAX = 400
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))
SCREENS = 150
"""How far one scrolls, at a step a frame."""


def fill(path: Path) -> None:
    """A user's database with a long conversation and many short ones, through the node's own tables."""
    path.parent.mkdir(mode=0o700)
    rng = random.Random(1)
    first_ms = int(time.time() * 1000) - MESSAGES * MINUTE_MS
    record, signed = who("Archive", rng, first_ms)
    clock = Clock()
    connection = connect(path, SCHEMA, SCHEMA_VERSION)
    connection.execute("PRAGMA synchronous=OFF")
    inbox = UserStore(SQLiteDatabase(connection, clock)).inbox
    for number in range(OTHERS):
        letter = Letter(f"{first_ms:012x}{rng.randbytes(10).hex()}", Raw(b'"Hello"'), first_ms)
        inbox.receive(*who(f"other{number:03}", rng, first_ms), [letter], first_ms + number)
    for first in range(0, MESSAGES, BATCH):
        for number in range(first, first + BATCH):
            at_ms = first_ms + number * MINUTE_MS
            letter = Letter(f"{at_ms:012x}{rng.randbytes(10).hex()}", Raw(text(number)), at_ms)
            inbox.receive(record, signed, [letter], at_ms)
        clock.advance(0)
    connection.close()
    path.chmod(0o600)


def text(number: int) -> bytes:
    words = "some words and then some more of them " * (number % 11)
    return f'"line number {number} of the archive: {words}"'.encode()


@pytest.fixture(scope="module")
def archive(start: Start, directory: Path) -> Node:
    fill(directory / "UserX" / "user.db")
    node = start("UserX")
    until(partial(indexed, node), "all can be searched", INDEXED_S)
    return node


def indexed(node: Node) -> bool | None:
    with LOCAL.open(f"{node.url}/history?limit=1", timeout=WAIT_S) as answer:
        return json.load(answer)["behind"] == 0 or None


def watched(page: Page) -> Page:
    page.run("""
        window.tasks = [];
        new PerformanceObserver(list => tasks.push(...list.getEntries().map(({duration}) => duration)))
            .observe({type: "longtask", buffered: true});
    """)
    return page


def longest_ms(page: Page) -> float:
    return float(page.run("return Math.max(0, ...tasks)"))


def scroll(page: Page, direction: int) -> int:
    """By a screen a frame, and a pause of a frame in which the page does what it must; how many different messages were
    drawn, of which no more than DRAWN_MAX at a time."""
    seen, drawn = page.front().execute_async_script(
        """
        const [direction, screens, done] = arguments;
        const log = document.querySelector(".log");
        const seen = new Set();
        let drawn = 0, left = screens;
        const step = () => {
            const shown = log.querySelectorAll(".message");
            drawn = Math.max(drawn, shown.length);
            shown.forEach(message => seen.add(message.dataset.pos));
            if (!left--) return done([seen.size, drawn]);
            log.scrollTop += direction * log.clientHeight * 0.9;
            requestAnimationFrame(() => requestAnimationFrame(step));
        };
        step();
        """,
        direction,
        SCREENS,
    )
    assert drawn <= DRAWN_MAX
    return int(seen)


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_nobody_waits_in_a_long_conversation(archive: Node, browse: Open, size: tuple[int, int]) -> None:
    """It opens, scrolls back and forth, goes to its beginning and its end, is searched and shows a hit in its middle;
    the longest task of all is short."""
    page = watched(browse(archive, size=size))
    page.go("#/with/Archive").shows(".message:last-child", f"line number {MESSAGES - 1} ")
    page.shows(".bar", f"{MESSAGES:,} messages")
    assert scroll(page, -1) > DRAWN_MAX
    assert scroll(page, 1) > DRAWN_MAX
    page.run("document.querySelector('.log').focus()")
    page.keys(Keys.HOME).shows(".message", "line number 0 ")
    page.keys(Keys.END).shows(".message:last-child", f"line number {MESSAGES - 1} ")
    page.keys("f")
    page.until(lambda: page.run("return document.activeElement.id") == "search", "one can search")
    for word in ("line ", "number ", "50000"):
        page.keys(word)
        page.shows(".hits mark", word.strip())
    page.click(".hits a").shows(".message.found", "line number 50000 ")
    assert scroll(page, -1) > DRAWN_MAX
    assert longest_ms(page) < TASK_MS_MAX


def test_all_conversations_are_reached_by_scrolling(archive: Node, browse: Open) -> None:
    """They come by pages; the list goes on by itself."""
    page = browse(archive)
    page.shows("#list li:first-child", "Archive")
    assert len(page.all("#list li")) < OTHERS

    def last() -> bool:
        page.run("document.querySelector('#list').scrollTop = 1e9")
        return page.text("#list li:last-child").find("other000") >= 0

    page.until(last, "the oldest conversation is there")
    assert len(page.all("#list li")) == OTHERS + 1
