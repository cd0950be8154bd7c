"""What a preprocessor makes of an upload, before anything is drawn with it."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from limner.images.preprocess import PREPROCESSORS, preprocessed
from tests.serving import serving

PATH = "/api/v1/control/preview"


def square(width=64, height=32):
    image = Image.new("RGB", (width, height))
    image.paste("white", (width // 4, height // 4, width * 3 // 4, height * 3 // 4))
    return image


def uploaded(served, image, headers=None):
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    answer = served.client.post("/api/v1/uploads", content=encoded.getvalue(), headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()["reference"]


def previewed(served, **body):
    answer = served.client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(answer.content))


@pytest.mark.parametrize("name", ["canny", "canny:10:20", "invert", "softedge"])
def test_it_is_what_a_control_is_made_of(served, name):
    made = previewed(served, image=uploaded(served, square()), preprocessor=name)
    assert np.array_equal(np.asarray(made), np.asarray(preprocessed(square(), name)))


def test_the_image_is_scaled_to_the_size_that_would_be_drawn(served):
    made = previewed(served, image=uploaded(served, square()), preprocessor="canny", width=128, height=128)
    scaled = square().resize((128, 128), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(made), np.asarray(preprocessed(scaled, "canny")))


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"preprocessor": "cannny"}, 422, "preprocessor"),
        ({"preprocessor": "depth_midas"}, 422, "preprocessor"),
        ({"preprocessor": "canny:9:1"}, 422, "preprocessor"),
        ({"preprocessor": "canny:a"}, 422, "preprocessor"),
        ({"preprocessor": ""}, 422, "preprocessor"),
        ({"image": "/etc/passwd"}, 422, "image"),
        ({"image": "sha256:" + "0" * 64}, 404, None),
        ({"width": 64}, 422, None),
        ({"width": 64, "height": 100_000}, 422, "height"),
        ({"more": 1}, 422, "more"),
    ],
)
def test_what_cannot_be_made_is_a_problem(served, change, status, field):
    body = {"image": uploaded(served, square()), "preprocessor": "canny", **change}
    answer = served.client.post(PATH, json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert field is None or answer.json()["fields"] == [field]


def test_a_network_is_refused_with_what_to_give_in_its_place(served):
    body = {"image": uploaded(served, square()), "preprocessor": "depth_midas"}
    assert "ready-made" in served.client.post(PATH, json=body).json()["hint"]


def test_without_opencv_the_extra_is_named(served, monkeypatch):
    reference = uploaded(served, square())
    monkeypatch.setitem(sys.modules, "cv2", None)
    answer = served.client.post(PATH, json={"image": reference, "preprocessor": "canny"})
    assert (answer.status_code, answer.json()["hint"]) == (422, 'pip install "limner[control]"')
    assert served.client.post(PATH, json={"image": reference, "preprocessor": "invert"}).status_code == 200


def test_uploads_of_others_are_not_shown(tmp_path):
    with serving(tmp_path / "data") as served:
        alice, bob = served.key("alice"), served.key("bob")
        body = {"image": uploaded(served, square(), headers=alice), "preprocessor": "invert"}
        assert served.client.post(PATH, json=body, headers=bob).status_code == 404
        assert served.client.post(PATH, json=body, headers=alice).status_code == 200


def test_the_preprocessors_are_listed_with_their_options(served):
    found = {one["name"]: one for one in served.client.get("/api/v1/control/preprocessors").json()}
    assert list(found) == list(PREPROCESSORS)
    assert found["canny"]["description"] == "Thin white edges on black (Canny 1986)."
    assert found["canny"]["options"] == [
        {"name": "low", "default": 100.0, "whole": False},
        {"name": "high", "default": 200.0, "whole": False},
    ]
    assert [one["whole"] for one in found["shuffle"]["options"]] == [True, True]
    assert found["none"]["options"] == []


def test_without_a_worker_it_says_so(tmp_path):
    with serving(tmp_path / "data", working=False) as served:
        served.state.hub.call = _no_worker(served.state.hub.call)
        body = {"image": uploaded(served, square()), "preprocessor": "canny"}
        answer = served.client.post(PATH, json=body)
        assert (answer.status_code, answer.json()["retryable"]) == (503, True)


def _no_worker(call):
    """The call of a hub that waits for a worker no longer than an instant."""
    return lambda name, params, blobs, timeout: call(name, params, blobs, timeout=0.01)
