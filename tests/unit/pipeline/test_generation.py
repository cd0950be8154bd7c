"""Generations as coroutines: what they ask for."""

import pytest
import torch

from limner.diffusion.config import SchedulerConfig
from limner.pipeline.calls import Answer, Conditioning, DecodeLatents, Denoise, Denoised, EncodeText
from limner.pipeline.generation import Traits, picture_of, run, watch
from limner.pipeline.model import load
from limner.request import GenerationRequest


class FakeModel:
    """Answers calls without networks, and keeps them."""

    scheduler = SchedulerConfig()
    traits = Traits()

    def adapters_of(self, request):
        return ()

    def __init__(self):
        self.calls = []

    def latent_shape(self, request):
        return (1, 4, request.height // 8, request.width // 8)

    def answer(self, calls):
        self.calls += calls
        return [Answer(self._answer(call)) for call in calls]

    def _answer(self, call):
        if isinstance(call, EncodeText):
            return tuple(Conditioning(torch.full((1, 4, 8), float(len(text)))) for text in call.prompts)
        if isinstance(call, Denoise):
            return Denoised(call.x / (1 + call.sigma**2))
        return call.latents[:, :3]


def request(**fields):
    defaults = {
        "prompt": "a red house",
        "width": 72,
        "height": 104,
        "steps": 5,
        "guidance_scale": 4.0,
        "sampler": "euler",
        "seed": 1,
    }
    return GenerationRequest(**{**defaults, **fields})


def test_a_generation_asks_for_text_then_denoising_then_the_picture():
    model = FakeModel()
    image = run(picture_of(request(), model), model)
    assert [type(call) for call in model.calls] == [EncodeText, *[Denoise] * 5, DecodeLatents]
    assert model.calls[0].prompts == ("a red house", "")
    assert [call.step for call in model.calls[1:-1]] == [1, 2, 3, 4, 5]
    assert {call.steps for call in model.calls[1:-1]} == {5}
    assert image.shape == (1, 3, 13, 9)


def test_without_guidance_the_negative_prompt_is_not_even_encoded():
    model = FakeModel()
    run(picture_of(request(guidance_scale=1.0, negative_prompt="fog"), model), model)
    assert model.calls[0].prompts == ("a red house",)


def test_guidance_outside_its_interval_is_off():
    model = FakeModel()
    run(picture_of(request(guidance_interval=(1.0, 5.0)), model), model)
    guided = {call.sigma: call.guidance.branches(call.sigma) for call in model.calls[1:-1]}
    assert {len(names) for sigma, names in guided.items() if 1 < sigma <= 5} == {2}
    assert {len(names) for sigma, names in guided.items() if not 1 < sigma <= 5} == {1}


def test_heun_looks_ahead_and_still_counts_its_steps():
    model = FakeModel()
    run(picture_of(request(sampler="heun"), model), model)
    steps = [call.step for call in model.calls[1:-1]]
    assert len(steps) == 9
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (1, 5)


def test_closing_what_is_watched_closes_the_generation():
    model = FakeModel()
    generation = picture_of(request(), model)
    watched = watch(generation, model)
    next(watched)
    next(watched)
    watched.close()
    assert generation.gi_frame is None
    assert len(model.calls) == 2


def test_an_answer_that_is_an_error_ends_the_generation():
    class Broken(FakeModel):
        def answer(self, calls):
            return [Answer(error=ValueError("broken"))]

    generation = picture_of(request(), FakeModel())
    with pytest.raises(ValueError, match="broken"):
        run(generation, Broken())
    assert generation.gi_frame is None


def test_the_noise_depends_on_the_seed_alone():
    first, second, other = FakeModel(), FakeModel(), FakeModel()
    images = [
        run(picture_of(request(sampler="euler_a"), first), first),
        run(picture_of(request(sampler="euler_a"), second), second),
        run(picture_of(request(sampler="euler_a", seed=2), other), other),
    ]
    assert torch.equal(images[0], images[1])
    assert not torch.allclose(images[0], images[2])


@pytest.fixture
def model(checkpoint_folder):
    return load(checkpoint_folder, precision="fp32")


def test_repeating_a_context_changes_nothing(model):
    """What lets prompts of unequal length share a forward pass."""
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500.0])
    context = torch.randn(1, 16, 32)
    with torch.inference_mode():
        once, thrice = model.backend.unet(x, t, context), model.backend.unet(x, t, context.repeat(1, 3, 1))
    assert torch.allclose(once, thrice, atol=1e-5)
