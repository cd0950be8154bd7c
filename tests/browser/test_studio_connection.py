"""The studio with a connection that comes and goes, in many tabs, and behind a key."""

import httpx
import pytest
from playwright.sync_api import Page, expect

from benchmarks.faults.service import Service
from tests.browser.held import Held
from tests.waiting import until

pytestmark = pytest.mark.browser

PATIENCE = 120_000
BROKEN = "Failed to load resource|ERR_"  # what the console says of requests that did not arrive


def draw(page: Page, prompt: str, count: int = 1) -> None:
    page.get_by_label("Prompt").fill(prompt)  # from now on no other draft is shown
    page.get_by_role("radio", name=str(count), exact=True).check()
    page.get_by_role("button", name="Draw").click()


def sets(server: Service, prompt: str) -> list[dict]:
    """The sets of a prompt on the server."""
    found = httpx.get(f"{server.url}/api/v1/sets", params={"limit": 100}, timeout=30).json()["items"]
    return [one for one in found if one["request"]["prompt"] == prompt]


def test_a_request_without_a_connection_waits_and_is_sent_once(studio, fake_server):
    page = studio(tolerate=BROKEN).page
    page.context.set_offline(True)
    expect(page.get_by_role("button", name="Draw when back online")).to_be_visible()
    page.get_by_role("radio", name="1", exact=True).check()
    page.get_by_label("Prompt").fill("drawn without a connection")
    page.get_by_role("button", name="Draw when back online").click()
    expect(page.get_by_text("1 request is waiting to be sent.")).to_be_visible()
    assert sets(fake_server, "drawn without a connection") == []
    page.context.set_offline(False)
    tile = page.get_by_role("group", name="drawn without a connection").get_by_role("link")
    expect(tile).to_have_count(1, timeout=PATIENCE)
    expect(page.get_by_text("cannot be reached")).to_be_hidden()
    assert len(sets(fake_server, "drawn without a connection")) == 1
    expect(page.get_by_label("Prompt")).to_have_value("drawn without a connection")


def test_a_waiting_request_that_is_refused_is_told_when_the_studio_opens(studio):
    opened = studio(tolerate="422")
    page = opened.page
    body = {"request": {"prompt": "a boat", "steps": -1}}
    page.evaluate("body => localStorage.setItem('limner.outbox', JSON.stringify([{key: 'k1', body}]))", body)
    page.reload()
    expect(page.get_by_role("region", name="Notes").get_by_text("steps")).to_be_visible()
    expect(page.get_by_text("Connected")).to_be_visible()
    page.wait_for_function("localStorage.getItem('limner.outbox') === '[]'")


def test_a_reload_halfway_goes_on_with_the_same_tiles_and_the_draft(studio, fake_server):
    opened = studio()
    page = opened.page
    draw(page, "seen again after a reload", 4)
    region = page.get_by_role("group", name="seen again after a reload")
    expect(region.get_by_role("progressbar").first).to_be_visible(timeout=PATIENCE)
    page.get_by_label("Prompt").fill("half a thought")
    page.reload()
    expect(page.get_by_label("Prompt")).to_have_value("half a thought")
    expect(region.get_by_role("listitem")).to_have_count(4)
    expect(region.get_by_role("link")).to_have_count(4, timeout=PATIENCE)
    elsewhere = studio().page  # another browser of the same account
    expect(elsewhere.get_by_label("Prompt")).to_have_value("half a thought")
    expect(
        elsewhere.get_by_role("group", name="seen again after a reload").get_by_role("link")
    ).to_have_count(4)


