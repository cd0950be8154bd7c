"""The watermark: found after what happens to images, and only where it is."""

import io
import random
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from limner.errors import InvalidRequest
from limner.picturebook.drawing import render
from limner.picturebook.world import World
from limner.safety import watermark
from limner.safety.watermark import TILE, carried_bits, detect, embed

KEY = b"a key for tests alone"
ID = 0x0123_4567_89AB_CDEF


def drawings(count: int, size: int, seed: int = 0) -> list[Image.Image]:
    rng = random.Random(seed)
    return [render(World().sample(rng), size) for _ in range(count)]


def psnr(first: Image.Image, second: Image.Image) -> float:
    error = np.asarray(first, float) - np.asarray(second, float)
    return float(10 * np.log10(255**2 / np.mean(error**2)))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality)
    return Image.open(encoded)


def cropped(image: Image.Image) -> Image.Image:
    """Without a tenth of each side, at an odd place."""
    width, height = image.size
    return image.crop(
        (width // 13, height // 41, width // 13 + width * 9 // 10, height // 41 + height * 9 // 10)
    )


def scaled(image: Image.Image, scale: float) -> Image.Image:
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def is_found(image: Image.Image, search_scales: bool = False) -> bool:
    mark = detect(image, KEY, search_scales)
    return mark is not None and mark.id == ID >> (64 - mark.bits)


@pytest.mark.parametrize(("size", "bits"), [(128, 32), (255, 32), (256, 64), (512, 64), (1024, 64)])
def test_the_id_is_read_back_and_the_mark_is_faint(size, bits):
    [image] = drawings(1, size)
    marked = embed(image, ID, KEY)
    assert (marked.size, marked.mode) == (image.size, image.mode)
    assert psnr(image, marked) > 40.0
    mark = detect(marked, KEY)
    assert (mark.id, mark.bits, mark.scale) == (ID >> (64 - bits), bits, 1.0)
    assert carried_bits(image.size) == bits
    assert embed(image, ID, KEY).tobytes() == marked.tobytes()


ATTACKS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg 90": lambda image: jpeg(image, 90),
    "jpeg 75": lambda image: jpeg(image, 75),
    "jpeg 50": lambda image: jpeg(image, 50),
    "crop and jpeg 75": lambda image: jpeg(cropped(image), 75),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("size", "least"), [(128, 8), (256, 10)])
def test_copies_keep_the_mark(attack, size, least):
    """All at 256 pixels; at 128 some drawings leave too little room for 32 bits."""
    found = [is_found(ATTACKS[attack](embed(image, ID, KEY))) for image in drawings(10, size)]
    assert sum(found) >= least


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.37])
def test_scaled_crops_are_found_by_the_search_over_scales(scale):
    [image] = drawings(1, 512)
    copy = jpeg(scaled(cropped(embed(image, ID, KEY)), scale), 75)
    assert detect(copy, KEY) is None
    mark = detect(copy, KEY, search_scales=True)
    assert (mark.id, mark.scale) == (ID, pytest.approx(scale, rel=0.003))


def test_images_without_a_mark_have_none():
    assert not [image for image in drawings(100, 128, seed=1) if detect(image, KEY) is not None]
    for plain in ("white", "black"):
        assert detect(Image.new("RGB", (200, 200), plain), KEY) is None


def test_another_key_finds_nothing():
    marked = [embed(image, ID, KEY) for image in drawings(5, 256)]
    assert all(is_found(image) for image in marked)
    assert not [image for image in marked if detect(image, b"another key") is not None]


def test_grey_and_transparent_images_keep_their_mode():
    [image] = drawings(1, 256)
    grey = embed(image.convert("L"), ID, KEY)
    assert (grey.mode, is_found(grey)) == ("L", True)
    image.putalpha(Image.linear_gradient("L"))
    clear = embed(image, ID, KEY)
    assert (clear.mode, is_found(clear)) == ("RGBA", True)
    assert clear.getchannel("A").tobytes() == image.getchannel("A").tobytes()
    palette = embed(image.convert("RGB").quantize(32), ID, KEY)
    assert (palette.mode, is_found(palette)) == ("RGB", True)


def test_a_tall_image_is_marked():
    [image] = drawings(1, 512)
    assert is_found(embed(image.crop((0, 0, 300, 500)), ID, KEY))


def test_what_cannot_be_marked_is_refused():
    with pytest.raises(
        InvalidRequest, match=f"the image is 127 x 400; a watermark needs {TILE} pixels a side"
    ):
        embed(Image.new("RGB", (127, 400)), ID, KEY)
    with pytest.raises(InvalidRequest, match="the id of a watermark is"):
        embed(Image.new("RGB", (128, 128)), 1 << 64, KEY)
    with pytest.raises(InvalidRequest, match="the image is 31 x 40; a watermark can be found from 32"):
        detect(Image.new("RGB", (31, 40)), KEY)


def test_a_mark_that_was_decoded_counts_though_another_scale_looked_better(monkeypatch):
    mark = watermark.Mark(7, 32, 6.0, 0.5)
    read = {1.0: (None, 0.0), 2.0: (None, 9.0), 0.5: (mark, 6.0)}
    monkeypatch.setattr(watermark, "_scales", lambda: iter((2.0, 0.5)))
    monkeypatch.setattr(watermark, "_rescaled", lambda image, scale: scale)
    monkeypatch.setattr(watermark, "_read", lambda luma, key, scale: read.get(scale, (None, 0.0)))
    assert watermark.detect(Image.new("L", (64, 64)), KEY, search_scales=True) == mark
