"""Marked images: what their record says, and what it says of the pixels."""

import random

import pytest
from PIL import Image, PngImagePlugin

from limner.errors import InvalidRequest
from limner.images.metadata import read_record, read_request, read_texts
from limner.images.picture import Picture, pixel_hash
from limner.images.record import Record
from limner.picturebook.drawing import render
from limner.picturebook.world import World
from limner.request import GenerationRequest
from limner.safety.marking import UNREADABLE, id_of, marked
from limner.safety.watermark import detect

KEY = b"a key for tests alone"


@pytest.fixture
def picture() -> Picture:
    size = {"width": 256, "height": 256}
    request = GenerationRequest(
        prompt="a house", seed=3, steps=2, sampler="euler", sigma_schedule="karras", guidance_scale=5, **size
    )
    record = Record(request=request, model={"name": "m", "sha256": "0" * 64}, environment={"limner": "0"})
    return Picture(render(World().sample(random.Random(0)), 256), record)


def test_the_record_names_the_mark_in_the_pixels(picture, tmp_path):
    before = picture.tobytes()
    copy = marked(picture, KEY)
    assert picture.tobytes() == before != copy.tobytes()
    named = copy.record.watermark
    assert (detect(copy, KEY).digits, 64) == (named.id, named.bits)
    assert copy.record.pixels == pixel_hash(picture)
    assert copy.record.warnings == ()

    copy.save(tmp_path / "marked.png")
    assert read_record(tmp_path / "marked.png") == copy.record
    assert f"Watermark: {named.id}" in read_texts(tmp_path / "marked.png")["parameters"]
    copy.save(tmp_path / "marked.jpg")
    assert read_record(tmp_path / "marked.jpg").watermark == named


def test_the_parameters_text_of_a_marked_image_is_read_without_a_warning_about_it(picture, tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("parameters", marked(picture, KEY).record.infotext())
    Image.new("RGB", (256, 256)).save(tmp_path / "text.png", pnginfo=chunks)
    [warning] = read_request(tmp_path / "text.png").warnings
    assert "its model, m, is not looked for" in warning


def test_the_id_follows_the_pixels_and_the_record(picture):
    pixels = pixel_hash(picture)
    other = picture.record.model_copy(update={"environment": {"limner": "1"}})
    ids = {
        id_of(picture.record, pixels),
        id_of(other, pixels),
        id_of(picture.record, pixel_hash(marked(picture))),
    }
    assert len(ids) == 3
    assert id_of(marked(picture).record, pixels) == id_of(
        picture.record, pixels
    )  # without what it says of itself


def test_an_image_is_not_marked_twice(picture):
    with pytest.raises(InvalidRequest, match=r"carries the watermark [0-9a-f]{16} already"):
        marked(marked(picture, KEY), KEY)


def test_a_mark_that_cannot_be_read_back_is_said(picture):
    noise = Image.frombytes("RGB", (128, 128), random.Random(0).randbytes(128 * 128 * 3))
    copy = marked(Picture(noise, picture.record), KEY)
    assert detect(copy, KEY) is None
    assert copy.record.warnings == (UNREADABLE,)
