"""Two users' pages: what one writes the other reads, and every state is shown as it is, as it changes."""

import re
import shutil
from functools import partial
from urllib.parse import urlsplit

import pytest
from selenium.webdriver.common.keys import Keys

from meshproto.cli.processes import Children, until
from meshproto.client.node import Node
from tests.browser.conftest import Open, Start, registered
from tests.browser.page import PHONE

SECOND_MS = 1000
TRIES = 3
"""Messages of which one has to be there within a second: the machine may be busy with other things at one moment."""


@pytest.fixture(scope="module")
def userx(start: Start) -> Node:
    return start("UserX")


@pytest.fixture(scope="module")
def bobby(start: Start) -> Node:
    return start("Bobby")


def port(node: Node) -> int:
    return urlsplit(node.url).port or 0


def test_what_one_types_the_other_reads_within_a_second(userx: Node, bobby: Node, browse: Open) -> None:
    """From the key Enter in one page to the text in the other, by the browser's own clock."""
    writes, reads = browse(bobby, "#/with/UserX"), browse(userx, "#/with/Bobby")
    reads.run("""
        window.seen = {};
        new MutationObserver(() => {
            for (const text of document.querySelectorAll(".message.in .text"))
                window.seen[text.textContent] ??= performance.timeOrigin + performance.now();
        }).observe(document.querySelector(".log"), {childList: true, subtree: true});
    """)
    writes.run("""
        window.typed = [];
        addEventListener("keydown", ({key, timeStamp}) =>
            key === "Enter" && typed.push(timeStamp + performance.timeOrigin), true);
    """)
    took_ms = []
    for number in range(TRIES):
        text = f"Hello UserX, {number}"
        writes.write(text)
        reads.shows(".message.in .text", f"^{text}$")
        took_ms.append(reads.run("return seen[arguments[0]]", text) - writes.run("return typed.at(-1)"))
        writes.shows('.message.out[data-status="delivered"]', f"{text}[^$]*delivered \\d\\d:\\d\\d")
    assert 0 < min(took_ms) < SECOND_MS, took_ms


def test_unread_ones_are_counted_until_they_are_read(userx: Node, browse: Open, start: Start) -> None:
    """In the list and in the title; and a page that is open elsewhere knows of it once it is looked at."""
    anna = start("Anna")
    page = browse(userx)
    for text in ("one", "two"):
        anna.send("UserX", text)
    page.shows("#list li:first-child", r"Anna[^$]*two[^$]*2")
    page.until(lambda: page.run("return document.title").startswith("(2) "), "the title counts them")
    page.click('a[href="#/with/Anna"]')
    page.shows(".rows > .unread", "New")
    page.until(lambda: page.run("return document.title").startswith("Anna"), "the title has nothing to count")
    again = browse(userx)
    again.shows("#list li:first-child", r"Anna")
    assert not again.all("#list .badge")


def test_one_who_is_away_gets_it_later(userx: Node, browse: Open, start: Start, children: Children) -> None:
    """It is queued, and the page says why; once they are back it turns to delivered by itself. Their own page says that
    it has lost its node, and comes back by itself."""
    carl = start("Carl")
    theirs, page = browse(carl, "#/with/UserX"), browse(userx, "#/with/Carl")
    page.write("Are you there?")
    page.shows('.message[data-status="delivered"]', "Are you there?")
    children.stop("Carl")
    theirs.shows("#connection-text", "connection lost")
    page.write("Call me when you are back")
    page.shows(".message.out", r"Call me[^$]*queued[^$]*Retry now[^$]*Cancel")
    page.shows('#list a[href="#/with/Carl"]', r"1\s+waiting")
    page.shows("#rail-waiting", "1")
    page.go("#/queue").shows(".card", r"Carl\s+1 message[^$]*(refused|Connection)")
    page.go("#/with/Carl")
    start("Carl", port=port(carl))
    page.shows('.message[data-status="delivered"]', r"Call me[^$]*delivered \d\d:\d\d")
    theirs.live().shows(".message.in", "Call me when you are back")
    page.until(lambda: not page.text("#rail-waiting"), "nothing waits")


