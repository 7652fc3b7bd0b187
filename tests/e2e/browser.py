"""A real browser without a window: Debian's chromium, driven by Selenium."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Browser:
    """A tab of it.

    Args:
        driver: Selenium's.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._requested: list[str] = []

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        self._driver.get(url)

    def run(self, script: str, *args: Any) -> Any:
        """What a script returns; one that throws fails."""
        return self._driver.execute_script(script, *args)

    def text(self, selector: str) -> str:
        """All text of the first element that a selector finds."""
        found: str = self.run("return document.querySelector(arguments[0]).textContent", selector)
        return found

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
        """The condition's value once it is true; fails after so many seconds."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, f"the page never showed {what}"
            time.sleep(0.1)
        return value

    def look(self, width: int, scheme: str, height: int | None = None) -> None:
        """Give the window a width, and the height of what is in it, or another; its user likes it ``light`` or
        ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        for tall in (900, None):
            tall = tall or height or self.run("return document.documentElement.scrollHeight")
            metrics = {"width": width, "height": tall, "deviceScaleFactor": 1, "mobile": width < 600}
            self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def save(self, file: Path) -> None:
        """A picture of the window."""
        assert self._driver.save_screenshot(str(file))

    def console(self) -> list[str]:
        """What the page has complained of since this was last asked."""
        return [entry["message"] for entry in self._driver.get_log("browser")]

    def requested(self) -> list[str]:
        """Addresses that the browser asked for since it began."""
        for entry in self._driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self._requested.append(message["params"]["request"]["url"])
        return self._requested


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser for the duration of the block; the test is skipped where none is installed."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no browser here: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Browser(running)
    finally:
        running.quit()
