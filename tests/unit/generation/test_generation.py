"""Generations as coroutines: what they ask for."""

from dataclasses import replace

import pytest
import torch

from limner.diffusion.config import SchedulerConfig
from limner.diffusion.prediction import scalings
from limner.engine.loaded import load
from limner.errors import InvalidRequest
from limner.generation import story
from limner.generation.calls import Answer, Conditioning, DecodeLatents, Denoise, Denoised, EncodeText
from limner.generation.passes import plan_of, step_ranges
from limner.generation.run import run, watch
from limner.nn.unet_config import UNetConfig
from limner.request import GenerationRequest
from limner.request.facts import ModelFacts
from limner.request.resolve import resolve

FACTS = ModelFacts("fake", "custom", UNetConfig(), SchedulerConfig())


class NoFiles:
    """A model's files where requests name none."""

    def adapters(self, loras):
        return ()

    def controls(self, controls):
        return ()

    def image_prompts(self, prompts):
        return ()

    def image_size(self, source):
        return 64, 64

    def check_images(self, request):
        return ()


def spec(request, facts=FACTS):
    return resolve(request, facts, NoFiles()).pictures[0]


def picture_of(request, model):
    return story.picture_of(spec(request, model.facts), model.facts)


class FakeModel:
    """Answers calls without networks, and keeps them."""

    facts = FACTS

    def __init__(self):
        self.calls = []

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
        once, thrice = (
            model.backend.networks.unet(x, t, context),
            model.backend.networks.unet(x, t, context.repeat(1, 3, 1)),
        )
    assert torch.allclose(once, thrice, atol=1e-5)


def told(model):
    """For each step, the lengths of the texts by name, which stand for them in the fake."""
    return [
        {name: float(one.context[0, 0, 0]) for name, one in call.conditionings.items()}
        for call in model.calls
        if isinstance(call, Denoise)
    ]


def test_a_prompt_that_changes():
    model = FakeModel()
    run(picture_of(request(prompt="a [c:ddd:0.4]", negative_prompt="[xx|y]"), model), model)
    assert isinstance(model.calls[0], EncodeText)
    assert sorted(model.calls[0].prompts) == sorted(["a c", "a ddd", "xx", "y"])
    negative = [2.0, 1.0, 2.0, 1.0, 2.0]
    positive = [3.0, 3.0, 5.0, 5.0, 5.0]
    assert told(model) == [{"positive": p, "negative": n} for p, n in zip(positive, negative, strict=True)]


def test_signs_of_the_grammar_are_letters_in_a_literal_prompt():
    model = FakeModel()
    run(picture_of(request(prompt="[a:b:0.5] AND c", prompt_syntax="literal"), model), model)
    assert model.calls[0].prompts == ("[a:b:0.5] AND c", "")


def test_prompts_joined_by_and():
    """negative + scale * sum of weight * (positive - negative), with estimates that tell the texts apart."""

    class Telling(FakeModel):
        def _answer(self, call):
            if not isinstance(call, Denoise):
                return super()._answer(call)
            estimates = {
                name: torch.full_like(call.x, float(call.conditionings[name].context[0, 0, 0]))
                for name in call.branches
            }
            around = scalings("epsilon", call.sigma)
            return Denoised(call.guidance.combine(estimates, call.x, call.sigma, around))

    model = Telling()
    ask = request(prompt="a :0.5 AND bb AND cccc :-1", negative_prompt="xxx", guidance_scale=2.0)
    image = run(picture_of(ask, model), model)
    assert model.calls[1].branches == ("positive", "positive 2", "positive 3", "negative")
    # " bb" is three letters long, " cccc" five.
    expected = 3 + 2 * (0.5 * (1 - 3) + (3 - 3) - (5 - 3))
    torch.testing.assert_close(image, torch.full_like(image, float(expected)))


def test_a_prompt_that_changes_goes_on_where_the_picture_was_begun():
    """Steps are those of the whole run, also where the first are left out."""
    whole = request(prompt="[a:bb:3]")
    one = spec(whole).passes[0]
    plan = plan_of(one, FACTS.scheduler)
    ranges = step_ranges(one, whole, plan.part(2), FACTS)
    assert [(one.last, one.texts["positive"]) for one in ranges] == [(3, "a"), (5, "bb")]
    assert one.rows == 2


@pytest.mark.parametrize("sampler", ["dpm2", "dpm_adaptive", "restart", "heun"])
def test_samplers_that_ask_between_the_sigmas_of_an_interval(sampler):
    model = FakeModel()
    plan = plan_of(spec(request(sampler=sampler)).passes[0], FACTS.scheduler)
    high, low = plan.sigmas[1] * 0.99, plan.sigmas[2] * 1.01
    run(picture_of(request(sampler=sampler, guidance_interval=(low, high)), model), model)
    assert {"negative"} <= set(model.calls[1].conditionings)


class Telling(FakeModel):
    """Estimates that tell the texts apart: the length of each, and a little of x."""

    def _answer(self, call):
        if not isinstance(call, Denoise):
            return super()._answer(call)
        estimates = {
            name: 0.1 * call.x + float(call.conditionings[name].context[0, 0, 0]) for name in call.branches
        }
        guided = call.guidance.combine(estimates, call.x, call.sigma, scalings("epsilon", call.sigma))
        unguided = call.guidance.unguided(estimates, call.sigma)
        return Denoised(guided, (guided if unguided is None else unguided) if call.paired else None)