def test_what_ones_own_node_did_not_take_is_sent_by_itself(
    bobby: Node, userx: Node, browse: Open, start: Start, children: Children
) -> None:
    """While the node is down the page says so and keeps the messages, in a conversation that is opened only now, too;
    once it is back they are sent in their order, each once."""
    hugo = start("Hugo")
    page = browse(hugo, "#/with/Bobby")
    page.write("Are you there?").shows('.message[data-status="delivered"]', "Are you there?")
    children.stop("Hugo")
    page.shows("#connection-text", "connection lost")
    page.write("Once").shows('.message[data-status="failed"]', "Once[^$]*not sent[^$]*Your node does not answer")
    assert "fetch" not in page.text("main")
    page.write("Twice").shows('.message[data-status="failed"]', "Twice[^$]*not sent")
    page.shows('#list a[href="#/with/Bobby"]', r"2\s+not sent")
    page.go("#/with/UserX").shows(".bar h2", "UserX")
    page.write("Are you?").shows('.message[data-status="failed"]', r"Are you\?[^$]*not sent")
    page.shows('#list li:first-child a[href="#/with/UserX"]', r"1\s+not sent")
    start("Hugo", port=port(hugo))
    page.shows('.message[data-status="delivered"]', r"Are you\?[^$]*delivered \d\d:\d\d")
    page.go("#/with/Bobby").shows('.message[data-status="delivered"]', r"Twice[^$]*delivered \d\d:\d\d")
    page.until(lambda: not page.all("#list .unsent"), "nothing is unsent")
    messages = bobby.inbox(sender="Hugo").document["messages"]
    assert [message["message"] for message in messages] == ["Are you there?", "Once", "Twice"]


def test_a_reload_keeps_what_ones_own_node_did_not_take(
    bobby: Node, browse: Open, start: Start, children: Children
) -> None:
    """With its id: whether the node had it after all, or not, it comes once."""
    ines = start("Ines")
    page = browse(ines, "#/with/Bobby")
    page.write("Had").shows('.message[data-status="delivered"]', "Had")
    had = page.one(".message").get_attribute("data-id")
    children.stop("Ines")
    page.shows("#connection-text", "connection lost")
    page.write("New").shows('.message[data-status="failed"]', "New")
    page.run(
        """
        const [first] = JSON.parse(sessionStorage.getItem("mesh-unsent"));
        const answerLost = {...first, id: arguments[0], message: "Had", status: "sending"};
        sessionStorage.setItem("mesh-unsent", JSON.stringify([answerLost, first]));
        """,
        had,
    )
    start("Ines", port=port(ines))
    page.open("#/with/Bobby").shows('.message[data-status="delivered"]', r"New[^$]*delivered \d\d:\d\d")
    page.until(lambda: page.run("return sessionStorage.getItem('mesh-unsent')") == "[]", "all is sent")
    messages = bobby.inbox(sender="Ines").document["messages"]
    assert [message["message"] for message in messages] == ["Had", "New"]
    page.until(lambda: len(page.all(".message.out")) == len(messages), "each is shown once")


def test_a_message_that_the_tab_has_no_room_for_is_sent_all_the_same(userx: Node, bobby: Node, browse: Open) -> None:
    """The reader is told that a reload would lose it."""
    page = browse(userx, "#/with/Bobby")
    page.run("""
        for (let size = 2 ** 23; size >= 1; size /= 2) {
            try { sessionStorage.setItem(`filled ${size}`, "x".repeat(size)); } catch {}
        }
    """)
    page.run("document.getElementById('composer').value = 'No room'")
    page.until(lambda: page.run("return document.activeElement.id") == "composer", "one can write")
    page.keys(Keys.ENTER).shows('.message[data-status="delivered"]', "No room")
    page.shows("#toast", "no room left")
    page.run("Object.keys(sessionStorage).forEach(key => key.startsWith('filled') && sessionStorage.removeItem(key))")


