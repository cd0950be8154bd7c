"""Debian's Chromium, driven by Playwright, for what measures and tests the studio."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

SIZES = {1440: 900, 390: 844}
"""Width of a desk's and of a phone's screen, and its height."""

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_SWITCHES = (
    "--no-sandbox",  # for containers without user namespaces; it meets our own pages only
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def path_of_chromium() -> str | None:
    """The program: LIMNER_TEST_CHROMIUM, else the one on PATH; None where there is none."""
    return os.environ.get("LIMNER_TEST_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running Chromium. Raises RuntimeError where there is none."""
    path = path_of_chromium()
    if path is None:
        raise RuntimeError("there is no Chromium: apt-get install chromium, or set LIMNER_TEST_CHROMIUM")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=_SWITCHES)
        try:
            yield browser
        finally:
            browser.close()
