"""The pictures of docs/page.md: `python -m bench.screens`.

A mesh of real processes with some life in it, and one of its users' page in a real Chromium: each view wide and as wide
as a phone, in light and dark. The pictures are as large as the screen, with at most 128 colours; they look best
where the font Inter is installed (Debian: fonts-inter).
"""

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from PIL import Image
from selenium.webdriver.common.keys import Keys

from meshproto.cli.processes import Children, until
from meshproto.client.errors import Problem
from meshproto.client.node import Node
from tests.browser.page import MISSING, PHONE, WIDE, Page, chrome

SCREENS: Final = Path(__file__).parents[1] / "docs" / "screens"
REGISTERED_S: Final = 30.0
SIZES: Final = {"wide": WIDE, "phone": PHONE}
COLOURS: Final = {"light": False, "dark": True}
COLOURS_MAX: Final = 128
TALK: Final = (
    ("Bobby", "UserX", "The new node is up. It found the seeds by itself."),
    ("UserX", "Bobby", "Nice! How long did it take?"),
    ("Bobby", "UserX", "Two minutes, and one of them was coffee."),
    ("UserX", "Bobby", "I'll move the camera alerts over to it tonight. Same name?"),
    ("Bobby", "UserX", "Same name, same key. You don't have to change anything on your side."),
    ("Anna", "UserX", "Are you coming on Friday?"),
    ("UserX", "Anna", "Yes! Train at six. Shall I bring anything?"),
    ("Anna", "UserX", "Just yourself. And the projector, if it fits."),
    ("greenhouse", "UserX", {"celsius": 31.5, "humidity": 0.62, "window": "opened", "battery": 0.81}),
    ("greenhouse", "UserX", {"celsius": 27.25, "humidity": 0.58, "window": "closed", "battery": 0.81}),
    ("backup-bot", "UserX", "attic: 41.7 GB in 30 min, all files verified"),
    ("Carla", "UserX", "Off to the mountains until Monday, no net up there."),
    ("UserX", "Bobby", "Perfect. Then I only need to tell the greenhouse."),
    ("Bobby", "UserX", "It has already found me. Look at its last two reports."),
)  # fmt: skip
WAITS: Final = ("Take a picture of the hut for me!", "And call when you are back.")
SEEDS: Final = ("harbour", "summit", "mill")
HOMES: Final = {"UserX": 0, "Bobby": 1, "Anna": 0, "greenhouse": 2, "backup-bot": 1, "Carla": 2, "Dan": 0}


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m bench.screens", description=__doc__)
    options.add_argument(
        "--to", type=Path, default=SCREENS, metavar="DIR", help="where they are written (docs/screens)"
    )
    directory = options.parse_args(arguments).to
    if MISSING:
        print(f"no {' and no '.join(MISSING)} on this machine", file=sys.stderr)
        return 1
    directory.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="mesh-screens-", ignore_cleanup_errors=True) as made,
        mesh(Path(made)) as userx,
        chrome(Path(made) / "profile") as driver,
    ):
        for size_name, size in SIZES.items():
            for colour, dark in COLOURS.items():
                page = Page(driver, userx.url, size, dark=dark)
                for name, view in VIEWS.items():
                    view(page)
                    save(page, directory / f"{name}-{size_name}-{colour}.png")
                page.close()
    total = sum(file.stat().st_size for file in directory.glob("*.png"))
    print(f"{len(list(directory.glob('*.png')))} pictures, {total:,} bytes")
    return 0


# -- the mesh ---------------------------------------------------------------------------------------------------------


@contextmanager
def mesh(directory: Path) -> Iterator[Node]:
    """UserX's node, once somebody is away and waited for, somebody has a new key, and a seed is dead."""
    with Children(directory) as children:
        old_key(children, directory)
        seeds = [children.start("meshseed", SEEDS[0])]
        seeds += [children.start("meshseed", name, "--peer", seeds[0]) for name in SEEDS[1:]]
        nodes = {name: user(children, name, seeds[home]) for name, home in HOMES.items()}
        for sender, to, message in TALK:
            until(partial(delivered, nodes[sender], to, message), f"{sender} reaches {to}", REGISTERED_S)
        children.stop("Carla")
        for text in WAITS:
            nodes["UserX"].send("Carla", text, wait_s=0)
        with suppress(Problem):
            nodes["UserX"].send("Dan", "Is that you?")
        children.start("meshseed", "island", "--peer", seeds[0])
        until(partial(knows, nodes["UserX"], "island", True), "island is known", REGISTERED_S)
        children.all["island"].process.kill()
        until(partial(knows, nodes["UserX"], "island", False), "island is dead", 4 * REGISTERED_S)
        yield nodes["UserX"]


