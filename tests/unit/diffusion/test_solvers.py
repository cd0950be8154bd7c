"""Samplers on Gaussian data, where the ideal denoiser and the exact answer are known.

For x0 ~ N(mu, s^2) the ideal denoiser is mu + s^2 / (s^2 + sigma^2) * (x - mu), and the probability flow
keeps (x - mu) / sqrt(s^2 + sigma^2) constant.
"""

import itertools
import math

import pytest
import torch

from limner.diffusion.sampler_table import SAMPLER_TABLE
from limner.diffusion.samplers import SAMPLERS, ancestral_step
from limner.diffusion.schedule import karras

MU, S = 0.7, 0.5
TOP, BOTTOM = 10.0, 0.1

CFG_PP = [name for name, info in SAMPLER_TABLE.items() if info.cfg_pp]


def ideal(x, sigma):
    return MU + S**2 / (S**2 + sigma**2) * (x - MU)


def sample(name, x, sigmas, noise=None, denoiser=ideal, **options):
    """Drive a sampler; returns the result and the sigmas it asked about."""
    steps = SAMPLERS[name](x, sigmas, noise, **options)
    asked, answer = [], None
    while True:
        try:
            x, sigma = steps.send(answer)
        except StopIteration as done:
            return done.value, asked
        asked.append(sigma)
        answer = denoiser(x, sigma)
        if name in CFG_PP and not isinstance(answer, tuple):
            answer = answer, answer


def error(name, count, sigmas=None, **options):
    sigmas = sigmas or karras(count + 1, BOTTOM, TOP)
    unit = torch.tensor([-1.3, 0.2, 2.0], dtype=torch.float64)
    x, _ = sample(
        name, MU + unit * math.hypot(S, sigmas[0]), sigmas, lambda: torch.zeros_like(unit), **options
    )
    return (x - (MU + unit * math.hypot(S, sigmas[-1]))).abs().max().item()


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("euler", {}, 1),
        ("ddim", {}, 1),
        ("heun", {}, 2),
        ("dpm2", {}, 2),
        ("dpm2_a", {"eta": 0.0}, 2),
        ("deis", {"order": 1}, 1),
        ("deis", {}, 2),
        ("deis", {"order": 3}, 3),
        ("lms", {"order": 1}, 1),
        ("lms", {"order": 2}, 2),
        ("lms", {}, 3.4),  # 4, less what its first steps with fewer slopes cost
        ("pndm", {}, 2),
        ("pndm", {"prediction_type": "v_prediction"}, 1),  # the mean v is not the v of the mean noise
        ("dpmpp_2m", {}, 2),
        ("dpmpp_2m", {"solver_type": "heun"}, 2),
        ("dpmpp_2m", {"order": 1}, 1),
        ("dpmpp_2m", {"order": 3}, 2),  # the curvature counts for half of what it should, as everywhere
        ("dpmpp_3m_sde", {"eta": 0.0}, 2),
        ("dpmpp_2s", {}, 2),
        ("dpmpp_2s", {"solver_type": "heun"}, 2),
        ("dpmpp_2s_a", {"eta": 0.0}, 2),
        ("dpmpp_sde", {"eta": 0.0}, 2),
        ("heunpp2", {}, 1),
        ("ipndm", {"order": 1}, 1),
        ("ipndm", {}, 2),
        ("gradient_estimation", {}, 1),
        ("gradient_estimation", {"gamma": 1.5}, 2),
        ("res_multistep", {}, 2),
        ("seeds_2", {"eta": 0.0}, 2),
        ("seeds_3", {"eta": 0.0}, 3),
        ("dpmpp_2m_sde_heun", {"eta": 0.0}, 2),
        ("er_sde", {"scale": float, "order": 1}, 1),
        ("er_sde", {"scale": float, "order": 2}, 2),
        ("er_sde", {"scale": float}, 2),  # the slope is not corrected for the curvature, as everywhere
        ("sa_solver", {"taus": [0.0] * 80}, 2.3),  # 2, in the end
        ("sa_solver", {"taus": [0.0] * 80, "corrector": 3, "lower_order_final": False}, 3),
        ("sa_solver", {"taus": [0.0] * 80, "predictor": 3, "corrector": 4, "lower_order_final": False}, 4),
        ("euler_cfg_pp", {}, 1),
        ("dpmpp_2m_cfg_pp", {}, 2),
        ("dpmpp_2s_a_cfg_pp", {"eta": 0.0}, 2),
        ("unipc_bh1", {"lower_order_final": False}, 4),
        ("unipc_bh2", {"lower_order_final": False}, 4),
        ("unipc", {"order": 1}, 2),
        ("unipc", {"lower_order_final": False}, 3),
        ("unipc", {"order": 3, "lower_order_final": False}, 4),
    ],
)
def test_order_of_convergence(name, options, order):
    coarse, fine = error(name, 40, **options), error(name, 80, **options)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.3)


