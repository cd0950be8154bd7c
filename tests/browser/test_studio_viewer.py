"""The viewer by keys, the picture's card, its proof, and the comparison of pictures."""

import re
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect

from benchmarks.faults.service import Service
from tests.browser.held import Held
from tests.browser.library import fill, prompt_of
from tests.waiting import until

pytestmark = pytest.mark.browser

PATIENCE = 300_000
NO_FILE = "404.*/file"  # what the console says of the pictures that have none


def draw(server: Service, **request: object) -> list[dict]:
    """Draw, and return the pictures."""
    answer = httpx.post(
        f"{server.url}/api/v1/jobs", json={"request": request}, headers={"prefer": "wait=300"}, timeout=310
    )
    answer.raise_for_status()
    made = answer.json()
    assert made["ended"], answer.text
    return [job["image"] for job in made["jobs"]]


def image_of(server: Service, number: int) -> dict:
    return httpx.get(f"{server.url}/api/v1/images/{number}", timeout=30).json()


def wait_for_draft(server: Service, **fields: object) -> None:
    """Wait until the server has a draft with these settings."""
    deadline = time.monotonic() + 60
    while True:
        drafts = httpx.get(f"{server.url}/api/v1/drafts", timeout=30).json()
        found = next((one["value"] for one in drafts if one["name"] == "studio"), {})
        if fields.items() <= found.items():
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


@pytest.fixture
def library_server(tmp_path) -> Iterator[Service]:
    """A server with 40 pictures, of which only the last two have a file."""
    with Service(tmp_path / "data", "--device", "fake", "--log-level", "warning") as on:
        fill(on.data, 40, days=30)
        draw(on, prompt="the first of two", width=256, height=192, seed=3, steps=4)
        draw(on, prompt="the second of two", width=256, height=192, seed=3, steps=6)
        yield on


def picture(page: Page, name: str):
    return page.get_by_role("main").get_by_role("img", name=name, exact=True)


