"""The composer of the Create screen: prompts, chips, shapes, settings and what the server says of them."""

import re

import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, expect
from safetensors.numpy import save_file

from benchmarks.faults.service import Service
from limner.catalogue.shipped import SHIPPED
from limner.prompts.analysis import analyse_prompt
from limner.service.vocabulary import tokenizer_of
from tests.browser.held import Held

pytestmark = pytest.mark.browser

REFUSED = "Failed to load resource.*40[04]|Failed to load resource.*422"
GOLDEN = (
    "a red house in the snow",
    "a (red boat:1.3) on [green] water, ((blue)) sky",
    r"a \(small\) house, (tree:0.8) 🚀 and (sun:1.1)",
    "[red:blue:0.5] boat AND (green tree:1.2)",
)


@pytest.fixture(scope="module")
def stocked(tmp_path_factory):
    """A server with a LoRA that has a trigger word."""
    folder = tmp_path_factory.mktemp("stocked")
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{key}.lora_down.weight": np.ones((2, 192), np.float32)}
    tensors[f"{key}.lora_up.weight"] = np.zeros((48, 2), np.float32)
    (folder / "loras").mkdir()
    save_file(tensors, folder / "loras/sketch.safetensors", {"modelspec.trigger_phrase": "inkdrop"})
    options = ("--device", "fake:0.02", "--lora-dir", str(folder / "loras"), "--log-level", "warning")
    with Service(folder / "data", *options) as running:
        yield running


def prompt(page: Page):
    return page.get_by_label("Prompt", exact=True)