def test_what_waits_can_be_given_up(userx: Node, browse: Open, start: Start, children: Children) -> None:
    dora = start("Dora")
    dora.send("UserX", "I am off")
    children.stop("Dora")
    page = browse(userx, "#/with/Dora")
    page.write("Never mind")
    page.shows(".message.out", "queued")
    page.click(".message.out .cancel")
    page.shows('.message[data-status="cancelled"]', r"Never mind[^$]*cancelled")


def test_no_seed_is_said_in_words_and_shown_alike_everywhere(browse: Open, children: Children) -> None:
    """In the lamp, over the list, and in the mesh; nobody is counted where nobody knows. Whom one
    knows is reached all the same."""
    seed = children.start("meshseed", "seedY")
    kate, liam = (Node(children.start("meshuser", name, "--seed", seed)) for name in ("Kate", "Liam"))
    for node in (kate, liam):
        until(partial(registered, node), "it is registered")
    page = browse(kate, "#/with/Liam")
    page.write("Before").shows('.message[data-status="delivered"]', "Before")
    page.go("#/mesh").shows(".seeds li", r"seedY\s*alive[^$]*home of \d")
    late = page.run("return getComputedStyle(document.querySelector('.legend [data-state=unknown] i')).borderTopColor")
    children.stop("seedY")
    page.until(lambda: kate.status().document["seed_answers"] is False, "the node has noticed")
    page.run("location.reload()")
    page.shows("#connection-text", "no seed")
    page.shows("#alerts", r"No seed answers\. People you know are still reached at their last address\.\s+\S+")
    page.shows(".seeds li", r"seedY\s*unknown")
    assert "user" not in page.text(".seeds li")
    assert page.run("return document.querySelector('.seed .count').textContent") == "?"
    page.shows(".bar p", "none answers")
    for element, property in (
        ("#connection .lamp", "backgroundColor"),
        (".seeds .mark", "borderTopColor"),
        (".seeds .live", "color"),
        (".seed .body", "stroke"),
    ):
        script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        assert page.run(script, element, property) == late, element
    page.go("#/with/Liam").write("After").shows('.message[data-status="delivered"]', "After")


def test_a_draft_stays_with_its_conversation(userx: Node, bobby: Node, browse: Open, start: Start) -> None:
    emil = start("Emil")
    emil.send("UserX", "Hello")
    page = browse(userx, "#/with/Emil")
    page.until(lambda: page.run("return document.activeElement.id") == "composer", "one can write")
    page.keys("half a sent")
    page.go("#/with/Bobby").shows(".bar h2", "Bobby")
    assert page.one("#composer").get_attribute("value") == ""
    page.go("#/with/Emil").shows(".bar h2", "Emil")
    assert page.one("#composer").get_attribute("value") == "half a sent"
    page.open("#/with/Emil")
    assert page.one("#composer").get_attribute("value") == "half a sent"
    page.keys(Keys.ENTER).shows('.message[data-status="delivered"]', "half a sent")
    assert page.one("#composer").get_attribute("value") == ""


def test_anything_is_shown_as_text(userx: Node, bobby: Node, browse: Open) -> None:
    """JSON as JSON that a person reads, numbers to their last digit; markup as what it is: text; long ones folded."""
    bobby.send("UserX", {"disk": "/", "full": 0.97, "inode": 12345678901234567890})
    bobby.send("UserX", "<img src=x onerror=alert(1)>")
    bobby.send("UserX", "beginning " + "word " * 20000 + "end")
    page = browse(userx, "#/with/Bobby")
    page.shows(".message.in pre", r'"full": 0.97,\n  "inode": 12345678901234567890')
    page.shows(".message.in p.text", "<img src=x")
    assert not page.all(".log img")
    folded = page.shows(".message.in", r"^Bobby:\s+beginning")
    assert "end" not in folded
    more = "Show more of 100 thousand characters"
    assert more in folded
    for _ in range(7):
        page.run("[...document.querySelectorAll('.message button.link')].at(-1).click()")
    page.shows(".message.in", "word end")
    assert more not in page.text(".message:last-child")
    bobby.send("UserX", {"rows": list(range(3000))})
    assert "2999" not in page.shows(".message:last-child", r'"rows": \[\n    0,[^$]*Show more')
    for _ in range(2):
        page.click(".message:last-child button.link")
    page.shows(".message:last-child pre", r"2999\n  \]\n}$")


