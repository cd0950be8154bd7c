"""No route of any API sends an image that the caller's safety policy blocks: all of them are asked."""

import base64
import functools
import io
import json
import re
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.routing import APIRoute
from PIL import Image

from limner.server.app import create_app
from limner.service import worker
from limner.service.image_safety import ImageSafety
from limner.settings.serve import ServeSettings
from tests.checked_images import ASK, Drawing
from tests.checked_images import pattern as pattern_of
from tests.serving import Served, serving, submit

POLICY = """
schema = 1
base = "none"

[[image_rules]]
name = "refused"
action = "{action}"
reason = "a known pattern"
category = "nsfw"
min_score = 0.8
"""
FORBIDDEN, FINE = "a forbidden boat", "a red boat"
STREAMS = {"/api/v1/events"}  # they do not end; `test_withheld_images` watches them
CLOSES = {"/api/v1/keys", "/api/v1/accounts", "/api/v1/session"}  # after which the others need a key
SENT = {
    *("/api/v1/uploads/{sha256}", "/api/v1/control/preview", "/api/v1/accounts/{account_id}/export"),
    *("/api/v1/images/{image_id}/file", "/api/v1/images/{image_id}/thumbnail"),
    "/api/v1/models/{model_id:path}/thumbnail",
    *("/v1/images/generations", "/v1/images/edits", "/v1/images/files/{name}"),
    *("/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/controlnet/detect"),
    *("/sdapi/v1/extra-single-image", "/sdapi/v1/extra-batch-images"),
}
"""Routes that send the pattern where no policy keeps them from it."""


def pattern() -> Image.Image:
    """What the fake device draws for the forbidden prompt."""
    return Image.fromarray(pattern_of(FORBIDDEN))


def is_pattern(image: Image.Image) -> bool:
    """Whether an image shows the pattern, at any size, with its colours inverted or as they are."""
    size = (32, 32)
    shown, known = (
        np.asarray(one.convert("RGB").resize(size, Image.Resampling.BOX), float) for one in (image, pattern())
    )
    return bool(min(np.abs(shown - known).mean(), np.abs(255 - shown - known).mean()) < 5)


class Stub:
    """A checker that knows the pattern."""

    name, version = "opennsfw", "stub"

    def check(self, images: Any) -> list[dict[str, float]]:
        return [{"nsfw": 0.9 * is_pattern(Image.fromarray(one))} for one in images]


def file_of(image: Image.Image, format: str = "PNG") -> bytes:
    data = io.BytesIO()
    image.save(data, format)
    return data.getvalue()


