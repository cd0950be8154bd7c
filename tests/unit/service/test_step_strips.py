"""The previews of an image's steps, which are kept in one WebP beside it."""

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

from limner.engine.handle import Progress
from limner.generation.preview import PREVIEWS
from limner.service.step_strips import MAX_SIDE, MAX_TILES, StepStrip
from tests.serving import serving, submit


def progress(step, steps, side=16, value=0.0):
    latents = torch.full((1, 4, side, side), value)
    return Progress(1, 1, step, steps, latents, 0.0, None, PREVIEWS["sd1"])


def strip_of(steps, **more):
    strip = StepStrip()
    for step in range(1, steps + 1):
        strip.add(progress(step, steps, value=(step - 1) / max(1, steps - 1), **more))
    made = strip.finished()
    with Image.open(io.BytesIO(made.sprite)) as opened:
        return made.layout, opened.convert("RGB"), opened.format


def test_each_step_has_a_tile_in_order():
    layout, sprite, form = strip_of(6)
    assert form == "WEBP"
    assert layout["tile"] == [16, 16]
    assert [one["step"] for one in layout["steps"]] == [1, 2, 3, 4, 5, 6]
    red = [sprite.getpixel((one["x"] + 8, one["y"] + 8))[0] for one in layout["steps"]]
    assert red == sorted(red)  # the latents grow from step to step, and red with them
    assert red[-1] - red[0] > 5


@pytest.mark.parametrize(("steps", "side"), [(1, 16), (200, 16), (40, 128), (33, 300)])
def test_number_and_size_of_tiles_are_bounded(steps, side):
    layout, sprite, _ = strip_of(steps, side=side)
    kept = [one["step"] for one in layout["steps"]]
    assert len(kept) == min(steps, MAX_TILES)
    assert (kept[0], kept[-1]) == (1, steps)
    width, height = layout["tile"]
    assert max(width, height) <= MAX_SIDE
    places = {(one["x"], one["y"]) for one in layout["steps"]}
    assert len(places) == len(kept)
    assert all(x + width <= sprite.width and y + height <= sprite.height for x, y in places)


def test_what_is_kept_does_not_hold_the_latents_of_a_batch():
    batch = torch.zeros(8, 4, 512, 512)
    kept = replace(progress(1, 2), latents=batch[:1]).reduced(MAX_SIDE)
    assert max(kept.latents.shape) <= MAX_SIDE
    assert kept.latents.untyped_storage().nbytes() < batch.untyped_storage().nbytes() / 200


def test_a_second_pass_has_tiles_of_the_same_size():
    strip = StepStrip()
    for step in range(1, 5):
        strip.add(progress(step, 4, side=16 if step < 3 else 32))
    assert strip.finished().layout["tile"] == [32, 32]


def test_a_model_without_previews_has_no_strip():
    strip = StepStrip()
    strip.add(replace(progress(1, 1), preview_map=None))
    assert strip.finished() is None
    assert StepStrip().finished() is None


def steps_of(served, image):
    return served.client.get(f"/api/v1/images/{image['id']}/steps").json()


def kept_steps(served, image):
    """The steps of an image, once the worker has stored them, which it does after handing the image in."""
    for _ in range(400):
        if (found := steps_of(served, image))["steps"]:
            return found
        submit(served.client)  # a job that ends later: what came before is soon stored
    raise AssertionError("no steps are kept")


def test_steps_are_served_and_deleted_with_their_image(tmp_path):
    with serving(tmp_path) as served:
        image = submit(served.client, steps=5)["jobs"][0]["image"]
        found = kept_steps(served, image)
        assert [one["step"] for one in found["steps"]] == [1, 2, 3, 4, 5]
        sprite = served.client.get(found["sprite"])
        assert sprite.headers["content-type"] == "image/webp"
        assert "immutable" in sprite.headers["cache-control"]
        assert len(sprite.content) < 10_000
        stored = list((tmp_path / "pictures/steps").rglob(f"{image['job_id']}/*"))
        assert len(stored) == 2
        other = served.key("bert")
        assert served.client.get(found["sprite"], headers=other).status_code == 404
        admin = {"authorization": f"Bearer {served.ledger.create_key('local')[1]}"}
        served.client.delete(f"/api/v1/images/{image['id']}", headers=admin)
        assert not any(path.exists() for path in stored)
        assert served.client.get(found["sprite"], headers=admin).status_code == 404


def test_steps_are_not_kept_where_the_service_is_told_so(tmp_path):
    with serving(tmp_path, keep_steps=False) as served:
        image = submit(served.client)["jobs"][0]["image"]
        assert steps_of(served, image) == {"steps": [], "sprite": None, "tile": [0, 0]}
    assert not (tmp_path / "pictures/steps").exists()