def old_key(children: Children, directory: Path) -> None:
    """UserX has heard from Dan, whose machine is then lost, and so is the mesh that knew his key."""
    seed = children.start("meshseed", SEEDS[0])
    dan = user(children, "Dan", seed)
    until(
        partial(delivered, dan, user(children, "UserX", seed).status().document["name"], "Hi, Dan here"), "Dan writes"
    )
    for name in ("UserX", "Dan", SEEDS[0]):
        children.stop(name)
    for name in ("Dan", SEEDS[0]):
        shutil.rmtree(directory / name)


def user(children: Children, name: str, seed: str) -> Node:
    node = Node(children.start("meshuser", name, "--seed", seed))
    until(lambda: node.status().document["registered"] or None, f"{name} is registered", REGISTERED_S)
    return node


def delivered(sender: Node, to: str, message: object) -> bool | None:
    return sender.send(to, message, message_id=f"{hash(repr(message))}").document["status"] == "delivered" or None


def knows(node: Node, seed: str, alive: bool) -> bool | None:
    seeds = {one["name"]: one["alive"] for one in node.seeds().document["seeds"]}
    return seeds.get(seed) is alive or None


# -- the views --------------------------------------------------------------------------------------------------------


def conversation(page: Page) -> None:
    there(page.open("#/with/Bobby")).shows(".message.out", "delivered")


def chats(page: Page) -> None:
    there(page.open("#/")).shows("#list", "Anna")


def there(page: Page) -> Page:
    """It is known who is online."""
    online = ".conversations a:not([href$=Carla]) i"
    page.one(online)
    page.until(lambda: len(page.all(online)) == len(page.all(f"{online}[data-online=true]")), "all are there but Carla")
    return page


def structured(page: Page) -> None:
    there(page.open("#/with/greenhouse")).shows(".message", "celsius")


def waiting(page: Page) -> None:
    there(page.open("#/with/Carla")).shows(".message.out", "queued")


def search(page: Page) -> None:
    there(page.open("#/with/Bobby")).shows(".message", "greenhouse")
    if page.all("#side")[0].is_displayed():
        page.click("#search")
    else:
        page.open("#/").click("#search")
    page.keys("greenhouse").one(".hits mark")


def begin(page: Page) -> None:
    there(page.open("#/")).click("#begin").keys("bobby", Keys.ENTER).one("dialog .card")


def queue(page: Page) -> None:
    there(page.open("#/queue")).shows(".waiting", "Carla")


def picture(page: Page) -> None:
    there(page.open("#/mesh")).shows(".seeds", "dead since")
    page.until(lambda: len(page.all(".user")) >= len(HOMES) - 1, "everybody is drawn")


def contact(page: Page) -> None:
    there(page.open("#/contact/Anna")).one(".qr")


def changed(page: Page) -> None:
    there(page.open("#/contact/Dan")).shows(".changed", "another key")
    page.one(".qr")


def oneself(page: Page) -> None:
    there(page.open("#/me")).one(".qr")


def shortcuts(page: Page) -> None:
    there(page.open("#/")).keys("?").one("dialog")


VIEWS: Final[dict[str, Callable[[Page], None]]] = {
    "chats": chats,
    "conversation": conversation,
    "json": structured,
    "waiting": waiting,
    "search": search,
    "new": begin,
    "queue": queue,
    "mesh": picture,
    "contact": contact,
    "key-changed": changed,
    "you": oneself,
    "keys": shortcuts,
}


def save(page: Page, file: Path) -> None:
    """Once nothing moves any more."""
    page.until(
        lambda: page.run("return !document.getAnimations().some(one => one.playState === 'running')"), "it is still"
    )
    shown = Image.open(io.BytesIO(page.front().get_screenshot_as_png())).convert("RGB")
    shown.quantize(COLOURS_MAX, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