def test_cfg_pp_goes_by_the_unguided_estimate():
    model = Telling()
    ask = request(sampler="euler_cfg_pp", negative_prompt="xxx", guidance_scale=0.5)
    image = run(picture_of(ask, model), model)
    x = model.calls[1].x
    for call, sigma_next in zip(model.calls[1:-1], [*(c.sigma for c in model.calls[2:-1]), 0.0], strict=True):
        torch.testing.assert_close(call.x, x)
        positive, negative = 0.1 * x + 11.0, 0.1 * x + 3.0
        x = negative + 0.5 * (positive - negative) + (x - negative) * (sigma_next / call.sigma)
    torch.testing.assert_close(image, x[:, :3])


def test_cfg_pp_where_nothing_is_guided_is_the_plain_sampler():
    """No sigma lies in the interval; at scale 1 there is guidance all the same."""
    images = []
    for sampler, scale, fields in (
        ("euler", 1.0, {}),
        ("euler_cfg_pp", 0.6, {"guidance_interval": (90.0, 99.0)}),
        ("euler_cfg_pp", 1.0, {"negative_prompt": "xxx"}),
    ):
        model = Telling()
        images.append(run(picture_of(request(sampler=sampler, guidance_scale=scale, **fields), model), model))
    assert torch.equal(images[0], images[1])
    assert not torch.allclose(images[0], images[2])


def test_only_samplers_that_go_by_it_ask_for_the_unguided_estimate():
    for sampler, paired in (("euler", False), ("ddim_cfg_pp", True)):
        model = Telling()
        run(picture_of(request(sampler=sampler), model), model)
        assert {call.paired for call in model.calls[1:-1]} == {paired}


def test_perp_neg_reads_an_empty_prompt_too():
    model = Telling()
    run(picture_of(request(negative_prompt="fog", perp_neg=1.0), model), model)
    assert model.calls[0].prompts == ("a red house", "fog", "")
    assert model.calls[1].branches == ("positive", "negative", "empty")
    assert told(model)[0] == {"positive": 11.0, "negative": 3.0, "empty": 0.0}


def test_the_empty_prompt_of_a_model_that_was_never_told_one_is_of_zeros():
    class Zeros(Telling):
        facts = replace(FACTS, zero_negative=True)

        def _answer(self, call):
            if not isinstance(call, EncodeText):
                return super()._answer(call)
            return tuple(replace(one, pooled=torch.ones(1, 2)) for one in super()._answer(call))

    model = Zeros()
    run(picture_of(request(negative_prompt="fog", perp_neg=1.0), model), model)
    assert model.calls[0].prompts == ("a red house", "fog")
    empty = model.calls[1].conditionings["empty"]
    assert not empty.context.any()
    assert not empty.pooled.any()


def test_guidance_that_is_skipped_at_every_second_step():
    model = FakeModel()
    run(picture_of(request(steps=8, guidance_skip=3.0), model), model)
    calls = model.calls[1:-1]
    for index, call in enumerate(calls):
        skipped = index % 2 == 1 and call.sigma < 3.0
        assert call.branches == (("positive",) if skipped else ("positive", "negative")), index
    assert {call.sigma < 3.0 for call in calls[1::2]} == {True, False}


@pytest.mark.parametrize("special", [{"kind": "edit"}, {"guides_itself": True}])
@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"guidance_rescale": 0.5}, "guidance_rescale"),
        ({"guidance_interval": (1.0, 2.0)}, "guidance_interval"),
        ({"guidance_skip": 1.0}, "guidance_skip"),
        ({"perp_neg": 0.0, "negative_prompt": "x"}, "perp_neg"),
        ({"sampler": "ddim_cfg_pp"}, "sampler ddim_cfg_pp"),
    ],
)
def test_models_that_guide_in_another_way_refuse_what_they_cannot_do(special, fields, name):
    asked = request(**fields, image="x.png" if "kind" in special else None)
    with pytest.raises(InvalidRequest, match=f"built-in guidance and cannot use {name}$"):
        spec(asked, replace(FACTS, **special))


def test_options_reach_the_sampler_that_has_them_and_no_other():
    asked = request(s_churn=3.0, s_tmin=0.1, s_tmax=5.0, s_noise=1.1)
    options = {"s_churn": 3.0, "s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 1.1}
    assert plan_of(spec(asked).passes[0], FACTS.scheduler).options == options
    eta = spec(request(sampler="euler_a", eta=0.0)).passes[0]
    assert plan_of(eta, FACTS.scheduler).options == {"eta": 0.0}
    with pytest.raises(InvalidRequest, match="lms has no option 's_churn'"):
        spec(request(sampler="lms", s_churn=3.0))


def test_churned_steps_are_counted_by_where_they_begin():
    model = FakeModel()
    run(picture_of(request(s_churn=9.0), model), model)
    assert [call.step for call in model.calls[1:-1]] == [1, 2, 3, 4, 5]
