"""Bodies with wrong values in any field: always an answer that says what is wrong, never a 500."""

import base64
import io
import json
import random
from pathlib import Path

import pytest
from PIL import Image

from tests.serving import serving

FACTS = json.loads((Path(__file__).parents[3] / "golden/sdapi/facts.json").read_text(encoding="utf-8"))
REQUESTS = 100
KEYS = (
    "args",
    "enabled",
    "image",
    "model",
    "module",
    "sd_model_checkpoint",
    "sd_vae",
    "CLIP_stop_at_last_layers",
    "samples_format",
    "jpeg_quality",
    "eta_ddim",
    "ControlNet",
    "Refiner",
    "Seed",
    "Sampler",
)


def picture():
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(encoded, "PNG")
    return base64.b64encode(encoded.getvalue()).decode()


PICTURE = picture()
SCALARS = (None, True, False, 0, -1, 1, 10**30, -(10**30), 1e308, 0.5, "", "x" * 300, "nan", [], {}, PICTURE)


def value(rng, depth=0):
    """Any value of JSON."""
    if depth > 1 or rng.random() < 0.7:
        return rng.choice(SCALARS)
    if rng.random() < 0.5:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randrange(5))}


def body(rng, path):
    """A body of a route, with wrong values in some fields."""
    if "img2img" in path or "txt2img" in path:
        fields = list(FACTS["img2img" if "img2img" in path else "txt2img"])
        given = {"prompt": "a", "width": 64, "height": 64, "steps": 2}
        given |= {"init_images": [PICTURE]} if "img2img" in path else {}
        if rng.random() < 0.3:
            unit = {"image": PICTURE, "model": "picturebook-edges", "module": "canny"}
            given["alwayson_scripts"] = {"ControlNet": {"args": [{**unit, rng.choice(KEYS): value(rng)}]}}
    elif "extra" in path:
        fields, given = [*FACTS["extras"], "image", "imageList"], {"image": PICTURE}
    else:
        fields = [
            "image",
            "model",
            "id_task",
            "controlnet_module",
            "controlnet_input_images",
            "samples_format",
        ]
        given = {"image": PICTURE}
    return {**given, **{rng.choice(fields): value(rng) for _ in range(rng.randrange(1, 4))}}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("malformed")) as running:
        yield running.client


def test_wrong_values_are_answered_with_what_is_wrong(client):
    rng = random.Random(5)
    drawing = ["/sdapi/v1/txt2img", "/sdapi/v1/img2img"]
    others = [path for method, path, _ in FACTS["routes"] if method == "POST"]
    statuses = set()
    for number in range(REQUESTS):
        path = rng.choice(drawing if rng.random() < 0.7 else others)
        content = json.dumps(body(rng, path)).encode()
        if number % 10 == 0:
            content = bytes(rng.randrange(256) for _ in range(rng.randrange(40)))
        answer = client.post(path, content=content)
        assert answer.status_code < 500, (path, content[:500], answer.text)
        if answer.status_code >= 400:
            assert answer.json()["detail"]
        statuses.add(answer.status_code)
    assert {200, 400, 422} <= statuses
