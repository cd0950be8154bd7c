"""Samplers on Gaussian data, where the ideal denoiser and the exact answer are known.

For x0 ~ N(mu, s^2) the ideal denoiser is mu + s^2 / (s^2 + sigma^2) * (x - mu), and the probability flow
keeps (x - mu) / sqrt(s^2 + sigma^2) constant.
"""

import math

import pytest
import torch

from limner.diffusion.samplers import SAMPLERS, ancestral_step
from limner.diffusion.schedule import karras

MU, S = 0.7, 0.5
TOP, BOTTOM = 10.0, 0.1


def sample(name, x, sigmas, noise=None, **options):
    """Drive a sampler with the ideal denoiser; returns the result and the sigmas it asked about."""
    steps = SAMPLERS[name](x, sigmas, noise, **options)
    asked, answer = [], None
    while True:
        try:
            x, sigma = steps.send(answer)
        except StopIteration as done:
            return done.value, asked
        asked.append(sigma)
        answer = MU + S**2 / (S**2 + sigma**2) * (x - MU)


def error(name, count, sigmas=None, **options):
    sigmas = sigmas or karras(count + 1, BOTTOM, TOP)
    unit = torch.tensor([-1.3, 0.2, 2.0], dtype=torch.float64)
    x, _ = sample(name, MU + unit * math.hypot(S, sigmas[0]), sigmas, **options)
    return (x - (MU + unit * math.hypot(S, sigmas[-1]))).abs().max().item()


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("euler", {}, 1),
        ("ddim", {}, 1),
        ("heun", {}, 2),
        ("lms", {"order": 1}, 1),
        ("lms", {"order": 2}, 2),
        ("lms", {}, 3.4),  # 4, less what its first steps with fewer slopes cost
        ("pndm", {}, 2),
        ("pndm", {"prediction_type": "v_prediction"}, 1),  # the mean v is not the v of the mean noise
        ("dpmpp_2m", {}, 2),
        ("dpmpp_2m", {"solver_type": "heun"}, 2),
        ("unipc", {"order": 1}, 2),
        ("unipc", {"lower_order_final": False}, 3),
        ("unipc", {"order": 3, "lower_order_final": False}, 4),
    ],
)
def test_order_of_convergence(name, options, order):
    coarse, fine = error(name, 40, **options), error(name, 80, **options)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.3)


def test_pndm_has_almost_its_full_order_where_its_weights_are_exact():
    def evenly(count):
        return [2.0 - 1.5 * i / count for i in range(count + 1)]

    ratio = error("pndm", 40, evenly(40)) / error("pndm", 80, evenly(80))
    assert math.log2(ratio) > 3.5  # 4, less what its first steps cost


def test_few_steps_rank_the_samplers():
    """What the multistep samplers are for: at ten calls they are far ahead of Euler's method."""
    assert error("dpmpp_2m", 10) < error("euler", 10) / 5
    assert error("unipc", 10) < error("euler", 10) / 10


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("euler_a", {}),
        ("euler_a", {"eta": 0.5}),
        ("ddpm", {}),
        ("ddim", {"eta": 1.0}),
        ("ddim", {"eta": 0.3}),
        ("dpmpp_2m_sde", {}),
        ("dpmpp_2m_sde", {"eta": 0.5, "solver_type": "heun"}),
    ],
)
def test_stochastic_samplers_keep_the_marginal_distribution(name, options):
    generator = torch.Generator().manual_seed(0)
    count = 40_000

    def noise():
        return torch.randn(count, generator=generator, dtype=torch.float64)

    x = MU + noise() * math.hypot(S, TOP)
    x, _ = sample(name, x, karras(201, BOTTOM, TOP), noise, **options)
    # Three standard errors of 40,000 draws are 1 % of the deviation; 200 first-order steps cost 2 % more.
    assert x.std().item() == pytest.approx(math.hypot(S, BOTTOM), rel=0.03)
    assert x.mean().item() == pytest.approx(MU, abs=0.01)


def test_ancestral_steps_add_up():
    down, up = ancestral_step(3.0, 2.0, 0.7)
    assert math.hypot(down, up) == pytest.approx(2.0)
    assert ancestral_step(3.0, 2.0, 0.0) == (2.0, 0.0)
    assert ancestral_step(3.0, 0.0) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "calls", "draws"),
    [
        ("euler", 4, 0),
        ("euler_a", 4, 4),
        ("ddpm", 4, 4),
        ("ddim", 4, 0),
        ("heun", 7, 0),
        ("lms", 4, 0),
        ("pndm", 5, 0),
        ("dpmpp_2m", 4, 0),
        ("dpmpp_2m_sde", 4, 4),
        ("unipc", 4, 0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_calls_draws_and_dtype(name, calls, draws, dtype):
    x = torch.ones(2, 3, dtype=dtype) * 10
    before, drawn = x.clone(), []

    def noise():
        drawn.append(1)
        return torch.zeros_like(x)

    result, asked = sample(name, x, (10.0, 3.0, 1.0, 0.3, 0.0), noise)
    assert (len(asked), len(drawn)) == (calls, draws)
    assert min(asked) > 0.0
    assert result.dtype == dtype
    assert result.isfinite().all()
    assert torch.equal(x, before), "a sampler changed its argument"


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_to_zero_is_the_first_prediction(name):
    x = torch.tensor([12.0, -7.0], dtype=torch.float64)
    result, asked = sample(name, x, (10.0, 0.0), lambda: torch.ones_like(x))
    assert asked == [10.0]
    torch.testing.assert_close(result, MU + S**2 / (S**2 + 100.0) * (x - MU))


@pytest.mark.parametrize("name", ["euler_a", "ddpm", "dpmpp_2m_sde"])
def test_k_diffusion_does_not_draw_on_the_last_step(name):
    drawn = []

    def noise():
        drawn.append(1)
        return torch.zeros(1)

    sample(name, torch.ones(1), (10.0, 1.0, 0.0), noise, final_draw=False)
    assert len(drawn) == 1


def test_lms_refuses_an_order_it_cannot_integrate():
    with pytest.raises(ValueError, match="order is 5"):
        sample("lms", torch.ones(1), (1.0, 0.0), order=5)
