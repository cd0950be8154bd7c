"""A picture that guides through a control network: what its preprocessor makes of it shows before drawing."""

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import expect

from limner.images.preprocess import preprocessed
from tests.browser.axe import violations

pytestmark = pytest.mark.browser

REFUSED = "Failed to load resource: the server responded with a status of 422"
_PIXELS = """image => {
  const canvas = document.createElement('canvas')
  canvas.width = image.naturalWidth
  canvas.height = image.naturalHeight
  const on = canvas.getContext('2d')
  on.drawImage(image, 0, 0)
  const pixels = on.getImageData(0, 0, canvas.width, canvas.height).data
  return [canvas.width, canvas.height, Array.from(pixels.filter((_, at) => at % 4 === 0))]
}"""


def drawing() -> Image.Image:
    image = Image.new("RGB", (128, 96), "#6080a0")
    pen = ImageDraw.Draw(image)
    pen.ellipse((20, 20, 70, 80), fill="#c04030")
    pen.rectangle((80, 40, 120, 90), fill="#70a080")
    return image


@pytest.mark.parametrize(("width", "theme"), [(1440, "light"), (390, "dark")])
def test_the_preprocessed_picture_shows_before_drawing(studio, fake_server, axe, tmp_path, width, theme):
    path = tmp_path / "drawing.png"
    drawing().save(path)
    request = {"prompt": "a house", "width": 128, "height": 96}
    httpx.put(f"{fake_server.url}/api/v1/drafts/studio", json=request, timeout=30).raise_for_status()
    page = studio(width=width, theme=theme, tolerate=REFUSED).page
    if width < 720:
        page.get_by_role("button", name="Show settings").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Guide by a picture").click()
    chooser.value.set_files(path)

    by = page.get_by_label("Made from the picture by")
    by.select_option("canny")
    made = page.get_by_role("img", name="What canny makes of it")
    expect(made).to_be_visible()
    across, high, pixels = made.evaluate(_PIXELS)
    expected = np.asarray(preprocessed(drawing(), "canny"))
    assert np.array_equal(np.array(pixels).reshape(high, across), expected)

    low = page.get_by_label("low", exact=True)
    low.fill("9")
    with page.expect_response("**/control/preview") as answer:
        low.press("Tab")
    assert answer.value.request.post_data_json["preprocessor"] == "canny:9"
    expect(page.get_by_role("img", name="What canny:9 makes of it")).to_be_visible()
    assert violations(page, axe) == []

    page.get_by_label("high", exact=True).fill("3")
    page.get_by_label("high", exact=True).press("Tab")
    expect(page.get_by_text("expected 0 or more, and low no more than high")).to_be_visible()
    by.select_option("none")
    expect(page.get_by_role("img", name="What canny")).to_have_count(0)
