"""Requests of every kind in one engine at the same time: each gets the picture that it gets alone, and any of
them can leave on the way."""

import pytest
import torch
from PIL import Image

from limner import GenerationRequest, load
from limner.engine.engine import Engine
from limner.engine.events import StepDone
from limner.images.opening import image_source
from tests.unit.model.test_adapting import LAYER, write_lora
from tests.unit.model.test_controlling import write_controlnet
from tests.unit.model.test_image_prompts import write_adapter, write_encoder
from tests.waiting import until

ASK = {"prompt": "a cat", "negative_prompt": "fog", "width": 64, "height": 64, "steps": 4, "seed": 1}


@pytest.fixture
def model(checkpoint_folder, tmp_path):
    write_lora(tmp_path / "one.safetensors", LAYER)
    write_lora(tmp_path / "five.safetensors", LAYER, rank=5, seed=1)
    return load(checkpoint_folder, precision="fp32", lora_dirs=[tmp_path])


@pytest.fixture
def asks(model, tmp_path):
    """Fields by kind."""
    unet = model.checkpoint.unet_config
    net = write_controlnet(tmp_path / "net", unet)
    torch.manual_seed(1)
    write_encoder(tmp_path / "adapters" / "image_encoder")
    seen = write_adapter(tmp_path / "adapters" / "plain.safetensors", unet)
    photo = image_source(Image.radial_gradient("L").resize((64, 64)).convert("RGB"))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    control = {"model": str(net), "image": photo}
    return {
        "plain": {},
        "sampler": {"sampler": "dpmpp_2m", "steps": 6, "guidance_scale": 3.0},
        "unguided": {"guidance_scale": 1.0, "sampler": "euler_a"},
        "changing": {"prompt": "a [cat:dog:0.5] AND a bird :0.4", "perp_neg": 1.0},
        "long": {"prompt": ", ".join(["a cat"] * 40)},
        "longer": {"prompt": "a cat BREAK a dog BREAK a bird"},
        "long negative": {"negative_prompt": "fog BREAK rain"},
        "lora": {"prompt": "a cat <lora:one:0.7>"},
        "lora of another rank": {"prompt": "a cat <lora:five>"},
        "two loras": {"prompt": "a cat <lora:five:0.5> <lora:one>"},
        "control": {"controls": [control]},
        "controls": {"controls": [{**control, "mode": "guess", "end": 0.6}, {**control, "weight": 0.3}]},
        "image prompt": {"image_prompts": [{"model": seen, "images": [photo]}]},
        "all": {
            "prompt": "a cat <lora:one>",
            "controls": [control],
            "image_prompts": [{"model": seen, "images": [photo], "weight": 0.4}],
            "image": photo,
            "strength": 0.6,
        },
        "image": {"image": photo, "strength": 0.5},
        "mask": {"image": photo, "mask": image_source(mask), "strength": 1.0},
        "larger": {"hires_scale": 1.5, "hires_strength": 0.5},
        "tiling": {"tiling": "xy"},
        "fast": {"speed": "fast", "steps": 8},
        "cfg++": {"sampler": "ddim_cfg_pp"},
    }


def requests(asks, **more):
    return [GenerationRequest.of({**ASK, **fields, **more}) for fields in asks.values()]


@pytest.mark.long
def test_company_changes_no_bit_of_an_exact_picture(model, asks):
    exact = requests(asks, exact=True)
    alone = [model.generate(request=one).images[0].tobytes() for one in exact]
    assert len(set(alone)) == len(asks)
    with Engine(model) as engine:
        together = [engine.submit(one) for one in exact]
        assert [handle.result().images[0].tobytes() for handle in together] == alone


@pytest.mark.long
def test_company_changes_no_bit(model, asks):
    shared = requests(asks)
    alone = [model.generate(request=one).images[0].tobytes() for one in shared]
    assert len(set(alone)) == len(asks)
    with Engine(model) as engine:
        together = [handle.result().images[0].tobytes() for handle in [engine.submit(one) for one in shared]]
        stats = engine.stats()
    for name, one, other in zip(asks, alone, together, strict=True):
        assert one == other, name
    assert stats.rows["Denoise"] > 1.5 * stats.forwards["Denoise"]  # many kinds share no pass with others


@pytest.mark.long
def test_any_of_them_can_leave_and_the_others_stay(model, asks):
    exact = requests(asks, exact=True, steps=12)
    leaving = {name for index, name in enumerate(asks) if index % 2}
    handles = {}

    def leave(event):
        if isinstance(event, StepDone) and event.job in leaving:
            until(lambda: event.job in handles)
            handles[event.job].cancel()

    with Engine(model, subscribers=[leave]) as engine:
        for name, one in zip(asks, exact, strict=True):
            handles[name] = engine.submit(one, id=name)
        kept = {name: handles[name].result().images[0].tobytes() for name in asks if name not in leaving}
        assert all(handles[name].cancelled() for name in leaving)
    for name, one in zip(asks, exact, strict=True):
        if name not in leaving:
            assert kept[name] == model.generate(request=one).images[0].tobytes(), name
