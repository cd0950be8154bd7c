"""The studio in Chromium, on a real `limner serve`.

pytest -n 0 -m browser
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect

from benchmarks.chromium import SIZES, chromium, path_of_chromium
from benchmarks.faults.service import Service
from tests.browser.axe import AXE

Theme = Literal["light", "dark"]

expect.set_options(timeout=30_000)  # milliseconds: five seconds are too few for a busy machine


class Studio(NamedTuple):
    """An open page of the studio.

    Attributes:
        page: The page.
        url: Address of the server.
        faults: What the console reported so far.
    """

    page: Page
    url: str
    faults: list[str]

    def open(self, hash: str = "#/create") -> None:
        """Go to an address of the studio, and wait until its screen shows."""
        self.page.goto(f"{self.url}/{hash}")
        self.page.locator("main h1, main form h1").first.wait_for(state="attached")


Open = Callable[..., Studio]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    if path_of_chromium() is None:
        pytest.skip("there is no Chromium: apt-get install chromium, or set LIMNER_TEST_CHROMIUM")
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core."""
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: npm ci in web/")
    return AXE.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def fake_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server whose device takes a tenth of a second for each step, and draws flat colours."""
    folder = tmp_path_factory.mktemp("fake")
    with Service(folder / "data", "--device", "fake:0.1:16", "--log-level", "warning") as running:
        yield running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server with the shipped model."""
    folder = tmp_path_factory.mktemp("real")
    with Service(folder / "data", "--device", "cpu", "--log-level", "warning") as running:
        yield running


@pytest.fixture
def studio(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens the studio: `studio(width=390, theme="dark")`, by default on `fake_server`.

    Each call is a browser of its own, with its own cookies, unless it is given a `context`. At the end,
    errors of the console, violations of the content security policy and requests to other origins fail the
    test, but for those that match `tolerate`, which the test means to cause. The draft that the test leaves
    on a server is deleted, so that the next test begins with an empty composer.
    """
    with ExitStack() as stack:

        def open_studio(
            server: Service | None = None,
            *,
            width: int = 1440,
            theme: Theme = "light",
            hash: str = "#/create",
            context: BrowserContext | None = None,
            tolerate: str | None = None,
        ) -> Studio:
            on = server or request.getfixturevalue("fake_server")
            stack.callback(_forget_draft, on.url)  # after the page is closed, which may save
            used = context or stack.enter_context(_context(browser, width, theme))
            opened = stack.enter_context(_page(used, on.url, tolerate))
            opened.open(hash)
            return opened

        yield open_studio


def _forget_draft(url: str) -> None:
    """Delete the composer's draft of a server, unless the server has stopped."""
    with suppress(httpx.TransportError):
        httpx.delete(f"{url}/api/v1/drafts/studio", timeout=30)


@contextmanager
def _context(browser: Browser, width: int, theme: Theme) -> Iterator[BrowserContext]:
    phone = width < 720
    context = browser.new_context(
        viewport={"width": width, "height": SIZES.get(width, 900)},
        color_scheme=theme,
        has_touch=phone,
        is_mobile=phone,
        reduced_motion="reduce",
    )
    yield context
    context.close()


@contextmanager
def _page(context: BrowserContext, url: str, tolerate: str | None) -> Iterator[Studio]:
    page = context.new_page()
    faults: list[str] = []
    origin = urlsplit(url).netloc

    def report(fault: str) -> None:
        if tolerate is None or not re.search(tolerate, fault):
            faults.append(fault)

    def on_console(said: ConsoleMessage) -> None:
        if said.type in ("error", "warning"):
            report(f"{said.type}: {said.text} ({said.location.get('url')})")

    def on_request(sent: Request) -> None:
        if re.match(r"(http|ws)", sent.url) and urlsplit(sent.url).netloc != origin:
            report(f"request to another origin: {sent.url}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: report(f"uncaught: {error}"))
    page.on("request", on_request)
    yield Studio(page, url, faults)
    page.close()
    assert not faults, "\n".join(faults)
