"""Sorting by taste: the pictures of a set, while they grow, and History."""

import json
import re
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from benchmarks.faults.service import Service
from tests.browser.test_studio_sets import draw, sets
from tests.waiting import until

pytestmark = pytest.mark.browser

PATIENCE = 240_000
NOTE = "keep one picture, and these are sorted by it"


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server that draws one picture after the other, and has no vectors of them."""
    data = tmp_path_factory.mktemp("slow") / "data"
    with Service(data, "--device", "fake:0.1", "--log-level", "warning") as running:
        yield running


def rated(page: Page, score) -> None:
    """Have the server rate pictures by their numbers."""

    def answer(route: Route) -> None:
        [numbers] = parse_qs(urlsplit(route.request.url).query)["numbers"]
        items = [{"number": number, "score": score(number)} for number in map(int, numbers.split(","))]
        route.fulfill(content_type="application/json", body=json.dumps({"items": items, "picks": 1}))

    page.route("**/api/v1/images/taste?*", answer)


def sort(region: Locator) -> Locator:
    return region.get_by_role("button", name="Sort by your taste")


def numbers_of(server: Service, prompt: str, region: Locator) -> list[int]:
    """Places of the set's pictures, from 0 in the order in which they were drawn, as they are shown."""
    [made] = sets(server, prompt)
    place = {job["image"]["id"]: job["index"] for job in made["jobs"]}
    links = region.locator("a.open").evaluate_all("all => all.map(one => one.getAttribute('href'))")
    return [place[link.rpartition("/")[2]] for link in links]


def test_pictures_are_sorted_as_they_come_and_the_focus_stays_with_its_own(studio, slow_server):
    page = studio(slow_server).page
    rated(page, lambda number: number / 1000)
    region = draw(page, "four that come one by one", 4)
    sort(region).click()
    until(lambda: sets(slow_server, "four that come one by one")[0]["jobs"][0]["image"])
    [made] = sets(slow_server, "four that come one by one")
    own = f"#/image/{made['jobs'][0]['image']['id']}"
    region.locator(f"a[href='{own}']").focus()
    expect(region.get_by_role("link")).to_have_count(4, timeout=PATIENCE)
    expect(region.get_by_role("link").nth(3)).to_have_attribute("href", own)
    assert numbers_of(slow_server, "four that come one by one", region) == [3, 2, 1, 0]
    expect(region.locator(f"a[href='{own}']")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(region.get_by_role("link").nth(2)).to_be_focused()

    sort(region).click()
    expect(region.get_by_role("link").first).to_have_attribute("href", own)
    expect(sort(region)).to_have_attribute("aria-pressed", "false")


def test_without_a_kept_picture_a_note_says_what_is_missing(studio, slow_server):
    page = studio(slow_server).page
    region = draw(page, "two without a taste", 4)
    expect(region.get_by_role("link")).to_have_count(4, timeout=PATIENCE)
    sort(region).click()
    expect(region.get_by_text(NOTE)).to_be_visible()
    assert numbers_of(slow_server, "two without a taste", region) == [0, 1, 2, 3]


def test_where_the_taste_is_off_nothing_offers_it(studio, slow_server):
    taste = f"{slow_server.url}/api/v1/taste"
    page = studio(slow_server, tolerate="409").page
    region = draw(page, "sorted no more", 4)
    expect(region.get_by_role("link")).to_have_count(4, timeout=PATIENCE)
    expect(sort(region)).to_be_visible()
    httpx.put(taste, json={"enabled": False}, timeout=30).raise_for_status()
    sort(region).click()  # it was switched off elsewhere
    expect(sort(region)).to_be_hidden()
    expect(region.get_by_role("alert")).to_be_hidden()
    page.goto(f"{slow_server.url}/#/history?order=taste")
    expect(page).to_have_url(re.compile("#/history$"))
    expect(page.get_by_label("Order").get_by_role("option")).to_have_text(["Newest"])
    expect(page.get_by_role("alert")).to_be_hidden()
    page.goto(f"{slow_server.url}/#/settings/taste")
    page.get_by_label("Offer to sort by my taste").check()
    page.goto(f"{slow_server.url}/#/history")
    expect(page.get_by_label("Order").get_by_role("option")).to_have_text(["Newest", "Your taste"])


def test_the_shown_order_is_that_of_the_server(studio, server):
    """With the shipped model, whose networks compare the pictures."""
    page = studio(server).page
    region = draw(page, "a house of any colour", 4)
    expect(region.get_by_role("link")).to_have_count(4, timeout=PATIENCE)
    region.get_by_role("link").nth(2).focus()
    page.keyboard.press("f")
    expect(region.get_by_role("button", name="Keep", pressed=True)).to_have_count(1)
    [made] = sets(server, "a house of any colour")
    numbers = {job["image"]["number"]: job["index"] for job in made["jobs"]}
    asked = {"numbers": ",".join(map(str, numbers))}

    def ranked() -> list[int]:
        found = httpx.get(f"{server.url}/api/v1/images/taste", params=asked, timeout=30).json()
        return [numbers[one["number"]] for one in found["items"]]

    until(lambda: len(ranked()) == 4)  # the worker compares them when it has nothing to draw
    sort(region).click()
    until(lambda: numbers_of(server, "a house of any colour", region) == ranked())
    assert ranked() != [0, 1, 2, 3]
