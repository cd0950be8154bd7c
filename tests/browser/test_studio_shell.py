"""The studio's shell: that it starts, that Create draws, that keys lead everywhere, that it signs in."""

import re

import pytest
from playwright.sync_api import expect

from tests.waiting import until

pytestmark = pytest.mark.browser


def test_a_first_picture_is_drawn_and_found_in_the_history(studio, server):
    """With the shipped model, by keyboard."""
    page = studio(server).page
    page.get_by_label("Prompt").fill("a blue house at night")
    page.get_by_role("radio", name="1", exact=True).check()
    page.keyboard.press("Control+Enter")
    tile = page.get_by_role("group", name="a blue house at night").get_by_role("link")
    expect(tile).to_have_count(1, timeout=300_000)
    tile.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("img", name="a blue house at night")).to_be_visible()
    page.keyboard.press("g")
    page.keyboard.press("h")
    expect(page.get_by_role("gridcell", name="a blue house at night")).to_have_count(1)


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_screen_opens(studio, width, theme):
    opened = studio(width=width, theme=theme)
    for screen in ("create", "history", "queue", "models", "settings", "compare"):
        opened.open(f"#/{screen}")
        sideways = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert opened.page.evaluate(sideways) == 0, screen


def test_the_palette_and_the_sheet_of_keys(studio):
    page = studio().page
    page.keyboard.press("Control+k")
    page.get_by_role("combobox", name="Commands").fill("history")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#/history"))
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Shortcuts")).to_be_hidden()


def test_screens_that_were_left_leave_nothing_behind(studio):
    opened = studio()
    session = opened.page.context.new_cdp_session(opened.page)

    def nodes() -> int:
        for _ in range(3):
            session.send("HeapProfiler.collectGarbage")
            opened.page.evaluate("new Promise(requestAnimationFrame)")
        return session.send("Memory.getDOMCounters")["nodes"]

    def tour() -> None:
        for screen in ("History", "Queue", "Models", "Settings", "Create"):
            opened.page.get_by_role("link", name=screen).first.click()
            expect(opened.page.locator("main h1").first).to_be_attached()

    tour()
    before = nodes()
    for _ in range(6):
        tour()
    until(lambda: nodes() - before < 200)


def test_keys_can_be_changed_and_none_means_two_things(studio):
    page = studio(hash="#/settings/keys").page
    row = page.get_by_role("listitem").filter(has_text="Shortcuts")
    row.get_by_role("button").click()
    page.keyboard.press("/")
    expect(row.get_by_role("alert")).to_have_text("/ already means “Search pictures”.")
    page.keyboard.press("k")
    page.reload()
    expect(row.get_by_role("button")).to_have_text("K")
    page.keyboard.press("k")
    expect(page.get_by_role("dialog", name="Shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Reset all keys").click()
    expect(row.get_by_role("button")).to_have_text("?")


def test_a_theme_that_was_chosen_stays(studio):
    page = studio(hash="#/settings", theme="light").page
    body = page.locator("body")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("radio", name="Dark").check()
    expect(body).not_to_have_css("background-color", light)
    dark = page.evaluate(ground)
    page.reload()
    expect(page.get_by_role("radio", name="Dark")).to_be_checked()
    expect(body).to_have_css("background-color", dark)
