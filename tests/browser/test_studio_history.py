"""History: ten thousand pictures, many at once, the trash, albums, search, and what other tabs do."""

import json
import re
from collections.abc import Iterator
from datetime import datetime

import httpx
import pytest
from playwright.sync_api import Page, expect

from benchmarks.faults.service import Service
from tests.browser.library import fill, prompt_of
from tests.waiting import until

pytestmark = pytest.mark.browser

COUNT = 10_000
PATIENCE = 120_000
INDEXING = 300  # seconds


def index(server: Service, **which: str) -> dict:
    return httpx.get(f"{server.url}/api/v1/images/index", params=which, timeout=30).json()


def search(server: Service, **query: str) -> dict:
    return httpx.get(f"{server.url}/api/v1/images/search", params=query, timeout=60).json()


@pytest.fixture(scope="module")
def full_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server with 10,000 pictures."""
    with Service(
        tmp_path_factory.mktemp("full") / "data", "--device", "fake", "--log-level", "warning"
    ) as on:
        fill(on.data, COUNT)
        until(lambda: search(on, q="boat")["total"] == COUNT // 5, "the index of all pictures", INDEXING)
        yield on


@pytest.fixture
def small_server(tmp_path) -> Iterator[Service]:
    """A server with 60 pictures, which a test may change."""
    with Service(tmp_path / "data", "--device", "fake", "--log-level", "warning") as on:
        fill(on.data, 60, days=50)
        yield on


def cell(page: Page, row: int):
    return page.locator(f'[data-index="{row}"]')


def shown_numbers(page: Page) -> list[int]:
    """Numbers of the pictures in the page, in their order."""
    sources = page.locator("[data-index] img").evaluate_all("all => all.map(one => one.src)")
    return [int(one.split("/")[-2]) for one in sources]


def test_ten_thousand_pictures_have_an_exact_scrollbar_and_few_nodes(studio, full_server):
    page = studio(full_server, hash="#/history").page
    grid = page.get_by_role("grid", name="Pictures, newest first")
    expect(page.get_by_text("10,000 pictures")).to_be_visible()
    expect(cell(page, 0)).to_be_visible()
    view = page.locator(".view")
    height = view.evaluate("view => view.scrollHeight")

    # Scrolled through in a hundred frames: the height stays, the page stays small, and no view is empty.
    seen = view.evaluate(
        """async (view) => {
          const seen = []
          for (let at = 0; at <= 100; at++) {
            view.scrollTop = ((view.scrollHeight - view.clientHeight) * at) / 100
            await new Promise(requestAnimationFrame)
            await new Promise(requestAnimationFrame)
            const { top, bottom } = view.getBoundingClientRect()
            const rows = [...view.querySelectorAll('.line')].map((row) => row.getBoundingClientRect())
            const inView = rows.filter((row) => row.bottom > top && row.top < bottom)
            const empty = bottom - top - inView.reduce((sum, row) => sum + row.height + 8, 0)
            seen.push([document.querySelectorAll('*').length, view.scrollHeight, empty])
          }
          return seen
        }"""
    )
    assert max(nodes for nodes, _, _ in seen) < 2500
    assert {tall for _, tall, _ in seen} == {height}
    assert max(empty for _, _, empty in seen) < 100  # a month's heading, and gaps
    expect(cell(page, COUNT - 1)).to_be_in_viewport()
    expect(cell(page, COUNT - 1).get_by_role("img")).to_have_attribute("alt", prompt_of(1))

    # By its name: a label too close to the one above it is left out, as in the first days of a month.
    first, name = index(full_server)["months"][2]
    label = datetime.strptime(name, "%Y-%m").strftime("%B %Y")
    page.get_by_role("navigation", name="Months").get_by_role("button", name=label).click()
    expect(cell(page, first)).to_be_in_viewport()
    cell(page, first).focus()
    page.keyboard.press("End")
    expect(cell(page, COUNT - 1)).to_be_focused()
    page.keyboard.press("Home")
    expect(cell(page, 0)).to_be_focused()
    expect(grid).to_have_attribute("aria-rowcount", str(grid.get_attribute("aria-rowcount")))


def test_keeping_does_not_scroll_and_is_seen_elsewhere(studio, full_server):
    opened = studio(full_server, hash="#/history")
    other = studio(full_server, hash="#/history").page
    page = opened.page
    expect(cell(page, 1)).to_be_visible()
    page.locator(".view").evaluate("view => (view.scrollTop = 40_000)")
    expect(page.locator("[data-index]:focus")).to_have_count(0)
    # The rows of the new position are rendered; the row that was last in use, the first, stays beside them.
    row = until(
        lambda: page.locator(".view").evaluate(
            """(view) => {
              const { top, bottom } = view.getBoundingClientRect()
              const within = ({ top: upper, bottom: lower }) => upper >= top && lower <= bottom
              const cells = [...view.querySelectorAll('[data-index]')]
              return cells.find((cell) => within(cell.getBoundingClientRect()))?.dataset.index
            }"""
        )
    )
    kept = cell(page, row).get_by_role("button", name="Keep")
    was = kept.get_attribute("aria-pressed") == "true"
    cell(page, row).focus()
    before = page.locator(".view").evaluate("view => view.scrollTop")
    page.keyboard.press("f")
    expect(kept).to_have_attribute("aria-pressed", str(not was).lower())
    assert page.locator(".view").evaluate("view => view.scrollTop") == before
    expect(cell(page, row)).to_be_focused()

    cell(page, row).press("Home")
    page.keyboard.press("f")  # the newest is kept: it is not any more
    expect(cell(other, 0).get_by_role("button", name="Keep")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("f")
    expect(cell(other, 0).get_by_role("button", name="Keep")).to_have_attribute("aria-pressed", "true")


def test_twenty_are_deleted_at_once_and_undo_puts_them_back_in_order(small_server, studio):
    page = studio(small_server, hash="#/history").page
    expect(page.get_by_text("60 pictures")).to_be_visible()
    before = index(small_server)
    cell(page, 3).get_by_role("button", name="Select").click(force=True)
    cell(page, 22).scroll_into_view_if_needed()
    cell(page, 22).click(modifiers=["Shift"])
    expect(page.get_by_role("toolbar").get_by_text("20 selected")).to_be_visible()
    page.keyboard.press("x")
    expect(page.get_by_text("40 pictures", exact=True)).to_be_visible()
    expect(page.get_by_role("paragraph").filter(has_text="20 pictures moved to the trash")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("60 pictures")).to_be_visible()
    until(lambda: index(small_server) == before)
    page.locator(".view").evaluate("view => (view.scrollTop = 0)")
    expect(cell(page, 0).get_by_role("img")).to_have_attribute("alt", prompt_of(60))
    until(lambda: (numbers := shown_numbers(page)) == list(range(60, 60 - len(numbers), -1)))


def test_the_next_picture_has_focus_after_one_is_deleted(small_server, studio):
    page = studio(small_server, hash="#/history").page
    cell(page, 4).focus()
    page.keyboard.press("Delete")
    expect(page.get_by_text("59 pictures")).to_be_visible()
    expect(cell(page, 4)).to_be_focused()
    expect(cell(page, 4).get_by_role("img")).to_have_attribute("src", "/api/v1/images/55/thumbnail")


def test_a_key_acts_on_the_picture_that_gets_it(small_server, studio):
    page = studio(small_server, hash="#/history", tolerate="404.*/file").page
    cell(page, 1).focus()
    cell(page, 4).dispatch_event("keydown", {"key": "Enter", "bubbles": True})
    expect(page).to_have_url(re.compile("#/image/56"))


def test_focus_comes_back_with_a_list_that_was_empty(small_server, studio):
    page = studio(small_server, hash="#/history").page
    cell(page, 3).focus()
    page.keyboard.press("Control+a")
    page.keyboard.press("x")
    expect(page.get_by_role("heading", name="No pictures yet")).to_be_visible()
    expect(page.get_by_role("heading", name="History: All pictures")).to_be_focused()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("[data-index]:focus")).to_have_count(1)


def test_the_trash_gives_back_and_is_emptied(small_server, studio):
    opened = studio(small_server, hash="#/history")
    page = opened.page
    cell(page, 0).focus()
    for left in (59, 58):
        page.keyboard.press("x")
        expect(page.get_by_text(f"{left} pictures")).to_be_visible()
    page.get_by_role("link", name="Trash").click()
    expect(page.get_by_text("2 pictures", exact=True)).to_be_visible()
    cell(page, 1).click(modifiers=["Control"])
    page.get_by_role("button", name="Restore").click()
    expect(page.get_by_text("1 picture", exact=True)).to_be_visible()
    page.get_by_role("button", name="Empty the trash").click()
    page.get_by_role("dialog").get_by_role("button", name="Empty the trash").click()
    expect(page.get_by_role("heading", name="The trash is empty")).to_be_visible()
    until(lambda: index(small_server, deleted="true")["total"] == 0)
    assert index(small_server)["total"] == 59


def test_albums_are_made_filled_renamed_and_deleted(small_server, studio):
    page = studio(small_server, hash="#/history").page
    cell(page, 1).click(modifiers=["Control"])
    cell(page, 3).click(modifiers=["Control"])
    page.get_by_role("button", name="Add to album").click()
    page.get_by_label("Name of the album").fill("For Anna")
    page.get_by_role("button", name="Create", exact=True).click()
    page.get_by_role("link", name="For Anna 2").click()
    expect(page.get_by_text("2 pictures", exact=True)).to_be_visible()
    until(lambda: shown_numbers(page) == [59, 57])

    page.get_by_role("combobox", name="Search").fill("seed:57")  # within the album
    expect(page.get_by_text("1 picture", exact=True)).to_be_visible()
    page.get_by_role("button", name="Remove seed 57").click()
    expect(page.get_by_text("2 pictures", exact=True)).to_be_visible()

    cell(page, 0).click(modifiers=["Control"])
    page.get_by_role("button", name="Take out of the album").click()
    expect(page.get_by_role("link", name="For Anna 1")).to_be_visible()
    page.get_by_role("button", name="More: For Anna").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("Name of the album").fill("For Ben")
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="For Ben 1")).to_be_visible()
    page.get_by_role("button", name="More: For Ben").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Delete album").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete album").click()
    expect(page.get_by_text("60 pictures")).to_be_visible()
    until(lambda: httpx.get(f"{small_server.url}/api/v1/albums", timeout=30).json() == [])


def test_new_pictures_come_without_moving_what_is_looked_at(small_server, studio):
    page = studio(small_server, width=390, hash="#/history").page
    expect(page.get_by_text("60 pictures")).to_be_visible()
    page.locator(".view").evaluate("view => (view.scrollTop = 600)")
    expect(cell(page, 0)).not_to_be_in_viewport()
    places = "all => all.map(one => [one.querySelector('img').src, one.getBoundingClientRect().y])"
    before = page.locator("[data-index]").evaluate_all(places)
    body = {"request": {"prompt": "a picture that is new", "num_images": 1, "steps": 1}}
    httpx.post(
        f"{small_server.url}/api/v1/jobs", json=body, headers={"prefer": "wait=60"}, timeout=90
    ).raise_for_status()
    expect(page.get_by_role("button", name="New pictures")).to_be_visible()
    assert page.locator("[data-index]").evaluate_all(places) == before
    page.get_by_role("button", name="New pictures").click()
    expect(cell(page, 0).get_by_role("img")).to_have_attribute("alt", "a picture that is new")
    expect(page.get_by_text("61 pictures")).to_be_visible()


def test_a_search_is_completed_read_back_as_chips_and_kept_in_the_address(studio, full_server):
    opened = studio(full_server, hash="#/history", tolerate="422")
    page = opened.page
    page.keyboard.press("/")
    box = page.get_by_role("combobox", name="Search")
    expect(box).to_be_focused()
    box.press_sequentially("red boat ke")
    expect(page.get_by_role("option", name="kept:")).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("option", name="yes")).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(box).to_have_value("red boat kept:yes ")
    expect(page.get_by_role("button", name="Remove kept yes")).to_be_visible()
    red_and_kept = [
        one for one in range(COUNT, 0, -1) if one % 20 == 0 and prompt_of(one) == "a red boat on a lake"
    ]
    expect(page.get_by_text(f"{len(red_and_kept)} pictures", exact=True)).to_be_visible()
    expect(cell(page, 0).get_by_role("img")).to_have_attribute("alt", "a red boat on a lake")

    page.reload()
    expect(box).to_have_value("red boat kept:yes ")
    expect(page.get_by_text(f"{len(red_and_kept)} pictures", exact=True)).to_be_visible()
    page.get_by_label("Order").select_option("newest")
    expect(cell(page, 0).locator("img")).to_have_attribute(
        "src", f"/api/v1/images/{red_and_kept[0]}/thumbnail"
    )

    box.fill("colour:red")
    expect(page.get_by_role("alert")).to_contain_text("colour")
    box.fill("seed:77777")
    expect(page.get_by_role("heading", name="Nothing found")).to_be_visible()
    page.get_by_role("main").get_by_role("button", name="Clear the search").last.click()
    expect(page.get_by_text("10,000 pictures")).to_be_visible()


def test_likeness_ranks_pictures_of_the_same_kind_first(studio, server):
    """With the shipped model, from a picture and from a file."""
    kinds = ("a red circle", "a blue square")
    numbers: dict[str, list[int]] = {}
    for kind in kinds:
        body = {"request": {"prompt": kind, "num_images": 6, "steps": 6, "seed": 5}}
        made = httpx.post(
            f"{server.url}/api/v1/jobs", json=body, headers={"prefer": "wait=500"}, timeout=600
        ).json()
        assert made["ended"], json.dumps(made)[:500]
        numbers[kind] = [job["image"]["number"] for job in made["jobs"]]
    first = numbers[kinds[0]][0]
    # Vectors are made while nothing is drawn.
    until(lambda: search(server, like=str(first))["total"] >= 12, "the index of all pictures", INDEXING)
    page = studio(server, hash=f"#/history?like={first}").page
    expect(page.get_by_text(f"like picture {first}")).to_be_visible()
    expect(cell(page, 5)).to_be_visible(timeout=PATIENCE)
    drawn_here = {*numbers[kinds[0]], *numbers[kinds[1]]} - {first}  # other tests draw on this server, too
    best = [one for one in shown_numbers(page) if one in drawn_here][:5]
    assert len(set(best) & set(numbers[kinds[0]])) >= 4, (best, numbers)

    file = httpx.get(f"{server.url}/api/v1/images/{numbers[kinds[1]][0]}/file", timeout=30).content
    page.locator("main input[type=file]").set_input_files(
        {"name": "mine.png", "mimeType": "image/png", "buffer": file}
    )
    expect(page.get_by_text("like your file")).to_be_visible()
    expect(cell(page, 0).locator("img")).to_have_attribute(
        "src", f"/api/v1/images/{numbers[kinds[1]][0]}/thumbnail", timeout=PATIENCE
    )
