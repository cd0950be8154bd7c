"""Captions and vectors of images, as a worker answers with them."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from limner.errors import InvalidRequest, UnsupportedModel
from limner.picturebook.captions import plain_caption
from limner.picturebook.evaluation import fresh_scenes
from limner.picturebook.world import World, render
from limner.service.judges import Judges

JUDGES = Judges()


def png(image):
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def opened(data):
    return Image.open(io.BytesIO(data))


def test_an_image_of_the_world_is_described():
    scenes, _ = fresh_scenes(World(), 12, 3)
    described = [JUDGES.interrogate({}, [png(render(scene))])[0] for scene in scenes]
    right = sum(one["prompt"] == plain_caption(scene) for one, scene in zip(described, scenes, strict=True))
    kinds = sum(
        {thing["kind"] for thing in one["things"]} == {thing.kind for thing in scene.things}
        for one, scene in zip(described, scenes, strict=True)
    )
    assert kinds >= 10
    assert right >= 3  # sizes and relations have many words; the plain caption has one
    with pytest.raises(UnsupportedModel, match="nothing is recognised"):
        JUDGES.interrogate({}, [png(Image.new("RGB", (128, 128), "gray"))])


def test_captions_are_near_their_images():
    scenes, words = fresh_scenes(World(), 16, 5)
    said, texts = JUDGES.embed_text({"texts": list(words)}, [])
    seen, images = JUDGES.embed_images({}, [png(render(scene)) for scene in scenes])
    assert said == seen
    rows, columns = (np.array([np.frombuffer(one, "<f4") for one in many]) for many in (texts, images))
    assert rows.shape == columns.shape == (16, said["width"])
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    nearest = (rows @ columns.T).argmax(axis=1)
    assert (nearest == np.arange(16)).mean() > 0.7


@pytest.mark.parametrize("texts", [None, "red", [1], [], ["x"] * 1000])
def test_texts_that_cannot_be_embedded_are_refused(texts):
    with pytest.raises(InvalidRequest) as caught:
        JUDGES.embed_text({"texts": texts}, [])
    assert caught.value.fields == ("texts",)


def test_too_many_images_are_refused():
    rng = random.Random(0)
    with pytest.raises(InvalidRequest):
        JUDGES.embed_images({}, [rng.randbytes(4)] * 1000)


@pytest.mark.parametrize("parts", [[], [b"x"], [b"", b""], [b"\x89PNG\r\n\x1a\n" + b"0" * 50]])
def test_what_is_no_image_is_refused(parts):
    with pytest.raises(InvalidRequest):
        JUDGES.interrogate({}, parts)