def test_dpm_adaptive_comes_closer_the_less_error_it_is_allowed():
    x = torch.tensor([-1.3, 0.2, 2.0], dtype=torch.float64) * TOP
    errors, calls = [], []
    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6):
        options = {"rtol": tolerance, "atol": tolerance}
        errors.append(error("dpm_adaptive", 1, (TOP, BOTTOM), **options))
        calls.append(len(sample("dpm_adaptive", x, (TOP, BOTTOM), **options)[1]))
    for coarse, fine in itertools.pairwise(zip(errors, calls, strict=True)):
        order = math.log(coarse[0] / fine[0]) / math.log(fine[1] / coarse[1])
        assert order > 3  # the longest steps are where they cost least


def test_dpm_adaptive_heeds_the_ends_of_the_sigmas_alone():
    x = torch.tensor([-13.0, 2.0], dtype=torch.float64)
    few, asked = sample("dpm_adaptive", x, (10.0, 0.1, 0.0))
    many, _ = sample("dpm_adaptive", x, (10.0, 5.0, 1.0, 0.1, 0.0))
    assert torch.equal(few, many)
    assert (asked[0], asked[-1]) == (10.0, 0.1)


def test_dpm_adaptive_ends_whatever_the_network_says():
    _, asked = sample("dpm_adaptive", torch.ones(2), (10.0, 0.1, 0.0), denoiser=lambda x, _: x * math.nan)
    assert len(asked) < 1000


def test_pndm_has_almost_its_full_order_where_its_weights_are_exact():
    def evenly(count):
        return [2.0 - 1.5 * i / count for i in range(count + 1)]

    ratio = error("pndm", 40, evenly(40)) / error("pndm", 80, evenly(80))
    assert math.log2(ratio) > 3.5  # 4, less what its first steps cost


def test_few_steps_rank_the_samplers():
    """What the multistep samplers are for: at ten calls they are far ahead of Euler's method."""
    assert error("dpmpp_2m", 10) < error("euler", 10) / 5
    assert error("unipc", 10) < error("euler", 10) / 10


