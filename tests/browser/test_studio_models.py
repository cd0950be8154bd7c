"""Models: a thousand files as cards, found by words, taken into the composer."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect
from safetensors.numpy import save_file

from benchmarks.faults.service import Service

pytestmark = pytest.mark.browser

COUNT = 1000
KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def lora(path: Path, width: int, trigger: str) -> None:
    """A LoRA for texts of so many channels; picturebook's have 192."""
    path.parent.mkdir(exist_ok=True, parents=True)
    tensors = {f"{KEY}.lora_down.weight": np.zeros((1, width), np.float32)}
    tensors |= {f"{KEY}.lora_up.weight": np.zeros((48, 1), np.float32)}
    save_file(tensors, path, {"modelspec.trigger_phrase": trigger})


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server with the shipped model's LoRAs in folders, and one for another family."""
    folder = tmp_path_factory.mktemp("stocked")
    for number in range(COUNT):
        lora(folder / f"loras/set{number % 10}/style{number:04}.safetensors", 192, f"look {number:04}")
    lora(folder / "loras/large.safetensors", 2048, "large")
    options = ("--device", "fake:0.01", "--lora-dir", str(folder / "loras"), "--log-level", "warning")
    with Service(folder / "data", *options) as running:
        yield running


def test_thousands_of_cards_are_few_in_the_page_and_found_by_words(studio, stocked):
    page = studio(stocked, hash="#/models?kind=lora").page
    grid = page.get_by_role("grid", name="Models")
    expect(page.get_by_text(f"{COUNT + 1:,} of")).to_be_visible()
    expect(grid.get_by_role("gridcell").first).to_be_visible()
    assert grid.get_by_role("gridcell").count() < 150
    grid.get_by_role("gridcell").first.focus()
    page.keyboard.press("End")
    expect(grid.get_by_role("gridcell", name="style0999")).to_be_focused()
    assert grid.get_by_role("gridcell").count() < 150
    page.get_by_label("Folder").select_option("set7")
    expect(page.get_by_text("100 of")).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("look 0417")
    expect(grid.get_by_role("gridcell")).to_have_count(1)
    expect(grid.get_by_role("gridcell")).to_contain_text("Fits picturebook")
    page.reload()  # the address has the filter
    expect(grid.get_by_role("gridcell", name="style0417")).to_have_count(1)


def test_a_lora_and_its_trigger_words_come_into_the_prompt_and_undo_takes_them_out(studio, stocked):
    httpx.put(f"{stocked.url}/api/v1/drafts/studio", json={"prompt": "a boat"}, timeout=30)
    page = studio(stocked, hash="#/models?q=style0417").page
    cell = page.get_by_role("gridcell", name="style0417")
    cell.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="style0417")
    expect(dialog).to_contain_text("look 0417")
    expect(dialog).to_contain_text("Fits picturebook")
    dialog.get_by_role("button", name="Use").click()
    prompt = page.get_by_label("Prompt", exact=True)
    expect(prompt).to_have_value("a boat, <lora:set7/style0417:1>, look 0417")
    page.get_by_role("button", name="Undo").click()
    expect(prompt).to_have_value("a boat")


def test_a_lora_of_another_family_is_marked(studio, stocked):
    page = studio(stocked, hash="#/models?q=large", width=390).page
    expect(page.get_by_role("gridcell", name="large")).to_contain_text("Not for picturebook")
