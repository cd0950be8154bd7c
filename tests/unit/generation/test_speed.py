"""Presets: the deep layers rest, guidance ends early, and nothing else changes."""

import pytest
import torch

from limner.engine.engine import Engine
from limner.engine.loaded import load
from limner.generation import story
from limner.generation.calls import Denoise
from limner.generation.run import run, watch
from limner.generation.speed import SPEEDS, Speed
from limner.images.pixels import to_images
from limner.request import GenerationRequest


@pytest.fixture
def model(checkpoint_folder):
    return load(checkpoint_folder, precision="fp32")


def ask(model, **fields):
    fields = {"prompt": "a red house", "steps": 10, "width": 64, "height": 64, "seed": 1, **fields}
    return model.resolve(GenerationRequest.of(fields)).request


def picture_of(request, model):
    return story.picture_of(model.resolve(request).pictures[0], model.facts)


def calls_of(model, request):
    return [call for call, _ in watch(picture_of(request, model), model) if isinstance(call, Denoise)]


def test_reused_features_give_the_same_where_nothing_has_changed(networks):
    unet, generator = networks["unet"].eval(), torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 16, 32, generator=generator)
    with torch.no_grad():
        timesteps = torch.tensor([10, 500])
        output, deep = unet.forward_keeping(x, timesteps, context)
        assert torch.equal(output, unet(x, timesteps, context))
        assert torch.equal(output, unet.forward_reusing(x, timesteps, context, deep))
        assert not torch.equal(output, unet.forward_reusing(x + 0.1, timesteps, context, deep))


def test_exact_keeps_nothing(model):
    calls = calls_of(model, ask(model))
    assert not any(call.keep or call.deep for call in calls)
    assert all(len(call.branches) == 2 for call in calls)


def test_deep_layers_rest_and_guidance_ends(model):
    calls = calls_of(model, ask(model, speed="fast"))
    # Fresh at the first two of ten steps, then at every third; guided at the first six.
    rest = [index for index, call in enumerate(calls) if call.deep is not None]
    assert rest == [2, 3, 5, 6, 8, 9]
    assert [call.keep for call in calls] == [call.deep is None for call in calls]
    assert [len(call.branches) for call in calls] == [2] * 6 + [1] * 4


def test_an_interval_of_the_request_goes_before_the_preset(model):
    calls = calls_of(model, ask(model, speed="fast", guidance_interval=(0.0, 1000.0)))
    assert all(len(call.branches) == 2 for call in calls)


def test_features_are_made_when_a_branch_has_none(model):
    """Guidance that begins late finds no features of the negative prompt."""
    low, high = 0.1, calls_of(model, ask(model))[5].sigma
    calls = calls_of(model, ask(model, speed="fast", guidance_interval=(low, high)))
    begun = next(call for call in calls if len(call.branches) == 2)
    assert begun.deep is None
    assert all(call.deep is None or call.deep.keys() >= set(call.branches) for call in calls)


@pytest.mark.long
@pytest.mark.parametrize("sampler", ["euler", "heun", "pndm", "dpmpp_2m_sde"])
def test_pictures_are_near_the_exact_ones(model, sampler):
    exact, fast = (
        run(picture_of(ask(model, steps=20, sampler=sampler, speed=speed), model), model)
        for speed in ("exact", "balanced")
    )
    distance = (exact - fast).square().mean().sqrt() / exact.std()
    assert 0 < distance < 0.5


def test_presets_share_an_engine(model):
    requests = [ask(model, seed=seed, speed=speed) for seed, speed in enumerate([*SPEEDS, *SPEEDS])]
    expected = [to_images(run(picture_of(request, model), model))[0] for request in requests]
    with Engine(model) as engine:
        handles = [engine.submit(request) for request in requests]
        for handle, alone in zip(handles, expected, strict=True):
            [picture] = handle.result().images
            pixels = (torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8) for i in (picture, alone))
            one, other = (these.int() for these in pixels)
            assert int((one - other).abs().max()) <= 1  # company rounds differently


def test_the_whole_run_may_be_guided():
    assert Speed().lowest_guided([3.0, 2.0, 1.0, 0.0]) == 0.0
    assert Speed(guided=0.67).lowest_guided([3.0, 2.0, 1.0, 0.0]) == 1.0