def test_what_ended_before_the_stream_of_events_came_is_shown(studio, fake_server):
    opened = studio(hash="#/settings")
    page = opened.page
    streaming = Held(page, "**/api/v1/events*")
    body = {"request": {"prompt": "done while nobody listened", "num_images": 1, "steps": 20}}
    made = httpx.post(f"{fake_server.url}/api/v1/jobs", json=body, timeout=30).json()
    page.goto(f"{opened.url}/?again#/create")
    region = page.get_by_role("group", name="done while nobody listened")
    expect(region.get_by_role("listitem")).to_have_count(1)
    stream = streaming.next()
    httpx.get(f"{fake_server.url}/api/v1/sets/{made['id']}", params={"wait": 60}, timeout=70)
    stream.continue_()
    expect(region.get_by_role("link")).to_have_count(1, timeout=PATIENCE)


def test_a_server_that_was_killed_is_found_again_and_finishes_what_it_accepted(studio, tmp_path):
    with Service(tmp_path / "data", "--device", "fake:0.2", "--log-level", "warning") as server:
        opened = studio(server, tolerate=BROKEN)
        draw(opened.page, "drawn across a restart", 4)
        region = opened.page.get_by_role("group", name="drawn across a restart")
        expect(region.get_by_role("progressbar").first).to_be_visible(timeout=PATIENCE)
        assert server.kill("worker")
        assert server.kill("api")
        expect(region.get_by_role("link")).to_have_count(4, timeout=PATIENCE)
        expect(opened.page.get_by_text("Connected")).to_be_visible()
        [made] = sets(server, "drawn across a restart")
        assert [job["state"] for job in made["jobs"]] == ["done"] * 4
        opened.page.close()


def test_seven_tabs_share_one_stream_and_all_live(studio, fake_server):
    tabs = [studio()]
    tabs += [studio(context=tabs[0].page.context) for _ in range(6)]
    draw(tabs[3].page, "seen in seven tabs")
    for tab in tabs:
        link = tab.page.get_by_role("group", name="seen in seven tabs").get_by_role("link")
        expect(link).to_have_count(1, timeout=PATIENCE)
    until(lambda: "\nlimner_event_streams 1" in httpx.get(f"{fake_server.url}/metrics", timeout=30).text)
    tabs[0].page.close()  # the one that holds the stream
    draw(tabs[5].page, "seen in the other six")
    for tab in tabs[1:]:
        link = tab.page.get_by_role("group", name="seen in the other six").get_by_role("link")
        expect(link).to_have_count(1, timeout=PATIENCE)


def test_a_key_opens_the_studio_of_its_account_only(studio, tmp_path):
    with Service(tmp_path / "data", "--device", "fake:0.01", "--log-level", "warning") as server:
        secrets = {}
        with httpx.Client(base_url=f"{server.url}/api/v1", timeout=30) as root:
            operator = root.post("/keys", json={"name": "operator"}).json()["secret"]
            root.headers["authorization"] = f"Bearer {operator}"
            for name in ("ann", "ben"):
                assert root.post("/accounts", json={"id": name}).is_success
                made = root.post("/keys", json={"name": name, "account": name})
                assert made.is_success, made.text
                secrets[name] = made.json()["secret"]

        pages = {}
        for name, secret in secrets.items():
            opened = studio(server, tolerate="401")
            expect(opened.page.get_by_role("heading", name="Sign in to Limner")).to_be_visible()
            opened.page.get_by_label("Key").fill("no such key")
            opened.page.get_by_role("button", name="Sign in").click()
            expect(opened.page.get_by_text("This key is not valid here.")).to_be_visible()
            opened.page.get_by_label("Key").fill(secret)
            opened.page.keyboard.press("Enter")
            expect(opened.page.get_by_role("button", name="Draw")).to_be_visible()
            pages[name] = opened.page

        for name, page in pages.items():
            prompt = f"what only {name} may see"
            draw(page, prompt)
            expect(page.get_by_role("group", name=prompt).get_by_role("link")).to_have_count(
                1, timeout=PATIENCE
            )
        assert "only ann" not in pages["ben"].content()
        assert "only ben" not in pages["ann"].content()
        for page in pages.values():
            page.close()
