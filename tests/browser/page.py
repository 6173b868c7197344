"""A user's page in a real Chromium, driven as a person does it: by keys and clicks, and read as it stands there."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from selenium.common.exceptions import (
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
)
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from meshproto.cli.processes import until

CHROMIUM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER: Final = shutil.which("chromedriver")
MISSING: Final = [name for name, path in (("Chromium", CHROMIUM), ("chromedriver", CHROMEDRIVER)) if path is None]
WAIT_S: Final = 30.0
WIDE: Final = (1280, 800)
PHONE: Final = (390, 844)
PHONE_WIDTH_MAX: Final = 600

T = TypeVar("T")


@contextmanager
def chrome(profile: Path) -> Iterator[Chrome]:
    """A browser of its own, that talks to nobody but the pages it is told to open."""
    assert CHROMIUM is not None
    assert CHROMEDRIVER is not None
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--no-proxy-server",
        "--disable-background-networking",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(CHROMEDRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """One window of the browser, on one node's page. Every method looks at its own window first."""

    def __init__(
        self, driver: Chrome, url: str, size: tuple[int, int] = WIDE, *, dark: bool = False, tab: bool = False
    ) -> None:
        self.driver = driver
        self.url = url
        driver.switch_to.new_window("tab" if tab else "window")
        self._window = driver.current_window_handle
        self.resize(size)
        self.colours(dark=dark)

    def resize(self, size: tuple[int, int]) -> None:
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < PHONE_WIDTH_MAX}
        self.front().execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": metrics["mobile"]})

    def colours(self, *, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.front().execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def front(self) -> Chrome:
        self.driver.switch_to.window(self._window)
        return self.driver

    def close(self) -> None:
        self.front().close()
        self.driver.switch_to.window(self.driver.window_handles[0])

    # -- where one is ------------------------------------------------------------------------------------------------

    def open(self, path: str = "#/") -> "Page":
        """Loaded anew, and connected."""
        self.front().get("about:blank")
        self.driver.get(f"{self.url}/{path}")
        return self.live()

    def live(self) -> "Page":
        self.until(lambda: self.text("#connection-text") == "live", "the page is connected")
        return self

    def go(self, path: str) -> "Page":
        self.run("location.hash = arguments[0]", path)
        return self

    # -- what is there -----------------------------------------------------------------------------------------------

    def all(self, selector: str) -> list[WebElement]:
        return self.front().find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.until(lambda: next(iter(self.all(selector)), None), f"there is {selector}")

    def text(self, selector: str) -> str:
        """What can be read of the first such element; nothing while there is none."""
        try:
            return str(self.front().find_element(By.CSS_SELECTOR, selector).get_attribute("innerText"))
        except (NoSuchElementException, StaleElementReferenceException):
            return ""

    def shows(self, selector: str, pattern: str) -> str:
        """Waits until an element shows what matches."""

        def found() -> str | None:
            texts = self.run(
                "return [...document.querySelectorAll(arguments[0])].map(element => element.innerText)", selector
            )
            return next((text for text in texts if re.search(pattern, text)), None)

        return self.until(found, f"{selector} shows {pattern!r}")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.front().execute_script(script, *arguments)

    def until(self, probe: Callable[[], T | None], what: str) -> T:
        return until(lambda: probe() or None, what, WAIT_S)

    # -- what is done ------------------------------------------------------------------------------------------------

    def click(self, selector: str) -> "Page":
        """On the first such element, once it can be clicked."""

        def clicked() -> bool:
            try:
                self.one(selector).click()
            except (ElementNotInteractableException, StaleElementReferenceException):
                return False
            return True

        self.until(clicked, f"{selector} can be clicked")
        return self

    def keys(self, *keys: str) -> "Page":
        """To whatever has the focus."""
        for key in keys:
            self.front().switch_to.active_element.send_keys(key)
        return self

    def write(self, text: str) -> "Page":
        self.until(lambda: self.run("return document.activeElement?.id") == "composer", "one can write")
        return self.keys(text, Keys.ENTER)

    # -- what the browser says ---------------------------------------------------------------------------------------

    def complaints(self) -> list[str]:
        """What the console has got since it was asked last."""
        return [f"{entry['level']} {entry['message']}" for entry in self.front().get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses of all requests since it was asked last."""
        events = [json.loads(entry["message"])["message"] for entry in self.front().get_log("performance")]
        sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if url != "about:blank"]
