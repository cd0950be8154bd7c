"""Sets of variants on the Create screen: growing, stopped, kept, varied, refined, deleted, failed."""

import httpx
import pytest
from playwright.sync_api import Page, expect

from benchmarks.faults.service import Service
from tests.browser.held import Held
from tests.serving import png

pytestmark = pytest.mark.browser

PATIENCE = 240_000


def draw(page: Page, prompt: str, count: int):
    """Draw pictures, and return where they are shown."""
    page.get_by_label("Prompt", exact=True).fill(prompt)  # from now on no other draft is shown
    page.get_by_role("radio", name=str(count), exact=True).check()
    page.get_by_role("button", name="Draw").click()
    return page.get_by_role("group", name=prompt).first


def sets(server: Service, prompt: str) -> list[dict]:
    """The sets of a prompt on the server, newest first."""
    found = httpx.get(f"{server.url}/api/v1/sets", params={"limit": 100}, timeout=30).json()["items"]
    return [one for one in found if one["request"]["prompt"] == prompt]


def test_each_of_sixteen_tiles_shows_previews_and_the_next_seed_takes_the_place_of_a_stopped_one(
    studio, fake_server
):
    page = studio().page
    page.evaluate(
        """() => {
          window.previews = new Map()
          const see = (image) => {
            const place = [...document.querySelectorAll('.stage li')].indexOf(image.closest('li'))
            const all = window.previews.get(place) ?? window.previews.set(place, new Set()).get(place)
            all.add(image.src)
          }
          new MutationObserver((records) => {
            for (const { target } of records) {
              if (target.matches('img.preview')) see(target)
              else target.querySelectorAll('img.preview').forEach(see)
            }
          }).observe(document.body, { subtree: true, childList: true, attributeFilter: ['src'] })
        }"""
    )
    region = draw(page, "sixteen that grow", 16)
    tiles = region.get_by_role("listitem")
    expect(tiles).to_have_count(16)
    last = tiles.nth(15).locator(".open")
    last.focus()
    page.keyboard.press("x")
    expect(region.get_by_text("1 stopped")).to_be_visible()
    expect(last).to_be_focused()
    expect(tiles).to_have_count(16)
    expect(region.get_by_role("link")).to_have_count(16, timeout=PATIENCE)
    [made] = sets(fake_server, "sixteen that grow")
    states = [job["state"] for job in sorted(made["jobs"], key=lambda job: job["index"])]
    assert states == ["done"] * 15 + ["cancelled", "done"]
    seen = page.evaluate("[...window.previews].map(([place, all]) => [place, all.size])")
    assert {place for place, count in seen if count >= 2} == set(range(16))


def test_pictures_are_kept_deleted_and_brought_back_by_keys(studio, fake_server):
    page = studio().page
    region = draw(page, "some to sort out", 4)
    links = region.get_by_role("link")
    expect(links).to_have_count(4, timeout=PATIENCE)
    links.first.focus()
    page.keyboard.press("f")
    expect(region.get_by_role("button", name="Keep", pressed=True)).to_have_count(1)
    page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    page.keyboard.press("x")
    expect(links).to_have_count(2)
    expect(page.get_by_text("2 pictures deleted").first).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(links).to_have_count(4)
    [made] = sets(fake_server, "some to sort out")
    assert [job["image"]["kept"] for job in made["jobs"]] == [True, False, False, False]


def test_a_mark_stays_while_an_older_state_of_the_set_arrives(studio, fake_server):
    page = studio().page
    region = draw(page, "some to mark at once", 4)
    links = region.get_by_role("link")
    expect(links).to_have_count(4, timeout=PATIENCE)
    [made] = sets(fake_server, "some to mark at once")
    marking = Held(page, "**/api/v1/images", lambda request: request.method == "PATCH")
    links.first.focus()
    page.keyboard.press("f")
    kept = region.get_by_role("button", name="Keep", pressed=True)
    expect(kept).to_have_count(1)
    # Another device keeps the second one: the set is read anew, without the mark of the first one.
    body = {"ids": [made["jobs"][1]["image"]["id"]], "kept": True}
    httpx.patch(f"{fake_server.url}/api/v1/images", json=body, timeout=30).raise_for_status()
    expect(region.get_by_role("listitem").nth(1).get_by_role("button", name="Keep")).to_have_attribute(
        "aria-pressed", "true"
    )
    assert kept.count() == 2
    with page.expect_response(lambda answer: answer.request.method == "PATCH"):
        marking.next().continue_()
    expect(kept).to_have_count(2)
    [now] = sets(fake_server, "some to mark at once")
    assert [job["image"]["kept"] for job in now["jobs"]] == [True, True, False, False]


