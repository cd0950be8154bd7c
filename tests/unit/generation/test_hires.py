"""The second pass: what it asks for, in which size, and in whose company."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from limner.diffusion.config import SchedulerConfig
from limner.engine.engine import Engine
from limner.engine.loaded import load
from limner.engine.memory import Limits
from limner.errors import InvalidRequest, OutOfMemory
from limner.files import FileStamp
from limner.generation import story
from limner.generation.calls import (
    Answer,
    Conditioning,
    DecodeLatents,
    Denoise,
    Denoised,
    EncodeImage,
    EncodeText,
)
from limner.generation.passes import plan_of
from limner.generation.run import run, watch
from limner.generation.upscaling import enlarged
from limner.images.opening import open_image
from limner.images.pixels import to_tensor
from limner.nn.unet_config import UNetConfig
from limner.request import GenerationRequest
from limner.request.facts import ModelFacts
from limner.request.networks import UsedAdapter
from limner.request.resolve import resolve

HIRES = {"hires_scale": 2.0, "hires_steps": 3, "hires_strength": 0.5, "hires_upscaler": "latent"}


FACTS = ModelFacts("fake", "custom", UNetConfig(), SchedulerConfig(), latent_channels=3)


def used(name):
    """An adapter of this name that changes everything."""
    return UsedAdapter(FileStamp(Path(name), 0, 0, 0), 1.0, 1.0)


class NoFiles:
    """A model's files where requests name none."""

    def adapters(self, loras):
        return tuple(used(lora.name) for lora in loras)

    def controls(self, controls):
        return ()

    def image_prompts(self, prompts):
        return ()

    def image_size(self, source):
        return open_image(source).size

    def check_images(self, request):
        return ()


def spec(request, facts=FACTS):
    return resolve(request, facts, NoFiles()).pictures[0]


def picture_of(request, model):
    return story.picture_of(spec(request, model.facts), model.facts)


class FakeModel:
    """Answers calls without networks, and keeps them. Latents are pictures' pixels."""

    facts = FACTS

    def __init__(self):
        self.calls = []

    def answer(self, calls):
        self.calls += calls
        return [Answer(self._answer(call)) for call in calls]

    def _answer(self, call):
        match call:
            case EncodeText():
                return tuple(Conditioning(torch.full((1, 4, 8), float(len(text)))) for text in call.prompts)
            case Denoise():
                return Denoised(call.x / (1 + call.sigma**2))
            case EncodeImage():
                mean = call.image[..., ::8, ::8]
                return mean, torch.zeros_like(mean)
        return F.interpolate(call.latents, scale_factor=8)

    def of(self, kind):
        return [call for call in self.calls if isinstance(call, kind)]


def request(**fields):
    defaults = {
        "prompt": "a red house",
        "width": 64,
        "height": 96,
        "steps": 4,
        "guidance_scale": 4.0,
        "sampler": "euler",
        "sigma_schedule": "uniform",
        "seed": 1,
    }
    return GenerationRequest(**{**defaults, **HIRES, **fields})


def drawn(**fields):
    model = FakeModel()
    run(picture_of(request(**fields), model), model)
    return model


def test_a_second_pass_is_larger_and_begins_with_less_noise():
    model = drawn()
    calls = model.of(Denoise)
    assert [call.x.shape[2:] for call in calls] == [(12, 8)] * 4 + [(24, 16)] * 3
    assert [(call.step, call.steps) for call in calls] == [(step, 7) for step in range(1, 8)]
    whole = plan_of(spec(request(steps=6, hires_scale=1.0)).passes[0], FACTS.scheduler).sigmas
    assert [call.sigma for call in calls[4:]] == list(whole[3:6])
    assert [type(call) for call in model.calls if not isinstance(call, EncodeText | Denoise)] == [
        DecodeLatents
    ]


def test_the_noise_of_the_second_pass_is_its_own():
    """That of the seed at the larger size, so that it does not depend on how the first pass was drawn."""
    model = drawn()
    first, second = model.of(Denoise)[3], model.of(Denoise)[4]
    latents = first.x / (1 + first.sigma**2)  # where Euler's last step ends
    noise = torch.randn(1, 3, 24, 16, generator=torch.Generator().manual_seed(1))
    start = F.interpolate(latents, (24, 16), mode="bilinear")
    torch.testing.assert_close(second.x, start + second.sigma * noise)