@pytest.mark.long
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
        ("dpmpp_3m_sde", {}),
        ("dpmpp_3m_sde", {"eta": 0.5}),
        ("dpmpp_2s_a", {}),
        ("dpmpp_2s_a", {"eta": 0.5}),
        ("dpmpp_sde", {}),
        ("dpmpp_sde", {"eta": 0.5}),
        ("dpm2_a", {}),
        ("dpm2_a", {"eta": 0.5}),
        ("restart", {}),
        ("euler", {"s_churn": 10.0}),
        ("heun", {"s_churn": 40.0, "s_tmin": 0.3, "s_tmax": 5.0}),
        ("dpm2", {"s_churn": 40.0}),
        ("dpm_fast", {"eta": 1.0}),
        ("dpmpp_2m_sde_heun", {}),
        ("seeds_2", {}),
        ("seeds_3", {}),
        ("er_sde", {}),
        ("er_sde", {"scale": lambda sigma: sigma**2}),
        ("sa_solver", {}),
        ("sa_solver", {"taus": [0.5] * 200, "predictor": 3, "corrector": 4}),
        ("euler_a_cfg_pp", {}),
        ("ddim_cfg_pp", {"eta": 1.0}),
        ("dpmpp_2s_a_cfg_pp", {}),
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
        ("restart", 7, 0),
        ("dpm2", 7, 0),
        ("dpm2_a", 7, 3),
        ("lms", 4, 0),
        ("deis", 4, 0),
        ("pndm", 5, 0),
        ("dpmpp_2m", 4, 0),
        ("dpmpp_2m_sde", 4, 4),
        ("dpmpp_3m_sde", 4, 4),
        ("dpmpp_2s", 4, 0),
        ("dpmpp_2s_a", 7, 3),
        ("dpmpp_sde", 7, 6),
        ("heunpp2", 9, 0),
        ("ipndm", 4, 0),
        ("dpm_fast", 5, 0),
        ("dpm_adaptive", 19, 0),
        ("dpmpp_2m_sde_heun", 4, 4),
        ("res_multistep", 4, 0),
        ("gradient_estimation", 4, 0),
        ("er_sde", 4, 3),
        ("seeds_2", 7, 6),
        ("seeds_3", 10, 9),
        ("sa_solver", 4, 3),
        ("ddim_cfg_pp", 4, 0),
        ("euler_cfg_pp", 4, 0),
        ("euler_a_cfg_pp", 4, 3),
        ("dpmpp_2m_cfg_pp", 4, 0),
        ("dpmpp_2s_a_cfg_pp", 7, 3),
        ("unipc_bh1", 4, 0),
        ("unipc_bh2", 4, 0),
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