def test_more_like_a_picture_has_its_seed_and_knows_its_parent(studio, fake_server):
    page = studio().page
    region = draw(page, "one to vary", 1)
    expect(region.get_by_role("link")).to_have_count(1, timeout=PATIENCE)
    region.get_by_role("link").focus()
    page.keyboard.press("v")
    made = page.get_by_role("group", name="one to vary").first
    expect(made.get_by_role("group", name="Made from").get_by_role("link")).to_have_count(1)
    expect(made.get_by_role("listitem")).to_have_count(4)
    child, parent = sets(fake_server, "one to vary")
    image = parent["jobs"][0]["image"]
    assert child["parents"] == [image["id"]]
    assert child["relation"] == "variation"
    assert child["request"]["seed"] == image["seed"]
    assert child["request"]["variation_strength"] > 0


def test_a_picture_that_keeps_pixels_of_another_is_refined_from_its_own(studio, fake_server):
    with httpx.Client(base_url=f"{fake_server.url}/api/v1", timeout=60) as client:
        start, mask = (client.post("/uploads", content=png((64, 64), one)).json() for one in ("red", "white"))
        request = {"prompt": "one that was mended", "num_images": 1, "steps": 2, "strength": 0.5}
        request |= {"image": start["reference"], "mask": mask["reference"], "width": 64, "height": 64}
        client.post("/jobs", json={"request": request}, headers={"prefer": "wait=50"}).raise_for_status()
    page = studio().page
    region = page.get_by_role("group", name="one that was mended")
    region.get_by_role("link").focus()
    page.keyboard.press("r")
    expect(region).to_have_count(2)
    expect(region.first.get_by_role("listitem").get_by_role("link")).to_have_count(1, timeout=PATIENCE)
    child, parent = sets(fake_server, "one that was mended")
    assert child["parents"] == [parent["jobs"][0]["image"]["id"]]
    assert child["relation"] == "refined"
    assert child["request"].get("mask") is None
    assert child["request"]["image"] != parent["request"]["image"]
    made = child["jobs"][0]["image"]
    assert (made["width"], made["height"]) == (128, 128)


def test_a_failure_stays_in_its_tile_with_its_reason_and_a_next_step(studio):
    page = studio().page
    region = draw(page, "fail:request please", 1)
    note = region.get_by_role("alert")
    expect(note.get_by_text("invalid_request")).to_be_visible(timeout=PATIENCE)
    expect(note.get_by_text("take the mark fail:request out of it")).to_be_visible()
    note.get_by_role("button", name="Try again").click()
    expect(note.get_by_text("invalid_request")).to_be_visible(timeout=PATIENCE)


def test_a_first_visitor_presses_enter_and_an_example_is_its_exact_request(studio, tmp_path):
    with Service(tmp_path / "data", "--device", "fake:0.02", "--log-level", "warning") as fresh:
        page = studio(fresh).page
        expect(page.get_by_role("button", name="Draw")).to_be_focused()
        examples = page.locator(".first button")
        expect(examples).to_have_count(8)
        examples.nth(2).click()
        expect(page.get_by_label("Prompt", exact=True)).to_have_value(examples.nth(2).text_content().strip())
        expect(page.get_by_role("button", name="Draw")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator(".stage").get_by_role("link")).to_have_count(1, timeout=PATIENCE)
        image = httpx.get(f"{fresh.url}/api/v1/images", timeout=30).json()["items"][0]
        record = httpx.get(f"{fresh.url}/api/v1/images/{image['id']}", timeout=30).json()["record"]
        [made] = httpx.get(f"{fresh.url}/api/v1/sets", timeout=30).json()["items"]
        assert record["request"]["seed"] == made["request"]["seed"] == image["seed"]
        page.close()


def test_two_kept_ones_are_refined_from_their_seeds(studio, server):
    """With the shipped model."""
    page = studio(server).page
    region = draw(page, "a yellow house in the snow", 4)
    expect(region.get_by_role("link")).to_have_count(4, timeout=PATIENCE)
    for place in (0, 2):
        region.get_by_role("link").nth(place).focus()
        page.keyboard.press("f")
    region.get_by_role("button", name="Refine 2 kept").click()
    made = page.get_by_role("group", name="a yellow house in the snow")
    expect(made).to_have_count(3)
    for place in (0, 1):
        expect(made.nth(place).get_by_role("list").get_by_role("link")).to_have_count(1, timeout=PATIENCE)
    *children, parent = sets(server, "a yellow house in the snow")
    kept = [job["image"] for job in parent["jobs"] if job["image"]["kept"]]
    assert len(kept) == len(children) == 2
    by_parent = {child["parents"][0]: child["jobs"][0]["image"] for child in children}
    for image in kept:
        child = by_parent[image["id"]]
        assert child["seed"] == image["seed"]
        assert (child["width"], child["height"]) == (2 * image["width"], 2 * image["height"])