@pytest.fixture
def walked(tmp_path, monkeypatch):
    """Asks every route of a service of some policy, and returns the templates of those that show the
    pattern."""
    monkeypatch.setattr(
        worker, "ImageSafety", functools.partial(ImageSafety, load=lambda _: {"opennsfw": Stub()})
    )
    loras = tmp_path / "loras"
    loras.mkdir()
    header = json.dumps(
        {"lora_unet_x.lora_up.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}
    ).encode()
    (loras / "boats.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (loras / "boats.png").write_bytes(file_of(pattern()))

    def walk(safety: str, only: Collection[str] = ()) -> set[str]:
        with serving(tmp_path / "data", painter=Drawing(), safety=safety, lora_dirs=(loras,)) as served:
            asked = answers(served, only)
            return {path for path, data in asked if any(map(is_pattern, images_in(data)))}

    return walk


def answers(served: Served, only: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """The template of each route with its answer, of all APIs.

    Args:
        only: Templates of the routes that are asked; all if there are none.
    """
    client, picture = served.client, file_of(pattern())
    text = base64.b64encode(picture).decode()
    reference = client.post("/api/v1/uploads", content=picture).json()["reference"]
    job = submit(client, prompt=FORBIDDEN, **ASK)["jobs"][0]
    image = job["image"] or submit(client, prompt=FINE, **ASK)["jobs"][0]["image"]
    body = {"prompt": FORBIDDEN, "seed": 1, "steps": 4, "size": "128x128"}
    link = client.post("/v1/images/generations", json={**body, "response_format": "url"}).json()
    address = link["data"][0]["url"] if "data" in link else "http://localhost/none?expires=1"
    [lora] = [one for one in client.get("/api/v1/models").json() if one["kind"] == "lora"]
    names = {
        "sha256": reference.removeprefix("sha256:"),
        "image_id": image["id"],
        "job_id": job["id"],
        "set_id": served.ledger.get_job(job["id"]).set_id,
        "account_id": "local",
        "model_id": lora["id"],
        "name": address.rpartition("/")[2].partition("?")[0],
    }
    [network, *_] = client.get("/controlnet/model_list").json()["model_list"]
    unit = {"image": text, "module": "invert", "model": network, "enabled": True}
    bodies: dict[str, Any] = {
        "/api/v1/control/preview": {"image": reference, "preprocessor": "invert"},
        "/api/v1/uploads": picture,
        "/api/v1/imports": picture,
        "/api/v1/detect": picture,
        "/v1/images/generations": {**body, "response_format": "b64_json"},
        "/v1/images/edits": {**body, "image": f"data:image/png;base64,{text}"},
        "/sdapi/v1/txt2img": {"prompt": FORBIDDEN, **ASK},
        "/sdapi/v1/img2img": {
            "prompt": FINE,
            **ASK,
            "init_images": [text],
            "include_init_images": True,
            "alwayson_scripts": {"ControlNet": {"args": [unit]}},
        },
        "/sdapi/v1/png-info": {"image": text},
        "/sdapi/v1/interrogate": {"image": text},
        "/sdapi/v1/extra-single-image": {"image": text, "upscaler_1": "Lanczos"},
        "/sdapi/v1/extra-batch-images": {"imageList": [{"data": text}], "upscaler_1": "Nearest"},
        "/controlnet/detect": {"controlnet_module": "invert", "controlnet_input_images": [text]},
    }
    for path, method in sorted(routes(served.state.settings)):
        if path in STREAMS or (method != "GET" and path in CLOSES) or (only and path not in only):
            continue
        url = re.sub(r"\{(\w+)(?::path)?\}", lambda match: str(names.get(match[1], "none")), path)
        sent = bodies.get(path, {})
        how = {"content": sent} if isinstance(sent, bytes) else {"json": sent}
        query = address.partition("?")[2] if "{name}" in path else ""
        answer = client.request(method, f"{url}?{query}", **({} if method == "GET" else how))
        assert answer.status_code < 500, (path, answer.text)
        yield path, answer.content


def routes(settings: ServeSettings) -> set[tuple[str, str]]:
    """Templates of paths, and methods."""

    def within(routes: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
        for route in routes:
            if isinstance(route, APIRoute):
                yield from ((prefix + route.path, method) for method in route.methods - {"HEAD", "DELETE"})
            elif (router := getattr(route, "original_router", None)) is not None:
                yield from within(router.routes, prefix + route.include_context.prefix)

    return set(within(create_app(settings, socket=settings.data / "none").routes))


def images_in(data: bytes) -> Iterator[Image.Image]:
    """The images in an answer: its bytes, texts in base64, files of an archive."""
    if data[:2] == b"PK":
        archive = zipfile.ZipFile(io.BytesIO(data))
        for name in archive.namelist():
            yield from images_in(archive.read(name))
        return
    texts = re.findall(rb"[A-Za-z0-9+/]{300,}={0,2}", data)
    for one in (data, *(base64.b64decode(text + b"=" * (-len(text) % 4)) for text in texts)):
        try:
            with Image.open(io.BytesIO(one)) as opened:
                opened.load()
                yield opened.copy()
        except OSError:
            continue


def test_no_route_sends_what_a_policy_blocks(walked, tmp_path):
    path: Path = tmp_path / "own.toml"
    path.write_text(POLICY.format(action="block"))
    assert walked(str(path)) == set()


def test_no_route_sends_what_a_policy_blurs(walked, tmp_path):
    path: Path = tmp_path / "own.toml"
    path.write_text(POLICY.format(action="blur"))
    assert walked(str(path), SENT) == set()


def test_routes_send_it_where_no_policy_looks_at_images(walked):
    assert walked("off", SENT) == SENT
