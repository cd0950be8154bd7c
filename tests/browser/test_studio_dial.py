"""The dial: a slider's values side by side, with one seed, and the price first."""

import re

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from benchmarks.faults.service import Service
from tests.browser.axe import violations
from tests.browser.conftest import Studio

pytestmark = pytest.mark.browser

PATIENCE = 240_000


def guidance(page: Page, prompt: str, steps: int) -> Locator:
    """The setting of the guidance scale, at 7.5, in a composer with this prompt and so many steps."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    if page.get_by_role("button", name="Show settings").is_visible():  # on a phone
        page.get_by_role("button", name="Show settings").click()
    page.get_by_role("button", name="All settings").click()
    setting = page.locator("[data-setting=guidance_scale]")
    setting.get_by_role("textbox").fill("7.5")
    page.locator("[data-setting=steps]").get_by_role("textbox").fill(str(steps))
    setting.get_by_role("slider").focus()
    return setting


def filmstrip(page: Page) -> Locator:
    """The open filmstrip."""
    return page.get_by_role("dialog", name="Guidance Scale at several values")


def newest(server: Service, prompt: str) -> dict:
    """The newest set of a prompt on the server."""
    found = httpx.get(f"{server.url}/api/v1/sets", params={"limit": 100}, timeout=30).json()["items"]
    return next(one for one in found if one["request"]["prompt"] == prompt)


def test_values_of_a_slider_are_drawn_side_by_side_and_one_is_taken_by_keyboard(studio, fake_server):
    page = studio().page
    setting = guidance(page, "a boat on a dial", steps=60)
    slider = setting.get_by_role("slider")
    slider.focus()
    page.keyboard.press("d")
    strip = filmstrip(page)
    expect(strip.get_by_role("status")).to_have_text(re.compile(r"7 pictures, about [\d.]+ (s|min)"))
    expect(strip.get_by_role("button", name="Draw 7")).to_be_focused()
    page.keyboard.press("Enter")
    tiles = strip.get_by_role("button", name="Guidance Scale ")
    expect(tiles).to_have_count(7)
    expect(strip.get_by_role("button", name="Guidance Scale 7.5")).to_be_focused()
    expect(strip.locator("img.preview").first).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(strip.get_by_role("button", name="Guidance Scale 8.5")).to_be_focused()
    expect(strip.get_by_role("img", name="Guidance Scale 8.5")).to_be_visible(timeout=PATIENCE)
    page.keyboard.press("Enter")
    expect(strip).to_be_hidden()
    expect(setting.get_by_role("textbox")).to_have_value("8.5")
    expect(slider).to_be_focused()
    made = newest(fake_server, "a boat on a dial")
    values = [4.5, 5.5, 6.5, 7.5, 8.5, 9.5, 10.5]
    assert made["dial"] == {"field": "guidance_scale", "values": values}
    region = page.get_by_role("group", name="a boat on a dial")
    expect(region.get_by_role("listitem")).to_have_text([re.compile(rf"{value}$") for value in values])
    page.get_by_role("button", name="Undo").click()
    expect(setting.get_by_role("textbox")).to_have_value("7.5")
    page.goto(f"{fake_server.url}/#/history?q=a boat on a dial")
    expect(page.get_by_role("gridcell").get_by_text("Guidance Scale 8.5")).to_be_visible(timeout=PATIENCE)


def test_escape_takes_nothing_and_stops_what_is_not_drawn(studio, fake_server):
    page = studio().page
    setting = guidance(page, "a boat that is not wanted", steps=200)
    setting.get_by_role("slider").click(modifiers=["Alt"])
    strip = filmstrip(page)
    strip.get_by_label("From").fill("5")
    strip.get_by_label("To").fill("8")
    expect(strip.get_by_role("status")).to_contain_text("7 pictures, about")
    strip.get_by_role("button", name="Draw 7").click()
    expect(strip.locator("img.preview").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(strip).to_be_hidden()
    expect(setting.get_by_role("textbox")).to_have_value("7.5")
    region = page.get_by_role("group", name="a boat that is not wanted")
    expect(region.get_by_text("7 stopped, ")).to_be_visible()
    made = newest(fake_server, "a boat that is not wanted")
    assert {job["state"] for job in made["jobs"]} == {"cancelled"}
    assert made["dial"]["values"] == [5, 5.5, 6, 6.5, 7, 7.5, 8]


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_on_the_filmstrip(studio, axe, theme, width):
    opened: Studio = studio(width=width, theme=theme)
    page = opened.page
    setting = guidance(page, f"a boat in {theme} on {width}", steps=60)
    setting.get_by_role("button", name="Guidance Scale: try several values").click()
    strip = filmstrip(page)
    expect(strip.get_by_role("status")).to_contain_text("7 pictures, about")
    found = violations(page, axe)
    strip.get_by_role("button", name="Draw 7").click()
    expect(strip.locator("img.preview").first).to_be_visible()
    found += violations(page, axe)
    assert not found, "\n".join(found)
    assert strip.evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
    expect(strip.get_by_role("img")).to_have_count(7, timeout=PATIENCE)
    strip.get_by_role("button", name="Guidance Scale 10.5").click()
    expect(setting.get_by_role("textbox")).to_have_value("10.5")
