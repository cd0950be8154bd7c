"""What workers answer to the API process besides jobs."""

import io

import pytest
from PIL import Image

from limner.errors import InvalidRequest
from limner.service.worker_calls import CALLS, png


def square():
    image = Image.new("RGB", (64, 32))
    image.paste("white", (16, 8, 48, 24))
    return png(image)


def answered(parts, **params):
    result, made = CALLS["preprocess"](params, parts)
    assert result == {}
    return [Image.open(io.BytesIO(one)) for one in made]


def test_control_images_are_made_of_each_image():
    first, second = answered([square(), square()], preprocessor="canny")
    assert first.size == (64, 32)
    assert first.getextrema() == (0, 255)
    assert first.tobytes() == second.tobytes()


def test_images_are_scaled_before():
    assert answered([square()], preprocessor="none", width=128, height=128)[0].size == (128, 128)
    assert answered([square()], preprocessor="invert", shorter=16)[0].size == (32, 16)
    assert answered([square()], preprocessor="invert", shorter=0)[0].size == (64, 32)


@pytest.mark.parametrize(
    ("part", "preprocessor", "says"),
    [(b"rubbish", "canny", "cannot be read"), (b"", "none", "cannot be read"), (None, "openpose", "network")],
)
def test_what_cannot_be_made_is_an_error(part, preprocessor, says):
    with pytest.raises(InvalidRequest, match=says):
        answered([square() if part is None else part], preprocessor=preprocessor)
