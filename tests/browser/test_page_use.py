"""How the page is used and what it asks for: the keyboard alone, who cannot see, the token, the first load."""

import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.keys import Keys

from meshproto.cli.processes import Children, until
from meshproto.client.node import Node
from tests.browser.conftest import Open, Start, registered
from tests.browser.page import PHONE, WIDE, Page

LOAD_BYTES_MAX = 150_000
AXE = "axe-core@4.14.1"
NPM_S = 120
TABS = 8
FOUND_RING_PX = 5
"""So far from the bubble the mark of what was found reaches while it is animated."""
GRAVE = ("serious", "critical")
VIEWS = {
    "all conversations": "#/",
    "a conversation": "#/with/Bobby",
    "nobody yet": "#/with/Emil",
    "a contact": "#/contact/Bobby",
    "the queue": "#/queue",
    "the mesh": "#/mesh",
    "oneself": "#/me",
}
READY = {
    "all conversations": "#list .conversations",
    "a conversation": ".message.out .state",
    "nobody yet": ".empty .command",
    "a contact": ".qr",
    "the queue": ".card.waiting",
    "the mesh": ".user[data-state=own]",
    "oneself": ".qr",
}


@pytest.fixture(scope="module")
def bobby(start: Start) -> Node:
    return start("Bobby")


@pytest.fixture(scope="module")
def userx(start: Start, bobby: Node, children: Children) -> Node:
    """With a conversation, and something that waits."""
    node = start("UserX")
    start("Emil")
    away = start("Carl")
    away.send("UserX", "I am off")
    children.stop("Carl")
    node.send("Carl", "Call me when you are back", wait_s=0)
    bobby.send("UserX", {"disk": "/", "full": 0.97}, message_id="disk-1")
    bobby.send("UserX", f"Filesystem  Size  Used\n/dev/{'long-' * 30}  98G  61G\ntmpfs  16G  0")
    bobby.send("UserX", "Hello UserX")
    node.send("Bobby", "Hello Bobby")
    return node


