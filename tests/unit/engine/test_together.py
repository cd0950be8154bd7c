"""Everybody at once on one device: two engines, threads, asyncio, a grid and the classes of diffusers, with
adapters, control networks and image prompts mixed. Each image equals what it is alone."""

import asyncio
import threading
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

import limner
from limner.images.opening import image_source
from tests.unit.model.test_adapting import LAYER, write_lora
from tests.unit.model.test_controlling import write_controlnet
from tests.unit.model.test_image_prompts import write_adapter, write_encoder

FIELDS = {"prompt": "a cat", "width": 64, "height": 64, "steps": 3, "seed": 1}


@pytest.fixture
def model(checkpoint_folder, tmp_path):
    for seed, name in enumerate(("one", "two")):
        write_lora(tmp_path / f"{name}.safetensors", LAYER, rank=2 + 3 * seed, seed=seed)
    return limner.load(checkpoint_folder, precision="fp32", lora_dirs=[tmp_path])


@pytest.fixture
def requests(model, tmp_path):
    """A request of every kind that adds something to a forward pass."""
    unet = model.checkpoint.unet_config
    net = write_controlnet(tmp_path / "net", unet)
    torch.manual_seed(1)
    write_encoder(tmp_path / "adapters" / "image_encoder")
    seen = write_adapter(tmp_path / "adapters" / "plain.safetensors", unet)
    photo = image_source(Image.radial_gradient("L").resize((64, 64)).convert("RGB"))
    control = {"model": str(net), "image": photo}
    fields = [
        {},
        {"prompt": "a cat <lora:one:0.7>"},
        {"prompt": "a cat <lora:two:0.7>"},
        {"prompt": "a cat BREAK a dog"},
        {"controls": [control]},
        {"image_prompts": [{"model": seen, "images": [photo]}]},
        {"prompt": "a cat <lora:two>", "controls": [control], "image": photo, "strength": 0.7},
        {"tiling": "xy"},
    ]
    return [limner.GenerationRequest.of({**FIELDS, **own}) for own in fields]


class Pipeline:
    """The classes of diffusers, with and without a LoRA."""

    def __init__(self, folder, loras):
        self.pipe = limner.StableDiffusionPipeline.from_pretrained(folder)
        self.pipe.set_progress_bar_config(disable=True)
        self.loras = loras

    def draw(self, index):
        if lora := self.loras[index % len(self.loras)]:
            self.pipe.load_lora_weights(lora)
        generator = torch.Generator().manual_seed(1)
        size = {"height": 64, "width": 64}
        [image] = self.pipe("a cat", num_inference_steps=3, generator=generator, **size).images
        if lora:
            self.pipe.unload_lora_weights()
        return image


def check_all_together(model, requests, pipeline, count):
    """Draw `count` images in all ways at once, and compare each with the one drawn alone."""
    alone = [pixels(model.generate(request=request).images[0]) for request in requests]
    drawn_by_pipeline = [pixels(pipeline.draw(index)) for index in range(len(pipeline.loras))]
    assert all(far(one, alone[0]) > 2 for one in alone[1:])  # each kind changes the image
    each = count // 6
    kinds = [index % len(requests) for index in range(each)]
    drawn: list[tuple[np.ndarray, np.ndarray]] = []

    def by_engine():
        with limner.Engine(model) as engine:
            handles = [engine.submit(requests[kind]) for kind in kinds]
            drawn.extend(
                (pixels(h.result().images[0]), alone[k]) for h, k in zip(handles, kinds, strict=True)
            )

    def by_calls():
        for kind in reversed(kinds):
            drawn.append((pixels(model.generate(request=requests[kind]).images[0]), alone[kind]))

    def by_asyncio():
        async def draw():
            engine = limner.Engine(model)
            handles = [engine.submit(requests[kind]) for kind in kinds]
            return [await handle for handle in handles]

        for kind, result in zip(kinds, asyncio.run(draw()), strict=True):
            drawn.append((pixels(result.images[0]), alone[kind]))

    def by_grid():
        for kind in islice(kinds, 0, None, 2):
            grid = limner.grid(model, requests[kind], x=limner.Axis("seed", (1, 1)))
            drawn.extend((pixels(image), alone[kind]) for image in grid.pictures.values())

    def by_pipeline():
        for index in range(each):
            expected = drawn_by_pipeline[index % len(pipeline.loras)]
            drawn.append((pixels(pipeline.draw(index)), expected))

    threads = [
        threading.Thread(target=way)
        for way in (by_engine, by_engine, by_calls, by_asyncio, by_grid, by_pipeline)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) >= 6 * each
    assert {far(one, expected) for one, expected in drawn} == {0}


def pixels(image):
    return np.asarray(image.convert("RGB")).astype(int)


def far(one, other):
    return int(np.abs(one - other).max())


@pytest.mark.long
@pytest.mark.parametrize("count", [42, pytest.param(2000, marks=pytest.mark.slow)])
def test_each_image_is_what_it_is_alone(model, requests, checkpoint_folder, tmp_path, count):
    loras = [None, str(tmp_path / "one.safetensors"), str(tmp_path / "two.safetensors")]
    check_all_together(model, requests, Pipeline(checkpoint_folder, loras), count)
