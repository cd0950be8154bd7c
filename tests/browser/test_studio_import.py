"""Pictures of any program, dropped, pasted or chosen: what was understood, replaced and left out."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.dropped import drop, transfer
from tests.described_pictures import picture

pytestmark = pytest.mark.browser

REFUSED = "Failed to load resource: the server responded with a status of 4"
TEXT = (
    "a lighthouse at night\nNegative prompt: rain\nSteps: 3, Sampler: DPM++ 2M, Schedule type: Karras, "
    "CFG scale: 7, Seed: 3, Size: 128x96, Model hash: 0123456789, Model: dreamshaper_8, Version: v1"
)
NODES = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "dreamshaper_8.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a boat of nodes", "clip": ["1", 1]}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "fog", "clip": ["1", 1]}},
    "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 96, "batch_size": 1}},
    "5": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 5,
            "steps": 4,
            "cfg": 6.5,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
            "model": ["1", 0],
            "positive": ["2", 0],
            "negative": ["3", 0],
            "latent_image": ["4", 0],
        },
    },
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "boat"}},
}


def column(sheet: Locator, name: str) -> Locator:
    return sheet.get_by_role("region", name=name, exact=True)


@pytest.mark.parametrize("screen", ["create", "models"])
def test_an_infotext_is_laid_out_in_three_columns_and_drawn(studio, screen):
    page = studio(hash=f"#/{screen}").page
    sheet = drop(page, ("old.png", "image/png", picture(parameters=TEXT)))
    expect(sheet).to_contain_text("128 × 96 · written by AUTOMATIC1111")
    expect(column(sheet, "Understood")).to_contain_text("a lighthouse at night")
    expect(column(sheet, "Understood")).to_contain_text("rain")
    expect(column(sheet, "Replaced")).to_contain_text(re.compile("dreamshaper_8 → picturebook"))
    expect(column(sheet, "Not understood")).to_contain_text("1 value that changes no picture")
    sheet.get_by_role("button", name="Use these settings").click()
    expect(sheet).to_be_hidden()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a lighthouse at night")
    with page.expect_response(lambda answer: answer.url.endswith("/jobs")) as sent:
        page.keyboard.press("Control+Enter")
    request = sent.value.json()["request"]
    assert (request["seed"], request["steps"], request["sampler"]) == (3, 3, "dpmpp_2m")


def test_several_files_each_say_what_they_are_also_a_broken_one(studio):
    page = studio(tolerate=REFUSED).page
    sheet = drop(
        page,
        ("photo.jpg", "image/jpeg", picture("JPEG", parameters=TEXT)),
        ("nodes.png", "image/png", picture(prompt=NODES)),
        ("plain.png", "image/png", picture()),
        ("cut.png", "image/png", picture(parameters=TEXT)[:60]),
        ("notes.txt", "text/plain", b"no picture at all"),
    )
    expect(column(sheet, "Understood")).to_contain_text("a lighthouse at night")
    files = sheet.get_by_role("list", name="Files").get_by_role("button")
    expect(files).to_have_count(5)
    files.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(sheet).to_contain_text("written by ComfyUI")
    expect(column(sheet, "Understood")).to_contain_text("a boat of nodes")
    expect(column(sheet, "Replaced")).to_contain_text("dreamshaper_8")
    files.nth(2).click()
    expect(sheet).to_contain_text("says nothing of how it was made")
    expect(sheet.get_by_role("button", name="Use these settings")).to_be_hidden()
    for index in (3, 4):
        files.nth(index).click()
        expect(sheet.get_by_role("alert")).to_be_visible()
        expect(sheet.get_by_role("button", name="Use as reference")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()


def test_a_chosen_picture_becomes_the_reference_and_undo_takes_it_back(studio, tmp_path: Path):
    page = studio(width=390, hash="#/queue").page
    path = tmp_path / "start.png"
    path.write_bytes(picture(size=(96, 64)))
    page.get_by_role("button", name="More").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open pictures").click()
    chooser.value.set_files(path)
    sheet = page.get_by_role("dialog", name="What this picture says")
    sheet.get_by_role("button", name="Use as reference").click()
    expect(page).to_have_url(re.compile("#/create"))
    page.get_by_role("button", name="Show settings").click()
    following = page.get_by_role("region", name="Pictures to follow")
    expect(following.get_by_role("img", name="The picture that is started from")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(following.get_by_role("button", name="Start from a picture")).to_be_visible()


def test_a_sheet_that_cannot_be_loaded_says_so(studio):
    page = studio(tolerate="Failed to load resource|ERR_FAILED").page
    page.route("**/import.js", lambda route: route.abort())
    sheet = drop(page, ("old.png", "image/png", picture(parameters=TEXT)))
    expect(sheet.get_by_role("alert")).to_contain_text("could not be loaded")
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()


def test_pictures_like_a_pasted_one_are_searched(studio):
    page = studio(tolerate="Failed to load resource").page  # a fake device may have no vectors to search
    carried = transfer(page, ("pasted.png", "image/png", picture()))
    page.evaluate(
        "data => document.body.dispatchEvent("
        "new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true}))",
        carried,
    )
    sheet = page.get_by_role("dialog", name="What this picture says")
    sheet.get_by_role("button", name="Search pictures like this").click()
    expect(page).to_have_url(re.compile(r"#/history\?like=sha256%3A[0-9a-f]{64}"))
