"""The draft of the composer, when other devices change it and while the server is away."""

import re
import time

import httpx
import pytest
from playwright.sync_api import Page, expect

from benchmarks.faults.service import Service
from tests.browser.held import Held

pytestmark = pytest.mark.browser

THEIRS = {"prompt": "words of another device", "num_images": 9}


def store(server: Service, draft: dict) -> None:
    """Store a draft, as another device does."""
    httpx.put(f"{server.url}/api/v1/drafts/studio", json=draft, timeout=30).raise_for_status()


def wait_for_stored(server: Service, prompt: str | None) -> None:
    """Wait until the server has a draft with a prompt."""
    deadline = time.monotonic() + 60
    while True:
        [found] = httpx.get(f"{server.url}/api/v1/drafts", timeout=30).json() or [{"value": {}}]
        if found["value"].get("prompt") == prompt:
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def look_again(page: Page) -> None:
    """Come back to the page from elsewhere."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def expect_draft(page: Page, prompt: str, count: int) -> None:
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(prompt)
    expect(page.get_by_role("radio", name=str(count), exact=True)).to_be_checked()


def forget(page: Page) -> None:
    """Let the browser forget THEIRS once it has them, so that they come from the server again."""
    expect_draft(page, THEIRS["prompt"], THEIRS["num_images"])
    page.evaluate("localStorage.removeItem('limner.draft')")


def test_what_another_device_stored_is_shown_as_a_whole_until_something_is_entered(studio, fake_server):
    store(fake_server, {"prompt": "words of before", "num_images": 1})
    page = studio().page
    expect_draft(page, "words of before", 1)
    store(fake_server, THEIRS)
    look_again(page)
    expect_draft(page, THEIRS["prompt"], 9)


def test_what_was_entered_stays_until_the_newer_draft_is_asked_for(studio, fake_server):
    page = studio().page
    page.get_by_label("Prompt", exact=True).fill("my own words")
    wait_for_stored(fake_server, "my own words")
    store(fake_server, THEIRS)
    look_again(page)
    show = page.get_by_role("button", name="Show it")
    expect(show).to_be_visible()
    expect_draft(page, "my own words", 4)
    show.click()
    expect_draft(page, THEIRS["prompt"], 9)
    expect(show).to_be_hidden()
    page.get_by_role("button", name="Undo").click()
    expect_draft(page, "my own words", 4)
    wait_for_stored(fake_server, "my own words")


def test_a_draft_that_arrives_late_does_not_replace_what_was_entered(studio, fake_server):
    store(fake_server, THEIRS)
    opened = studio()
    page = opened.page
    forget(page)
    reading = Held(page, "**/api/v1/drafts")
    page.goto(f"{opened.url}/?again#/create")
    route = reading.next()
    page.get_by_role("radio", name="1", exact=True).check()
    with page.expect_response("**/api/v1/drafts") as late:
        route.continue_()
    late.value.finished()
    wait_for_stored(fake_server, None)  # what was entered is what the server has now
    expect_draft(page, "", 1)


def test_answers_of_a_proxy_at_the_start_are_no_uncaught_errors(studio, fake_server):
    store(fake_server, THEIRS)
    opened = studio(tolerate="Failed to load resource")
    page = opened.page
    forget(page)
    turns = {"drafts": 1, "workers": 1, "usage": 1, "sets": 1, "jobs": 1}

    def answer(route) -> None:
        name = re.search(r"/api/v1/(\w+)", route.request.url)[1]
        if turns.get(name, 0) > 0:
            turns[name] -= 1
            route.fulfill(status=502, content_type="text/html", body="<h1>Bad Gateway</h1>")
        else:
            route.continue_()

    page.route("**/api/v1/*", answer)
    page.goto(f"{opened.url}/?again#/create")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(THEIRS["prompt"], timeout=60_000)
    assert turns["workers"] == 0