def test_keys_lead_through_the_pictures_keep_and_delete_them(library_server, studio):
    page = studio(library_server, hash="#/history", tolerate=NO_FILE).page
    page.locator('[data-index="1"]').focus()
    page.keyboard.press("Enter")
    expect(picture(page, "the first of two")).to_be_visible()
    expect(page.get_by_text("2 of 42")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(picture(page, "the second of two")).to_be_visible()
    page.keyboard.press("f")
    expect(page.get_by_role("button", name="No longer keep")).to_have_attribute("aria-pressed", "true")
    until(lambda: image_of(library_server, 42)["kept"])
    page.keyboard.press("End")
    expect(page.get_by_text("42 of 42")).to_be_visible()
    page.keyboard.press("Home")
    expect(page.get_by_text("1 of 42")).to_be_visible()

    page.keyboard.press("x")
    expect(picture(page, "the first of two")).to_be_visible()
    expect(page.get_by_text("1 of 41")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("2 of 42")).to_be_visible()

    page.keyboard.press("ArrowRight")
    expect(picture(page, prompt_of(40))).to_be_attached()
    page.keyboard.press("Escape")
    expect(page.locator('[data-index="2"]')).to_be_focused()


def test_the_next_picture_is_there_before_one_goes_to_it(library_server, studio):
    page = studio(library_server, tolerate=NO_FILE).page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(library_server.url)))
    reading = Held(page, "**/api/v1/images/42")
    page.goto(f"{library_server.url}/#/image/42")
    route = reading.next()
    expect(page.get_by_role("main").get_by_role("status").get_by_text("Loading")).to_be_attached()
    with page.expect_request("**/api/v1/images/41/file"):
        route.continue_()
    expect(page.get_by_text("1 of 42")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(picture(page, "the first of two")).to_have_attribute("src", "/api/v1/images/41/file")
    expect(page.get_by_text("2 of 42")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("gridcell").first).to_be_visible()
    assert len([one for one in asked if one.startswith("/api/v1/images/index")]) <= 2  # viewer and History
    assert asked.count("/api/v1/albums") == 1


def test_zoom_by_keys_wheel_and_hand(library_server, studio):
    page = studio(library_server, hash="#/image/42", tolerate=NO_FILE).page
    shown = picture(page, "the second of two")
    expect(shown).to_be_visible()
    fits = shown.bounding_box()
    page.keyboard.press("1")
    expect(shown).to_have_js_property("clientWidth", 256)
    page.keyboard.press("0")
    expect(shown).to_have_js_property("clientWidth", round(fits["width"]))
    at = (fits["x"] + fits["width"] / 4, fits["y"] + fits["height"] / 4)
    page.mouse.move(*at)
    page.mouse.wheel(0, -500)
    expect(shown).not_to_have_js_property("clientWidth", round(fits["width"]))
    larger = shown.bounding_box()
    scale = larger["width"] / fits["width"]
    assert scale > 2
    assert at[0] - larger["x"] == pytest.approx((at[0] - fits["x"]) * scale, abs=1)  # stays under the pointer
    page.mouse.down()
    page.mouse.move(at[0] - 50, at[1] - 20)
    page.mouse.up()
    page.wait_for_function(
        "([image, x]) => Math.abs(image.getBoundingClientRect().x - x) < 1",
        arg=[shown.element_handle(), larger["x"] - 50],
    )


def test_the_card_says_all_and_gives_one_setting_without_touching_the_rest(library_server, studio):
    page = studio(library_server, tolerate=NO_FILE).page
    page.get_by_label("Prompt", exact=True).fill("my own words")
    page.goto(f"{library_server.url}/#/image/42")
    card = page.get_by_role("complementary", name="Details of the picture")
    made = image_of(library_server, 42)
    for text in ("the second of two", "256 px", made["pixels_sha256"], made["sha256"]):
        expect(card.get_by_text(text).first).to_be_attached()
    card.get_by_role("button", name="Use Steps in Create").click()
    page.keyboard.press("g")
    page.keyboard.press("c")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("my own words")
    page.goto(f"{library_server.url}/#/image/42")
    card.get_by_role("button", name="Use all settings").click()
    page.keyboard.press("g")
    page.keyboard.press("c")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("the second of two")
    wait_for_draft(library_server, prompt="the second of two", steps=6, seed=3, width=256, height=192)
    page.get_by_role("button", name="Undo").last.click()
    page.keyboard.press("g")
    page.keyboard.press("c")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("my own words")


def test_a_picture_is_proven_while_ten_others_are_drawn(server, studio):
    """With the shipped model: drawn again in company, the pixels are the same."""
    [made] = draw(server, prompt="a green tree by a house", steps=10, seed=11)
    page = studio(server, hash=f"#/image/{made['number']}").page
    body = {"request": {"prompt": "company of another", "num_images": 10, "steps": 40}}
    others = threading.Thread(
        target=httpx.post,
        args=(f"{server.url}/api/v1/jobs",),
        kwargs={"json": body, "headers": {"prefer": "wait=300"}, "timeout": 310},
    )
    others.start()
    card = page.get_by_role("complementary", name="Details of the picture")
    card.get_by_role("button", name="Redraw").click()
    expect(card.get_by_text("Same pixels")).to_be_visible(timeout=PATIENCE)
    others.join()
    lineage = httpx.get(f"{server.url}/api/v1/images/{made['id']}/lineage", timeout=30).json()
    [child] = lineage["children"]
    assert child["relation"] == "redrawn"
    assert child["pixels_sha256"] == made["pixels_sha256"]
    expect(card.get_by_role("heading", name="Made from it")).to_be_visible()


def test_a_proof_that_fails_shows_the_map_and_what_changed(server, studio):
    """The answer of the server is altered on its way: what a driver or a version would do."""
    [made] = draw(server, prompt="a blue door", steps=6, seed=5)
    opened = studio(server)
    page = opened.page

    def altered(route):
        answer = route.fetch()
        image = answer.json()
        if image["number"] == made["number"]:
            image["pixels_sha256"] = "0" * 64
            image["record"]["environment"]["device"] = "cpu of the past"
        route.fulfill(response=answer, json=image)

    page.route(re.compile(r"/api/v1/images/(\d+|img_\w+)$"), altered)
    page.goto(f"{server.url}/#/image/{made['number']}")
    card = page.get_by_role("complementary", name="Details of the picture")
    card.get_by_role("button", name="Redraw").click()
    expect(card.get_by_text("Other pixels")).to_be_visible(timeout=PATIENCE)
    expect(card.get_by_text("environment device")).to_be_visible()
    expect(card.get_by_text("cpu of the past →")).to_be_visible()
    expect(card.get_by_text(re.compile("of the pixels differ"))).to_be_visible()


def test_compare_lists_what_differs_and_takes_one(library_server, studio):
    page = studio(library_server, hash="#/history", tolerate=NO_FILE).page
    page.locator('[data-index="1"]').click(modifiers=["Control"])
    page.locator('[data-index="0"]').click(modifiers=["Control"])
    page.keyboard.press("c")
    expect(page.get_by_role("heading", name="Compare")).to_be_visible()
    rows = page.get_by_role("table").get_by_role("rowheader")
    expect(rows).to_have_text(["Prompt", "Steps"])
    page.get_by_role("button", name="Take this: Steps 4").click()
    expect(page.get_by_text("Steps taken over into Create").first).to_be_visible()

    first, second = picture(page, "the second of two"), picture(page, "the first of two")
    expect(first).to_be_visible()
    width = first.evaluate("image => image.clientWidth")
    page.keyboard.press("+")  # both, since their zoom is locked
    for one in (first, second):
        expect(one).to_have_js_property("clientWidth", round(width * 1.5))

    page.get_by_role("radio", name="Blink").check(force=True)
    expect(second).to_be_hidden()
    page.keyboard.down("b")
    expect(second).to_be_visible()
    page.keyboard.up("b")
    expect(second).to_be_hidden()
    page.get_by_role("radio", name="Slider").check(force=True)
    page.get_by_role("slider").fill("20")
    expect(second).to_have_css("clip-path", "inset(0px 0px 0px 20%)")
    page.get_by_role("radio", name="Difference").check(force=True)
    expect(page.get_by_text(re.compile("pixels differ"))).to_be_visible()

    page.keyboard.press("g")
    page.keyboard.press("c")
    page.get_by_label("Prompt", exact=True).fill("words of the draft")
    wait_for_draft(library_server, prompt="words of the draft", steps=4)


@pytest.mark.parametrize(("key", "relation"), [("v", "variation"), ("e", "edited")])
def test_what_is_drawn_from_a_shown_picture_knows_its_parent(library_server, studio, key, relation):
    page = studio(library_server, hash="#/image/42", tolerate=NO_FILE).page
    expect(picture(page, "the second of two")).to_be_visible()
    page.keyboard.press(key)
    expect(page).to_have_url(re.compile("#/create"))
    if key == "e":
        page.get_by_role("button", name="Use this mask").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.get_by_label("Prompt", exact=True).fill("another from the second")
    page.get_by_role("button", name="Draw").click()
    made = page.get_by_role("group", name="another from the second")
    expect(made.get_by_role("group", name="Made from").get_by_role("link")).to_have_count(1)
    [newest, *_] = httpx.get(f"{library_server.url}/api/v1/sets", timeout=30).json()["items"]
    assert newest["parents"] == [image_of(library_server, 42)["id"]]
    assert newest["relation"] == relation


def test_a_difference_of_pictures_that_cannot_be_read_is_told(library_server, studio):
    page = studio(library_server, hash="#/compare/42,1?way=difference", tolerate=NO_FILE).page
    expect(page.get_by_role("alert")).to_contain_text("One of the two pictures cannot be read.")


def test_a_phone_shows_the_picture_above_its_card(library_server, studio):
    page = studio(library_server, width=390, hash="#/image/42", tolerate=NO_FILE).page
    shown = picture(page, "the second of two")
    expect(shown).to_be_visible()
    card = page.get_by_role("complementary", name="Details of the picture")
    assert shown.bounding_box()["y"] + shown.bounding_box()["height"] <= card.bounding_box()["y"] + 1
    sideways = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(sideways) == 0


def steps(page: Page):
    return page.get_by_role("region", name="Steps", exact=True)


def test_a_picture_goes_on_from_a_step_with_other_words(library_server, studio):
    page = studio(library_server, hash="#/image/42", tolerate=NO_FILE).page
    strip = steps(page).get_by_role("radio")
    expect(strip).to_have_count(6)
    expect(strip.last).to_be_disabled()  # nothing comes after it
    strip.nth(2).click()
    page.keyboard.press("ArrowRight")
    expect(strip.nth(3)).to_be_checked()
    expect(page.get_by_text("1 of 42")).to_be_visible()  # the arrow did not lead to the next picture
    words = steps(page).get_by_label("Prompt from step 5 on")
    draw_it = steps(page).get_by_role("button", name="Draw with these words")
    expect(words).to_have_value("the second of two")
    expect(draw_it).to_be_disabled()
    words.fill("the third of two: (last:1.2)")
    draw_it.click()
    made = steps(page).get_by_role("link", name="The picture with other words")
    expect(made).to_be_visible()
    [newest, *_] = httpx.get(f"{library_server.url}/api/v1/sets", timeout=30).json()["items"]
    parent, [job] = image_of(library_server, 42), newest["jobs"]
    assert (newest["parents"], newest["relation"]) == ([parent["id"]], "edited")
    assert newest["request"]["prompt"] == "the [second of two:third of two\\: (last:1.2):4]"
    record = image_of(library_server, job["image"]["number"])["record"]["request"]
    before = parent["record"]["request"]
    assert {name for name in before if before[name] != record[name]} == {"prompt"}

    steps(page).get_by_role("link", name="Compare the two").click()
    expect(page.get_by_role("table").get_by_role("rowheader")).to_have_text(["Prompt"])


def test_a_change_that_no_schedule_can_say_is_refused_with_the_reason(library_server, studio):
    page = studio(library_server, hash="#/image/42", tolerate=NO_FILE).page
    steps(page).get_by_role("radio").nth(2).click()
    for words, reason in (
        ("the second (of two", "Check that every bracket has a partner."),
        ("the second of two <lora:ink:0.8>", "LoRAs act from the first step on"),
    ):
        steps(page).get_by_label("Prompt from step 4 on").fill(words)
        steps(page).get_by_role("button", name="Draw with these words").click()
        expect(steps(page).get_by_role("alert")).to_contain_text(reason)
    [newest, *_] = httpx.get(f"{library_server.url}/api/v1/sets", timeout=30).json()["items"]
    assert newest["request"]["prompt"] == "the second of two"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt_syntax": "literal"}, "Its prompt is read literally"),
        ({"sampler": "restart"}, "Its sampler may return to earlier steps"),
        ({"steps": 1}, "It was drawn in one step"),
    ],
)
def test_a_picture_that_cannot_go_on_with_other_words_says_why(studio, fake_server, fields, reason):
    [made] = draw(fake_server, **{"prompt": "one that is done", "steps": 3, **fields})
    page = studio(hash=f"#/image/{made['number']}").page
    expect(steps(page).get_by_text(reason)).to_be_visible()
    for one in steps(page).get_by_role("radio").all():
        expect(one).to_be_disabled()


def test_a_picture_without_steps_says_so(library_server, studio):
    page = studio(library_server, hash="#/image/1", tolerate=NO_FILE).page
    expect(steps(page).get_by_text("The server keeps no steps of this picture")).to_be_visible()


def test_the_words_that_a_wildcard_chose_stay(server, studio):
    """With the shipped model."""
    [made] = draw(server, prompt="a {red|blue} boat", wildcards=True, seed=5, steps=4)
    drawn = image_of(server, made["number"])["record"]["request"]["prompt"]
    page = studio(server, hash=f"#/image/{made['number']}").page
    steps(page).get_by_role("radio").first.click()
    words = steps(page).get_by_label("Prompt from step 2 on")
    expect(words).to_have_value(drawn)
    words.fill(f"{drawn} at night")
    steps(page).get_by_role("button", name="Draw with these words").click()
    expect(steps(page).get_by_role("link", name="The picture with other words")).to_be_visible()
    [newest, *_] = httpx.get(f"{server.url}/api/v1/sets", timeout=30).json()["items"]
    assert newest["request"]["prompt"] == f"{drawn}[ at night:1]"
    assert not newest["request"].get("wildcards")
