"""A mask painted by mouse, by touch and by keys: what is outside of it keeps its bits."""

import io
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from PIL import Image, ImageFilter
from playwright.sync_api import Locator, Page, expect

from benchmarks.faults.service import Service

pytestmark = pytest.mark.browser

PATIENCE = 300_000
SIDE = 128
_BLUR = 4.0  # the default of mask_blur


@pytest.fixture(scope="module")
def start(server: Service) -> bytes:
    """A picture of the shipped model as PNG."""
    body = {"request": {"prompt": "a red house", "seed": 1, "steps": 2, "width": SIDE, "height": SIDE}}
    answer = httpx.post(f"{server.url}/api/v1/jobs", json=body, headers={"prefer": "wait=250"}, timeout=260)
    [job] = answer.json()["jobs"]
    return httpx.get(f"{server.url}{job['image']['url']}", timeout=30).content


def by_mouse(page: Page, stage: Locator) -> None:
    """A stroke through the middle, and one that is undone."""
    box = stage.bounding_box()
    for share in (0.5, 0.9):
        page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * share)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * share, steps=5)
        page.mouse.up()
    page.keyboard.press("Control+z")


def by_touch(page: Page, stage: Locator) -> None:
    box = stage.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touches = page.context.new_cdp_session(page)

    def send(kind: str, *points: tuple[float, float]) -> None:
        touches.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": at[0], "y": at[1]} for at in points]},
        )

    send("touchStart", (x, y))
    send("touchMove", (x + 20, y))
    send("touchMove", (x + 20, y + 20))
    send("touchEnd")


def by_keys(page: Page, stage: Locator) -> None:
    """A stroke that begins in the middle, and a smaller one of the eraser inside of it."""
    expect(stage).to_be_focused()
    page.keyboard.down("Space")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.up("Space")
    page.keyboard.press("Shift+B")
    page.keyboard.press("[")
    page.keyboard.press("Space")


@pytest.mark.parametrize(
    ("width", "paint"), [(1440, by_mouse), (390, by_touch), (1440, by_keys)], ids=["mouse", "touch", "keys"]
)
def test_pixels_outside_of_a_mask_keep_their_bits(
    studio, server, start, tmp_path, width: int, paint: Callable[[Page, Locator], None]
):
    path = tmp_path / "start.png"
    path.write_bytes(start)
    page = studio(server, width=width).page
    if width < 720:
        page.get_by_role("button", name="Show settings").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Start from a picture").click()
    chooser.value.set_files(path)
    page.get_by_role("button", name="Paint a mask").click()
    editor = page.get_by_role("dialog", name="Paint over what is to change")
    stage = editor.get_by_role("application", name="Mask over the picture")
    expect(editor.get_by_text("Nothing painted")).to_be_visible()
    paint(page, stage)
    expect(editor.get_by_text("% painted")).to_be_visible()
    editor.get_by_role("button", name="Use this mask").click()
    expect(editor).to_be_hidden()
    expect(page.get_by_role("button", name="Change mask")).to_be_visible()

    page.get_by_role("radio", name="1", exact=True).check()
    page.get_by_label("Prompt", exact=True).fill(f"a yellow flower, {paint.__name__}")
    with page.expect_response(lambda answer: answer.url.endswith("/jobs")) as sent:
        page.keyboard.press("Control+Enter")
    made = httpx.get(
        f"{server.url}/api/v1/sets/{sent.value.json()['id']}", params={"wait": 250}, timeout=260
    ).json()
    [job] = made["jobs"]
    assert job["state"] == "done", job["error"]

    mask = picture(server, f"/api/v1/uploads/{made['request']['mask'].removeprefix('sha256:')}", "L")
    assert mask.size == (SIDE, SIDE)
    assert mask.getpixel((SIDE // 2 + 6, SIDE // 2)) == 255
    assert mask.crop((0, 0, SIDE, 20)).getextrema() == (0, 0)
    before = np.asarray(Image.open(io.BytesIO(start)).convert("RGB"))
    after = np.asarray(picture(server, f"{job['image']['url']}?exact=true", "RGB"))
    outside = np.asarray(mask.filter(ImageFilter.GaussianBlur(_BLUR))) == 0
    assert np.array_equal(before[outside], after[outside])
    inside = np.asarray(mask) == 255
    assert not np.array_equal(before[inside], after[inside])


def picture(server: Service, address: str, mode: str) -> Image.Image:
    data = httpx.get(f"{server.url}{address}", timeout=30).content
    return Image.open(io.BytesIO(data)).convert(mode)
