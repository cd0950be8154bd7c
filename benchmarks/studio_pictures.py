"""`python -m benchmarks.studio_pictures`: the studio's screens and states, in both widths and themes.

Screens have images of the shipped model; states that pass are those of a device that is slow, and fails when
it is asked to. Pictures of the guide go to `docs/pictures`, all of them to the folder of `--all`.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from .chromium import SIZES, chromium
from .faults.service import Service
from .harness import say

GUIDE = Path(__file__).parents[1] / "docs/pictures"
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
PROMPTS = (
    "a red house in the snow",
    "a boat on the sea at night",
    "a green tree beside a yellow house",
    "a red boat on the sea",
)
_SUBMIT = """body => fetch('/api/v1/jobs', {
  method: 'POST', headers: {'content-type': 'application/json'}, body: JSON.stringify(body),
})"""
_WAIT = {"prefer": "wait=600"}


@dataclass(frozen=True)
class Shot:
    """A picture of the studio.

    Attributes:
        name: What it shows.
        hash: Address in the studio.
        act: What is done there before.
        states: Whether it is taken on the slow device.
        guide: Width and theme of the one that the guide shows, if it does.
    """

    name: str
    hash: str
    act: Callable[[Page], object] = lambda page: None
    states: bool = False
    guide: tuple[int, Theme] | None = None


def _draw(page: Page, prompt: str, count: int) -> None:
    body = {"request": {"prompt": prompt, "num_images": count}}
    page.evaluate(_SUBMIT, body)


def _grow(page: Page) -> None:
    _draw(page, "a boat on the sea at night", 9)
    expect(page.get_by_role("progressbar").nth(3)).to_be_visible()
    expect(page.locator("img.preview").nth(3)).to_be_visible()
    page.wait_for_timeout(4000)  # something shows in the noise


def _fail(page: Page) -> None:
    _draw(page, "a boat fail:request", 4)
    expect(page.get_by_role("alert").nth(3)).to_be_visible(timeout=120_000)


def _turn_dial(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("a boat on the sea at night")
    if page.get_by_role("button", name="Show settings").is_visible():
        page.get_by_role("button", name="Show settings").click()
    page.get_by_role("button", name="All settings").click()
    page.get_by_role("button", name="Guidance Scale: try several values").click()
    expect(page.get_by_role("status").filter(has_text="7 pictures, about")).to_be_visible()


def _draw_dial(page: Page) -> None:
    _turn_dial(page)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").locator("img.preview").nth(3)).to_be_visible()
    page.wait_for_timeout(4000)  # something shows in the noise


def _wait_in_queue(page: Page) -> None:
    _draw(page, "a lighthouse in the rain", 16)
    expect(page.get_by_role("progressbar").first).to_be_visible()
    page.evaluate("location.hash = '#/queue'")
    expect(page.get_by_role("listitem").nth(8)).to_be_visible()


def _go_offline(page: Page) -> None:
    page.context.set_offline(True)
    expect(page.get_by_text("cannot be reached").first).to_be_visible()


def _open_newest(page: Page) -> None:
    page.get_by_role("gridcell").first.wait_for()
    page.get_by_role("gridcell").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("img").first).to_be_visible()


SHOTS = (
    Shot("create", "#/create", guide=(1440, "light")),
    Shot("history", "#/history", guide=(1440, "dark")),
    Shot("picture", "#/history", _open_newest, guide=(1440, "light")),
    Shot("compare", "#/compare/1,2"),
    Shot("compare-empty", "#/compare"),
    Shot("queue-empty", "#/queue"),
    Shot("models", "#/models"),
    Shot("settings", "#/settings"),
    Shot("settings-keys", "#/settings/keys"),
    Shot("settings-taste", "#/settings/taste"),
    Shot("settings-notices", "#/settings/notices"),
    Shot("palette", "#/create", lambda page: page.keyboard.press("Control+k")),
    Shot("shortcuts", "#/history", lambda page: page.keyboard.press("?")),
    Shot("create-empty", "#/create", states=True),
    Shot("history-empty", "#/history", states=True),
    Shot("growing", "#/create", _grow, states=True, guide=(390, "dark")),
    Shot("dial-price", "#/create", _turn_dial, states=True),
    Shot("dial", "#/create", _draw_dial, states=True),
    Shot("failed", "#/create", _fail, states=True),
    Shot("queue", "#/queue", _wait_in_queue, states=True),
    Shot("offline", "#/create", _go_offline, states=True),
)


@contextmanager
def opened(browser: Browser, width: int, theme: Theme) -> Iterator[Page]:
    """A page of a new browser profile."""
    phone = width < 720
    context = browser.new_context(
        viewport={"width": width, "height": SIZES[width]},
        color_scheme=theme,
        has_touch=phone,
        is_mobile=phone,
        reduced_motion="reduce",
    )
    yield context.new_page()
    context.close()


def stop_all(url: str) -> None:
    """Cancel what earlier pictures left behind."""
    for one in httpx.get(f"{url}/api/v1/sets", params={"limit": 100}, timeout=60).json()["items"]:
        if not one["ended"]:
            httpx.post(f"{url}/api/v1/sets/{one['id']}/cancel", timeout=60)


def take(shot: Shot, page: Page, url: str) -> bytes:
    """The picture, as a PNG."""
    page.goto(f"{url}/{shot.hash}")
    page.locator("main h1").first.wait_for(state="attached")
    expect(page.get_by_text("Connected").or_(page.get_by_role("navigation")).first).to_be_visible()
    page.wait_for_timeout(500)
    shot.act(page)
    page.wait_for_timeout(1500)  # images arrive
    return page.screenshot()


def save(png: bytes, path: Path, width: int | None = None) -> None:
    """Write a picture as WebP, smaller where a width is given."""
    picture = Image.open(BytesIO(png)).convert("RGB")
    if width is not None and picture.width > width:
        picture = picture.resize(
            (width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "WEBP", quality=82, method=6)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--all", type=Path, help="folder for all; by default those of the guide only")
    options.add_argument("--only", nargs="*", default=[shot.name for shot in SHOTS], help="names of pictures")
    chosen = options.parse_args()
    shots = [shot for shot in SHOTS if shot.name in chosen.only]
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        for states in (False, True):
            wanted = [shot for shot in shots if shot.states is states]
            if not wanted:
                continue
            device = "fake:0.4:4" if states else "auto"
            with Service(Path(folder) / str(states), "--device", device, "--log-level", "warning") as server:
                if not states:
                    for prompt in PROMPTS:
                        say(prompt)
                        body = {"request": {"prompt": prompt, "num_images": 4}}
                        httpx.post(f"{server.url}/api/v1/jobs", json=body, headers=_WAIT, timeout=700)
                for shot in wanted:
                    for width in SIZES:
                        for theme in THEMES:
                            if chosen.all is None and shot.guide != (width, theme):
                                continue
                            say(f"{shot.name} {width} {theme}")
                            stop_all(server.url)
                            with opened(browser, width, theme) as page:
                                png = take(shot, page, server.url)
                            if chosen.all is not None:
                                save(png, chosen.all / f"{shot.name}-{width}-{theme}.webp")
                            if shot.guide == (width, theme):
                                save(png, GUIDE / f"studio-{shot.name}.webp", 960)


if __name__ == "__main__":
    main()