@pytest.mark.parametrize("name", ["euler_a", "ddpm", "dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_k_diffusion_does_not_draw_on_the_last_step(name):
    drawn = []

    def noise():
        drawn.append(1)
        return torch.zeros(1)

    sample(name, torch.ones(1), (10.0, 1.0, 0.0), noise, final_draw=False)
    assert len(drawn) == 1


@pytest.mark.parametrize(
    ("steps", "expected", "times"), [(19, 19, 0), (20, 11 + 9, 1), (35, 26 + 9, 1), (40, 20 + 2 * 10, 2)]
)
def test_restart_spends_as_many_steps_as_it_is_given(steps, expected, times):
    sigmas = [*karras(steps, 0.03, 14.6), 0.0]
    drawn = []

    def noise():
        drawn.append(1)
        return torch.zeros(1, dtype=torch.float64)

    _, asked = sample("restart", torch.ones(1, dtype=torch.float64), sigmas, noise)
    assert len(asked) == 2 * expected - 1
    assert len(drawn) == times
    # Where it goes up again: from the sigma that is nearest to 0.1 to that which is nearest to 2.
    jumps = [(low, high) for low, high in itertools.pairwise(asked) if high > low]
    assert len(jumps) == times
    assert all(0.06 < low < 0.16 and 1.4 < high < 2.7 for low, high in jumps)
    assert len(set(jumps)) <= 1


def test_restart_adds_the_noise_that_is_missing():
    """With a network that knows the answer, what is left of noise is what was added last."""
    sigmas = [*karras(20, 0.03, 14.6), 0.0]
    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(10_000, generator=generator, dtype=torch.float64)

    spreads = []

    def denoiser(x, sigma):
        spreads.append((x.std() / sigma).item())
        return torch.zeros_like(x)

    sample("restart", noise() * sigmas[0], sigmas, noise, denoiser)
    assert spreads == pytest.approx([1.0] * len(spreads), abs=0.03)


def test_restart_goes_straight_down_where_there_is_no_way_up():
    sigmas = [*karras(30, 5.0, 14.6), 0.0]
    _, asked = sample("restart", torch.ones(1, dtype=torch.float64), sigmas)
    assert asked == sorted(asked, reverse=True)


def test_lms_refuses_an_order_it_cannot_integrate():
    with pytest.raises(ValueError, match="order is 5"):
        sample("lms", torch.ones(1), (1.0, 0.0), order=5)


def test_ipndm_refuses_an_order_it_has_no_weights_for():
    with pytest.raises(ValueError, match="order is 5"):
        sample("ipndm", torch.ones(1), (1.0, 0.0), order=5)


# ---- CFG++ ----

SIGMAS = [*karras(12, BOTTOM, TOP), 0.0]
X = torch.tensor([-13.0, 2.0, 20.0], dtype=torch.float64)


def bank():
    """The same draws whenever it is called."""
    generator = torch.Generator().manual_seed(1)
    return lambda: torch.randn(X.shape, generator=generator, dtype=torch.float64)


def positive(x, sigma):
    """The denoiser of other Gaussian data."""
    return -2.0 + 0.3**2 / (0.3**2 + sigma**2) * (x + 2.0)


def guided(scale):
    return lambda x, sigma: ideal(x, sigma) + scale * (positive(x, sigma) - ideal(x, sigma))


def pair(scale):
    return lambda x, sigma: (guided(scale)(x, sigma), ideal(x, sigma))


@pytest.mark.parametrize("name", CFG_PP)
def test_cfg_pp_at_scale_0_is_the_sampler_without_guidance(name):
    plain = name.removesuffix("_cfg_pp")
    options = {"final_draw": False} if plain == "euler_a" else {}
    ours, asked = sample(name, X, SIGMAS, bank(), pair(0.0))
    theirs, also_asked = sample(plain, X, SIGMAS, bank(), ideal, **options)
    assert asked == also_asked
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["euler_cfg_pp", "ddim_cfg_pp"])
def test_cfg_pp_is_guidance_at_a_scale_that_goes_with_the_step(name):
    """x' = D(scale) + r (x - D(0)) with r = sigma' / sigma is Euler's step with D(scale / (1 - r))."""
    scales = {s: 0.6 / (1.0 - s_next / s) for s, s_next in itertools.pairwise(SIGMAS)}
    ours, _ = sample(name, X, SIGMAS, denoiser=pair(0.6))
    theirs, _ = sample("euler", X, SIGMAS, denoiser=lambda x, sigma: guided(scales[sigma])(x, sigma))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_ddim_cfg_pp_is_algorithm_2_of_the_paper():
    """Written out in the paper's variables: latents of unit variance, noise estimates, and alphas."""
    alphas = [1.0 / (sigma**2 + 1.0) for sigma in SIGMAS]
    x = X * math.sqrt(alphas[0])
    for sigma, a, a_next in zip(SIGMAS, alphas, alphas[1:], strict=False):
        scaled = x / math.sqrt(a)
        plain, prompted = ((scaled - d(scaled, sigma)) / sigma for d in (ideal, positive))
        clean = (x - math.sqrt(1.0 - a) * (plain + 0.4 * (prompted - plain))) / math.sqrt(a)
        x = math.sqrt(a_next) * clean + math.sqrt(1.0 - a_next) * plain
    ours, _ = sample("ddim_cfg_pp", X, SIGMAS, denoiser=pair(0.4))
    torch.testing.assert_close(ours, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CFG_PP)
def test_cfg_pp_ends_at_the_guided_estimate(name):
    ours, _ = sample(name, X, (10.0, 0.0), denoiser=pair(0.6))
    torch.testing.assert_close(ours, guided(0.6)(X, 10.0))


# ---- others ----


def test_res_multistep_has_the_weights_of_its_paper():
    """Zhang et al. 2023: phi_1(h) and phi_2(h) of an exponential step, c_2 from the step before."""
    sigmas, known = karras(8, BOTTOM, TOP), []
    x = X
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        known = [ideal(x, sigma), *known][:2]
        h = math.log(sigma / sigma_next)
        phi_1 = math.expm1(-h) / -h
        phi_2 = (phi_1 - 1.0) / -h
        if i == 0:
            x = x * math.exp(-h) + h * phi_1 * known[0]
            continue
        c_2 = -math.log(sigmas[i - 1] / sigma) / h
        x = x * math.exp(-h) + h * ((phi_1 - phi_2 / c_2) * known[0] + phi_2 / c_2 * known[1])
    ours, _ = sample("res_multistep", X, sigmas)
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("steps", "calls"), [(1, 1), (2, 2), (3, 3), (4, 4), (20, 20)])
def test_dpm_fast_makes_as_many_calls_as_there_are_steps(steps, calls):
    _, asked = sample("dpm_fast", X, karras(steps + 1, BOTTOM, TOP))
    assert len(asked) == calls
    assert asked == sorted(asked, reverse=True)


