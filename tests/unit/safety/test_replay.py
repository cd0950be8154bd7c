"""An image compared with what its record draws again."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from limner.images.picture import Picture, encode, pixel_hash
from limner.images.record import Record
from limner.picturebook.drawing import render
from limner.picturebook.world import World
from limner.request import GenerationRequest
from limner.safety.marking import marked
from limner.safety.replay import Difference, compare, differences
from limner.safety.watermark import DEFAULT_KEY

KEYS = (b"a key for tests alone", DEFAULT_KEY)


@pytest.fixture(scope="module")
def picture() -> Picture:
    image = render(World().sample(random.Random(0)), 128)
    request = GenerationRequest(
        prompt="a",
        seed=3,
        steps=2,
        sampler="euler",
        sigma_schedule="karras",
        guidance_scale=5,
        width=128,
        height=128,
    )
    record = Record(
        request=request,
        model={"name": "m", "family": "sd1", "sha256": "0" * 64, "lora ink": "1" * 64},
        inputs={"a.png": "2" * 64},
        environment={"limner": "0", "precision": "fp32", "threads": 1},
        pixels=pixel_hash(image),
    )
    return Picture(image, record)


def test_the_same_pixels(picture):
    found = compare(picture, "PNG", picture.record, picture)
    assert (found.same, found.file, found.most, found.holds) == (True, "drawn", 0, True)
    assert not np.asarray(found.map()).any()


@pytest.mark.parametrize("key", KEYS)
def test_a_watermarked_file_is_compared_with_the_mark_applied_again(picture, key):
    copy = marked(picture, key)
    found = compare(copy, "PNG", copy.record, picture, KEYS)
    assert (found.same, found.file, found.holds) == (True, "watermarked", True)
    other = compare(copy, "PNG", copy.record, picture, [b"a key of somebody else"])
    assert (other.same, other.file, other.holds) == (True, "other", False)
    assert 0 < other.most < 40


@pytest.mark.parametrize(("suffix", "format"), [(".jpg", "JPEG"), (".webp", "WEBP")])
@pytest.mark.parametrize("with_mark", [False, True])
def test_a_compressed_file_is_compared_with_the_compression_applied_again(picture, suffix, format, with_mark):
    copy = marked(picture) if with_mark else picture
    with Image.open(io.BytesIO(encode(copy, suffix))) as opened:
        found = compare(opened.convert("RGB"), format, copy.record, picture, KEYS)
    assert (found.same, found.file, found.holds) == (True, "compressed", True)
    with Image.open(io.BytesIO(encode(copy, suffix, quality=30))) as opened:
        found = compare(opened.convert("RGB"), format, copy.record, picture, KEYS)
    assert (found.same, found.file, found.holds) == (True, "other", False)


def test_a_changed_file_and_a_changed_drawing(picture):
    pixels = np.array(picture)
    pixels[5, 7, 1] ^= 4
    changed = Image.fromarray(pixels)
    found = compare(changed, "PNG", picture.record, picture)
    assert (found.same, found.file, found.most, found.holds) == (True, "other", 4, False)
    assert found.differing == pytest.approx(1 / 128**2)
    assert found.mean == pytest.approx(4 / (3 * 128**2))
    [[row, column, band]] = np.argwhere(np.asarray(found.map()))
    assert (row, column, band, np.asarray(found.map()).max()) == (5, 7, 1, 255)

    drawn = compare(picture, "PNG", picture.record, Picture(changed, picture.record))
    assert (drawn.same, drawn.file, drawn.holds) == (False, "other", False)
    forged = compare(changed, "PNG", picture.record, Picture(changed, picture.record))
    assert (forged.same, forged.file, forged.holds) == (False, "drawn", False)
    silent = picture.record.model_copy(update={"pixels": ""})
    assert compare(picture, "PNG", silent, picture).holds
    assert not compare(changed, "PNG", silent, picture).holds
    crop = compare(picture.crop((0, 0, 64, 64)), "PNG", picture.record, picture)
    assert (crop.most, crop.map(), crop.holds) == (None, None, False)


def test_what_differs_between_two_records(picture):
    was = picture.record
    assert differences(was, was) == ()
    request = was.request.model_copy(update={"steps": 3, "image": "elsewhere/b.png", "model": "other"})
    now = was.model_copy(
        update={
            "request": request,
            "model": {"name": "other", "sha256": "9" * 64, "lora ink": "1" * 64},
            "inputs": {"elsewhere/b.png": "3" * 64},
            "environment": {"limner": "0", "precision": "bf16", "torch": "2"},
        }
    )
    stored = was.model_copy(
        update={"request": was.request.model_copy(update={"image": f"sha256:{'2' * 64}"})}
    )
    assert differences(stored, now) == (
        Difference("request steps", "2", "3"),
        Difference("weights", "0" * 10, "9" * 10),
        Difference("input images", "2" * 10, "3" * 10),
        Difference("precision", "fp32", "bf16"),
        Difference("threads", "1", "unknown"),
        Difference("torch", "unknown", "2"),
    )
    moved = now.model_copy(update={"inputs": {"elsewhere/b.png": "2" * 64}})
    assert "input images" not in [one.name for one in differences(stored, moved)]
    assert str(differences(stored, now)[3]) == "precision was fp32, is bf16"
