"""The queue: moving, pausing and stopping one, many and all; what ended, and trying again."""

import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from benchmarks.faults.service import Service
from tests.browser.held import Held
from tests.waiting import until

pytestmark = pytest.mark.browser

PATIENCE = 60_000
LONG = "what takes long"


def submit(server: Service, prompt: str, count: int, steps: int = 2) -> list[str]:
    """Submit a request, and return the ids of its jobs."""
    body = {"request": {"prompt": prompt, "num_images": count, "steps": steps, "width": 64, "height": 64}}
    made = httpx.post(f"{server.url}/api/v1/jobs", json=body, timeout=30).json()
    return [job["id"] for job in made["jobs"]]


@pytest.fixture
def busy(fake_server: Service, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A server that is drawing for longer than a test takes, so that whatever is submitted next waits."""
    submit(fake_server, f"{LONG}: {request.node.name}", 64, steps=250)
    yield fake_server
    httpx.post(f"{fake_server.url}/api/v1/jobs/cancel", json={"all": True}, timeout=30).raise_for_status()


def queued(server: Service) -> list[tuple[str, int]]:
    """The state and place within its set of each job of the queue that was not submitted by `busy`."""
    found = httpx.get(f"{server.url}/api/v1/jobs", params={"order": "queue", "limit": 500}, timeout=30).json()
    long = {one["id"] for one in sets(server) if one["request"]["prompt"].startswith(LONG)}
    return [(job["state"], job["index"]) for job in found["items"] if job["set_id"] not in long]


def sets(server: Service) -> list[dict]:
    return httpx.get(f"{server.url}/api/v1/sets", params={"limit": 100}, timeout=30).json()["items"]


def rows(page: Page, prompt: str) -> Locator:
    """The handles of the jobs of a prompt, in the order in which they are on the screen."""
    return page.get_by_role("button", name=re.compile(rf"^Move \d of 4: {prompt}$"))


def shown(page: Page, prompt: str, numbers: list[int]) -> None:
    """Wait until the jobs stand in an order, by their numbers."""
    handles = rows(page, prompt)
    expect(handles).to_have_count(len(numbers), timeout=PATIENCE)
    for place, number in enumerate(numbers):
        expect(handles.nth(place)).to_have_accessible_name(f"Move {number} of 4: {prompt}", timeout=PATIENCE)


def test_waiting_jobs_are_moved_by_keys_and_by_dragging(studio, busy):
    submit(busy, "many kites", 4)
    page = studio(hash="#/queue").page
    shown(page, "many kites", [1, 2, 3, 4])

    rows(page, "many kites").nth(2).focus()
    page.keyboard.press("Alt+ArrowUp")
    shown(page, "many kites", [1, 3, 2, 4])
    expect(rows(page, "many kites").nth(1)).to_be_focused()  # it took focus along

    page.get_by_role("checkbox", name="Select 2 of 4: many kites").check()
    page.get_by_role("checkbox", name="Select 4 of 4: many kites").check()
    rows(page, "many kites").nth(3).focus()
    page.keyboard.press("Alt+ArrowUp")
    shown(page, "many kites", [1, 2, 4, 3])
    page.get_by_role("button", name="Clear selection").click()

    source, target = (
        rows(page, "many kites").nth(3).bounding_box(),
        rows(page, "many kites").nth(0).bounding_box(),
    )
    page.mouse.move(source["x"] + 10, source["y"] + source["height"] / 2)
    page.mouse.down()
    page.mouse.move(target["x"] + 10, target["y"] + 4, steps=4)
    page.mouse.up()
    shown(page, "many kites", [3, 1, 2, 4])
    until(lambda: [index for _, index in queued(busy)] == [2, 0, 1, 3])


def test_jobs_are_paused_and_stopped_one_many_and_all(studio, busy):
    submit(busy, "kites to stop", 4)
    page = studio(hash="#/queue").page
    shown(page, "kites to stop", [1, 2, 3, 4])
    second = page.get_by_role("checkbox", name="Select 2 of 4: kites to stop")
    row = page.get_by_role("listitem").filter(has=second).last  # in that of the set
    row.get_by_role("button", name="Pause").click()
    expect(row.get_by_text("Paused")).to_be_visible(timeout=PATIENCE)
    shown(page, "kites to stop", [1, 3, 4, 2])  # those that are paused stand last
    page.get_by_role("button", name="Go on with all", exact=True).click()
    shown(page, "kites to stop", [1, 2, 3, 4])

    rows(page, "kites to stop").nth(0).focus()
    page.keyboard.press("x")
    shown(page, "kites to stop", [2, 3, 4])
    expect(rows(page, "kites to stop").nth(0)).to_be_focused()  # the next one
    page.get_by_role("checkbox", name="Select 2 of 4: kites to stop").check()
    page.get_by_role("checkbox", name="Select 4 of 4: kites to stop").check()
    page.get_by_role("group", name="2 selected").get_by_role("button", name="Stop").click()
    shown(page, "kites to stop", [3])
    page.get_by_role("button", name="Stop all", exact=True).click()
    expect(page.get_by_role("heading", name="Nothing is waiting")).to_be_visible(timeout=PATIENCE)


def test_what_failed_is_told_with_its_reason_and_tried_again(studio, fake_server):
    submit(fake_server, "a kite that fail:request halfway", 2)
    page = studio(hash="#/queue").page
    ended = page.get_by_role("region", name="Recently ended").get_by_role("listitem").first
    expect(ended).to_contain_text("2 failed", timeout=PATIENCE)
    expect(ended.get_by_role("alert")).to_contain_text("take the mark fail:request out of it")
    with page.expect_response(lambda answer: answer.url.endswith("/retry")):
        ended.get_by_role("button", name="Try again").click()
    expect(ended).to_contain_text("2 failed", timeout=PATIENCE)
    submit(fake_server, "two kites that are done", 2)
    done = (
        page.get_by_role("region", name="Recently ended").get_by_role("listitem").filter(has_text="two kites")
    )
    expect(done.get_by_role("link")).to_have_count(2, timeout=PATIENCE)
    done.get_by_role("link").first.click()
    expect(page.get_by_role("img", name="two kites that are done").first).to_be_visible()


def test_an_older_state_of_the_queue_does_not_replace_a_newer_one(studio, busy):
    page = studio(hash="#/queue").page
    expect(page.get_by_role("heading", name=LONG).last).to_be_visible()
    turns = iter([True])
    reading = Held(page, re.compile(r"/api/v1/jobs\?.*order=queue"), lambda _: next(turns, False))
    submit(busy, "a kite that is read late", 1)
    late = reading.next()
    submit(busy, "a kite that is read at once", 1)
    heading = page.get_by_role("heading", name="a kite that is read at once")
    expect(heading).to_be_visible()
    with page.expect_response(lambda answer: "order=queue" in answer.url) as answer:
        late.fulfill(json={"items": [], "next": None, "total": 0})
    answer.value.finished()
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    expect(heading).to_be_visible()


def test_a_picture_that_cannot_be_stopped_is_not_shown_as_stopping(studio, busy):
    submit(busy, "one that is not stopped", 1)
    page = studio(tolerate="Failed to load resource").page
    page.route("**/cancel", lambda route: route.fulfill(status=503, json={"title": "Busy", "code": "busy"}))
    region = page.get_by_role("group", name="one that is not stopped")
    notes = page.get_by_role("region", name="Notes")
    for name in ("Stop this one", "Stop all of these"):
        region.get_by_role("button", name=name).click()
        expect(notes.get_by_text("Busy")).to_be_visible()
        expect(region.get_by_text("Stopping")).to_be_hidden()
        notes.get_by_role("button", name="Close").click()
        expect(notes.get_by_text("Busy")).to_be_hidden()