def test_prompts_and_steps_of_the_second_pass():
    fields = {"prompt": "[a:bb:5]", "negative_prompt": "xxx", "sampler": "euler"}

    def told(**more):
        calls = drawn(**fields, **more).of(Denoise)
        return [{name: int(c.context[0, 0, 0]) for name, c in call.conditionings.items()} for call in calls]

    # A whole number counts the steps of both passes, as in webui.
    assert [step["positive"] for step in told()] == [1] * 5 + [2] * 2
    own = told(hires_prompt="four", hires_negative_prompt="")
    assert own[4:] == [{"positive": 4, "negative": 0}] * 3
    assert own[:4] == [{"positive": 1, "negative": 3}] * 4


def test_loras_of_the_second_pass():
    loras = ({"name": "one"},)
    assert [call.adapters for call in drawn(loras=loras, hires_prompt="x").of(Denoise)] == [
        (used("one"),)
    ] * 7
    calls = drawn(loras=loras, hires_prompt="x<lora:two>").of(Denoise)
    assert [call.adapters for call in calls] == [(used("one"),)] * 4 + [(used("two"),)] * 3


def test_a_sampler_of_its_own():
    calls = drawn(hires_sampler="heun").of(Denoise)
    assert [call.step for call in calls] == [1, 2, 3, 4, 5, 6, 6, 7, 7]


@pytest.mark.parametrize("upscaler", ["lanczos", "nearest"])
def test_a_picture_is_enlarged_between_decoding_and_encoding(upscaler):
    model = drawn(hires_upscaler=upscaler)
    kinds = [type(call) for call in model.calls]
    assert kinds == [
        EncodeText, *[Denoise] * 4, DecodeLatents, EncodeImage, EncodeText, *[Denoise] * 3, DecodeLatents,
    ]  # fmt: skip
    assert model.of(EncodeImage)[0].image.shape == (1, 3, 192, 128)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"hires_scale": 1.5}, (96, 144)),
        ({"hires_scale": 1.3}, (80, 120)),  # multiples of 8
        ({"hires_width": 128}, (128, 192)),
        ({"hires_height": 128}, (80, 128)),
        ({"hires_width": 128, "hires_height": 128}, (128, 128)),
        ({}, None),
    ],
)
def test_sizes(fields, size):
    assert GenerationRequest(prompt="", width=64, height=96, **fields).hires_size == size


def test_what_stands_over_is_cut_off_on_both_sides():
    x = torch.arange(6.0).expand(1, 1, 4, 6)
    y = enlarged(x, (8, 8), "latent_nearest")
    assert torch.equal(y, torch.arange(1, 5).repeat_interleave(2).expand(1, 1, 8, 8).float())
    image = Image.new("RGB", (60, 40))
    image.paste((255, 0, 0), (10, 0, 50, 40))
    assert bool((enlarged(to_tensor([image]), (80, 80), "nearest")[:, 0] == 1).all())


@pytest.mark.parametrize("upscaler", ["latent", "latent_bicubic", "latent_nearest", "lanczos"])
def test_ends_that_meet_still_do_when_enlarged(upscaler):
    """A picture moved around its edges is enlarged to the same one, moved."""
    x = torch.rand(1, 3, 10, 40) * 2 - 1
    rolled, size = x.roll((2, 4), (2, 3)), (15, 60)
    moved = enlarged(rolled, size, upscaler, "xy")
    torch.testing.assert_close(moved, enlarged(x, size, upscaler, "xy").roll((3, 6), (2, 3)))
    if upscaler != "latent_nearest":
        assert not torch.allclose(moved[..., 0], enlarged(rolled, size, upscaler)[..., 0])
    across = enlarged(x, size, upscaler, "x")
    torch.testing.assert_close(enlarged(x.roll(4, 3), size, upscaler, "x"), across.roll(6, 3))


@pytest.fixture
def model(checkpoint_folder):
    return load(checkpoint_folder, precision="fp32")


ASK = {"prompt": "a red house", "width": 64, "height": 64, "steps": 3, "seed": 1}