def test_columns_stay_columns(userx: Node, bobby: Node, browse: Open) -> None:
    """As they come from `df -h | mesh send UserX`: each line is one line, in letters of one width, scrolled within the
    bubble where they are wider; what is only written with two spaces after a sentence is a text."""
    device = "/dev/mapper/a-volume-with-a-long-name-that-no-phone-shows-in-one-line"
    table = f"Filesystem{' ' * (len(device) - 9)}Size  Used Avail\n{device}  98G   61G   33G\ntmpfs    16G     0   16G"
    bobby.send("UserX", table)
    bobby.send("UserX", "One sentence.  Another one.\nA second line.  And so on.\n")
    page = browse(userx, "#/with/Bobby", PHONE)
    page.shows(".message.in p.text", "A second line")
    page.shows(".message.in pre.columns", "tmpfs    16G     0   16G")
    lines, wider, inside, family = page.run("""
        const text = document.querySelector("pre.columns"), style = getComputedStyle(text);
        const height = text.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
        return [Math.round(height / parseFloat(style.lineHeight)), text.scrollWidth > text.clientWidth,
            text.getBoundingClientRect().right <= innerWidth, style.fontFamily];
    """)
    assert (lines, wider, inside) == (3, True, True)
    assert "monospace" in family
    page.run("document.querySelector('pre.columns').focus()")
    page.keys(Keys.ARROW_RIGHT)
    page.until(lambda: page.run("return document.querySelector('pre.columns').scrollLeft") > 0, "it scrolls")


def test_the_reader_stays_where_they_read(userx: Node, browse: Open, start: Start) -> None:
    """What arrives while one reads further up moves nothing, and is told of."""
    fred = start("Fred")
    for number in range(120):
        fred.send("UserX", f"line {number}")
    page = browse(userx, "#/with/Fred")
    page.shows(".message.in", "line 119")
    page.run("document.querySelector('.log').scrollTop -= 600")
    page.until(lambda: page.all(".down:not([hidden])"), "one can go back to the end")
    before = page.run("return document.querySelector('.log').scrollTop")
    fred.send("UserX", "one more")
    page.shows(".down", "1 new")
    assert page.run("return document.querySelector('.log').scrollTop") == before
    page.click(".down").shows(".message:last-child", "one more")
    page.until(lambda: not page.all(".down:not([hidden])"), "one is at the end")


def test_a_changed_key_is_compared_and_trusted(
    userx: Node, browse: Open, start: Start, children: Children, seed: str
) -> None:
    """Both fingerprints are shown, and nothing is delivered until the reader says that the new one is right."""
    gina = start("Gina")
    old = gina.status().document["groups"]
    gina.send("UserX", "from the old machine")
    children.stop("Gina")
    children.stop("seedX")
    shutil.rmtree(children.all["Gina"].state)
    shutil.rmtree(children.all["seedX"].state)
    children.start("meshseed", "seedX", port=int(seed.rpartition(":")[2]))
    new = start("Gina").status().document["groups"]
    page = browse(userx, "#/with/Gina")
    page.write("Is it you?")
    page.shows(".conversation .warning", "another key")
    page.click(".conversation .warning a")
    shown = page.shows(".changed", "another key than before").replace("\n", "-")
    assert old in shown
    assert new in shown
    page.click(".changed .danger")
    page.click("dialog .main")
    page.shows(".who .verified", "You compared it")
    page.until(lambda: not page.all(".changed"), "the warning is gone")
    page.until(lambda: new in re.sub(r"\s", "-", page.text(".who .fingerprint")), "it is the new key")