@pytest.fixture(scope="module")
def axe(pytestconfig: pytest.Config) -> Iterator[str]:
    """The rules that pages are held against. They are fetched once, and kept where pytest keeps things."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on this machine, which fetches axe-core")
    assert pytestconfig.cache is not None
    folder = Path(pytestconfig.cache.mkdir("axe-core"))
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        command = [
            npm,
            "install",
            "--no-save",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--prefix",
            str(folder),
            AXE,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=NPM_S, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot fetch {AXE}: {done.stderr[-300:]}")
    yield script.read_text(encoding="utf-8")


def violations(page: Page, axe: str) -> list[str]:
    page.run(axe)
    found = page.front().execute_async_script(
        "axe.run(document, {resultTypes: ['violations']}).then(arguments[arguments.length - 1])"
    )
    return [
        f"{one['impact']} {one['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
        for one in found["violations"]
        if one["impact"] in GRAVE
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_serious_violation_in_any_view(
    userx: Node, browse: Open, axe: str, dark: bool, size: tuple[int, int]
) -> None:
    """axe-core finds nothing serious or critical, in light and dark, wide and narrow; nor do the dialogs."""
    page = browse(userx, size=size, dark=dark)
    found = []
    for view, path in VIEWS.items():
        page.go(path).one(READY[view])
        found += [f"{view}: {one}" for one in violations(page, axe)]
    page.go("#/").until(lambda: page.one("#side").is_displayed(), "all conversations are there")
    press(page, "?")
    page.one("dialog[open]")
    found += [f"help: {one}" for one in violations(page, axe)]
    page.keys(Keys.ESCAPE).keys("n").one("#begin-name")
    page.keys("Nobody", Keys.ENTER).shows("dialog .warning", "User Not Found")
    found += [f"new conversation: {one}" for one in violations(page, axe)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_serious_violation_without_a_seed(driver: Chrome, children: Children, axe: str, dark: bool) -> None:
    """Nor in the mesh that nobody tells of, whose one part to scroll has no link in it."""
    kate = Node(children.start("meshuser", "Kate", "--seed", children.start("meshseed", "seedY")))
    until(partial(registered, kate), "it is registered")
    children.stop("seedY")
    until(lambda: kate.status().document["seed_answers"] is False or None, "it has noticed")
    page = Page(driver, kate.url, dark=dark)
    page.front().get(f"{kate.url}/#/mesh")
    page.shows("#connection-text", "no seed")
    page.shows(".seeds li", "unknown")
    found = violations(page, axe)
    page.close()
    children.stop("Kate")
    assert not found, "\n".join(found)


def press(page: Page, *keys: str) -> None:
    """To the page as a keyboard does it: to whatever has the focus, also where an element was just taken away."""
    page.front()
    ActionChains(page.driver).send_keys(*keys).perform()


def focused(page: Page) -> str:
    return str(page.run("return document.activeElement.innerText || document.activeElement.id"))


def test_everything_is_done_by_keyboard(userx: Node, bobby: Node, browse: Open) -> None:
    """From an empty screen to a message that was sent, one that was given up, a search, a contact, and every view; and
    what has the focus can be seen."""
    page = browse(userx)
    press(page, "?")
    page.shows("dialog", "Keyboard shortcuts")
    press(page, Keys.ESCAPE)
    page.until(lambda: not page.all("dialog"), "the help is closed")

    press(page, "n")
    press(page, "Nobody", Keys.ENTER)
    page.shows("dialog .warning", "User Not Found.*no seed knows Nobody")
    press(page, "bobby", Keys.ENTER)
    page.until(lambda: focused(page) == "Write to Bobby", "Bobby was found")
    press(page, Keys.ENTER)
    page.shows(".bar h2", "Bobby")
    page.write("by keyboard")
    page.shows('.message[data-status="delivered"]', "by keyboard")

    press(page, Keys.ESCAPE)
    press(page, "m")
    page.until(lambda: "by keyboard" in focused(page), "the last message has the focus")
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press(page, Keys.ARROW_UP)
    assert "by keyboard" not in focused(page)
    press(page, "i")
    page.shows(".who h3", "Bobby")

    press(page, "g", "q")
    page.shows(".card.waiting", "Carl")
    press(page, "g", "m")
    page.one(".stage svg")
    press(page, "g", "y")
    page.one(".qr")
    press(page, "g", "c")
    page.until(lambda: page.run("return location.hash") == "#/", "all conversations are there")

    press(page, "j")
    first = page.until(lambda: page.text(".bar h2"), "a conversation is open")
    press(page, "j")
    page.until(lambda: page.text(".bar h2") not in ("", first), "the next one is")

    press(page, "/")
    press(page, "by keyb")
    page.shows(".hits", "by keyb")
    press(page, Keys.ARROW_DOWN, Keys.ENTER)
    page.shows(".message.found", "by keyboard")
    page.until(lambda: "by keyboard" in focused(page), "what was found has the focus")
    page.go("#/").until(lambda: not page.all(".message"), "all conversations are there")
    press(page, "/")
    press(page, "call me wh", Keys.ENTER)
    page.shows(".message.found", "Call me when")
    page.until(lambda: "Call me" in focused(page), "the first one that was found has the focus")
    ring, outline = page.run("""
        const style = getComputedStyle(document.activeElement);
        const bubble = getComputedStyle(document.activeElement.querySelector(".bubble"));
        return [bubble.outlineStyle, style.outlineStyle === "solid" && parseFloat(style.outlineOffset)];
    """)
    assert ring == "none"
    assert outline > FOUND_RING_PX

    page.go("#/with/Carl").shows(".message.out", "Call me")
    press(page, Keys.ESCAPE)
    press(page, "m")
    page.until(lambda: "Call me" in focused(page), "the message that waits has the focus")
    press(page, "x")
    page.shows('.message[data-status="cancelled"]', "Call me")


def test_who_steps_from_one_conversation_to_the_next_reads(userx: Node, browse: Open) -> None:
    """After `j` and `k` the messages have the focus, also at the end of the list: the next letter is no part of a
    message until `c` leads to where one writes."""
    in_log = "return document.activeElement === document.querySelector('.log')"
    page = browse(userx)
    page.shows("#list li:nth-child(2)", ".")
    press(page, "j")
    first = page.until(lambda: page.text(".bar h2"), "a conversation is open")
    page.until(lambda: page.run(in_log), "its messages have the focus")
    press(page, "j", "k")
    page.until(lambda: page.text(".bar h2") == first and page.run(in_log), "there and back, one reads")
    press(page, "k")
    assert page.run(in_log)
    press(page, "c")
    assert focused(page) == "composer"
    press(page, "jk")
    assert page.one("#composer").get_attribute("value") == "jk"
    press(page, Keys.BACKSPACE, Keys.BACKSPACE)
    page.go("#/with/Bobby" if first != "Bobby" else "#/with/Carl")
    page.until(lambda: page.text(".bar h2") not in ("", first) and focused(page) == "composer", "else one writes")


def test_escape_does_what_the_arrow_back_does(userx: Node, browse: Open) -> None:
    page = browse(userx, "#/contact/Bobby")
    page.shows(".who h3", "Bobby")
    press(page, Keys.ESCAPE)
    page.until(lambda: page.run("return location.hash") == "#/with/Bobby", "the conversation is there")
    page.until(lambda: focused(page) == "composer", "one can write")
    press(page, Keys.ESCAPE, Keys.ESCAPE)
    page.until(lambda: page.run("return location.hash") == "#/", "all conversations are there")


def test_one_pane_at_a_time_on_a_phone(userx: Node, browse: Open) -> None:
    """Nothing is wider than the screen; the way back is there."""
    page = browse(userx, size=PHONE)
    assert not page.one("#main").is_displayed()
    page.click('a[href="#/with/Bobby"]').shows(".message", "Hello Bobby")
    assert not page.one("#side").is_displayed()
    for path in VIEWS.values():
        page.go(path)
        assert page.run("return document.documentElement.scrollWidth") <= PHONE[0], path
    page.go("#/with/Bobby").click(".backward")
    page.until(lambda: page.one("#side").is_displayed(), "the conversations are back")


def test_as_many_tabs_as_one_likes(userx: Node, driver: Chrome) -> None:
    """More than a browser has connections for: those that nobody sees give theirs back, and come back when they are
    looked at."""
    first = Page(driver, userx.url)
    tabs = [first.open("#/with/Bobby")]
    for _ in range(TABS - 1):
        tabs.append(Page(driver, userx.url, tab=True).open("#/with/Bobby"))
        tabs[-1].shows(".message", "Hello UserX")
    first.live().shows(".message", "Hello UserX")
    for tab in tabs:
        tab.close()


def test_light_or_dark_is_the_readers_choice(userx: Node, browse: Open) -> None:
    """As the system has it, unless the reader says otherwise; that is kept."""
    background = "return getComputedStyle(document.body).backgroundColor"
    page = browse(userx, "#/me")
    light = page.run(background)
    page.colours(dark=True)
    dark = page.run(background)
    assert light != dark
    page.click('#themes input[value="light"]')
    assert page.run(background) == light
    page.open()
    assert page.run(background) == light
    page.go("#/me").click('#themes input[value="auto"]')
    assert page.run(background) == dark


def test_the_first_load(userx: Node, browse: Open) -> None:
    """All files together, uncompressed, are small; nothing is asked of anybody else; the console is empty."""
    page = browse(userx)
    page.complaints()
    page.requests()
    page.front().execute_cdp_cmd("Network.clearBrowserCache", {})
    page.open("#/with/Bobby").shows(".message", "Hello Bobby")
    entries = page.run("""
        return [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
            .map(({name, decodedBodySize}) => [name, decodedBodySize])
    """)
    files = {name: size for name, size in entries if name.partition("#")[0] == f"{page.url}/" or "/page/" in name}
    assert len(files) > 10
    assert all(files.values())
    assert sum(files.values()) < LOAD_BYTES_MAX
    requests = page.requests()
    assert len(requests) > len(files)
    assert {urlsplit(url).netloc for url in requests} == {urlsplit(page.url).netloc}
    assert page.complaints() == []


def test_the_token_is_asked_for_and_kept_for_the_tab(driver: Chrome, children: Children, seed: str) -> None:
    """A node that others can reach shows the page, and nothing in it until the token is there."""
    url = children.start("meshuser", "Tess", "--seed", seed, "--api", "tcp:0:interface=0.0.0.0")
    secret = (children.all["Tess"].state / "token").read_text().strip()
    page = Page(driver, f"http://127.0.0.1:{urlsplit(url).port}")
    page.front().get(page.url)
    page.shows("dialog", "This node asks for its token[^$]*in the file token of the node’s state directory")  # noqa: RUF001
    assert page.text("#own-name") == "Mesh"
    page.click("#token").keys("wrong", Keys.ENTER)
    page.shows("dialog .warning", "has not accepted")
    page.click("#token").keys(secret, Keys.ENTER)
    page.live().shows("#own-name", "Tess")
    page.go("#/me").one(".qr")
    page.open().shows("#own-name", "Tess")
    page.close()
    other = Page(driver, page.url)
    other.front().get(page.url)
    other.shows("dialog", "This node asks for its token")
    other.close()


def in_words(page: Page, script: str) -> object:
    return page.front().execute_async_script(
        "const done = arguments[0];"
        f"import('/page/words.js').then((words) => done({script})).catch((error) => done(String(error)))"
    )


def test_what_others_say_breaks_no_words(userx: Node, browse: Open) -> None:
    """A time that is none, and a field that JavaScript has another use for."""
    page = browse(userx)
    assert "unknown" in str(in_words(page, "words.presenceWords({online: false, seen: 9e15})"))
    sent = 'words.readableBeginning(JSON.parse(\'{"__proto__": {"pay": 1}, "b": 2}\'), 20).text'
    assert "pay" in str(in_words(page, sent))