def settle(page: Page) -> None:
    """Let what has arrived be rendered."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_weights_by_keys_are_undone_step_by_step(studio):
    page = studio().page
    prompt(page).fill("a red boat, calm sea")
    prompt(page).press("Home")
    for _ in range(3):
        prompt(page).press("ArrowRight")
    prompt(page).press("Control+ArrowUp")
    expect(prompt(page)).to_have_value("(a red boat:1.1), calm sea")
    prompt(page).press("Control+ArrowUp")
    expect(prompt(page)).to_have_value("(a red boat:1.2), calm sea")
    prompt(page).press("Control+z")
    prompt(page).press("Control+z")
    expect(prompt(page)).to_have_value("a red boat, calm sea")


def test_a_completed_lora_brings_its_trigger_word_and_its_chip_takes_both_away(studio, stocked):
    page = studio(stocked).page
    prompt(page).fill("a boat, ")
    prompt(page).press_sequentially("<ske")
    option = page.get_by_role("option", name="sketch")
    expect(option).to_be_visible()
    prompt(page).press("ArrowDown")
    expect(option).to_have_attribute("aria-selected", "true")
    prompt(page).press("Enter")
    expect(prompt(page)).to_have_value("a boat, <lora:sketch:1>, inkdrop")
    page.get_by_role("button", name="Remove LoRA sketch").click()
    expect(prompt(page)).to_have_value("a boat")
    prompt(page).press("Control+z")
    expect(prompt(page)).to_have_value("a boat, <lora:sketch:1>, inkdrop")


@pytest.mark.parametrize("text", GOLDEN)
def test_counts_and_colours_are_those_of_the_parser(studio, text):
    page = studio().page
    tokenizer, _ = tokenizer_of(SHIPPED["picturebook"])
    found = analyse_prompt(text, tokenizer)
    count = sum(len(part.tokens) for part in found.steps[0].parts)
    prompt(page).fill(text)
    expect(page.get_by_label(f"{count} of {found.chunk_size} tokens")).to_be_visible()
    tokens = [one for steps in found.steps for part in steps.parts for one in part.tokens]
    for colour, heavier in (("heavier", True), ("lighter", False)):
        coloured = (one for one in tokens if one.weight != 1 and (one.weight > 1) is heavier)
        places = sorted({place for one in coloured for place in range(one.start, one.end)})
        shown = page.locator(f".mirror .{colour}").all_text_contents()
        assert "".join(shown) == "".join(text[place] for place in places)


def test_what_differs_from_the_default_is_a_chip_until_it_is_removed(studio):
    page = studio().page
    page.get_by_role("button", name="All settings").click()
    page.get_by_label("Find a setting").fill("inference")  # the name that diffusers has for steps
    steps = page.get_by_role("textbox", name="Steps", exact=True)
    expect(steps).to_have_value("20")
    steps.fill("7")
    steps.press("Tab")
    acting = page.get_by_role("list", name="What differs from the default")
    expect(acting.get_by_role("button", name="Steps 7", exact=True)).to_be_visible()
    acting.get_by_role("button", name="Remove Steps 7").click()
    expect(acting).to_be_hidden()
    expect(steps).to_have_value("20")


def test_a_shape_is_chosen_turned_and_left_to_the_model_again(studio):
    page = studio().page
    expect(page.get_by_text("128 × 128")).to_be_visible()
    page.get_by_role("radio", name="16:9").check()
    expect(page.get_by_text("168 × 96")).to_be_visible()
    page.get_by_role("button", name="Turn").click()
    expect(page.get_by_text("96 × 168")).to_be_visible()
    expect(page.get_by_role("radio", name="9:16")).to_be_checked()
    page.get_by_role("button", name="Remove Height").click()
    page.get_by_role("button", name="Remove Width").click()
    expect(page.get_by_role("radio", name="1:1")).to_be_checked()


def test_what_the_server_refuses_is_told_at_its_field(studio):
    page = studio(tolerate=REFUSED).page
    prompt(page).fill("a boat")
    page.get_by_role("button", name="Exact size").click()
    page.get_by_label("Width", exact=True).first.fill("100")
    page.get_by_label("Width", exact=True).first.press("Tab")
    expect(page.get_by_label("Width", exact=True).first).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_text("multiple of 8").first).to_be_visible()


def test_an_estimate_of_an_earlier_request_is_not_shown(studio):
    page = studio().page
    estimating = Held(page, "**/api/v1/estimates", lambda request: "the first" in (request.post_data or ""))
    prompt(page).fill("the first")
    route = estimating.next()
    prompt(page).fill("the second")
    estimate = page.get_by_text(re.compile("^about "))
    expect(estimate).to_be_visible()
    shown = estimate.text_content()
    with page.expect_response(lambda answer: "the first" in (answer.request.post_data or "")) as late:
        route.fulfill(json={"seconds": 7200, "cost": 0, "waiting_seconds": 0, "request": {}})
    late.value.finished()
    settle(page)
    assert estimate.text_content() == shown


def test_a_late_refusal_leaves_the_completions_of_what_is_typed_now(studio, stocked):
    page = studio(stocked, tolerate="Failed to load resource").page
    completing = Held(page, "**/api/v1/completions*", lambda request: "q=sk&" in f"{request.url}&")
    prompt(page).press_sequentially("<sk")
    route = completing.next()
    prompt(page).press_sequentially("e")
    option = page.get_by_role("option", name="sketch")
    expect(option).to_be_visible()
    with page.expect_response(lambda answer: answer.status == 500) as late:
        route.fulfill(status=500, json={"title": "Broken"})
    late.value.finished()
    settle(page)
    expect(option).to_be_visible()


def test_late_suggestions_do_not_replace_later_ones(studio):
    page = studio(tolerate="Failed to load resource").page  # the pictures of the suggestions are none
    suggesting = Held(page, "**/api/v1/prompts/suggestions*")
    button = page.get_by_role("button", name="Suggestions")
    prompt(page).fill("first")
    button.click()
    first = suggesting.next()
    page.keyboard.press("Escape")
    prompt(page).fill("second")
    button.click()
    second = suggesting.next()
    for route, text in ((second, "asked later"), (first, "asked earlier")):
        one = {"prompt": text, "negative_prompt": "", "image": 999, "kept": 1, "drawn": 1}
        with page.expect_response("**/api/v1/prompts/suggestions*") as answer:
            route.fulfill(json=[one])
        answer.value.finished()
    settle(page)
    expect(page.get_by_role("button", name="asked later")).to_be_visible()
    expect(page.get_by_role("button", name="asked earlier")).to_be_hidden()


def test_what_acts_can_be_touched_with_a_finger(studio, fake_server):
    httpx.put(f"{fake_server.url}/api/v1/drafts/studio", json={"steps": 7}, timeout=30).raise_for_status()
    page = studio(width=390).page
    for name in ("Steps 7", "Remove Steps 7"):
        box = page.get_by_role("button", name=name, exact=True).bounding_box()
        assert min(box["width"], box["height"]) >= 44, name


def test_earlier_prompts_are_walked_through_by_keys(studio):
    page = studio().page
    for text in ("the first of two", "the second of two"):
        prompt(page).fill(text)
        page.get_by_role("radio", name="1", exact=True).check()
        page.get_by_role("button", name="Draw").click()
        expect(page.get_by_role("group", name=text)).to_be_visible()
    prompt(page).fill("my own")
    prompt(page).press("Alt+ArrowUp")
    expect(prompt(page)).to_have_value("the second of two")
    prompt(page).press("Alt+ArrowUp")
    expect(prompt(page)).to_have_value("the first of two")
    prompt(page).press("Alt+ArrowDown")
    prompt(page).press("Alt+ArrowDown")
    expect(prompt(page)).to_have_value("my own")