def test_resolving_fills_in_the_second_pass_only_where_there_is_one(model):
    plain = model.resolve(GenerationRequest(**ASK)).request
    assert not [name for name, value in plain if name.startswith("hires_") and value is not None]
    larger = model.resolve(GenerationRequest(**ASK, hires_width=128)).request
    assert (larger.hires_steps, larger.hires_strength, larger.hires_upscaler) == (3, 0.7, "latent")
    assert model.resolve(larger).request == larger


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hires_steps": 3, "hires_strength": 0.5}, "no second pass for hires_steps and hires_strength"),
        ({"hires_scale": 2.0, "hires_width": 128}, "give one of them"),
        ({"hires_scale": 0.5}, "hires_scale is 0.5"),
        ({"hires_scale": 2.0, "hires_upscaler": "R-ESRGAN 4x+"}, "hires_upscaler is 'R-ESRGAN 4x.'"),
        ({"hires_scale": 2.0, "hires_sampler": "Eulr"}, "hires_sampler is 'Eulr'; expected one of"),
        ({"hires_scale": 16.0, "width": 512}, "the hires pass's width is 8192"),
        ({"hires_scale": 2.0, "hires_strength": 0.001}, "3000 in all"),
        ({"hires_scale": 2.0, "hires_sampler": "lcm"}, "in the hires pass, .*lcm has its own"),
        ({"hires_width": 128, "hires_height": 192, "tiling": "x"}, "crops the image"),
    ],
)
def test_what_cannot_be_honoured_is_refused(model, fields, message):
    with pytest.raises(InvalidRequest, match=message):
        model.generate(**{**ASK, **fields})


def test_a_mask_is_refused(model, tmp_path):
    Image.new("L", (64, 64), 255).save(tmp_path / "white.png")
    white = tmp_path / "white.png"
    with pytest.raises(InvalidRequest, match="a mask keeps the pixels of its image"):
        model.generate(**ASK, image=white, mask=white, hires_scale=2.0)
    assert model.generate(**ASK, image=white, hires_scale=2.0).images[0].size == (128, 128)


def test_in_company_with_others(model):
    """Each pass finds those of its size, and nobody's picture changes."""
    asked = [
        {**ASK, "hires_scale": 1.5},
        {**ASK, "width": 96, "height": 96},
        {**ASK, "seed": 2, "hires_width": 96, "hires_upscaler": "lanczos"},
        {**ASK, "hires_scale": 1.5, "speed": "fast", "hires_sampler": "heun"},
    ]
    requests = [GenerationRequest.of({**fields, "exact": True}) for fields in asked]
    alone = [model.generate(request=request) for request in requests]
    engine = Engine(model)
    handles = [engine.submit(request) for request in requests]
    seen = list(handles[0])
    for handle, expected in zip(handles, alone, strict=True):
        for one, other in zip(handle.result().images, expected.images, strict=True):
            assert one.tobytes() == other.tobytes()
    assert [progress.step for progress in seen if progress.picture is None] == [1, 2, 3, 4, 5, 6]
    assert {progress.steps for progress in seen} == {6}
    assert seen[-1].seconds_left == 0
    assert seen[2].seconds_left > 0
    assert seen[-1].picture.size == (96, 96)


def test_memory_is_asked_for_the_larger_size(model):
    engine = Engine(model, limits=Limits(memory=model.backend.bytes + 50_000_000))
    assert engine.submit(GenerationRequest(**ASK)).result()
    with pytest.raises(OutOfMemory, match="4096x4096 pixels"):
        engine.submit(GenerationRequest(**ASK, hires_width=4096)).result()


def test_a_second_pass_is_given_up_within_a_step(model):
    handle = Engine(model).submit(GenerationRequest(**ASK, hires_scale=2.0, hires_steps=200))
    for progress in handle:
        if progress.step == 5:
            assert handle.cancel()
    assert progress.step <= 7
    assert handle.cancelled()


def test_speed_presets_reach_the_second_pass(model):
    ask = GenerationRequest(**{**ASK, "steps": 10}, hires_scale=1.5, hires_steps=10, speed="balanced")
    generation = story.picture_of(model.resolve(ask).pictures[0], model.facts)
    calls = [call for call, _ in watch(generation, model) if isinstance(call, Denoise)]
    reused = [call.step for call in calls if call.deep is not None]
    assert min(reused) < 10 < max(reused)
    assert all(call.deep["positive"].shape[-1] == call.x.shape[-1] for call in calls if call.deep is not None)