def test_dpm_fast_is_of_order_3():
    """With two calls more than a multiple of three, a step of order 2 is the last and costs no order."""
    ratio = error("dpm_fast", 41) / error("dpm_fast", 80)
    assert math.log(ratio) / math.log(80 / 41) == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize("name", ["seeds_2", "seeds_3"])
def test_the_noise_of_seeds_is_one_path(name):
    """With an answer that is always 0 all noise is what was gathered on the way: of variance sigma^2."""
    draws = torch.eye(9, dtype=torch.float64)
    number = itertools.count()
    x, _ = sample(
        name,
        torch.zeros(9, dtype=torch.float64),
        (10.0, 3.0, 1.0),
        lambda: draws[next(number)],
        lambda x, sigma: torch.zeros_like(x),
    )
    assert x.square().sum().item() == pytest.approx(1.0 - 0.1**2)


def test_churn_raises_the_noise_before_a_step():
    generator = torch.Generator().manual_seed(0)
    drawn, spreads = [], []

    def noise():
        drawn.append(1)
        return torch.randn(20_000, generator=generator, dtype=torch.float64)

    def denoiser(x, sigma):
        spreads.append(x.std().item() / sigma)
        return torch.zeros_like(x)

    options = {"s_churn": 1.0, "s_tmin": 2.0, "s_tmax": 8.0}
    x = torch.randn(20_000, generator=generator, dtype=torch.float64) * 10.0
    _, asked = sample("euler", x, (10.0, 5.0, 2.0, 1.0, 0.0), noise, denoiser, **options)
    assert asked == pytest.approx([10.0, 5.0 * 1.25, 2.0 * 1.25, 1.0])
    assert len(drawn) == 4  # k-diffusion draws at every step
    assert spreads == pytest.approx([1.0] * 4, abs=0.02)
    _, asked = sample("heun", x, (10.0, 5.0), noise, denoiser, s_churn=50.0)
    assert asked == pytest.approx([10.0 * math.sqrt(2.0), 5.0])


def test_s_noise_is_a_factor_on_what_churn_adds():
    x = torch.zeros(1, dtype=torch.float64)
    seen = []
    sample(
        "euler",
        x,
        (3.0, 0.0),
        lambda: torch.ones(1, dtype=torch.float64),
        lambda x, sigma: seen.append(x.item()) or x,
        s_churn=1.0,
        s_noise=0.5,
    )
    assert seen == pytest.approx([0.5 * 3.0])  # raised no higher than to sqrt(2) * 3


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_rows_of_a_batch_do_not_influence_each_other(name):
    if name == "dpm_adaptive":  # its steps are as long as all of x lets them be; a picture is walked alone
        return
    one, two = X, X.flip(0) * 0.5
    generator = torch.Generator().manual_seed(3)
    draws = torch.randn(80, 2, 3, generator=generator, dtype=torch.float64)

    def walk(x, row):
        left = iter(draws[:, row])
        return sample(name, x, SIGMAS, lambda: next(left))[0]

    both = walk(torch.stack([one, two]), slice(None))
    torch.testing.assert_close(both, torch.stack([walk(one, 0), walk(two, 1)]), rtol=1e-12, atol=1e-12)
